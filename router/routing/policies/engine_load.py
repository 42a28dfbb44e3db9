"""Two random choices by what the engines say of themselves, corrected by what was sent to them since.

A reading that is older than `STALE_S` is of an engine that does not answer: it counts as saturated. Where nobody's
is fresh the choice is that of p2c.
"""

from __future__ import annotations

from random import random
from typing import TYPE_CHECKING, Final

from router.routing.policies.chooser import Chooser
from router.routing.policies.p2c import P2C

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica

STALE_S: Final = 3.0  # engines are asked once a second


class EngineLoad(Chooser):
    """Two random choices over a fixed tuple."""

    __slots__ = ("_count", "_p2c", "_replicas")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._count = len(self._replicas)
        self._p2c = P2C(replicas)

    def choose(self, now: float) -> Replica:
        """Return the one of two whose engine has less to do."""
        count = self._count
        if count == 1:
            return self._replicas[0]
        i = int(random() * count)
        j = int(random() * (count - 1))
        if j >= i:
            j += 1
        a, b = self._replicas[i], self._replicas[j]
        fresh_a = now - a.engine_load_at_s <= STALE_S
        fresh_b = now - b.engine_load_at_s <= STALE_S
        if fresh_a and fresh_b:
            return a if a.expected_engine_load(now) <= b.expected_engine_load(now) else b
        if fresh_a or fresh_b:
            return a if fresh_a else b
        return self._p2c.choose(now)
