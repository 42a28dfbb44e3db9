"""Active health checks, beside the data path, in the supervisor.

`tcp` asks whether the port accepts. `http` asks for a 2xx on a path, and on 404 for the fall-back path, since
SGLang's Rust front end has no /ready. `grpc` asks grpc.health.v1 whether the server as a whole is serving. A
verdict changes after so many checks in a row; the very first check decides alone, so that a dead replica of a
fresh table is not tried.

One task starts the checks, those of new replicas first, then whichever is due longest. It starts a bounded
number a second, so that a table of 10^5 replicas is checked more slowly rather than at the price of a core.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from contextlib import suppress
from heapq import heapify, heappop, heappush
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from router.routing.spec import TlsSpec
from router.transport.attached import NOWHERE, AttachedSockets
from router.transport.certificates import TlsFileError
from router.transport.tasks import spawn
from router.transport.upstream.question import ask_grpc_health, ask_http, check_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.routing.image import TableImage
    from router.routing.spec import EndpointSpec, HealthSpec, ReplicaSpec, TablePatch

_log = logging.getLogger(__name__)

MAX_CHECKS_PER_S = 1_000.0
SWEEP_FLOOR = 64
_NO_TLS = TlsSpec()
MAX_PARALLEL = 256  # checks under way at a time: each is a socket


class Verdict:
    """What is known of one replica."""

    __slots__ = ("address", "checked_s", "is_healthy", "reason", "same")

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_healthy = True
        self.reason = "not checked yet"
        self.checked_s: float | None = None
        self.same = 0  # checks in a row that contradict `is_healthy`


class Check:
    """One replica's turn to be checked, again and again while `is_wanted`."""

    __slots__ = ("address", "is_wanted", "name", "spec", "tls", "verdict")

    def __init__(self, name: tuple[str, str], address: str, endpoint: EndpointSpec, verdict: Verdict) -> None:
        self.name = name
        self.address = address
        self.spec = endpoint.health
        self.tls = endpoint.tls
        self.verdict = verdict
        self.is_wanted = True


class HealthMonitor:
    """Checks the replicas of the table; tells `on_change(endpoint, replica, is_healthy)`."""

    def __init__(
        self,
        on_change: Callable[[str, str, bool], None],
        max_checks_per_s: float = MAX_CHECKS_PER_S,
        max_parallel: int = MAX_PARALLEL,
    ) -> None:
        self.attached = NOWHERE  # set once it is known where replicas attach
        self._on_change = on_change
        self._gap_s = 1.0 / max_checks_per_s
        self._free = asyncio.Semaphore(max_parallel)
        self._checks: dict[tuple[str, str], Check] = {}
        self._members: dict[str, set[str]] = {}  # the replicas of each endpoint
        self._first: deque[Check] = deque()
        self._again: list[tuple[float, int, Check]] = []
        self._scheduled = 0  # breaks ties in the heap
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._starter: asyncio.Task[None] | None = None
        self.verdicts: dict[tuple[str, str], Verdict] = {}

    def follow(self, patch: TablePatch, image: TableImage) -> None:
        """Check what the table is after `patch`, which `image` has already taken.

        A replica that stayed at its address keeps its verdict.
        """
        for name in patch.gone:
            for replica_id in list(self._members.get(name, ())):
                self._leave(name, replica_id)
        for change in patch.endpoints:
            for replica_id in change.remove:
                self._leave(change.name, replica_id)
            endpoint = image.endpoints[change.name]
            replicas = change.upsert if change.spec is None else image.replicas[change.name].values()
            for replica in replicas:
                self._enter(endpoint, replica)
        if self._starter is None:
            self._starter = spawn(self._start_checks(), "health checks")
        self._wake.set()

    def unhealthy(self) -> list[tuple[str, str]]:
        """Return (endpoint, replica) of all that fail, for a worker that starts."""
        return [name for name, verdict in self.verdicts.items() if not verdict.is_healthy]

    def has_checked_all(self) -> bool:
        """Whether each replica that is checked has been, once."""
        return all(check.verdict.checked_s is not None for check in self._checks.values())

    def close(self) -> None:
        """Stop checking."""
        if self._starter is not None:
            self._starter.cancel()
        for task in self._running:
            task.cancel()
        self._checks.clear()

    def _enter(self, endpoint: EndpointSpec, replica: ReplicaSpec) -> None:
        name = (endpoint.name, replica.id)
        self._members.setdefault(endpoint.name, set()).add(replica.id)
        known = self._checks.get(name)
        if known is not None:
            if (known.address, known.spec, known.tls) == (replica.address, endpoint.health, endpoint.tls):
                return
            known.is_wanted = False
            del self._checks[name]
        verdict = self.verdicts.get(name)
        if verdict is None or verdict.address != replica.address:  # at another address it is another replica
            verdict = self.verdicts[name] = Verdict(replica.address)
        if endpoint.health.kind != "none":
            self._checks[name] = first = Check(name, replica.address, endpoint, verdict)
            self._first.append(first)
            return
        verdict.reason = "no active checks"
        if not verdict.is_healthy:
            verdict.is_healthy = True
            self._on_change(endpoint.name, replica.id, True)

    def _leave(self, endpoint: str, replica_id: str) -> None:
        members = self._members.get(endpoint)
        if members is not None:
            members.discard(replica_id)
            if not members:
                del self._members[endpoint]
        known = self._checks.pop((endpoint, replica_id), None)
        if known is not None:
            known.is_wanted = False
            self._sweep()
        self.verdicts.pop((endpoint, replica_id), None)

    def _sweep(self) -> None:
        """Drop those that left from the schedule, once they are most of it: an interval may be days."""
        if len(self._again) > 2 * len(self._checks) + SWEEP_FLOOR:
            self._again = [entry for entry in self._again if entry[2].is_wanted]
            heapify(self._again)

    async def _start_checks(self) -> None:
        while True:
            due = await self._next()
            if not due.is_wanted:
                continue
            await self._free.acquire()
            task = spawn(self._run(due), f"check {due.name[1]}")
            self._running.add(task)
            task.add_done_callback(self._ended)
            await asyncio.sleep(self._gap_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free.release()

    async def _next(self) -> Check:
        """Wait until a check is due."""
        while True:
            if self._first:
                return self._first.popleft()
            wait_s = self._again[0][0] - monotonic() if self._again else None
            if wait_s is not None and wait_s <= 0:
                return heappop(self._again)[2]
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _run(self, due: Check) -> None:
        try:
            complaint = await check(due.address, due.spec, due.tls, self.attached)
        except Exception:  # our bug: it must not end this replica's checks
            _log.exception("a health check failed by itself")
            complaint = "the check failed by itself"
        if not due.is_wanted:
            return
        self._judge(due, complaint)
        # A tenth of jitter, so that many checks do not move in step.
        due_s = monotonic() + due.spec.interval_s * (0.95 + random() * 0.1)
        self._scheduled += 1
        heappush(self._again, (due_s, self._scheduled, due))
        self._wake.set()

    def _judge(self, due: Check, complaint: str) -> None:
        verdict, spec = due.verdict, due.spec
        is_first = verdict.checked_s is None
        verdict.checked_s = monotonic()
        verdict.reason = complaint or "ok"
        is_good = not complaint
        if is_good == verdict.is_healthy:
            verdict.same = 0
            return
        verdict.same += 1
        needed = 1 if is_first else spec.healthy_after if is_good else spec.unhealthy_after
        if verdict.same >= needed:
            verdict.is_healthy = is_good
            verdict.same = 0
            self._on_change(*due.name, is_good)


async def check(
    address: str, spec: HealthSpec, tls: TlsSpec = _NO_TLS, attached: AttachedSockets = NOWHERE
) -> str:
    """Check once; return why it failed, or an empty text."""
    try:
        async with asyncio.timeout(spec.timeout_s):
            if spec.kind == "tcp":
                await check_port(address, attached)
                return ""
            if spec.kind == "grpc":
                return await ask_grpc_health(address, tls, attached)
            status = await ask_http(address, spec.path, tls, attached)
            if status == 404 and spec.fallback_path:
                status = await ask_http(address, spec.fallback_path, tls, attached)
            return "" if 200 <= status < 300 else f"status {status}"
    except TimeoutError:
        return f"no answer in {spec.timeout_s:g} s"
    except ssl.SSLCertVerificationError as failure:
        return f"its certificate: {failure.verify_message}"
    except TlsFileError as failure:
        return f"tls.{failure.field}: {failure}"
    except OSError as failure:
        return (failure.strerror or str(failure)).lower()
    except ValueError as failure:
        return str(failure)
