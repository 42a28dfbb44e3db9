"""DDL applied: a catalog and a statement make the next catalog, or an error as Spanner's."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, get_args

from router.config.embedded import ddl_statements as ddl
from router.config.embedded.catalog import (
    DAY_S,
    Capture,
    Catalog,
    ChangeStream,
    Column,
    DeletionPolicy,
    Index,
    KeyPart,
    Table,
)
from router.config.embedded.datatypes import KEY_KINDS
from router.config.embedded.errors import StoreError, invalid, not_found, precondition, unsupported
from router.config.embedded.limits import STREAMS_PER_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from router.config.embedded.ddl_statements import ColumnDef, Option

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)
_EXCLUDES = {
    "exclude_insert": "INSERT",
    "exclude_update": "UPDATE",
    "exclude_delete": "DELETE",
    "exclude_ttl_deletes": "TTL",
}
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": DAY_S}


def apply(
    catalog: Catalog, statement: ddl.Statement, check_default: Callable[[Column], None] | None = None
) -> Catalog:
    """Return the catalog after a statement; the same object if it changes nothing. Errors are Spanner's."""
    match statement:
        case ddl.CreateTable():
            return _create_table(catalog, statement, check_default)
        case ddl.CreateIndex():
            return _create_index(catalog, statement)
        case ddl.CreateStream():
            return _create_stream(catalog, statement)
        case ddl.AlterStream():
            return _alter_stream(catalog, statement)
        case ddl.AddColumn():
            return _add_column(catalog, statement, check_default)
        case ddl.DropColumn():
            return _drop_column(catalog, statement)
        case ddl.AlterColumn():
            return _alter_column(catalog, statement)
        case ddl.SetDeletion():
            table = catalog.table(statement.table)
            return catalog.with_table(
                dataclasses.replace(table, deletion=_deletion(table.columns, table.name, statement.deletion))
            )
        case ddl.Drop():
            return _drop(catalog, statement)


def _check_name(catalog: Catalog, name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise invalid(f"{what} name not valid: {name[:140]}.")
    if catalog.has(name):
        raise precondition(f"Duplicate name in schema: {name}.")


def _column(definition: ColumnDef, id_: int, table: str, check: Callable[[Column], None] | None) -> Column:
    if _NAME.fullmatch(definition.name) is None:
        raise invalid(f"Column name not valid: {table}.{definition.name[:140]}.")
    if definition.commit_timestamp and definition.type.kind != "TIMESTAMP":
        raise precondition(
            f"Option allow_commit_timestamp is only allowed on TIMESTAMP columns, not on {table}.{definition.name}."
        )
    column = Column(
        id_,
        definition.name,
        definition.type,
        definition.not_null,
        bool(definition.commit_timestamp),
        definition.default,
    )
    if column.default is not None:
        if check is None:
            raise unsupported("a DEFAULT clause")
        check(column)
    return column


def _deletion(columns: dict[str, Column], table: str, policy: tuple[str, int] | None) -> DeletionPolicy | None:
    if policy is None:
        return None
    column = columns.get(policy[0].lower())
    if column is None or column.type.kind != "TIMESTAMP":
        raise precondition(f"The row deletion policy of {table} needs a TIMESTAMP column, not {policy[0]}.")
    return DeletionPolicy(column.name, policy[1])


def _create_table(catalog: Catalog, statement: ddl.CreateTable, check: Callable[[Column], None] | None) -> Catalog:
    name = statement.name
    if statement.if_not_exists and name.lower() in catalog.tables:
        return catalog
    _check_name(catalog, name, "Table")
    if not statement.columns:
        raise unsupported("a table without columns")
    columns: dict[str, Column] = {}
    next_id = catalog.next_id + 1
    for definition in statement.columns:
        if definition.name.lower() in columns:
            raise precondition(f"Duplicate column name {name}.{definition.name}.")
        columns[definition.name.lower()] = _column(definition, next_id, name, check)
        next_id += 1
    key = _key_parts(
        columns,
        statement.key,
        lambda part: precondition(f"Table {name} references nonexistent key column {part}."),
        name,
    )
    parent = None
    if statement.parent is not None:
        parent = catalog.table(statement.parent)
        _check_interleaving(name, key, columns, parent)
    table = Table(
        catalog.next_id,
        name,
        columns,
        key,
        parent.name if parent else None,
        statement.cascade,
        _deletion(columns, name, statement.deletion),
    )
    return dataclasses.replace(catalog.with_table(table), next_id=next_id)


def _key_parts(
    columns: dict[str, Column],
    parts: Iterable[tuple[str, bool]],
    missing: Callable[[str], StoreError],
    owner: str,
) -> tuple[KeyPart, ...]:
    key: list[KeyPart] = []
    for name, descending in parts:
        column = columns.get(name.lower())
        if column is None:
            raise missing(name)
        if column.type.kind not in KEY_KINDS:
            raise invalid(f"Column {name} of {owner} has type {column.type.name()}, which cannot be part of a key.")
        if any(part.name == column.name for part in key):
            raise precondition(f"{owner} specifies key column {name} more than once.")
        key.append(KeyPart(column.name, column.type, descending))
    return tuple(key)


def _check_interleaving(name: str, key: tuple[KeyPart, ...], columns: dict[str, Column], parent: Table) -> None:
    for at, part in enumerate(parent.key):
        if at >= len(key) or key[at].name.lower() != part.name.lower():
            raise precondition(f"Table {name} does not reference parent key column {part.name}.")
        if key[at].type != part.type:
            raise precondition(
                f"Table {name} references parent key column {part.name} with incorrect type "
                f"{columns[part.name.lower()].type.ddl()} (should be {part.type.ddl()})."
            )
        if key[at].descending != part.descending:
            raise precondition(f"Table {name} references parent key column {part.name} with another order.")
        if columns[part.name.lower()].not_null != parent.columns[part.name.lower()].not_null:
            raise precondition(f"Table {name} references parent key column {part.name} with another nullability.")


def _create_index(catalog: Catalog, statement: ddl.CreateIndex) -> Catalog:
    name = statement.name
    if statement.if_not_exists and name.lower() in catalog.indexes:
        return catalog
    _check_name(catalog, name, "Index")
    table = catalog.table(statement.table)
    if not statement.parts:
        raise invalid(f"Index {name} has no key columns.")
    parts = _key_parts(
        table.columns,
        statement.parts,
        lambda part: invalid(
            f"Index {name} specifies key column {part} which does not exist in the index's base table."
        ),
        f"Index {name}",
    )
    named = {part.name for part in parts}
    for column in statement.storing:
        if table.column(column).name in named or table.is_key(table.column(column)):
            raise precondition(
                f"Index {name} specifies stored column {column} which is a key of the index or its table."
            )
    full = parts + tuple(part for part in table.key if part.name not in named)
    index = Index(
        catalog.next_id,
        name,
        table.name,
        parts,
        full,
        tuple(statement.storing),
        statement.unique,
        statement.null_filtered,
    )
    return dataclasses.replace(catalog.with_index(index), next_id=catalog.next_id + 1)


def _create_stream(catalog: Catalog, statement: ddl.CreateStream) -> Catalog:
    _check_name(catalog, statement.name, "Change Stream")
    stream = ChangeStream(catalog.next_id, statement.name, {})
    stream = _with_options(stream, statement.options)
    stream = dataclasses.replace(stream, tables=_tracked(catalog, statement.name, statement.tables))
    _check_crowd(catalog, stream)
    return dataclasses.replace(catalog.with_stream(stream), next_id=catalog.next_id + 1)


def _alter_stream(catalog: Catalog, statement: ddl.AlterStream) -> Catalog:
    stream = catalog.streams.get(statement.name.lower())
    if stream is None:
        raise not_found(f"Change Stream not found: {statement.name}")
    if statement.options is not None:
        stream = _with_options(stream, statement.options)
    elif statement.watch_all:
        stream = dataclasses.replace(stream, tables=None)
    else:
        stream = dataclasses.replace(stream, tables=_tracked(catalog, stream.name, statement.tables))
    _check_crowd(catalog, stream)
    return catalog.with_stream(stream)


def _tracked(
    catalog: Catalog, name: str, tables: dict[str, list[str] | None] | None
) -> dict[str, tuple[str, ...] | None] | None:
    if tables is None:
        return None
    tracked: dict[str, tuple[str, ...] | None] = {}
    for table_name, columns in tables.items():
        table = catalog.tables.get(table_name.lower())
        if table is None:
            raise precondition(
                f"Change Stream {name} cannot track {table_name} because either Change Streams do not track "
                "database objects of this type, or this Table does not exist."
            )
        for column_name in columns or ():
            if table.is_key(table.column(column_name)):
                raise precondition(
                    f"The FOR clause of Change Stream {name} should not list the primary key column {column_name} "
                    f"of Table {table.name}."
                )
        tracked[table.name.lower()] = None if columns is None else tuple(columns)
    return tracked


def _check_crowd(catalog: Catalog, stream: ChangeStream) -> None:
    others = [other for other in catalog.streams.values() if other.name.lower() != stream.name.lower()]
    for table in catalog.tables.values():
        if stream.watches(table):
            crowd = 1 + sum(other.watches(table) for other in others)
            if crowd > STREAMS_PER_TABLE:
                raise precondition(
                    f"Failed to create or alter Change Stream {stream.name} : because it is not allowed to have "
                    f"more than {STREAMS_PER_TABLE} Change Streams tracking the same table: {table.name}."
                )


def _with_options(stream: ChangeStream, options: dict[str, Option]) -> ChangeStream:
    retention, capture, excludes = stream.retention_s, stream.capture, set(stream.excludes)
    kept = dict(stream.options)
    for name, value in options.items():
        if name == "retention_period":
            retention = DAY_S if value is None else _retention(stream.name, value)
        elif name == "value_capture_type":
            value_ = "OLD_AND_NEW_VALUES" if value is None else value
            if value_ not in get_args(Capture):
                raise invalid(f"Invalid value_capture_type: {value}.")
            capture = value_  # type: ignore[assignment]
        elif name in _EXCLUDES:
            if value not in {True, False, None}:
                raise invalid(f"Unexpected value for option: {name}.")
            (excludes.add if value else excludes.discard)(_EXCLUDES[name])
        else:
            raise invalid(f"Option: {name} is unknown.")
        if value is None:
            kept.pop(name, None)
        else:
            assert isinstance(value, str | bool)
            kept[name] = value
    return dataclasses.replace(
        stream, retention_s=retention, capture=capture, excludes=frozenset(excludes), options=kept
    )


def _retention(name: str, value: Option) -> float:
    form = re.fullmatch(r"(\d{1,9})([smhd])", value, re.ASCII) if isinstance(value, str) else None
    seconds = int(form[1]) * _UNIT_S[form[2]] if form else 0
    # Spanner asks for a day at least; less is of use in tests, and promises nothing that is not kept.
    if not 1 <= seconds <= 30 * DAY_S:
        raise invalid(f"Invalid retention_period {value!r} of Change Stream {name}: from 1s to 30d.")
    return float(seconds)


def _add_column(catalog: Catalog, statement: ddl.AddColumn, check: Callable[[Column], None] | None) -> Catalog:
    table = catalog.table(statement.table)
    name = statement.column.name
    if name.lower() in table.columns:
        if statement.if_not_exists:
            return catalog
        raise precondition(f"Duplicate column name {table.name}.{name}.")
    if statement.column.not_null:
        raise unsupported(f"ADD COLUMN of a NOT NULL column ({table.name}.{name})")
    if statement.column.default is not None:
        raise unsupported(f"ADD COLUMN with a DEFAULT ({table.name}.{name})")
    column = _column(statement.column, catalog.next_id, table.name, check)
    table = dataclasses.replace(table, columns={**table.columns, name.lower(): column})
    return dataclasses.replace(catalog.with_table(table), next_id=catalog.next_id + 1)


def _drop_column(catalog: Catalog, statement: ddl.DropColumn) -> Catalog:
    table = catalog.table(statement.table)
    column = table.column(statement.column)
    if table.is_key(column):
        raise invalid(f"Cannot drop key column {column.name} from table {table.name}.")
    for index in catalog.indexes_of(table):
        if column.name in {part.name for part in index.parts} | set(index.storing):
            raise precondition(
                f"Cannot drop column {column.name} from table {table.name} because it is used by "
                f"index {index.name}."
            )
    for stream in catalog.streams.values():
        named = (stream.tables or {}).get(table.name.lower())
        if named is not None and column.name.lower() in {name.lower() for name in named}:
            raise precondition(
                f"Cannot drop column {table.name}.{column.name}. It is tracked by the Change Stream {stream.name}."
            )
    if table.deletion is not None and table.deletion.column == column.name:
        raise precondition(f"Cannot drop column {column.name}: the row deletion policy of {table.name} uses it.")
    columns = {name: other for name, other in table.columns.items() if name != column.name.lower()}
    return catalog.with_table(dataclasses.replace(table, columns=columns))


def _alter_column(catalog: Catalog, statement: ddl.AlterColumn) -> Catalog:
    table = catalog.table(statement.table)
    column = table.column(statement.column)
    if statement.commit_timestamp is not None:
        if column.type.kind != "TIMESTAMP":
            raise precondition(
                f"Option allow_commit_timestamp is only allowed on TIMESTAMP columns, not on {column.name}."
            )
        column = dataclasses.replace(column, commit_timestamp=statement.commit_timestamp)
    if statement.type is not None:
        if statement.type.plain() != column.type.plain():
            raise precondition(
                f"Cannot change type of column {column.name} from {column.type.name()} to {statement.type.name()}."
            )
        if table.is_key(column) and (statement.type != column.type or statement.not_null != column.not_null):
            raise unsupported(f"ALTER COLUMN of the key column {table.name}.{column.name}")
        if any(column.name in {part.name for part in index.parts} for index in catalog.indexes_of(table)):
            raise unsupported(f"ALTER COLUMN of the indexed column {table.name}.{column.name}")
        column = dataclasses.replace(column, type=statement.type, not_null=statement.not_null)
    return catalog.with_table(dataclasses.replace(table, columns={**table.columns, column.name.lower(): column}))


def _drop(catalog: Catalog, statement: ddl.Drop) -> Catalog:
    name, what = statement.name, statement.what
    kinds: dict[str, Container[str]]
    kinds = {"TABLE": catalog.tables, "INDEX": catalog.indexes, "CHANGE STREAM": catalog.streams}
    if name.lower() not in kinds[what]:
        if statement.if_exists:
            return catalog
        raise not_found(f"{'Change Stream' if what == 'CHANGE STREAM' else what.capitalize()} not found: {name}")
    if what == "TABLE":
        table = catalog.table(name)
        children = [child.name for child in catalog.children(table)]
        if children:
            raise precondition(f"Cannot drop table {table.name} with interleaved tables: {', '.join(children)}.")
        indexes = [index.name for index in catalog.indexes_of(table)]
        if indexes:
            raise precondition(f"Cannot drop table {table.name} with indices: {', '.join(indexes)}.")
        trackers = [s.name for s in catalog.streams.values() if table.name.lower() in (s.tables or {})]
        if trackers:
            raise precondition(
                f"Cannot drop table {table.name}. Table {table.name} is tracked by {len(trackers)} Change Stream: "
                f"{','.join(trackers)}. Tables explicitly tracked by a Change Stream cannot be dropped."
            )
    return catalog.without(name)
