"""Which replica of a session it is, and when the next is tried: at once, then ever later, `EPOCH_TRIES` in a row.

A row ends when a replica has stayed for `EPOCH_GOOD_S`; one that takes sessions and drops them is no replica.
"""

from __future__ import annotations

from router.transport.codec.robot.limits import BACK_OFF_S, EPOCH_GOOD_S, EPOCH_TRIES


class Epochs:
    """`number` counts replicas from 1. Times are set by `tick`, since who tells of a replica does not know them."""

    __slots__ = ("_is_fresh", "_is_gone", "_opened_s", "_tries", "number", "retry_s")

    def __init__(self) -> None:
        self.number = 0
        self.retry_s = 0.0  # 0 while none is due
        self._tries = 0
        self._opened_s = 0.0
        self._is_fresh = False
        self._is_gone = False

    def opened(self) -> None:
        """Count a replica that took the session."""
        self.number += 1
        self._is_fresh = True

    def lost(self) -> None:
        """Have another one tried."""
        self._is_gone = True

    def tick(self, now: float) -> bool:
        """Learn the time; False when it was tried often enough."""
        if self._is_fresh:
            self._is_fresh = False
            self._opened_s = now
        if not self._is_gone:
            return True
        self._is_gone = False
        if self._opened_s and now - self._opened_s >= EPOCH_GOOD_S:
            self._tries = 0
        self._opened_s = 0.0
        if self._tries >= EPOCH_TRIES:
            return False
        self.retry_s = now + BACK_OFF_S[self._tries]
        self._tries += 1
        return True

    def is_due(self, now: float) -> bool:
        """Whether one is to be tried now; once."""
        if not self.retry_s or now < self.retry_s:
            return False
        self.retry_s = 0.0
        return True
