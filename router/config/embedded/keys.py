"""Keys as bytes whose order is Spanner's order, and key sets as ranges of such bytes.

Each part is a marker and a payload that no other part's is a prefix of, so a key starts with its parent's key, and
all rows below a prefix lie in [prefix, `end_of(prefix)`). NULL sorts before every value, ascending; a descending
part is the complement of its bytes. Encoded keys never go on the wire.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded.errors import invalid, precondition
from router.config.embedded.limits import MAX_KEY_BYTES
from router.config.embedded.values import Stored, decoder, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from router.config.embedded.catalog import KeyPart

Range = tuple[bytes, bytes]  # from, inclusive, to, exclusive
LAST: Final = b"\xff" * 16  # above every key: no part starts with two FF bytes
ALL: Final[Range] = (b"", LAST)
_DOUBLE = struct.Struct(">d")
_COMPLEMENT: Final = bytes(255 - byte for byte in range(256))


def encode_part(part: KeyPart, value: Stored) -> bytes:
    """Return the bytes of one part of a key, from its value at rest."""
    if value is None:
        data = b"\x00"
    else:
        kind = part.type.kind
        if kind == "INT64":
            assert isinstance(value, int)
            data = b"\x01" + (value + (1 << 63)).to_bytes(8)
        elif kind == "BOOL":
            data = b"\x01\x01" if value else b"\x01\x00"
        elif kind == "FLOAT64":
            data = b"\x01" + _float(value)
        else:
            raw = value if isinstance(value, bytes) else str(value).encode()
            data = b"\x01" + raw.replace(b"\x00", b"\x00\xff") + b"\x00\x01"
    return data.translate(_COMPLEMENT) if part.descending else data


def _float(value: Stored) -> bytes:
    if value == "NaN":
        return bytes(8)  # below -Infinity, where Spanner sorts it
    assert isinstance(value, int | float)
    # -0.0 equals 0.0, so it has the same key.
    bits = int.from_bytes(_DOUBLE.pack(value or 0.0))
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return bits.to_bytes(8)


def encode(parts: Sequence[KeyPart], values: Iterable[Stored]) -> bytes:
    """Return the bytes of a key or of its first parts. INVALID_ARGUMENT if it is longer than Spanner allows."""
    data = b"".join([encode_part(part, value) for part, value in zip(parts, values, strict=False)])
    if len(data) > MAX_KEY_BYTES:
        raise invalid(f"key has {len(data)} bytes, more than {MAX_KEY_BYTES}")
    return data


def end_of(prefix: bytes) -> bytes:
    """Return the lowest bytes above all that start with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else LAST


def overlaps(ranges: Sequence[Range], key: bytes) -> bool:
    """Tell whether one of the ranges holds the key."""
    return any(start <= key < end for start, end in ranges)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return the same keys as sorted ranges that do not touch: what a read returns, each row once."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def decode_parts(parts: Sequence[KeyPart], values: Any, what: str) -> list[Stored]:
    """Return the values at rest of a google.protobuf.ListValue that names a key or its first parts."""
    if len(values) > len(parts):
        raise precondition(
            f"Wrong number of key parts for {what}. Expected {len(parts)} key parts, found {len(values)} key parts."
        )
    return [decoder(part.type)(plain(value)) for part, value in zip(parts, values, strict=False)]


def ranges_of(parts: Sequence[KeyPart], key_set: Any, what: str, whole: int | None = None) -> list[Range]:
    """Return the ranges of a google.spanner.v1.KeySet, merged and sorted; `what` is the table or index.

    `whole`: how many parts a key must name. For an index these are its own columns, and `parts` may go on with the
    table's key, which no request names.
    """
    if key_set.all_:
        return [ALL]
    count = len(parts) if whole is None else whole
    named = parts[:count]
    ranges: list[Range] = []
    for key in key_set.keys:
        if len(key.values) != count:
            raise precondition(
                f"Wrong number of key parts for {what}. Expected {count} key parts, "
                f"found {len(key.values)} key parts."
            )
        point = encode(named, decode_parts(named, key.values, what))
        ranges.append((point, end_of(point)))
    for bounds in key_set.ranges:
        start_kind, end_kind = bounds.WhichOneof("start_key_type"), bounds.WhichOneof("end_key_type")
        if start_kind is None or end_kind is None:
            raise invalid("KeyRange must specify both of its bounds")
        low = encode(named, decode_parts(named, getattr(bounds, start_kind).values, what))
        high = encode(named, decode_parts(named, getattr(bounds, end_kind).values, what))
        ranges.append(
            (
                low if start_kind == "start_closed" else end_of(low),
                end_of(high) if end_kind == "end_closed" else high,
            )
        )
    return merged(ranges)
