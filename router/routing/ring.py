"""Where a routing key belongs: a ring of points, many for each replica, of which a key takes the next one.

Consistent hashing in the form that stays flat: a look-up is one hash and one bisection, whatever the number of
replicas, where rendezvous hashing would score each of them. A replica that comes or goes moves the keys next to its
own points alone, 1/n of all. Every router puts the points at the same places, as they follow from the replicas'
names. What is there but cannot take a request is passed over, and its keys go to as many others as it has points.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.routing.load import Replica
    from router.routing.tier import Tier

POINTS: Final = (
    64  # of a replica with weight 1: shares differ by an eighth of the mean, which bounded load evens out
)
MAX_POINTS: Final = 512
_PER_DIGEST: Final = 8
MAX_WALK: Final = 512  # points looked at for one key before the policy decides without it


class Ring:
    """Points of a set of replicas, kept sorted. The order of points is that of 64-bit numbers."""

    __slots__ = ("_members", "_owners", "_points")

    def __init__(self) -> None:
        self._members: dict[tuple[str, int], Replica] = {}
        self._owners: dict[int, Replica] = {}
        self._points: list[int] = []

    def follow(self, members: tuple[Replica, ...]) -> None:
        """Let the ring have the points of these replicas; costs what changed and one pass over the points."""
        # By what was put in, not by what the objects say now: a replica's weight changes in place.
        before, owners = self._members, self._owners
        after = {(replica.id, _count(replica)): replica for replica in members}
        if before == after:
            return
        gone: set[int] = set()
        for name in before.keys() - after.keys():
            gone.update(_points(*name))
        for point in gone:
            owners.pop(point, None)
        points = [point for point in self._points if point not in gone] if gone else self._points
        for name, replica in after.items():
            if before.get(name) is not replica:
                mine = _points(*name)
                points += [point for point in mine if point not in owners]
                owners.update(dict.fromkeys(mine, replica))
        points.sort()
        self._points = points
        self._members = after

    def find(self, key: bytes, tier: Tier, tried: tuple[Replica, ...], now: float) -> Replica | None:
        """Return the first replica for a key that may take a request, None if none is found."""
        points, owners = self._points, self._owners
        size = len(points)
        at = bisect_right(points, hash_key(key))
        last: Replica | None = None
        for i in range(at, at + min(size, MAX_WALK)):
            replica = owners[points[i if i < size else i - size]]
            if replica is not last:
                if tier.takes_affine(replica, now) and replica not in tried:
                    return replica
                last = replica
        return None

    def order(self, key: bytes) -> Iterator[Replica]:
        """Yield the replicas in the order in which `find` asks them, each once."""
        points, owners = self._points, self._owners
        at = bisect_right(points, hash_key(key))
        walk = (points[at:] + points[:at])[:MAX_WALK]
        yield from dict.fromkeys([owners[point] for point in walk])


def hash_key(key: bytes) -> int:
    """Return the place of a key on every ring."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


def _count(replica: Replica) -> int:
    return max(1, min(round(POINTS * replica.spec_weight), MAX_POINTS))


def _points(name: str, count: int) -> list[int]:
    points: list[int] = []
    seed = name.encode()
    for i in range(0, count, _PER_DIGEST):
        digest = blake2b(b"%b\0%d" % (seed, i), digest_size=64).digest()
        points += [int.from_bytes(digest[j : j + 8], "big") for j in range(0, 64, 8)]
    return points[:count]
