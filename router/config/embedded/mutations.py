"""The mutations of a Commit request, applied to a workspace in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import keys
from router.config.embedded.errors import invalid, precondition, unsupported
from router.config.embedded.timestamps import text_of_us
from router.config.embedded.values import COMMIT_TIMESTAMP, decoder, plain
from router.config.embedded.workspace import no_commit_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.config.embedded.catalog import Catalog, Column, Table
    from router.config.embedded.values import Stored
    from router.config.embedded.workspace import Workspace

_WRITES: Final = frozenset({"insert", "update", "insert_or_update", "replace"})


def apply(workspace: Workspace, mutations: Iterable[Any], at: int) -> None:
    """Apply google.spanner.v1.Mutation messages; `at` stands for a commit timestamp. Raises StoreError."""
    text = text_of_us(at)
    for mutation in mutations:
        operation = mutation.WhichOneof("operation")
        if operation in _WRITES:
            _write(workspace, operation, getattr(mutation, operation), text)
        elif operation == "delete":
            _delete(workspace, mutation.delete)
        elif operation is None:
            raise invalid("mutation has no operation")
        else:
            raise unsupported(f"the mutation {operation}")


def count(mutations: Iterable[Any]) -> int:
    """Return what Spanner counts a commit's mutations as, without those of indexes."""
    total = 0
    for mutation in mutations:
        operation = mutation.WhichOneof("operation")
        if operation in _WRITES:
            write = getattr(mutation, operation)
            total += len(write.values) * len(write.columns)
        elif operation == "delete":
            total += max(1, len(mutation.delete.key_set.keys) + len(mutation.delete.key_set.ranges))
    return total


def columns_of(table: Table, names: Iterable[str]) -> list[Column]:
    """Return columns by name, each once. NOT_FOUND, INVALID_ARGUMENT."""
    columns: list[Column] = []
    for name in names:
        column = table.column(name)
        if column in columns:
            raise invalid(f"Multiple values for column {name}.")
        columns.append(column)
    return columns


def _write(workspace: Workspace, operation: Any, write: Any, text: str) -> None:
    table = workspace.catalog.table(write.table)
    columns = columns_of(table, write.columns)
    decode = [decoder(column.type) for column in columns]
    stamped = [at for at, column in enumerate(columns) if column.type.kind == "TIMESTAMP"]
    for row in write.values:
        if len(row.values) != len(columns):
            raise invalid(
                "Mutation column and value size mismatch: "
                f"Found: {len(columns)} columns and {len(row.values)} values"
            )
        values: list[Stored] = [one(plain(value)) for one, value in zip(decode, row.values, strict=True)]
        for at in stamped:
            values[at] = _stamp(table, columns[at], values[at], text)
        workspace.write(table, operation, columns, values)


def _stamp(table: Table, column: Column, value: Stored, text: str) -> Stored:
    if value == COMMIT_TIMESTAMP:
        if not column.commit_timestamp:
            raise no_commit_timestamp(table, column)
        return text
    if column.commit_timestamp and isinstance(value, str) and value > text:
        raise precondition(f"Cannot write timestamps in the future, found: {value}Z")
    return value


def _delete(workspace: Workspace, delete: Any) -> None:
    catalog: Catalog = workspace.catalog
    table = catalog.table(delete.table)
    for start, end in keys.ranges_of(table.key, delete.key_set, table.name):
        workspace.delete_range(table, start, end)
