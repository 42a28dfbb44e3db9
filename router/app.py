"""The daemon: composition root and supervisor.

Binds the listening sockets, starts the workers on them and starts again those that die, runs health checks
and the admin listener (here and not in a worker, so that probes are answered while a worker's loop is
stalled), and carries signals to the workers:

    SIGTERM  not ready -> settle -> drain, exit 0, or 4 when the deadline cut something
    SIGINT   at once, exit 130
    SIGHUP   read file and certificates again; see `reload`
    SIGQUIT  start the same command anew, hand it the sockets when it is ready, drain; see `upgrade`
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import signal
import time
from typing import TYPE_CHECKING

from router.boards import make_boards, map_boards
from router.clock import Clock
from router.config.agent import ConfigAgent
from router.config.certificates import ServedCertificates
from router.config.demand import make_publisher
from router.config.listeners import collector_target, proxies
from router.config.sessions import make_keeper
from router.config.static_table import StaticTable
from router.control import (
    PULSE_S,
    AttachStart,
    EngineLoads,
    Health,
    KnownTo,
    Patch,
    ReopenLogs,
    Start,
    pack,
)
from router.counters import WorkerCounters
from router.daemon_admin import DaemonAdmin
from router.deadlines import DeadlineWheel
from router.demand_watch import DemandWatch
from router.edge.admin import AdminListener
from router.handover import Busy, BusyReplica
from router.reload import Reload
from router.routing.image import TableImage, parts_of
from router.routing.spec import TablePatch
from router.service import notify
from router.session_calls import SessionCalls
from router.session_keeper import LocalSessions, SessionKeeper
from router.succession import Succession
from router.takeover_calls import TakeoverCalls
from router.transport.attached import AttachedSockets
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.transport.tasks import spawn
from router.transport.upstream.engine_loads import EngineLoadPoller
from router.transport.upstream.probe import HealthMonitor
from router.worker_process import START_LIMIT_S, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.config.settings import Settings
    from router.control import ToWorker
    from router.handover import Predecessor
    from router.routing.spec import TableSpec

_log = logging.getLogger("router.supervisor")

EXIT_CLEAN, EXIT_FATAL, EXIT_USAGE, EXIT_BIND, EXIT_CUT = 0, 1, 2, 3, 4
ADMIN_TICK_S = 0.25  # slow heads and idle connections of operators can wait that long
DRAIN_GRACE_S = 3.0
BUSY_S = 0.5  # between two words of a daemon that drains about what it still has


class Supervisor(DaemonAdmin):
    """One daemon. `start`, then `run` until a signal or `stop`.

    `command` starts it again, for an upgrade; None: it cannot be. `predecessor`: it takes over from that one.
    `attach`: it is a sidecar behind a NAT, and dials the routers that it serves. `is_sidecar`: of whatever kind.
    """

    def __init__(
        self,
        settings: Settings,
        command: list[str] | None = None,
        predecessor: Predecessor | None = None,
        attach: AttachStart | None = None,
        *,
        is_sidecar: bool = False,
    ) -> None:
        self._settings = settings
        self._attach = attach
        self._is_sidecar = is_sidecar
        self._certificates = ServedCertificates(settings)
        self._static = None if settings.store else StaticTable(settings)
        self._agent = ConfigAgent(settings, self._publish, self.end, self._replace) if settings.store else None
        self._image = TableImage()
        self._monitor = HealthMonitor(self._on_health)
        self._loads = EngineLoadPoller(self._image, self._on_loads)
        self._succession = Succession(
            settings, command, predecessor, self._agent, self._static, self._image, self._drain_after
        )
        self._workers: list[WorkerProcess] = []
        self._sessions: SessionKeeper = (
            LocalSessions(self._image, self._publish)
            if self._static is not None
            else make_keeper(settings, self._image)
        )
        self._takeovers = TakeoverCalls(self._workers)
        self._demand = DemandWatch(self._workers, self._image, self._sessions.book)
        self._publisher = make_publisher(settings, self._demand.read)
        self._may_greet = asyncio.Event()
        self._may_accept = asyncio.Event()
        self._board_fd = make_boards(settings.workers)
        self._board = map_boards(self._board_fd, settings.workers, settings.workers).load
        self._secret = secrets.token_bytes(32)
        self._alt_svc = b""
        self._busy_slots: list[int] = []  # of the board, in which a predecessor has something
        if predecessor is not None:
            predecessor.on_busy = self._note_busy
        self._admin: AdminListener | None = None
        self._done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._is_started = False
        self._is_draining = False
        self._is_told_to_end = False
        self._started_epoch_s = time.time()
        self._reload = Reload(
            self._static, self._image, self._certificates, self._workers, self._publish, self._started_epoch_s
        )

    # -- life -----------------------------------------------------------------------------------------

    async def start(self, *, take_signals: bool = True) -> None:
        """Bind, start workers and admin, and return once all workers accept."""
        if take_signals:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._on_term)
            loop.add_signal_handler(signal.SIGINT, self.end, 128 + signal.SIGINT)
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
            loop.add_signal_handler(signal.SIGQUIT, self.upgrade)
        _raise_file_limit()
        await self._succession.bind()
        ways = self._succession.sockets.ways
        if ways is not None:
            self._monitor.attached = self._loads.attached = AttachedSockets(ways.secret)
        self._alt_svc = self._succession.sockets.alt_svc()
        self._publish(TablePatch(0) if self._static is None else self._image.diff(self._static.spec()))
        if isinstance(self._sessions, LocalSessions):
            self._publish(self._sessions.first_patch(*self._succession.sessions()))
        is_first = self._succession.predecessor is None
        if is_first:
            await self._start_admin()
            self._may_accept.set()
        calls = SessionCalls(self._sessions)
        for index, sockets in enumerate(self._succession.sockets.by_worker):
            self._workers.append(
                WorkerProcess(
                    index,
                    self._greet,
                    self._board_fd,
                    sockets,
                    self._on_death,
                    self._may_greet,
                    self._may_accept,
                    calls.handle,
                    self._takeovers.handle,
                )
            )
        await self._workers_are(lambda worker: worker.has_process)  # they import while this reads its checkpoint
        if self._agent is not None:
            self._agent.start()
        self._may_greet.set()
        await self._workers_are(lambda worker: worker.built)
        if not is_first:
            await self._succession.know_enough(self._monitor, self._done.done)
            self._may_accept.set()
        await self._workers_are(lambda worker: worker.ready)
        if not is_first:
            if self._done.done():
                raise RuntimeError("it was told to end")
            await self._succession.take_over()
            await self._start_admin()
        self._is_started = True
        self._succession.pid_file.write()
        notify("READY=1")
        if self._publisher is not None:
            self._publisher.start()
        self._sessions.run()
        if self._agent is not None:
            self._tell_known(self._agent)
        self._reload.watch()
        if self._settings.stuck_worker_s:
            self._watch_workers()

    def _watch_workers(self) -> None:
        try:
            for worker in self._workers:
                worker.watch(self._settings.stuck_worker_s)
        finally:
            asyncio.get_running_loop().call_later(PULSE_S, self._watch_workers)

    async def _workers_are(self, stage: Callable[[WorkerProcess], asyncio.Event]) -> None:
        """Wait until each worker has come that far."""
        try:
            async with asyncio.timeout(START_LIMIT_S):
                for worker in self._workers:
                    await stage(worker).wait()
        except TimeoutError:
            raise RuntimeError(f"a worker did not start within {START_LIMIT_S:g} s") from None

    async def run(self) -> int:
        """Serve until a signal; return the exit code."""
        try:
            return await self._done
        finally:
            await self.close()

    async def close(self) -> None:
        """End everything at once; nothing is left behind."""
        self._may_greet.set()
        await self._succession.abort("the daemon ends")
        self._monitor.close()
        self._loads.close()
        if self._publisher is not None:
            await self._publisher.close()
        await self._sessions.close()
        if self._agent is not None:
            await self._agent.close()
        if self._admin is not None:
            self._admin.close()
        self._succession.close()
        await asyncio.gather(*(worker.kill() for worker in self._workers))
        if self._is_started and not self._succession.is_handed_over:
            self._monitor.attached.clear()
        if self._board is not None:
            self._board.close()
            self._board = None  # a predecessor's last word may still come
        os.close(self._board_fd)

    def end(self, code: int = EXIT_CLEAN) -> None:
        """Let `run` close everything and return `code`."""
        if not self._done.done():
            self._done.set_result(code)

    def _on_term(self) -> None:
        if not self._is_started:
            self.end(EXIT_CLEAN)
        elif self._is_told_to_end:
            self.end(EXIT_CUT)  # asked twice: no longer patient
        else:
            self._is_told_to_end = True  # who drains already, for an upgrade or an operator, is not hurried by it
            spawn(self.drain(), "drain")

    async def drain(self) -> None:
        """Leave the rotation, let requests finish, end. Also behind the admin listener's POST."""
        if self._is_draining:
            return
        self._is_draining = True
        notify("STOPPING=1")
        await self._succession.abort("the daemon drains")
        _log.info("draining: not ready, settling for %g s", self._settings.drain_settle_s)
        await asyncio.sleep(self._settings.drain_settle_s)
        cut = await self.drain_workers(self._settings.drain_deadline_s)
        _log.info("drained; %d requests were cut", cut)
        self.end(EXIT_CUT if cut else EXIT_CLEAN)

    async def drain_workers(self, deadline_s: float) -> int:
        """Stop accepting, let requests finish for so long; return how many were cut. Workers are gone then."""
        self._is_draining = True
        is_handed_over = self._succession.is_handed_over
        self._succession.sockets.close()  # else the kernel would go on queueing connections that nobody accepts
        await asyncio.gather(
            *(worker.drain(deadline_s, DRAIN_GRACE_S, is_handed_over=is_handed_over) for worker in self._workers)
        )
        return sum(worker.cut for worker in self._workers)

    def upgrade(self) -> str:
        """Begin to start the same command anew and hand over to it; return why not. Also behind POST /upgrade."""
        is_serving = self._is_started and not self._is_draining and not self._done.done()
        return self._succession.upgrade(is_serving=is_serving)

    async def _drain_after(self, report: Callable[[Busy], None]) -> int:
        """Finish what is under way here: a successor serves. Return how many requests were cut."""
        self._is_draining = True
        if self._admin is not None:
            self._admin.retire()
        self._succession.admin.close()
        self._sessions.retire()
        reporting = spawn(self._report_busy(report), "busy replicas")
        cut = await self.drain_workers(self._settings.drain_deadline_s)
        reporting.cancel()
        report(self._busy([]))  # sessions that began and ended since the last word
        _log.info("drained after the upgrade; %d requests were cut", cut)
        self.end(EXIT_CUT if cut else EXIT_CLEAN)
        return cut

    async def _report_busy(self, report: Callable[[Busy], None]) -> None:
        """Tell the successor what is still on each replica: a replica's limit is for both together."""
        while True:
            counts: dict[tuple[str, str], int] = {}
            for snapshot in await self.snapshots():
                for seen in snapshot.replicas:
                    if seen.in_flight:
                        name = (seen.endpoint, seen.id)
                        counts[name] = counts.get(name, 0) + seen.in_flight
            report(self._busy([BusyReplica(*name, count) for name, count in counts.items()]))
            await asyncio.sleep(BUSY_S)

    def _busy(self, replicas: list[BusyReplica]) -> Busy:
        """Return what is still under way here; of a static table what became of its sessions, too."""
        told = Busy(replicas, self._sessions.book.busy())
        if self._static is not None:
            told.sessions = list(self._image.sessions.values())
            told.ended = list(self._image.ended_sessions)
        return told

    def _note_busy(self, told: Busy) -> None:
        """Put what a predecessor still has into its row of the load board, where every worker counts it."""
        self._sessions.follow_predecessor(told.sessions, told.ended, told.busy_sessions)
        if self._board is None:
            return
        for slot in self._busy_slots:
            self._board.publish(slot, 0)
        self._busy_slots.clear()
        for busy in told.replicas:
            known = self._image.replicas.get(busy.endpoint, {}).get(busy.id)
            if known is not None:
                self._board.publish(known.slot, busy.in_flight)
                self._busy_slots.append(known.slot)

    def refuse(self, reason: str) -> None:
        """Tell the predecessor, if there is one, why this process does not take over."""
        self._succession.refuse(reason)

    def ready_replicas(self) -> int:
        """Return how many replicas the table has that are READY."""
        tables = self._image.replicas.values()
        return sum(replica.state == "READY" for known in tables for replica in known.values())

    def in_flight(self) -> int:
        """Return the requests under way, as the workers last counted."""
        return sum(worker.last.in_flight for worker in self._workers if worker.last is not None)

    def _on_hangup(self) -> None:
        for worker in self._workers:
            worker.send(ReopenLogs())
        self._reload.read()

    @property
    def admin(self) -> str:
        """The address of the admin listener as a URL; empty if there is none."""
        return self._succession.admin.shown

    # -- parts ----------------------------------------------------------------------------------------

    async def _start_admin(self) -> None:
        if not self.admin:
            return
        clock = Clock()
        outbox = Outbox(clock)
        wheel = DeadlineWheel(clock.now)
        reactor = Reactor(clock, outbox, wheel, WorkerCounters())
        self._admin = AdminListener(self, reactor, self._settings.server_limits(), self._settings.admin_token)
        await self._admin.listen(self._succession.admin.accepting())
        loop = asyncio.get_running_loop()

        def tick() -> None:
            try:
                wheel.turn(clock.read())
                outbox.flush()
            finally:
                loop.call_later(ADMIN_TICK_S, tick)

        tick()

    def _greet(self, index: int) -> Iterator[ToWorker]:
        """Yield what a worker that starts is to be told: settings, the table, who is unhealthy."""
        settings = self._settings
        yield Start(
            worker=index,
            workers=settings.workers,
            limits=settings.server_limits(),
            max_connections=settings.max_connections,
            tokens=settings.auth_token,
            region=settings.region,
            secret=self._secret,
            tls_listeners=self._succession.sockets.tls_count[index],
            tls=self._certificates.tls,
            quic=self._succession.sockets.quic[index],
            attach=self._attach if index == 0 else None,
            attach_tokens=settings.may_attach,
            robot_telemetry=collector_target(settings.robot_telemetry),
            is_sidecar=self._is_sidecar,
            alt_svc=self._alt_svc,
            proxies=proxies(settings),
            trusted_hops=settings.trusted_hops,
            access_log=settings.access_log,
            access_log_sample=settings.access_log_sample,
            log_level=settings.log_level,
            overload=settings.overload_limits(),
        )
        for part in self._image.parts():
            yield Patch(part)
        for endpoint, replica in self._monitor.unhealthy():
            yield Health(endpoint, replica, is_healthy=False)
        if self._agent is not None:
            yield KnownTo(self._agent.known_to_s())

    def _tell_known(self, agent: ConfigAgent) -> None:
        """Tell the workers up to when the table is whole: of sessions that began since, it knows nothing."""
        try:
            packed = pack(KnownTo(agent.known_to_s()))
            for worker in self._workers:
                worker.send_packed(packed)
        finally:
            asyncio.get_running_loop().call_later(PULSE_S, self._tell_known, agent)

    def _on_death(self, index: int) -> None:
        self._sessions.book.drop_worker(index, time.monotonic())
        self._takeovers.drop_worker(index)
        if self._board is not None:
            self._board.clear_row(index)

    def _on_health(self, endpoint: str, replica: str, is_healthy: bool) -> None:
        _log.info("replica %s of %s is %s", replica, endpoint, "healthy" if is_healthy else "unhealthy")
        for worker in self._workers:
            worker.send(Health(endpoint, replica, is_healthy))

    def _on_loads(self, endpoint: str, loads: dict[str, float]) -> None:
        for worker in self._workers:
            worker.send(EngineLoads(endpoint, loads))

    def _publish(self, patch: TablePatch) -> None:
        """Bring the next version of the table to every worker. ValueError: it cannot be, and nothing changed."""
        for change in patch.endpoints:
            if change.spec is not None and not change.spec.tls.verify:
                _log.warning("endpoint %s: certificates of its https replicas are not verified", change.name)
        pack(Patch(patch))  # what cannot be sent must not be taken either
        numbered = self._image.apply(patch)
        for part in parts_of(numbered):
            packed = pack(Patch(part))
            for worker in self._workers:
                worker.send_packed(packed)
        self._monitor.follow(numbered, self._image)
        self._loads.follow()

    def _replace(self, spec: TableSpec) -> None:
        """Bring the workers from the table in force to `spec`."""
        self._publish(self._image.diff(spec))


def _raise_file_limit() -> None:
    """Allow as many sockets as the system lets this user have; workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
