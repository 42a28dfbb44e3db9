"""Makes the next table of the one in force and a patch.

Replicas that stayed are the same objects, so that in-flight counts, latency and pooled connections outlive a
swap; endpoints that a patch does not name are shared between both tables. The work is that of the patch, not
of the table: a change of one replica among 10^5 touches one endpoint. Nothing that the table in force shows
changes before the last part of a patch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.routing.credentials import Credentials
from router.routing.load import NO_SLOT, Replica
from router.routing.regions import Geography
from router.routing.sessions import SessionIndex
from router.routing.spec import EndpointPatch, TablePatch
from router.routing.table import Endpoint, ModelIndex, RouteIndex, Table, make_model_host

if TYPE_CHECKING:
    from router.routing.load import LoadBoard
    from router.routing.prefix import PrefixBoard
    from router.routing.spec import EndpointSpec, RegionSpec, ReplicaSpec, SessionEntry, TableSpec, TokenSpec
    from router.walltime import WallTime


class Draft:
    """One endpoint of the next table in the making."""

    __slots__ = ("departed", "older", "replicas", "slot", "spec", "updates")

    def __init__(self, older: Endpoint | None, spec: EndpointSpec) -> None:
        self.older = older
        self.spec = spec
        self.slot = NO_SLOT
        self.replicas: dict[str, Replica] = {} if older is None else {r.id: r for r in older.replicas}
        self.updates: dict[str, ReplicaSpec] = {}
        self.departed: list[Replica] = []

    def remove(self, replica_id: str) -> None:
        """Take a replica out; one that is not there is no error."""
        replica = self.replicas.pop(replica_id, None)
        self.updates.pop(replica_id, None)
        if replica is not None:
            self.departed.append(replica)

    def upsert(self, spec: ReplicaSpec, board: LoadBoard | None, now: float) -> None:
        """Add a replica, or keep what is to change of one; at another address it is another replica."""
        known = self.replicas.get(spec.id)
        if known is not None and known.address == spec.address:
            self.updates[spec.id] = spec
            return
        if known is not None:
            self.remove(spec.id)
        self.replicas[spec.id] = replica = Replica(spec, board)
        if self.older is not None:
            replica.warm_from_s = now  # new beside others that are warm

    def finish(
        self, geography: Geography, board: LoadBoard | None, prefixes: PrefixBoard | None, now: float
    ) -> Endpoint:
        """Make the endpoint; from here on the replicas are its own."""
        older = self.older
        replicas = tuple(self.replicas.values())
        for replica_id, spec in self.updates.items():
            self.replicas[replica_id].update(spec)
        endpoint = Endpoint(self.spec, replicas, geography, older, board, prefixes)
        endpoint.load.move(self.slot)
        for replica in replicas:
            replica.owner = endpoint
        endpoint.refresh(now)
        return endpoint


class Step:
    """The outcome of a patch: the next table, the endpoints that are new in it, and the replicas that left."""

    __slots__ = ("departed", "made", "table")

    def __init__(self, table: Table, made: list[Endpoint], departed: list[Replica]) -> None:
        self.table = table
        self.made = made
        self.departed = departed


class Stage:
    """Keeps the table in force, and the parts of a patch of which more is to come."""

    __slots__ = (
        "_board",
        "_drafts",
        "_ended",
        "_failed",
        "_geography",
        "_gone",
        "_model_host",
        "_prefixes",
        "_regions",
        "_revoked",
        "_routes",
        "_session_keys",
        "_sessions",
        "_tokens",
        "table",
    )

    def __init__(
        self,
        board: LoadBoard | None = None,
        region: str = "",
        prefixes: PrefixBoard | None = None,
        walltime: WallTime | None = None,
    ) -> None:
        """`region` is the router's own."""
        self._prefixes = prefixes
        self._geography = Geography(region)
        self._model_host = make_model_host()
        self.table = Table(
            0, {}, RouteIndex(), Credentials(), ModelIndex(), SessionIndex(walltime), self._model_host
        )
        self._sessions: list[SessionEntry] = []
        self._ended: list[str] = []
        self._session_keys: tuple[bytes, ...] | None = None
        self._tokens: dict[bytes, TokenSpec] = {}
        self._revoked: set[bytes] = set()
        self._regions: tuple[RegionSpec, ...] | None = None
        self._board = board
        self._drafts: dict[str, Draft] = {}
        self._failed: int | None = None  # the version of which a part could not be taken
        self._gone: set[str] = set()
        self._routes: RouteIndex | None = None

    def add(self, patch: TablePatch, now: float) -> Step | None:
        """Take a patch; return the step to the next table, which is then in force, or None if more is to come.

        ValueError for a patch that names what is not there; the table in force stays, and all parts are dropped.
        """
        if self._failed is not None and patch.version == self._failed:
            self._failed = patch.version if patch.more else None  # what was left of it is dropped, too
            return None
        self._failed = None
        try:
            self._take(patch, now)
            return None if patch.more else self._commit(patch.version, now)
        except BaseException:
            self._forget()
            self._failed = patch.version if patch.more else None
            raise

    def _take(self, patch: TablePatch, now: float) -> None:
        for change in patch.endpoints:
            draft = self._drafts.get(change.name)
            if draft is None:
                older = None if change.name in self._gone else self.table.endpoints.get(change.name)
                spec = change.spec or (None if older is None else older.spec)
                if spec is None:
                    raise ValueError(f"patch {patch.version} changes endpoint {change.name!r}, which is not there")
                draft = self._drafts[change.name] = Draft(older, spec)
            elif change.spec is not None:
                draft.spec = change.spec
            draft.slot = change.slot
            for replica_id in change.remove:
                draft.remove(replica_id)
            for replica in change.upsert:
                draft.upsert(replica, self._board, now)
        for name in patch.gone:
            self._drafts.pop(name, None)
            self._gone.add(name)
        if patch.routes is not None:
            self._routes = RouteIndex(patch.routes)
        if patch.regions is not None:
            self._regions = patch.regions
        for token in patch.tokens:
            self._tokens[token.digest] = token
        self._revoked.update(patch.revoked)
        self._sessions += patch.sessions
        self._ended += patch.ended
        if patch.session_keys is not None:
            self._session_keys = patch.session_keys

    def _commit(self, version: int, now: float) -> Step:
        before = self.table
        routes = before.routes if self._routes is None else self._routes
        endpoints = before.endpoints
        departed: list[Replica] = []
        if self._drafts or self._gone:
            endpoints = dict(endpoints)
        for name in self._gone:
            endpoints.pop(name, None)
        if self._gone or self._routes is not None:
            names = endpoints.keys() | self._drafts.keys()
            for route in routes.specs:
                if not route.by_model and route.endpoint not in names:
                    raise ValueError(f"patch {version} routes {route.host!r} to {route.endpoint!r}, not there")
        if self._regions is not None:
            self._geography.replace(self._regions)
        models = before.models
        for name in self._gone:
            if name in before.endpoints:
                models.change(before.endpoints[name].spec, None)
        for draft in self._drafts.values():
            if draft.older is None or draft.older.spec is not draft.spec:
                models.change(None if draft.older is None else draft.older.spec, draft.spec)
        made = [
            draft.finish(self._geography, self._board, self._prefixes, now) for draft in self._drafts.values()
        ]
        for endpoint in made:
            endpoints[endpoint.name] = endpoint
        credentials = self._change_credentials()
        sessions = before.sessions
        if self._session_keys is not None:
            sessions.set_keys(self._session_keys)
        sessions.change(self._sessions, self._ended, now)
        self.table = Table(version, endpoints, routes, credentials, models, sessions, self._model_host)
        if self._regions is not None:
            for endpoint in endpoints.values():
                endpoint.refresh(now)
        for name in self._gone:
            older = before.endpoints.get(name)
            if older is not None:
                departed += older.replicas
                older.replace(None)
        for draft in self._drafts.values():
            departed += draft.departed
            if draft.older is not None:
                draft.older.replace(endpoints[draft.spec.name])
        for replica in departed:
            replica.leave()
        self._forget()
        return Step(self.table, made, departed)

    def _change_credentials(self) -> Credentials:
        """Take over who may call, in the index that all versions of the table share."""
        credentials = self.table.credentials
        for digest in self._revoked:
            credentials.revoke(digest)
        for token in self._tokens.values():
            credentials.put(token)
        return credentials

    def _forget(self) -> None:
        self._drafts = {}
        self._gone = set()
        self._routes = None
        self._regions = None
        self._tokens = {}
        self._revoked = set()
        self._sessions = []
        self._ended = []
        self._session_keys = None


def whole(spec: TableSpec) -> TablePatch:
    """Return the patch that makes `spec` of nothing."""
    endpoints = tuple(
        EndpointPatch(endpoint.name, without_replicas(endpoint), endpoint.replicas) for endpoint in spec.endpoints
    )
    return TablePatch(
        spec.version,
        endpoints,
        routes=spec.routes,
        tokens=spec.tokens,
        regions=spec.regions,
        sessions=spec.sessions or (),
        session_keys=spec.session_keys,
    )


def without_replicas(spec: EndpointSpec) -> EndpointSpec:
    """Return the settings alone."""
    return msgspec.structs.replace(spec, replicas=())


def build(spec: TableSpec, now: float, board: LoadBoard | None = None, region: str = "") -> Table:
    """Return the table of `spec`, with no predecessor."""
    step = Stage(board, region).add(whole(spec), now)
    assert step is not None
    return step.table
