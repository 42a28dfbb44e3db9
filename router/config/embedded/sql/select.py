"""Queries: a syntax tree to a plan, a plan to rows.

    scan → join … → WHERE → [GROUP BY → HAVING] → select list → [DISTINCT] → [ORDER BY] → OFFSET, LIMIT

Joins hash the right table by the equations in ON; groups, sorts and hashes hold at most `MAX_SQL_ROWS` rows.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

from router.config.embedded.datatypes import INT64, Type
from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.limits import MAX_SQL_ROWS
from router.config.embedded.sql import aggregates, ast, information
from router.config.embedded.sql.expressions import Compiler, Context, GroupCompiler, Scope
from router.config.embedded.sql.sources import TICK, Row, Source, View, conjuncts, key_ranges
from router.config.embedded.sql.typed import Typed, coerce, require, to_rest, unify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Column(NamedTuple):
    """One of a query's results: `run` gives its value at rest, of a row of FROM or of a group.

    `place`: where it stands in a row of FROM if it is a column as it is.
    """

    name: str
    type: Type
    run: Callable[[Row], Any]
    node: ast.Expression
    place: int | None = None


class _Order(NamedTuple):
    place: int  # in the row that is sorted: results first, then the expressions that are only sorted by
    descending: bool
    key: Callable[[Any], tuple[Any, ...]]


class Query:
    """A checked query. `fields` are its results; `rows` may be run once."""

    def __init__(self, view: View, select: ast.Select, context: Context) -> None:
        self._view = view
        self._select = select
        self.scope = Scope()
        self._compiler: Compiler = Compiler(self.scope, context)
        self._sources: list[Source] = []
        self._joins: list[_Join] = []
        self._from(select)
        self._where = None if select.where is None else self._base_condition(select.where, "WHERE")
        self._group: GroupCompiler | None = None
        self._check_information()
        if select.group_by or select.having is not None or _has_aggregate(select):
            self._group = GroupCompiler(self._compiler, [self._group_item(node) for node in select.group_by])
        self._over: Compiler = self._group or self._compiler
        self.columns = project(self._over, select.items, grouped=self._group is not None)
        self._having = None
        if select.having is not None:
            self._having = self._over.condition(self._unaliased(select.having), "HAVING")
        if select.distinct:
            for column in self.columns:
                if column.type.kind in {"JSON", "ARRAY"}:
                    raise invalid(
                        f"Column {column.name} of type {column.type.name()} cannot be used in SELECT DISTINCT"
                    )
        self._extra: list[Callable[[Row], Any]] = []
        self._order = [self._order_item(item) for item in select.order_by]
        self._limit = self._count(select.limit, "LIMIT")
        self._offset = self._count(select.offset, "OFFSET") or 0

    @property
    def fields(self) -> list[tuple[str, Type]]:
        """Names and types of the results."""
        return [(column.name, column.type) for column in self.columns]

    # -- planning

    def _from(self, select: ast.Select) -> None:
        if select.table is None:
            if select.where is not None:
                raise invalid("Query without FROM clause cannot have a WHERE clause")
            if select.group_by or select.having is not None or select.order_by:
                raise invalid("Query without FROM clause cannot have GROUP BY, HAVING or ORDER BY")
            return
        self._add(select.table)
        for join in select.joins:
            start = self.scope.width
            source = self._add(join.table)
            self._joins.append(_Join(source, join, start, self._compiler))

    def _add(self, ref: ast.TableRef) -> Source:
        source = Source(self._view, ref)
        self.scope.add(source.alias, source.columns)
        self._sources.append(source)
        return source

    def _base_condition(self, node: ast.Expression, clause: str) -> Callable[[Row], Any]:
        return self._compiler.condition(node, clause)

    def _check_information(self) -> None:
        for source in self._sources:
            if source.table is None:
                if len(self._sources) > 1:
                    raise unsupported("a JOIN with INFORMATION_SCHEMA")
                information.check(source.name, conjuncts(self._select.where))

    def _alias(self, node: ast.Expression) -> ast.Expression | None:
        """Return what a name in GROUP BY or ORDER BY stands for if it is an alias of the select list."""
        if not isinstance(node, ast.Name) or len(node.path) != 1:
            return None
        found = [
            item.expression
            for item in self._select.items
            if item.alias is not None and item.alias.lower() == node.path[0]
        ]
        if not found:
            return None
        if len(found) > 1:
            raise invalid(f"Name {node.shown} is ambiguous")
        slots = [
            slot for slots in self.scope.tables.values() for slot in slots if slot.name.lower() == node.path[0]
        ]
        if slots and not (isinstance(found[0], ast.Name) and found[0].path[-1] == node.path[0]):
            raise unsupported(f"the name {node.shown}, which is a column and an alias of something else,")
        return found[0]

    def _unaliased(self, node: Any) -> Any:
        """Return an expression of HAVING or ORDER BY with the aliases in it replaced."""
        if isinstance(node, ast.Name):
            return self._alias(node) or node
        if isinstance(node, tuple):
            return tuple(self._unaliased(item) for item in node)
        if hasattr(node, "__dataclass_fields__"):
            changes = {name: self._unaliased(getattr(node, name)) for name in node.__dataclass_fields__}
            return dataclasses.replace(node, **changes)
        return node

    def _ordinal(self, node: ast.Expression, clause: str) -> int | None:
        if not isinstance(node, ast.Literal):
            return None
        if node.kind != "INT64":
            raise invalid(f"Cannot {clause} literal values")
        assert isinstance(node.value, int)
        return node.value

    def _group_item(self, node: ast.Expression) -> ast.Expression:
        number = self._ordinal(node, "GROUP BY")
        if number is not None:
            if any(isinstance(item.expression, ast.Star) for item in self._select.items):
                raise unsupported("GROUP BY with a number and *")
            if not 1 <= number <= len(self._select.items):
                raise invalid(f"GROUP BY is out of SELECT column number range: {number}")
            return self._select.items[number - 1].expression
        return self._alias(node) or node

    def _order_item(self, item: ast.OrderItem) -> _Order:
        node = item.expression
        number = self._ordinal(node, "ORDER BY")
        if number is not None:
            if not 1 <= number <= len(self.columns):
                raise invalid(f"ORDER BY is out of SELECT column number range: {number}")
            place = number - 1
        else:
            node = self._unaliased(node)
            same = [at for at, column in enumerate(self.columns) if _same(self.scope, column.node, node)]
            if same:
                place = same[0]
            elif self._select.distinct:
                raise invalid(
                    "ORDER BY clause expression references a column which is not visible after SELECT DISTINCT"
                )
            else:
                typed = self._over.value(node)
                self._extra.append(_at_rest(typed))
                return _order(len(self.columns) + len(self._extra) - 1, item, typed.type or INT64)
        return _order(place, item, self.columns[place].type)

    def _count(self, node: ast.Expression | None, clause: str) -> int | None:
        if node is None:
            return None
        typed = None
        if isinstance(node, ast.Literal | ast.Param):
            typed = coerce(self._compiler.compile(node), INT64)
        if typed is None or not isinstance(typed.value, int) or typed.value < 0:
            raise invalid(f"{clause} expects a non-negative integer literal or parameter")
        return typed.value

    # -- running

    def rows(self) -> Iterator[Row | None]:
        """Yield the results, values at rest, and ticks."""
        source = self._grouped() if self._group is not None else self._filtered()
        found = self._projected(source)
        if self._select.distinct:
            found = _distinct(found)
        if self._order:
            found = self._sorted(found)
        return self._sliced(found)

    def _filtered(self) -> Iterator[Row | None]:
        if not self._sources:
            yield ()
            return
        first = self._sources[0]
        ranges = None
        if first.table is not None:
            ranges = key_ranges(first.table, first.alias, self._select.where, self._compiler)
        rows = first.rows(ranges)
        for join in self._joins:
            rows = join.run(rows)
        if self._where is None:
            yield from rows
            return
        where = self._where
        for row in rows:
            if row is TICK or where(row):
                yield row

    def _grouped(self) -> Iterator[Row | None]:
        group = self._group
        assert group is not None
        runs = [key.run for key in group.keys]
        states: dict[Row, tuple[Row, list[list[Any]]]] = {}
        for row in self._filtered():
            if row is TICK:
                yield TICK
                continue
            values = tuple(run(row) for run in runs)
            key = tuple("NaN" if isinstance(value, float) and math.isnan(value) else value for value in values)
            state = states.get(key)
            if state is None:
                state = states[key] = (values, [aggregate.start() for aggregate in group.aggregates])
                _check_size(len(states))
            for aggregate, own in zip(group.aggregates, state[1], strict=True):
                aggregate.add(own, row)
        if not states and not self._select.group_by:
            states[()] = ((), [aggregate.start() for aggregate in group.aggregates])
        for values, own_states in states.values():
            results = tuple(a.result(own) for a, own in zip(group.aggregates, own_states, strict=True))
            row = values + results
            if self._having is None or self._having(row):
                yield row

    def _projected(self, rows: Iterator[Row | None]) -> Iterator[Row | None]:
        places = [column.place for column in self.columns if column.place is not None]
        if len(places) == len(self.columns) > 1 and not self._extra and self._group is None:
            pick = operator.itemgetter(*places)
            for row in rows:
                yield TICK if row is TICK else pick(row)
            return
        runs = [column.run for column in self.columns] + self._extra
        for row in rows:
            yield TICK if row is TICK else tuple([run(row) for run in runs])

    def _sorted(self, rows: Iterator[Row | None]) -> Iterator[Row | None]:
        held: list[Row] = []
        for row in rows:
            if row is TICK:
                yield TICK
            else:
                held.append(row)
                _check_size(len(held))
        for order in reversed(self._order):
            place, key = order.place, order.key
            held.sort(key=lambda row: key(row[place]), reverse=order.descending)
        yield from held

    def _sliced(self, rows: Iterator[Row | None]) -> Iterator[Row | None]:
        width = len(self.columns)
        skip, left = self._offset, self._limit
        cut = bool(self._extra)
        if left == 0:
            return
        for row in rows:
            if row is TICK:
                yield TICK
            elif skip:
                skip -= 1
            else:
                yield row[:width] if cut else row
                if left is not None:
                    left -= 1
                    if not left:
                        return


class _Join:
    """One JOIN, to the right of what is there already."""

    def __init__(self, source: Source, join: ast.Join, start: int, compiler: Compiler) -> None:
        self._source = source
        self._start = start
        self._outer = join.outer
        self._empty = (None,) * len(source.columns)
        self._on = None if join.on is None else compiler.condition(join.on, "ON")
        self._left: list[Callable[[Row], Any]] = []
        self._right: list[Callable[[Row], Any]] = []
        for test in conjuncts(join.on):
            if isinstance(test, ast.Binary) and test.op == "=":
                self._equation(test, compiler)

    def _equation(self, test: ast.Binary, compiler: Compiler) -> None:
        sides = []
        for node in (test.left, test.right):
            slots = {compiler.scope.find(name).at for name in _names(node)}
            right = {at >= self._start for at in slots}
            if len(right) != 1:
                return
            sides.append((right.pop(), compiler.value(node)))
        if {sides[0][0], sides[1][0]} != {True, False}:
            return
        type_ = unify([sides[0][1], sides[1][1]])
        if type_ is None or type_.kind == "FLOAT64":  # NaN: left to the condition itself
            return
        for is_right, typed in sides:
            (self._right if is_right else self._left).append(require(typed, type_, "=").run)

    def run(self, rows: Iterator[Row | None]) -> Iterator[Row | None]:
        """Yield joined rows and ticks."""
        table: dict[Row, list[Row]] = {}
        padding = (None,) * self._start
        count = 0
        for right in self._source.rows(None):
            if right is TICK:
                yield TICK
                continue
            key = tuple(run(padding + right) for run in self._right)
            if None in key:
                continue  # equals nothing
            table.setdefault(key, []).append(right)
            count += 1
            _check_size(count)
        on, left_key, worked = self._on, self._left, 0
        for left in rows:
            if left is TICK:
                yield TICK
                continue
            matched = False
            for right in table.get(tuple([run(left) for run in left_key]), ()):
                worked += 1
                if worked % 1024 == 0:
                    yield TICK
                row = left + right
                if on is None or on(row):
                    matched = True
                    yield row
            if self._outer and not matched:
                yield left + self._empty


def project(compiler: Compiler, items: Sequence[ast.Item], *, grouped: bool = False) -> list[Column]:
    """Return the columns of a select list or of THEN RETURN."""
    columns: list[Column] = []
    for item in items:
        node = item.expression
        if isinstance(node, ast.Star):
            tables = compiler.scope.tables
            if node.table is not None and node.table not in tables:
                raise invalid(f"Unrecognized name: {node.table}")
            if not tables:
                raise invalid("SELECT * must have a FROM clause")
            for alias, slots in tables.items():
                if node.table in {None, alias}:
                    for slot in slots:
                        name = ast.Name((alias, slot.name.lower()), slot.name)
                        columns.append(_column(compiler, name, slot.name, grouped=grouped))
            continue
        name_ = item.alias or (node.shown if isinstance(node, ast.Name) else "")
        columns.append(_column(compiler, node, name_, grouped=grouped))
    return columns


def _column(compiler: Compiler, node: ast.Expression, name: str, *, grouped: bool) -> Column:
    typed = compiler.value(node)
    type_ = typed.type or INT64
    if isinstance(node, ast.Name) and not grouped:
        slot = compiler.scope.find(node)
        if slot.check is None:
            # Straight from the row, at rest as it is.
            return Column(name, type_, operator.itemgetter(slot.at), node, slot.at)
    return Column(name, type_, _at_rest(typed), node)


def _at_rest(typed: Typed) -> Callable[[Row], Any]:
    type_, run = typed.type or INT64, typed.run
    if type_.kind in {"FLOAT64", "ARRAY", "BOOL"}:
        return lambda row: to_rest(type_, run(row))
    return run


def _same(scope: Scope, a: ast.Expression, b: ast.Expression) -> bool:
    if isinstance(a, ast.Name) and isinstance(b, ast.Name):
        return scope.find(a).at == scope.find(b).at
    return a == b


def _names(node: Any) -> Iterator[ast.Name]:
    if isinstance(node, ast.Name):
        yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from _names(item)
    elif hasattr(node, "__dataclass_fields__"):
        for field in node.__dataclass_fields__:
            yield from _names(getattr(node, field))


def _has_aggregate(select: ast.Select) -> bool:
    def within(node: Any) -> bool:
        if isinstance(node, ast.Call) and node.name in aggregates.NAMES:
            return True
        if isinstance(node, tuple):
            return any(within(item) for item in node)
        if hasattr(node, "__dataclass_fields__"):
            return any(within(getattr(node, field)) for field in node.__dataclass_fields__)
        return False

    return within(select.items) or within(select.order_by)


def _order(place: int, item: ast.OrderItem, type_: Type) -> _Order:
    if type_.kind in {"JSON", "ARRAY"}:
        raise invalid(f"ORDER BY does not support expressions of type {type_.name()}")
    return _Order(place, item.descending, _float_key if type_.kind == "FLOAT64" else _key)


def _key(value: Any) -> tuple[Any, ...]:
    return (0,) if value is None else (2, value)


def _float_key(value: Any) -> tuple[Any, ...]:
    return (0,) if value is None else (1,) if value == "NaN" else (2, value)


def _distinct(rows: Iterator[Row | None]) -> Iterator[Row | None]:
    seen: set[Row] = set()
    for row in rows:
        if row is TICK:
            yield TICK
        elif row not in seen:
            seen.add(row)
            _check_size(len(seen))
            yield row


def _check_size(rows: int) -> None:
    if rows > MAX_SQL_ROWS:
        raise StoreError("RESOURCE_EXHAUSTED", f"limit MAX_SQL_ROWS: a query holds more than {MAX_SQL_ROWS} rows")
