"""WebSocket ping-pong: N connections, each sends its next message when the last one came back.

A unit is a message relayed, so each round trip is two. The handshake's answer is checked down to its
accept value, the messages by their length. Imports the seam and `wire`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, cast

from loadtest import wire
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window

_ECHO_BYTES = 2 + wire.MESSAGE_BYTES
_MESSAGE = wire.client_message()
_HANDSHAKE_S = 5.0


class PingPong(asyncio.Protocol):
    """One WebSocket."""

    __slots__ = ("buffer", "head", "missing", "opened", "sent_at", "transport", "window")

    def __init__(self, window: Window, head: bytes) -> None:
        self.window = window
        self.head = head
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.missing = _ECHO_BYTES
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade; uvloop has set TCP_NODELAY."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        """Count the echo when it is whole and send the next message."""
        if not self.opened.done():
            self._handshake(data)
            return
        self.missing -= len(data)
        if self.missing > 0:
            return
        now = perf_counter()
        window = self.window
        if self.missing < 0:
            window.fail("more came back than was sent")
            self.transport.abort()
            return
        window.units += 2
        window.latencies.append(now - self.sent_at)
        if not window.ended():
            self.missing = _ECHO_BYTES
            self.sent_at = now
            self.transport.write(_MESSAGE)

    def _handshake(self, data: bytes) -> None:
        self.buffer += data
        if b"\r\n\r\n" not in self.buffer:
            return
        if self.buffer.startswith(b"HTTP/1.1 101 ") and wire.WEBSOCKET_ACCEPT in self.buffer:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(ConnectionError(f"no upgrade: {self.buffer[:60]!r}"))

    def begin(self) -> None:
        """Send the first message."""
        self.sent_at = perf_counter()
        self.transport.write(_MESSAGE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the handshake or the ping-pong in progress."""
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed during the handshake"))
        elif not self.window.ended():
            self.window.fail("connection lost")


class WebSockets(Paced):
    """`Client` of the ping-pong; a unit is one message relayed in one direction."""

    def __init__(self, command: Command, window: Window) -> None:
        super().__init__(command)
        self.window = window
        self.connections: list[PingPong] = []

    async def start(self) -> None:
        """Open every WebSocket, then begin on all of them."""
        loop = asyncio.get_running_loop()
        head = wire.upgrade_request(f"127.0.0.1:{self.command.port}")
        for _ in range(self.command.connections):
            _, connection = await loop.create_connection(
                lambda: PingPong(self.window, head), "127.0.0.1", self.command.port
            )
            self.connections.append(connection)
            async with asyncio.timeout(_HANDSHAKE_S):
                await connection.opened
        for connection in self.connections:
            connection.begin()

    async def drain(self) -> None:
        """Nothing: a message still under way at the end is not of the window."""

    def close(self) -> None:
        """Drop the connections."""
        for connection in self.connections:
            connection.transport.abort()
