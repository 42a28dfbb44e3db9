"""One worker: an event loop that relays. Started by the supervisor, ends with it.

    python -m router.worker CONTROL_FD BOARD_FD LISTEN_FD…

It owns the data path's objects and nothing else: no store, no health checks, no admin. Imports neither
grpc nor protobuf. Settings and table come over the control channel; what it is asked goes back over it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections import deque
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, assert_never

import uvloop

from router.boards import map_boards
from router.clock import Clock
from router.control import (
    PULSE_S,
    Accept,
    Alive,
    Ask,
    AskDemand,
    AskRobots,
    Built,
    Drain,
    Drained,
    EndEarlier,
    EngineLoads,
    Explain,
    FromWorker,
    Health,
    KnownTo,
    Patch,
    Ready,
    ReopenLogs,
    SessionAnswer,
    SetLogLevel,
    SetTls,
    Start,
    TakenOver,
    ToWorker,
    Unpacker,
    pack,
    to_worker,
)
from router.core import Core
from router.counters import WorkerCounters
from router.deadlines import TICK_S, DeadlineWheel
from router.edge.access_log import AccessLog
from router.edge.admission import AdmissionGate
from router.edge.arrivals import TrustedPeers
from router.edge.listener import Listener
from router.errors import Kind, ProxyError, Source
from router.overload import Overload
from router.routing.stage import Stage
from router.session_desk import SessionDesk
from router.takeover_desk import TakeoverDesk
from router.telemetry import GcWatch
from router.transport.attached import AttachedSockets
from router.transport.outbox import Outbox
from router.transport.server_tls import server_context
from router.transport.shell import Reactor
from router.transport.tasks import spawn
from router.transport.upstream.pool import ConnectionPool
from router.walltime import WallTime
from router.worker_answers import Answers

if TYPE_CHECKING:
    from router.boards import Boards
    from router.quic_serving import QuicServing
    from router.routing.spec import TablePatch

_log = logging.getLogger("router.worker")

# Young objects of a request die by reference count; a rare collection is enough for the few cycles that
# asyncio leaves behind.
GC_THRESHOLDS = (50_000, 20, 50)
DRAIN_POLL_S = 0.05
REPORT_S = 0.1  # between two words about which sessions are in use
MAX_PENDING = 4_096  # messages; beyond it the supervisor's writes have to wait
MAX_UNHEARD_BYTES = 65_536
TURN_S = 0.002  # of messages in one turn of the loop; requests come between
BULK = 1_000  # replicas in one step after which the collector is told that they are here to stay


class Worker:
    """Builds the data path from `Start` and obeys the control channel."""

    def __init__(self, start: Start, boards: Boards, control: ControlProtocol) -> None:
        self.index = start.worker
        self._control = control
        self.clock = Clock()
        self.counters = WorkerCounters()
        self.wheel = DeadlineWheel(self.clock.now)
        self.outbox = Outbox(self.clock)
        self.reactor = Reactor(self.clock, self.outbox, self.wheel, self.counters)
        attached = AttachedSockets(b"" if start.quic is None else start.quic.secret)
        self.pool = ConnectionPool(self.reactor, attached)
        self._walltime = WallTime()
        self.gate = AdmissionGate(start.tokens, boards.rates, self._walltime)
        self._stage = Stage(boards.load, start.region, boards.prefixes, self._walltime)
        self.desk = SessionDesk(control.send, self._stage.table.sessions)
        self.access_log = (
            AccessLog(start.access_log, start.access_log_sample, self.counters) if start.access_log else None
        )
        self.core = Core(
            self._stage.table,
            self.gate,
            self.pool,
            self.clock,
            self.wheel,
            secrets.token_hex(8).encode(),
            self.access_log,
            start.trusted_hops,
            self.desk,
        )
        self.takeovers = TakeoverDesk(control.send, self.core.takeovers)
        if start.workers > 1:
            self.core.takeovers.elsewhere = self.takeovers
        proxies = None if start.proxies is None else TrustedPeers(start.proxies)
        limits = start.overload
        self.listener = Listener(
            self.core, self.reactor, start.limits, start.max_connections, proxies, limits.connections_per_address
        )
        self.overload = Overload(limits)
        self._shed_before = 0
        self._pulse_s = 0.0
        self._report_s = 0.0
        self._start = start
        if start.tls is not None:
            self.listener.set_context(server_context(start.tls))
        if start.alt_svc:
            self.listener.alt_svc = (b"alt-svc", start.alt_svc)
        self.quic: QuicServing | None = None
        self.answers = Answers(self, control.send)
        self._loop = asyncio.get_running_loop()
        self._gc = GcWatch(self.counters.gc_pause)
        self._next_tick_s = monotonic() + TICK_S
        self._is_running = False
        self._added = 0  # replicas since the collector was last told
        self.draining = False
        self._is_closed = False
        self._drained_by_s = 0.0

    async def run(self, sockets: list[socket.socket]) -> None:
        """Accept, and say so."""
        start = self._start
        if start.quic is not None and start.tls is not None:
            from router.quic_serving import QuicServing  # noqa: PLC0415 - what it imports is an extra's

            self.quic = QuicServing(start, start.quic, start.tls, self.listener, self._walltime)
            sockets = self.quic.listen(sockets)
            self.pool.lanes = self.quic.lanes
        first_tls = len(sockets) - start.tls_listeners
        await self.listener.listen(sockets[:first_tls], sockets[first_tls:])
        self._next_tick_s = monotonic() + TICK_S
        self._tick()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        self._is_running = True
        self._control.send(Ready(os.getpid()))

    def obey(self, message: ToWorker) -> None:
        """Carry out one message of the supervisor."""
        match message:
            case Patch():
                self.patch(message.patch)
            case Health():
                self._set_health(message)
            case EngineLoads():
                self._note_engine_loads(message)
            case Ask() | AskDemand() | Explain() | AskRobots():
                spawn(self.answers.answer(message), "answer")
            case SessionAnswer():
                self.desk.take(message, self.clock.read())
                self.outbox.flush()
            case EndEarlier() | TakenOver():
                self.clock.read()
                self.takeovers.take(message)
                self.outbox.flush()
            case KnownTo():
                self._stage.table.sessions.known_to_s = message.unix_s
            case Drain():
                self._drained_by_s = monotonic() + message.deadline_s  # a second one may only hurry the first
                if not self.draining:
                    self.draining = True
                    spawn(self._drain(is_handed_over=message.is_handed_over), "drain")
            case SetLogLevel():
                logging.getLogger().setLevel(message.level)
            case SetTls():
                self.listener.set_context(server_context(message.tls))
                if self.quic is not None:
                    self.quic.set_tls(message.tls)
            case ReopenLogs():
                if self.access_log is not None:
                    self.access_log.reopen()
            case Start() | Accept():
                raise ValueError("a worker starts once")
            case _:
                assert_never(message)

    def patch(self, patch: TablePatch) -> None:
        """Put the next table in place: one attribute store; then retire what left."""
        step = self._stage.add(patch, self.clock.read())
        self._added += sum(len(change.upsert) for change in patch.endpoints)
        if step is None:
            return
        self.core.table = step.table
        for endpoint in step.made:
            endpoint.watch_again = self.wheel.watch
            self.wheel.watch(endpoint)
            if endpoint.dial.connections.floor:
                for replica in endpoint.replicas:
                    self.pool.keep_floor(replica)
        for replica in step.departed:
            self.pool.leave(replica)
        self.outbox.flush()
        if patch.committed_us:
            self.counters.config_delay.observe(max(0.0, time() - patch.committed_us / 1e6))
        if self._added >= BULK and self._is_running:
            # Else the next full collection would walk all of a large table: a stall of a tenth of a second.
            self._added = 0
            gc.freeze()

    @property
    def has_table(self) -> bool:
        """Whether the first table is whole."""
        return self.core.table.version > 0

    def _set_health(self, verdict: Health) -> None:
        endpoint = self.core.table.endpoints.get(verdict.endpoint)
        if endpoint is None:
            return
        for replica in endpoint.replicas:
            if replica.id == verdict.replica:
                endpoint.set_health(replica, is_healthy=verdict.is_healthy, now=self.clock.read())

    def _note_engine_loads(self, told: EngineLoads) -> None:
        endpoint = self.core.table.endpoints.get(told.endpoint)
        if endpoint is None:
            return
        now = self.clock.read()
        for replica in endpoint.replicas:
            load = told.loads.get(replica.id)
            if load is not None:
                replica.note_engine_load(load, now)

    def _tick(self) -> None:
        """Turn the wheel. How late this comes is the loop's lag: the time something else held the loop."""
        now = self.clock.read()
        lag_s = max(0.0, now - self._next_tick_s)
        self.counters.loop_lag.observe(lag_s)
        try:
            self._walltime.look(now, time())
            self.wheel.turn(now)
            self.outbox.flush()
            self._weigh(lag_s, now)
        finally:  # whatever happened: without this no deadline would ever pass again
            self._next_tick_s = monotonic() + TICK_S
            self._loop.call_later(TICK_S, self._tick)

    def _weigh(self, lag_s: float, now: float) -> None:
        """Decide how much of what is new can be taken on, and tell the supervisor that this loop goes round."""
        core, overload = self.core, self.overload
        if core.shed_requests != self._shed_before:
            shed, self._shed_before = core.shed_requests - self._shed_before, core.shed_requests
            if overload.reason == "memory":
                self.counters.shed_memory += shed
            else:
                self.counters.shed_lag += shed
        overload.tick(lag_s, now)
        core.shed_share = overload.share
        self.listener.headcount.refuses = overload.refuses_connections
        if now >= self._report_s:
            self._report_s = now + REPORT_S
            self.desk.report(now)
        if now >= self._pulse_s:
            self._pulse_s = now + PULSE_S
            self._control.pulse(Alive(overload.describe()))

    async def _drain(self, *, is_handed_over: bool) -> None:
        """Finish what is under way; cut what is left at the deadline, WebSockets with 1012."""
        if is_handed_over:
            self.listener.retire()
        else:
            self.listener.stop_accepting()
            self.listener.drain()
        if self.quic is not None:
            self.quic.drain(is_handed_over=is_handed_over)
        await asyncio.sleep(DRAIN_POLL_S)  # what uvloop has accepted is told to the listener in a next turn
        # A client of HTTP/2 that has not read its GOAWAY yet may still begin requests: connections count, too.
        while self._is_busy() and monotonic() < self._drained_by_s:
            if not self.core.in_flight:
                self.pool.close()  # one may be spliced to an attached replica, whose worker waits for its end
            await asyncio.sleep(DRAIN_POLL_S)
        self.clock.read()
        cut = self._cut(ProxyError(Kind.DRAINING, Source.ROUTER)) if self._is_busy() else 0
        while self._is_connected() and monotonic() < self._drained_by_s + 1.0:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        self.desk.report(self.clock.now)
        self._control.send(Drained(cut))
        self.close()
        self._control.end()

    def _is_busy(self) -> bool:
        is_idle = self.listener.is_idle and (self.quic is None or self.quic.listener.is_idle)
        return bool(self.core.in_flight or not is_idle)

    def _is_connected(self) -> bool:
        return bool(self.listener.open_connections or (self.quic is not None and not self.quic.listener.is_idle))

    def _cut(self, error: ProxyError) -> int:
        cut = self.core.in_flight
        self.listener.cut(error)
        if self.quic is not None:
            self.quic.listener.cut(error)
        return cut

    def close(self) -> None:
        """Write the log's rest, and tell who is connected over QUIC. Any number of times."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.quic is not None:
            self.quic.close()
        if self.access_log is not None:
            self.access_log.close()
        self._gc.close()


class ControlProtocol(asyncio.Protocol):
    """The worker's end of the control channel. The supervisor's death is the worker's.

    Messages are obeyed in order, some milliseconds of them in one turn of the loop: a table of 10^5 replicas
    comes as hundreds of parts, and requests are served between them.
    """

    def __init__(self, board_fd: int, sockets: list[socket.socket]) -> None:
        self._unpacker = Unpacker()
        self._board_fd = board_fd
        self._sockets = sockets
        self._worker: Worker | None = None
        self._transport: Any = None
        self._pending: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take each message, and obey unless a turn is to come anyway."""
        is_idle = not self._pending
        self._pending += self._unpacker.feed(data)
        if is_idle:
            self._turn()
        elif len(self._pending) > MAX_PENDING:
            self._transport.pause_reading()

    def _turn(self) -> None:
        ends_s = perf_counter() + TURN_S
        pending = self._pending
        while pending:
            body = pending[0]
            try:
                self._obey(to_worker.decode(body))
            except Exception:
                _log.exception("a control message was not carried out; the table stays as it was")
                if self._worker is None or not self._worker.has_table:
                    self.end()  # not even started: let the supervisor try again
            pending.popleft()
            if pending and perf_counter() >= ends_s:
                self._loop.call_soon(self._turn)
                return
        self._transport.resume_reading()

    def _obey(self, message: ToWorker) -> None:
        if isinstance(message, Start):
            logging.getLogger().setLevel(message.log_level)
            boards = map_boards(self._board_fd, message.worker, message.workers, message.secret)
            self._worker = Worker(message, boards, self)
        elif self._worker is not None and isinstance(message, Accept):
            spawn(self._run(self._worker), "start")
        elif self._worker is not None:
            is_new = not self._worker.has_table
            self._worker.obey(message)
            if is_new and self._worker.has_table:
                self.send(Built())

    def connection_lost(self, exc: Exception | None) -> None:
        """End the process; who is connected over QUIC would else wait for us until the path is given up."""
        if self._worker is not None:
            self._worker.close()
        self.end()

    def pulse(self, message: Alive) -> None:
        """Say that all is well, unless a supervisor that does not listen has not taken what was said before."""
        transport = self._transport
        if not transport.is_closing() and transport.get_write_buffer_size() < MAX_UNHEARD_BYTES:
            transport.write(pack(message))

    def send(self, message: FromWorker) -> None:
        """Answer the supervisor."""
        self._transport.write(pack(message))

    def end(self) -> None:
        """Let `main` return once what was sent is written."""
        if not self._transport.is_closing():
            self._transport.close()
        elif not self.ended.done():
            self.ended.set_result(None)

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run(self._sockets)
        except Exception:
            _log.exception("the worker could not start")
            self.end()


async def _serve(control_fd: int, board_fd: int, listen_fds: list[int]) -> None:
    loop = asyncio.get_running_loop()
    sockets = [socket.socket(fileno=fd) for fd in listen_fds]
    protocol = ControlProtocol(board_fd, sockets)
    await loop.create_unix_connection(lambda: protocol, sock=socket.socket(fileno=control_fd))
    await protocol.ended


def _report_unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Keep what a client can cause off stderr.

    A server name that is no text ends its handshake, which is counted, and ssl would say so with a traceback.
    """
    if isinstance(failure.exc_value, UnicodeDecodeError) and isinstance(failure.object, bytes):
        _log.debug("a client asked for a server by a name that is no text")
    else:
        sys.__unraisablehook__(failure)


def main() -> None:
    """Run one worker; see the module."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", stream=sys.stderr)
    # A terminal or a service manager signals every process; what it means is the supervisor's to say.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    sys.unraisablehook = _report_unraisable
    faulthandler.enable()  # a worker that is stuck is ended by SIGABRT, and says where it was
    gc.disable()  # until the first table is there: all of it stays
    control_fd, board_fd, *listen_fds = map(int, sys.argv[1:])
    uvloop.run(_serve(control_fd, board_fd, listen_fds))


if __name__ == "__main__":
    main()
