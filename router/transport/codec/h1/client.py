"""The client's role of HTTP/1.1: one request at a time to a replica, its response back.

Reading                                            Writing
    IDLE --start--> HEAD                               NOTHING --send_head--> LENGTH | CHUNKS | BODILESS
    HEAD --1xx--> HEAD                                                       | UPGRADE
    HEAD --final--> LENGTH | CHUNKS | UNTIL_CLOSE      any --end--> BODILESS (complete)
    HEAD --101--> TUNNEL                               UPGRADE --101 read--> TUNNEL
    any body --its end--> IDLE, or closed

The connection goes back to its pool only if both sides ended, the replica keeps it open and nothing stands
behind the response; so one client's bytes can never answer another's request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Retry, Source
from router.http import ResponseHead, ResponseShape
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_NO, UpstreamStream
from router.transport.codec.h1.body import LAST_CHUNK, ChunkedReader, write_trailers
from router.transport.codec.h1.connection import (
    BODILESS,
    CHUNKS,
    HEAD_INCOMPLETE,
    LENGTH,
    NOTHING,
    TUNNEL,
    UNTIL_CLOSE,
    H1Connection,
    find_head_end,
)
from router.transport.codec.h1.head import (
    CHUNKED,
    KEEP_ALIVE,
    MAX_HEAD_BYTES,
    UPGRADE_FIELD,
    UPGRADE_OPTION,
    bad_response,
    parse_response,
    write_request,
)
from router.transport.codec.websocket import accept_value, make_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, RequestHead
    from router.stream import ResponseReceiver, Shell

_IDLE: Final = 10
_HEAD: Final = 11
_UPGRADE: Final = 12
_DISCARD: Final = 13

CLOSE_LIMIT_S = 5.0  # for a replica to take what was written before a close
MAX_INFORMATIONAL = 16  # 1xx responses before the final one


class H1Client(H1Connection, UpstreamStream):
    """One connection to a replica. It is its own `UpstreamStream`, for one exchange after another."""

    __slots__ = (
        "_authority",
        "_bits",
        "_chunks",
        "_draining",
        "_eof",
        "_informational",
        "_is_full",
        "_is_head_request",
        "_is_untouched",
        "_is_uploading",
        "_keep_s",
        "_on_idle",
        "_reading",
        "_receiver",
        "_remaining",
        "_searched",
        "_websocket_key",
        "_writing",
        "may_be_untouched",
    )

    def __init__(
        self,
        authority: bytes,
        keep_s: Callable[[], float],
        on_idle: Callable[[], None],
        is_untouched: Callable[[], bool],
        shell: Shell,
        now: float,
    ) -> None:
        super().__init__(shell, now)
        self._authority = authority
        self._keep_s = keep_s
        self._on_idle = on_idle
        self._is_untouched = is_untouched
        self._receiver: ResponseReceiver | None = None
        self._reading = _IDLE
        self._writing = NOTHING
        self._bits = 0
        self._remaining = 0
        self._searched = 0
        self._informational = 0
        self._chunks: ChunkedReader | None = None
        self._is_head_request = False
        self._draining = False
        self._eof = False
        self._is_full = False
        self._is_uploading = False  # a request's head left, and its end did not
        self._websocket_key = b""
        self.may_be_untouched = False

    @property
    def is_idle(self) -> bool:
        """Whether a request may be started."""
        return self._reading == _IDLE and self.close == CLOSE_NO

    def start(self, receiver: ResponseReceiver) -> None:
        """Bind an idle connection to the exchange whose request comes next."""
        assert self._reading == _IDLE
        self._receiver = receiver
        self._reading = _HEAD
        self._informational = 0

    # -- the stream -----------------------------------------------------------------------------------

    def send_head(self, head: RequestHead, end: bool) -> None:
        """Queue the request head."""
        self._is_head_request = head.shape.method == b"HEAD"
        key = b""
        if head.shape.upgrade is not None:
            key = make_key()
            self._writing = _UPGRADE
        elif end:
            self._writing = BODILESS
        elif head.length is not None:
            self._writing = LENGTH
        else:
            self._writing = CHUNKS
        self._websocket_key = key
        self._queue(write_request(head, end, self._authority, key))

    def send_data(self, data: bytes, end: bool) -> None:
        """Queue body bytes, or tunnel bytes once the replica switched; before, it would read them as requests."""
        out = self._out
        if not out:
            self._shell.touch()
        if self._writing == CHUNKS:
            if data:
                self._add_chunk(data)
            if end:
                out.append(LAST_CHUNK)
        elif data and self._writing != _UPGRADE:
            out.append(data)
        if end:
            self._end_request()

    def send_trailers(self, trailers: Headers) -> None:
        """Queue the trailers; a request with a declared length has no room for them (RFC 9112 §6.5)."""
        if self._writing == CHUNKS:
            self._queue(write_trailers(trailers))
        self._end_request()

    def reset(self, error: ProxyError) -> None:
        """Cancel: HTTP/1.1 knows no other way than to close the connection."""
        self._receiver = None
        self._reading = _DISCARD
        self._stash = b""
        self._end_with(CLOSE_ABORT)

    def is_untouched(self) -> bool:
        """Whether the replica's kernel took no byte of the current request."""
        return self._is_untouched()

    def _end_request(self) -> None:
        if self._writing == TUNNEL:
            self._out.append(b"")
            self._writing = BODILESS
            if self._reading == _DISCARD:
                self._receiver = None  # both halves ended: the exchange is over
                self._end_with(CLOSE_FLUSH)
        elif self._writing != _UPGRADE:  # a handshake that ends is not whole: its connection is not kept
            self._writing = BODILESS

    # -- bytes in and out -----------------------------------------------------------------------------

    def take_output(self, now: float) -> list[bytes]:
        """Hand over the queued output.

        The head of an answer that came before the upload's end is read first: if the replica has closed behind it,
        one more write would fail, and the transport would end without reading it (RFC 9112 §9.5). Only the head:
        what waits for more would wait without bound for a replica that answers all the while.
        """
        out = self._out
        if not out:
            return out
        if self._is_uploading and self._reading == _HEAD and self.wants_read and self._shell.has_input():
            return []
        self._is_uploading = self._writing in (LENGTH, CHUNKS)
        self._out = []
        self.last_moved_s = now
        return out

    def receive(self, data: bytes, now: float) -> None:
        """Take input, or continue with what was held when `data` is empty."""
        self.last_moved_s = now
        if self._out:
            self._shell.touch()  # what waited for this input
        self.has_held_input = False
        if self._stash:
            data = self._stash + data
            self._stash = b""
        while data:
            reading = self._reading
            if reading == _HEAD:
                data = self._read_head(data)
                continue
            if self._holds:
                self._stash = data
                return
            receiver = self._receiver
            if reading == _IDLE or receiver is None:
                # Bytes that no request asked for: nothing on this connection can be trusted any more.
                self._stash = b""
                self._reading = _DISCARD
                self._end_with(CLOSE_ABORT)
                return
            if reading == CHUNKS:
                data = self._read_chunks(data, receiver)
            elif reading == LENGTH:
                remaining = self._remaining - len(data)
                self._remaining = remaining
                if remaining > 0:
                    receiver.response_data(data, False)
                    break
                body = data if not remaining else data[:remaining]
                self._finish(data[remaining:] if remaining else b"")
                receiver.response_data(body, True)
                break
            else:
                receiver.response_data(data, False)
                break
        if self._eof and not self._stash:
            self._eof = False
            if not self.receive_eof(now):
                self._end_with(CLOSE_FLUSH)

    def _read_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n") if not self._searched else -1
        if end < 0 or end > MAX_HEAD_BYTES:
            end = find_head_end(data, self._searched)
        if end < 0:
            if end == HEAD_INCOMPLETE:
                self._searched = len(data)
                self._stash = data
            else:
                self._fail(bad_response("the head is too long or its lines do not end in CRLF"))
            return b""
        self._searched = 0
        parsed = parse_response(data[:end])
        if not isinstance(parsed, tuple):
            self._fail(parsed)
            return b""
        head, bits, accept = parsed
        receiver = self._receiver
        assert receiver is not None
        status = head.shape.status
        rest = data[end + 4 :]
        if status < 200:
            if status == 101:
                self._read_switch(head, bits, accept, receiver)
                return rest
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._fail(bad_response("too many 1xx responses"))
                return b""
            receiver.response_informational(head)
            return rest
        self._bits = bits
        length = head.length
        if self._is_head_request or status in (204, 304):
            self._finish(rest)
            receiver.response_head(head, True)
            return b""
        if bits & CHUNKED:
            self._reading = CHUNKS
            self._chunks = ChunkedReader()
        elif length is None:
            self._reading = UNTIL_CLOSE
        elif length:
            self._reading = LENGTH
            self._remaining = length
        else:
            self._finish(rest)
            receiver.response_head(head, True)
            return b""
        receiver.response_head(head, False)
        return rest

    def _read_switch(self, head: ResponseHead, bits: int, accept: bytes, receiver: ResponseReceiver) -> None:
        """Check the replica's half of a WebSocket handshake (RFC 6455 §4.1)."""
        switched = bits & UPGRADE_FIELD and bits & UPGRADE_OPTION
        if not self._websocket_key or not switched or accept != accept_value(self._websocket_key):
            self._fail(bad_response("101 without a valid WebSocket handshake"))
            return
        self._reading = self._writing = TUNNEL
        self._bits = 0
        accepted = ResponseShape(200)
        accepted.accepts_tunnel = True
        accepted.fields = head.shape.fields
        receiver.response_head(ResponseHead(accepted), False)

    def _read_chunks(self, data: bytes, receiver: ResponseReceiver) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        payload = chunks.read(data)
        if chunks.error:
            self._fail(bad_response(chunks.error))
            return b""
        if not chunks.is_done:
            if payload:
                receiver.response_data(payload, False)
            return b""
        self._finish(chunks.rest)
        if chunks.trailers:
            if payload:
                receiver.response_data(payload, False)
            receiver.response_trailers(chunks.trailers)
        else:
            receiver.response_data(payload, True)
        return b""

    def _finish(self, rest: bytes) -> None:
        """End the response, before its last event is handed on: the pool may have the connection back.

        Not if the request is incomplete (an early answer stops the upload), if the replica closes, or if
        bytes follow that belong to no request.
        """
        self._receiver = None
        self._chunks = None
        self._holds = 0
        is_whole = self._writing == BODILESS and not rest
        may_stay = not self._draining and not self._is_full and self.close == CLOSE_NO
        if is_whole and may_stay and self._bits & KEEP_ALIVE:
            self._reading = _IDLE
            self.wants_read = True
            self._on_idle()
        else:
            self._reading = _DISCARD
            # What is left of an upload nobody wants is not worth waiting for.
            self._end_with(CLOSE_FLUSH if is_whole and not self._is_full else CLOSE_ABORT)

    def _fail(self, error: ProxyError) -> None:
        receiver = self._receiver
        self._receiver = None
        self._reading = _DISCARD
        self._stash = b""
        self._end_with(CLOSE_ABORT)
        if receiver is not None:
            receiver.response_reset(error)

    def receive_eof(self, now: float) -> bool:
        """The replica ended its side: the end of a body until close, a half-closed tunnel, or a failure."""
        receiver = self._receiver
        reading = self._reading
        if self._stash and self._holds:
            self._eof = True  # comes behind what is held
            return True
        if reading == TUNNEL and receiver is not None:
            self._reading = _DISCARD
            if self._writing != TUNNEL:
                self._receiver = None
                self._end_with(CLOSE_FLUSH)
            receiver.response_data(b"", True)
            return True
        if reading == UNTIL_CLOSE and receiver is not None:
            self._receiver = None
            self._reading = _DISCARD
            self._end_with(CLOSE_FLUSH)
            receiver.response_data(b"", True)
            return False
        self._lose(Kind.UPSTREAM_CLOSED)
        return False

    def receive_lost(self, now: float) -> None:
        """The transport failed."""
        self._lose(Kind.UPSTREAM_RESET)

    def _lose(self, kind: Kind) -> None:
        fresh = self._reading == _HEAD and not self._stash and not self._informational
        retry = Retry.IF_REUSED if fresh else Retry.NEVER
        self._fail(ProxyError(kind, Source.UPSTREAM, retry))

    # -- flow and time --------------------------------------------------------------------------------

    def transport_full(self, full: bool, now: float) -> None:
        """Pass the transport's watermark on to the exchange."""
        self._is_full = full
        receiver = self._receiver
        if receiver is None:
            return
        if full:
            receiver.pause_request()
        else:
            receiver.resume_request()

    def next_deadline(self) -> float | None:
        """When an idle connection is retired; a busy one is looked at again once a turn of the wheel.

        A connection that became idle since is therefore retired late, by up to that turn: the pool looks
        at its age before it gives it out, so that costs a socket for a while, never a request.
        """
        if self.close:
            return self.last_moved_s + CLOSE_LIMIT_S
        return self.last_moved_s + self._keep_s() if self._reading == _IDLE else NEVER

    def handle_deadline(self, now: float) -> None:
        """Retire an idle connection; end one whose last bytes are not taken."""
        if self.close:
            self._end_with(CLOSE_ABORT)
        elif self._reading == _IDLE:
            self._reading = _DISCARD
            self._end_with(CLOSE_FLUSH)

    def drain(self) -> None:
        """Close when idle, or after the response under way."""
        self._draining = True
        if self._reading == _IDLE:
            self.handle_deadline(self.last_moved_s)
