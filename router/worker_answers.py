"""What a worker answers to the supervisor's questions: counts, demand, where a request would go, its robots.

Whatever grows with the table or with the sessions is looked at in slices: a question must not hold the loop.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from router.control import Ask, AskDemand, AskRobots, Counted, Demanded, Explain, Explained, Robots
from router.counters import WORKER_NUMBERS
from router.demand import EndpointDemand, count_demand
from router.routing.explain import explain
from router.routing.outlier import is_ready
from router.telemetry import (
    EndpointSnapshot,
    LinkSnapshot,
    ReplicaSnapshot,
    WorkerSnapshot,
    snapshot_endpoint,
    snapshot_histogram,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.control import FromWorker
    from router.routing.load import Replica
    from router.routing.table import Endpoint
    from router.worker import Worker

SLICE: Final = 256
"""Endpoints or replicas counted in one turn of the loop."""
MAX_LISTED: Final = 1_024
"""Of a larger table only the replicas that something happened to are counted one by one."""


class Answers:
    """One worker's. `send` takes an answer."""

    def __init__(self, worker: Worker, send: Callable[[FromWorker], None]) -> None:
        self._worker = worker
        self._send = send

    async def answer(self, asked: Ask | AskDemand | Explain | AskRobots) -> None:
        """Answer one question."""
        match asked:
            case Ask():
                self._send(Counted(asked.question, await self._count()))
            case AskDemand():
                self._send(Demanded(asked.question, os.getpid(), await self._count_demand()))
            case Explain():
                found = explain(self._worker.core.table, asked.asked, self._worker.clock.read())
                self._send(Explained(asked.question, msgspec.Raw(msgspec.msgpack.encode(found))))
            case AskRobots():
                quic = self._worker.quic
                none = Robots(asked.question, 0, [])
                self._send(none if quic is None else await quic.shown_robots(asked))
            case _:
                assert_never(asked)

    async def _count(self) -> WorkerSnapshot:
        """Return a copy of every counter."""
        worker = self._worker
        core, counters, quic = worker.core, worker.counters, worker.quic
        table = core.table
        now = worker.clock.now
        endpoints: dict[str, EndpointSnapshot] = {}
        for done, (name, endpoint) in enumerate(table.endpoints.items(), 1):
            endpoints[name] = snapshot_endpoint(endpoint.counters)
            if done % SLICE == 0:
                await asyncio.sleep(0)
        endpoints[""] = snapshot_endpoint(core.unrouted)
        replicas: list[ReplicaSnapshot] = []
        size = sum(len(endpoint.replicas) for endpoint in table.endpoints.values())
        for done, (endpoint, replica) in enumerate(table.replicas(), 1):
            if size <= MAX_LISTED or (len(replicas) < MAX_LISTED and _is_of_note(replica, now)):
                replicas.append(_snapshot(endpoint, replica, worker.pool.idle_count(replica), now))
            if done % (4 * SLICE) == 0:
                await asyncio.sleep(0)
        numbers = {name: int(getattr(counters, name)) for name in WORKER_NUMBERS}
        histograms = {
            "config_delay": snapshot_histogram(counters.config_delay),
            "loop_lag": snapshot_histogram(counters.loop_lag),
            "gc_pause": snapshot_histogram(counters.gc_pause),
        }
        links: dict[str, LinkSnapshot] = {}
        if quic is not None:
            numbers |= quic.numbers()
            histograms |= quic.histograms()
            links = await quic.links()
        return WorkerSnapshot(
            worker=worker.index,
            pid=os.getpid(),
            table_version=table.version,
            draining=worker.draining,
            in_flight=core.in_flight,
            counters=numbers,
            histograms=histograms,
            endpoints=endpoints,
            replicas=replicas,
            links=links,
        )

    async def _count_demand(self) -> dict[str, EndpointDemand]:
        """Return what each endpoint is asked for; of 10,000 endpoints without a request it costs 2 ms."""
        endpoints: dict[str, EndpointDemand] = {}
        for done, (name, endpoint) in enumerate(self._worker.core.table.endpoints.items(), 1):
            found = count_demand(endpoint.counters)
            if found is not None:
                endpoints[name] = found
            if done % (4 * SLICE) == 0:
                await asyncio.sleep(0)
        return endpoints


def _snapshot(endpoint: Endpoint, replica: Replica, pooled: int, now: float) -> ReplicaSnapshot:
    return ReplicaSnapshot(
        endpoint=endpoint.name,
        id=replica.id,
        address=replica.address,
        state=replica.state,
        is_healthy=replica.is_healthy,
        is_ready=is_ready(replica),
        is_ejected=replica.ejected_until_s > now,
        weight=replica.weight,
        in_flight=replica.in_flight,
        requests=replica.requests,
        failures=replica.failures,
        backpressured=replica.backpressured,
        ejections=replica.ejections,
        latency_s=replica.latency_s,
        pooled=pooled,
    )


def _is_of_note(replica: Replica, now: float) -> bool:
    return replica.requests > 0 or not replica.is_healthy or replica.ejected_until_s > now
