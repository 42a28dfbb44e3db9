"""A catalog as DDL: what GetDatabaseDdl answers, in the form that Spanner writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config.embedded.lexer import RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.config.embedded.catalog import Catalog, ChangeStream, Index, KeyPart, Table


def statements(catalog: Catalog) -> list[str]:
    """Return DDL that makes the catalog: each table with its indexes, then the change streams."""
    out: list[str] = []
    for table in catalog.tables.values():
        out.append(_table_ddl(table))
        out.extend(_index_ddl(index) for index in catalog.indexes_of(table))
    out.extend(_stream_ddl(catalog, stream) for stream in catalog.streams.values())
    return out


def quoted(name: str) -> str:
    """Return an identifier as DDL must write it."""
    return f"`{name}`" if name.upper() in RESERVED else name


def _parts_ddl(parts: Iterable[KeyPart]) -> str:
    return ", ".join(quoted(part.name) + (" DESC" if part.descending else "") for part in parts)


def _table_ddl(table: Table) -> str:
    lines = []
    for column in table.columns.values():
        line = f"  {quoted(column.name)} {column.type.ddl()}"
        if column.not_null:
            line += " NOT NULL"
        if column.default is not None:
            line += f" DEFAULT ({column.default})"
        if column.commit_timestamp:
            line += " OPTIONS (\n    allow_commit_timestamp = true\n  )"
        lines.append(line + ",\n")
    text = f"CREATE TABLE {quoted(table.name)} (\n{''.join(lines)}) PRIMARY KEY({_parts_ddl(table.key)})"
    if table.parent is not None:
        action = "CASCADE" if table.cascade else "NO ACTION"
        text += f",\n  INTERLEAVE IN PARENT {quoted(table.parent)} ON DELETE {action}"
    if table.deletion is not None:
        policy = table.deletion
        text += f",\n  ROW DELETION POLICY (OLDER_THAN({quoted(policy.column)}, INTERVAL {policy.days} DAY))"
    return text


def _index_ddl(index: Index) -> str:
    kind = ("UNIQUE " if index.unique else "") + ("NULL_FILTERED " if index.null_filtered else "")
    text = f"CREATE {kind}INDEX {quoted(index.name)} ON {quoted(index.table)}({_parts_ddl(index.parts)})"
    if index.storing:
        text += f" STORING ({', '.join(quoted(name) for name in index.storing)})"
    return text


def _stream_ddl(catalog: Catalog, stream: ChangeStream) -> str:
    text = f"CREATE CHANGE STREAM {quoted(stream.name)}"
    if stream.tables is None:
        text += " FOR ALL"
    elif stream.tables:
        names = []
        for table, columns in stream.tables.items():
            name = quoted(catalog.tables[table].name)
            names.append(name if columns is None else f"{name}({', '.join(quoted(c) for c in columns)})")
        text += f" FOR {', '.join(names)}"
    if stream.options:
        pairs = [
            f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
            for name, value in sorted(stream.options.items())
        ]
        text += f" OPTIONS ( {', '.join(pairs)} )"
    return text
