"""The picker: which replica takes a request, decided from one immutable view of an endpoint.

A picker is made anew whenever the set of eligible replicas or their weights change, and swapped in by one
attribute store; a pick never blocks. Rules, in order:

1. the policy chooses among the eligible;
2. one that was already tried for this request, or is at its concurrency limit, is passed over for the
   next best by load;
3. none left: at capacity if a limit was the reason, else no replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from router.errors import Kind
from router.routing.load import Lease
from router.routing.policies import POLICIES

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.routing.table import Endpoint


class PickContext(Protocol):
    """What a pick may look at. `tried` are the replicas this request already failed on."""

    tried: tuple[Replica, ...]


class Picker:
    """Immutable over (endpoint, eligible replicas)."""

    __slots__ = ("_chooser", "_max_concurrency", "eligible")

    def __init__(self, endpoint: Endpoint, eligible: tuple[Replica, ...]) -> None:
        self._max_concurrency = endpoint.limits.max_concurrency
        self._chooser = POLICIES[endpoint.policy](eligible) if eligible else None
        self.eligible = eligible

    def pick(self, context: PickContext, now: float) -> Lease | Kind:
        """Return a lease, or the kind of error: NO_REPLICA or AT_CAPACITY."""
        if self._chooser is None:
            return Kind.NO_REPLICA
        replica = self._chooser.choose(now)
        if context.tried or (self._max_concurrency and self._is_full(replica)):
            other = self._next_best(context.tried, now)
            if isinstance(other, Kind):
                return other
            replica = other
        return Lease(replica, now)

    def _is_full(self, replica: Replica) -> bool:
        return 0 < self._max_concurrency <= replica.total_in_flight()

    def _next_best(self, tried: tuple[Replica, ...], now: float) -> Replica | Kind:
        left = [replica for replica in self.eligible if replica not in tried]
        if not left:
            return Kind.NO_REPLICA
        free = [replica for replica in left if not self._is_full(replica)]
        if not free:
            return Kind.AT_CAPACITY
        return min(free, key=lambda replica: replica.load(now))
