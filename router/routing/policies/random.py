"""Weighted random choice: one draw, one bisection over cumulated weights."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import random
from typing import TYPE_CHECKING

from router.routing.policies.chooser import Chooser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica


class Random(Chooser):
    """Draws in proportion to the weights at the time it was made."""

    __slots__ = ("_cumulated", "_last", "_replicas", "_total")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._cumulated = tuple(accumulate([replica.weight for replica in self._replicas]))
        self._total = self._cumulated[-1]
        self._last = len(self._replicas) - 1

    def choose(self, now: float) -> Replica:
        """Return one replica by its share of the weight."""
        return self._replicas[min(bisect_right(self._cumulated, random() * self._total), self._last)]
