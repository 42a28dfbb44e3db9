"""openpi's msgpack-numpy encoding, without numpy.

An array on the wire is a msgpack map with *binary* keys: `__ndarray__` true, `data` (C order), `dtype`
(numpy's string, `<f4`), `shape`; a scalar is `__npgeneric__` true, `data` (a number), `dtype`. Here an array
stays that map, checked.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec

_ITEM_KINDS = "?bBiufmMSUc"  # numpy kinds with a fixed item size; openpi refuses objects, voids and complex
decode = msgspec.msgpack.Decoder().decode
encode = msgspec.msgpack.Encoder().encode


def array_map(data: bytes, dtype: str, shape: tuple[int, ...]) -> dict[bytes, Any]:
    """Describe an array as the wire does."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def unpack(message: bytes) -> Any:
    """Decode a message; raises ValueError if it is not msgpack or an array in it contradicts itself."""
    try:
        value = decode(message)
    except msgspec.DecodeError as error:
        raise ValueError(f"not msgpack: {error}") from error
    _check(value)
    return value


def _check(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        if b"__ndarray__" in value:
            _check_array(value)
        else:
            for item in value.values():
                _check(item)


def _check_array(value: dict[Any, Any]) -> None:
    data, dtype, shape = value.get(b"data"), value.get(b"dtype"), value.get(b"shape")
    if not isinstance(data, bytes) or not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(  # noqa: TRY004 -- a peer's fault: one exception for every bad message
            "an __ndarray__ needs data, dtype and shape"
        )
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"{shape} is no shape")
    needed = prod(shape) * _item_bytes(dtype)
    if needed != len(data):
        raise ValueError(f"an array of {dtype} {tuple(shape)} needs {needed} bytes and has {len(data)}")


def _item_bytes(dtype: str) -> int:
    kind, size = dtype[1:2], dtype[2:]
    if dtype[:1] not in "<>|=" or kind not in _ITEM_KINDS or not size.isdecimal():
        raise ValueError(f"unsupported dtype {dtype!r}")
    return int(size) * (4 if kind == "U" else 1)
