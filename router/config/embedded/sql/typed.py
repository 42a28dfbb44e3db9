"""Expressions that know their type, how types meet, and parameters.

Values while a query runs are as at rest (values.py), but for FLOAT64's NaN, which is a float here, and arrays,
which are lists. An expression is a function of a row, a tuple of all columns of all tables in FROM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.config.embedded import timestamps, values
from router.config.embedded.datatypes import BOOL, FLOAT64, INT64, KINDS, SCALARS, STRING, Type, array_of
from router.config.embedded.errors import invalid, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Typed:
    """`type` None: an untyped NULL. `coercible`: a literal or a parameter, which may become another type.

    `constant` tells that `run` returns `value` whatever the row. `wire`: an untyped parameter as it came.
    `pending`: the commit timestamp to be, which only an assignment may take.
    """

    type: Type | None
    run: Callable[[tuple[Any, ...]], Any]
    coercible: bool = False
    constant: bool = False
    value: Any = None
    wire: Any = None
    pending: bool = False


def constant(type_: Type | None, value: Any, *, coercible: bool = False, wire: Any = None) -> Typed:
    """Return an expression that is always this."""
    return Typed(type_, lambda _: value, coercible, constant=True, value=value, wire=wire)


NULL = constant(None, None, coercible=True)


def of_rest(type_: Type) -> Callable[[Any], Any] | None:
    """Return what turns a value at rest into one that expressions work with; None where they are the same."""
    if type_.kind == "FLOAT64":
        return lambda value: math.nan if value == "NaN" else value
    if type_.element is not None:
        element = type_.element
        inner = of_rest(element)

        def split(value: Any) -> Any:
            if value is None:
                return None
            items = values.split_array(element, value)
            return items if inner is None else [inner(item) for item in items]

        return split
    return None


def to_rest(type_: Type, value: Any) -> Any:
    """Return a value of an expression as it is stored and encoded."""
    if value is None:
        return None
    if type_.kind == "FLOAT64":
        return "NaN" if math.isnan(value) else float(value)
    if type_.kind == "BOOL":
        return int(value)
    if type_.element is not None:
        return values.join_array(type_.element, [to_rest(type_.element, item) for item in value])
    return value


def shown(typed: Typed) -> str:
    """Return the name of a type for a message."""
    return typed.type.name() if typed.type is not None else "INT64"


def coerce(typed: Typed, wanted: Type) -> Typed | None:
    """Return the expression as another type if SQL converts it by itself, else None."""
    if typed.type == wanted:
        return typed
    if typed.type is None:
        return constant(wanted, None)
    if typed.wire is not None:
        return _coerce_wire(typed, wanted)
    if typed.type == INT64 and wanted == FLOAT64:
        if typed.constant:
            return constant(wanted, None if typed.value is None else float(typed.value))
        run = typed.run
        return Typed(wanted, lambda row: None if (value := run(row)) is None else float(value))
    if typed.coercible and typed.type == STRING and wanted.kind in {"TIMESTAMP", "DATE"}:
        return constant(wanted, None if typed.value is None else moment(wanted, typed.value))
    return None


def _coerce_wire(typed: Typed, wanted: Type) -> Typed | None:
    try:
        value = values.decoder(wanted)(typed.wire)
    except Exception:  # whatever the decoder says of it, it is not of that type
        return None
    if value == values.COMMIT_TIMESTAMP:
        return None
    convert = of_rest(wanted)
    return constant(wanted, convert(value) if convert else value)


def moment(type_: Type, text: str) -> str:
    """Return a TIMESTAMP or DATE that a text says. INVALID_ARGUMENT."""
    try:
        if type_.kind == "DATE":
            return timestamps.parse_date(text)
        value = timestamps.parse(text)
    except ValueError:
        raise invalid(f"Could not cast literal {text[:64]!r} to type {type_.kind}") from None
    if not timestamps.has_offset(text):
        # Spanner would take America/Los_Angeles.
        raise unsupported("a timestamp without an offset from UTC")
    return value


def unify(many: Iterable[Typed]) -> Type | None:
    """Return the one type that all can have: None if they cannot, INT64 if all are NULL."""
    several = list(many)
    fixed = {typed.type for typed in several if typed.type is not None and not typed.coercible}
    loose = {typed.type for typed in several if typed.type is not None and typed.coercible}
    candidates = [*fixed, *sorted(loose - fixed, key=lambda type_: type_ != FLOAT64)]
    if FLOAT64 in candidates:
        candidates.insert(0, FLOAT64)
    if not candidates:
        return INT64
    for candidate in candidates:
        if all(coerce(typed, candidate) is not None for typed in several):
            return candidate
    return None


def require(typed: Typed, wanted: Type, what: str) -> Typed:
    """Return the expression as `wanted`. INVALID_ARGUMENT."""
    found = coerce(typed, wanted)
    if found is None:
        raise invalid(f"{what} should return type {wanted.name()}, but returns {shown(typed)}")
    return found


def param_type(message: Any) -> Type | None:
    """Return the type of a google.spanner.v1.Type message, None for one that says nothing. UNIMPLEMENTED."""
    if message.code == 0:
        return None
    kind = KINDS.get(message.code)
    if kind is None:
        raise unsupported(f"a parameter of the type with code {message.code}")
    if kind == "ARRAY":
        element = param_type(message.array_element_type)
        if element is None or element.element is not None:
            raise unsupported("a parameter of this ARRAY type")
        return array_of(element)
    return SCALARS[kind]


class Params:
    """The parameters of a request, by lower-case name."""

    def __init__(self, fields: Mapping[str, Any], types: Mapping[str, Any]) -> None:
        self._values = {name.lower(): value for name, value in fields.items()}
        self._types = {name.lower(): type_ for name, type_ in types.items()}

    def get(self, name: str) -> Typed:
        """Return a parameter. INVALID_ARGUMENT if there is none, FAILED_PRECONDITION if it is not of its type."""
        if name not in self._values:
            raise invalid(f"Incomplete query parameters {name}")
        plain = values.plain(self._values[name])
        type_ = param_type(self._types[name]) if name in self._types else None
        if type_ is not None:
            value = values.decoder(type_)(plain)
            if value == values.COMMIT_TIMESTAMP and type_.kind == "TIMESTAMP":
                raise invalid(f"Parameter {name} is not a TIMESTAMP")
            convert = of_rest(type_)
            return constant(type_, convert(value) if convert else value, coercible=True)
        if plain is None:
            return NULL
        if isinstance(plain, list):
            # Its elements' type is known only where it is used.
            return constant(array_of(STRING), plain, coercible=True, wire=plain)
        guess = BOOL if isinstance(plain, bool) else FLOAT64 if isinstance(plain, float) else STRING
        return constant(guess, plain, coercible=True, wire=plain)
