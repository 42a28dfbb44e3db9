"""Operators on typed operands: comparison, arithmetic, LIKE."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded.datatypes import BOOL, FLOAT64, INT64, SCALARS, STRING, Type
from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.sql import functions
from router.config.embedded.sql.typed import Typed, coerce, require, shown, unify

if TYPE_CHECKING:
    from collections.abc import Callable

Row = tuple[Any, ...]
COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def comparable(op: str, operands: list[Typed]) -> Type:
    """Return the type that all operands are compared in. INVALID_ARGUMENT."""
    type_ = unify(operands)
    if type_ is None:
        types = ", ".join(shown(operand) for operand in operands)
        raise invalid(
            f"No matching signature for operator {op} for argument types: {types}. "
            f"Supported signature: ANY {op} ANY"
        )
    if type_.kind in {"JSON", "ARRAY"}:
        raise invalid(f"{op} is not defined for arguments of type {type_.name()}")
    return type_


def comparison(op: str, left: Typed, right: Typed) -> Typed:
    """Return = != < <= > >= of two operands."""
    if (left.type is None and left.constant) or (right.type is None and right.constant):
        raise invalid(f"Operands of {op} cannot be literal NULL")
    type_ = comparable(op, [left, right])
    a, b = require(left, type_, f"The operand of {op}").run, require(right, type_, f"The operand of {op}").run
    compare = COMPARE[op]

    def run(row: Row) -> Any:
        x, y = a(row), b(row)
        return None if x is None or y is None else compare(x, y)

    return Typed(BOOL, run)


def arithmetic(op: str, left: Typed, right: Typed) -> Typed:
    """Return + - * / of two operands, which fail rather than overflow."""
    type_ = unify([left, right])
    if type_ == STRING and (left.wire is not None or right.wire is not None):
        type_ = INT64  # untyped parameters, which the wire writes as text
    if type_ not in {INT64, FLOAT64} or (left.pending or right.pending):
        raise invalid(
            f"No matching signature for operator {op} for argument types: {shown(left)}, {shown(right)}. "
            f"Supported signatures: INT64 {op} INT64; FLOAT64 {op} FLOAT64"
        )
    if op == "/":
        type_ = FLOAT64
    pair = [require(operand, type_, f"The operand of {op}") for operand in (left, right)]
    if op == "/":

        def divide(a: float, b: float) -> float:
            if b == 0:
                raise StoreError("OUT_OF_RANGE", f"division by zero: {a} / {b}")
            return functions.check_float64(a / b, a, b, f"{a} / {b}")

        return functions.strict(FLOAT64, pair, divide)
    apply = {"+": operator.add, "-": operator.sub, "*": operator.mul}[op]
    if type_ == INT64:
        return functions.strict(INT64, pair, lambda a, b: functions.check_int64(apply(a, b), f"{a} {op} {b}"))
    return functions.strict(FLOAT64, pair, lambda a, b: functions.check_float64(apply(a, b), a, b, f"{a} {op} {b}"))


def like(left: Typed, right: Typed) -> Typed:
    """Return LIKE."""
    text, pattern = coerce(left, STRING), coerce(right, STRING)
    if text is None or pattern is None:
        if coerce(left, SCALARS["BYTES"]) is not None:
            raise unsupported("LIKE of BYTES")
        raise invalid(f"No matching signature for operator LIKE for argument types: {shown(left)}, {shown(right)}")
    if pattern.constant and pattern.value is not None:
        match = _pattern(pattern.value)
        run = text.run
        return Typed(BOOL, lambda row: None if (value := run(row)) is None else match(value) is not None)
    return functions.strict(BOOL, [text, pattern], lambda value, like: _pattern(like)(value) is not None)


def _pattern(like: str) -> Callable[[str], Any]:
    parts: list[str] = []
    at = 0
    while at < len(like):
        char = like[at]
        if char == "\\":
            at += 1
            if at == len(like):
                raise StoreError("OUT_OF_RANGE", "LIKE pattern ends with a backslash")
            parts.append(re.escape(like[at]))
        else:
            parts.append(".*" if char == "%" else "." if char == "_" else re.escape(char))
        at += 1
    # Neighbouring %s would make the match slow without making it different.
    return re.compile(re.sub(r"(?:\.\*)+", ".*", "".join(parts)), re.DOTALL).fullmatch
