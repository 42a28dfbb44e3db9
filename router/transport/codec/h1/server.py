"""The server's role of HTTP/1.1: requests in, responses out, one exchange at a time.

Reading                                         Writing
    HEAD --request line and fields--> BODY          NOTHING --send_head--> LENGTH | CHUNKS | UNTIL_CLOSE |
    HEAD --no body--> COMPLETE                                             BODILESS | TUNNEL
    HEAD --handshake--> UPGRADE                     any --end--> NOTHING, then the next head is read
    BODY --its end--> COMPLETE                      any --reset--> closed, the body left unended
    UPGRADE --101 sent--> TUNNEL
    COMPLETE --response ended--> HEAD (pipelined input waits meanwhile)
    any --malformed, refused, over--> DISCARD

The connection is kept only if both sides are complete, the client wants it and nobody drains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER, TURN_S
from router.errors import WIRE, Kind, ProxyError, Source
from router.local_reply import local_reply
from router.stream import (
    CLOSE_ABORT,
    CLOSE_FLUSH,
    CLOSE_LINGER,
    CLOSE_NO,
    HOLD_PEER_FULL,
    DownstreamStream,
)
from router.transport.codec.ending import Ending
from router.transport.codec.h1.body import LAST_CHUNK, ChunkedReader, write_trailers
from router.transport.codec.h1.connection import (
    BODILESS,
    CHUNKS,
    HEAD_INCOMPLETE,
    HEAD_TOO_LONG,
    LENGTH,
    NOTHING,
    TUNNEL,
    UNTIL_CLOSE,
    H1Connection,
    find_head_end,
)
from router.transport.codec.h1.head import (
    CHUNKED,
    HTTP_10,
    KEEP_ALIVE,
    MAX_HEAD_BYTES,
    bad_request,
    parse_request,
    write_response,
)
from router.transport.codec.websocket import FrameBoundary, accept_value, close_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, ResponseHead
    from router.stream import RequestReceiver, Shell
    from router.transport.codec.h1.limits import ServerLimits

# What is being read; NOTHING..TUNNEL of `connection` say how a body is delimited and serve here as well.
_HEAD: Final = 10
_COMPLETE: Final = 11
_UPGRADE: Final = 12
_DISCARD: Final = 13
_CR: Final = 13
MAX_BLANK_LINES = 4  # before one request line
_BODY_STATES: Final = (LENGTH, CHUNKS)


class H1Server(H1Connection, DownstreamStream):
    """One client connection. It is its own `DownstreamStream`, for one exchange after another."""

    __slots__ = (
        "_announced_close",
        "_bits",
        "_blank_lines",
        "_chunks",
        "_draining",
        "_ending",
        "_eof",
        "_frames",
        "_full_since_s",
        "_head_since_s",
        "_idle_s",
        "_is_head_request",
        "_is_retiring",
        "_keep_alive_s",
        "_limits",
        "_on_refused",
        "_on_request",
        "_reading",
        "_receiver",
        "_remaining",
        "_searched",
        "_websocket_key",
        "_writing",
    )

    def __init__(
        self,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        on_refused: Callable[[ProxyError], None],
        limits: ServerLimits,
        shell: Shell,
        now: float,
    ) -> None:
        super().__init__(shell, now)
        self._on_request = on_request
        self._on_refused = on_refused
        self._limits = limits
        self._idle_s = limits.idle_s
        self._keep_alive_s = limits.keep_alive_s
        self._is_retiring = False
        self._receiver: RequestReceiver | None = None
        self._reading = _HEAD
        self._writing = NOTHING
        self._bits = 0
        self._announced_close = False
        self._remaining = 0
        self._searched = 0
        self._blank_lines = 0
        self._chunks: ChunkedReader | None = None
        self._frames: FrameBoundary | None = None
        self._websocket_key = b""
        self._is_head_request = False
        self._draining = False
        self._eof = False
        self._head_since_s = 0.0
        self._full_since_s = 0.0
        self._ending: Ending | None = None

    # -- bytes in -------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take input, or continue with what was held when `data` is empty."""
        if data:
            self.last_moved_s = now
        self.has_held_input = False
        if self._stash:
            data = self._stash + data
            self._stash = b""
            self.wants_read = not self._holds & HOLD_PEER_FULL
        while data:
            reading = self._reading
            if reading == _HEAD:
                if self._full_since_s or self._draining:
                    self._keep(data)  # the last answer is not even written: no further request yet
                    return
                data = self._read_head(data, now)
                continue
            if reading == _DISCARD:
                return
            if self._holds or reading in (_COMPLETE, _UPGRADE):
                self._keep(data)
                return
            receiver = self._receiver
            assert receiver is not None
            if reading == TUNNEL:
                receiver.request_data(data, False)
                break
            if reading == LENGTH:
                remaining = self._remaining - len(data)
                self._remaining = remaining
                if remaining > 0:
                    receiver.request_data(data, False)
                    break
                self._reading = _COMPLETE
                body = data if not remaining else data[:remaining]
                data = data[remaining:] if remaining else b""
                receiver.request_data(body, True)
            else:
                data = self._read_chunks(data, receiver)
        if self._eof and not self._stash:
            if self._reading == TUNNEL:
                self._end_tunnel_input()
            elif self._reading in _BODY_STATES:
                self._lose_client()
                self._shell.touch()  # its end was seen long ago: nothing else closes the transport

    def _read_head(self, data: bytes, now: float) -> bytes:
        if not self._head_since_s:
            self._head_since_s = now
        if data[0] == _CR:
            # RFC 9112 §2.2: an empty line before the request line is ignored; more than a few are an attack.
            if data != b"\r":
                self._blank_lines += 1
                self._shell.watch()
                if data.startswith(b"\r\n") and self._blank_lines <= MAX_BLANK_LINES:
                    data = data[2:]
                    if not data:
                        self._head_since_s = 0.0  # nothing of a head yet: the connection is idle
                    return data
                self._refuse(bad_request("something else than a request line stands first"))
                return b""
            self._stash = data
            self._shell.watch()
            return b""
        end = data.find(b"\r\n\r\n") if not self._searched else -1
        if end < 0 or end > MAX_HEAD_BYTES:
            end = find_head_end(data, self._searched)
        if end < 0:
            if end == HEAD_INCOMPLETE:
                self._searched = len(data)
                self._stash = data
                self._shell.watch()  # a head has less time than an idle connection
            elif end == HEAD_TOO_LONG:
                self._refuse(bad_request("the head is too long", Kind.HEAD_TOO_LARGE))
            else:
                self._refuse(bad_request("a line ends in a bare LF"))
            return b""
        self._searched = 0
        self._head_since_s = 0.0
        self._blank_lines = 0
        parsed = parse_request(data[:end])
        if not isinstance(parsed, tuple):
            self._refuse(parsed)
            return b""
        head, bits, key = parsed
        self._bits = bits
        self._announced_close = not bits & KEEP_ALIVE
        self._is_head_request = head.shape.method == b"HEAD"
        ended = False
        if bits & CHUNKED:
            self._reading = CHUNKS
            self._chunks = ChunkedReader()
        elif head.length:
            self._reading = LENGTH
            self._remaining = head.length
        elif key:
            self._reading = _UPGRADE
            self._websocket_key = key
        else:
            self._reading = _COMPLETE
            ended = True
        receiver = self._receiver = self._on_request(self)
        receiver.request_head(head, ended)
        return data[end + 4 :]

    def _read_chunks(self, data: bytes, receiver: RequestReceiver) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        payload = chunks.read(data)
        if chunks.error:
            self._fail(bad_request(chunks.error))
            return b""
        if not chunks.is_done:
            if payload:
                receiver.request_data(payload, False)
            return b""
        self._reading = _COMPLETE
        self._chunks = None
        if chunks.trailers:
            if payload:
                receiver.request_data(payload, False)
            if self._receiver is receiver:  # the data may have ended the exchange: body over its limit
                receiver.request_trailers(chunks.trailers)
        else:
            receiver.request_data(payload, True)
        return chunks.rest

    def _keep(self, data: bytes) -> None:
        self._stash = data
        if len(data) > self._limits.max_held_bytes and self.wants_read:
            self.wants_read = False
            self._shell.touch()

    def receive_eof(self, now: float) -> bool:
        """Take the client's end of input.

        In a tunnel it is passed on. A client that announced `Connection: close` (or speaks HTTP/1.0) may
        half-close after its request and still gets the response; any other that ends its side while an
        exchange is under way is gone, and the replica must learn it at once.
        """
        receiver = self._receiver
        if receiver is None or self.close:
            return False
        if self._reading == TUNNEL:
            if self._stash:
                self._eof = True  # comes behind what is held
            else:
                self._end_tunnel_input()
            return True
        if self._announced_close and (self._reading == _COMPLETE or self._stash):
            self._eof = True
            return True
        self._lose_client()
        return False

    def _end_tunnel_input(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        self._reading = _DISCARD
        is_over = self._writing == NOTHING
        if is_over:
            self._receiver = None  # both halves ended
        receiver.request_data(b"", True)
        if is_over:
            self._end_with(CLOSE_FLUSH)

    def receive_lost(self, now: float) -> None:
        """The transport is gone."""
        self._lose_client()

    def _lose_client(self) -> None:
        receiver = self._receiver
        self._receiver = None
        self._reading = _DISCARD
        self._stash = b""
        self.close = CLOSE_ABORT
        if receiver is not None:
            receiver.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))

    def _fail(self, error: ProxyError) -> None:
        """Hand a fault in the middle of a request to its exchange, which answers or resets."""
        self._reading = _DISCARD
        self._stash = b""
        receiver = self._receiver
        if receiver is not None:
            receiver.request_reset(error)

    def _refuse(self, error: ProxyError) -> None:
        """Answer a head that led to no exchange, and close."""
        self._on_refused(error)
        self._reading = _DISCARD
        self._stash = b""
        self._bits = 0
        self._is_head_request = False  # of the request before
        head, body = local_reply(error, b"no", b"")
        self.send_head(head, False)
        self.send_data(body, True)

    # -- the stream -----------------------------------------------------------------------------------

    def limit_idle(self, idle_s: float) -> None:
        """Replace the general limit for this request."""
        self._idle_s = idle_s
        if idle_s < TURN_S:
            self._shell.watch()  # else the wheel looks soon enough by itself

    def send_informational(self, head: ResponseHead) -> None:
        """Queue a 1xx; HTTP/1.0 has none (RFC 9110 §15.2)."""
        if not self._bits & HTTP_10:
            self._queue(write_response(head, b""))

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Queue the final head, with the framing this connection needs."""
        reading = self._reading
        if reading == _UPGRADE:
            if head.shape.accepts_tunnel:
                self._accept_tunnel(head)
                return
            reading = self._reading = _COMPLETE
            self._bits &= ~KEEP_ALIVE  # what follows a refused handshake is not to be read as a request
        status = head.shape.status
        bits = self._bits
        length = head.length
        if self._is_head_request or status in (204, 304):
            # RFC 9112 §6.3: no body whatever the fields say; RFC 9110 §8.6: no length on a 204.
            framing = b"" if length is None or status == 204 else b"content-length: %d\r\n" % length
            self._writing = BODILESS
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
            self._writing = LENGTH
        elif end:
            framing = b"content-length: 0\r\n"
            self._writing = LENGTH
        elif bits & HTTP_10:
            framing = b""
            bits &= ~KEEP_ALIVE
            self._writing = UNTIL_CLOSE
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._writing = CHUNKS
        if not bits & KEEP_ALIVE or self._is_retiring or reading != _COMPLETE:
            # The client's request is not complete: an early answer, after which its rest is not awaited.
            bits &= ~KEEP_ALIVE
            framing += b"connection: close\r\n"
        elif bits & HTTP_10:
            framing += b"connection: keep-alive\r\n"
        self._bits = bits
        self._queue(write_response(head, framing))
        if end:
            self._end_response()

    def send_data(self, data: bytes, end: bool) -> None:
        """Queue body bytes in the framing the head declared."""
        out = self._out
        if not out:
            self._shell.touch()
        writing = self._writing
        if writing == CHUNKS:
            if data:
                self._add_chunk(data)
            if end:
                out.append(LAST_CHUNK)
        elif data and writing != BODILESS:
            if writing == TUNNEL:
                frames = self._frames
                if frames is not None:
                    frames.follow(data)
            out.append(data)
        if end:
            self._end_response()

    def send_trailers(self, trailers: Headers) -> None:
        """Queue trailers where the framing has room for them; the exchange asked whether they are wanted."""
        if self._writing == CHUNKS:
            self._queue(write_trailers(trailers))
        self._end_response()

    def reset(self, error: ProxyError) -> None:
        """End a response that cannot be completed, so that the client sees that it was not."""
        self._receiver = None
        self._reading = _DISCARD
        self._stash = b""
        if self._writing == TUNNEL:
            frames = self._frames
            if frames is not None and frames.may_close:
                self._queue(close_frame(WIRE[error.kind].close_code, error.kind.value))
            self._end_with(CLOSE_FLUSH)
        elif self._writing in (LENGTH, CHUNKS):
            self._end_with(CLOSE_FLUSH)  # short of its length, or without the last chunk: RFC 9112 §8
        else:
            self._end_with(CLOSE_ABORT)  # a FIN would end a body until close as if it were whole

    def _accept_tunnel(self, head: ResponseHead) -> None:
        framing = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: %b\r\n" % accept_value(
            self._websocket_key
        )
        self._reading = self._writing = TUNNEL
        self._frames = FrameBoundary()
        self._queue(write_response(head, framing, 101))
        if self._stash:
            self.has_held_input = True

    def _end_response(self) -> None:
        writing = self._writing
        self._writing = NOTHING
        if writing == TUNNEL:
            frames = self._frames
            if frames is not None and frames.may_close:  # ended without a close frame: RFC 6455 §7.1.1 forbids it
                self._out.append(close_frame(WIRE[Kind.UPSTREAM_CLOSED].close_code, Kind.UPSTREAM_CLOSED.value))
            self._out.append(b"")  # half-close: the client may still send
            if self._reading != TUNNEL:
                self._receiver = None
                self._end_with(CLOSE_FLUSH)
            return
        self._receiver = None
        self._holds = 0
        self._idle_s = self._limits.idle_s
        if self._bits & KEEP_ALIVE and not self._eof:
            self._reading = _HEAD
            if self._keep_alive_s < TURN_S:
                self._shell.watch()  # else the wheel looks soon enough by itself
            if not self.wants_read:  # stopped for a replica that is gone, or for what was pipelined
                self.wants_read = True
                self._shell.touch()
            if self._draining:
                self._end_with(CLOSE_FLUSH)
            elif self._stash:
                self.has_held_input = True
                self._shell.touch()
        elif self._reading == _COMPLETE and not self._stash:
            self._end_with(CLOSE_FLUSH)
        else:
            # Closing with unread input would make the kernel send RST and destroy the answer on its way
            # (RFC 9112 §9.6), so the write side is shut first and input dropped for a while.
            self._reading = _DISCARD
            self._stash = b""
            self._out.append(b"")
            self.wants_read = True
            self._end_with(CLOSE_LINGER)

    # -- flow and time --------------------------------------------------------------------------------

    def take_output(self, now: float) -> list[bytes]:
        """Hand over the queued output; the end begins with the last of it."""
        if self.close and self._ending is None:
            self._ending = Ending(now, self._limits.linger_s)
            self._shell.watch()
        return super().take_output(now)

    def transport_full(self, full: bool, now: float) -> None:
        """Pass the transport's watermark on to the exchange."""
        receiver = self._receiver
        if full:
            self._full_since_s = now
            if receiver is not None:
                receiver.pause_response()
            self._shell.watch()
        else:
            self._full_since_s = 0.0
            if receiver is not None:
                receiver.resume_response()
            elif self._stash:
                self.has_held_input = True
                self._shell.touch()

    def next_deadline(self) -> float | None:
        """The first of: end of lingering, stalled reader, slow head, idle connection, idle exchange."""
        if self.close:
            return self._ending.until_s if self._ending is not None else NEVER
        if self._full_since_s:
            return self._full_since_s + self._limits.stall_s
        if self._head_since_s:
            return self._head_since_s + self._limits.head_s
        if self._receiver is None:
            return self.last_moved_s + self._keep_alive_s
        return self.last_moved_s + self._idle_s

    def handle_deadline(self, now: float) -> None:
        """Act on whichever deadline passed."""
        if self.close:
            limits, ending = self._limits, self._ending
            unsent = self._shell.unsent_bytes()
            if ending is None or not ending.goes_on(unsent, now, limits.linger_s, limits.stall_s):
                self._end_with(CLOSE_ABORT)
        elif self._full_since_s:
            # Nothing can be said to a client that does not read.
            receiver = self._receiver
            self._receiver = None
            self._reading = _DISCARD
            if receiver is not None:
                receiver.request_reset(ProxyError(Kind.CLIENT_STALLED, Source.DOWNSTREAM))
            self._end_with(CLOSE_ABORT)
        elif self._receiver is None and not self._head_since_s:
            self._end_with(CLOSE_FLUSH)
        elif self._receiver is None:
            self._refuse(ProxyError(Kind.REQUEST_TIMEOUT, Source.DOWNSTREAM))
        else:
            self.last_moved_s = now
            self._receiver.request_reset(ProxyError(Kind.IDLE_TIMEOUT, Source.ROUTER))

    def drain(self) -> None:
        """Close when idle, else after the response under way, which says `Connection: close`."""
        self._draining = self._is_retiring = True
        if self._receiver is None and self.close == CLOSE_NO:
            self._end_with(CLOSE_FLUSH)

    def retire(self, now: float) -> None:
        """Say `Connection: close` with the next response head; until one is asked for, wait `retire_s`.

        Closing an idle connection at once would lose the request that its client may just be sending.
        """
        self._is_retiring = True
        if self._receiver is None:
            self.last_moved_s = now
        self._keep_alive_s = min(self._keep_alive_s, self._limits.retire_s)
        self._shell.watch()

    def cut(self, error: ProxyError) -> None:
        """End now: the exchange under way is told, an idle connection closes."""
        self._draining = self._is_retiring = True
        receiver = self._receiver
        if receiver is not None:
            receiver.request_reset(error)
        elif self.close == CLOSE_NO:
            self._end_with(CLOSE_FLUSH)
