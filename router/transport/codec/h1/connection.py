"""What both roles of HTTP/1.1 share: output, held input, reasons to hold, and the search for a head's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.stream import HOLD_PEER_FULL, Codec
from router.transport.codec.h1.body import SIZE_LINES
from router.transport.codec.h1.head import MAX_HEAD_BYTES

if TYPE_CHECKING:
    from router.stream import Shell

# How a body is delimited, in either direction.
NOTHING: Final = 0
LENGTH: Final = 1
CHUNKS: Final = 2
UNTIL_CLOSE: Final = 3
BODILESS: Final = 4
TUNNEL: Final = 5

HEAD_INCOMPLETE: Final = -1
HEAD_TOO_LONG: Final = -2
HEAD_BARE_LF: Final = -3


class H1Connection(Codec):
    """Common state of `H1Server` and `H1Client`."""

    __slots__ = (
        "_holds",
        "_out",
        "_shell",
        "_stash",
        "last_moved_s",
    )

    def __init__(self, shell: Shell, now: float) -> None:
        super().__init__()
        self._shell = shell
        self._out: list[bytes] = []
        self._stash = b""  # read, but not yet understood or not yet wanted
        self._holds = 0
        self.last_moved_s = now  # when bytes last moved, either way

    def take_output(self, now: float) -> list[bytes]:
        """Hand over the queued output."""
        out = self._out
        if out:
            self._out = []
            self.last_moved_s = now
        return out

    def hold(self, why: int) -> None:
        """Deliver no more data; only PEER_FULL stops reading, so that a client's end is still seen."""
        self._holds |= why
        if why & HOLD_PEER_FULL and self.wants_read:
            self.wants_read = False
            self._shell.touch()

    def release(self, why: int) -> None:
        """Take a reason back; what was held is delivered at the flush."""
        self._holds &= ~why
        if self._holds:
            return
        self.wants_read = True
        if self._stash:
            self.has_held_input = True
        self._shell.touch()

    def _end_with(self, close: int) -> None:
        """Close the transport after the output, in the firmest of the ways asked for so far."""
        if close > self.close:
            self.close = close
            self._shell.watch()
        self._shell.touch()

    def _add_chunk(self, data: bytes) -> None:
        """Queue one chunk, a small one as one piece: an event is mostly all of a write."""
        size = len(data)
        if size < len(SIZE_LINES):
            self._out.append(SIZE_LINES[size] + data + b"\r\n")
        else:
            self._out += (b"%x\r\n" % size, data, b"\r\n")

    def _queue(self, piece: bytes) -> None:
        if not self._out:
            self._shell.touch()
        self._out.append(piece)


def find_head_end(data: bytes, searched: int) -> int:
    """Return where the blank line of a head begins, or one of the negative codes above.

    The first `searched` bytes were searched before. A head that is not complete is refused as soon as it
    is too long or holds a line feed without carriage return (RFC 9112 §2.2), rather than when time is up.
    """
    end = data.find(b"\r\n\r\n", max(0, searched - 3))
    if end >= 0:
        return end if end <= MAX_HEAD_BYTES else HEAD_TOO_LONG
    if len(data) > MAX_HEAD_BYTES + 3:  # CRLFCR of the blank line may be here already
        return HEAD_TOO_LONG
    if data.count(b"\n", searched) != data.count(b"\r\n", max(0, searched - 1)):
        return HEAD_BARE_LF
    return HEAD_INCOMPLETE
