"""The supervisor's side of one worker: its process, its control channel, its replacement.

A worker that dies is started again on the same listening sockets, which the supervisor keeps open: what
waited in the accept queue meanwhile is served by the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from router.control import (
    PULSE_S,
    Accept,
    Alive,
    Ask,
    AskDemand,
    AskRobots,
    Built,
    CameAgain,
    Counted,
    Demanded,
    Drain,
    Drained,
    EarlierEnded,
    EndSession,
    Explain,
    Explained,
    HasLeft,
    IsHere,
    Ready,
    Robots,
    SessionsUsed,
    StartSession,
    Unpacker,
    from_worker,
    pack,
)
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router.control import AboutSessions, AboutTakeovers, FromWorker, SessionAnswer, ToWorker
    from router.routing.explain import Asked
    from router.telemetry import WorkerSnapshot

_log = logging.getLogger("router.supervisor")

READ_BYTES = 262_144
RESTART_FLOOR_S = 0.1  # the wait before a replacement doubles while workers die young
RESTART_CEILING_S = 5.0
OLD_AGE_S = 10.0
START_LIMIT_S = 30.0
MIN_MISSED = 3  # pulses, however short the limit: one or two may be late under load
ABORT_GRACE_S = 1.0  # for a stuck worker to say where it is
FAREWELL_S = 0.3  # for one that is ended to tell who is connected over QUIC: no kernel does
Answer = Counted | Demanded | Explained | Robots


class WorkerProcess:
    """One place among the workers, filled by one process after another."""

    def __init__(
        self,
        index: int,
        greet: Callable[[int], Iterable[ToWorker]],
        board_fd: int,
        sockets: list[socket.socket],
        on_death: Callable[[int], None],
        may_greet: asyncio.Event,
        may_accept: asyncio.Event,
        on_sessions: Callable[[int, AboutSessions, Callable[[SessionAnswer], bool]], None],
        on_takeovers: Callable[[int, AboutTakeovers], None],
    ) -> None:
        self._on_takeovers = on_takeovers
        self._on_sessions = on_sessions
        self.index = index
        self.pid = 0
        self.state = "starting"
        self.restarts = 0
        self.cut = 0
        self.last: WorkerSnapshot | None = None
        self.is_stalled = False
        self.overload = ""  # what it suffers from, as it last said
        self.stuck = 0  # times that it was ended because its loop stood still
        self._is_heard = False
        self._missed = 0  # turns of the watch in a row without a word
        self.ready = asyncio.Event()
        self._greet = greet
        self._board_fd = board_fd
        self._sockets = sockets
        self._on_death = on_death
        self._may_greet = may_greet
        self._may_accept = may_accept
        self.built = asyncio.Event()
        self._accepting: asyncio.Task[None] | None = None
        self.has_process = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._channel: asyncio.StreamWriter | None = None
        self._questions: dict[int, asyncio.Future[Answer]] = {}
        self._asked = 0
        self._is_stopping = False
        self._has_drained = False
        self._stop = asyncio.Event()
        self._task = spawn(self._keep_running(), f"worker {index}")

    def send(self, message: ToWorker) -> None:
        """Tell it something; dropped while no process is there, since the next one starts with all of it."""
        self.send_packed(pack(message))

    def send_packed(self, packed: bytes) -> None:
        """Tell it something that was packed once for all workers."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(packed)

    async def ask(self, limit_s: float) -> WorkerSnapshot | None:
        """Return its counters, or its last known ones if it does not answer in time."""
        answer = await self._question(Ask(self._next_question()), limit_s)
        self.is_stalled = answer is None and self.state == "ready"
        if isinstance(answer, Counted):
            self.last = answer.snapshot
        return self.last

    async def ask_demand(self, limit_s: float) -> Demanded | None:
        """Return what its endpoints are asked for, None if it does not answer in time."""
        answer = await self._question(AskDemand(self._next_question()), limit_s)
        return answer if isinstance(answer, Demanded) else None

    async def explain(self, asked: Asked, limit_s: float) -> dict[str, object] | None:
        """Ask where a request would go."""
        answer = await self._question(Explain(self._next_question(), asked), limit_s)
        if not isinstance(answer, Explained):
            return None
        found: dict[str, object] = msgspec.msgpack.decode(answer.explanation)
        return found

    async def ask_robots(self, limit: int, session: str, limit_s: float) -> Robots | None:
        """Return its open robot sessions, None if it does not answer in time."""
        answer = await self._question(AskRobots(self._next_question(), limit, session), limit_s)
        return answer if isinstance(answer, Robots) else None

    def watch(self, stuck_s: float) -> None:
        """Take one turn of the supervisor's watch, each `PULSE_S`: who is silent for so long is replaced.

        Turns are counted, not time: a supervisor that itself stood still has heard nothing meanwhile. A worker
        that starts says nothing yet, and has `START_LIMIT_S`.
        """
        process = self._process
        if self._is_heard or process is None or process.returncode is not None:
            self._is_heard = False
            self._missed = 0
            return
        self._missed += 1
        limit_s = stuck_s if self.state in ("ready", "draining") else max(stuck_s, START_LIMIT_S)
        if self._missed == max(MIN_MISSED, round(limit_s / PULSE_S)):
            spawn(self._end_stuck(process, limit_s), "stuck worker")

    async def _end_stuck(self, process: asyncio.subprocess.Process, silent_s: float) -> None:
        """End a process whose loop stands still; where it stands is written to stderr, if it can."""
        self.stuck += 1
        _log.error("worker %d (process %d) said nothing for %g s and is ended", self.index, process.pid, silent_s)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGABRT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), ABORT_GRACE_S)
                return
            process.kill()

    async def drain(self, deadline_s: float, grace_s: float, *, is_handed_over: bool = False) -> None:
        """Let it finish; kill it when it does not end by itself. See `control.Drain`."""
        was_serving = self.state == "ready"
        self._is_stopping = True
        self._stop.set()
        self.state = "draining"
        self.send(Drain(deadline_s, is_handed_over))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._task), deadline_s + grace_s)
        if was_serving and not self._has_drained:
            self.cut = max(1, self.last.in_flight if self.last is not None else 1)  # it ended without a word
        await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        self._is_stopping = True
        self._stop.set()
        if self._accepting is not None:
            self._accepting.cancel()  # who is about to be killed must take no connection
        if self._process is None and not self._task.done() and self.state == "starting":
            self._task.cancel()  # not even started
        elif self._process is not None and self._process.returncode is None:
            if self._channel is not None:
                self._channel.close()  # which it takes for our death, and ends by itself
                await asyncio.wait([self._task], timeout=FAREWELL_S)
            with contextlib.suppress(ProcessLookupError):
                if self._process is not None:
                    self._process.kill()
        _, running = await asyncio.wait([self._task], timeout=5.0)
        if running:
            _log.error("worker %d did not end", self.index)

    async def _reap(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def _was_stopped(self) -> bool:
        return self._is_stopping

    def _next_question(self) -> int:
        self._asked += 1
        return self._asked

    async def _question(self, question: Ask | AskDemand | Explain | AskRobots, limit_s: float) -> Answer | None:
        if self.state not in ("ready", "draining"):
            return None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[question.question] = future
        self.send(question)
        try:
            return await asyncio.wait_for(future, limit_s)
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if future.cancelled():  # the process ended; else it is the asker who was cancelled
                return None
            raise
        finally:
            self._questions.pop(question.question, None)

    async def _keep_running(self) -> None:
        wait_s = RESTART_FLOOR_S
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            began_s = loop.time()
            try:
                await self._run_once()
            except Exception:  # a fork that failed, a message that does not decode: the place must be filled again
                _log.exception("worker %d could not be run", self.index)
                await self._reap()
            self._forget_process()
            if self._was_stopped():
                break
            self.restarts += 1
            wait_s = RESTART_FLOOR_S if loop.time() - began_s > OLD_AGE_S else min(wait_s * 2, RESTART_CEILING_S)
            code = self._process.returncode if self._process is not None else None
            _log.error("worker %d ended with %s; the next one starts in %.1f s", self.index, code, wait_s)
            self.state = "restarting"
            self._on_death(self.index)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
        self.state = "stopped"

    async def _run_once(self) -> None:
        self._process = None
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._board_fd, *(sock.fileno() for sock in self._sockets))
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "router.worker", *map(str, fds),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=fds,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.has_process.set()
        await self._may_greet.wait()
        reader, self._channel = await asyncio.open_unix_connection(sock=ours)
        if self._is_stopping:  # told to end before there was anybody to tell
            self._channel.close()
            await self._reap()
            return
        for message in self._greet(self.index):
            self.send(message)
        unpacker = Unpacker()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                for body in unpacker.feed(data):
                    self._take(from_worker.decode(body))
        self._channel.close()
        await self._process.wait()

    async def _accept(self) -> None:
        process = self._process
        await self._may_accept.wait()
        if process is self._process:  # else another's turn has come, which is not built yet
            self.send(Accept())

    def _take(self, message: FromWorker) -> None:
        self._is_heard = True
        if isinstance(message, Alive):
            self.overload = message.overload
        elif isinstance(message, Built):
            self.built.set()
            self._accepting = spawn(self._accept(), "accept")
        elif isinstance(message, Ready):
            if self.state != "draining":
                self.state = "ready"
            self.ready.set()
        elif isinstance(message, Drained):
            self.cut = message.cut
            self._has_drained = True
        elif isinstance(message, StartSession | EndSession | SessionsUsed):
            self._on_sessions(self.index, message, partial(_tell, self._channel))
        elif isinstance(message, IsHere | HasLeft | CameAgain | EarlierEnded):
            self._on_takeovers(self.index, message)
        else:
            future = self._questions.get(message.question)
            if future is not None and not future.done():
                future.set_result(message)

    def _forget_process(self) -> None:
        self.built.clear()
        self.ready.clear()
        self._channel = None
        self.overload = ""
        for future in self._questions.values():
            future.cancel()


def _tell(channel: asyncio.StreamWriter | None, message: SessionAnswer) -> bool:
    """Answer the process that asked, if it is there: another in its place numbers its questions anew."""
    if channel is None or channel.is_closing():
        return False
    channel.write(pack(message))
    return True
