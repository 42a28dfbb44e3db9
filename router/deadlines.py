"""Deadlines without timers: a lazy wheel that is asked now and then.

Arming an event-loop timer costs 4-8 us, so an item is put into the slot where its deadline falls and
asked again when the slot comes up; activity meanwhile only moves a stamp that `next_deadline` reads.
Pure: the owner calls `turn(now)` every `TICK_S`. Being late by up to two ticks is part of the contract.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

_log = logging.getLogger("router.deadlines")

TICK_S: Final = 0.025
NEVER = 1e12  # a deadline that never comes, for an item that stays in the wheel
SLOTS: Final = 1024  # one turn is 25.6 s; later deadlines are looked at once a turn
TURN_S: Final = SLOTS * TICK_S


class Watched(Protocol):
    """Something with a deadline. `watch_tick` belongs to the wheel: -1 when not in it."""

    watch_tick: int

    def next_deadline(self) -> float | None:
        """Monotonic seconds, or None to leave the wheel."""

    def handle_deadline(self, now: float) -> None:
        """Called once `next_deadline` has passed; the item is then asked again."""


class DeadlineWheel:
    """Holds watched items by the tick in which they are next asked."""

    __slots__ = ("_slots", "_tick")

    def __init__(self, now: float) -> None:
        self._slots: list[list[Watched]] = [[] for _ in range(SLOTS)]
        self._tick = int(now / TICK_S)

    def watch(self, item: Watched) -> None:
        """Put `item` where its deadline falls, if it is not asked before that anyway."""
        deadline = item.next_deadline()
        if deadline is None:
            item.watch_tick = -1
            return
        ahead = min(max(int(deadline / TICK_S) + 1 - self._tick, 1), SLOTS - 1)
        tick = self._tick + ahead
        if item.watch_tick < 0 or tick < item.watch_tick:
            item.watch_tick = tick  # an older, later entry is stale: `turn` drops it by this stamp
            self._slots[tick % SLOTS].append(item)

    def turn(self, now: float) -> None:
        """Ask every item whose tick has come up."""
        last = int(now / TICK_S)
        # After a stall longer than a turn every slot is due once, not many times.
        first = max(self._tick + 1, last - SLOTS + 1)
        for tick in range(first, last + 1):
            self._tick = tick
            slot = tick % SLOTS
            due = self._slots[slot]
            if due:
                self._slots[slot] = []
                for item in due:
                    if 0 <= item.watch_tick <= tick and item.watch_tick % SLOTS == slot:
                        item.watch_tick = -1
                        self._ask(item, now)

    def _ask(self, item: Watched, now: float) -> None:
        try:
            deadline = item.next_deadline()
            if deadline is not None and deadline <= now:
                item.handle_deadline(now)
        except Exception:  # our bug, at the price of this one item: all the others' deadlines must still pass
            _log.exception("a deadline was not handled; its item leaves the wheel")
            return
        if item.watch_tick == -1:
            self.watch(item)
