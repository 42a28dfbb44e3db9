"""Values in three forms: on the wire (google.protobuf.Value), at rest in SQLite, and in change records (JSON).

At rest: BOOL 0 or 1 · INT64 integer · FLOAT64 real, or the text "NaN", which SQLite's reals lack · STRING text ·
BYTES blob · TIMESTAMP and DATE text (timestamps.py) · JSON its normal form · ARRAY a JSON list of the elements as
the wire writes them. NULL is NULL. A commit timestamp that is not known yet is the text `COMMIT_TIMESTAMP`, which
no TIMESTAMP at rest equals.

Decoders raise FAILED_PRECONDITION for a value that its type cannot hold, as Spanner does.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import timestamps, wire
from router.config.embedded.errors import precondition
from router.config.embedded.limits import MAX_BYTES, MAX_JSON_DEPTH, MAX_STRING_CHARS

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.embedded.datatypes import Type

Stored = int | float | str | bytes | None
COMMIT_TIMESTAMP: Final = "spanner.commit_timestamp()"
INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
_SPECIAL: Final = frozenset({"NaN", "Infinity", "-Infinity"})


def _bool(value: Any) -> Stored:
    if value is True or value is False:
        return int(value)
    raise precondition(f"Could not parse {_shown(value)} as BOOL")


def _int64(value: Any) -> Stored:
    if isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            raise precondition(f"Could not parse {_shown(value)} as an integer") from None
        # int() knows underscores, spaces and the digits of every script; the wire has none of them.
        if value.isascii() and value.lstrip("-").isdigit() and INT64_MIN <= number <= INT64_MAX:
            return number
        raise precondition(f"Could not parse {_shown(value)} as an integer")
    raise precondition(f"Could not parse {_shown(value)} as INT64")


def _float64(value: Any) -> Stored:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value
    if isinstance(value, str) and value in _SPECIAL:
        return value if value == "NaN" else float(value)
    raise precondition(
        f"Could not parse {_shown(value)} as a FLOAT64. Only the following string values are supported for "
        "FLOAT64: 'Infinity', 'NaN', and '-Infinity'."
    )


def _string(value: Any) -> Stored:
    if isinstance(value, str):
        return value
    raise precondition(f"Could not parse {_shown(value)} as STRING")


def _bytes(value: Any) -> Stored:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise precondition(f"Could not parse {_shown(value)} as BYTES")


def _timestamp(value: Any) -> Stored:
    if isinstance(value, str):
        if value == COMMIT_TIMESTAMP:
            return value
        if value[-1:] in {"Z", "z"}:
            try:
                return timestamps.parse(value)
            except ValueError:
                pass
    raise precondition(f"Could not parse {_shown(value)} as a TIMESTAMP")


def _date(value: Any) -> Stored:
    if isinstance(value, str):
        try:
            return timestamps.parse_date(value)
        except ValueError:
            pass
    raise precondition(f"Could not parse {_shown(value)} as a DATE")


def _json(value: Any) -> Stored:
    if isinstance(value, str):
        try:
            return normal_json(value)
        except ValueError as error:
            raise precondition(f"Invalid JSON: {error}") from error
    raise precondition(f"Could not parse {_shown(value)} as JSON")


def normal_json(text: str) -> str:
    """Return the one text of a JSON value: keys sorted, the first of equal keys kept, no spaces. ValueError."""
    try:
        value = json.loads(text, object_pairs_hook=_first_wins, parse_constant=_no_constant)
        if _depth(value) > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
        normal = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        normal.encode()
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}") from error
    return normal


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if any(isinstance(item, dict | list) for item in level):
            deepest += 1
        level = inner
    return deepest


_DECODE: Final[dict[str, Callable[[Any], Stored]]] = {
    "BOOL": _bool,
    "INT64": _int64,
    "FLOAT64": _float64,
    "STRING": _string,
    "BYTES": _bytes,
    "TIMESTAMP": _timestamp,
    "DATE": _date,
    "JSON": _json,
}


def decoder(type_: Type) -> Callable[[Any], Stored]:
    """Return what turns a plain wire value (`plain`) of the type into its form at rest; lengths are not checked."""
    if type_.element is None:
        scalar = _DECODE[type_.kind]
        return lambda value: None if value is None else scalar(value)
    element = type_.element
    decode = decoder(element)

    def array(value: Any) -> Stored:
        if value is None:
            return None
        if not isinstance(value, list):
            raise precondition(f"Could not parse {_shown(value)} as {type_.name()}")
        items = [decode(item) for item in value]
        if element.length or element.kind in {"STRING", "BYTES"}:
            for item in items:
                check_length(element, item, type_.name())
        return join_array(element, items)

    return array


def plain(value: Any) -> Any:
    """Return the Python value of a google.protobuf.Value: None, bool, float, str or list. FAILED_PRECONDITION."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "null_value" or kind is None:
        return None
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    if kind == "struct_value":
        raise precondition("a value of kind struct_value is not valid for any column type")
    return getattr(value, kind)


def check_length(type_: Type, value: Stored, name: str) -> None:
    """Refuse a STRING or BYTES value that is longer than its column. FAILED_PRECONDITION."""
    if isinstance(value, str) and type_.kind == "STRING":
        limit = type_.length or MAX_STRING_CHARS
    elif isinstance(value, bytes):
        limit = type_.length or MAX_BYTES
    else:
        return
    if len(value) > limit:
        raise precondition(
            f"New value exceeds the maximum size limit for this column: {name}, size: {len(value)}, limit: {limit}."
        )


def split_array(element: Type, value: Stored) -> list[Stored]:
    """Return the elements of an ARRAY at rest, at rest themselves."""
    assert isinstance(value, str)
    decode = decoder(element)
    return [
        decode(float(item) if isinstance(item, int) and element.kind == "FLOAT64" else item)
        for item in json.loads(value)
    ]


def join_array(element: Type, items: list[Stored]) -> str:
    """Return the ARRAY at rest of elements at rest."""
    return json.dumps([in_record(element, item) for item in items], ensure_ascii=False, separators=(",", ":"))


def in_record(type_: Type, value: Stored) -> Any:
    """Return a value as JSON writes it in the keys and values of a change record."""
    if value is None:
        return None
    kind = type_.kind
    if kind == "INT64":
        return str(value)
    if kind == "BOOL":
        return bool(value)
    if kind == "BYTES":
        assert isinstance(value, bytes)
        return base64.b64encode(value).decode()
    if kind == "TIMESTAMP":
        return f"{value!s}Z"
    if kind == "ARRAY":
        assert isinstance(value, str)
        return json.loads(value)
    if kind == "FLOAT64" and isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


# Value messages with a short string, up to the two length bytes: 12 <n+2> 1a <n>.
_SHORT: Final = [bytes((0x12, size + 2, 0x1A, size)) for size in range(126)]
_NULL: Final = wire.in_values(wire.NULL)
_TRUE: Final = wire.in_values(wire.TRUE)
_FALSE: Final = wire.in_values(wire.FALSE)


def _put_text(value: Any) -> bytes:
    if value is None:
        return _NULL
    data = value.encode()
    size = len(data)
    if size < 126:
        return _SHORT[size] + data  # type: ignore[no-any-return]
    return wire.in_values(wire.string(data))


def _put_int(value: Any) -> bytes:
    if value is None:
        return _NULL
    data = b"%d" % value
    return _SHORT[len(data)] + data


def _put_timestamp(value: Any) -> bytes:
    if value is None:
        return _NULL
    data = value.encode() + b"Z"
    return _SHORT[len(data)] + data  # type: ignore[no-any-return]


def _put_bool(value: Any) -> bytes:
    return _NULL if value is None else _TRUE if value else _FALSE


def _put_float(value: Any) -> bytes:
    if value is None:
        return _NULL
    if value == "NaN" or math.isinf(value):
        return _put_text("NaN" if value == "NaN" else "Infinity" if value > 0 else "-Infinity")
    return wire.in_values(wire.number(value))


def _put_bytes(value: Any) -> bytes:
    return _NULL if value is None else wire.in_values(wire.string(base64.b64encode(value)))


def _put_array(value: Any) -> bytes:
    return _NULL if value is None else wire.in_values(wire_of_json(json.loads(value)))


def wire_of_json(value: Any) -> bytes:
    """Return the Value of JSON data without objects."""
    if value is None:
        return wire.NULL
    if isinstance(value, str):
        return wire.text(value)
    if isinstance(value, bool):
        return wire.boolean(value)
    if isinstance(value, list):
        return wire.array([wire_of_json(item) for item in value])
    return wire.number(float(value))


_PUT: Final[dict[str, Callable[[Any], bytes]]] = {
    "BOOL": _put_bool,
    "INT64": _put_int,
    "FLOAT64": _put_float,
    "STRING": _put_text,
    "BYTES": _put_bytes,
    "TIMESTAMP": _put_timestamp,
    "DATE": _put_text,
    "JSON": _put_text,
    "ARRAY": _put_array,
}


def encoder(type_: Type) -> Callable[[Any], bytes]:
    """Return what turns a value at rest into an element of PartialResultSet.values, as bytes of that field."""
    return _PUT[type_.kind]


def _shown(value: Any) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 64 else shown[:64] + "..."
