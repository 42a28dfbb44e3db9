"""What the autoscaler sees: endpoints that are to be scaled, their demand, replicas and live sessions.

Read once a second, by the store's clock alone. Rows of Demand that nobody renewed for ten seconds are ignored:
their router is gone or cut off. Which of the two cannot be told, so they still forbid to take replicas down for a
while. Counters that only grow become growth here: what a router counted before this process first looked is
nobody's demand any more, a row that appears later counts whole, one that fell began anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from router.config.agent import SchemaError, check_schema
from router.config.errors import StoreError
from router.config.rows import RowError, read_endpoint
from router.config.schema import DEMAND_VERSION, SCHEMA_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from router.config.writer import Writer
    from router.routing.spec import ScalingSpec

FRESH_S = 10
SILENT_S = 900  # after which a router that left without a word is taken for dead
MAX_ENDPOINTS = 1_000
MAX_ROUTERS = 65_536  # rows of Demand whose last counts are remembered
NAMES_PER_QUERY = 100
_DEMAND = "SELECT EndpointId, RouterId, InFlight, Arrivals, Unserved, Waiting, Sessions FROM Demand"
_FRESH = f" WHERE UpdatedAt > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL {FRESH_S} SECOND)"
_SILENT = (
    "SELECT DISTINCT EndpointId FROM Demand WHERE InFlight + Waiting + Sessions > 0 "  # noqa: S608 - numbers of ours
    f"AND UpdatedAt BETWEEN TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL {SILENT_S} SECOND) "
    f"AND TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL {FRESH_S} SECOND)"
)
_LIVE = (
    "SELECT EndpointId, ReplicaId, COUNT(*) FROM Sessions WHERE State = 'OPEN' AND "
    "TIMESTAMP_ADD(LastUsedAt, INTERVAL IdleTimeoutS SECOND) > CURRENT_TIMESTAMP() GROUP BY EndpointId, ReplicaId"
)


@dataclass(slots=True)
class EndpointView:
    """One endpoint of now; `arrivals` and `unserved` are since the last look."""

    scaling: ScalingSpec
    in_flight: int = 0
    waiting: int = 0
    sessions: int = 0
    arrivals: int = 0
    unserved: int = 0
    replicas: dict[str, str] = field(default_factory=dict)
    """To their states."""
    held: set[str] = field(default_factory=set)
    """Replicas with live sessions."""
    open_sessions: int = 0
    """On replicas that are there."""
    room: int = 0
    """Sessions that one replica may have; 0: the endpoint has none."""
    is_blind: bool = False
    """A router that had requests is silent: it died, or is cut off from the store and serves on."""


class Follower:
    """Reads the store. `names`: the endpoints to look at; None: all that say how they are scaled."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = None if names is None else set(names)
        self._counted: dict[tuple[str, str], tuple[int, int]] = {}
        self._has_looked = False
        self.there: set[str] = set()
        """All endpoints of the store."""
        self.skipped: dict[str, str] = {}
        """Endpoints that were named and are not scaled, with the reason."""

    async def check(self, writer: Writer) -> None:
        """StoreError where the store has no demand to read."""
        rows = await writer.query("SELECT V FROM Meta WHERE K = @key", {"key": SCHEMA_KEY})
        try:
            version = check_schema(tuple(rows[0]) if rows else None).version
        except SchemaError as refusal:
            raise StoreError(str(refusal)) from None
        if version < DEMAND_VERSION:
            raise StoreError(f"the schema is {version}; `router store init` makes it {DEMAND_VERSION}")

    async def read(self, writer: Writer) -> dict[str, EndpointView]:
        """Return what there is to be scaled."""
        views = await self._endpoints(writer)
        for names in _parts(list(views)):
            where, params = _among(names)
            for endpoint, replica, state in await writer.query(
                f"SELECT EndpointId, ReplicaId, State FROM Replicas WHERE {where}", params  # noqa: S608 - of ours
            ):
                views[endpoint].replicas[replica] = state
        for endpoint, replica, count in await writer.query(_LIVE):
            view = views.get(endpoint)
            if view is not None:
                view.held.add(replica)
                view.open_sessions += int(count) if replica in view.replicas else 0
        for (endpoint,) in await writer.query(_SILENT):
            if endpoint in views:
                views[endpoint].is_blind = True
        self._add_demand(views, await writer.query(_DEMAND + (_FRESH if self._has_looked else "")))
        if not self._has_looked:  # that was for the counts of those that are idle, too
            self._has_looked = True
            self._add_demand(views, await writer.query(_DEMAND + _FRESH))
        return views

    async def _endpoints(self, writer: Writer) -> dict[str, EndpointView]:
        views: dict[str, EndpointView] = {}
        self.skipped = dict.fromkeys(self._names or (), "there is no such endpoint")
        rows = await writer.query("SELECT EndpointId, Environment, Policy, Health, State FROM Endpoints")
        self.there = {row[0] for row in rows}
        for name, *row in rows:
            if self._names is not None and name not in self._names:
                continue
            try:
                spec = read_endpoint(name, tuple(row))
            except RowError as reason:
                self.skipped[name] = str(reason)
                continue
            if spec.scaling is None:
                if self._names is not None:
                    self.skipped[name] = "its policy has no scaling"
            elif row[3] == "PAUSED":
                self.skipped[name] = "it is paused"
            elif len(views) < MAX_ENDPOINTS:
                self.skipped.pop(name, None)
                room = 0 if spec.sessions is None else spec.sessions.max_per_replica
                views[name] = EndpointView(spec.scaling, room=room)
            else:
                self.skipped[name] = f"there are {MAX_ENDPOINTS} already"
        return views

    def _add_demand(self, views: dict[str, EndpointView], rows: list[list[Any]]) -> None:
        is_first = not self._has_looked
        for endpoint, router, *texts in rows:
            view = views.get(endpoint)
            if view is None:
                continue
            in_flight, arrivals, unserved, waiting, sessions = map(int, texts)
            key = (endpoint, router)
            before = self._counted.pop(key, None)
            self._counted[key] = (arrivals, unserved)  # the one that changed last stands last
            if is_first:
                continue
            if before is None or arrivals < before[0]:
                before = (0, 0)
            view.arrivals += arrivals - before[0]
            view.unserved += max(0, unserved - before[1])
            view.in_flight += in_flight
            view.waiting += waiting
            view.sessions += sessions
        while len(self._counted) > MAX_ROUTERS:
            del self._counted[next(iter(self._counted))]


def _parts(names: list[str]) -> Iterator[list[str]]:
    for i in range(0, len(names), NAMES_PER_QUERY):
        yield names[i : i + NAMES_PER_QUERY]


def _among(names: list[str]) -> tuple[str, dict[str, Any]]:
    params = {f"n{i}": name for i, name in enumerate(names)}
    return f"EndpointId IN ({', '.join(f'@{name}' for name in params)})", params
