"""Bytes of one stream as they come, in order for who reads them (RFC 9000 §2.2).

In order, nothing is copied. What comes early is written into one buffer at its place, so that tiny frames far apart
cost no more than the window that the peer was given. Imports nothing but its neighbours.
"""

from __future__ import annotations

from router.transport.codec.quic.limits import MAX_GAPS
from router.transport.codec.quic.ranges import Ranges


class Reorder:
    """`offset` is up to where everything was handed on."""

    __slots__ = ("_buffer", "_ranges", "offset")

    def __init__(self) -> None:
        self.offset = 0
        self._buffer: bytearray | None = None  # begins at `offset`
        self._ranges: Ranges | None = None

    def add(self, offset: int, data: bytes) -> bytes | None:
        """Return what can be handed on now, perhaps nothing; None if there are too many gaps to keep this."""
        start = self.offset
        size = len(data)
        if self._ranges is None and offset == start:
            self.offset = start + size
            return data
        end = offset + size
        if end <= start or not size:
            return b""
        if offset < start:
            data = data[start - offset :]
            offset = start
        ranges, buffer = self._ranges, self._buffer
        if ranges is None or buffer is None:
            if offset == start:
                self.offset = end
                return data
            ranges = self._ranges = Ranges()
            buffer = self._buffer = bytearray()
        if len(ranges) >= MAX_GAPS and offset > start and not ranges.has(offset - 1):
            return None
        at = offset - start
        if len(buffer) < at:
            buffer += bytes(at - len(buffer))
        buffer[at : at + len(data)] = data
        ranges.add(offset, end)
        if ranges.starts[0] > start:
            return b""
        ready = ranges.ends[0]
        found = bytes(memoryview(buffer)[: ready - start])
        self.offset = ready
        if len(ranges) == 1:
            self._ranges = self._buffer = None
        else:
            del buffer[: ready - start]
            ranges.drop_below(ready)
        return found

    def clear(self) -> None:
        """Keep nothing: nobody reads on."""
        self._ranges = self._buffer = None
