"""The functions of the SQL subset.

Each takes typed arguments and returns a typed expression, or an error that says which it was given. NULL in, NULL
out, where nothing else is said.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import timestamps, values
from router.config.embedded.datatypes import BOOL, FLOAT64, INT64, STRING, TIMESTAMP, Type
from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.sql import ast
from router.config.embedded.sql.typed import Typed, coerce, constant, shown, unify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNIT_NS: Final = {
    "NANOSECOND": 1,
    "MICROSECOND": 1_000,
    "MILLISECOND": 1_000_000,
    "SECOND": 1_000_000_000,
    "MINUTE": 60_000_000_000,
    "HOUR": 3_600_000_000_000,
    "DAY": 86_400_000_000_000,
}


def no_signature(name: str, arguments: Sequence[Typed]) -> StoreError:
    """Return the error of a function for arguments it does not take."""
    types = ", ".join(shown(argument) for argument in arguments)
    return invalid(f"No matching signature for function {name} for argument types: {types}")


def strict(type_: Type, arguments: Sequence[Typed], function: Callable[..., Any]) -> Typed:
    """Return an expression that is NULL if an argument is."""
    runs = [argument.run for argument in arguments]
    if len(runs) == 1:
        (only,) = runs
        return Typed(type_, lambda row: None if (value := only(row)) is None else function(value))
    if len(runs) == 2:
        left, right = runs

        def two(row: tuple[Any, ...]) -> Any:
            a, b = left(row), right(row)
            return None if a is None or b is None else function(a, b)

        return Typed(type_, two)

    def many(row: tuple[Any, ...]) -> Any:
        given = [run(row) for run in runs]
        return None if None in given else function(*given)

    return Typed(type_, many)


def check_int64(value: int, what: str) -> int:
    """Return an INT64. OUT_OF_RANGE."""
    if values.INT64_MIN <= value <= values.INT64_MAX:
        return value
    raise StoreError("OUT_OF_RANGE", f"int64 overflow: {what}")


def check_float64(value: float, a: float, b: float, what: str) -> float:
    """Return a FLOAT64 that is finite if its operands are. OUT_OF_RANGE."""
    if math.isinf(value) and math.isfinite(a) and math.isfinite(b):
        raise StoreError("OUT_OF_RANGE", f"double overflow: {what}")
    return value


# -- text


def _texts(name: str, arguments: Sequence[Typed], count: int | None = None) -> tuple[Type, list[Typed]]:
    """Return the arguments as all STRING or all BYTES."""
    if count is None or len(arguments) == count:
        for kind in (STRING, Type("BYTES")):
            fitting = [coerce(argument, kind) for argument in arguments]
            if fitting and None not in fitting:
                return kind, [argument for argument in fitting if argument is not None]
    raise no_signature(name, arguments)


def _starts_with(arguments: list[Typed]) -> Typed:
    _, texts = _texts("STARTS_WITH", arguments, 2)
    return strict(BOOL, texts, lambda text, start: text.startswith(start))


def _ends_with(arguments: list[Typed]) -> Typed:
    _, texts = _texts("ENDS_WITH", arguments, 2)
    return strict(BOOL, texts, lambda text, end: text.endswith(end))


def _concat(arguments: list[Typed]) -> Typed:
    type_, texts = _texts("CONCAT", arguments)
    empty: Any = "" if type_ == STRING else b""
    return strict(type_, texts, lambda *parts: empty.join(parts))


def _length(arguments: list[Typed]) -> Typed:
    _, texts = _texts("LENGTH", arguments, 1)
    return strict(INT64, texts, len)


def _case_of(name: str, change: Callable[[str], str]) -> Callable[[list[Typed]], Typed]:
    def function(arguments: list[Typed]) -> Typed:
        type_, texts = _texts(name, arguments, 1)
        if type_ != STRING:
            raise unsupported(f"{name} of BYTES")

        def one(text: str) -> str:
            if not text.isascii():
                raise unsupported(f"{name} of text outside of ASCII")
            return change(text)

        return strict(STRING, texts, one)

    return function


# -- choice


def _coalesce(arguments: list[Typed]) -> Typed:
    type_ = unify(arguments) if arguments else None
    if type_ is None:
        raise no_signature("COALESCE", arguments)
    runs = [found.run for argument in arguments if (found := coerce(argument, type_)) is not None]

    def first(row: tuple[Any, ...]) -> Any:
        for run in runs:
            value = run(row)
            if value is not None:
                return value
        return None

    return Typed(type_, first)


def _ifnull(arguments: list[Typed]) -> Typed:
    if len(arguments) != 2:
        raise no_signature("IFNULL", arguments)
    return _coalesce(arguments)


def _if(arguments: list[Typed]) -> Typed:
    if len(arguments) != 3:
        raise no_signature("IF", arguments)
    condition, type_ = coerce(arguments[0], BOOL), unify(arguments[1:])
    if condition is None or type_ is None:
        raise no_signature("IF", arguments)
    yes, no = coerce(arguments[1], type_), coerce(arguments[2], type_)
    assert yes is not None
    assert no is not None
    test, then, otherwise = condition.run, yes.run, no.run
    return Typed(type_, lambda row: then(row) if test(row) else otherwise(row))


def _nullif(arguments: list[Typed]) -> Typed:
    type_ = unify(arguments) if len(arguments) == 2 else None
    if type_ is None or type_.kind in {"JSON", "ARRAY"}:
        raise no_signature("NULLIF", arguments)
    left, right = (coerce(argument, type_) for argument in arguments)
    assert left is not None
    assert right is not None
    a, b = left.run, right.run
    return Typed(type_, lambda row: None if (value := a(row)) == b(row) else value)


# -- numbers and arrays


def _abs(arguments: list[Typed]) -> Typed:
    if len(arguments) == 1 and arguments[0].type == INT64:
        return strict(INT64, arguments, lambda value: check_int64(abs(value), f"ABS({value})"))
    if len(arguments) == 1 and arguments[0].type == FLOAT64:
        return strict(FLOAT64, arguments, abs)
    raise no_signature("ABS", arguments)


def _mod(arguments: list[Typed]) -> Typed:
    fitting = [coerce(argument, INT64) for argument in arguments]
    if len(fitting) != 2 or None in fitting:
        raise no_signature("MOD", arguments)

    def mod(a: int, b: int) -> int:
        if b == 0:
            raise StoreError("OUT_OF_RANGE", f"division by zero: MOD({a}, {b})")
        return abs(a) % abs(b) * (1 if a >= 0 else -1)  # the sign of the dividend, unlike Python's

    return strict(INT64, [argument for argument in fitting if argument is not None], mod)


def _array_length(arguments: list[Typed]) -> Typed:
    if len(arguments) != 1 or arguments[0].type is None or arguments[0].type.element is None:
        raise no_signature("ARRAY_LENGTH", arguments)
    return strict(INT64, arguments, len)


FUNCTIONS: Final[dict[str, Callable[[list[Typed]], Typed]]] = {
    "STARTS_WITH": _starts_with,
    "ENDS_WITH": _ends_with,
    "CONCAT": _concat,
    "LENGTH": _length,
    "CHAR_LENGTH": _length,
    "UPPER": _case_of("UPPER", str.upper),
    "LOWER": _case_of("LOWER", str.lower),
    "COALESCE": _coalesce,
    "IFNULL": _ifnull,
    "IF": _if,
    "NULLIF": _nullif,
    "ABS": _abs,
    "MOD": _mod,
    "ARRAY_LENGTH": _array_length,
}


# -- time


def shift(name: str, moment: Typed, interval: ast.Expression, amount: Typed) -> Typed:
    """Return TIMESTAMP_ADD or TIMESTAMP_SUB."""
    at, count = coerce(moment, TIMESTAMP), coerce(amount, INT64)
    if at is None or count is None or not isinstance(interval, ast.Interval):
        raise no_signature(name, [moment, amount])
    unit = UNIT_NS.get(interval.unit)
    if unit is None:
        raise invalid(f"{name} does not support the {interval.unit} date part")
    sign = 1 if name == "TIMESTAMP_ADD" else -1

    def moved(text: str, number: int) -> str:
        try:
            return timestamps.text_of_ns(timestamps.ns_of_text(text) + sign * number * unit)
        except (ValueError, OverflowError):
            raise StoreError("OUT_OF_RANGE", f"Timestamp overflow in {name}") from None

    return strict(TIMESTAMP, [at, count], moved)


def difference(later: Typed, earlier: Typed, unit: ast.Expression) -> Typed:
    """Return TIMESTAMP_DIFF: whole units, cut towards zero."""
    a, b = coerce(later, TIMESTAMP), coerce(earlier, TIMESTAMP)
    if a is None or b is None or not isinstance(unit, ast.Unit) or unit.unit not in UNIT_NS:
        raise no_signature("TIMESTAMP_DIFF", [later, earlier])
    size = UNIT_NS[unit.unit]

    def between(x: str, y: str) -> int:
        span = timestamps.ns_of_text(x) - timestamps.ns_of_text(y)
        return check_int64(abs(span) // size * (1 if span >= 0 else -1), "TIMESTAMP_DIFF")

    return strict(INT64, [a, b], between)


# -- CAST


def cast_to(operand: Typed, kind: str) -> Typed:
    """Return CAST(operand AS kind), for the pairs whose result is certain."""
    if operand.type is None:
        if kind not in {"BOOL", "INT64", "FLOAT64", "STRING", "BYTES", "TIMESTAMP", "DATE"}:
            raise unsupported(f"CAST AS {kind}")
        return constant(Type(kind), None)  # type: ignore[arg-type]
    source = operand.type.kind
    if source == kind:
        return operand
    if (source, kind) == ("INT64", "STRING") or (source, kind) == ("DATE", "STRING"):
        return strict(STRING, [operand], str)
    if (source, kind) == ("BOOL", "STRING"):
        return strict(STRING, [operand], lambda value: "true" if value else "false")
    if (source, kind) == ("INT64", "FLOAT64"):
        return strict(FLOAT64, [operand], float)
    if (source, kind) == ("STRING", "INT64"):
        return strict(INT64, [operand], _int_of)
    if (source, kind) == ("BOOL", "INT64"):
        return strict(INT64, [operand], int)
    raise unsupported(f"CAST of {source} AS {kind}")


def _int_of(text: str) -> int:
    body = text.strip(" ")
    digits = body[1:] if body[:1] in {"-", "+"} else body
    if digits.isascii() and digits.isdigit() and values.INT64_MIN <= int(body) <= values.INT64_MAX:
        return int(body)
    raise StoreError("OUT_OF_RANGE", f"Bad int64 value: {text[:64]}")
