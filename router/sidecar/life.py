"""The life of one inference server beside its relay: the order in which things happen, and nothing else.

The state is what the replica's row in the store should say.

    state       event                   next                what follows
    -           run                     STARTING            relay opened; engine started; row registered
    STARTING    engine ready            READY
    READY       engine says 503         DRAINING            it drains, pauses or warms up, and may come back
    READY       three strikes           STARTING            no good answer: late, 5xx, cut
    DRAINING    engine ready            READY               (after the engine's own 503, not after a stop)
    any         engine exited           DOWN → STARTING     after a back-off a new generation is registered
    ready once  port refuses, twice     DOWN → STARTING     as if it had exited; what is left of it is ended
    any         stop                    DRAINING → gone     the order below

Rules. The state of the row never waits for the engine, nor serving for the store. The relay stays open from the
beginning to the end: routers that have not seen DOWN yet get an answer. A new incarnation has a new generation,
so what was written for the old one cannot speak for it.

Stop, which SIGTERM asks for, in order: (1) DRAINING is written, waiting 2 s at most for the store; (2) settle,
so that every router has seen it (not if no router ever saw READY); (3) the relay drains, at most `exit_s`; (4)
the engine is stopped, SIGTERM and SIGKILL `engine_s` later; (5) the row is removed, or says DOWN; (6) the exit
code: 0, or 4 if a request was cut, by the relay or by an engine that died meanwhile. A second stop waits for
nothing: requests are cut, the engine is killed, the row still removed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from router.sidecar.ports import State
from router.sidecar.publish import Publisher
from router.sidecar.readiness import ReadinessWatch, Reading
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, Protocol

    from router.sidecar.ports import Engine, Registry, Relay

    class Watch(Protocol):
        """Follows one incarnation; `readiness.ReadinessWatch` does."""

        reason: str

        async def run(self) -> None:
            """Return when the engine is dead."""

    MakeWatch = Callable[[Callable[[Reading], None]], Watch]

_log = logging.getLogger("router.sidecar")
_T = TypeVar("_T")

EXIT_CLEAN = 0
EXIT_FATAL = 1
EXIT_CUT = 4

_STATE_OF = {
    Reading.STARTING: State.STARTING,
    Reading.READY: State.READY,
    Reading.DRAINING: State.DRAINING,
    Reading.FAILING: State.STARTING,
    Reading.DEAD: State.DOWN,
}


@dataclass(frozen=True, slots=True)
class Graces:
    """How long each step of the end may take."""

    store_s: float = 2.0
    settle_s: float = 0.5  # by then every router has seen the change, relays between included
    exit_s: float = 60.0
    engine_s: float = 20.0  # SGLang looks each 5 s whether it is idle, and needs up to 15 s to go


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator may ask."""

    state: State
    generation: int
    restarts: int
    reason: str
    is_store_behind: bool
    store_failures: int


class SidecarLife:
    """Runs once. `stop` may be called at any time, from a signal handler of the loop."""

    def __init__(
        self,
        registry: Registry,
        relay: Relay,
        engine: Engine,
        watch: MakeWatch,
        *,
        graces: Graces | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self._relay = relay
        self._engine = engine
        self._make_watch = watch
        self._graces = graces or Graces()
        self._publisher = publisher or Publisher(registry)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._state = State.STARTING
        self._reason = "not started yet"
        self._cut = 0

    @classmethod
    def beside(
        cls, address: str, registry: Registry, relay: Relay, engine: Engine, *, graces: Graces | None = None
    ) -> SidecarLife:
        """Make the life of the engine that listens at `address`, http://host:port."""
        return cls(registry, relay, engine, lambda heard: ReadinessWatch(address, heard), graces=graces)

    def stop(self) -> None:
        """Begin the end; the second time, hurry."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def leave(self) -> None:
        """Begin the end without hurry, however often it is said: a newer incarnation has taken over."""
        self._stop.set()

    def lease_restored(self) -> None:
        """Write the row anew: the node's lease had lapsed, and the reaper may have changed or removed the row."""
        self._publisher.again()

    def status(self) -> Status:
        """Return where things stand."""
        engine, publisher = self._engine, self._publisher
        return Status(
            self._state, engine.generation, engine.restarts, self._reason, publisher.is_behind, publisher.failures
        )

    async def run(self) -> int:
        """Live until stopped; return the exit code. OSError if the relay cannot listen."""
        try:
            await self._relay.open()
            while not self._stop.is_set():
                if not await self._live_once():
                    return EXIT_FATAL
            return EXIT_CUT if self._cut else EXIT_CLEAN
        finally:  # whatever happened, a cancel too, nothing stays behind
            self._relay.close()
            await self._engine.stop(0)
            await self._publisher.close()

    async def _live_once(self) -> bool:
        """One incarnation of the engine, with the end of all if told to stop; False if none can be started."""
        engine = self._engine
        failure = await self._unless(self._stop, self._start_engine())
        if self._stop.is_set():
            await self._end(None)
            return True
        if failure is not None:
            self._enter(State.DOWN, f"the engine cannot be started: {failure}")
            # One that never ran has a wrong command, and trying again would only hide it.
            return engine.restarts > 0
        self._publisher.register(engine.generation)
        self._enter(State.STARTING, f"generation {engine.generation} started")
        watch = self._make_watch(self._hear)
        exited = spawn(engine.exited(), f"engine {engine.generation} exit")
        watching = spawn(watch.run(), f"engine {engine.generation} readiness")
        stopping = spawn(self._stop.wait(), "sidecar stop")
        try:
            await asyncio.wait((exited, watching, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await _cancel(watching)
                await self._end(exited)
            elif exited.done():
                self._enter(State.DOWN, f"the engine ended: {exited.result()}")
            else:
                watching.result()
                self._enter(State.DOWN, f"the engine is gone: {watch.reason}")
                await self._stop_engine()  # its process may still be there, without a port
        finally:
            await _cancel(watching, exited, stopping)
        return True

    async def _end(self, exited: asyncio.Task[str] | None) -> None:
        """The six steps. `exited` is the running engine's, None when none runs."""
        graces, publisher = self._graces, self._publisher
        if exited is not None:
            exited.add_done_callback(self._died_while_draining)
        self._enter(State.DRAINING, "told to stop")
        await self._unless(self._hurry, publisher.settled(graces.store_s))
        if publisher.was_ready:
            await self._unless(self._hurry, asyncio.sleep(graces.settle_s))
        cut = await self._unless(self._hurry, self._relay.drain(graces.exit_s))
        self._cut += await self._relay.drain(0) if cut is None else cut
        self._relay.close()
        if exited is not None:
            exited.remove_done_callback(self._died_while_draining)
        await self._stop_engine()
        self._state = State.DOWN
        await publisher.remove(graces.store_s)

    async def _start_engine(self) -> OSError | None:
        await asyncio.sleep(self._engine.back_off_s())
        try:
            await self._engine.start()
        except OSError as failure:
            return failure
        return None

    async def _stop_engine(self) -> None:
        went = await self._unless(self._hurry, self._engine.stop(self._graces.engine_s))
        if went is None:
            went = await self._engine.stop(0)
        if not went:
            _log.warning("the engine had to be killed")

    def _died_while_draining(self, exited: asyncio.Task[str]) -> None:
        if not exited.cancelled():
            lost = self._relay.in_flight()
            _log.error("the engine ended while %d requests finished: %s", lost, exited.result())
            self._cut += lost

    def _hear(self, reading: Reading) -> None:
        self._enter(_STATE_OF[reading], f"the engine is {reading.name.lower()}")

    def _enter(self, state: State, reason: str) -> None:
        if state is not self._state:
            _log.info("%s: %s", state, reason)
        self._state = state
        self._reason = reason
        self._publisher.want(state)

    @staticmethod
    async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Wait for `work`, or give it up and return None once `event` is set."""
        doing = spawn(work, "sidecar step")
        interrupted = spawn(event.wait(), "sidecar step interrupted")
        try:
            await asyncio.wait((doing, interrupted), return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            await _cancel(doing, interrupted)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
