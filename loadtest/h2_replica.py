"""The replica behind the proxies for HTTP/2: gRPC-shaped answers without gRPC.

`python -m loadtest.h2_replica` listens on a free loopback port and says so with one JSON line on stdout. A
call with a short message is answered by a stream of them, one each few milliseconds on an absolute schedule, each
in a frame of its own, then trailers; a call with a large body by a body of the same size, as fast as the peer's
credit allows. The head leaves before the first message, as gRPC's libraries send it. Imports `h2`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
from typing import TYPE_CHECKING

import click
import uvloop

from loadtest import h2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SHORT_BYTES = 65_536  # up to here the answer is a stream of messages


class Replica(h2.Side):
    """One connection."""

    __slots__ = ("connections", "interval_s", "loop", "lost", "messages", "received", "timers")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connections: set[Replica], messages: int, interval_s: float
    ) -> None:
        super().__init__()
        self.loop = loop
        self.connections = connections
        self.lost = loop.create_future()
        self.messages = messages
        self.interval_s = interval_s
        self.received: dict[int, int] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the open connections."""
        super().connection_made(transport)
        self.connections.add(self)

    def stream_data(self, stream: int, data: bytes, start: int, end: int) -> None:
        """Count what arrives."""
        self.received[stream] = self.received.get(stream, 0) + end - start

    def stream_ended(self, stream: int) -> None:
        """Answer."""
        size = self.received.pop(stream, 0)
        sending = self.open_sending(stream)
        self.send_headers(stream, h2.RESPONSE)
        if size > _SHORT_BYTES:
            sending.left = size
            self.pump()
        elif self.interval_s:
            # Two turns of the loop: uvloop joins what is written within one, and the head must leave alone.
            self.loop.call_soon(self.loop.call_soon, self._next, stream, self.messages, self.loop.time())
        else:
            for _ in range(self.messages):
                self.send_message(stream, h2.MESSAGE)
            self._end(stream)

    def body_sent(self, stream: int) -> None:
        """End the answer."""
        self._end(stream)

    def stream_reset(self, stream: int) -> None:
        """Stop the stream."""
        self.received.pop(stream, None)
        timer = self.timers.pop(stream, None)
        if timer is not None:
            timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every stream."""
        self.connections.discard(self)
        self.lost.set_result(None)
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        self.sendings.clear()

    def _next(self, stream: int, left: int, at: float) -> None:
        self.timers.pop(stream, None)
        if stream not in self.sendings:
            return
        if not left:
            self._end(stream)
            return
        self.send_message(stream, h2.MESSAGE)
        at += self.interval_s
        self.timers[stream] = self.loop.call_at(at, self._next, stream, left - 1, at)

    def _end(self, stream: int) -> None:
        del self.sendings[stream]
        self.send_headers(stream, h2.TRAILERS, h2.END_STREAM)


@contextlib.asynccontextmanager
async def serving(messages: int, interval_s: float) -> AsyncIterator[int]:
    """Serve streams of `messages` messages, `interval_s` seconds apart, on a loopback port, which is yielded."""
    loop = asyncio.get_running_loop()
    connections: set[Replica] = set()
    server = await loop.create_server(
        lambda: Replica(loop, connections, messages, interval_s), "127.0.0.1", 0, backlog=1024
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in connections:
            connection.transport.abort()
        await asyncio.gather(*[connection.lost for connection in connections])


async def _main(messages: int, interval_s: float) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stopped.set)
    async with serving(messages, interval_s) as port:
        click.echo(json.dumps({"event": "ready", "port": port}))
        gc.freeze()
        await stopped.wait()


@click.command(help=__doc__)
@click.option("--events", "messages", default=40, show_default=True, help="Messages of a stream.")
@click.option("--interval-ms", default=5.0, show_default=True, help="Time between two of them; 0: all at once.")
def main(messages: int, interval_ms: float) -> None:
    """Serve until SIGINT or SIGTERM."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(messages, interval_ms / 1e3))


if __name__ == "__main__":
    main()
