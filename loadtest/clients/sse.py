"""Streams: N connections, each asks for a stream of events again as soon as the last one ended.

The connections start one after another over the length of a stream, so that the time to the first
event is taken while the others stream. Gaps are between the arrivals of neighbouring events of one
stream; events that arrive together have no gap between them, which is what the client sees. A
stream with too few events, or one that ends without its last chunk, is an error. Imports the seam
and `wire`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, cast

from loadtest import wire
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window


class StreamConnection(asyncio.Protocol):
    """One connection, one stream at a time."""

    __slots__ = (
        "events",
        "expected",
        "head_seen",
        "last_at",
        "request",
        "sent_at",
        "tail",
        "transport",
        "window",
    )

    def __init__(self, window: Window, request: bytes, expected: int) -> None:
        self.window = window
        self.request = request
        self.expected = expected
        self.events = 0
        self.head_seen = False
        self.tail = b""
        self.sent_at = 0.0
        self.last_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop has set TCP_NODELAY on it."""
        self.transport = cast("asyncio.Transport", transport)

    def begin(self) -> None:
        """Ask for a stream."""
        if self.window.ended() or self.transport.is_closing():
            return
        self.events = 0
        self.head_seen = False
        self.tail = b""
        self.sent_at = perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count the events that `data` completes, and start again after the last chunk."""
        now = perf_counter()
        window = self.window
        # The tail of the last read makes an end seen that was cut in two; it never holds a whole one.
        seen = self.tail + data
        if not self.head_seen:
            end = seen.find(b"\r\n\r\n")
            if end < 0:
                self.tail = seen
                return
            if not seen.startswith(b"HTTP/1.1 200 "):
                window.fail(f"not a stream: {seen[:40]!r}")
                self.transport.abort()
                return
            # A head may end like a last chunk does ("x-request-id: …0"), so it is cut off first.
            self.head_seen = True
            seen = seen[end + 4 :]
        count = seen.count(b"\n\n")
        if count:
            if self.events:
                window.gaps.append(now - self.last_at)
                window.gaps.extend([0.0] * (count - 1))
            else:
                window.first_events.append(now - self.sent_at)
            self.last_at = now
            self.events += count
            window.units += count
        if seen.endswith(wire.LAST_CHUNK):
            if self.events != self.expected:
                window.fail(f"a stream of {self.events} events instead of {self.expected}")
            self.begin()
            return
        tail = seen[-4:]
        self.tail = tail[tail.rfind(b"\n\n") + 2 :] if b"\n\n" in tail else tail

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the stream in progress."""
        if not self.window.ended():
            self.window.fail(f"connection lost after {self.events} events")


class Streams(Paced):
    """`Client` of the streams; a unit is an event."""

    def __init__(self, command: Command, window: Window) -> None:
        super().__init__(command)
        self.window = window
        self.request = wire.chat_request(f"127.0.0.1:{command.port}", stream=True)
        self.connections: list[StreamConnection] = []

    async def start(self) -> None:
        """Connect, and spread the first streams over the warm-up."""
        loop = asyncio.get_running_loop()
        step_s = self.command.warmup_s * 0.75 / self.command.connections
        for place in range(self.command.connections):
            _, connection = await loop.create_connection(
                lambda: StreamConnection(self.window, self.request, self.command.events),
                "127.0.0.1",
                self.command.port,
            )
            self.connections.append(connection)
            loop.call_later(place * step_s, connection.begin)

    async def drain(self) -> None:
        """Nothing: streams are cut at the end of the window."""

    def close(self) -> None:
        """Drop the connections."""
        for connection in self.connections:
            connection.transport.abort()
