"""INFORMATION_SCHEMA, as far as it is asked for: the user's own objects.

Spanner's tables also list its system schemas. So that no answer differs, a query must say TABLE_SCHEMA = '' where
the table has that column; `check` sees to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.config.embedded.datatypes import BOOL, INT64, STRING, Type
from router.config.embedded.errors import unsupported
from router.config.embedded.sql import ast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from router.config.embedded.catalog import Catalog, KeyPart
    from router.config.embedded.database import Database

Row = tuple[Any, ...]
READERS: Final = ("SPANNER_SYS", "CHANGE_STREAM_READERS")
"""A table of this store alone: how many follow each partition now."""
_TABLE: Final = ("TABLE_CATALOG", "TABLE_SCHEMA", "TABLE_NAME")
_STREAM: Final = ("CHANGE_STREAM_CATALOG", "CHANGE_STREAM_SCHEMA", "CHANGE_STREAM_NAME")
_OTHER: Final = {
    "ORDINAL_POSITION": INT64,
    "EFFECTIVE_TIMESTAMP": INT64,
    "IS_UNIQUE": BOOL,
    "IS_NULL_FILTERED": BOOL,
    "SPANNER_IS_MANAGED": BOOL,
    "ALL": BOOL,
    "ALL_COLUMNS": BOOL,
}


def _tables(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        action = None if table.parent is None else "CASCADE" if table.cascade else "NO ACTION"
        policy = table.deletion
        rule = None if policy is None else f"OLDER_THAN({policy.column}, INTERVAL {policy.days} DAY)"
        yield ("", "", table.name, table.parent, action, "BASE TABLE", "COMMITTED", "IN PARENT", rule)


def _columns(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        for ordinal, column in enumerate(table.columns.values(), 1):
            nullable = "NO" if column.not_null else "YES"
            start = ("", "", table.name, column.name, ordinal, column.default, None, nullable, column.type.ddl())
            yield (*start, "NEVER", None, None, "COMMITTED", "NO", None, None, None, None, None)


def _indexes(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        yield ("", "", table.name, "PRIMARY_KEY", "PRIMARY_KEY", "", 1, 0, None, 0)
        for index in catalog.indexes_of(table):
            unique, filtered = int(index.unique), int(index.null_filtered)
            yield ("", "", table.name, index.name, "INDEX", "", unique, filtered, "READ_WRITE", 0)


def _index_columns(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        groups: list[tuple[str, str, tuple[KeyPart, ...], tuple[str, ...]]]
        groups = [("PRIMARY_KEY", "PRIMARY_KEY", table.key, ())]
        groups += [(index.name, "INDEX", index.parts, index.storing) for index in catalog.indexes_of(table)]
        for name, kind, parts, storing in groups:
            for ordinal, part in enumerate(parts, 1):
                column = table.columns[part.name.lower()]
                order = "DESC" if part.descending else "ASC"
                nullable = "NO" if column.not_null else "YES"
                yield ("", "", table.name, name, kind, part.name, ordinal, order, nullable, column.type.ddl())
            for stored in storing:
                column = table.columns[stored.lower()]
                nullable = "NO" if column.not_null else "YES"
                yield ("", "", table.name, name, kind, column.name, None, None, nullable, column.type.ddl())


def _streams(catalog: Catalog) -> Iterator[Row]:
    for stream in catalog.streams.values():
        yield ("", "", stream.name, int(stream.tables is None))


def _stream_tables(catalog: Catalog) -> Iterator[Row]:
    for stream in catalog.streams.values():
        for table in catalog.tables.values():
            if stream.watches(table):
                whole = stream.tables is None or stream.tables[table.name.lower()] is None
                yield ("", "", stream.name, "", "", table.name, int(whole))


_KNOWN: Final[dict[str, tuple[tuple[str, ...], Callable[[Catalog], Iterable[Row]]]]] = {
    "TABLES": (
        (
            *_TABLE,
            "PARENT_TABLE_NAME",
            "ON_DELETE_ACTION",
            "TABLE_TYPE",
            "SPANNER_STATE",
            "INTERLEAVE_TYPE",
            "ROW_DELETION_POLICY_EXPRESSION",
        ),
        _tables,
    ),
    "COLUMNS": (
        (
            *_TABLE,
            "COLUMN_NAME",
            "ORDINAL_POSITION",
            "COLUMN_DEFAULT",
            "DATA_TYPE",
            "IS_NULLABLE",
            "SPANNER_TYPE",
            "IS_GENERATED",
            "GENERATION_EXPRESSION",
            "IS_STORED",
            "SPANNER_STATE",
            "IS_IDENTITY",
            "IDENTITY_GENERATION",
            "IDENTITY_KIND",
            "IDENTITY_START_WITH_COUNTER",
            "IDENTITY_SKIP_RANGE_MIN",
            "IDENTITY_SKIP_RANGE_MAX",
        ),
        _columns,
    ),
    "INDEXES": (
        (
            *_TABLE,
            "INDEX_NAME",
            "INDEX_TYPE",
            "PARENT_TABLE_NAME",
            "IS_UNIQUE",
            "IS_NULL_FILTERED",
            "INDEX_STATE",
            "SPANNER_IS_MANAGED",
        ),
        _indexes,
    ),
    "INDEX_COLUMNS": (
        (
            *_TABLE,
            "INDEX_NAME",
            "INDEX_TYPE",
            "COLUMN_NAME",
            "ORDINAL_POSITION",
            "COLUMN_ORDERING",
            "IS_NULLABLE",
            "SPANNER_TYPE",
        ),
        _index_columns,
    ),
    "CHANGE_STREAMS": ((*_STREAM, "ALL"), _streams),
    "CHANGE_STREAM_TABLES": ((*_STREAM, *_TABLE, "ALL_COLUMNS"), _stream_tables),
}


def table(
    database: Database, schema: str, name: str
) -> tuple[list[tuple[str, Type, Callable[[Any], None] | None]], list[Row]]:
    """Return the columns and rows of a system table. UNIMPLEMENTED."""
    if (schema.upper(), name.upper()) == READERS:
        return [("PARTITION_ID", INT64, None), ("READERS", INT64, None)], list(database.feeds.readers())
    known = _KNOWN.get(name.upper()) if schema.upper() == "INFORMATION_SCHEMA" else None
    if known is None:
        raise unsupported(f"the table {schema}.{name}")
    names, rows = known
    return [(column, _OTHER.get(column, STRING), None) for column in names], list(rows(database.catalog))


def check(name: str, tests: Iterable[ast.Expression]) -> None:
    """Refuse a query that would also find system schemas. UNIMPLEMENTED."""
    if not name.upper().startswith("CHANGE_STREAM"):
        for test in tests:
            if isinstance(test, ast.Binary) and test.op == "=":
                sides = [test.left, test.right]
                named = [s for s in sides if isinstance(s, ast.Name) and s.path[-1] == "table_schema"]
                if named and any(isinstance(s, ast.Literal) and s.value == "" for s in sides):
                    return
        raise unsupported(f"INFORMATION_SCHEMA.{name.upper()} without TABLE_SCHEMA = '' in WHERE")
