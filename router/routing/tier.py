"""The replicas that are equally near, the policy among them, and how much of them one routing key may take.

Immutable: made by `Endpoint.refresh` whenever eligibility or weights change. The first tier that has somebody for
a request gets it; see `balancer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.errors import Kind
from router.routing.policies import POLICIES
from router.routing.prefix import MIN_SHARE

if TYPE_CHECKING:
    from router.routing.load import EndpointLoad, Replica
    from router.routing.prefix import PrefixBoard, Prompt
    from router.routing.ring import Ring
    from router.routing.spec import EndpointSpec


class Tier:
    """Never empty. `members` are all replicas of its regions, `eligible` those that may be picked now."""

    __slots__ = (
        "_by_slot",
        "_chooser",
        "_floor",
        "_is_bound",
        "_load",
        "_max_concurrency",
        "_prefixes",
        "_share",
        "_spec",
        "eligible",
        "members",
        "regions",
        "ring",
    )

    def __init__(
        self,
        spec: EndpointSpec,
        load: EndpointLoad,
        regions: tuple[str, ...],
        members: tuple[Replica, ...],
        eligible: tuple[Replica, ...],
        prefixes: PrefixBoard | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._by_slot: dict[int, Replica] = {}  # made when the first prompt comes
        self._spec = spec
        self.regions = regions
        self.members = members
        self.eligible = eligible
        self.ring: Ring | None = None  # made when the first request with a key comes
        self._load = load
        self._max_concurrency = spec.limits.max_concurrency
        self._chooser = POLICIES[spec.policy](eligible)
        self._floor = spec.affinity.floor
        self._share = spec.affinity.load_factor / sum(replica.weight for replica in eligible)
        self._is_bound = len(eligible) > 1

    def imagined(self, missing: Replica | None) -> Tier:
        """Return the tier as it would be if a replica could take nothing."""
        left = tuple(replica for replica in self.eligible if replica is not missing)
        tier = Tier(self._spec, self._load, self.regions, self.members, left, self._prefixes)
        tier.ring = self.ring
        return tier

    def choose(self, prompt: Prompt | None, tried: tuple[Replica, ...], now: float) -> Replica | Kind:
        """Return the replica of the policy's choice, or whether they are full or were all tried."""
        if prompt is not None:
            known = self.find_known(prompt)
            if known is not None and self.takes_affine(known, now) and known not in tried:
                return known
        replica = self._chooser.choose(now)
        if tried or (self._max_concurrency and self.is_full(replica)):
            return self._next_best(tried, now)
        return replica

    def find_known(self, prompt: Prompt) -> Replica | None:
        """Return who was sent enough of a prompt's beginning; it may not be able to take it now."""
        if self._prefixes is None:
            return None
        slot, size = self._prefixes.find(prompt)
        if size < prompt.size * MIN_SHARE:
            return None
        if not self._by_slot:
            self._by_slot = {replica.slot: replica for replica in self.eligible}
        return self._by_slot.get(slot)

    def is_full(self, replica: Replica) -> bool:
        """Whether it has as much as it may have at once."""
        return 0 < self._max_concurrency <= replica.total_in_flight()

    def takes_affine(self, replica: Replica, now: float) -> bool:
        """Whether a key's replica may take one more: eligible, not full, not failing, within the bound."""
        if replica.rank < 0 or self.is_full(replica) or replica.avoid_until_s > now:
            return False
        return not self._is_bound or replica.total_in_flight() < self.bound(replica)

    def bound(self, replica: Replica) -> float:
        """Return how many requests a key may bring a replica to: its part of all, times the load factor."""
        return max(self._floor, self._share * replica.weight * (self._load.total() + 1))

    def _next_best(self, tried: tuple[Replica, ...], now: float) -> Replica | Kind:
        left = [replica for replica in self.eligible if replica not in tried]
        if not left:
            return Kind.NO_REPLICA
        free = [replica for replica in left if not self.is_full(replica)]
        if not free:
            return Kind.AT_CAPACITY
        return min(free, key=lambda replica: replica.load(now))
