"""What a database holds, as values: tables, indexes, change streams. A DDL statement makes a new `Catalog`.

Names are found whatever their case and shown as they were declared. Ids are never used twice within a database, so
what is stored under a dropped table's or column's id is never taken for its successor's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from router.config.embedded.errors import not_found, precondition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.config.embedded.datatypes import Type

Capture = Literal["OLD_AND_NEW_VALUES", "NEW_VALUES", "NEW_ROW", "NEW_ROW_AND_OLD_VALUES"]
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Column:
    """`id` names it at rest; `default` is the text of its DEFAULT expression."""

    id: int
    name: str
    type: Type
    not_null: bool = False
    commit_timestamp: bool = False
    default: str | None = None

    @property
    def at_rest(self) -> str:
        """The column's name in SQLite."""
        return f"c{self.id}"


@dataclass(frozen=True, slots=True)
class KeyPart:
    """One part of a key or an index."""

    name: str
    type: Type
    descending: bool = False


@dataclass(frozen=True, slots=True)
class DeletionPolicy:
    """Rows go `days` after the time in `column`."""

    column: str
    days: int


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` by lower-case name, in order of declaration; a parent's key parts start the child's key."""

    id: int
    name: str
    columns: dict[str, Column]
    key: tuple[KeyPart, ...]
    parent: str | None = None
    cascade: bool = False
    deletion: DeletionPolicy | None = None

    def column(self, name: str) -> Column:
        """Return a column; NOT_FOUND."""
        column = self.columns.get(name.lower())
        if column is None:
            raise not_found(f"Column not found in table {self.name}: {name}")
        return column

    def is_key(self, column: Column) -> bool:
        """Tell whether the column is part of the primary key."""
        return any(part.name == column.name for part in self.key)

    def positions(self) -> dict[str, int]:
        """Return where each column stands in a row, by lower-case name."""
        return {name: at for at, name in enumerate(self.columns)}


@dataclass(frozen=True, slots=True)
class Index:
    """`parts` as declared; `full` adds the table's key, which makes an entry unique."""

    id: int
    name: str
    table: str
    parts: tuple[KeyPart, ...]
    full: tuple[KeyPart, ...]
    storing: tuple[str, ...] = ()
    unique: bool = False
    null_filtered: bool = False


@dataclass(frozen=True, slots=True)
class ChangeStream:
    """`tables`: lower-case name → the columns watched, None for all of them.

    None instead of the dict watches the whole database.
    """

    id: int
    name: str
    tables: dict[str, tuple[str, ...] | None] | None
    retention_s: float = DAY_S
    capture: Capture = "OLD_AND_NEW_VALUES"
    excludes: frozenset[str] = frozenset()  # INSERT, UPDATE, DELETE, TTL
    options: dict[str, str | bool] = field(default_factory=dict)

    def watches(self, table: Table) -> bool:
        """Tell whether the stream has anything of the table."""
        return self.tables is None or table.name.lower() in self.tables

    def watched(self, table: Table) -> list[Column]:
        """Return the columns of the table that are recorded, besides its key."""
        named = None if self.tables is None else self.tables[table.name.lower()]
        lower = None if named is None else {name.lower() for name in named}
        return [
            column
            for name, column in table.columns.items()
            if not table.is_key(column) and (lower is None or name in lower)
        ]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything by lower-case name. `next_id` is free."""

    tables: dict[str, Table] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    streams: dict[str, ChangeStream] = field(default_factory=dict)
    next_id: int = 1

    def table(self, name: str) -> Table:
        """Return a table; NOT_FOUND."""
        table = self.tables.get(name.lower())
        if table is None:
            raise not_found(f"Table not found: {name}")
        return table

    def index(self, name: str, table: Table) -> Index:
        """Return an index of the table. NOT_FOUND, FAILED_PRECONDITION for one of another table."""
        index = self.indexes.get(name.lower())
        if index is None:
            raise not_found(f"No index '{name}' was found for table '{table.name}'.")
        if index.table.lower() != table.name.lower():
            raise precondition(f"Index '{index.name}' does not index table '{table.name}'.")
        return index

    def indexes_of(self, table: Table) -> list[Index]:
        """Return the indexes of a table."""
        return [index for index in self.indexes.values() if index.table.lower() == table.name.lower()]

    def children(self, table: Table) -> Iterator[Table]:
        """Yield the tables interleaved in a table."""
        for other in self.tables.values():
            if other.parent is not None and other.parent.lower() == table.name.lower():
                yield other

    def root(self, table: Table) -> Table:
        """Return the table at the top of an interleaving."""
        while table.parent is not None:
            table = self.tables[table.parent.lower()]
        return table

    def has(self, name: str) -> bool:
        """Tell whether any object of the schema has the name."""
        lower = name.lower()
        return lower in self.tables or lower in self.indexes or lower in self.streams

    def with_table(self, table: Table) -> Catalog:
        """Return the catalog with a table added or replaced."""
        return dataclasses.replace(self, tables={**self.tables, table.name.lower(): table})

    def with_index(self, index: Index) -> Catalog:
        """Return the catalog with an index added."""
        return dataclasses.replace(self, indexes={**self.indexes, index.name.lower(): index})

    def with_stream(self, stream: ChangeStream) -> Catalog:
        """Return the catalog with a change stream added or replaced."""
        return dataclasses.replace(self, streams={**self.streams, stream.name.lower(): stream})

    def without(self, name: str) -> Catalog:
        """Return the catalog without the table, index or stream of that name."""
        lower = name.lower()
        return dataclasses.replace(
            self,
            tables={key: value for key, value in self.tables.items() if key != lower},
            indexes={key: value for key, value in self.indexes.items() if key != lower},
            streams={key: value for key, value in self.streams.items() if key != lower},
        )
