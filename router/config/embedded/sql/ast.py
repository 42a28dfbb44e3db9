"""The syntax tree. Nodes are values: equal text, but for case and position, makes equal nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal as Choice


@dataclass(frozen=True, slots=True)
class Literal:
    """`kind` a type's name or NULL; `value` as Python has it, of STRING for TIMESTAMP, DATE and JSON."""

    kind: str
    value: int | float | str | bytes | bool | None


@dataclass(frozen=True, slots=True)
class Param:
    """@name, in lower case."""

    name: str


@dataclass(frozen=True, slots=True)
class Name:
    """A column, perhaps with the name of its table: `path` has one or two parts, in lower case for equality."""

    path: tuple[str, ...]
    shown: str = field(default="", compare=False)
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Star:
    """* or t.* in a select list."""

    table: str | None = None


@dataclass(frozen=True, slots=True)
class Unary:
    """`op`: - + NOT."""

    op: str
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary:
    """`op`: OR AND = != < <= > >= LIKE + - * / ||."""

    op: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class In:
    """x IN (…) or, with `array`, x IN UNNEST(array)."""

    operand: Expression
    items: tuple[Expression, ...]
    array: Expression | None = None


@dataclass(frozen=True, slots=True)
class Between:
    """x BETWEEN low AND high."""

    operand: Expression
    low: Expression
    high: Expression


@dataclass(frozen=True, slots=True)
class IsTest:
    """x IS NULL, TRUE or FALSE; NOT is a Unary around it."""

    operand: Expression
    what: Choice["NULL", "TRUE", "FALSE"]


@dataclass(frozen=True, slots=True)
class Call:
    """f(…); `name` in upper case. COUNT(*) has a Star."""

    name: str
    arguments: tuple[Expression, ...]
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """CASE [operand] WHEN … THEN … [ELSE …] END."""

    operand: Expression | None
    branches: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression | None


@dataclass(frozen=True, slots=True)
class Cast:
    """CAST(x AS kind)."""

    operand: Expression
    kind: str


@dataclass(frozen=True, slots=True)
class Interval:
    """INTERVAL n unit, an argument of timestamp functions only; `unit` in upper case."""

    amount: Expression
    unit: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A date part as an argument, as in TIMESTAMP_DIFF(a, b, SECOND)."""

    unit: str


@dataclass(frozen=True, slots=True)
class ArrayLiteral:
    """[…]."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class DefaultValue:
    """DEFAULT in the values of INSERT and UPDATE."""


Expression = (
    Literal
    | Param
    | Name
    | Star
    | Unary
    | Binary
    | In
    | Between
    | IsTest
    | Call
    | Case
    | Cast
    | Interval
    | Unit
    | ArrayLiteral
    | DefaultValue
)


@dataclass(frozen=True, slots=True)
class Item:
    """One of a select list."""

    expression: Expression
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table in FROM; `name` may have a schema before it: information_schema.tables."""

    name: str
    alias: str | None = None
    schema: str | None = None
    index: str | None = None  # FORCE_INDEX: checked, otherwise ignored, since it changes no answer


@dataclass(frozen=True, slots=True)
class Join:
    """`outer`: LEFT JOIN."""

    table: TableRef
    on: Expression | None
    outer: bool = False


@dataclass(frozen=True, slots=True)
class OrderItem:
    """ORDER BY … [DESC]."""

    expression: Expression
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Select:
    """A query."""

    items: tuple[Item, ...]
    table: TableRef | None = None
    joins: tuple[Join, ...] = ()
    where: Expression | None = None
    group_by: tuple[Expression, ...] = ()
    having: Expression | None = None
    order_by: tuple[OrderItem, ...] = ()
    limit: Expression | None = None
    offset: Expression | None = None
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class Insert:
    """`rows` or `query`; `mode` of INSERT OR …."""

    table: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Expression, ...], ...] = ()
    query: Select | None = None
    mode: Choice["", "IGNORE", "UPDATE"] = ""
    returning: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """UPDATE … SET … WHERE …."""

    table: TableRef
    assignments: tuple[tuple[str, Expression], ...]
    where: Expression
    returning: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE … WHERE …."""

    table: TableRef
    where: Expression
    returning: tuple[Item, ...] = ()


Statement = Select | Insert | Update | Delete
