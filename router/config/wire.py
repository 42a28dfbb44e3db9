"""From the messages of google.spanner.v1 to plain values: rows, and the records of a change stream.

A row may be split across messages, a value too (`chunked_value`): `RowAssembler` joins them again. INT64 and
JSON columns are texts on this wire, in rows and in change records alike, and stay so. Knows no connection and
imports no protobuf: messages are taken as they come, by the names of their fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from router.config.schema import BY_NAME
from router.config.timestamps import parse_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

Key = tuple[str, ...]
Row = tuple[Any, ...]
"""The columns of `StreamedTable.columns`, in that order: text, float, bool, list or None."""


class WireError(Exception):
    """A message that does not fit together; the stream is broken and must be started anew."""


class RowAssembler:
    """Makes rows of the values of successive PartialResultSets of one stream."""

    __slots__ = ("_current", "_partial", "width")

    def __init__(self) -> None:
        self.width = 0
        self._current: list[Any] = []
        self._partial: Any = None

    def feed(self, message: Any) -> Iterator[list[Any]]:
        """Yield each row, as protobuf values, that the message completes."""
        if not self.width:
            self.width = len(message.metadata.row_type.fields)
        values = list(message.values)
        if self._partial is not None and values:
            _merge(self._partial, values[0])
            values[0] = self._partial
            self._partial = None
        if message.chunked_value:
            if not values:
                raise WireError("a chunked value with no value")
            self._partial = values.pop()
        if not self.width:
            if values:
                raise WireError("values without a row type")
            return
        current, width = self._current, self.width
        for value in values:
            current.append(value)
            if len(current) == width:
                yield current
                current = []
        self._current = current


def _merge(first: Any, rest: Any) -> None:
    """Append `rest` to `first`: texts are joined, lists too, with their touching members merged alike."""
    kind = first.WhichOneof("kind")
    if kind != rest.WhichOneof("kind") or kind not in ("string_value", "list_value"):
        raise WireError(f"a chunk of kind {rest.WhichOneof('kind')} continues one of kind {kind}")
    if kind == "string_value":
        first.string_value += rest.string_value
        return
    members, more = first.list_value.values, rest.list_value.values
    if members and more:
        last = members[-1].WhichOneof("kind")
        if last in ("string_value", "list_value") and last == more[0].WhichOneof("kind"):
            _merge(members[-1], more[0])
            members.extend(more[1:])
            return
    members.extend(more)


def plain(value: Any) -> Any:
    """Return a protobuf value as text, float, bool, list or None."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "null_value" or kind is None:
        return None
    if kind == "number_value":
        return value.number_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [plain(member) for member in value.list_value.values]
    raise WireError(f"a value of kind {kind}")


class DataRecord(NamedTuple):
    """Rows of one table that one transaction wrote, in one partition. A row that is None was deleted."""

    commit_us: int
    transaction: str
    records: int  # of the transaction, over all partitions
    table: str
    rows: list[tuple[Key, Row | None]]


class Heartbeat(NamedTuple):
    """Everything up to here was said."""

    at_us: int


class Child(NamedTuple):
    """A partition that takes over; it is to be read from `start_us`."""

    start_us: int
    token: str


Record = DataRecord | Heartbeat | Child


def change_records(value: Any) -> Iterator[Record]:
    """Yield the records of one ChangeRecord column. WireError for what is not one."""
    try:
        for record in value.list_value.values:
            data, heartbeats, children = (part.list_value.values for part in record.list_value.values)
            for fields in data:
                yield _data_record(fields.list_value.values)
            for fields in heartbeats:
                yield Heartbeat(parse_timestamp(fields.list_value.values[0].string_value))
            for fields in children:
                start, _, partitions = fields.list_value.values
                start_us = parse_timestamp(start.string_value)
                for partition in partitions.list_value.values:
                    yield Child(start_us, partition.list_value.values[0].string_value)
    except (ValueError, LookupError, RecursionError, msgspec.DecodeError) as failure:
        raise WireError(f"a change record cannot be read: {failure}") from failure


def _data_record(fields: Any) -> DataRecord:
    table = BY_NAME.get(fields[4].string_value)
    rows: list[tuple[Key, Row | None]] = []
    if table is not None:
        is_delete = fields[7].string_value == "DELETE"
        for mod in fields[6].list_value.values:
            keys, new, *_ = mod.list_value.values
            by_name = _decode(keys.string_value)
            key = tuple(str(by_name[name]) for name in table.keys)
            if is_delete:
                rows.append((key, None))
            else:
                written = _decode(new.string_value)
                # A column that is not in the record was added to the table after it.
                rows.append((key, tuple(map(written.get, table.columns))))
    return DataRecord(
        parse_timestamp(fields[0].string_value),
        fields[2].string_value,
        int(fields[9].string_value),
        fields[4].string_value,
        rows,
    )


def _decode(text: str) -> dict[str, Any]:
    decoded = msgspec.json.decode(text)
    if not isinstance(decoded, dict):
        raise WireError("the keys or values of a change are no object")
    return decoded
