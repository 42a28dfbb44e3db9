"""Demand of each endpoint at one router: what its workers counted, added up over all workers there ever were.

Arrivals are the requests that got as far as the endpoint; unserved are those of them that no replica could take:
there was none ready, or all were at capacity. Who is not let in (401, 403) never gets as far and is no demand. Both
only grow as long as the daemon runs, whatever becomes of a worker; the others are of this moment. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.errors import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from router.counters import EndpointCounters

UNSERVED_CODES = (Kind.NO_REPLICA.value, Kind.AT_CAPACITY.value)


class EndpointDemand(msgspec.Struct, array_like=True):
    """What is asked of one endpoint."""

    in_flight: int = 0
    """On replicas, or about to be."""
    arrivals: int = 0
    unserved: int = 0
    waiting: int = 0
    """Requests that are held until a replica is there, and sessions until one has room."""
    sessions: int = 0
    """Sticky ones that are in use at this router."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants anything now."""
        return not (self.in_flight or self.waiting or self.sessions)


def count_demand(counters: EndpointCounters) -> EndpointDemand | None:
    """Return what one worker counted so far; None if nothing ever came."""
    in_flight = counters.in_flight
    waiting = counters.waiting + counters.starting
    if not (in_flight or counters.requests or waiting):
        return None
    unserved = sum(counters.codes.get(code, 0) for code in UNSERVED_CODES)
    return EndpointDemand(in_flight - counters.waiting, counters.requests + in_flight, unserved, waiting)


class DemandBook:
    """Adds up what each worker counts. A dead one's gauges are gone, what it served stays counted."""

    __slots__ = ("_last", "_totals")

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, dict[str, EndpointDemand]]] = {}  # of a worker: its pid, its counts
        self._totals: dict[str, tuple[int, int]] = {}  # arrivals, unserved

    def take(self, worker: int, pid: int, counted: dict[str, EndpointDemand]) -> None:
        """Take a worker's counts. They must come in the order in which they were made."""
        last_pid, last = self._last.get(worker, (0, {}))
        if last_pid != pid:  # it counts from zero
            last = {}
        self._last[worker] = (pid, counted)
        for name, now in counted.items():
            before = last.get(name)
            if before is None or now.arrivals < before.arrivals:  # the endpoint left the table and came back
                before = EndpointDemand()
            arrivals, unserved = self._totals.get(name, (0, 0))
            self._totals[name] = (
                arrivals + now.arrivals - before.arrivals,
                unserved + max(0, now.unserved - before.unserved),
            )

    def keep_workers(self, workers: Iterable[int]) -> None:
        """Drop the gauges of all other workers: they are dead."""
        for worker in self._last.keys() - set(workers):
            pid, counted = self._last[worker]
            # What it counted stays known: it may only have been silent.
            gone = {name: EndpointDemand(0, seen.arrivals, seen.unserved) for name, seen in counted.items()}
            self._last[worker] = (pid, gone)

    def keep_endpoints(self, names: Collection[str]) -> None:
        """Forget endpoints that are in no table any more."""
        for name in self._totals.keys() - set(names):
            del self._totals[name]
            for _, counted in self._last.values():
                counted.pop(name, None)

    def read(self, sessions: dict[str, int] | None = None) -> dict[str, EndpointDemand]:
        """Return the demand of each endpoint that was ever asked for anything; `sessions` are by endpoint."""
        found = {name: EndpointDemand(0, *totals) for name, totals in self._totals.items()}
        for _, counted in self._last.values():
            for name, seen in counted.items():
                demand = found[name]
                demand.in_flight += seen.in_flight
                demand.waiting += seen.waiting
        for name, count in (sessions or {}).items():
            found.setdefault(name, EndpointDemand()).sessions = count
        return found
