"""One timer of the event loop for the deadlines of all QUIC connections of a worker.

The deadline wheel's 25 ms are too coarse for pacing and loss. A heap holds, for each connection, the time at which
it is next looked at; a deadline that moves later (as the probe timer does with each packet) moves nothing here, the
connection is asked again when its turn comes. The loop's timer is set anew only when the earliest moves earlier.
Times are late by up to a millisecond, which is what uvloop's timers resolve.

Invariant: a connection with a deadline has an entry at or before it. Stale entries are fewer than live ones and
`MAX_STALE` together.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.clock import Clock
    from router.transport.outbox import Outbox

GRAIN_S: Final = 0.001
MAX_STALE: Final = 256


class Timed:
    """Something with a deadline. `timer_s` belongs to the timers: 0 when there is no entry.

    A base class and no trait, since an attribute of a trait cannot be set from outside.
    """

    __slots__ = ("timer_s",)

    def __init__(self) -> None:
        self.timer_s = 0.0

    def timer_deadline(self) -> float | None:
        """Return when `timer_due` wants to be called, monotonic seconds; None for never."""
        raise NotImplementedError

    def timer_due(self, now: float) -> None:
        """Act on a deadline that has passed. What is touched is flushed afterwards."""
        raise NotImplementedError


class QuicTimers:
    """The heap and the loop's timer."""

    __slots__ = (
        "_armed",
        "_armed_s",
        "_clock",
        "_entries",
        "_is_firing",
        "_loop",
        "_outbox",
        "_sequence",
        "_stale",
        "arms",
    )

    def __init__(self, clock: Clock, outbox: Outbox) -> None:
        self._clock = clock
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._entries: list[tuple[float, int, Timed]] = []
        self._sequence = 0
        self._stale = 0
        self._armed: asyncio.TimerHandle | None = None
        self._armed_s = 0.0
        self._is_firing = False
        self.arms = 0  # times that the loop's timer was set

    def watch(self, item: Timed) -> None:
        """Look at the item's deadline; it may have moved."""
        deadline = item.timer_deadline()
        if deadline is None:
            return
        entry_s = item.timer_s
        if entry_s:
            if entry_s <= deadline:
                return
            self._stale += 1
        self._add(item, deadline)
        if self._stale > len(self._entries) - self._stale + MAX_STALE:
            self._sweep()
        if not self._is_firing and (not self._armed_s or deadline < self._armed_s):
            self._arm(deadline)

    def forget(self, item: Timed) -> None:
        """Take an item out: it is over."""
        if item.timer_s:
            item.timer_s = 0.0
            self._stale += 1

    def close(self) -> None:
        """Set nothing more."""
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._entries.clear()

    def _add(self, item: Timed, when_s: float) -> None:
        item.timer_s = when_s
        self._sequence += 1
        heapq.heappush(self._entries, (when_s, self._sequence, item))

    def _sweep(self) -> None:
        """Drop stale entries, as many as there are live ones: it costs each a constant."""
        self._entries = [entry for entry in self._entries if entry[2].timer_s == entry[0]]
        heapq.heapify(self._entries)
        self._stale = 0

    def _arm(self, when_s: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._armed_s = when_s
        self.arms += 1
        # Rounded up to the grain of the loop's timers: to be early would be to come again at once.
        delay_s = max(GRAIN_S, when_s - self._clock.now + GRAIN_S / 2)
        self._armed = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._armed = None
        self._armed_s = 0.0
        self._is_firing = True
        now = self._clock.read()
        try:
            self._turn(now)
            self._outbox.flush()
        finally:  # whatever happened: without this no deadline would ever pass again
            self._is_firing = False
            if self._entries:
                self._arm(self._entries[0][0])

    def _turn(self, now: float) -> None:
        entries = self._entries
        while entries and entries[0][0] <= now:
            when_s, _, item = heapq.heappop(entries)
            if item.timer_s != when_s:
                self._stale -= 1
                continue
            item.timer_s = 0.0
            deadline = item.timer_deadline()
            if deadline is None:
                continue
            if deadline <= now:
                item.timer_due(now)
                deadline = item.timer_deadline()
            if deadline is not None and (not item.timer_s or item.timer_s > deadline):
                if item.timer_s:
                    self._stale += 1
                self._add(item, max(deadline, now + GRAIN_S))  # one that is still due gets a turn of the loop
