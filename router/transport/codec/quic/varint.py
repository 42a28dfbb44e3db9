"""Integers of QUIC: two bits say how many bytes follow (RFC 9000 §16). Imports nothing of the project."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

MAX_VARINT: Final = (1 << 62) - 1
TRUNCATED: Final = -1

_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(64))


@mypyc_attr(free_list_len=1, acyclic=True)  # one a packet, which leads nowhere
class Cursor:
    """Reads a frame's fields one after another; `TRUNCATED` where the bytes end, and ever after."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def varint(self) -> int:
        """Read one integer."""
        at = self.at
        if at >= self.end:
            self.at = self.end + 1
            return TRUNCATED
        data = self.data
        first = data[at]
        if first < 0x40:
            self.at = at + 1
            return first
        if first < 0x80:
            if at + 2 > self.end:
                self.at = self.end + 1
                return TRUNCATED
            self.at = at + 2
            return (first & 0x3F) << 8 | data[at + 1]
        if first < 0xC0:
            if at + 4 > self.end:
                self.at = self.end + 1
                return TRUNCATED
            self.at = at + 4
            return (first & 0x3F) << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]
        if at + 8 > self.end:
            self.at = self.end + 1
            return TRUNCATED
        self.at = at + 8
        return int.from_bytes(data[at : at + 8], "big") & MAX_VARINT

    def take(self, size: int) -> bytes:
        """Read so many bytes; fewer where they end, which `is_short` tells."""
        at = self.at
        if size < 0 or at + size > self.end:
            self.at = self.end + 1
            return b""
        self.at = at + size
        return self.data[at : at + size]

    def is_short(self) -> bool:
        """Whether anything was read beyond the end."""
        return self.at > self.end


def varint(value: int) -> bytes:
    """Return the shortest encoding."""
    if value < 0x40:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")
