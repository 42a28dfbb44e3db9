"""What one transaction changes: an overlay over a snapshot, kept per row, with the rules a row must obey.

Used twice: by DML, whose effects the transaction itself sees, and by the mutations of a commit, applied in their
order to the present. `Base` is what lies below; it also learns which keys were looked at, for validation.

A row is a tuple of values at rest in the order of the table's columns. `Change` is the net effect on one row; its
kind is what a change record calls it: a row that was deleted and inserted again is an INSERT, as in Spanner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from router.config.embedded import keys
from router.config.embedded.errors import StoreError, invalid, not_found, precondition
from router.config.embedded.limits import MAX_MUTATIONS
from router.config.embedded.values import COMMIT_TIMESTAMP, check_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from router.config.embedded.catalog import Catalog, Column, Index, Table
    from router.config.embedded.storage import Row
    from router.config.embedded.values import Stored

Operation = Literal["insert", "update", "insert_or_update", "replace"]
Kind = Literal["INSERT", "UPDATE", "DELETE"]


class Base(Protocol):
    """A snapshot to build on. Each call is remembered where reads are validated later."""

    def get(self, table: Table, key: bytes) -> Row | None:
        """Return a row."""
        ...

    def scan(self, table: Table, start: bytes, end: bytes) -> Iterator[tuple[bytes, Row]]:
        """Yield the rows with start <= key < end, in order."""
        ...

    def entries(self, index: Index, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (entry, row key) of an index with start <= entry < end, in order."""
        ...


class Change:
    """The net change of a row. `touched`: lower-case names of the columns that an update wrote."""

    __slots__ = ("after", "before", "fresh", "touched")

    def __init__(self, before: Row | None) -> None:
        self.before = before
        self.after = before
        self.fresh = False  # inserted by this transaction, whether or not a row was there before
        self.touched: set[str] = set()

    def copy(self) -> Change:
        """Return another with the same state."""
        twin = Change(self.before)
        twin.after, twin.fresh, twin.touched = self.after, self.fresh, set(self.touched)
        return twin

    def kind(self) -> Kind | None:
        """Return what became of the row, None if nothing did."""
        if self.after is None:
            return None if self.before is None else "DELETE"
        if self.fresh:
            return "INSERT"
        return "UPDATE" if self.touched else None


class Workspace:
    """The changes of a transaction. A StoreError leaves them half done: the caller undoes or drops them."""

    def __init__(self, catalog: Catalog, base: Base, default: Callable[[Column], Stored] | None = None) -> None:
        self.catalog = catalog
        self.base = base
        self.changes: dict[
            str, dict[bytes, Change]
        ] = {}  # by lower-case table name, tables in order of first change
        self.mutations = 0
        self._default = default
        self._undo: dict[tuple[str, bytes], Change | None] = {}
        self._undo_mutations = 0

    # -- statements

    def begin_statement(self) -> None:
        """Mark where `undo_statement` goes back to."""
        self._undo.clear()
        self._undo_mutations = self.mutations

    def undo_statement(self) -> None:
        """Undo what was written since `begin_statement`."""
        for (name, key), change in self._undo.items():
            if change is None:
                del self.changes[name][key]
            else:
                self.changes[name][key] = change
        self._undo.clear()
        self.mutations = self._undo_mutations

    # -- reading through the overlay

    def get(self, table: Table, key: bytes) -> Row | None:
        """Return a row as this transaction sees it."""
        change = self.changes.get(table.name.lower(), {}).get(key)
        return self.base.get(table, key) if change is None else change.after

    def scan(self, table: Table, start: bytes, end: bytes) -> Iterator[tuple[bytes, Row]]:
        """Yield rows in order as this transaction sees them. It must not change the table meanwhile."""
        changes = self.changes.get(table.name.lower())
        if not changes:
            yield from self.base.scan(table, start, end)
            return
        ours = sorted(key for key in changes if start <= key < end)
        at = 0
        for key, row in self.base.scan(table, start, end):
            while at < len(ours) and ours[at] < key:
                if (after := changes[ours[at]].after) is not None:
                    yield ours[at], after
                at += 1
            if at < len(ours) and ours[at] == key:
                continue  # ours is next in the loop above, or below
            yield key, row
        for key in ours[at:]:
            if (after := changes[key].after) is not None:
                yield key, after

    def default(self, column: Column) -> Stored:
        """Return a column's default, NULL without one."""
        return self._default(column) if column.default is not None and self._default is not None else None

    # -- writing

    def write(
        self, table: Table, operation: Operation, columns: Sequence[Column], values: Sequence[Stored]
    ) -> bytes:
        """Apply one row of a mutation; `values` at rest, lengths not yet checked. Returns the row's key."""
        self._count(len(columns))
        given = dict(zip([column.name.lower() for column in columns], values, strict=True))
        for column in columns:
            value = given[column.name.lower()]
            if value is not None and column.type.kind in {"STRING", "BYTES"}:
                check_length(column.type, value, f"{table.name}.{column.name}")
        key = self.key_of(table, given, operation)
        change = self._change(table, key)
        current = change.after
        if operation == "insert" and current is not None:
            raise StoreError(
                "ALREADY_EXISTS", f"Row {shown_key(table, given)} in table {table.name} already exists"
            )
        if operation == "update" and current is None:
            raise not_found(f"Row {shown_key(table, given)} in table {table.name} not found.")
        if current is None or operation == "replace":
            if current is not None:
                self._check_children(table, key, delete=True)
            self._insert(table, key, change, given)
        else:
            row = list(current)
            for at, (name, column) in enumerate(table.columns.items()):
                if name in given:
                    self._check_null(table, column, given[name])
                    row[at] = given[name]
            change.after = tuple(row)
            change.touched.update(name for name in given if not table.is_key(table.columns[name]))
        return key

    def delete(self, table: Table, key: bytes) -> bool:
        """Delete a row and what is interleaved in it; tell whether there was one."""
        change = self._change(table, key)
        if change.after is None:
            return False
        self._count(1)
        change.after = None
        change.fresh = False
        change.touched.clear()
        self._check_children(table, key, delete=True)
        return True

    def delete_range(self, table: Table, start: bytes, end: bytes) -> int:
        """Delete every row of a range; return how many there were."""
        self._count(1)
        doomed = [key for key, _ in self.scan(table, start, end)]
        for key in doomed:
            self.delete(table, key)
        return len(doomed)

    def put(self, table: Table, key: bytes, row: Row) -> None:
        """Have a row be exactly this, with no rule checked: what another store has committed."""
        change = self._change(table, key)
        change.fresh = change.before is None
        change.after = row
        change.touched.update(table.columns)

    # -- rules

    def _count(self, columns: int) -> None:
        self.mutations += columns
        if self.mutations > MAX_MUTATIONS:
            raise invalid(
                f"The transaction contains too many mutations. Insert and update operations count with the "
                f"multiplicity of the number of columns they affect; the limit is {MAX_MUTATIONS}."
            )

    def _change(self, table: Table, key: bytes) -> Change:
        changes = self.changes.setdefault(table.name.lower(), {})
        change = changes.get(key)
        name = (table.name.lower(), key)
        if name not in self._undo:
            self._undo[name] = None if change is None else change.copy()
        if change is None:
            change = changes[key] = Change(self.base.get(table, key))
        return change

    def key_of(self, table: Table, given: dict[str, Stored], operation: Operation) -> bytes:
        """Return the key of a row to be written; defaults that it needs are put into `given`."""
        values: list[Stored] = []
        for part in table.key:
            name = part.name.lower()
            column = table.columns[name]
            if name not in given and column.default is not None and operation != "update":
                given[name] = self.default(column)
            if name not in given and column.not_null:
                raise precondition(
                    f"A new row in table {table.name} does not specify a non-null value for "
                    f"NOT NULL column: {part.name}"
                )
            value = given.get(name)
            self._check_null(table, column, value)
            if value == COMMIT_TIMESTAMP and part.type.kind == "TIMESTAMP":
                raise precondition(
                    f"PENDING_COMMIT_TIMESTAMP() in the key column {part.name} is not supported in DML"
                )
            values.append(value)
        return keys.encode(table.key, values)

    def _check_null(self, table: Table, column: Column, value: Stored) -> None:
        if value is None and column.not_null:
            raise precondition(
                f"Cannot specify a null value for column: {table.name}.{column.name} in table: {table.name}"
            )
        if value == COMMIT_TIMESTAMP and column.type.kind == "TIMESTAMP" and not column.commit_timestamp:
            raise no_commit_timestamp(table, column)

    def _insert(self, table: Table, key: bytes, change: Change, given: dict[str, Stored]) -> None:
        if table.parent is not None:
            parent = self.catalog.table(table.parent)
            above = keys.encode(parent.key, [given.get(part.name.lower()) for part in table.key[: len(parent.key)]])
            if self.get(parent, above) is None:
                raise not_found(
                    f"Insert failed because key was not found in parent table:  Parent Table: {parent.name}  "
                    f"Child Table: {table.name}  Key: {shown_key(parent, given)}"
                )
        row: list[Stored] = []
        for name, column in table.columns.items():
            if name in given:
                self._check_null(table, column, given[name])
                row.append(given[name])
                continue
            value = self.default(column)
            if value is None and column.not_null:
                raise precondition(
                    f"A new row in table {table.name} does not specify a non-null value for "
                    f"NOT NULL column: {column.name}"
                )
            row.append(value)
        change.after = tuple(row)
        change.fresh = True
        change.touched.clear()

    def _check_children(self, table: Table, key: bytes, *, delete: bool) -> None:
        for child in self.catalog.children(table):
            rows = self.scan(child, key, keys.end_of(key))
            if child.cascade and delete:
                for below in [row_key for row_key, _ in rows]:
                    self.delete(child, below)
            elif next(rows, None) is not None:
                raise precondition(
                    "Delete failed because one or more keys exist within the child table:  "
                    f"Parent Table: {table.name}  Child Table: {child.name}"
                )

    def check_unique(self) -> None:
        """Refuse two rows with one key of a UNIQUE index. ALREADY_EXISTS."""
        for name, changes in self.changes.items():
            table = self.catalog.tables[name]
            for index in self.catalog.indexes_of(table):
                if index.unique:
                    self._check_index(table, index, changes)

    def _check_index(self, table: Table, index: Index, changes: dict[bytes, Change]) -> None:
        positions = table.positions()
        at = [positions[part.name.lower()] for part in index.parts]
        ours: dict[bytes, bytes] = {}
        for key, change in changes.items():
            if change.after is None or change.kind() is None:
                continue
            values = [change.after[position] for position in at]
            if index.null_filtered and None in values:
                continue
            entry = keys.encode(index.parts, values)
            twin = ours.setdefault(entry, key)
            if twin == key:
                for _, other in self.base.entries(index, entry, keys.end_of(entry)):
                    if other != key and other not in changes:
                        twin = other
            if twin != key:
                raise StoreError(
                    "ALREADY_EXISTS", f"UNIQUE violation on index {index.name}, duplicate key: {values}."
                )
        # A row that was there, is in `changes`, and still has the entry after them is in `ours` only if it changed
        # in kind; rows looked at and left alone must count too.
        for key, change in changes.items():
            if change.kind() is None and change.after is not None:
                entry = keys.encode(index.parts, [change.after[position] for position in at])
                if ours.get(entry, key) != key:
                    raise StoreError("ALREADY_EXISTS", f"UNIQUE violation on index {index.name}, duplicate key.")


def index_entry(table: Table, index: Index, row: Row) -> bytes | None:
    """Return the row's entry in an index, None if the index leaves it out."""
    positions = table.positions()
    values = [row[positions[part.name.lower()]] for part in index.full]
    if index.null_filtered and None in values[: len(index.parts)]:
        return None
    return keys.encode(index.full, values)


def no_commit_timestamp(table: Table, column: Column) -> StoreError:
    """Return the error for a commit timestamp where the column does not take one."""
    return precondition(
        "Cannot write commit timestamp because the allow_commit_timestamp column option is not set to true for "
        f"column {table.name}.{column.name}, or for all corresponding shared key columns in this table's "
        "interleaved table hierarchy."
    )


def shown_key(table: Table, given: dict[str, Stored]) -> str:
    """Return the key's values for a message."""
    return str([given.get(part.name.lower()) for part in table.key])[:256]


def sorted_changes(changes: dict[bytes, Change]) -> list[tuple[bytes, Change]]:
    """Return what really changed, by key."""
    real = [(key, change) for key, change in changes.items() if change.kind() is not None]
    return sorted(real, key=lambda item: item[0])
