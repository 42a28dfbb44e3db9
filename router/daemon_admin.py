"""What a daemon tells its admin listener, and does for it: the half of the supervisor that `AdminSource` names.

Reads are of this process, but for counters and explanations, which workers are asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from router import __version__
from router.control import SetLogLevel
from router.edge.robot_views import merged_robots

if TYPE_CHECKING:
    from router.config.agent import ConfigAgent
    from router.config.certificates import ServedCertificates
    from router.config.demand import DemandPublisher
    from router.config.settings import Settings
    from router.config.static_table import StaticTable
    from router.demand import EndpointDemand
    from router.demand_watch import DemandWatch
    from router.reload import Reload
    from router.routing.explain import Asked
    from router.routing.image import TableImage
    from router.routing.spec import TablePatch, TableSpec
    from router.session_keeper import SessionKeeper
    from router.succession import Succession
    from router.telemetry import WorkerSnapshot
    from router.transport.upstream.probe import HealthMonitor
    from router.worker_process import WorkerProcess

ASK_LIMIT_S: Final = 0.25


class DaemonAdmin:
    """The base of `Supervisor`, which makes all of this and implements the rest of `AdminSource`."""

    _settings: Settings
    _certificates: ServedCertificates
    _static: StaticTable | None
    _agent: ConfigAgent | None
    _image: TableImage
    _monitor: HealthMonitor
    _succession: Succession
    _workers: list[WorkerProcess]
    _sessions: SessionKeeper
    _demand: DemandWatch
    _publisher: DemandPublisher | None
    _is_draining: bool
    _started_epoch_s: float
    _reload: Reload

    def _publish(self, patch: TablePatch) -> None:
        """Bring the next version of the table to every worker."""
        raise NotImplementedError

    @property
    def listen(self) -> list[str]:
        """The addresses that are listened on, as URLs."""
        return self._succession.sockets.shown

    async def snapshots(self) -> list[WorkerSnapshot]:
        """Return every worker's counters; a stalled worker's last known ones."""
        answers = await asyncio.gather(*(worker.ask(ASK_LIMIT_S) for worker in self._workers))
        return [answer for answer in answers if answer is not None]

    async def demand(self) -> dict[str, EndpointDemand]:
        """Return what this router's endpoints are asked for."""
        return await self._demand.read()

    def table(self) -> TableSpec:
        """Return the table in force."""
        return self._image.spec()

    def health(self) -> list[dict[str, Any]]:
        """Return the verdict on each replica."""
        now = time.monotonic()
        found = []
        for name, replicas in self._image.replicas.items():
            for replica in replicas.values():
                verdict = self._monitor.verdicts.get((name, replica.id))
                ago = None if verdict is None or verdict.checked_s is None else now - verdict.checked_s
                found.append(
                    {
                        "endpoint": name,
                        "replica": replica.id,
                        "address": replica.address,
                        "is_healthy": verdict.is_healthy if verdict is not None else True,
                        "reason": verdict.reason if verdict is not None else "not checked yet",
                        "checked_ago_s": None if ago is None else round(ago, 3),
                    }
                )
        return found

    def quarantine(self) -> list[dict[str, str]]:
        """Return the store's rows that cannot be used."""
        return [] if self._agent is None else self._agent.quarantine()

    def settings(self) -> dict[str, Any]:
        """Return the settings in force, secrets masked."""
        return self._settings.public()

    def state(self) -> dict[str, Any]:
        """Return whether the daemon is ready, and the state of each worker."""
        reasons = []
        if self._is_draining:
            reasons.append("draining")
        if self._succession.is_failed:
            reasons.append("failed by the operator")
        if not any(worker.state == "ready" for worker in self._workers):
            reasons.append("no worker accepts")
        config = None if self._agent is None else self._agent.status()
        if config is not None and not config["has_table"]:
            reasons.append("no table yet: " + (config["error"] or "the store is being read"))
        return {
            "ready": not reasons,
            "reasons": reasons,
            "draining": self._is_draining,
            "version": __version__,
            "started_epoch_s": self._started_epoch_s,
            "last_reload": self._reload.last,
            "config_staleness_s": 0.0 if config is None else config["staleness_s"],
            "config": config,
            "sessions": self._sessions.status(),
            "demand": None if self._publisher is None else self._publisher.status(),
            "listen": self.listen,
            **self._succession.state(),
            "certificates": self._certificates.shown(),
            "workers": [
                {
                    "index": worker.index,
                    "pid": worker.pid,
                    "state": worker.state,
                    "restarts": worker.restarts,
                    "stalled": worker.is_stalled,
                    "stuck": worker.stuck,
                    "overload": worker.overload,
                }
                for worker in self._workers
            ],
        }

    async def explain(self, asked: Asked) -> dict[str, Any]:
        """Return where a request would go, by the first worker that answers."""
        for worker in self._workers:
            found = await worker.explain(asked, ASK_LIMIT_S)
            if found is not None:
                return found
        return {"error": "no worker answers"}

    async def robots(self, limit: int, session: str) -> dict[str, Any]:
        """Return the open robot sessions of all workers, the worst link first."""
        workers = list(self._workers)
        answers = await asyncio.gather(*(worker.ask_robots(limit, session, ASK_LIMIT_S) for worker in workers))
        silent = [worker.index for worker, answer in zip(workers, answers, strict=True) if answer is None]
        return merged_robots([answer for answer in answers if answer is not None], silent, limit)

    def sessions(self, endpoint: str | None) -> list[dict[str, Any]]:
        """Return the open sticky sessions."""
        return self._sessions.shown(endpoint)

    async def end_session(self, session_id: str) -> str:
        """End a sticky session."""
        refusal = await self._sessions.end(session_id)
        return "" if refusal is None else refusal.value

    async def add_replica(self, url: str, endpoint: str | None, weight: float) -> dict[str, Any]:
        """Add a replica until it is removed or the daemon ends; ValueError names what is wrong."""
        static = self._by_hand()
        replica_id, name, table = static.add(url, endpoint, weight)
        self._publish(self._image.diff(table))
        return {"id": replica_id, "endpoint": name, "url": url}

    async def remove_replica(self, replica_id: str) -> bool:
        """Take a replica out of the table; requests on it finish."""
        table = self._by_hand().remove(replica_id)
        if table is None:
            return False
        self._publish(self._image.diff(table))
        return True

    def _by_hand(self) -> StaticTable:
        if self._static is None:
            raise ValueError("the table comes from the store; use `router replica create` or `delete`")
        return self._static

    def accept_held(self) -> int:
        """Let the changes through that the shrink guard holds; return how many replicas they take out."""
        return 0 if self._agent is None else self._agent.accept_held()

    def set_ready(self, ready: bool) -> None:
        """Fail or restore readiness by hand."""
        self._succession.is_failed = not ready

    def set_log_level(self, level: str) -> None:
        """Change the log level everywhere."""
        logging.getLogger().setLevel(level)
        for worker in self._workers:
            worker.send(SetLogLevel(level))
