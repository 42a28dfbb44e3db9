"""One large body through HTTP/2, up and then down: CPU per MiB, and what the proxy holds meanwhile.

Not paced by the window: the exchange takes what it takes, and the window is as long. An answer of another size
than what was sent is an error. Imports the seam and `h2`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loadtest import h2

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window

MIB = 1 << 20
_LIMIT_S = 60.0  # the slowest peer took two


class Sender(h2.Side):
    """The connection; `done` resolves to the bytes of the answer."""

    __slots__ = ("done", "received")
    is_client = True

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def exchange(self, fields: h2.Fields, size: int) -> None:
        """Send a body of `size` bytes."""
        sending = self.open_sending(1)
        self.send_headers(1, fields)
        sending.left = size
        self.pump()

    def body_sent(self, stream: int) -> None:
        """End the request."""
        del self.sendings[stream]
        self.transport.write(h2.frame(h2.DATA, h2.END_STREAM, stream))

    def stream_data(self, stream: int, data: bytes, start: int, end: int) -> None:
        """Count the answer."""
        self.received += end - start

    def stream_ended(self, stream: int) -> None:
        """Finish."""
        if not self.done.done():
            self.done.set_result(self.received)

    def stream_reset(self, stream: int) -> None:
        """Finish with what came: too little."""
        self.stream_ended(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """Finish with what came."""
        self.stream_ended(1)


class H2Body:
    """`Client` of the large body; a unit is a MiB in one direction."""

    def __init__(self, command: Command, window: Window) -> None:
        self.command = command
        self.window = window
        self.sender: Sender | None = None

    async def start(self) -> None:
        """Connect."""
        loop = asyncio.get_running_loop()
        _, self.sender = await loop.create_connection(Sender, "127.0.0.1", self.command.port)

    async def work(self) -> None:
        """Exchange one body; TimeoutError when it takes a minute."""
        assert self.sender is not None
        size = self.command.body_mib * MIB
        self.sender.exchange(h2.request_fields(f"127.0.0.1:{self.command.port}"), size)
        async with asyncio.timeout(_LIMIT_S):
            received = await self.sender.done
        self.window.units = (size + received) // MIB
        if received != size:
            self.window.fail(f"{received} bytes came back of {size}")

    async def drain(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Drop the connection."""
        if self.sender is not None:
            self.sender.transport.abort()
