"""Change records: from the net changes of a transaction to the bytes that every reader of a partition is sent.

A record is built once, at commit, as the `values` field of a PartialResultSet whose only column is
ChangeRecord ARRAY<STRUCT<data_change_record, heartbeat_record, child_partitions_record>>. Rows of one transaction
that share partition, table, kind and columns share a record, in the order of their keys, until it is
`MAX_RECORD_BYTES` long.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import keys, values, wire
from router.config.embedded.partitions import position
from router.config.embedded.timestamps import wire_of_us
from router.config.embedded.workspace import sorted_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.config.embedded.catalog import Catalog, ChangeStream, Column, Table
    from router.config.embedded.partitions import Partition
    from router.config.embedded.workspace import Change, Kind

MAX_RECORD_BYTES: Final = 1 << 20
TOKEN: Final = struct.Struct(">cqq")  # "p", timestamp, id: resumes a query after a record
_EMPTY = wire.text("{}")
_NO_RECORDS = wire.array([])


class Origin(NamedTuple):
    """What all records of a transaction say of it. `system`: not a user's, but a row deletion policy's."""

    at: int
    transaction_id: str
    tag: str = ""
    system: bool = False


class _Group:
    """Mods that go into one record."""

    __slots__ = ("columns", "kind", "mods", "partition", "size", "table")

    def __init__(self, partition: Partition, table: Table, kind: Kind, columns: list[Column]) -> None:
        self.partition = partition
        self.table = table
        self.kind = kind
        self.columns = columns
        self.mods: list[bytes] = []
        self.size = 0


def capture(
    catalog: Catalog,
    stream: ChangeStream,
    partitions: Sequence[Partition],
    changes: dict[str, dict[bytes, Change]],
    origin: Origin,
) -> list[tuple[Partition, bytes]]:
    """Return the records a transaction leaves in a stream, in order. `partitions`: the open ones, by key space."""
    groups: list[_Group] = []
    for name, rows in changes.items():
        table = catalog.tables[name]
        if stream.watches(table):
            _gather(catalog, stream, partitions, table, rows, origin, groups)
    last = {group.partition.id: at for at, group in enumerate(groups)}
    return [
        (
            group.partition,
            _record(stream, group, at, len(groups), len(last), origin, last=last[group.partition.id] == at),
        )
        for at, group in enumerate(groups)
    ]


def _gather(
    catalog: Catalog,
    stream: ChangeStream,
    partitions: Sequence[Partition],
    table: Table,
    rows: dict[bytes, Change],
    origin: Origin,
    groups: list[_Group],
) -> None:
    root = catalog.root(table)
    positions = table.positions()
    watched = stream.watched(table)
    key_columns = [table.columns[part.name.lower()] for part in table.key]
    keeps_old = stream.capture in {"OLD_AND_NEW_VALUES", "NEW_ROW_AND_OLD_VALUES"}
    whole_row = stream.capture in {"NEW_ROW", "NEW_ROW_AND_OLD_VALUES"}
    latest: dict[int, _Group] = {}  # of each partition, which is the one that may still grow
    for key, change in sorted_changes(rows):
        kind = change.kind()
        assert kind is not None
        if kind in stream.excludes or (kind == "DELETE" and origin.system and "TTL" in stream.excludes):
            continue
        touched = watched
        if kind == "UPDATE":
            touched = [column for column in watched if column.name.lower() in change.touched]
            if not touched:
                continue
        row = change.after if change.after is not None else change.before
        assert row is not None
        root_key = (
            key
            if root is table
            else keys.encode(root.key, [row[positions[part.name.lower()]] for part in table.key[: len(root.key)]])
        )
        where = position(root.id, root_key)
        partition = next(p for p in partitions if p.low <= where < p.high)
        columns = watched if kind != "UPDATE" or whole_row else touched
        new, old = _EMPTY, _EMPTY
        if change.after is not None:
            new = _json(columns, change.after, positions)
        if keeps_old and kind != "INSERT" and change.before is not None:
            old = _json(touched, change.before, positions)
        group = latest.get(partition.id)
        mod = wire.array([_json(key_columns, row, positions), new, old])
        if group is None or group.kind != kind or group.columns != columns or group.size > MAX_RECORD_BYTES:
            group = latest[partition.id] = _Group(partition, table, kind, columns)
            groups.append(group)
        group.mods.append(mod)
        group.size += len(mod)


def _json(columns: Sequence[Column], row: Sequence[Any], positions: dict[str, int]) -> bytes:
    if not columns:
        return _EMPTY
    data = {column.name: values.in_record(column.type, row[positions[column.name.lower()]]) for column in columns}
    return wire.text(json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True))


def _record(
    stream: ChangeStream, group: _Group, at: int, records: int, partitions: int, origin: Origin, *, last: bool
) -> bytes:
    table = group.table
    chosen = {column.name for column in group.columns}
    types = [
        wire.array(
            [
                wire.text(column.name),
                wire.text(json.dumps(column.type.in_record(), separators=(",", ":"))),
                wire.boolean(table.is_key(column)),
                wire.text(str(ordinal)),
            ]
        )
        for ordinal, column in enumerate(table.columns.values(), 1)
        if column.name in chosen or table.is_key(column)
    ]
    data = wire.array(
        [
            wire.text(wire_of_us(origin.at)),
            wire.text(f"{at:08d}"),
            wire.text(origin.transaction_id),
            wire.boolean(last),
            wire.text(table.name),
            wire.array(types),
            wire.array(group.mods),
            wire.text(group.kind),
            wire.text(stream.capture),
            wire.text(str(records)),
            wire.text(str(partitions)),
            wire.text(origin.tag),
            wire.boolean(origin.system),
        ]
    )
    return _change_record(data_change=data)


def _change_record(data_change: bytes = b"", heartbeat: bytes = b"", children: bytes = b"") -> bytes:
    parts = [wire.array([part]) if part else _NO_RECORDS for part in (data_change, heartbeat, children)]
    return wire.in_values(wire.array([wire.array(parts)]))


def heartbeat_record(at: int) -> bytes:
    """Return a record that says: every change up to `at` has been sent."""
    return _change_record(heartbeat=wire.array([wire.text(wire_of_us(at))]))


def record_message(values_field: bytes, position: tuple[int, int]) -> bytes:
    """Return a PartialResultSet with a record; its resume token is the record's position, (timestamp, id)."""
    return values_field + wire.resume_token(TOKEN.pack(b"p", *position))


def child_record(at: int, sequence: int, token: str, parents: bytes) -> bytes:
    """Return the record of one child partition; `parents` is an encoded list of tokens."""
    children = wire.array([wire.array([wire.text(token), parents])])
    return _change_record(children=wire.array([wire.text(wire_of_us(at)), wire.text(f"{sequence:08d}"), children]))
