"""Closed loop: N keep-alive connections, each sends its next request when the last one was answered.

Gives the floor of latency at one connection, and CPU per request and the highest rate at many. It
hides stalls (a stalled proxy is simply asked less often): percentiles under load come from
`openloop`. Imports the seam, `http1` and `wire`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from loadtest import wire
from loadtest.clients.http1 import Connection
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window


class ClosedLoop(Paced):
    """`Client` of the closed loop; a unit is a request answered with 200."""

    def __init__(self, command: Command, window: Window) -> None:
        super().__init__(command)
        self.window = window
        self.request = wire.chat_request(f"127.0.0.1:{command.port}", stream=False)
        self.connections: list[Connection] = []

    async def start(self) -> None:
        """Connect all, then send the first request on each."""
        loop = asyncio.get_running_loop()
        for _ in range(self.command.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self._answered), "127.0.0.1", self.command.port
            )
            self.connections.append(connection)
        for connection in self.connections:
            connection.send(self.request, perf_counter())

    def _answered(self, connection: Connection, status: int) -> None:
        now = perf_counter()
        window = self.window
        if status == 200:
            window.units += 1
            window.latencies.append(now - connection.sent_at)
        elif not window.ended():
            window.fail(f"status {status}" if status else "connection lost with a request in flight")
        if status and not window.ended():
            connection.send(self.request, now)

    async def drain(self) -> None:
        """Nothing: a request that was not answered in the window is not of it."""

    def close(self) -> None:
        """Drop the connections."""
        for connection in self.connections:
            connection.busy = False
            connection.transport.abort()
