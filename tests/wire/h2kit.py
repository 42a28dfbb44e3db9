"""A raw HTTP/2 client and a scripted raw HTTP/2 replica, written from RFC 9113, RFC 7541 and RFC 8441 alone.

Either end can send any bytes. What comes in is held against the grammar, the states of streams, the windows that
were granted and the rules for messages, whether a test looks for it or not: a violation ends the connection and
fails the test. SETTINGS and PING are acknowledged and windows refilled unless a test says that they are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

import hpack
from wirekit import PATIENCE_S, Link, WireError, split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITY_FLAG = 0x4, 0x8, 0x20
TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_LIST = range(1, 7)
CONNECT_PROTOCOL, NO_PRIORITIES = 8, 9
NO_ERROR, PROTOCOL, INTERNAL, FLOW, SETTINGS_TIMEOUT, CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION = range(10)
CONNECT_ERROR, CALM, INADEQUATE, HTTP11 = range(10, 14)
DEFAULTS = {TABLE_SIZE: 4096, ENABLE_PUSH: 1, MAX_STREAMS: 1 << 32, INITIAL_WINDOW: 65_535, MAX_FRAME: 16_384, MAX_LIST: 1 << 32}
FLAGS = {
    DATA: END_STREAM | PADDED, HEADERS: END_STREAM | END_HEADERS | PADDED | PRIORITY_FLAG, PRIORITY: 0, RST_STREAM: 0,
    SETTINGS: ACK, PING: ACK, GOAWAY: 0, WINDOW_UPDATE: 0, CONTINUATION: END_HEADERS,
}  # fmt: skip
MOST = (1 << 31) - 1
NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
VALUE = re.compile(rb"(?![ \t])[^\x00\r\n]*(?<![ \t])")
HOP = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}

Fields = list[tuple[bytes, bytes]]


# --- what is sent ------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(values: dict[int, int] | tuple[tuple[int, int], ...] = (), flags: int = 0) -> bytes:
    pairs = values.items() if isinstance(values, dict) else values
    return frame(SETTINGS, flags, 0, b"".join(struct.pack(">HI", key, value) for key, value in pairs))


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """RFC 7541 §5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out = bytearray([first | most])
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(data: bytes) -> bytes:
    return integer(len(data), 7) + data


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """RFC 7541 §6.2; `first` 0x40 with indexing, 0x10 never."""
    return bytes([first]) + string(name) + string(value)


def block(fields: Fields) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def headers(stream: int, fields: Fields | bytes, *, end: bool = True, flags: int = END_HEADERS) -> bytes:
    payload = fields if isinstance(fields, bytes) else block(fields)
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream, payload)


def headers_split(stream: int, payload: bytes, size: int = 16_384, *, end: bool = True) -> bytes:
    """A block in HEADERS and as many CONTINUATION as it takes."""
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    out = bytearray()
    for i, piece in enumerate(pieces):
        flags = END_HEADERS if i == len(pieces) - 1 else 0
        out += frame(HEADERS if i == 0 else CONTINUATION, flags | (END_STREAM if end and i == 0 else 0), stream, piece)
    return bytes(out)


def data(stream: int, payload: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    flags = END_STREAM if end else 0
    if pad is not None:
        return frame(DATA, flags | PADDED, stream, bytes([pad]) + payload + bytes(pad))
    return frame(DATA, flags, stream, payload)


def rst(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last: int = MOST, code: int = NO_ERROR, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def window(stream: int, by: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    return frame(PING, flags, 0, payload)


def head(method: bytes = b"GET", path: bytes = b"/t", *more: tuple[bytes, bytes], authority: bytes = b"h", scheme: bytes = b"http") -> Fields:
    return [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path), *more]


# --- what comes in -----------------------------------------------------------------------------------------------


def check_fields(fields: Fields) -> None:
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular:
                raise WireError(f"§8.3: {name!r} behind a regular field: {fields!r}")
        else:
            regular = True
            if not NAME.fullmatch(name):
                raise WireError(f"§8.2.1: name {name!r}")
            if name in HOP or (name == b"te" and value != b"trailers"):
                raise WireError(f"§8.2.2: {name!r}: {value!r}")
        if not VALUE.fullmatch(value):
            raise WireError(f"§8.2.1: value {value!r} of {name!r}")


def check_pseudo(fields: Fields, *, request: bool) -> None:
    pseudo = [name for name, _ in fields if name.startswith(b":")]
    if len(pseudo) != len(set(pseudo)):
        raise WireError(f"§8.3: twice in {pseudo!r}")
    got = dict(fields)
    if not request:
        if pseudo != [b":status"] or not re.fullmatch(rb"[1-5][0-9][0-9]", got[b":status"]) or got[b":status"] == b"101":
            raise WireError(f"§8.3.2, §8.6: {fields!r}")
        return
    known = {b":method", b":scheme", b":authority", b":path", b":protocol"}
    if set(pseudo) - known:
        raise WireError(f"§8.3.1: {pseudo!r}")
    if not {b":method", b":scheme", b":path"} <= set(pseudo):
        raise WireError(f"§8.3.1: {pseudo!r}")
    if not re.fullmatch(rb"/[\x21-\x22\x24-\x7e]*|\*", got[b":path"]) or (got[b":path"] == b"*") > (got[b":method"] == b"OPTIONS"):
        raise WireError(f"§8.3.1: path {got[b':path']!r}")
    if b":protocol" in got and got[b":method"] != b"CONNECT":
        raise WireError("RFC 8441 §4")
    hosts = [value for name, value in fields if name == b"host"]
    if hosts and hosts != [got.get(b":authority")]:
        raise WireError(f"§8.3.1: host {hosts!r} beside {got.get(b':authority')!r}")
    if b":authority" not in got and not hosts:
        raise WireError("§8.3.1: neither :authority nor host")


class Stream:
    """One stream as this end sees it; `ended` and `reset` are what the router said."""

    def __init__(self, link: H2Link, number: int) -> None:
        self.link, self.id = link, number
        self.fields: Fields = []
        self.interim: list[Fields] = []
        self.body = bytearray()
        self.trailers: Fields = []
        self.frames = 0
        self.ended = False
        self.reset: int | None = None
        self.own_end = False
        self.own_reset = False
        self.method = b"GET"
        self.recv_window = link.own[INITIAL_WINDOW]
        self.send_window = link.peer[INITIAL_WINDOW]
        self.updates = 0
        self.task: asyncio.Task | None = None

    @property
    def open(self) -> bool:
        return not (self.reset is not None or self.own_reset or (self.ended and self.own_end))

    @property
    def status(self) -> int:
        return int(self.get(b":status") or 0)

    @property
    def path(self) -> bytes | None:
        return self.get(b":path")

    def get(self, name: bytes) -> bytes | None:
        found = [value for key, value in self.fields if key == name]
        return b", ".join(found) if found else None

    def names(self) -> set[bytes]:
        return {name for name, _ in self.fields}

    async def headed(self, timeout_s: float = PATIENCE_S) -> Stream:
        await self.link.wait(lambda: bool(self.fields) or self.reset is not None, timeout_s)
        return self

    async def done(self, timeout_s: float = PATIENCE_S) -> Stream:
        """Until the router has ended or reset it, or the connection is gone."""
        await self.link.wait(lambda: self.ended or self.reset is not None, timeout_s)
        return self

    async def was_reset(self, timeout_s: float = PATIENCE_S) -> int | None:
        """Until the router has reset it, also after it ended its half; None if the connection went first."""
        await self.link.wait(lambda: self.reset is not None, timeout_s)
        return self.reset

    async def has(self, size: int, timeout_s: float = PATIENCE_S) -> None:
        await self.link.wait(lambda: len(self.body) >= size or self.reset is not None, timeout_s)
        assert len(self.body) >= size, (bytes(self.body), self.reset, self.link.ended)

    async def send_head(self, fields: Fields, *, end: bool = False) -> bool:
        self.own_end |= end
        return await self.link.send(headers(self.id, fields, end=end))

    async def send(self, payload: bytes, *, end: bool = False, size: int = 16_384) -> bool:
        """As the windows allow."""
        left = memoryview(payload)
        while True:
            most = min(self.send_window, self.link.send_window)
            if left and most <= 0:
                await self.link.wait(lambda: min(self.send_window, self.link.send_window) > 0 or self.reset is not None)
                if self.reset is not None or self.link.ended:
                    return False
                continue
            piece = bytes(left[: min(size, max(most, 0))])
            left = left[len(piece) :]
            self.send_window -= len(piece)
            self.link.send_window -= len(piece)
            last = end and not left
            if piece or last:
                self.own_end |= last
                if not await self.link.send(data(self.id, piece, end=last)):
                    return False
            if not left:
                return True

    async def cancel(self, code: int = CANCEL) -> None:
        self.own_reset = True
        await self.link.send(rst(self.id, code))

    async def answer(self, body: bytes = b"", *more: tuple[bytes, bytes], status: bytes = b"200") -> bool:
        await self.send_head([(b":status", status), *more], end=not body)
        return not body or await self.send(body, end=True)


class H2Link(Link):
    """One connection of HTTP/2: every frame that comes in is checked at once."""

    serves = False

    def __init__(self, sock: socket.socket) -> None:
        self.own = dict(DEFAULTS)  # ours, as far as the router acknowledged them
        self.peer = dict(DEFAULTS)
        self.unacked: deque[dict[int, int]] = deque()
        self.sent_settings = 0
        self.got_settings = 0
        self.acked_settings = 0
        self.streams: dict[int, Stream] = {}
        self.highest = 0
        self.recv_window = 65_535
        self.send_window = 65_535
        self.goaways: list[tuple[int, int, bytes]] = []
        self.sent_goaway: int | None = None
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.sent_pings: list[bytes] = []
        self.frames: list[tuple[int, int, int]] = []
        self.most_open = 0
        self.violation: str | None = None
        self.decoder = hpack.Decoder(max_header_list_size=1 << 22)
        self.acks_settings = self.acks_pings = self.refills = True
        self.started = False
        self._block: tuple[int, int, bytearray] | None = None
        self._out = bytearray()
        self._writing = False
        self._splitting = False
        self._replies = bytearray()
        super().__init__(sock)

    # -- out ----------------------------------------------------------------------------------------------

    def post(self, data: bytes) -> None:
        """Queue it; it goes as fast as the router reads."""
        if self.shut:
            return
        self._out += data
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                loop.add_writer(self.sock, self._flush)
            return
        except OSError:
            self._out.clear()
            self.broken = True
        if self._writing:
            self._writing = False
            loop.remove_writer(self.sock)
        self._news.set()

    broken = False

    def reply(self, data: bytes) -> None:
        """What the kit says by itself; never in the middle of something that is sent in pieces."""
        if self._splitting:
            self._replies += data
        else:
            self.post(data)

    async def send(self, data: bytes, mode: str = "whole") -> bool:
        self._splitting = mode != "whole"
        try:
            return await self._send(data, mode)
        finally:
            self._splitting = False
            replies, self._replies = bytes(self._replies), bytearray()
            self.post(replies)

    async def _send(self, data: bytes, mode: str) -> bool:
        for piece in split(data, mode):
            if self.shut or self.broken or self.ended == "reset":
                return False
            self.post(piece)
            if self._out:
                async with asyncio.timeout(PATIENCE_S):
                    while self._out and self.ended is None:
                        self._news.clear()
                        await self._news.wait()
            if mode != "whole":
                for _ in range(3):  # a chance for the router to see this piece alone; nothing depends on it
                    await asyncio.sleep(0)
        return not self.broken

    def post_settings(self, values: dict[int, int]) -> None:
        self.unacked.append(values)
        self.sent_settings += 1
        self.post(settings(values))

    async def roundtrip(self, timeout_s: float = PATIENCE_S) -> bool:
        """PING, and its answer: all that was sent before has been read. False at the connection's end."""
        payload = b"%08d" % len(self.sent_pings)
        self.sent_pings.append(payload)
        self.post(ping(payload))
        await self.wait(lambda: payload in self.pongs, timeout_s)
        return payload in self.pongs

    # -- in -----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        import time

        loop = asyncio.get_running_loop()
        while self.ended is None:
            await self.flowing.wait()
            try:
                data = await loop.sock_recv(self.sock, 1 << 18)
            except OSError:
                self.ended = "reset"
            else:
                self.unread += data
                self.total += len(data)
                if not data:
                    self.ended = "eof"
                try:
                    self._take()
                except WireError as error:
                    self.violation = str(error)
                    self.ended = "violation"
            if self.ended:
                self.ended_at = time.monotonic()
            self._news.set()
            if self.violation:
                self.abort()

    def _take(self) -> None:
        unread = self.unread
        if not self.started and self.serves:
            if not PREFACE.startswith(unread[:24]):
                raise WireError(f"§3.4: preface {bytes(unread[:24])!r}")
            if len(unread) < 24:
                return
            del unread[:24]
        while len(unread) >= 9:
            length = int.from_bytes(unread[:3], "big")
            if length > self.own[MAX_FRAME]:
                raise WireError(f"§4.2: a frame of {length}")
            if len(unread) < 9 + length:
                break
            kind, flags, stream = unread[3], unread[4], int.from_bytes(unread[5:9], "big")
            payload = bytes(unread[9 : 9 + length])
            del unread[: 9 + length]
            if not self.started:
                self.started = True
                if kind != SETTINGS or flags & ACK:
                    raise WireError(f"§3.4: first frame is {kind}")
            self.frames.append((kind, flags, stream))
            self._frame(kind, flags, stream, payload)
        if self.ended == "eof" and unread:
            raise WireError(f"ends inside a frame: {bytes(unread[:64])!r}")

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if number >> 31:
            raise WireError("§4.1: reserved bit")
        if self._block and (kind != CONTINUATION or number != self._block[0]):
            raise WireError(f"§6.10: {kind} inside a field block")
        if kind not in FLAGS:
            raise WireError(f"§5.5, §6.6: a frame of type {kind}")
        if flags & ~FLAGS[kind]:
            raise WireError(f"§4.1: flags {flags:#x} of {kind}")
        if (number == 0) != (kind in {SETTINGS, PING, GOAWAY}) and kind != WINDOW_UPDATE:
            raise WireError(f"§6: {kind} on stream {number}")
        if flags & PADDED and kind in {DATA, HEADERS}:
            if not payload or payload[0] >= len(payload):
                raise WireError("§6.1: padding")
            pad = payload[0]
            bare = payload[1 : len(payload) - pad]
        else:
            bare = payload
        sizes = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
        if kind in sizes and len(payload) != sizes[kind]:
            raise WireError(f"§6: {kind} of {len(payload)} bytes")
        if kind == DATA:
            self._data(number, len(payload), bare, flags)
        elif kind == HEADERS:
            if flags & PRIORITY_FLAG:
                if len(bare) < 5 or int.from_bytes(bare[:4], "big") & MOST == number:
                    raise WireError("§6.2: priority")
                bare = bare[5:]
            self._block = (number, flags, bytearray(bare))
            if flags & END_HEADERS:
                self._headers()
        elif kind == CONTINUATION:
            if not self._block:
                raise WireError("§6.10: CONTINUATION behind nothing")
            self._block[2].extend(payload)
            if flags & END_HEADERS:
                self._headers()
        elif kind == RST_STREAM:
            stream = self._known(number)
            if stream.reset is not None:
                raise WireError(f"§5.1: RST_STREAM of {number} twice")
            stream.reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS:
            self._settings(flags, payload)
        elif kind == PING:
            if flags & ACK:
                if payload not in self.sent_pings and not self.raw_pings:
                    raise WireError(f"§6.7: an answer to no PING: {payload!r}")
                self.pongs.append(payload)
            else:
                self.pings.append(payload)
                if self.acks_pings:
                    self.reply(ping(payload, ACK))
        elif kind == GOAWAY:
            if len(payload) < 8:
                raise WireError("§6.8: length")
            last, code = struct.unpack(">II", payload[:8])
            if self.goaways and last > self.goaways[-1][0]:
                raise WireError(f"§6.8: last stream grew from {self.goaways[-1][0]} to {last}")
            self.goaways.append((last, code, payload[8:]))
        elif kind == WINDOW_UPDATE:
            by = int.from_bytes(payload, "big")
            if not 0 < by <= MOST:
                raise WireError(f"§6.9: by {by}")
            if number == 0:
                self.send_window += by
                over = self.send_window
            else:
                stream = self._known(number)
                if stream.reset is not None:
                    raise WireError(f"§5.1: WINDOW_UPDATE for {number} behind its RST_STREAM")
                stream.send_window += by
                stream.updates += by
                over = stream.send_window
            if over > MOST:
                raise WireError(f"§6.9.1: window of {over}")

    raw_pings = False

    def _known(self, number: int) -> Stream:
        """A stream that is not idle."""
        if number not in self.streams:
            if self.serves or number % 2 == 0:
                raise WireError(f"§5.1: a frame on idle stream {number}")
            self.streams[number] = Stream(self, number)  # opened by bytes that a test wrote
        return self.streams[number]

    def _data(self, number: int, size: int, payload: bytes, flags: int) -> None:
        self.recv_window -= size
        if self.recv_window < 0:
            raise WireError(f"§6.9: {-self.recv_window} bytes beyond the connection's window")
        stream = self._known(number)
        if stream.reset is not None or stream.ended:
            raise WireError(f"§5.1: DATA on {number} behind its end")
        if not stream.own_reset:
            if not stream.fields:
                raise WireError("§8.1: DATA before the head")
            if stream.trailers:
                raise WireError("§8.1: DATA behind trailers")
            stream.recv_window -= size
            if stream.recv_window < 0 and size:
                raise WireError(f"§6.9: {-stream.recv_window} bytes beyond the window of {number}")
            stream.body += payload
            stream.frames += 1
        if flags & END_STREAM:
            self._end(stream)
        if self.refills and size:
            self.recv_window += size
            out = window(0, size)
            if not flags & END_STREAM and not stream.own_reset:
                stream.recv_window += size
                out += window(number, size)
            self.reply(out)

    def _headers(self) -> None:
        assert self._block
        number, flags, encoded = self._block
        self._block = None
        try:
            found = self.decoder.decode(bytes(encoded), raw=True)
        except hpack.HPACKError as error:
            raise WireError(f"RFC 7541: {error!r} in {bytes(encoded)!r}") from None
        fields = [(bytes(name), bytes(value)) for name, value in found]
        if sum(len(name) + len(value) + 32 for name, value in fields) > self.own[MAX_LIST]:
            raise WireError("§6.5.2: a field section beyond SETTINGS_MAX_HEADER_LIST_SIZE")
        if self.serves and number not in self.streams:
            if number % 2 == 0 or number <= self.highest:
                raise WireError(f"§5.1.1: stream {number} behind {self.highest}")
            self.highest = number
            self.streams[number] = Stream(self, number)
            opened = sum(stream.open for stream in self.streams.values())
            self.most_open = max(self.most_open, opened)
            if opened > self.own[MAX_STREAMS]:
                raise WireError(f"§5.1.2: {opened} streams open")
        stream = self._known(number)
        if stream.reset is not None or stream.ended:
            raise WireError(f"§5.1: HEADERS on {number} behind its end")
        if stream.own_reset:
            return
        if not self.serves and self.goaways and number > self.goaways[-1][0]:
            raise WireError(f"§6.8: an answer on {number} behind GOAWAY {self.goaways[-1]}")
        check_fields(fields)
        end = bool(flags & END_STREAM)
        if stream.fields:
            if not end:
                raise WireError("§8.1: trailers without END_STREAM")
            if any(name.startswith(b":") for name, _ in fields):
                raise WireError(f"§8.1: pseudo-fields in trailers {fields!r}")
            stream.trailers = fields
        else:
            check_pseudo(fields, request=self.serves)
            if not self.serves and dict(fields)[b":status"].startswith(b"1"):
                if end:
                    raise WireError("§8.1: 1xx with END_STREAM")
                stream.interim.append(fields)
                return
            stream.fields = fields
            if self.serves:
                if b":protocol" in dict(fields) and self.own.get(CONNECT_PROTOCOL) != 1:
                    raise WireError("RFC 8441 §3: :protocol without SETTINGS_ENABLE_CONNECT_PROTOCOL")
                stream.method = dict(fields)[b":method"]
                self.begin(stream)
        if end:
            self._end(stream)

    def begin(self, stream: Stream) -> None:
        """A request's head came."""

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        lengths = [value for name, value in stream.fields if name == b"content-length"]
        if not lengths or stream.own_reset:
            return
        if len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0]):
            raise WireError(f"content-length {lengths!r}")
        if not self.serves and (stream.method == b"HEAD" or stream.status in {204, 304}) and not stream.body:
            return
        if int(lengths[0]) != len(stream.body):
            raise WireError(f"§8.1.1: content-length {lengths[0]!r} and {len(stream.body)} bytes of DATA")

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            if payload:
                raise WireError("§6.5: ACK with a payload")
            self.acked_settings += 1
            if not self.unacked:
                if self.raw_settings:
                    return
                raise WireError("§6.5.3: an ACK of nothing")
            for key, value in self.unacked.popleft().items():
                if key == INITIAL_WINDOW:
                    for stream in self.streams.values():
                        stream.recv_window += value - self.own[key]
                elif key == TABLE_SIZE:
                    self.decoder.max_allowed_table_size = value
                self.own[key] = value
            return
        if len(payload) % 6:
            raise WireError("§6.5: length")
        self.got_settings += 1
        for key, value in struct.iter_unpack(">HI", payload):
            if key == INITIAL_WINDOW:
                if value > MOST:
                    raise WireError("§6.5.2: SETTINGS_INITIAL_WINDOW_SIZE")
                for stream in self.streams.values():
                    stream.send_window += value - self.peer[key]
            if key == MAX_FRAME and not 16_384 <= value < 1 << 24:
                raise WireError("§6.5.2: SETTINGS_MAX_FRAME_SIZE")
            if key in {ENABLE_PUSH, CONNECT_PROTOCOL, NO_PRIORITIES} and value > 1:
                raise WireError(f"a value of {value} for {key}")
            if key == ENABLE_PUSH and value and not self.serves:
                raise WireError("§6.5.2: a server sent SETTINGS_ENABLE_PUSH 1")
            if key == CONNECT_PROTOCOL and self.peer.get(key) and not value:
                raise WireError("RFC 8441 §3: ENABLE_CONNECT_PROTOCOL withdrawn")
            self.peer[key] = value
        if self.acks_settings:
            self.reply(frame(SETTINGS, ACK))

    raw_settings = False


class H2Client(H2Link):
    """The downstream peer."""

    next = 1

    @classmethod
    async def connect(cls, port: int, values: dict[int, int] | None = None, *, bare: bool = False, receive_buffer: int = 0) -> H2Client:
        """`bare` sends nothing; else the preface with these settings is sent and the router's are awaited."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        self = cls(sock)
        if not bare:
            self.post(PREFACE)
            self.post_settings({ENABLE_PUSH: 0, **(values or {})})
            await self.wait(lambda: self.started and not self.unacked)
            assert self.started and not self.unacked, f"no SETTINGS came: {self.ended} {self.violation}"
        return self

    def stream(self, number: int | None = None, method: bytes = b"GET") -> Stream:
        """A stream whose HEADERS a test sends by itself."""
        number = number or self.next
        self.next = max(self.next, number + 2)
        self.streams[number] = stream = Stream(self, number)
        stream.method = method
        return stream

    async def open(self, fields: Fields, *, end: bool = True) -> Stream:
        stream = self.stream(method=dict(fields).get(b":method", b""))
        await stream.send_head(fields, end=end)
        return stream

    async def get(self, path: bytes = b"/t", *more: tuple[bytes, bytes]) -> Stream:
        """A plain request on this connection; its response must come whole."""
        stream = await (await self.open(head(b"GET", path, *more))).done()
        assert stream.ended, f"no answer: {self.describe()} reset={stream.reset}"
        return stream

    async def post_body(self, path: bytes, body: bytes, *more: tuple[bytes, bytes]) -> Stream:
        stream = await self.open(head(b"POST", path, *more), end=not body)
        if body:
            await stream.send(body, end=True)
        return await stream.done()

    def describe(self) -> str:
        return f"ended={self.ended} violation={self.violation} goaways={self.goaways} frames={self.frames[-8:]}"


class H2ReplicaConnection(H2Link):
    serves = True

    def __init__(self, sock: socket.socket, replica: H2Replica) -> None:
        self.replica = replica
        super().__init__(sock)
        if replica.opening is not None:
            replica.opening(self)
        else:
            self.post_settings(dict(replica.settings))

    def begin(self, stream: Stream) -> None:
        if stream.path == b"/barrier":
            script = echo
        else:
            self.replica.seen.append(stream)
            script = self.replica.script
        stream.task = asyncio.ensure_future(self._run(script, stream))

    async def _run(self, script: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        try:
            await script(stream)
        except (TimeoutError, AssertionError) as error:
            self.replica.failures.append(f"script: {error!r}")

    @property
    def busy(self) -> bool:
        return any(stream.open for stream in self.streams.values())

    def close(self) -> None:
        for stream in self.streams.values():
            if stream.task and stream.task is not asyncio.current_task():
                stream.task.cancel()
        super().close()


async def echo(stream: Stream) -> None:
    """Answer with the request's path as the body."""
    await stream.done(None)
    if stream.ended:
        body = b"" if stream.method == b"HEAD" else stream.path or b""
        await stream.answer(body, (b"content-length", b"%d" % len(stream.path or b"")))


def answer(payload: Callable[[int], bytes] | bytes, end: str = "", *, early: bool = False):
    """Script: read the request (unless `early`), write these bytes, then keep the connection, FIN or RST it."""

    async def script(stream: Stream) -> None:
        if not early:
            await stream.done(None)
        stream.own_end = True
        await stream.link.send(payload(stream.id) if callable(payload) else payload)
        if end == "fin":
            stream.link.finish()
        elif end == "rst":
            from wirekit import drained

            await drained(stream.link.sock)
            stream.link.abort()

    return script


class H2Replica:
    """Listens for the router; records the requests that came, answers each as `script` says."""

    def __init__(self) -> None:
        self.connections: list[H2ReplicaConnection] = []
        self.past: list[str] = []
        self.forget()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._accepting = asyncio.ensure_future(self._accept())

    def forget(self) -> None:
        self.script: Callable[[Stream], Awaitable[None]] = echo
        self.settings: dict[int, int] = {MAX_STREAMS: 100}
        self.opening: Callable[[H2ReplicaConnection], None] | None = None
        self.seen: list[Stream] = []
        self.failures: list[str] = []

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            self.connections.append(H2ReplicaConnection(sock, self))

    @property
    def violations(self) -> list[str]:
        return [link.violation for link in self.connections if link.violation] + self.failures

    @property
    def live(self) -> list[H2ReplicaConnection]:
        return [link for link in self.connections if not link.shut and not link.ended]

    async def reset(self) -> None:
        """A new test begins with no connection, so that nothing of the last one is left."""
        for link in self.connections:
            if not link.shut:
                link.close()
        self.connections = []
        self.forget()

    def stop(self) -> None:
        self._accepting.cancel()
        self.listener.close()
        for link in self.connections:
            if not link.shut:
                link.abort()


def stop_task(task: asyncio.Task) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.cancel()
