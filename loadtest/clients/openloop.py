"""Open loop: requests leave on a fixed schedule, whether or not the earlier ones were answered.

Latency is measured **from the intended time of sending**, so a proxy that stalls for 100 ms is charged
for every request that should have left in those 100 ms (no coordinated omission). A request that
finds no free connection waits for one with its clock running; what was not answered when the drain
ends counts as an error and with the time it waited. Imports the seam, `http1`, `ticker`, `wire`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

from loadtest import wire
from loadtest.clients.http1 import Connection
from loadtest.clients.ticker import Ticker
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window

DRAIN_S = 2.0  # well above any latency worth a percentile; bounds the run when a proxy hangs


class OpenLoop(Paced):
    """`Client` of the open loop; a unit is a request intended within the window and answered with 200."""

    def __init__(self, command: Command, window: Window) -> None:
        if command.rate_per_s <= 0:
            raise ValueError("an open loop needs a rate")
        super().__init__(command)
        self.window = window
        self.interval_s = 1.0 / command.rate_per_s
        self.request = wire.chat_request(f"127.0.0.1:{command.port}", stream=False)
        self.connections: list[Connection] = []
        self.free: list[Connection] = []
        self.waiting: deque[float] = deque()
        self.ticker: Ticker | None = None
        self.next_intended_at = 0.0

    async def start(self) -> None:
        """Connect all, then start the clock."""
        loop = asyncio.get_running_loop()
        for _ in range(self.command.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self._answered), "127.0.0.1", self.command.port
            )
            self.connections.append(connection)
        self.free = list(self.connections)
        self.ticker = Ticker(self.interval_s)
        self.next_intended_at = perf_counter() + self.interval_s
        loop.add_reader(self.ticker.fd, self._tick)

    def _tick(self) -> None:
        assert self.ticker is not None
        # The ticks are counted by the kernel: those that this loop slept through are sent now, each
        # with the time at which it should have left.
        for _ in range(self.ticker.ticks()):
            intended_at = self.next_intended_at
            self.next_intended_at += self.interval_s
            if self.free:
                self._send(self.free.pop(), intended_at)
            else:
                self.waiting.append(intended_at)

    def _send(self, connection: Connection, intended_at: float) -> None:
        connection.intended_at = intended_at
        connection.send(self.request, intended_at)

    def _of_window(self, intended_at: float) -> bool:
        return self.window.begun_at <= intended_at < self.window.ended_at

    def _answered(self, connection: Connection, status: int) -> None:
        now = perf_counter()
        if self._of_window(connection.intended_at):
            self.window.latencies.append(now - connection.intended_at)
            if status == 200:
                self.window.units += 1
        if status != 200:
            self.window.fail(f"status {status}" if status else "connection lost with a request in flight")
        if not status:
            return
        if self.waiting:
            self._send(connection, self.waiting.popleft())
        else:
            self.free.append(connection)

    async def drain(self) -> None:
        """Stop the clock and wait for what is in flight; what never came back is an error."""
        self._stop()
        until = perf_counter() + DRAIN_S
        # Off the clock, so a poll of 2 ms costs no figure.
        while perf_counter() < until and self._in_flight():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        now = perf_counter()
        late = [one.intended_at for one in self.connections if one.busy] + list(self.waiting)
        for intended_at in filter(self._of_window, late):
            self.window.latencies.append(now - intended_at)
            self.window.fail(f"not answered {DRAIN_S:g} s after the window")

    def _in_flight(self) -> bool:
        return bool(self.waiting) or any(one.busy for one in self.connections)

    def _stop(self) -> None:
        if self.ticker is not None:
            asyncio.get_running_loop().remove_reader(self.ticker.fd)
            self.ticker.close()
            self.ticker = None

    def close(self) -> None:
        """Stop the clock and drop the connections."""
        self._stop()
        for connection in self.connections:
            connection.busy = False
            connection.transport.abort()
