"""DDL statements as values: what `ddl.py` reads and `schema.py` applies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.config.embedded.datatypes import Type

Option = str | bool | int | None


@dataclass(frozen=True, slots=True)
class ColumnDef:
    """A column as written; `commit_timestamp` is None where no option stands."""

    name: str
    type: Type
    not_null: bool = False
    commit_timestamp: bool | None = None
    default: str | None = None
    is_key: bool = False


@dataclass(frozen=True, slots=True)
class CreateTable:
    """Key parts are (name, descending)."""

    name: str
    columns: list[ColumnDef]
    key: list[tuple[str, bool]]
    parent: str | None = None
    cascade: bool = False
    deletion: tuple[str, int] | None = None
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class CreateIndex:
    """Parts are (name, descending)."""

    name: str
    table: str
    parts: list[tuple[str, bool]]
    storing: list[str] = field(default_factory=list)
    unique: bool = False
    null_filtered: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class CreateStream:
    """`tables` None: everything; empty: nothing yet."""

    name: str
    tables: dict[str, list[str] | None] | None
    options: dict[str, Option]


@dataclass(frozen=True, slots=True)
class AlterStream:
    """What is not None is replaced; `watch_all` wins over `tables`."""

    name: str
    tables: dict[str, list[str] | None] | None = None
    watch_all: bool = False
    options: dict[str, Option] | None = None


@dataclass(frozen=True, slots=True)
class AddColumn:
    """ALTER TABLE … ADD COLUMN."""

    table: str
    column: ColumnDef
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class DropColumn:
    """ALTER TABLE … DROP COLUMN."""

    table: str
    column: str


@dataclass(frozen=True, slots=True)
class AlterColumn:
    """A new definition, or with `type` None only a new value of allow_commit_timestamp."""

    table: str
    column: str
    type: Type | None
    not_null: bool = False
    commit_timestamp: bool | None = None


@dataclass(frozen=True, slots=True)
class SetDeletion:
    """ALTER TABLE … ROW DELETION POLICY; None drops it."""

    table: str
    deletion: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Drop:
    """`what`: TABLE, INDEX or CHANGE STREAM."""

    what: str
    name: str
    if_exists: bool = False


Statement = (
    CreateTable
    | CreateIndex
    | CreateStream
    | AlterStream
    | AddColumn
    | DropColumn
    | AlterColumn
    | SetDeletion
    | Drop
)
