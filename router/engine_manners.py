"""Turns SGLang's bad manners into good ones, where the endpoint asks for it. Of the exchange's layer.

* It refuses a *stream* with 200 and an error in its first event; that becomes the 503 it is without `stream`,
  which a client may repeat. `FirstEventGuard` stands between the replica's stream and the exchange, holds the head
  and at most 4 KiB, and is out of the way after that.
* It goes on generating for up to 4 s after the client of a *whole* answer has gone. `abort` tells it to stop, by
  the request id that the router gave it in `x-override-rid`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Source
from router.first_event import FirstEvent, Pass, Refused, is_stream
from router.http import RequestHead, RequestShape
from router.stream import PendingStream, ResponseReceiver

if TYPE_CHECKING:
    from router.core import Core
    from router.exchange import Exchange
    from router.http import Headers, ResponseHead
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import UpstreamStream

# Of other statuses the engine's own words tell more than ours would: they pass as they are.
_FULL = (429, 503)
ABORT_S: Final = 5.0


class FirstEventGuard(ResponseReceiver):
    """One response on its way to `exchange`."""

    __slots__ = ("_exchange", "_first", "_head", "_is_refused")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._head: ResponseHead | None = None
        self._first: FirstEvent | None = None
        self._is_refused = False  # then the exchange is over, and what comes in the same read is not for it

    def upstream_ready(self, stream: UpstreamStream) -> None:
        """Pass it on."""
        self._exchange.upstream_ready(stream)

    def upstream_failed(self, error: ProxyError) -> None:
        """Pass it on."""
        self._exchange.upstream_failed(error)

    def response_informational(self, head: ResponseHead) -> None:
        """Pass it on."""
        self._exchange.response_informational(head)

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """Keep the head of a stream back; pass any other on."""
        shape = head.shape
        if end or not shape.is_event_stream or not is_stream(shape.status, b"text/event-stream"):
            self._exchange.response_head(head, end)
            return
        self._head = head
        self._first = FirstEvent()

    def response_data(self, data: bytes, end: bool) -> None:
        """Decide on the first event; pass on what comes after."""
        if self._is_refused:
            return
        first = self._first
        if first is None:
            self._exchange.response_data(data, end)
            return
        decision = first.feed(data)
        if isinstance(decision, Refused) and decision.status in _FULL:
            self._first = None
            self._is_refused = True
            detail = "the replica refused the stream in its first event"
            self._exchange.response_refused(ProxyError(Kind.AT_CAPACITY, Source.UPSTREAM, detail=detail))
        elif isinstance(decision, (Pass, Refused)) or end:
            self._let_go(end)

    def response_trailers(self, trailers: Headers) -> None:
        """Pass on what was held, and the trailers."""
        if self._is_refused:
            return
        if self._first is not None:
            self._let_go(False)
        self._exchange.response_trailers(trailers)

    def response_reset(self, error: ProxyError) -> None:
        """Pass it on; what was held is dropped, so that the client gets a status instead."""
        if self._is_refused:
            return
        self._first = None
        self._exchange.response_reset(error)

    def pause_request(self) -> None:
        """Pass it on."""
        self._exchange.pause_request()

    def resume_request(self) -> None:
        """Pass it on."""
        self._exchange.resume_request()

    def _let_go(self, end: bool) -> None:
        first, head = self._first, self._head
        assert first is not None
        assert head is not None
        self._first = self._head = None
        held = first.end().held
        self._exchange.response_head(head, end and not held)
        if held:
            self._exchange.response_data(held, end)


class AbortCall(ResponseReceiver):
    """POST /abort_request; what becomes of it is nobody's concern, but it ends after `ABORT_S`."""

    __slots__ = ("_body", "_ends_s", "_is_over", "_pending", "_stream", "head", "watch_tick")

    def __init__(self, replica: Replica, rid: bytes, ends_s: float) -> None:
        shape = RequestShape(b"POST", b"/abort_request", replica.address.partition("://")[2].encode())
        shape.fields = [(b"content-type", b"application/json")]
        self._body = b'{"rid":"' + rid + b'"}'
        self.head = RequestHead(shape, len(self._body))
        self._ends_s = ends_s
        self._is_over = False
        self._pending: PendingStream | None = None
        self._stream: UpstreamStream | None = None
        self.watch_tick = -1

    def begin(self, opened: UpstreamStream | PendingStream | ProxyError) -> None:
        """Take what the pool returned."""
        if isinstance(opened, ProxyError):
            self.upstream_failed(opened)
        elif isinstance(opened, PendingStream):
            self._pending = opened
        else:
            self.upstream_ready(opened)

    def next_deadline(self) -> float | None:
        """Part of the deadline wheel's contract."""
        return None if self._is_over else self._ends_s

    def handle_deadline(self, now: float) -> None:
        """Give up on an engine that hangs."""
        self._is_over = True
        if self._pending is not None:
            self._pending.cancel()
        if self._stream is not None:
            self._stream.reset(ProxyError(Kind.DEADLINE, Source.ROUTER))

    def upstream_ready(self, stream: UpstreamStream) -> None:
        """Say it."""
        self._pending = None
        self._stream = stream
        stream.send_head(self.head, False)
        stream.send_data(self._body, True)

    def upstream_failed(self, error: ProxyError) -> None:
        """An engine that cannot be reached generates for nobody."""
        self._is_over = True

    def response_informational(self, head: ResponseHead) -> None:
        """Nothing to do."""

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """Note the end."""
        self._is_over |= end

    def response_data(self, data: bytes, end: bool) -> None:
        """Note the end."""
        self._is_over |= end

    def response_trailers(self, trailers: Headers) -> None:
        """Note the end."""
        self._is_over = True

    def response_reset(self, error: ProxyError) -> None:
        """Note the end."""
        self._is_over = True

    def pause_request(self) -> None:
        """Nothing to do: it is one short write."""

    def resume_request(self) -> None:
        """Nothing to do."""


def abort(core: Core, replica: Replica, dial: DialSpec, rid: bytes) -> None:
    """Tell the engine to stop generating for the request that it knows as `rid`."""
    call = AbortCall(replica, rid, core.clock.now + ABORT_S)
    core.wheel.watch(call)
    call.begin(core.pool.open(replica, call, dial, call.head, fresh=False))
