"""The table as the supervisor keeps it: plain specs by name, changed in place by patches.

Gives a worker that starts the whole table in parts, tells a new static table from the one in force as a patch,
and gives each replica its cell of the load board. A patch costs what it changes, whatever the table's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.routing.load import BOARD_SLOTS
from router.routing.spec import EndpointPatch, EndpointSpec, TablePatch, TableSpec
from router.routing.stage import without_replicas

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from router.routing.spec import ReplicaSpec, RouteSpec

PART_REPLICAS = 256  # in one part of a patch: a worker's loop is held for about a millisecond


class TooManyReplicasError(ValueError):
    """The load board has no cell left."""


class SlotBook:
    """Gives each replica a cell of the load board, the same one as long as it is in the table."""

    __slots__ = ("_by_replica", "_free", "_left", "_next")

    def __init__(self) -> None:
        self._by_replica: dict[tuple[str, str, str], int] = {}
        self._free: list[int] = []
        self._left: list[int] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._by_replica)

    def turn(self) -> None:
        """Begin the next patch: cells given up before it are free in it, not those given up by it."""
        self._free += self._left
        self._left = []

    def take(self, endpoint: str, replica: ReplicaSpec) -> ReplicaSpec:
        """Return the replica with its cell filled in."""
        key = (endpoint, replica.id, replica.address)
        slot = self._by_replica.get(key)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._next = self._next, self._next + 1
            self._by_replica[key] = slot
        return replica if replica.slot == slot else msgspec.structs.replace(replica, slot=slot)

    def leave(self, endpoint: str, replica: ReplicaSpec) -> None:
        """Give the replica's cell up."""
        slot = self._by_replica.pop((endpoint, replica.id, replica.address), None)
        if slot is not None:
            self._left.append(slot)


class TableImage:
    """One version of everything, as specs; `version` counts the patches applied."""

    __slots__ = ("_slots", "_spec", "endpoints", "replicas", "routes", "version")

    def __init__(self) -> None:
        self.version = 0
        self.endpoints: dict[str, EndpointSpec] = {}  # settings, without replicas
        self.replicas: dict[str, dict[str, ReplicaSpec]] = {}
        self.routes: tuple[RouteSpec, ...] = ()
        self._slots = SlotBook()
        self._spec: TableSpec | None = None

    def apply(self, patch: TablePatch) -> TablePatch:
        """Take a patch and return it as workers are to get it: numbered, with cells filled in.

        ValueError, before anything has changed, for one that names what is not there or does not fit.
        """
        self._check(patch)
        slots = self._slots
        slots.turn()
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
                    slots.leave(change.name, left)
            upserted = []
            for replica in change.upsert:
                before = known.get(replica.id)
                if before is not None and before.address != replica.address:
                    slots.leave(change.name, before)
                known[replica.id] = taken = slots.take(change.name, replica)
                upserted.append(taken)
            changes.append(EndpointPatch(change.name, change.spec, tuple(upserted), change.remove))
        for name in patch.gone:
            self.endpoints.pop(name, None)
            for left in self.replicas.pop(name, {}).values():
                slots.leave(name, left)
        if patch.routes is not None:
            self.routes = patch.routes
        return msgspec.structs.replace(patch, version=self.version, endpoints=tuple(changes))

    def parts(self) -> Iterator[TablePatch]:
        """Yield the whole table as the parts of one patch, for a worker that starts."""
        changes = tuple(
            EndpointPatch(name, spec, tuple(self.replicas[name].values())) for name, spec in self.endpoints.items()
        )
        return parts_of(TablePatch(self.version, changes, routes=self.routes))

    def spec(self) -> TableSpec:
        """Return the whole table as one value; made once a version."""
        if self._spec is None:
            endpoints = tuple(
                msgspec.structs.replace(endpoint, replicas=tuple(self.replicas[name].values()))
                for name, endpoint in self.endpoints.items()
            )
            self._spec = TableSpec(self.version, endpoints, self.routes)
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
        return TablePatch(0, tuple(changes), gone, routes)

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
        if patch.routes is None and not patch.gone:
            return
        names = (self.endpoints.keys() | {change.name for change in patch.endpoints}) - set(patch.gone)
        for route in self.routes if patch.routes is None else patch.routes:
            if route.endpoint not in names:
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
    yield msgspec.structs.replace(patch, endpoints=tuple(batch))


def _split(changes: Iterable[EndpointPatch], size: int) -> Iterator[EndpointPatch]:
    for change in changes:
        yield EndpointPatch(change.name, change.spec, change.upsert[:size], change.remove)
        for begin in range(size, len(change.upsert), size):
            yield EndpointPatch(change.name, upsert=change.upsert[begin : begin + size])


def _is_same(known: ReplicaSpec | None, wanted: ReplicaSpec) -> bool:
    return known is not None and (known.address, known.weight, known.state) == (
        wanted.address, wanted.weight, wanted.state,
    )  # fmt: skip
