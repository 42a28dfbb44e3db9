"""Syntax trees to typed expressions: names to places in a row, operators with SQL's three-valued logic.

A `Compiler` works over a `Scope`. Behind GROUP BY a second one works over groups: there an expression that is
grouped by stands for its value, an aggregate for its result, and a column that is neither is an error.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import values
from router.config.embedded.datatypes import BOOL, FLOAT64, INT64, SCALARS, TIMESTAMP, Type, array_of
from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.sql import aggregates, ast, functions, operators
from router.config.embedded.sql.typed import (
    NULL,
    Params,
    Typed,
    coerce,
    constant,
    moment,
    of_rest,
    require,
    shown,
    unify,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.embedded.sql.aggregates import Aggregate

Row = tuple[Any, ...]
_PENDING: Final = (
    "The PENDING_COMMIT_TIMESTAMP() function may only be used as a value for INSERT or UPDATE of an appropriately "
    "typed column"
)


class Slot(NamedTuple):
    """A column of FROM: where it stands in a row. `check` sees each value that is read, and may raise."""

    name: str
    type: Type
    at: int
    check: Callable[[Any], None] | None = None


class Scope:
    """The tables in FROM: alias in lower case → its columns."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Slot]] = {}
        self.width = 0

    def add(self, alias: str, columns: list[tuple[str, Type, Callable[[Any], None] | None]]) -> None:
        """Add a table to the right of the others."""
        if alias.lower() in self.tables:
            raise invalid(f"Duplicate table alias {alias} in the same FROM clause")
        self.tables[alias.lower()] = [
            Slot(name, type_, self.width + at, check) for at, (name, type_, check) in enumerate(columns)
        ]
        self.width += len(columns)

    def find(self, name: ast.Name) -> Slot:
        """Return a column. INVALID_ARGUMENT if there is none, or more than one."""
        if len(name.path) == 2:
            table = self.tables.get(name.path[0])
            if table is None:
                if any(slot.name.lower() == name.path[0] for slots in self.tables.values() for slot in slots):
                    raise unsupported("a field of a column")
                raise invalid(f"Unrecognized name: {name.path[0]}")
            found = [slot for slot in table if slot.name.lower() == name.path[1]]
            if not found:
                raise invalid(f"Name {name.shown} not found inside {name.path[0]}")
        else:
            found = [slot for slots in self.tables.values() for slot in slots if slot.name.lower() == name.path[0]]
            if not found:
                if name.path[0] in self.tables:
                    raise unsupported("a whole row as a value")
                raise invalid(f"Unrecognized name: {name.shown}")
            if len(found) > 1:
                raise invalid(f"Column name {name.shown} is ambiguous")
        return found[0]


class Context(NamedTuple):
    """What a statement is run with. `now`: CURRENT_TIMESTAMP(); `writes`: PENDING_COMMIT_TIMESTAMP() is allowed."""

    params: Params
    now: str
    writes: bool = False


class Compiler:
    """Over the rows of FROM."""

    def __init__(self, scope: Scope, context: Context) -> None:
        self.scope = scope
        self.context = context

    def compile(self, node: ast.Expression) -> Typed:
        """Return the typed expression. StoreError."""
        match node:
            case ast.Literal():
                return _literal(node)
            case ast.Param():
                return self.context.params.get(node.name)
            case ast.Name():
                return self.name(node)
            case ast.Unary():
                return self._unary(node)
            case ast.Binary():
                return self._binary(node)
            case ast.In():
                return self._in(node)
            case ast.Between():
                low = ast.Binary(">=", node.operand, node.low)
                return self.compile(ast.Binary("AND", low, ast.Binary("<=", node.operand, node.high)))
            case ast.IsTest():
                return self._is_test(node)
            case ast.Call():
                return self.call(node)
            case ast.Case():
                return self._case(node)
            case ast.Cast():
                return functions.cast_to(self.compile(node.operand), node.kind)
            case ast.ArrayLiteral():
                return self._array(node)
            case ast.Interval() | ast.Unit():
                raise unsupported("an INTERVAL outside of a timestamp function")
            case ast.DefaultValue():
                raise invalid("DEFAULT is only allowed as a value of INSERT or UPDATE")
            case ast.Star():
                raise invalid("* is only allowed in a select list and in COUNT(*)")

    def condition(self, node: ast.Expression, clause: str) -> Callable[[Row], Any]:
        """Return a BOOL expression's function."""
        return require(self.compile(node), BOOL, f"{clause} clause").run

    def name(self, node: ast.Name) -> Typed:
        """Return a column."""
        slot = self.scope.find(node)
        at, check, convert = slot.at, slot.check, of_rest(slot.type)
        if check is None and convert is None:
            return Typed(slot.type.plain(), operator.itemgetter(at))

        def run(row: Row) -> Any:
            value = row[at]
            if check is not None:
                check(value)
            return value if convert is None else convert(value)

        return Typed(slot.type.plain(), run)

    def _unary(self, node: ast.Unary) -> Typed:
        operand = self.compile(node.operand)
        if node.op == "NOT":
            if operand.type is None:
                raise invalid("Operands of NOT cannot be literal NULL")
            run = require(operand, BOOL, "The operand of NOT").run
            return Typed(BOOL, lambda row: None if (value := run(row)) is None else not value)
        if operand.wire is not None:
            operand = coerce(operand, INT64) or operand
        if operand.type not in {INT64, FLOAT64}:
            raise invalid(f"No matching signature for operator {node.op} for argument type: {shown(operand)}")
        if node.op == "+":
            raise unsupported("the sign +")
        if operand.type == FLOAT64:
            return _folded(functions.strict(FLOAT64, [operand], operator.neg), operand)
        negate = functions.strict(INT64, [operand], lambda value: functions.check_int64(-value, f"-({value})"))
        return _folded(negate, operand)

    def _binary(self, node: ast.Binary) -> Typed:
        if node.op in {"AND", "OR"}:
            return self._logic(node)
        left, right = self.compile(node.left), self.compile(node.right)
        if node.op in operators.COMPARE:
            return operators.comparison(node.op, left, right)
        if node.op == "LIKE":
            return operators.like(left, right)
        if node.op == "||":
            if left.type is not None and left.type.element is not None:
                raise unsupported("|| of arrays")
            return functions.FUNCTIONS["CONCAT"]([left, right])
        return operators.arithmetic(node.op, left, right)

    def _logic(self, node: ast.Binary) -> Typed:
        # A chain of one operator is flattened: it is the one thing that is long in real queries.
        parts: list[ast.Expression] = []
        rest: ast.Expression = node
        while isinstance(rest, ast.Binary) and rest.op == node.op:
            parts.append(rest.right)
            rest = rest.left
        parts.append(rest)
        runs = [require(self.compile(part), BOOL, f"The operand of {node.op}").run for part in reversed(parts)]
        decisive = node.op == "OR"

        def run(row: Row) -> Any:
            unknown = False
            for one in runs:
                value = one(row)
                if value is None:
                    unknown = True
                elif bool(value) is decisive:
                    return decisive
            return None if unknown else not decisive

        return Typed(BOOL, run)

    def _in(self, node: ast.In) -> Typed:
        operand = self.compile(node.operand)
        if node.array is not None:
            return self._in_array(operand, node.array)
        items = [self.compile(item) for item in node.items]
        type_ = operators.comparable("IN", [operand, *items])
        operand = require(operand, type_, "The operand of IN")
        fitting = [require(item, type_, "An item of IN") for item in items]
        run = operand.run
        if all(item.constant for item in fitting) and type_ != FLOAT64:
            wanted = {item.value for item in fitting} - {None}
            missing = None if any(item.value is None for item in fitting) else False
            return Typed(BOOL, lambda row: None if (value := run(row)) is None else value in wanted or missing)
        runs = [item.run for item in fitting]

        def among(row: Row) -> Any:
            value = run(row)
            if value is None:
                return None
            unknown = False
            for one in runs:
                other = one(row)
                if other is None:
                    unknown = True
                elif other == value:
                    return True
            return None if unknown else False

        return Typed(BOOL, among)

    def _in_array(self, operand: Typed, node: ast.Expression) -> Typed:
        array = self.compile(node)
        wanted = operand.type
        if array.wire is not None and wanted is not None:
            array = coerce(array, array_of(wanted)) or array
        if array.type is None and wanted is not None:
            array = constant(array_of(wanted), None)
        if array.type is None or array.type.element is None:
            raise invalid(f"Second argument of IN UNNEST must be an array but was {shown(array)}")
        element = array.type.element
        fitting = coerce(operand, element)
        if fitting is None or element.kind == "JSON":
            raise invalid(
                "No matching signature for operator IN UNNEST for argument types: "
                f"{shown(operand)}, {array.type.name()}"
            )
        run, items_of = fitting.run, array.run

        def among(row: Row) -> Any:
            items = items_of(row)
            if not items:
                return False
            value = run(row)
            if value is None:
                return None
            if any(item is not None and item == value for item in items):  # NaN equals nothing
                return True
            return None if None in items else False

        if array.constant and element != FLOAT64 and array.value:
            wanted_values = set(array.value) - {None}
            missing = None if None in array.value else False
            return Typed(
                BOOL, lambda row: None if (value := run(row)) is None else value in wanted_values or missing
            )
        return Typed(BOOL, among)

    def _is_test(self, node: ast.IsTest) -> Typed:
        operand = self.compile(node.operand)
        if node.what == "NULL":
            run = operand.run
            return Typed(BOOL, lambda row: run(row) is None)
        test = require(operand, BOOL, f"The operand of IS {node.what}").run
        wanted = node.what == "TRUE"
        return Typed(BOOL, lambda row: (value := test(row)) is not None and bool(value) is wanted)

    def _case(self, node: ast.Case) -> Typed:
        conditions: list[Callable[[Row], Any]] = []
        for condition, _ in node.branches:
            if node.operand is not None:
                condition = ast.Binary("=", node.operand, condition)  # noqa: PLW2901
            conditions.append(self.condition(condition, "WHEN"))
        results = [self.compile(result) for _, result in node.branches]
        results.append(NULL if node.otherwise is None else self.compile(node.otherwise))
        type_ = unify(results)
        if type_ is None:
            raise functions.no_signature("CASE", results)
        runs = [require(result, type_, "A branch of CASE").run for result in results]

        def run(row: Row) -> Any:
            for condition, result in zip(conditions, runs, strict=False):
                if condition(row):
                    return result(row)
            return runs[-1](row)

        return Typed(type_, run)

    def _array(self, node: ast.ArrayLiteral) -> Typed:
        items = [self.compile(item) for item in node.items]
        type_ = unify(items)
        if type_ is None or type_.element is not None:
            raise invalid("Array elements do not have a common supertype")
        runs = [require(item, type_, "An array's element") for item in items]
        if all(item.constant for item in runs):
            return constant(array_of(type_), [item.value for item in runs])
        return Typed(array_of(type_), lambda row: [item.run(row) for item in runs])

    def call(self, node: ast.Call) -> Typed:
        """Return a function's call."""
        if node.name in aggregates.NAMES:
            raise invalid(f"Aggregate function {node.name} not allowed here")
        if node.distinct:
            raise invalid(f"Function {node.name} cannot be called with DISTINCT")
        if node.name in {"CURRENT_TIMESTAMP", "PENDING_COMMIT_TIMESTAMP"} and node.arguments:
            raise invalid(f"No matching signature for function {node.name}")
        if node.name == "CURRENT_TIMESTAMP":
            return constant(TIMESTAMP, self.context.now)
        if node.name == "PENDING_COMMIT_TIMESTAMP":
            if not self.context.writes:
                raise invalid(_PENDING)
            return dataclasses.replace(constant(TIMESTAMP, values.COMMIT_TIMESTAMP), pending=True)
        if node.name in {"TIMESTAMP_ADD", "TIMESTAMP_SUB"}:
            if len(node.arguments) != 2 or not isinstance(node.arguments[1], ast.Interval):
                raise invalid(f"No matching signature for function {node.name}")
            interval = node.arguments[1]
            return functions.shift(node.name, self.value(node.arguments[0]), interval, self.value(interval.amount))
        if node.name == "TIMESTAMP_DIFF":
            if len(node.arguments) != 3:
                raise invalid(f"No matching signature for function {node.name}")
            return functions.difference(
                self.value(node.arguments[0]), self.value(node.arguments[1]), node.arguments[2]
            )
        function = functions.FUNCTIONS.get(node.name)
        if function is None:
            raise unsupported(f"the function {node.name}")
        return function([self.value(argument) for argument in node.arguments])

    def value(self, node: ast.Expression) -> Typed:
        """Return an expression that is not the commit timestamp to be."""
        typed = self.compile(node)
        if typed.pending:
            raise invalid(_PENDING)
        return typed


class GroupCompiler(Compiler):
    """Over groups: a row is the values grouped by, then the aggregates' results."""

    def __init__(self, below: Compiler, group_by: list[ast.Expression]) -> None:
        super().__init__(below.scope, below.context)
        self._below = below
        self.keys = [below.value(node) for node in group_by]
        for key in self.keys:
            if key.type is not None and key.type.kind in {"JSON", "ARRAY"}:
                raise invalid(f"Grouping by expressions of type {key.type.name()} is not allowed")
        self._places = {self._canonical(node): at for at, node in enumerate(group_by)}
        self.aggregates: list[Aggregate] = []

    def compile(self, node: ast.Expression) -> Typed:
        """Return an expression over a group."""
        place = self._places.get(self._canonical(node)) if self._places else None
        if place is not None and not isinstance(node, ast.Literal | ast.Param):
            return Typed(self.keys[place].type or INT64, operator.itemgetter(place))
        return super().compile(node)

    def name(self, node: ast.Name) -> Typed:
        """Refuse a column that is not grouped by."""
        self.scope.find(node)
        raise invalid(
            f"SELECT list expression references column {node.shown} which is neither grouped nor aggregated"
        )

    def call(self, node: ast.Call) -> Typed:
        """Return an aggregate's result, or a function of groups."""
        if node.name not in aggregates.NAMES:
            return super().call(node)
        aggregate = aggregates.make(node, self._below)
        self.aggregates.append(aggregate)
        return Typed(aggregate.type, operator.itemgetter(len(self.keys) + len(self.aggregates) - 1))

    def _canonical(self, node: Any) -> Any:
        """Return the node with its columns replaced by their places, so that `a` and `t.a` are one."""
        if isinstance(node, ast.Name):
            try:
                return ast.Name(("", str(self.scope.find(node).at)))
            except StoreError:
                return node
        if isinstance(node, tuple):
            return tuple(self._canonical(item) for item in node)
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            changes = {f.name: self._canonical(getattr(node, f.name)) for f in dataclasses.fields(node)}
            return dataclasses.replace(node, **changes)
        return node


def _literal(node: ast.Literal) -> Typed:
    if node.kind == "NULL":
        return NULL
    if node.kind in {"TIMESTAMP", "DATE"}:
        assert isinstance(node.value, str)
        return constant(SCALARS[node.kind], moment(SCALARS[node.kind], node.value))
    if node.kind == "JSON":
        assert isinstance(node.value, str)
        try:
            return constant(SCALARS["JSON"], values.normal_json(node.value))
        except ValueError as error:
            raise invalid(f"Invalid JSON literal: {error}") from None
    return constant(SCALARS[node.kind], node.value, coercible=True)


def _folded(result: Typed, operand: Typed) -> Typed:
    return constant(result.type, result.run(()), coercible=operand.coercible) if operand.constant else result
