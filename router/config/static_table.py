"""The table of a router without a store: the file's endpoints, with what was added and removed by hand.

The file is read again on demand; a bad one is refused and what was there stays, by-hand changes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.config.static import EndpointEntry, File, ReplicaEntry, build_table

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.routing.spec import TableSpec


class StaticTable:
    """Builds a `TableSpec` of the settings. Every method that changes something returns the table then wanted.

    ConfigError names what is wrong, and nothing has changed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file: File = settings.file()
        self._added: list[tuple[str, ReplicaEntry]] = []
        self._removed: set[str] = set()

    def spec(self) -> TableSpec:
        """Return the table as it is to be."""
        return self._build(self._file, self._added, self._removed)

    def reload(self) -> TableSpec:
        """Read the file again; what was added and removed by hand is forgotten."""
        self._settings.check()
        file = self._settings.file()
        table = self._build(file, [], set())
        self._file, self._added, self._removed = file, [], set()
        return table

    def add(self, url: str, endpoint: str | None, weight: float) -> tuple[str, str, TableSpec]:
        """Add a replica to `endpoint`, or to the first one; return its id, its endpoint and the table."""
        name = endpoint or (self._file.endpoint[0].name if self._file.endpoint else "")
        if name not in {entry.name for entry in self._file.endpoint}:
            raise ValueError(f"endpoint: there is none named {name!r}")
        entry = ReplicaEntry(address=url, id=url.partition("://")[2].rstrip("/"), weight=weight)
        # One of the file's that was removed by hand is back by being removed no more.
        is_files = entry.id in self._removed and any(
            _id(replica) == entry.id
            for known in self._file.endpoint
            if known.name == name
            for replica in known.replica
        )
        added = self._added if is_files else [*self._added, (name, entry)]
        removed = self._removed - {entry.id}
        table = self._build(self._file, added, removed)
        self._added, self._removed = added, removed
        return entry.id, name, table

    def remove(self, replica_id: str) -> TableSpec | None:
        """Take a replica out; None when there is none of that id."""
        if not any(replica.id == replica_id for e in self.spec().endpoints for replica in e.replicas):
            return None
        self._added = [(name, entry) for name, entry in self._added if entry.id != replica_id]
        self._removed.add(replica_id)
        return self.spec()

    def by_hand(self) -> tuple[list[tuple[str, str, float]], list[str]]:
        """Return what was added by hand, as endpoint, address and weight, and the ids removed, for a successor."""
        return [(name, entry.address, entry.weight) for name, entry in self._added], sorted(self._removed)

    def restore(self, added: list[tuple[str, str, float]], removed: list[str]) -> None:
        """Take over what a predecessor's operator did by hand, before the table is first asked for.

        What does not fit the file as it is now is left out; ValueError names it when everything else is in.
        """
        refused = []
        for endpoint, address, weight in added:
            try:
                self.add(address, endpoint, weight)
            except ValueError as refusal:
                refused.append(str(refusal))
        for replica_id in removed:
            self.remove(replica_id)
        if refused:
            raise ValueError("; ".join(refused))

    def _build(
        self, file: File, added: list[tuple[str, ReplicaEntry]], removed: set[str]
    ) -> TableSpec:
        merged = [msgspec.structs.replace(entry, replica=_merge(entry, added, removed)) for entry in file.endpoint]
        whole = msgspec.structs.replace(file, endpoint=merged)
        return build_table(whole, 0, self._settings.config or "--replica")


def _merge(
    entry: EndpointEntry, added: list[tuple[str, ReplicaEntry]], removed: set[str]
) -> tuple[ReplicaEntry, ...]:
    mine = [replica for endpoint, replica in added if endpoint == entry.name]
    return tuple(replica for replica in (*entry.replica, *mine) if _id(replica) not in removed)


def _id(replica: ReplicaEntry) -> str:
    return replica.id or replica.address.partition("://")[2].rstrip("/")
