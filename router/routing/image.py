"""The table as the supervisor keeps it: plain specs by name, changed in place by patches.

Gives a worker that starts the whole table in parts, tells a new static table from the one in force as a patch,
and gives each replica its cell of the load board. A patch costs what it changes, whatever the table's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.routing.load import BOARD_SLOTS, ENDPOINT_SLOTS, NO_SLOT
from router.routing.spec import EndpointPatch, EndpointSpec, TablePatch, TableSpec
from router.routing.stage import without_replicas

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from router.routing.spec import RegionSpec, ReplicaSpec, RouteSpec, SessionEntry, TokenSpec

PART_REPLICAS = 256  # in one part of a patch: a worker's loop is held for about a millisecond
PART_TOKENS = 1_024  # or sessions
MAX_ENDED = 10_000  # sessions; a worker that starts is told, since their tokens may still be young


class TooManyReplicasError(ValueError):
    """The load board has no cell left."""


class TooManyTokensError(ValueError):
    """The rate board has no cell left."""


class SlotBook:
    """Gives each name a cell of a board that the workers share, the same one as long as it is in the table."""

    __slots__ = ("_by_name", "_free", "_left", "_next")

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, ...], int] = {}
        self._free: list[int] = []
        self._left: list[int] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def turn(self) -> None:
        """Begin the next patch: cells given up before it are free in it, not those given up by it."""
        self._free += self._left
        self._left = []

    def take(self, name: tuple[str, ...]) -> int:
        """Return the cell of a name."""
        slot = self._by_name.get(name)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._next = self._next, self._next + 1
            self._by_name[name] = slot
        return slot

    def leave(self, name: tuple[str, ...]) -> None:
        """Give a name's cell up."""
        slot = self._by_name.pop(name, None)
        if slot is not None:
            self._left.append(slot)


class TableImage:
    """One version of everything, as specs; `version` counts the patches applied."""

    __slots__ = (
        "_ended",
        "_own_slots",
        "_rates",
        "_slots",
        "_spec",
        "endpoints",
        "regions",
        "replicas",
        "routes",
        "session_counts",
        "session_keys",
        "sessions",
        "tokens",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        self.endpoints: dict[str, EndpointSpec] = {}  # settings, without replicas
        self.replicas: dict[str, dict[str, ReplicaSpec]] = {}
        self.routes: tuple[RouteSpec, ...] = ()
        self.tokens: dict[bytes, TokenSpec] = {}
        self.sessions: dict[str, SessionEntry] = {}
        self.session_counts: dict[tuple[str, str], int] = {}
        """By endpoint and replica."""
        self._ended: dict[str, None] = {}  # sessions, lately
        self.session_keys: tuple[bytes, ...] = ()
        self.regions: tuple[RegionSpec, ...] = ()
        self._slots = SlotBook()
        self._own_slots = SlotBook()  # endpoints'
        self._rates = SlotBook()
        self._spec: TableSpec | None = None

    def apply(self, patch: TablePatch) -> TablePatch:
        """Take a patch and return it as workers are to get it: numbered, with cells filled in.

        ValueError, before anything has changed, for one that names what is not there or does not fit.
        """
        self._check(patch)
        slots = self._slots
        slots.turn()
        self._own_slots.turn()
        self._rates.turn()
        self._spec = None
        self.version += 1
        changes = []
        for change in patch.endpoints:
            if change.spec is not None:
                self.endpoints[change.name] = change.spec
            known = self.replicas.setdefault(change.name, {})
            for replica_id in change.remove:
                left = known.pop(replica_id, None)
                if left is not None:
                    slots.leave(_cell(change.name, left))
            upserted = []
            for replica in change.upsert:
                before = known.get(replica.id)
                if before is not None and before.address != replica.address:
                    slots.leave(_cell(change.name, before))
                slot = slots.take(_cell(change.name, replica))
                taken = replica if replica.slot == slot else msgspec.structs.replace(replica, slot=slot)
                known[replica.id] = taken
                upserted.append(taken)
            own = self._own_slot(change.name)
            changes.append(EndpointPatch(change.name, change.spec, tuple(upserted), change.remove, own))
        for name in patch.gone:
            self.endpoints.pop(name, None)
            self._own_slots.leave((name,))
            for left in self.replicas.pop(name, {}).values():
                slots.leave(_cell(name, left))
        if patch.routes is not None:
            self.routes = patch.routes
        if patch.regions is not None:
            self.regions = patch.regions
        for digest in patch.revoked:
            self._rates.leave((digest.hex(),))
            self.tokens.pop(digest, None)
        tokens = tuple(map(self._take_token, patch.tokens))
        for session_id in patch.ended:
            self._count(self.sessions.pop(session_id, None), -1)
            self._ended[session_id] = None
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        for session in patch.sessions:
            self._count(self.sessions.get(session.id), -1)
            self.sessions[session.id] = session
            self._ended.pop(session.id, None)
            self._count(session, 1)
        if patch.session_keys is not None:
            self.session_keys = patch.session_keys
        return msgspec.structs.replace(patch, version=self.version, endpoints=tuple(changes), tokens=tokens)

    @property
    def ended_sessions(self) -> tuple[str, ...]:
        """Return the sessions that ended lately, the first one first."""
        return tuple(self._ended)

    def _count(self, session: SessionEntry | None, change: int) -> None:
        if session is None:
            return
        name = (session.endpoint, session.replica)
        left = self.session_counts.get(name, 0) + change
        if left:
            self.session_counts[name] = left
        else:
            del self.session_counts[name]

    def _own_slot(self, endpoint: str) -> int:
        slot = self._own_slots.take((endpoint,))
        return BOARD_SLOTS + slot if slot < ENDPOINT_SLOTS else NO_SLOT

    def _has_cell(self, token: TokenSpec) -> bool:
        known = self.tokens.get(token.digest)
        return known is not None and known.rate_per_s > 0

    def _take_token(self, token: TokenSpec) -> TokenSpec:
        if token.rate_per_s:
            token = msgspec.structs.replace(token, slot=self._rates.take((token.digest.hex(),)))
        else:
            self._rates.leave((token.digest.hex(),))
        self.tokens[token.digest] = token
        return token

    def parts(self) -> Iterator[TablePatch]:
        """Yield the whole table as the parts of one patch, for a worker that starts."""
        changes = tuple(
            EndpointPatch(name, spec, tuple(self.replicas[name].values()), slot=self._own_slot(name))
            for name, spec in self.endpoints.items()
        )
        tokens = tuple(self.tokens.values())
        return parts_of(
            TablePatch(
                self.version,
                changes,
                routes=self.routes,
                tokens=tokens,
                regions=self.regions,
                sessions=tuple(self.sessions.values()),
                ended=tuple(self._ended),
                session_keys=self.session_keys,
            )
        )

    def spec(self) -> TableSpec:
        """Return the whole table as one value; made once a version."""
        if self._spec is None:
            endpoints = tuple(
                msgspec.structs.replace(endpoint, replicas=tuple(self.replicas[name].values()))
                for name, endpoint in self.endpoints.items()
            )
            tokens = tuple(self.tokens.values())
            sessions = tuple(self.sessions.values())
            self._spec = TableSpec(
                self.version, endpoints, self.routes, tokens, self.regions, sessions, self.session_keys
            )
        return self._spec

    def diff(self, spec: TableSpec) -> TablePatch:
        """Return the patch from the table in force to `spec`, whose slots do not matter."""
        changes = []
        for endpoint in spec.endpoints:
            settings = without_replicas(endpoint)
            known = self.replicas.get(endpoint.name, {})
            wanted = {replica.id: replica for replica in endpoint.replicas}
            upsert = tuple(r for r in wanted.values() if not _is_same(known.get(r.id), r))
            remove = tuple(replica_id for replica_id in known if replica_id not in wanted)
            changed = None if self.endpoints.get(endpoint.name) == settings else settings
            if changed is not None or upsert or remove:
                changes.append(EndpointPatch(endpoint.name, changed, upsert, remove))
        names = {endpoint.name for endpoint in spec.endpoints}
        gone = tuple(name for name in self.endpoints if name not in names)
        routes = None if spec.routes == self.routes else spec.routes
        regions = None if spec.regions == self.regions else spec.regions
        wanted_tokens = {token.digest: token for token in spec.tokens}
        tokens = tuple(t for t in wanted_tokens.values() if not _is_same_token(self.tokens.get(t.digest), t))
        revoked = tuple(digest for digest in self.tokens if digest not in wanted_tokens)
        opened: tuple[SessionEntry, ...] = ()
        ended: tuple[str, ...] = ()
        if spec.sessions is not None:
            wanted_ids = {session.id for session in spec.sessions}
            opened = tuple(session for session in spec.sessions if self.sessions.get(session.id) != session)
            ended = tuple(session_id for session_id in self.sessions if session_id not in wanted_ids)
        keys = None if spec.session_keys == self.session_keys else spec.session_keys
        return TablePatch(
            0, tuple(changes), gone, routes, tokens=tokens, revoked=revoked, regions=regions,
            sessions=opened, ended=ended, session_keys=keys,
        )  # fmt: skip

    def _check(self, patch: TablePatch) -> None:
        new = 0
        for change in patch.endpoints:
            if change.name in patch.gone or (change.spec is None and change.name not in self.endpoints):
                raise ValueError(f"the patch changes endpoint {change.name!r}, which is not there")
            known = self.replicas.get(change.name, {})
            for replica in change.upsert:
                before = known.get(replica.id)
                new += before is None or before.address != replica.address
        if len(self._slots) + new > BOARD_SLOTS:
            raise TooManyReplicasError(f"more than {BOARD_SLOTS} replicas in one table")
        limited = sum(token.rate_per_s > 0 and not self._has_cell(token) for token in patch.tokens)
        if len(self._rates) + limited > BOARD_SLOTS:
            raise TooManyTokensError(f"more than {BOARD_SLOTS} tokens with a rate limit in one table")
        if patch.routes is None and not patch.gone:
            return
        names = (self.endpoints.keys() | {change.name for change in patch.endpoints}) - set(patch.gone)
        for route in self.routes if patch.routes is None else patch.routes:
            if not route.by_model and route.endpoint not in names:
                raise ValueError(f"a route of {route.host!r} leads to endpoint {route.endpoint!r}, not there")


def parts_of(patch: TablePatch, size: int = PART_REPLICAS) -> Iterator[TablePatch]:
    """Yield `patch` in parts of about `size` replicas; all but the last say that more is to come."""
    batch: list[EndpointPatch] = []
    filled = 0
    for change in _split(patch.endpoints, size):
        if filled and filled + len(change.upsert) > size:
            yield TablePatch(patch.version, tuple(batch), more=True)
            batch, filled = [], 0
        batch.append(change)
        filled += len(change.upsert) + 1
    tokens, sessions = patch.tokens, patch.sessions
    if batch and len(tokens) + len(sessions) > PART_TOKENS:
        yield TablePatch(patch.version, tuple(batch), more=True)
        batch = []
    while len(tokens) > PART_TOKENS:
        yield TablePatch(patch.version, tokens=tokens[:PART_TOKENS], more=True)
        tokens = tokens[PART_TOKENS:]
    while len(sessions) > PART_TOKENS:
        yield TablePatch(patch.version, sessions=sessions[:PART_TOKENS], more=True)
        sessions = sessions[PART_TOKENS:]
    yield msgspec.structs.replace(patch, endpoints=tuple(batch), tokens=tokens, sessions=sessions)


def _split(changes: Iterable[EndpointPatch], size: int) -> Iterator[EndpointPatch]:
    for change in changes:
        yield EndpointPatch(change.name, change.spec, change.upsert[:size], change.remove, change.slot)
        for begin in range(size, len(change.upsert), size):
            yield EndpointPatch(change.name, upsert=change.upsert[begin : begin + size], slot=change.slot)


def _cell(endpoint: str, replica: ReplicaSpec) -> tuple[str, ...]:
    return (endpoint, replica.id, replica.address)


def _is_same(known: ReplicaSpec | None, wanted: ReplicaSpec) -> bool:
    return known is not None and msgspec.structs.replace(wanted, slot=known.slot) == known


def _is_same_token(known: TokenSpec | None, wanted: TokenSpec) -> bool:
    return known is not None and msgspec.structs.replace(wanted, slot=known.slot) == known
