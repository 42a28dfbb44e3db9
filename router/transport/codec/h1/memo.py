"""Heads already understood, by their bytes.

Clients and replicas send the same head again and again but for the length of the body. So the digits of
Content-Length are cut out, and what is left is looked up: a hit costs under a microsecond where parsing ten
fields costs ten, as memoised header blocks do for HTTP/2. Sound because a shape is stored only for bytes
that the strict parser accepted: equal bytes around a valid length are an equally valid head, and a second
length, or one in another spelling, is part of the key and was judged with it.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from router.transport.codec.grammar import MAX_LENGTH_DIGITS

MAX_SHAPES: Final = 1_024
MAX_SHAPE_BYTES: Final = 2_048  # with MAX_SHAPES: at most 2 MiB a role and worker, whatever is sent

_SPELLINGS: Final = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_VALUE_AT: Final = len(_SPELLINGS[0])

S = TypeVar("S")


class ShapeMemo(Generic[S]):
    """Maps a head without its length to what the parser made of it."""

    __slots__ = ("_shapes", "_spelling", "_whole")

    def __init__(self) -> None:
        self._shapes: dict[bytes, S] = {}
        self._whole: dict[bytes, tuple[bytes, int | None, S]] = {}
        self._spelling = 0  # the one seen last is looked for first

    def look_up(self, raw: bytes) -> tuple[bytes, int | None, S | None]:
        """Return the key of a head, its length (None: no such line) and what is stored for it, if anything."""
        whole = self._whole.get(raw)  # the same length again, too: robots, probes, small answers
        if whole is not None:
            return whole
        found = self._look_up(raw)
        if found[2] is not None and len(raw) <= MAX_SHAPE_BYTES:
            if len(self._whole) >= MAX_SHAPES:
                self._whole.clear()
            self._whole[raw] = found  # type: ignore[assignment]
        return found

    def _look_up(self, raw: bytes) -> tuple[bytes, int | None, S | None]:
        start = raw.find(_SPELLINGS[self._spelling])
        if start < 0:
            start = raw.find(_SPELLINGS[1 - self._spelling])
            if start < 0:
                return raw, None, self._shapes.get(raw)
            self._spelling = 1 - self._spelling
        start += _VALUE_AT
        end = raw.find(b"\r\n", start)
        digits = raw[start:end] if end >= 0 else raw[start:]
        if not digits.isdigit() or len(digits) > MAX_LENGTH_DIGITS:
            return raw, None, None
        key = raw[:start] + raw[end:] if end >= 0 else raw[:start]
        return key, int(digits), self._shapes.get(key)

    def store(self, key: bytes, shape: S) -> None:
        """Keep `shape`; the memo is emptied when it is full, which costs one round of parsing."""
        if len(key) > MAX_SHAPE_BYTES:
            return
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        self._shapes[key] = shape
