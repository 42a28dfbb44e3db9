"""The immutable snapshot that every decision is made from: host and path to endpoint to picker.

`Table.build` makes one of a spec and of its predecessor, whose replicas and counters it takes over, so
that in-flight counts, latency and pooled connections survive a swap. Looking up costs one dictionary
access for a host plus a scan of that host's prefixes, whatever the number of hosts and replicas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.counters import EndpointCounters
from router.routing.balancer import Picker
from router.routing.load import OUTCOME_BACKPRESSURE, Replica
from router.routing.outlier import eject_until, eligible_replicas, next_change_s, warmed_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router.routing.load import LoadBoard
    from router.routing.spec import EndpointSpec, TableSpec


class Endpoint:
    """A named pool: live replicas, the current picker, limits and counters.

    Watched by the deadline wheel, since ejections end and slow starts advance with time.
    """

    __slots__ = (
        "counters",
        "is_replaced",
        "key",
        "limits",
        "max_retries",
        "name",
        "outlier",
        "picker",
        "policy",
        "refreshed_s",
        "replicas",
        "slow_start_s",
        "timeouts",
        "watch_again",
        "watch_tick",
    )

    def __init__(self, spec: EndpointSpec, replicas: tuple[Replica, ...], counters: EndpointCounters) -> None:
        self.name = spec.name
        self.key = spec.name.encode()
        self.policy = spec.policy
        self.limits = spec.limits
        self.timeouts = spec.timeouts
        self.outlier = spec.outlier
        self.max_retries = spec.retries
        self.slow_start_s = spec.slow_start_s
        self.replicas = replicas
        self.counters = counters
        self.refreshed_s = 0.0
        self.is_replaced = False
        self.watch_tick = -1
        self.watch_again: Callable[[Endpoint], None] | None = None
        self.picker = Picker(self, ())

    def refresh(self, now: float) -> None:
        """Work out anew who is eligible, with what weight, and swap the picker."""
        self.refreshed_s = now
        for replica in self.replicas:
            replica.weight = warmed_weight(replica, self.slow_start_s, now)
        self.picker = Picker(self, eligible_replicas(self.replicas, self.outlier, now))
        if self.watch_again is not None:
            self.watch_again(self)

    def replace(self) -> None:
        """Give way to the endpoint of a newer table: the replicas are its to watch now."""
        self.is_replaced = True
        self.watch_again = None

    def set_health(self, replica: Replica, *, is_healthy: bool, now: float) -> None:
        """Take the verdict of an active check; a replica that comes back starts slowly."""
        if replica.is_healthy == is_healthy:
            return
        replica.is_healthy = is_healthy
        if is_healthy:
            replica.failures_in_a_row = 0
            replica.ejected_until_s = 0.0
            replica.warm_from_s = now
        self.refresh(now)

    def note(self, replica: Replica, outcome: int, now: float) -> None:
        """Take the verdict of one request that did not end well; may eject."""
        if outcome == OUTCOME_BACKPRESSURE:
            replica.backpressured += 1
            replica.penalise(now)
            return
        replica.failures += 1
        replica.failures_in_a_row += 1
        until_s = eject_until(replica, self.replicas, self.outlier, now)
        if until_s:
            replica.ejected_until_s = until_s
            replica.ejections += 1
            replica.failures_in_a_row = 0
            self.refresh(now)

    def next_deadline(self) -> float | None:
        """When an ejection ends or a slow start takes its next step; None once replaced."""
        if self.is_replaced:
            return None
        return next_change_s(self.replicas, self.slow_start_s, self.refreshed_s)

    def handle_deadline(self, now: float) -> None:
        """Refresh; part of the deadline wheel's contract."""
        for replica in self.replicas:
            if 0.0 < replica.ejected_until_s <= now:
                replica.ejected_until_s = 0.0
                replica.warm_from_s = now
        self.refresh(now)


class Route:
    """One path prefix of one host."""

    __slots__ = ("endpoint", "host", "path_prefix")

    def __init__(self, host: bytes, path_prefix: bytes, endpoint: Endpoint) -> None:
        self.host = host
        self.path_prefix = path_prefix
        self.endpoint = endpoint

    def matches(self, path: bytes) -> bool:
        """Whether `path` lies under the prefix, at a segment boundary: /v1 takes /v1 and /v1/x, not /v10."""
        prefix = self.path_prefix
        if path == b"*":  # OPTIONS * is about the server as a whole (RFC 9110 §9.3.7)
            return prefix == b"/"
        if not path.startswith(prefix):
            return False
        size = len(prefix)
        return len(path) == size or prefix.endswith(b"/") or path[size] in b"/?"


class Table:
    """One version of the routing table. Never changed after `build`, except inside its endpoints."""

    __slots__ = ("_any", "_exact", "_only", "_suffixes", "endpoints", "version")

    def __init__(self, version: int, endpoints: dict[str, Endpoint], routes: Iterable[Route]) -> None:
        self.version = version
        self.endpoints = endpoints
        by_host: dict[bytes, list[Route]] = {}
        for route in routes:
            by_host.setdefault(route.host, []).append(route)
        for group in by_host.values():
            group.sort(key=lambda route: len(route.path_prefix), reverse=True)
        self._any = tuple(by_host.pop(b"*", ()))
        self._exact = {host: tuple(group) for host, group in by_host.items() if not host.startswith(b"*.")}
        only = self._any if len(by_host) == 0 and len(self._any) == 1 else ()
        self._only = only[0] if only and only[0].path_prefix == b"/" else None  # one endpoint for everything
        self._suffixes = {host[1:]: tuple(group) for host, group in by_host.items() if host.startswith(b"*.")}

    @classmethod
    def build(
        cls,
        spec: TableSpec,
        before: Table | None,
        now: float,
        board: LoadBoard | None = None,
    ) -> Table:
        """Make the table of `spec`, keeping the replicas and counters that `before` already had."""
        known = {} if before is None else before.endpoints
        endpoints: dict[str, Endpoint] = {}
        for endpoint_spec in spec.endpoints:
            older = known.get(endpoint_spec.name)
            replicas = _carry_over(endpoint_spec, older, now, board)
            counters = older.counters if older is not None else EndpointCounters()
            endpoint = Endpoint(endpoint_spec, replicas, counters)
            for replica in replicas:
                replica.owner = endpoint
            endpoint.refresh(now)
            endpoints[endpoint.name] = endpoint
        routes = [
            Route(route.host.lower().encode(), route.path_prefix.encode(), endpoints[route.endpoint])
            for route in spec.routes
        ]
        if before is not None:
            kept = {replica for endpoint in endpoints.values() for replica in endpoint.replicas}
            for _, replica in before.replicas():
                if replica not in kept:
                    replica.leave_board()
        return cls(spec.version, endpoints, routes)

    def route(self, authority: bytes, path: bytes) -> Route | None:
        """Return the route of the longest prefix of the most specific host, or None.

        `authority` is lower-case and may carry a port; an exact host beats a wildcard, a longer wildcard a
        shorter one, and `*` comes last. A host whose prefixes do not match falls through to the next.
        """
        if self._only is not None:
            return self._only
        if self._exact or self._suffixes:
            for group in self._groups(authority):
                for route in group:
                    if route.matches(path):
                        return route
        for route in self._any:
            if route.matches(path):
                return route
        return None

    def replicas(self) -> Iterable[tuple[Endpoint, Replica]]:
        """Every replica with its endpoint."""
        for endpoint in self.endpoints.values():
            for replica in endpoint.replicas:
                yield endpoint, replica

    def _groups(self, authority: bytes) -> Iterable[tuple[Route, ...]]:
        group = self._exact.get(authority)
        if group is not None:
            yield group
        host = authority
        if not host.endswith(b"]"):
            name, colon, port = host.rpartition(b":")
            if colon and (port.isdigit() or not port):
                host = name
                group = self._exact.get(host)
                if group is not None:
                    yield group
        if host.endswith(b"."):  # the same name, fully qualified (RFC 3986 §3.2.2)
            host = host[:-1]
            group = self._exact.get(host)
            if group is not None:
                yield group
        if not self._suffixes:
            return
        dot = host.find(b".")
        while dot >= 0:
            group = self._suffixes.get(host[dot:])
            if group is not None:
                yield group
            dot = host.find(b".", dot + 1)


def _carry_over(
    spec: EndpointSpec, older: Endpoint | None, now: float, board: LoadBoard | None
) -> tuple[Replica, ...]:
    known = {} if older is None else {(r.id, r.address): r for r in older.replicas}
    replicas: list[Replica] = []
    for replica_spec in spec.replicas:
        replica = known.get((replica_spec.id, replica_spec.address))
        if replica is None:
            replica = Replica(replica_spec, board)
            if older is not None:
                replica.warm_from_s = now  # new beside others that are warm
        else:
            replica.update(replica_spec)
        replicas.append(replica)
    return tuple(replicas)
