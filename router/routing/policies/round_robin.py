"""Smooth weighted round robin (nginx's): a fixed sequence in which heavy replicas are spread out.

The sequence is computed once per picker. Weights are quantised to whole shares of the lightest, at most
16 to 1, so that it stays short; up to 4,096 turns, beyond which all weights count as equal.
"""

from __future__ import annotations

from random import randrange
from typing import TYPE_CHECKING

from router.routing.policies.chooser import Chooser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica

MAX_RATIO = 16
MAX_TURNS = 4_096


class RoundRobin(Chooser):
    """Walks a precomputed sequence from a random start, so that workers do not move in step."""

    __slots__ = ("_next", "_turns")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._turns = _turns(replicas)
        self._next = randrange(len(self._turns))

    def choose(self, now: float) -> Replica:
        """Return the next in the sequence."""
        turn = self._next
        self._next = turn + 1 if turn + 1 < len(self._turns) else 0
        return self._turns[turn]


def _turns(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    lightest = min(replica.weight for replica in replicas)
    shares = [min(round(replica.weight / lightest), MAX_RATIO) for replica in replicas]
    total = sum(shares)
    if len(set(shares)) == 1 or total > MAX_TURNS:
        return tuple(replicas)
    current = [0] * len(shares)
    turns: list[Replica] = []
    for _ in range(total):
        current = [have + share for have, share in zip(current, shares, strict=True)]
        best = current.index(max(current))
        current[best] -= total
        turns.append(replicas[best])
    return tuple(turns)
