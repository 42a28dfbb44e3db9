"""Where rows come from: tables of a snapshot or of a transaction, and INFORMATION_SCHEMA.

Generators here and in select.py yield rows, and now and then `TICK`, which is passed on up to whoever can give the
event loop its turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import keys
from router.config.embedded.errors import StoreError, invalid
from router.config.embedded.sql import ast, information
from router.config.embedded.sql.typed import coerce
from router.config.embedded.transactions import check_pending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.config.embedded.catalog import KeyPart, Table
    from router.config.embedded.database import Database
    from router.config.embedded.datatypes import Type
    from router.config.embedded.keys import Range
    from router.config.embedded.sql.expressions import Compiler
    from router.config.embedded.sql.typed import Typed
    from router.config.embedded.transactions import ReadWrite

TICK: Final = None
_EVERY: Final = 512  # rows between two ticks
_MAX_POINTS: Final = 1_000  # keys that a WHERE clause may name before the table is scanned instead

Row = tuple[Any, ...]


class View(NamedTuple):
    """What a statement reads: a snapshot, or a read-write transaction with what it changed so far."""

    database: Database
    at: int
    transaction: ReadWrite | None = None

    def scan(self, table: Table, ranges: list[Range]) -> Iterator[tuple[bytes, Row] | None]:
        """Yield (key, row) of a table, in order, and ticks."""
        if self.transaction is not None and self.transaction.written is not None:
            workspace = self.transaction.workspace
            rows: Iterator[tuple[bytes, Row]] = (
                item for start, end in ranges for item in workspace.scan(table, start, end)
            )
        else:
            if self.transaction is not None:
                self.transaction.note(table, ranges)
            rows = self.database.scan(table, ranges, self.at)
        for number, item in enumerate(rows, 1):
            yield item
            if number % _EVERY == 0:
                yield TICK


class Source:
    """One table of FROM. `columns`: name, type, and what checks a value that is read."""

    def __init__(self, view: View, ref: ast.TableRef) -> None:
        self._view = view
        self.table: Table | None = None
        self.columns: list[tuple[str, Type, Callable[[Any], None] | None]]
        self._rows: list[Row] = []
        self.alias = ref.alias or ref.name
        if ref.schema is not None:
            self.columns, self._rows = information.table(view.database, ref.schema, ref.name)
            self.name = ref.name
            return
        try:
            table = view.database.catalog.table(ref.name)
        except StoreError:
            raise invalid(f"Table not found: {ref.name}") from None
        if ref.index is not None and ref.index.upper() != "_BASE_TABLE":
            index = view.database.catalog.indexes.get(ref.index.lower())
            if index is None or index.table.lower() != table.name.lower():
                raise invalid(f"The table {table.name} does not have a secondary index called {ref.index}.")
        self.table = table
        self.name = table.name
        overlaid = view.transaction is not None and view.transaction.written is not None
        self.columns = [
            (
                column.name,
                column.type,
                _pending(table, column.name) if overlaid and column.commit_timestamp else None,
            )
            for column in table.columns.values()
        ]

    def rows(self, ranges: list[Range] | None) -> Iterator[Row | None]:
        """Yield the rows and ticks; `ranges` None: all."""
        if self.table is None:
            yield from self._rows
            return
        for item in self._view.scan(self.table, [keys.ALL] if ranges is None else ranges):
            yield TICK if item is None else item[1]


def _pending(table: Table, name: str) -> Callable[[Any], None]:
    return lambda value: check_pending(table, name, value)


def conjuncts(node: ast.Expression | None) -> Iterator[ast.Expression]:
    """Yield the parts of a condition that all must hold."""
    stack = [node] if node is not None else []
    while stack:
        part = stack.pop()
        if isinstance(part, ast.Binary) and part.op == "AND":
            stack.extend((part.left, part.right))
        elif isinstance(part, ast.Between):
            yield ast.Binary(">=", part.operand, part.low)
            yield ast.Binary("<=", part.operand, part.high)
        elif part is not None:
            yield part


_MIRRORED: Final = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def key_ranges(table: Table, alias: str, where: ast.Expression | None, compiler: Compiler) -> list[Range]:
    """Return ranges that hold every row of which `where` is true: the condition itself must still be tested.

    Uses what the condition says of the first parts of the key, by `=` and IN, and of the next one, by < and >.
    """
    tests = [test for part in conjuncts(where) for test in _tests(part, alias, table)]
    prefixes = [b""]
    for part in table.key:
        points = _points(part, tests, compiler)
        if points is not None and len(prefixes) * len(points) <= _MAX_POINTS:
            encoded = [keys.encode_part(part, value) for value in points]
            prefixes = [prefix + end for prefix in prefixes for end in encoded]
            continue
        ranges = [_narrowed(part, prefix, tests, compiler) for prefix in prefixes]
        return keys.merged(ranges)
    return keys.merged((prefix, keys.end_of(prefix)) for prefix in prefixes)


class _Test(NamedTuple):
    column: str
    op: str
    values: tuple[ast.Expression, ...]


def _tests(node: ast.Expression, alias: str, table: Table) -> Iterator[_Test]:
    if isinstance(node, ast.Binary) and node.op in _MIRRORED:
        for name, other, op in ((node.left, node.right, node.op), (node.right, node.left, _MIRRORED[node.op])):
            if (column := _column(name, alias, table)) is not None:
                yield _Test(column, op, (other,))
    elif isinstance(node, ast.In) and node.array is None:
        column = _column(node.operand, alias, table)
        if column is not None and len(node.items) <= _MAX_POINTS:
            yield _Test(column, "=", node.items)


def _column(node: ast.Expression, alias: str, table: Table) -> str | None:
    if not isinstance(node, ast.Name) or node.path[-1] not in table.columns:
        return None
    return node.path[-1] if len(node.path) == 1 or node.path[0] == alias.lower() else None


def _constants(test: _Test, part: KeyPart, compiler: Compiler) -> list[Any] | None:
    found: list[Any] = []
    for node in test.values:
        if not isinstance(node, ast.Literal | ast.Param):
            return None
        typed: Typed | None = coerce(compiler.compile(node), part.type.plain())
        if typed is None or not typed.constant:
            return None
        if typed.value is not None:  # nothing equals NULL
            found.append(typed.value)
    return found


def _points(part: KeyPart, tests: list[_Test], compiler: Compiler) -> list[Any] | None:
    if part.type.kind == "FLOAT64":
        return None  # NaN equals nothing and has a key: not worth the care
    for test in tests:
        if test.op == "=" and test.column == part.name.lower():
            found = _constants(test, part, compiler)
            if found is not None:
                return list(dict.fromkeys(found))
    return None


def _narrowed(part: KeyPart, prefix: bytes, tests: list[_Test], compiler: Compiler) -> Range:
    low, high = prefix, keys.end_of(prefix)
    if part.type.kind == "FLOAT64":
        return low, high
    for test in tests:
        if test.op == "=" or test.column != part.name.lower():
            continue
        values = _constants(test, part, compiler)
        if not values:
            continue
        point = prefix + keys.encode_part(part, values[0])
        # Both ends are kept in: the condition is tested again.
        if test.op.startswith(">") is not part.descending:
            low = max(low, point)
        else:
            high = min(high, keys.end_of(point))
    return low, high


def table_for_writing(view: View, name: str) -> Table:
    """Return a table that DML names. INVALID_ARGUMENT."""
    table = view.database.catalog.tables.get(name.lower())
    if table is None:
        raise invalid(f"Table not found: {name}")
    return table
