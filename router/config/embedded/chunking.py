"""Rows in pieces: a PartialResultSet's values cut anywhere, with `chunked_value`, so that its messages stay small.

Merging, by result_set.proto: strings are joined; lists are joined, and if the last element of one and the first of
the next are strings or lists, these two are merged in turn. So a list is only cut inside or behind a string or a
list, and a piece that starts with a new element starts with an empty one first, to be merged into what was
complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.config.embedded import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

_STRING: Final = 0x1A
_LIST: Final = 0x32
_EMPTY: Final = {_STRING: b"\x1a\x00", _LIST: b"\x32\x00"}


def split_values(values: bytes, limit: int, tail: bytes) -> list[bytes]:
    """Return the messages of encoded `values`: about `limit` bytes each, `tail` (token, stats) on the last."""
    messages: list[bytes] = []
    batch = b""
    for value in _fields(values):
        pieces = list(_pieces(value, limit)) if len(value) > limit else [value]
        for number, piece in enumerate(pieces):
            batch += wire.in_values(piece)
            if number < len(pieces) - 1:
                messages.append(batch + wire.CHUNKED)
                batch = b""
            elif len(batch) >= limit:
                messages.append(batch)
                batch = b""
    if batch or not messages:
        messages.append(batch)
    messages[-1] += tail
    return messages


def _pieces(value: bytes, limit: int) -> Iterator[bytes]:
    """Yield Values that merge, in their order, to `value`."""
    limit = max(limit, 8)
    if value in _EMPTY.values():
        yield value
        return
    if value[0] == _STRING:
        yield from (wire.string(part) for part in _text_parts(_payload(value), limit))
        return
    if value[0] != _LIST:
        yield value
        return
    done: list[bytes] = []
    size = 0
    for element in _fields(_payload(value)):
        parts = list(_pieces(element, limit)) if len(element) > limit else [element]
        for number, part in enumerate(parts):
            done.append(part)
            size += len(part)
            inside = number < len(parts) - 1
            if inside or (size >= limit and part[0] in _EMPTY):
                yield wire.array(done)
                # Inside, the next part merges with this one; behind, an empty one does.
                done = [] if inside else [_EMPTY[part[0]]]
                size = 0
    if done:
        yield wire.array(done)


def _text_parts(text: bytes, limit: int) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        end = min(len(text), start + limit)
        while end < len(text) and text[end] & 0xC0 == 0x80:  # not within a character
            end -= 1
        yield text[start:end]
        start = end


def _payload(value: bytes) -> bytes:
    _, at = _varint(value, 1)
    return value[at:]


def _fields(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of length-delimited fields with one-byte tags."""
    at = 0
    while at < len(data):
        size, start = _varint(data, at + 1)
        yield data[start : start + size]
        at = start + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
