"""The handshake's bytes in one epoch, both ways (RFC 9000 §19.6)."""

from __future__ import annotations

from router.transport.codec.quic.recovery import SentFrame
from router.transport.codec.quic.reorder import Reorder


class CryptoChunk(SentFrame):
    """Bytes of a handshake in one packet."""

    __slots__ = ("data", "offset", "stream")

    def __init__(self, stream: CryptoStream, offset: int, data: bytes) -> None:
        self.stream = stream
        self.offset = offset
        self.data = data

    def on_acked(self) -> None:
        """Nothing to do: the peer has it."""

    def on_lost(self) -> None:
        """Send it again, first things first."""
        waiting = self.stream.waiting
        waiting.append(self)
        waiting.sort(key=_by_offset)


class CryptoStream:
    """One epoch's."""

    __slots__ = ("_offset", "reorder", "waiting")

    def __init__(self) -> None:
        self._offset = 0
        self.waiting: list[CryptoChunk] = []
        self.reorder = Reorder()

    def send(self, data: bytes) -> None:
        """Queue what TLS wrote."""
        self.waiting.append(CryptoChunk(self, self._offset, data))
        self._offset += len(data)

    def take_chunk(self, room: int) -> CryptoChunk | None:
        """Return the next bytes for a packet."""
        waiting = self.waiting
        if not waiting:
            return None
        chunk = waiting[0]
        if len(chunk.data) <= room:
            del waiting[0]
            return chunk
        first = CryptoChunk(self, chunk.offset, chunk.data[:room])
        chunk.data = chunk.data[room:]
        chunk.offset += room
        return first


def _by_offset(chunk: CryptoChunk) -> int:
    return chunk.offset
