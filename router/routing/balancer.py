"""The picker: which replica takes a request, decided from one immutable view of an endpoint.

A picker is made anew whenever the set of eligible replicas or their weights change, and swapped in by one
attribute store; a pick never blocks. Rules, in order:

1. the nearest tier of regions first; the next one when nobody there is ready, or all are full;
2. in a tier the replica that the request's routing key belongs to, unless it is full, failing or loaded beyond
   its part;
3. else the policy's choice among the eligible: with `prefix_affinity` that of who computed the longest part of
   the prompt before, within the same bounds;
4. one that was already tried for this request, or is at its concurrency limit, is passed over for the
   next best by load;
5. none left: at capacity if a limit was the reason, else no replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

from router.errors import Kind
from router.routing.load import Lease, Replica
from router.routing.ring import Ring

if TYPE_CHECKING:
    from router.counters import EndpointCounters
    from router.routing.prefix import PrefixBoard, Prompt
    from router.routing.table import Endpoint
    from router.routing.tier import Tier


# Read once: a member of an enum costs 0.1 us a look, and asking whether something is one as much (see `stream`).
_NO_REPLICA: Final = Kind.NO_REPLICA
_AT_CAPACITY: Final = Kind.AT_CAPACITY

PINNABLE: Final = ("READY", "DRAINING")
"""States of a replica that who is named for it still reaches."""


@trait
class PickContext:
    """What a pick may look at: a routing key, a prompt, or neither; the replicas this request already failed on."""

    __slots__ = ()

    affinity: bytes
    prompt: Prompt | None
    tried: tuple[Replica, ...]


class Picker:
    """Immutable over the tiers of an endpoint, nearest first. `rings` outlive it, by the regions they are of."""

    __slots__ = ("_counters", "_prefixes", "_rings", "eligible", "tiers")

    def __init__(
        self,
        tiers: tuple[Tier, ...],
        counters: EndpointCounters,
        rings: dict[tuple[str, ...], Ring],
        prefixes: PrefixBoard | None = None,
    ) -> None:
        self._prefixes = prefixes
        self.tiers = tiers
        self._counters = counters
        self._rings = rings
        self.eligible: tuple[Replica, ...] = ()
        for tier in tiers:
            self.eligible = self.eligible + tier.eligible if self.eligible else tier.eligible

    def pick(self, context: PickContext, now: float) -> Lease | Kind:
        """Return a lease, or the kind of error: NO_REPLICA or AT_CAPACITY."""
        key, prompt = context.affinity, context.prompt
        found = self.choose(key, prompt, context.tried, now)
        if not isinstance(found, Replica):
            return found
        if prompt is not None and self._prefixes is not None:
            self._counters.prompts += 1
            self._counters.known_prompts += self._prefixes.find(prompt)[0] == found.slot
            self._prefixes.record(prompt, found.slot)
        if found.rank > 0:
            self._counters.spilled += 1
        if key:
            self._counters.keyed += 1
        return Lease(found, now)

    def pick_preferred(self, replica: Replica | None, context: PickContext, now: float) -> Lease | None:
        """Return a lease on that replica if it is eligible, has room and does not fail; else None."""
        if replica is None or replica.rank < 0 or not self.tiers or replica in context.tried:
            return None
        if self.tiers[0].is_full(replica) or replica.avoid_until_s > now:  # the limit is the endpoint's
            return None
        if replica.rank > 0:
            self._counters.spilled += 1
        return Lease(replica, now)

    def choose(
        self, key: bytes, prompt: Prompt | None, tried: tuple[Replica, ...], now: float
    ) -> Replica | Kind:
        """Return who would take a request, without taking a lease; else the kind of error."""
        refusal: Kind = _NO_REPLICA
        for tier in self.tiers:
            if key:
                replica = self.ring(tier).find(key, tier, tried, now)
                if replica is not None:
                    return replica
            found = tier.choose(prompt, tried, now)
            if isinstance(found, Replica):
                return found
            if found is _AT_CAPACITY:
                refusal = found
        return refusal

    def imagined(self, missing: Replica | None) -> Picker:
        """Return the picker as it would be if a replica could take nothing; its policies start anew."""
        tiers = tuple(tier.imagined(missing) for tier in self.tiers if tier.eligible != (missing,))
        return Picker(tiers, self._counters, self._rings, self._prefixes)

    def ring(self, tier: Tier) -> Ring:
        """Return the ring of a tier's regions, made for the first request with a key."""
        ring = tier.ring
        if ring is None:
            ring = self._rings.get(tier.regions)
            if ring is None:
                ring = self._rings[tier.regions] = Ring()
            ring.follow(tier.members)
            tier.ring = ring
        return ring


def take_pinned(endpoint: Endpoint, replica_id: bytes, now: float) -> Lease | Kind:
    """Return a lease on the replica that a trusted caller names, healthy or not, if it is up and not full."""
    replica = endpoint.find(replica_id)
    if replica is None or replica.state not in PINNABLE:
        return Kind.NO_REPLICA
    if 0 < endpoint.limits.max_concurrency <= replica.total_in_flight():
        return Kind.AT_CAPACITY
    return Lease(replica, now)
