"""The chunked coding of HTTP/1.1 (RFC 9112 §7.1), both ways.

    SIZE --size>0--> DATA --all read--> CRLF --> SIZE
    SIZE --size=0--> TRAILERS --blank line--> DONE
    any  --malformed--> an error text, after which the reader must not be used

Sizes are hexadecimal digits only, extensions are checked, counted and dropped, every line ends in CRLF.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from router.http import FORBIDDEN_TRAILERS
from router.transport.codec.h1.fields import REQUEST_FIELDS, write_lines

if TYPE_CHECKING:
    from router.http import Headers

MAX_SIZE_LINE_BYTES = 1_024  # size and extensions of one chunk
MAX_EXTENSION_BYTES = 16_384  # extensions of a whole message: one-byte chunks must not carry a flood
MAX_TRAILER_BYTES = 16_384
MAX_TRAILERS = 64

LAST_CHUNK = b"0\r\n\r\n"
SIZE_LINES: Final = tuple(b"%x\r\n" % size for size in range(4_096))
"""Size lines of small chunks, ready made: events of a stream are mostly below 4 KiB."""

_SIZES: Final = {b"%x" % size: size for size in range(4_096)}
# 15 digits stay below 2**60. An extension is `;name` or `;name=value` with token or quoted value
# (RFC 9112 §7.1.1); what it may not hold is a line break or another control character.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*((?:;[\t\x20-\x7e\x80-\xff]*)?)")

_SIZE: Final = 0
_DATA: Final = 1
_CRLF: Final = 2
_TRAILERS: Final = 3
_DONE: Final = 4


class ChunkedReader:
    """Decodes one chunked body, fed in whatever pieces the transport read."""

    __slots__ = ("_extension_bytes", "_remaining", "_stash", "_state", "error", "rest", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._remaining = 0
        self._stash = b""  # an incomplete line
        self._extension_bytes = 0
        self.error = ""
        self.trailers: Headers = []
        self.rest = b""

    @property
    def is_done(self) -> bool:
        """Whether the last chunk and the trailers were read; `rest` then holds the bytes behind them."""
        return self._state == _DONE

    def read(self, data: bytes) -> bytes:
        """Return the payload in `data`, joined; then look at `error`, `is_done`, `trailers` and `rest`."""
        if self._stash:
            data = self._stash + data
            self._stash = b""
        pieces: list[bytes] = []
        pos = 0
        size_of_data = len(data)
        while True:
            if self._state == _SIZE:
                if pos == size_of_data:
                    break
                eol = data.find(b"\r\n", pos)
                if eol < 0:
                    self._keep(data, pos, MAX_SIZE_LINE_BYTES + 1, "a chunk size line is too long")
                    break
                line = data[pos:eol]
                size = _SIZES.get(line, -1)
                if size < 0:
                    size = self._read_size(line)
                    if size < 0:
                        break
                pos = eol + 2
                if not size:
                    self._state = _TRAILERS
                    continue
                end = pos + size
                if end + 2 <= size_of_data:  # the whole chunk is here: the common case
                    pieces.append(data[pos:end])
                    if data[end] != 13 or data[end + 1] != 10:
                        self.error = "a chunk does not end in CRLF"
                        break
                    pos = end + 2
                    continue
                self._remaining = size
                self._state = _DATA
            if self._state == _DATA:
                piece = data[pos : pos + self._remaining]
                if piece:
                    pieces.append(piece)
                    pos += len(piece)
                    self._remaining -= len(piece)
                if self._remaining:
                    break
                self._state = _CRLF
            if self._state == _CRLF:
                ending = data[pos : pos + 2]
                if len(ending) < 2 and b"\r\n".startswith(ending):
                    self._stash = ending
                    break
                if ending != b"\r\n":
                    self.error = "a chunk does not end in CRLF"
                    break
                pos += 2
                self._state = _SIZE
                continue
            if self._state == _TRAILERS:
                self._read_trailers(data, pos)
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _keep(self, data: bytes, pos: int, limit: int, complaint: str) -> None:
        """Keep an incomplete line; `limit` allows for the part of its ending that may be here already."""
        stash = data[pos:]
        if stash.count(b"\n") != stash.count(b"\r\n"):
            self.error = "a line ends in a bare LF"
        elif len(stash) > limit:
            self.error = complaint
        else:
            self._stash = stash

    def _read_size(self, line: bytes) -> int:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > MAX_SIZE_LINE_BYTES:
            self.error = "a chunk size is malformed"
            return -1
        self._extension_bytes += len(line) - len(match[1])
        if self._extension_bytes > MAX_EXTENSION_BYTES:
            self.error = "too many chunk extensions"
            return -1
        return int(match[1], 16)

    def _read_trailers(self, data: bytes, pos: int) -> None:
        if data.startswith(b"\r\n", pos):
            self._finish(data, pos + 2)
            return
        end = data.find(b"\r\n\r\n", pos)
        if end < 0:
            self._keep(data, pos, MAX_TRAILER_BYTES + 3, "the trailers are too long")
            return
        lines = data[pos:end].split(b"\r\n")
        if end - pos > MAX_TRAILER_BYTES or len(lines) > MAX_TRAILERS:
            self.error = "the trailers are too long"
            return
        for line in lines:
            entry = REQUEST_FIELDS.memo.get(line) or REQUEST_FIELDS.read(line)
            if entry is None:
                self.error = "a trailer line is not a field"
                return
            if entry[1][0] not in FORBIDDEN_TRAILERS:
                self.trailers.append(entry[1])
        self._finish(data, end + 4)

    def _finish(self, data: bytes, pos: int) -> None:
        self._state = _DONE
        self.rest = data[pos:]


def write_trailers(trailers: Headers) -> bytes:
    """Return the last chunk with its trailer section, without what may not stand there (RFC 9110 §6.5.1)."""
    lines = write_lines([field for field in trailers if field[0] not in FORBIDDEN_TRAILERS])
    return b"".join((b"0\r\n", *lines, b"\r\n"))
