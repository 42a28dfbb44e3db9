"""How often a store that does not answer is asked: one pace for everything that asks.

Attempts are spaced by a delay that doubles from 50 ms to 2 s, whoever makes them, so that eight partitions
are not eight times as eager as one. The first success lets everybody go on at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import random
from time import monotonic

FLOOR_S = 0.05
CEILING_S = 2.0


class Pace:
    """Counts attempts; `wait` before each one after a failure."""

    __slots__ = ("_delay_s", "_next_s", "_recovered", "attempts")

    def __init__(self) -> None:
        self._delay_s = FLOOR_S
        self._next_s = 0.0
        self._recovered = asyncio.Event()
        self.attempts = 0

    async def wait(self) -> None:
        """Wait for a turn, or until somebody succeeded."""
        now = monotonic()
        turn_s = max(now, self._next_s) + self._delay_s * (0.75 + random() * 0.5)
        self._next_s = turn_s
        self._delay_s = min(self._delay_s * 2, CEILING_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(turn_s - now):
                await self._recovered.wait()
        self.attempts += 1

    def succeeded(self) -> None:
        """The store answers."""
        if self._delay_s != FLOOR_S:
            self._delay_s = FLOOR_S
            self._next_s = 0.0
            self._recovered.set()
            self._recovered = asyncio.Event()
