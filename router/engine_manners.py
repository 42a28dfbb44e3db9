"""Looks at the first event of a stream before the response is passed on, where the endpoint asks for it.

SGLang refuses a stream with 200 and an error in its first event; here it becomes the 503 it is without
`stream`, which a client may repeat. Stands between the replica's stream and the exchange, holds the head and at
most 4 KiB, and is out of the way after that. Of the exchange's layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.errors import Kind, ProxyError, Source
from router.first_event import FirstEvent, Pass, Refused, is_stream
from router.stream import ResponseReceiver

if TYPE_CHECKING:
    from router.exchange import Exchange
    from router.http import Headers, ResponseHead
    from router.stream import UpstreamStream

# Of other statuses the engine's own words tell more than ours would: they pass as they are.
_FULL = (429, 503)


class FirstEventGuard(ResponseReceiver):
    """One response on its way to `exchange`."""

    __slots__ = ("_exchange", "_first", "_head")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._head: ResponseHead | None = None
        self._first: FirstEvent | None = None

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
        first = self._first
        if first is None:
            self._exchange.response_data(data, end)
            return
        decision = first.feed(data)
        if isinstance(decision, Refused) and decision.status in _FULL:
            self._first = None
            detail = "the replica refused the stream in its first event"
            self._exchange.response_refused(ProxyError(Kind.AT_CAPACITY, Source.UPSTREAM, detail=detail))
        elif isinstance(decision, (Pass, Refused)) or end:
            self._let_go(end)

    def response_trailers(self, trailers: Headers) -> None:
        """Pass on what was held, and the trailers."""
        if self._first is not None:
            self._let_go(False)
        self._exchange.response_trailers(trailers)

    def response_reset(self, error: ProxyError) -> None:
        """Pass it on; what was held is dropped, so that the client gets a status instead."""
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
