"""The immutable snapshot that every decision is made from: host and path to endpoint to picker.

Made by `routing.stage` of its predecessor and a patch. Looking up costs one dictionary access for a host, a
scan of that host's prefixes and one access for the endpoint, whatever the number of hosts and replicas.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Final

from router.counters import EndpointCounters
from router.routing.balancer import Picker
from router.routing.load import NO_SLOT, OUTCOME_BACKPRESSURE, EndpointLoad
from router.routing.outlier import eject_until, eligible_replicas, next_change_s, warmed_weight
from router.routing.regions import NOWHERE, Geography
from router.routing.spec import DialSpec, EndpointSpec, HoldSpec
from router.routing.tier import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router.routing.credentials import Credentials
    from router.routing.load import LoadBoard, Replica
    from router.routing.prefix import PrefixBoard
    from router.routing.ring import Ring
    from router.routing.sessions import SessionIndex
    from router.routing.spec import RouteSpec


NO_HOLD: Final = HoldSpec()
MAX_RINGS: Final = 8  # of one endpoint: sets of regions that were a tier of their own


class Endpoint:
    """A named pool: live replicas, the current picker, limits and counters.

    Watched by the deadline wheel, since ejections end and slow starts advance with time.
    """

    __slots__ = (
        "_by_key",
        "_geography",
        "by_model",
        "counters",
        "dial",
        "endpoint_concurrency",
        "environment",
        "first_byte_s",
        "hold",
        "idle_s",
        "is_replaced",
        "key",
        "limits",
        "load",
        "max_body_bytes",
        "max_retries",
        "may_have_sessions",
        "mends_sglang",
        "name",
        "needs_token",
        "outlier",
        "picker",
        "policy",
        "prefixes",
        "refreshed_s",
        "replicas",
        "rings",
        "salt",
        "session_hold",
        "sessions",
        "slow_start_s",
        "spec",
        "timeouts",
        "total_s",
        "watch_again",
        "watch_tick",
    )

    def __init__(
        self,
        spec: EndpointSpec,
        replicas: tuple[Replica, ...],
        geography: Geography,
        older: Endpoint | None = None,
        board: LoadBoard | None = None,
        prefixes: PrefixBoard | None = None,
    ) -> None:
        """`older` is the endpoint of the table before, whose counters and rings this one goes on with."""
        counters = EndpointCounters() if older is None else older.counters
        self.counters: EndpointCounters = counters
        self._geography = geography
        self.rings: dict[tuple[str, ...], Ring] = {} if older is None else older.rings
        self.by_model = False
        self.prefixes = prefixes if spec.policy == "prefix_affinity" else None
        self.salt = b"" if self.prefixes is None else self.prefixes.salt(spec.name)
        self.load: EndpointLoad = EndpointLoad(counters, board) if older is None else older.load
        self.environment = spec.environment
        self.needs_token = spec.needs_token
        self.hold = spec.hold
        self.sessions = sticky = spec.sessions
        self.may_have_sessions = sticky is not None  # or leads to endpoints that have
        self.session_hold = NO_HOLD if sticky is None else HoldSpec(sticky.start_wait_s, sticky.max_waiting, False)
        self.spec = spec
        self.name = spec.name
        self.key = spec.name.encode()
        self.policy = spec.policy
        self.limits = spec.limits
        self.timeouts = spec.timeouts
        # What every request reads, once more: an attribute of a compiled class costs a tenth of a struct's field.
        self.endpoint_concurrency = spec.limits.endpoint_concurrency
        self.max_body_bytes = spec.limits.max_body_bytes
        self.idle_s = spec.timeouts.idle_s
        self.total_s = spec.timeouts.total_s
        self.first_byte_s = spec.timeouts.first_byte_s
        self.dial = DialSpec(spec.timeouts.connect_s, spec.connections, spec.tls)
        self.outlier = spec.outlier
        self.max_retries = spec.retries
        self.mends_sglang = spec.engine == "sglang"
        self.slow_start_s = spec.slow_start_s
        self.replicas = replicas
        self._by_key: dict[bytes, Replica] = {}  # made for the first that asks
        self.refreshed_s = 0.0
        self.is_replaced = False
        self.watch_tick = -1
        self.watch_again: Callable[[Endpoint], None] | None = None
        self.picker = Picker((), counters, {})

    def refresh(self, now: float) -> None:
        """Work out anew who is eligible, with what weight, and swap the picker."""
        self.refreshed_s = now
        geography = self._geography
        for replica in self.replicas:
            factor = geography.weight(replica.region) if replica.region else 1.0
            replica.weight = warmed_weight(replica, self.slow_start_s, now) * factor
        self.picker = Picker(self._tiers(now), self.counters, self.rings, self.prefixes)
        if len(self.rings) > MAX_RINGS:
            self.rings.clear()
        if self.watch_again is not None:
            self.watch_again(self)

    def _tiers(self, now: float) -> tuple[Tier, ...]:
        """Return the tiers that have somebody, nearest first."""
        ranks: dict[str, int] = {}
        members: dict[int, list[Replica]] = {}
        for replica in self.replicas:
            region = replica.region
            rank = ranks.get(region, -2)
            if rank == -2:
                rank = ranks[region] = self.region_rank(region)
            if rank != NOWHERE:
                members.setdefault(rank, []).append(replica)
        usable = [replica for rank in sorted(members) for replica in members[rank]]
        eligible = eligible_replicas(usable, self.outlier, now)
        for replica in self.replicas:
            replica.rank = NOWHERE
        for replica in eligible:
            replica.rank = ranks[replica.region]
        tiers = []
        for rank in sorted(members):
            mine = tuple(members[rank])
            able = tuple(replica for replica in mine if replica.rank >= 0)
            if able:
                regions = tuple(sorted(region for region, found in ranks.items() if found == rank))
                tiers.append(Tier(self.spec, self.load, regions, mine, able, self.prefixes))
        return tuple(tiers)

    def region_rank(self, region: str) -> int:
        """Return a region's place in this endpoint's order; NOWHERE for one that it does not use now."""
        if region and not self._geography.weight(region):
            return NOWHERE
        return self._geography.rank(region, self.spec.failover)

    def find(self, replica_id: bytes) -> Replica | None:
        """Return the replica of that id."""
        if not self._by_key:
            self._by_key = {replica.key: replica for replica in self.replicas}
        return self._by_key.get(replica_id)

    def replace(self, newer: Endpoint | None) -> None:
        """Give way to the endpoint of a newer table: the replicas are its to watch now.

        A request under way that must be sent on picks from what is there now; and the cycle of endpoint and
        picker is broken, which at hundreds of changes a second would be left to the collector.
        """
        self.is_replaced = True
        self.watch_again = None
        if newer is None:
            self.load.move(NO_SLOT)
            self.picker = Picker((), self.counters, {})
        else:
            self.picker = newer.picker

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
        replica.avoid(now)
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

    __slots__ = ("by_model", "endpoint", "host", "path_prefix", "rank")

    def __init__(self, spec: RouteSpec) -> None:
        self.host = spec.host.lower().encode()
        self.path_prefix = spec.path_prefix.encode()
        self.endpoint = spec.endpoint
        self.by_model = spec.by_model
        self.rank = (-spec.priority, -len(self.path_prefix))

    def matches(self, path: bytes) -> bool:
        """Whether `path` lies under the prefix, at a segment boundary: /v1 takes /v1 and /v1/x, not /v10."""
        prefix = self.path_prefix
        if path == b"*":  # OPTIONS * is about the server as a whole (RFC 9110 §9.3.7)
            return prefix == b"/"
        if not path.startswith(prefix):
            return False
        size = len(prefix)
        return len(path) == size or prefix.endswith(b"/") or path[size] in b"/?"


class RouteIndex:
    """All routes, by host. Immutable, and shared by the tables between which no route changed."""

    __slots__ = ("_any", "_exact", "_suffixes", "only", "specs")

    def __init__(self, specs: tuple[RouteSpec, ...] = ()) -> None:
        self.specs = specs
        by_host: dict[bytes, list[Route]] = {}
        for spec in specs:
            route = Route(spec)
            by_host.setdefault(route.host, []).append(route)
        for group in by_host.values():
            group.sort(key=lambda route: route.rank)
        self._any = tuple(by_host.pop(b"*", ()))
        self._exact = {host: tuple(group) for host, group in by_host.items() if not host.startswith(b"*.")}
        self._suffixes = {host[1:]: tuple(group) for host, group in by_host.items() if host.startswith(b"*.")}
        only = self._any if len(by_host) == 0 and len(self._any) == 1 else ()
        self.only = only[0] if only and only[0].path_prefix == b"/" else None  # one endpoint for everything

    def find(self, authority: bytes, path: bytes) -> Route | None:
        """Return the first route of the most specific host that takes `path`, or None.

        `authority` is lower-case and may carry a port; an exact host beats a wildcard, a longer wildcard a
        shorter one, and `*` comes last. A host whose prefixes do not match falls through to the next.
        """
        if self._exact or self._suffixes:
            for group in self._groups(authority):
                for route in group:
                    if route.matches(path):
                        return route
        for route in self._any:
            if route.matches(path):
                return route
        return None

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


class ModelIndex:
    """Endpoints by the OpenAI model names they serve, within their environment; changed in place with the table.

    A model that several claim goes to the first by name, so that every router decides alike; an endpoint's own
    name is one, too.
    """

    __slots__ = ("_claims", "_listed", "_open", "bodies")

    def __init__(self) -> None:
        self._claims: dict[str, dict[str, list[str]]] = {}
        self._open: dict[str, int] = {}  # endpoints of an environment that ask for no token
        self._listed: dict[str | None, list[str]] = {}
        self.bodies: dict[tuple[str | None, frozenset[str] | None, bool], bytes] = {}
        """Lists of models as they were sent, by whom they are for; empty behind each change."""

    def change(self, before: EndpointSpec | None, after: EndpointSpec | None) -> None:
        """Take over what an endpoint serves now; None where it is not there."""
        self._listed.clear()
        self.bodies.clear()
        if before is not None:
            self._open[before.environment] -= not before.needs_token
            claims = self._claims[before.environment]
            for model in {before.name, *before.models}:
                claims[model].remove(before.name)
                if not claims[model]:
                    del claims[model]
            if not claims:
                del self._claims[before.environment]
        if after is not None:
            self._open[after.environment] = self._open.get(after.environment, 0) + (not after.needs_token)
            for model in {after.name, *after.models}:
                insort(self._claims.setdefault(after.environment, {}).setdefault(model, []), after.name)

    def find(self, environment: str | None, model: str) -> list[str]:
        """Return the names of the endpoints that serve `model`; None: in any environment."""
        if environment is None:
            return [name for claims in self._claims.values() for name in claims.get(model, ())]
        return self._claims.get(environment, {}).get(model, [])

    def is_open(self, environment: str) -> bool:
        """Whether somebody without a token may mean anything there."""
        return self._open.get(environment, 0) > 0

    def names(self, environment: str | None) -> list[str]:
        """Return the models of an environment, or of all, sorted; as long as nothing changes the same list."""
        listed = self._listed.get(environment)
        if listed is None:
            if environment is None:
                listed = sorted({model for claims in self._claims.values() for model in claims})
            else:
                listed = sorted(self._claims.get(environment, {}))
            self._listed[environment] = listed
        return listed


class Table:
    """One version of the routing table. Never changed once made, but for its endpoints, credentials, sessions."""

    __slots__ = ("_model_host", "_only", "credentials", "endpoints", "models", "routes", "sessions", "version")

    def __init__(
        self,
        version: int,
        endpoints: dict[str, Endpoint],
        routes: RouteIndex,
        credentials: Credentials,
        models: ModelIndex,
        sessions: SessionIndex,
        model_host: Endpoint,
    ) -> None:
        self.version = version
        self.endpoints = endpoints
        self.routes = routes
        self.credentials = credentials
        self.models = models
        self.sessions = sessions
        self._model_host = model_host
        only = routes.only
        self._only = None if only is None else self._end_of(only)

    def route(self, authority: bytes, path: bytes) -> Endpoint | None:
        """Return who a request is for, or None. See `RouteIndex.find`.

        Where the body's `model` is still to say it, the endpoint has `by_model` set and no replicas.
        """
        if self._only is not None:
            return self._only
        route = self.routes.find(authority, path)
        return None if route is None else self._end_of(route)

    def replicas(self) -> Iterable[tuple[Endpoint, Replica]]:
        """Every replica with its endpoint."""
        for endpoint in self.endpoints.values():
            for replica in endpoint.replicas:
                yield endpoint, replica

    def _end_of(self, route: Route) -> Endpoint:
        return self._model_host if route.by_model else self.endpoints[route.endpoint]


def make_model_host() -> Endpoint:
    """Return what stands for the endpoint until the body's `model` is known: open to every environment's tokens."""
    host = Endpoint(EndpointSpec("by-model"), (), Geography())
    host.by_model = host.may_have_sessions = True
    return host
