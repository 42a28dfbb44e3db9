"""HTTP/2 as the bench speaks it (RFC 9113): frames, header blocks, and one side of a connection.

Only what is counted is looked at: what is received is never decoded, since frames tell all of it. What is
sent uses the dynamic table as gRPC's libraries do, since a proxy's decoder is part of its cost. Flow control is
real in both directions, since it decides what a proxy has to hold. Not validated, not hardened: it is only ever
spoken to by the proxies under test. Imports nothing of the project.
"""

from __future__ import annotations

import asyncio
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4  # identifiers in SETTINGS (RFC 9113 §6.5.2)
DEFAULT_TABLE_BYTES = 4_096
DEFAULT_WINDOW = 65_535
WINDOW = 1 << 20  # what this side grants: a megabyte, as gRPC's libraries settle at on a local link
FRAME_BYTES = 16_384  # the largest payload that needs no permission (RFC 9113 §4.2)
_WRITE_BYTES = 1 << 18  # more than this unsent, and a body waits for the transport

MESSAGE_BYTES = 100
MESSAGE = b"\0" + MESSAGE_BYTES.to_bytes(4, "big") + b"m" * MESSAGE_BYTES
"""One gRPC message: not compressed, its length, its bytes."""

_FILLING = bytes(FRAME_BYTES)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113 §4.1)."""
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload)


Fields = tuple[tuple[bytes, bytes], ...]

_STATIC = {(b":method", b"POST"): 3, (b":scheme", b"http"): 6, (b":status", b"200"): 8}  # RFC 7541 appendix A
_FIRST_DYNAMIC = 62


class Encoder:
    """Header blocks as gRPC's libraries write them: each field enters the dynamic table once, then is an index.

    The few fields of a run fit into the table's default size, so nothing is ever evicted. A peer that allows no
    table gets literals.
    """

    __slots__ = ("_allowed", "_memo", "_must_tell", "_table")

    def __init__(self) -> None:
        self._table: list[tuple[bytes, bytes]] = []
        self._memo: dict[Fields, bytes] = {}
        self._allowed = True
        self._must_tell = False

    def limit(self, size: int) -> None:
        """Take the peer's SETTINGS_HEADER_TABLE_SIZE, before the first block."""
        if size < DEFAULT_TABLE_BYTES and self._allowed:
            self._allowed = False
            self._must_tell = True  # RFC 7541 §4.2: the next block begins with the new size

    def block(self, fields: Fields) -> bytes:
        """Return the header block of `fields`."""
        known = self._memo.get(fields)
        if known is None:
            size = len(self._table)
            known = b"".join(map(self._field, fields))
            if len(self._table) == size:
                self._memo[fields] = known
            else:
                self._memo.clear()  # what was added moved every index
        if self._must_tell:
            self._must_tell = False
            return b"\x20" + known
        return known

    def _field(self, field: tuple[bytes, bytes]) -> bytes:
        if (index := _STATIC.get(field)) is not None:
            return bytes((0x80 | index,))
        if field in self._table:
            return bytes((0x80 | _FIRST_DYNAMIC + len(self._table) - 1 - self._table.index(field),))
        if self._allowed:
            self._table.append(field)
        name, value = field
        kind = b"\x40" if self._allowed else b"\0"
        return b"%b%b%b%b%b" % (kind, _size(name), name, _size(value), value)


def _size(text: bytes) -> bytes:
    """Length of a string as an integer with a 7-bit prefix (RFC 7541 §5.1); up to 16,510 bytes."""
    size = len(text)
    return bytes((size,)) if size < 127 else bytes((127, (size - 127) % 128 | 128, (size - 127) // 128))


def request_fields(authority: str) -> Fields:
    """Return the fields of a call, as a gRPC client sends them."""
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/sglang.grpc.scheduler.SglangScheduler/Generate"),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-python/1.85.1 grpc-c/58.0.0 (linux; chttp2)"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )


RESPONSE: Fields = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
)
TRAILERS: Fields = ((b"grpc-status", b"0"), (b"grpc-message", b""))


class Sending:
    """One stream's way out: the peer's credit, and the bytes of a body that are still `left`."""

    __slots__ = ("left", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.left = 0


class Side(asyncio.Protocol):
    """One side of a connection; a subclass hears whole frames by `stream_*` and sends by `send*`."""

    __slots__ = (
        "_buffer",
        "_credit",
        "_initial_window",
        "_paused",
        "_skip_preface",
        "_stream_credit",
        "_window",
        "encoder",
        "sendings",
        "transport",
    )
    is_client = False

    def __init__(self) -> None:
        self._buffer = b""
        self._window = DEFAULT_WINDOW  # what the peer grants on the connection
        self._initial_window = DEFAULT_WINDOW
        self._credit = 0  # received and not yet given back
        self._stream_credit: dict[int, int] = {}
        self._paused = False
        self._skip_preface = not self.is_client
        self.encoder = Encoder()
        self.sendings: dict[int, Sending] = {}

    # -- for the subclass

    def stream_data(self, stream: int, data: bytes, start: int, end: int) -> None:
        """Hear of bytes `start` to `end` of `data`."""

    def stream_ended(self, stream: int) -> None:
        """Hear that the peer sent all it will."""

    def stream_reset(self, stream: int) -> None:
        """Hear that the peer gave the stream up."""

    def went_away(self) -> None:
        """Hear GOAWAY."""

    # -- sending

    def send_headers(self, stream: int, fields: Fields, end: int = 0) -> None:
        """Send a head or trailers, with END_STREAM as `end`."""
        self.transport.write(frame(HEADERS, END_HEADERS | end, stream, self.encoder.block(fields)))

    def open_sending(self, stream: int) -> Sending:
        """Begin to count the peer's credit for `stream`."""
        sending = self.sendings[stream] = Sending(self._initial_window)
        return sending

    def send_message(self, stream: int, data: bytes, end: int = 0) -> None:
        """Send one short DATA frame at once; a peer without credit for it is a fault of the run."""
        sending = self.sendings[stream]
        sending.window -= len(data)
        self._window -= len(data)
        if sending.window < 0 or self._window < 0:
            raise RuntimeError("the peer grants too little for a short message")
        self.transport.write(frame(DATA, end, stream, data))

    def pump(self) -> None:
        """Send of every body what the credit and the transport take."""
        for stream, sending in list(self.sendings.items()):
            while sending.left and not self._paused:
                size = min(sending.left, sending.window, self._window, FRAME_BYTES)
                if size <= 0:
                    break
                sending.left -= size
                sending.window -= size
                self._window -= size
                self.transport.write(frame(DATA, 0, stream, _FILLING[:size]))
                if not sending.left:
                    self.body_sent(stream)

    def body_sent(self, stream: int) -> None:
        """Hear that the last byte of a body was written."""

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface and SETTINGS, and open the connection's window."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(_WRITE_BYTES)
        settings = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + WINDOW.to_bytes(4, "big")
        opening = frame(SETTINGS, 0, 0, settings) + _window_update(0, WINDOW - DEFAULT_WINDOW)
        self.transport.write(PREFACE + opening if self.is_client else opening)

    def pause_writing(self) -> None:
        """Hold bodies back."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self.pump()

    def data_received(self, data: bytes) -> None:
        """Take whole frames; the rest waits for more."""
        if self._buffer:
            data = self._buffer + data
        at, size = 0, len(data)
        if self._skip_preface:
            if size < len(PREFACE):
                self._buffer = data
                return
            at = len(PREFACE)
            self._skip_preface = False
        while size - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > size:
                break
            self._frame(data, at, end)
            at = end
        self._buffer = data[at:]

    def _frame(self, data: bytes, at: int, end: int) -> None:
        kind, flags = data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        if kind == DATA:
            size = end - at - 9
            if size:
                self.stream_data(stream, data, at + 9, end)
                self._give_back(stream, size, last=bool(flags & END_STREAM))
            if flags & END_STREAM:
                self._stream_credit.pop(stream, None)
                self.stream_ended(stream)
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._stream_credit.pop(stream, None)
                self.stream_ended(stream)
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(data[at + 9 : end], "big")
            if not stream:
                self._window += more
            elif stream in self.sendings:
                self.sendings[stream].window += more
            self.pump()
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(data[at + 9 : end])
                self.transport.write(frame(SETTINGS, ACK, 0))
                self.pump()
        elif kind == PING:
            if not flags & ACK:
                self.transport.write(frame(PING, ACK, 0, data[at + 9 : end]))
        elif kind == RST_STREAM:
            self._stream_credit.pop(stream, None)
            self.sendings.pop(stream, None)
            self.stream_reset(stream)
        elif kind == GOAWAY:
            self.went_away()

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == _HEADER_TABLE_SIZE:
                self.encoder.limit(value)
            elif name == _INITIAL_WINDOW_SIZE:
                for sending in self.sendings.values():  # RFC 9113 §6.9.2: open streams move with it
                    sending.window += value - self._initial_window
                self._initial_window = value

    def _give_back(self, stream: int, size: int, *, last: bool) -> None:
        """Return credit by halves of the window, as any implementation that counts its frames does."""
        self._credit += size
        if self._credit >= WINDOW // 2:
            self.transport.write(_window_update(0, self._credit))
            self._credit = 0
        if last:
            return
        owed = self._stream_credit.get(stream, 0) + size
        if owed >= WINDOW // 2:
            self.transport.write(_window_update(stream, owed))
            owed = 0
        self._stream_credit[stream] = owed


def _window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))
