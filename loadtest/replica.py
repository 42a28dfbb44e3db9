"""The replica behind the proxies for streams: a small uvloop server with nothing but the wire in it.

`python -m loadtest.replica` listens on a free loopback port and says so with one JSON line on stdout.
It answers a chat completion (canned), the same as server-sent events (chunked, one write per event,
an event each few milliseconds on an absolute schedule), echoes WebSocket messages, and answers the
GET paths that routers probe. The head of a stream leaves in its own segment before the first event,
as uvicorn sends it: that is what makes Nagle's algorithm meet a delayed acknowledgement. No limits
and no validation: it is only ever spoken to by the proxies under test. Imports `wire`.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import json
import re
import signal
from typing import cast

import click
import uvloop

from loadtest import wire

_HEADERS = b"".join(b"%b: %b\r\n" % pair for pair in wire.RESPONSE_HEADERS)
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" + _HEADERS + b"\r\n"
UNARY = _OK % len(wire.COMPLETION) + wire.COMPLETION
_INFO = json.dumps(
    {"model_path": wire.MODEL, "served_model_name": wire.MODEL, "is_generation": True}
).encode()
INFO = _OK % len(_INFO) + _INFO
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    + _HEADERS
    + b"\r\n"
)
STREAM_END = wire.chunk(wire.DONE_EVENT) + wire.LAST_CHUNK
_WANTS_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nsec-websocket-key:[ \t]*(\S+)", re.IGNORECASE)
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


class Replica(asyncio.Protocol):
    """One connection: requests one after another, then perhaps a WebSocket."""

    __slots__ = (
        "buffer",
        "chunks",
        "interval_s",
        "loop",
        "next_at",
        "place",
        "timer",
        "transport",
        "websocket",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, chunks: list[bytes], interval_s: float) -> None:
        self.loop = loop
        self.chunks = chunks
        self.interval_s = interval_s
        self.buffer = b""
        self.websocket = False
        self.place = 0
        self.next_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop has set TCP_NODELAY on it."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the stream in progress, if any."""
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer each whole request or message in `data`."""
        if self.buffer:
            data = self.buffer + data
        while data:
            size = self._message(data) if self.websocket else self._request(data)
            if size == 0:
                break
            data = data[size:]
        self.buffer = data

    def _request(self, data: bytes) -> int:
        """Answer the request at the start of `data`; its size, or 0 when it is not whole yet."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = data[:end]
        if head.startswith(b"GET "):
            key = _KEY.search(head)
            if key is None:
                self.transport.write(INFO)
            else:
                self._upgrade(key.group(1))
            return end + 4
        if head[-800:].lower().find(b"transfer-encoding:") >= 0:
            last = data.find(wire.LAST_CHUNK, end + 4)
            if last < 0:
                return 0
            size = last + len(wire.LAST_CHUNK)
        else:
            length = _LENGTH.search(head)
            size = end + 4 + (int(length.group(1)) if length else 0)
            if len(data) < size:
                return 0
        if _WANTS_STREAM.search(data, end, size):
            self._start_stream()
        else:
            self.transport.write(UNARY)
        return size

    def _start_stream(self) -> None:
        self.transport.write(STREAM_HEAD)
        self.place = 0
        self.next_at = self.loop.time()
        # Two turns of the loop: uvloop joins what is written within one, and the head must leave alone.
        self.loop.call_soon(self.loop.call_soon, self._next_event)

    def _next_event(self) -> None:
        if self.transport.is_closing():
            return
        if self.place == len(self.chunks):
            self.transport.write(STREAM_END)
            return
        self.transport.write(self.chunks[self.place])
        self.place += 1
        self.next_at += self.interval_s
        self.timer = self.loop.call_at(self.next_at, self._next_event)

    def _upgrade(self, key: bytes) -> None:
        digest = hashlib.sha1(key + _WEBSOCKET_GUID).digest()  # noqa: S324 -- RFC 6455 fixes SHA-1
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        self.websocket = True

    def _message(self, data: bytes) -> int:
        """Echo the short masked frame at the start of `data`; its size, or 0 when it is not whole yet."""
        if len(data) < 6:
            return 0
        length = data[1] & 0x7F
        size = 6 + length
        if len(data) < size:
            return 0
        if data[0] & 0x0F == 8:  # close (RFC 6455 §5.5.1)
            self.transport.write(b"\x88\x00")
            self.transport.close()
        else:
            self.transport.write(wire.server_message(wire.unmask(data[6:size], data[2:6])))
        return size


async def serve(events: int, interval_s: float) -> asyncio.Server:
    """Listen on a free loopback port with streams of `events` events, `interval_s` seconds apart."""
    loop = asyncio.get_running_loop()
    chunks = [wire.chunk(wire.event(index)) for index in range(events)]
    return await loop.create_server(lambda: Replica(loop, chunks, interval_s), "127.0.0.1", 0, backlog=1024)


async def _main(events: int, interval_s: float) -> None:
    server = await serve(events, interval_s)
    port = server.sockets[0].getsockname()[1]
    click.echo(json.dumps({"event": "ready", "port": port}))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stopped.set)
    gc.freeze()
    await stopped.wait()
    server.close()


@click.command(help=__doc__)
@click.option("--events", default=40, show_default=True, help="Events of a stream before [DONE].")
@click.option("--interval-ms", default=5.0, show_default=True, help="Time between two events of a stream.")
def main(events: int, interval_ms: float) -> None:
    """Serve until SIGINT or SIGTERM."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(events, interval_ms / 1e3))


if __name__ == "__main__":
    main()
