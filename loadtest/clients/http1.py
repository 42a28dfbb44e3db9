"""One keep-alive HTTP/1.1 connection of the generator, and the reader of its answers.

The reader finds the end of an answer by its length, or by the last chunk when a proxy re-framed it
(the canned bodies never end in the bytes of a last chunk). It checks the status and nothing else: a
generator that validates more measures itself. No task, no future per request. Imports nothing of
the project.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable


class ResponseReader:
    """Finds the end of each answer in the bytes of one connection; no pipelining."""

    __slots__ = ("chunked", "left", "status", "tail")

    def __init__(self) -> None:
        self.tail = b""
        self.left = -1  # bytes of the body still to come; -1 before the head is whole
        self.chunked = False
        self.status = 0

    def feed(self, data: bytes) -> int:
        """Status once the answer is whole, 0 before; ValueError when the head is none."""
        if self.left < 0:
            if self.tail:
                data = self.tail + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.tail = data
                return 0
            self._head(data[:end])
            data = data[end + 4 :]
            self.tail = b""
        if self.chunked:
            self.tail = (self.tail + data)[-5:]
            if self.tail != b"0\r\n\r\n":
                return 0
        else:
            self.left -= len(data)
            if self.left > 0:
                return 0
        self.left = -1
        self.tail = b""
        return self.status

    def _head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 "):
            raise ValueError(f"not an HTTP/1.1 answer: {head[:40]!r}")
        self.status = int(head[9:12])
        lower = head.lower()
        at = lower.find(b"\r\ncontent-length:")
        self.chunked = at < 0
        if at >= 0:
            stop = lower.find(b"\r\n", at + 17)
            self.left = int(lower[at + 17 : stop if stop >= 0 else len(lower)])
        else:
            self.left = 0


class Connection(asyncio.Protocol):
    """Sends one request at a time and reports each answer.

    `on_answer(connection, status)` is called once per request; status 0 means that the connection
    ended or the answer was none. After 0 the connection is of no more use.
    """

    __slots__ = ("busy", "intended_at", "on_answer", "reader", "sent_at", "transport")

    def __init__(self, on_answer: Callable[[Connection, int], None]) -> None:
        self.on_answer = on_answer
        self.reader = ResponseReader()
        self.busy = False
        self.sent_at = 0.0
        self.intended_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop has set TCP_NODELAY on it."""
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, now: float) -> None:
        """Send `request`, at `now` seconds of `time.perf_counter`."""
        self.busy = True
        self.sent_at = now
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Report the answer when it is whole."""
        try:
            status = self.reader.feed(data)
        except ValueError:
            self.transport.abort()
            return
        if status:
            self.busy = False
            self.on_answer(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report 0 for the request in flight, if any."""
        if self.busy:
            self.busy = False
            self.on_answer(self, 0)
