"""gRPC-shaped streams: N connections with M calls each, each asked for again as soon as it ended.

The calls start one after another over the length of a stream, so that the time to the first message is taken
while the others stream. A gap is between the arrivals of neighbouring messages of one stream; messages that
arrive together have none. A stream with too few or too many messages is an error: so is a proxy's own refusal,
which has none. Imports the seam and `h2`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from loadtest import h2
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window


class Received:
    """What came on one stream so far."""

    __slots__ = ("last_at", "rest", "sent_at", "units")

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.last_at = 0.0
        self.units = 0
        self.rest = 0  # bytes of a message that is not whole yet


class Caller(h2.Side):
    """One connection."""

    __slots__ = ("expected", "fields", "next_stream", "streams", "window")
    is_client = True

    def __init__(self, window: Window, fields: h2.Fields, expected: int) -> None:
        super().__init__()
        self.window = window
        self.fields = fields
        self.expected = expected
        self.next_stream = 1
        self.streams: dict[int, Received] = {}

    def begin(self) -> None:
        """Make one call."""
        if self.window.ended() or self.transport.is_closing():
            return
        stream = self.next_stream
        self.next_stream += 2
        self.streams[stream] = Received(perf_counter())
        self.send_headers(stream, self.fields)
        self.transport.write(h2.frame(h2.DATA, h2.END_STREAM, stream, h2.MESSAGE))

    def stream_data(self, stream: int, data: bytes, start: int, end: int) -> None:
        """Count the messages that these bytes complete."""
        received = self.streams.get(stream)
        if received is None:
            return
        received.rest += end - start
        count, received.rest = divmod(received.rest, len(h2.MESSAGE))
        if not count:
            return
        now = perf_counter()
        window = self.window
        if received.units:
            window.gaps.append(now - received.last_at)
            window.gaps.extend([0.0] * (count - 1))
        else:
            window.first_events.append(now - received.sent_at)
        received.last_at = now
        received.units += count
        window.units += count

    def stream_ended(self, stream: int) -> None:
        """Check the count and call again."""
        received = self.streams.pop(stream, None)
        if received is None:
            return
        if received.units != self.expected or received.rest:
            self._fail(f"a stream of {received.units} messages instead of {self.expected}")
            if not received.units:  # refused at once: calling again would only spin
                self.transport.abort()
                return
        self.begin()

    def stream_reset(self, stream: int) -> None:
        """Fail the call and make another, unless it was over."""
        if self.streams.pop(stream, None) is not None:
            self._fail("a stream was reset")
            self.begin()

    def went_away(self) -> None:
        """Fail: nothing here gives a proxy a reason."""
        self._fail("the proxy sent GOAWAY")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the calls in progress."""
        if self.streams:
            self._fail(f"connection lost with {len(self.streams)} calls")

    def _fail(self, detail: str) -> None:
        if not self.window.ended():
            self.window.fail(detail)


class GrpcStreams(Paced):
    """`Client` of the streams; a unit is a message."""

    def __init__(self, command: Command, window: Window) -> None:
        super().__init__(command)
        self.window = window
        self.fields = h2.request_fields(f"127.0.0.1:{command.port}")
        self.callers: list[Caller] = []

    async def start(self) -> None:
        """Connect all, then make the calls one after another over the warm-up."""
        loop = asyncio.get_running_loop()
        for _ in range(self.command.connections):
            _, caller = await loop.create_connection(
                lambda: Caller(self.window, self.fields, self.command.events), "127.0.0.1", self.command.port
            )
            self.callers.append(caller)
        calls = [caller for _ in range(self.command.streams) for caller in self.callers]
        for place, caller in enumerate(calls):
            loop.call_later(self.command.warmup_s * 0.75 * place / len(calls), caller.begin)

    async def drain(self) -> None:
        """Nothing: messages count when they arrive."""

    def close(self) -> None:
        """Drop the connections."""
        for caller in self.callers:
            caller.transport.abort()
