"""Power of two choices: of two random replicas the one with less load; latency breaks ties.

Mitzenmacher's result: two choices keep the longest queue at log log n where one gives log n, without
looking at every replica. Load is `Replica.load`; the tie-break is the peak EWMA of the time to first byte.
"""

from __future__ import annotations

from random import random
from typing import TYPE_CHECKING

from router.routing.policies.chooser import Chooser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica


class P2C(Chooser):
    """Two random choices over a fixed tuple."""

    __slots__ = ("_count", "_replicas")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._count = len(self._replicas)

    def choose(self, now: float) -> Replica:
        """Return the better of two distinct random replicas."""
        count = self._count
        if count == 1:
            return self._replicas[0]
        i = int(random() * count)
        j = int(random() * (count - 1))
        if j >= i:
            j += 1
        a = self._replicas[i]
        b = self._replicas[j]
        load_a = a.load(now)
        load_b = b.load(now)
        if load_a == load_b:
            return a if a.expected_latency(now) <= b.expected_latency(now) else b
        return a if load_a < load_b else b
