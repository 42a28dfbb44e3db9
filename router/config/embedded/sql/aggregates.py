"""COUNT, MIN, MAX, SUM and AVG. NULLs are left out; of nothing, COUNT is 0 and the others are NULL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded.datatypes import FLOAT64, INT64, Type
from router.config.embedded.errors import invalid
from router.config.embedded.sql import ast
from router.config.embedded.sql.functions import check_float64, check_int64, no_signature

if TYPE_CHECKING:
    from router.config.embedded.sql.expressions import Compiler, Row
    from router.config.embedded.sql.typed import Typed

NAMES: Final = frozenset({"COUNT", "MIN", "MAX", "SUM", "AVG"})


class Aggregate:
    """One aggregate of a query; a group keeps its own state, made by `start`."""

    def __init__(self, name: str, argument: Typed | None, type_: Type, *, distinct: bool) -> None:
        self.name = name
        self.argument = argument
        self.type = type_
        self.distinct = distinct

    def start(self) -> list[Any]:
        """Return the state of an empty group: [count, value, values seen, was one infinite]."""
        return [0, None, set() if self.distinct else None, False]

    def add(self, state: list[Any], row: Row) -> None:
        """Take a row into a group."""
        if self.argument is None:
            state[0] += 1
            return
        value = self.argument.run(row)
        if value is None:
            return
        if state[2] is not None:
            # NaN is one value here, although it equals nothing.
            key = "NaN" if isinstance(value, float) and math.isnan(value) else value
            if key in state[2]:
                return
            state[2].add(key)
        state[0] += 1
        if self.name == "COUNT":
            return
        if isinstance(value, float) and not math.isfinite(value):
            state[3] = True
        if state[1] is None:
            state[1] = value
        elif self.name in {"SUM", "AVG"}:
            state[1] += value
        elif isinstance(value, float) and (math.isnan(value) or math.isnan(state[1])):
            state[1] = math.nan
        elif (value < state[1]) is (self.name == "MIN"):
            state[1] = value

    def result(self, state: list[Any]) -> Any:
        """Return the aggregate of a group. OUT_OF_RANGE."""
        count, value, _, infinite = state
        if self.name == "COUNT":
            return count
        if value is None:
            return None
        if self.name == "SUM" and self.type == INT64:
            return check_int64(value, "SUM")
        if self.name in {"SUM", "AVG"} and isinstance(value, float) and not infinite:
            check_float64(value, 0.0, 0.0, self.name)
        return value / count if self.name == "AVG" else value


def make(node: ast.Call, below: Compiler) -> Aggregate:
    """Return the aggregate of a call. INVALID_ARGUMENT."""
    if len(node.arguments) != 1:
        raise invalid(f"No matching signature for aggregate function {node.name}")
    if isinstance(node.arguments[0], ast.Star):
        return Aggregate(node.name, None, INT64, distinct=False)
    argument = below.value(node.arguments[0])
    if (
        argument.type is not None
        and argument.type.kind in {"JSON", "ARRAY"}
        and (node.name != "COUNT" or node.distinct)
    ):
        raise no_signature(node.name, [argument])
    if node.name == "COUNT":
        return Aggregate(node.name, argument, INT64, distinct=node.distinct)
    type_ = argument.type or INT64
    if node.name in {"SUM", "AVG"} and type_ not in {INT64, FLOAT64}:
        raise no_signature(node.name, [argument])
    return Aggregate(node.name, argument, FLOAT64 if node.name == "AVG" else type_, distinct=node.distinct)
