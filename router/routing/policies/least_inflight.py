"""The replica with the least load of all; exact, and linear in their number.

Meant for pools of up to some hundred replicas with long requests, where one misplaced generation costs
more than the scan. Ties go to whichever comes first after a moving start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.routing.policies.chooser import Chooser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica


class LeastInFlight(Chooser):
    """Scans a fixed tuple, from one place further each time."""

    __slots__ = ("_replicas", "_start")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._start = 0

    def choose(self, now: float) -> Replica:
        """Return the least loaded replica."""
        replicas = self._replicas
        count = len(replicas)
        start = self._start = (self._start + 1) % count
        best = replicas[start]
        least = best.load(now)
        for i in range(start + 1, start + count):
            replica = replicas[i if i < count else i - count]
            load = replica.load(now)
            if load < least:
                best, least = replica, load
        return best
