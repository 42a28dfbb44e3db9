"""A robot's session with an endpoint of the router, for as long as the robot works, over one connection or many.

    connect -> race of QUIC and WebSocket -> up -> ... -> lost -> back-off -> race -> ... -> close, or a final error

The race is `dial.py`'s; what is sent between connections waits in `waiting.py`. One event loop; from other threads
see `BlockingRobotSession`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from router.client.dial import Dialler
from router.client.quic_carrier import QuicCarrier
from router.client.target import read_target
from router.client.waiting import Waiting
from router.client.words import LINK_LOST, TLS_FAILED, Lane, Link, Message, RobotError
from router.transport.codec.robot import wire
from router.transport.codec.robot.limits import GOODBYE_S
from router.transport.codec.robot.link import LinkMeter
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path
    from types import TracebackType

    from router.client.carrier import Carrier

BACK_OFF_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Before an attempt, by how many failed; each somewhat at random, so that a fleet does not come back as one."""
AGAIN_S: Final = 30.0
"""After a direct connection that did not even last `GOOD_S`: each costs the replica's memory of us."""
GOOD_S: Final = 10.0
"""A connection that lasted so long was good: the next attempt is a first one."""
_CLOSED: Final = "the session was closed"

_log = logging.getLogger(__name__)


class RobotSession:
    """One robot and the replicas that serve it, one after another."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        ca: bytes | str | Path | None = None,
        verify: bool = True,
        replies: Literal["state", "command"] = "state",
        upstream: Literal["websocket", "post"] = "websocket",
        websocket_url: str | None = None,
        transport: Literal["auto", "quic", "websocket"] = "auto",
        server_name: str | None = None,
        authority: str | None = None,
        connect_timeout_s: float = 10.0,
        silence_s: float = 5.0,
        ping_every_s: float | None = None,
        direct: bool = False,
        resume: str = "",
        on_epoch: Callable[[int, str], None] | None = None,
        on_round_trip: Callable[[float], None] | None = None,
    ) -> None:
        """`url` is quic://HOST:PORT/PATH; `token` the router's, `headers` the replica's.

        `ca`: PEM certificates (bytes), or a file of them, not the usual ones. `upstream`: how the router speaks
        to the replica; with `post` each message is a request of its own. `websocket_url` is where to go when
        UDP is blocked: wss:// at the same place if None, nowhere if empty. `authority`: the host that routes go by
        over QUIC, if it is not the URL's. `silence_s`: a router that is not heard for so long is gone.
        `ping_every_s`: 0.2 over QUIC, 1 over a WebSocket if None. `direct`: a replica that attached to the router
        is looked for behind its NAT, and spoken to without the router if it is found; until then, and for any other
        replica, the router relays. `resume`: the `resume_token` of a session before, which then goes on, with its
        replica if that still serves; after a lost connection this is seen to. Whoever shows it takes the session
        over: one that is still open ends, by an error that `is_superseded`. `on_epoch(epoch, replica)`: another
        replica serves from here on, or a connection was lost; what was under way may be lost. `on_round_trip` gets
        the seconds of each that is measured. Both may send; what they raise is logged, and changes nothing else.
        ValueError and OSError say what is wrong with the options.
        """
        self._target = read_target(
            url, token=token, headers=headers, ca=ca, verify=verify, replies=replies, upstream=upstream,
            websocket_url=websocket_url, server_name=server_name, authority=authority,
        )  # fmt: skip
        self._dialler = Dialler(self._target, transport, silence_s=silence_s, ping_every_s=ping_every_s)
        self._connect_timeout_s = connect_timeout_s
        self._is_direct_wanted = direct
        self.on_epoch = on_epoch
        self.on_round_trip = on_round_trip
        self.epoch = 0
        self._carrier: Carrier | None = None
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._failure: RobotError | None = None  # that ended the session
        self._last_failure: RobotError | None = None
        self._is_closing = False
        self._ends: set[asyncio.Task[None]] = set()  # of carriers that nobody uses any more; `close` waits for them
        self._leaving: Carrier | None = None  # alive, behind a direct one: its commands arrive first, others wait
        self._direct_from_s = 0.0  # when a direct way may be looked for again
        self._inbox: deque[Message] = deque()
        self._state_epoch = 0  # of the newest state message that came
        self._arrived = asyncio.Event()
        self._waiting = Waiting()  # for the next connection
        self._resume = resume
        self._session = ""
        self._past = LinkMeter()  # of connections that are over
        self._connections = 0
        self._moves = 0
        self._refused = 0
        self._telemetry_dropped = 0

    # -- beginning and end ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def connect(self) -> None:
        """Return once a replica is there; RobotError if there is none in time, or never will be. Once."""
        if self._task is not None:
            raise RuntimeError("connect is for once: a session reconnects by itself")
        self._raise_failure()  # it was closed before
        self._first = asyncio.get_running_loop().create_future()
        self._task = spawn(self._run(), "robot session")
        self._task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._first
        except TimeoutError:
            await self.close()
            last = self._last_failure
            reason = f"no session within {self._connect_timeout_s:g} s"
            if last is None:
                raise RobotError(LINK_LOST, f"{reason}: nobody answers at {self._target.authority}") from None
            raise RobotError(last.code, f"{reason}: {last.reason}", last.status, last.retry_after_s) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Say goodbye, once the router has all commands, and let go of everything. Any number of times."""
        self._is_closing = True
        if self._leaving is not None:
            await asyncio.wait(self._ends)  # what waits for it is sent then
        carrier = self._carrier
        if carrier is not None:
            carrier.leave()
            await asyncio.wait([carrier.lost], timeout=2 * GOODBYE_S + 0.5)
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        if self._ends:
            await asyncio.wait(self._ends)
        self._fail(RobotError(wire.DONE, _CLOSED))

    # -- messages -------------------------------------------------------------------------------------

    def send(self, data: bytes | str, lane: Lane = "state", deadline_s: float | None = None) -> bool:
        """Send a message; returns at once, False if it was dropped: late, no room, or telemetry that finds no way.

        On `state` it takes the place of what has not left yet. `deadline_s` from now: what cannot be there by then
        is not delivered at all. A str goes as text, on `command` only. RobotError once the session is over.
        """
        if self._failure is not None:
            raise self._failure
        is_text = isinstance(data, str)
        payload = data.encode() if isinstance(data, str) else bytes(data)
        if is_text and lane != "command":
            raise ValueError("text goes on the command lane")
        if len(payload) > wire.MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(payload)} bytes; at most {wire.MAX_MESSAGE_BYTES} are taken")
        now = monotonic()
        deadline = 0 if deadline_s is None else max(1, microseconds(now + deadline_s))
        carrier = self._carrier
        if carrier is not None and carrier.lost.done():
            carrier = None  # its end is about to be seen to
        if lane == "telemetry":
            is_sent = carrier is not None and carrier.send_telemetry(payload)
            self._telemetry_dropped += not is_sent
            return is_sent
        if lane == "state":
            if carrier is not None:
                is_sent = carrier.send_state(payload, deadline, now)
            else:
                self._past.stale += self._waiting.put_state(payload, deadline)
                is_sent = True
        elif lane == "command":
            if carrier is not None and self._leaving is None:
                is_sent = carrier.send_command(payload, deadline, now, is_text=is_text)
            else:
                is_sent = self._waiting.put_command(wire.Command(payload, deadline, is_text))
        else:
            raise ValueError("a lane is state, command or telemetry")
        self._refused += not is_sent
        return is_sent

    async def recv(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message; None if none came in time, which costs nothing: it will be the next one's.

        Of state messages that nobody has taken the newest alone is kept. RobotError once the session is over, and
        all that came before was taken.
        """
        if not self._inbox:
            if timeout_s is not None and timeout_s <= 0.0:
                self._raise_failure()
                return None
            try:
                async with asyncio.timeout(timeout_s):
                    while not self._inbox:
                        self._raise_failure()
                        self._arrived.clear()
                        await self._arrived.wait()
            except TimeoutError:
                if not self._inbox:
                    return None
        return self._take()

    def _take(self) -> Message:
        message = self._inbox.popleft()
        carrier = self._carrier
        if message.lane == "command" and carrier is not None and message.epoch >= carrier.first_epoch:
            carrier.took(message.data)
        return message

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- what is seen of it ---------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether a replica is there now."""
        return self._carrier is not None

    @property
    def link(self) -> Link:
        """What was measured so far, over all connections."""
        carrier = self._carrier
        meter = LinkMeter()
        meter.add(self._past)
        if carrier is not None:
            meter.add(carrier.meter)
        return Link(
            transport=carrier.transport if carrier is not None else "",
            is_direct=isinstance(carrier, QuicCarrier) and carrier.is_direct,
            epoch=self.epoch,
            replica=carrier.replica if carrier is not None else "",
            connections=self._connections,
            moves=self._moves + (carrier.moves if carrier is not None else 0),
            rtt_s=meter.rtt_s,
            rtt_min_s=meter.min_s,
            rtt_last_s=meter.last_s,
            jitter_s=meter.jitter_s,
            loss=meter.loss,
            pings_answered=meter.answered,
            pings_lost=meter.lost,
            replies=meter.replies,
            largest_gap_s=meter.largest_gap_s,
            gaps=tuple(meter.gaps.counts),
            late=meter.late,
            stale=meter.stale,
            refused=self._refused,
            telemetry_dropped=self._telemetry_dropped,
        )

    @property
    def session_id(self) -> str:
        """The router's id of the session, the same after a lost connection; empty over a WebSocket, or before."""
        self._note_resume(self._carrier)
        return self._session

    @property
    def resume_token(self) -> str:
        """What finds back to the replica within the next half hour at least, in another process too; or empty."""
        self._note_resume(self._carrier)
        return self._resume

    def rebind(self) -> None:
        """Go on from another socket, as is done by itself within a second of a change of the network."""
        if isinstance(self._carrier, QuicCarrier):
            self._carrier.rebind()

    # -- connections ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Connect, again and again, until the session ends."""
        failed = 0
        while True:
            began_s = monotonic()
            try:
                carrier = await self._dialler.dial(self._resume, self._waiting)
            except RobotError as failure:
                error = failure
                if error.code == TLS_FAILED and not self._connections:
                    self._fail(error)  # no try will change who the server is; later it may be a certificate's day
                    return
            else:
                error = await self._serve(carrier)
                if monotonic() - began_s > GOOD_S:
                    failed = 0
            self._last_failure = error
            if error.is_final or self._is_closing:
                self._fail(error)
                return
            delay_s = max(BACK_OFF_S[min(failed, len(BACK_OFF_S) - 1)], error.retry_after_s)
            failed += 1
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))

    async def _serve(self, carrier: Carrier) -> RobotError:
        """Use a connection while it lasts, then one to the replica itself if that is found; return why it ended."""
        self._attach(carrier)
        direct: Carrier | None = None
        try:
            direct = await self._look_for_direct(carrier)
            if direct is None:
                return await carrier.lost
        finally:
            if direct is None or carrier.lost.done():  # `close` has given it its time
                self._detach(carrier)
                await carrier.end()
            else:
                self._leave(carrier)
        return await self._serve_directly(direct)

    async def _serve_directly(self, direct: Carrier) -> RobotError:
        """Use a connection to the replica itself while it lasts."""
        began_s = monotonic()
        self._attach(direct)
        try:
            error = await direct.lost
        finally:
            self._detach(direct)
            await direct.end()
        if monotonic() - began_s < GOOD_S:
            self._direct_from_s = monotonic() + AGAIN_S
        if error.status or error.code == TLS_FAILED:  # it lets us in no more: that is not the router's word
            return RobotError(LINK_LOST, f"the replica itself refuses: {error.reason}")
        return error

    async def _look_for_direct(self, carrier: Carrier) -> Carrier | None:
        """Return a carrier to the replica; None if it is not wanted, or this one was lost before."""
        if not self._is_direct_wanted or not isinstance(carrier, QuicCarrier):
            return None
        delay_s = max(0.0, self._direct_from_s - monotonic())
        looking = spawn(self._dialler.find_direct(carrier, delay_s), "look for a direct way")
        is_taken = False
        try:
            await asyncio.wait([carrier.lost, looking], return_when=asyncio.FIRST_COMPLETED)
            is_taken = looking.done() and not self._is_closing
        finally:
            if not is_taken:
                looking.cancel()
                self._end(_drop(looking))
        # What went wrong in looking was reported; it is no reason to lose what there is.
        return looking.result() if is_taken and looking.exception() is None else None

    def _leave(self, carrier: Carrier) -> None:
        """Go on elsewhere while all commands arrive, and what the router still has for us is heard."""
        self._detach(carrier, is_alive=True)
        self._leaving = carrier
        carrier.leave()

        async def end() -> None:
            await asyncio.wait([carrier.lost], timeout=2 * GOODBYE_S + 0.5)
            self._refused += self._waiting.put_back(*carrier.unsent())
            self._leaving = None
            if self._carrier is not None:
                self._send_waiting(self._carrier)
            await carrier.end()

        self._end(end())

    def _end(self, work: Coroutine[Any, Any, None]) -> None:
        task = spawn(work, "end of a robot's connection")
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    def _attach(self, carrier: Carrier) -> None:
        self._connections += 1
        self._carrier = carrier
        carrier.meter.follow(self._past)
        carrier.on_round_trip = self._on_round_trip
        carrier.first_epoch = self.epoch + 1

        def on_message(lane: Lane, sequence: int, payload: bytes, is_text: bool) -> None:
            self._on_message(Message(payload, lane, sequence, carrier.epoch, is_text))

        def on_epoch(number: int, replica: str) -> None:
            self._on_new_epoch(carrier, number, replica)

        self._send_waiting(carrier)
        carrier.listen(on_message, on_epoch)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _send_waiting(self, carrier: Carrier) -> None:
        """Send what waits for a connection, before `on_epoch` is called: what that sends is newer."""
        now = monotonic()
        commands, state = self._waiting.take()
        if self._leaving is not None:
            self._waiting.put_back(commands, None)
            commands = []
        for one in commands:
            self._refused += not carrier.send_command(one.data, one.deadline, now, is_text=one.is_text)
        if state is not None and not (isinstance(carrier, QuicCarrier) and carrier.was_early(state)):
            carrier.send_state(*state, now)

    def _detach(self, carrier: Carrier, *, is_alive: bool = False) -> None:
        """Keep what never left for the next connection."""
        self._carrier = None
        self._note_resume(carrier)
        self._moves += carrier.moves
        unsent = ([], carrier.unsent_state()) if is_alive else carrier.unsent()
        self._refused += self._waiting.put_back(*unsent)
        self._past.add(carrier.meter)
        self._past.follow(carrier.meter)

    def _note_resume(self, carrier: Carrier | None) -> None:
        """Keep what the router gave for the next connection; what a replica itself gave means nothing to it."""
        if isinstance(carrier, QuicCarrier) and carrier.session and not carrier.is_direct:
            self._session = carrier.session
            self._resume = carrier.resume or self._resume

    def _on_message(self, message: Message) -> None:
        inbox = self._inbox
        if message.lane == "state":
            if message.epoch < self._state_epoch:  # of the connection that is being left
                self._past.stale += 1
                return
            self._state_epoch = message.epoch
            for index, waiting in enumerate(inbox):
                if waiting.lane == "state":
                    self._past.stale += 1
                    del inbox[index]
                    break
        inbox.append(message)
        self._arrived.set()

    def _on_new_epoch(self, carrier: Carrier, number: int, replica: str) -> None:
        """Count replicas over all connections: one that did not resume begins anew with 1.

        A connection that is being left counts no more.
        """
        if carrier is not self._carrier:
            return
        self.epoch = max(self.epoch + 1, number)
        carrier.epoch = self.epoch
        if self.epoch > 1 and self.on_epoch is not None:
            try:
                self.on_epoch(self.epoch, replica)
            except Exception:  # the connection, whose callback this is, goes on
                _log.exception("on_epoch failed")

    def _on_round_trip(self, round_trip_s: float) -> None:
        if self.on_round_trip is not None:
            try:
                self.on_round_trip(round_trip_s)
            except Exception:
                _log.exception("on_round_trip failed")

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Leave nobody waiting for ever, whatever ended the task: a bug, or the loop's end."""
        if self._is_closing:
            self._fail(RobotError(wire.DONE, _CLOSED))
        elif task.cancelled():
            self._fail(RobotError(LINK_LOST, "the session was cancelled"))
        elif task.exception() is not None:
            self._fail(RobotError(LINK_LOST, f"a bug ended the session: {task.exception()!r}"))

    def _fail(self, error: RobotError) -> None:
        """End the session."""
        if self._failure is None:
            self._failure = error
        self._arrived.set()
        if self._first is not None and not self._first.done():
            self._first.set_exception(self._failure)
            self._first.exception()


async def _drop(looking: asyncio.Task[QuicCarrier]) -> None:
    """Let go of what was found at the last moment, and is not wanted any more."""
    await asyncio.wait([looking])
    if not looking.cancelled() and looking.exception() is None:
        await looking.result().end()
