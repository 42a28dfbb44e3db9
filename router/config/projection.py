"""From rows to the routing table: what each row means, which rows are unusable and why, what is held back.

Pure and incremental: `step` takes changed rows and returns the patch they amount to, at a cost that follows the
change. Rules:

* A row that cannot be used is quarantined with its reason, and what was made of its last good version stays;
  but a token's: what cannot be read may have been meant to take rights away, so nobody has them.
* A replica of an endpoint that is not there, and a route to one, wait in quarantine until it is.
* Losing at once more than `shrink_guard` of all ready replicas is held back until somebody accepts it, or it is
  undone: the rows are taken, the table keeps what it had. Health checks still take out what is really dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.config.rows import (
    RowError,
    keep_shut,
    read_endpoint,
    read_region,
    read_replica,
    read_route,
    read_session,
    read_session_keys,
    read_token,
)
from router.config.schema import SESSION_KEY
from router.config.static import ConfigError, check_host
from router.routing.load import BOARD_SLOTS
from router.routing.spec import (
    EndpointPatch,
    EndpointSpec,
    RegionSpec,
    ReplicaSpec,
    RouteSpec,
    SessionEntry,
    TablePatch,
    TokenSpec,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.config.reduce import Change, RowBook
    from router.config.wire import Key, Row

GUARD_FLOOR = 10  # ready replicas; a smaller table loses more than half of them in daily use
MAX_REPLICAS = BOARD_SLOTS - 8_192  # cells given up by a patch are free only in the next
MAX_SESSIONS = 200_000  # routers give no more than half of it
MAX_REASONS = 1_000  # quarantined rows that are listed; beyond it they are counted
_ROUTING = frozenset(("Hosts", "RouteSets", "Routes"))


class Kept(msgspec.Struct):
    """What is in force although the rows say otherwise: last good versions, and what the guard holds.

    Endpoints without replicas; replicas with their endpoint's name; good routes and hosts by their keys.
    """

    endpoints: list[EndpointSpec] = []
    replicas: list[tuple[str, ReplicaSpec]] = []
    routes: list[tuple[tuple[str, ...], tuple[int, str, str]]] = []
    hosts: list[tuple[tuple[str, ...], str]] = []
    regions: list[RegionSpec] = []
    held: list[tuple[str, ...]] = []


class Projection:
    """Keeps what was published, what is quarantined and what is held."""

    def __init__(self, book: RowBook, shrink_guard: float = 0.5) -> None:
        self._book = book
        self._guard = shrink_guard
        self._endpoints: dict[str, EndpointSpec] = {}
        self._replicas: dict[str, dict[str, ReplicaSpec]] = {}
        self._orphans: dict[str, set[str]] = {}  # replicas that wait for their endpoint
        self._routes: tuple[RouteSpec, ...] = ()
        self._routes_due = False
        self._parked: dict[str, dict[str, ReplicaSpec]] = {}  # of endpoints that are paused
        self._crowded: dict[tuple[str, str], None] = {}  # replicas for which there was no room
        self._good_routes: dict[Key, tuple[int, str, str]] = {}
        self._good_hosts: dict[Key, str] = {}
        self._held: dict[Key, None] = {}  # (endpoint,) or (endpoint, replica)
        self._tokens: dict[Key, TokenSpec] = {}
        self._limited = 0  # tokens with a rate limit: each has a cell
        self._regions: dict[str, RegionSpec] = {}
        self._sessions: dict[Key, SessionEntry] = {}
        self._session_keys: tuple[bytes, ...] = ()
        self.quarantine: dict[tuple[str, Key], str] = {}
        self.ready = 0
        self._count = 0

    # -- what the agent calls -------------------------------------------------------------------------

    def guard(self, changes: Iterable[Change]) -> int:
        """Hold what of `changes` takes too many ready replicas out; return how many it would.

        To be called with a whole transaction, or a whole difference, before it is stepped through.
        """
        held: dict[Key, None] = {}
        lost: set[tuple[str, str]] = set()  # a deletion that cascades is said of the endpoint and of each replica
        for table, key, row in changes:
            if table == "Replicas":
                known = self._replicas.get(key[0], {}).get(key[1])
                if known is not None and known.state == "READY" and (row is None or row[6] != "READY"):
                    held[key] = None
                    lost.add((key[0], key[1]))
            elif table == "Endpoints" and (row is None or row[3] == "PAUSED"):
                ready = {(key[0], r.id) for r in self._replicas.get(key[0], {}).values() if r.state == "READY"}
                if ready:
                    held[key] = None
                    lost |= ready
        if not self._guard or self.ready < GUARD_FLOOR or len(lost) <= self._guard * self.ready:
            return 0
        self._held.update(held)
        return len(lost)

    def step(self, changes: Iterable[Change], *, defer_routes: bool = False) -> TablePatch | None:
        """Take changed rows, which the book has already; return the patch they amount to, or None.

        With `defer_routes` routes are left for a later step, unless an endpoint goes that they may lead to.
        """
        endpoints: dict[str, None] = {}
        replicas: dict[str, dict[str, None]] = {}
        tokens: dict[Key, None] = {}
        regions: dict[str, None] = {}
        sessions: dict[Key, None] = {}
        keys = None
        routing = False
        for table, key, _ in changes:
            if table == "Replicas":
                replicas.setdefault(key[0], {})[key[1]] = None
            elif table == "Endpoints":
                endpoints[key[0]] = None
            elif table in _ROUTING:
                routing = True
            elif table == "AuthTokens":
                tokens[key] = None
            elif table == "Regions":
                regions[key[0]] = None
            elif table == "Sessions":
                sessions[key] = None
            elif key == (SESSION_KEY,):
                keys = self._changed_session_keys(key)
        patch = self._patch(endpoints, replicas, routing=routing, defer_routes=defer_routes)
        if not tokens and not regions and not sessions and keys is None:
            return patch
        upserted, revoked = self._changed_tokens(tokens)
        changed = self._changed_regions(regions)
        opened, ended = self._changed_sessions(sessions)
        parts = (patch, changed, keys)
        if not any((upserted, revoked, opened, ended)) and all(part is None for part in parts):
            return None
        return msgspec.structs.replace(
            patch or TablePatch(0), tokens=upserted, revoked=revoked, regions=changed,
            sessions=opened, ended=ended, session_keys=keys,
        )  # fmt: skip

    def accept(self) -> tuple[int, TablePatch | None]:
        """Let go of everything held; return how many replicas that takes out, and the patch."""
        before = self.ready
        held, self._held = self._held, {}
        replicas: dict[str, dict[str, None]] = {}
        for key in held:
            if len(key) == 2:
                replicas.setdefault(key[0], {})[key[1]] = None
        patch = self._patch({key[0]: None for key in held if len(key) == 1}, replicas, routing=bool(held))
        return before - self.ready, patch

    def kept(self) -> Kept:
        """Return what a checkpoint must have beside the rows."""
        kept = Kept(held=list(self._held))
        doubtful = [*self.quarantine, *(("Replicas" if len(k) == 2 else "Endpoints", k) for k in self._held)]
        for table, key in dict.fromkeys(doubtful):
            if table == "Endpoints" and key[0] in self._endpoints:
                kept.endpoints.append(self._endpoints[key[0]])
                if key in self._held:  # with what was deleted together with it
                    kept.replicas += [(key[0], replica) for replica in self._replicas.get(key[0], {}).values()]
            elif table == "Replicas":
                known = self._replicas.get(key[0], {}).get(key[1])
                if known is not None:
                    kept.replicas.append((key[0], known))
            elif table == "Routes" and key in self._good_routes:
                kept.routes.append((key, self._good_routes[key]))
            elif table == "Regions" and key[0] in self._regions:
                kept.regions.append(self._regions[key[0]])
            elif table == "Hosts" and key in self._good_hosts:
                kept.hosts.append((key, self._good_hosts[key]))
        return kept

    def restore(self, kept: Kept) -> TablePatch:
        """Put a checkpoint's exceptions in force, before its rows are stepped through; return the patch."""
        changes: dict[str, EndpointPatch] = {}
        for spec in kept.endpoints:
            self._endpoints[spec.name] = spec
            changes[spec.name] = EndpointPatch(spec.name, spec)
        for name, replica in kept.replicas:
            if name not in self._endpoints:
                row = self._row("Endpoints", (name,))
                try:
                    spec = read_endpoint(name, row or (None, None, None, None))
                except RowError:
                    continue
                self._endpoints[name] = spec
                changes[name] = EndpointPatch(name, spec)
            known = self._replicas.setdefault(name, {})
            if replica.id not in known:
                known[replica.id] = replica
                self._count += 1
                self.ready += replica.state == "READY"
        for name, known in self._replicas.items():
            changes[name] = EndpointPatch(name, changes[name].spec, tuple(known.values()))
        self._good_routes.update(kept.routes)
        self._good_hosts.update(kept.hosts)
        self._held.update(dict.fromkeys(kept.held))
        self._regions.update({region.name: region for region in kept.regions})
        return TablePatch(0, tuple(changes.values()), regions=tuple(self._regions.values()) or None)

    @property
    def held(self) -> int:
        """How many rows the shrink guard holds."""
        return len(self._held)

    def reasons(self) -> list[dict[str, str]]:
        """Return the quarantined rows with their reasons, the first `MAX_REASONS`."""
        return [
            {"table": table, "key": "/".join(key), "reason": reason}
            for (table, key), reason in list(self.quarantine.items())[:MAX_REASONS]
        ]

    # -- one patch ------------------------------------------------------------------------------------

    def _patch(
        self,
        endpoints: dict[str, None],
        replicas: dict[str, dict[str, None]],
        *,
        routing: bool,
        defer_routes: bool = False,
    ) -> TablePatch | None:
        changes: dict[str, EndpointPatch] = {}
        gone: list[str] = []
        for name in endpoints:
            spec = self._endpoint(name)
            known = self._endpoints.get(name)
            routing |= (spec is None) != (known is None)
            # Whatever became of it: what waits for it, or was its, is to be looked at again.
            waiting = self._orphans.pop(name, set())
            if spec is None:
                if known is not None:
                    gone.append(name)
                    waiting |= self._forget_endpoint(name)
            elif spec != known:
                self._endpoints[name] = spec
                changes[name] = EndpointPatch(name, spec)
            if waiting:
                replicas.setdefault(name, {}).update(dict.fromkeys(waiting))
        for name, ids in replicas.items():
            self._add_replicas(changes, name, ids)
        for name, ids in self._with_room():
            self._add_replicas(changes, name, ids)
        self._routes_due |= routing
        routes = None
        if self._routes_due and (gone or not defer_routes):
            self._routes_due = False
            routes = self._changed_routes()
        if not changes and not gone and routes is None:
            return None
        return TablePatch(0, tuple(changes.values()), tuple(gone), routes)

    def _add_replicas(self, changes: dict[str, EndpointPatch], name: str, ids: Iterable[str]) -> None:
        upsert, remove = self._replica_changes(name, ids)
        if upsert or remove:
            before = changes.get(name, EndpointPatch(name))
            upserted, removed = (*before.upsert, *upsert), (*before.remove, *remove)
            changes[name] = EndpointPatch(name, before.spec, upserted, removed)

    def _endpoint(self, name: str) -> EndpointSpec | None:
        """Return the endpoint's settings as they are to be, None if it is not to be there."""
        known = self._endpoints.get(name)
        key = (name,)
        row = self._row("Endpoints", key)
        is_lost = row is None or row[3] == "PAUSED"
        if key in self._held:
            if is_lost and known is not None:
                return known
            self._held.pop(key, None)
        self.quarantine.pop(("Endpoints", key), None)
        if row is None or is_lost:
            return None
        try:
            return read_endpoint(name, row)
        except RowError as reason:
            self.quarantine["Endpoints", key] = str(reason)
            return None if known is None else keep_shut(known, row)

    def _forget_endpoint(self, name: str) -> set[str]:
        """Take an endpoint out; return the replicas that were its. A paused one's are kept for when it is back."""
        del self._endpoints[name]
        left = self._replicas.pop(name, {})
        self.ready -= sum(replica.state == "READY" for replica in left.values())
        self._count -= len(left)
        for replica_id in left:
            self._held.pop((name, replica_id), None)
        if self._is_paused(name):
            self._parked[name] = left
        return set(left)

    def _with_room(self) -> list[tuple[str, dict[str, None]]]:
        """Return replicas that found no room before and may now."""
        taken = list(self._crowded)[: max(0, MAX_REPLICAS - self._count)]
        for key in taken:
            del self._crowded[key]
        return [(endpoint, {replica_id: None}) for endpoint, replica_id in taken]

    def _replica_changes(self, name: str, ids: Iterable[str]) -> tuple[list[ReplicaSpec], list[str]]:
        published = self._replicas.setdefault(name, {})
        quarantine, held = self.quarantine, self._held
        is_there = name in self._endpoints
        parked = self._parked.pop(name, {}) if is_there else {}
        upsert: list[ReplicaSpec] = []
        remove: list[str] = []
        for replica_id in ids:
            key = (name, replica_id)
            row = self._row("Replicas", key)
            known = published.get(replica_id)
            if quarantine:
                quarantine.pop(("Replicas", key), None)
            if held and key in held:
                if known is not None and (row is None or row[6] != "READY"):
                    continue
                del held[key]
            self._crowded.pop((name, replica_id), None)
            if row is None:
                if known is not None:
                    del published[replica_id]
                    self._count -= 1
                    self.ready -= known.state == "READY"
                    remove.append(replica_id)
                continue
            try:
                spec = read_replica(replica_id, row)
            except RowError as reason:
                quarantine["Replicas", key] = str(reason)
                if not is_there:
                    self._orphans.setdefault(name, set()).add(replica_id)
                    continue
                if known is not None or replica_id not in parked:
                    continue
                spec = parked[replica_id]
            if not is_there:
                self._orphans.setdefault(name, set()).add(replica_id)
                if not self._is_paused(name):
                    quarantine["Replicas", key] = f"endpoint {name!r} is not there"
                continue
            if known is None:
                if self._count >= MAX_REPLICAS:
                    quarantine["Replicas", key] = f"there are {MAX_REPLICAS} replicas already"
                    self._crowded[name, replica_id] = None
                    continue
                self._count += 1
            if spec != known:
                published[replica_id] = spec
                self.ready += (spec.state == "READY") - (known is not None and known.state == "READY")
                upsert.append(spec)
        if not published:
            del self._replicas[name]
        return upsert, remove

    def _changed_tokens(self, keys: Iterable[Key]) -> tuple[tuple[TokenSpec, ...], tuple[bytes, ...]]:
        """Return the tokens that are new or changed, and the digests of those that left."""
        upserted: list[TokenSpec] = []
        revoked: list[bytes] = []
        for key in keys:
            self.quarantine.pop(("AuthTokens", key), None)
            row = self._row("AuthTokens", key)
            spec = None
            if row is not None:
                try:
                    spec = read_token(key, row)
                except RowError as reason:
                    self.quarantine["AuthTokens", key] = str(reason)
            known = self._tokens.pop(key, None)
            self._limited -= known is not None and known.rate_per_s > 0.0
            if spec is not None and spec.rate_per_s and self._limited >= MAX_REPLICAS:
                self.quarantine["AuthTokens", key] = f"there are {MAX_REPLICAS} tokens with a rate limit already"
                spec = None
            if spec is not None:
                self._tokens[key] = spec
                self._limited += spec.rate_per_s > 0.0
                if spec != known:
                    upserted.append(spec)
            elif known is not None:
                revoked.append(known.digest)
        return tuple(upserted), tuple(revoked)

    def _changed_regions(self, names: Iterable[str]) -> tuple[RegionSpec, ...] | None:
        before = dict(self._regions)
        for name in names:
            key = (name,)
            self.quarantine.pop(("Regions", key), None)
            row = self._row("Regions", key)
            if row is None:
                self._regions.pop(name, None)
                continue
            try:
                self._regions[name] = read_region(name, row)
            except RowError as reason:
                self.quarantine["Regions", key] = str(reason)
        return None if self._regions == before else tuple(self._regions.values())

    def _changed_sessions(self, keys: Iterable[Key]) -> tuple[tuple[SessionEntry, ...], tuple[str, ...]]:
        """Return the sessions that began, and the ids of those that ended."""
        opened: list[SessionEntry] = []
        ended: list[str] = []
        for key in keys:
            self.quarantine.pop(("Sessions", key), None)
            row = self._row("Sessions", key)
            entry = None
            if row is not None:
                try:
                    entry = read_session(key[0], row)
                except RowError as reason:
                    self.quarantine["Sessions", key] = str(reason)
            known = self._sessions.pop(key, None)
            if entry is not None and len(self._sessions) >= MAX_SESSIONS:
                self.quarantine["Sessions", key] = f"there are {MAX_SESSIONS} sessions already"
                entry = None
            if entry is not None:
                self._sessions[key] = entry
                if entry != known:
                    opened.append(entry)
            else:  # also one that was never seen: whoever began it knows it
                ended.append(key[0])
        return tuple(opened), tuple(ended)

    def _changed_session_keys(self, key: Key) -> tuple[bytes, ...] | None:
        """Return the keys that sign and verify session tokens, None if they are as before or cannot be used."""
        self.quarantine.pop(("Meta", key), None)
        try:
            found = read_session_keys(self._row("Meta", key))
        except RowError as reason:
            self.quarantine["Meta", key] = str(reason)
            return None
        if found == self._session_keys:
            return None
        self._session_keys = found
        return found

    def _is_paused(self, name: str) -> bool:
        row = self._row("Endpoints", (name,))
        return row is not None and row[3] == "PAUSED"

    def _changed_routes(self) -> tuple[RouteSpec, ...] | None:
        """Work all routes out anew: they are few beside replicas, and refer to each other."""
        by_set: dict[str, list[tuple[int, str, str]]] = {}
        for key, (_, row) in self._book.tables["Routes"].items():
            self.quarantine.pop(("Routes", key), None)
            if row is None:
                self._good_routes.pop(key, None)
                continue
            try:
                route = read_route(row)
            except RowError as reason:
                self.quarantine["Routes", key] = str(reason)
            else:
                if not route[2] or route[2] in self._endpoints:
                    self._good_routes[key] = route
                else:
                    self.quarantine["Routes", key] = f"endpoint {route[2]!r} is not there"
            good = self._good_routes.get(key)
            if good is not None and (not good[2] or good[2] in self._endpoints):
                by_set.setdefault(key[0], []).append(good)
        routes: list[RouteSpec] = []
        for key, (_, row) in self._book.tables["Hosts"].items():
            self.quarantine.pop(("Hosts", key), None)
            if row is None:
                self._good_hosts.pop(key, None)
                continue
            try:
                check_host(key[0])
            except ConfigError as reason:
                self.quarantine["Hosts", key] = f"Host: {reason}"
                continue
            if self._row("RouteSets", (str(row[0]),)) is None:
                self.quarantine["Hosts", key] = f"RouteSetId: route set {row[0]!r} is not there"
            else:
                self._good_hosts[key] = str(row[0])
            routes += [
                RouteSpec(key[0].lower(), prefix, endpoint, priority, by_model=not endpoint)
                for priority, prefix, endpoint in by_set.get(self._good_hosts.get(key, ""), ())
            ]
        routes.sort(key=lambda route: (route.host, -route.priority, route.path_prefix, route.endpoint))
        found = tuple(routes)
        if found == self._routes:
            return None
        self._routes = found
        return found

    def _row(self, table: str, key: Key) -> Row | None:
        known = self._book.tables[table].get(key)
        return None if known is None else known[1]
