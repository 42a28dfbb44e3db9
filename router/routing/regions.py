"""Which regions a request may go to, nearest first. Pure.

* The router's own region comes first, with replicas that name none; a router without a region is near to all.
* Then the regions that the endpoint's `failover` names, in its order; without one those of the own region's row;
  where neither says anything all others, as one tier. Who names an order means that no other region may be used.
* A region that drains, is down or has no weight takes no requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.routing.spec import RegionSpec

NOWHERE = -1


class Geography:
    """The regions as one router sees them; shared by all endpoints, and changed in place."""

    __slots__ = ("_specs", "own")

    def __init__(self, own: str = "") -> None:
        self.own = own
        self._specs: dict[str, RegionSpec] = {}

    def replace(self, specs: Iterable[RegionSpec]) -> None:
        """Take what a table says of all regions."""
        self._specs = {spec.name: spec for spec in specs}

    def weight(self, region: str) -> float:
        """Return the factor on its replicas' weights; 0 where it takes no requests."""
        spec = self._specs.get(region)
        if spec is None:
            return 1.0
        return spec.weight if spec.state == "READY" else 0.0

    def rank(self, region: str, failover: tuple[str, ...] | None) -> int:
        """Return a region's place in the order, 0 for near; NOWHERE for one that must not be used."""
        if not region or not self.own or region == self.own:
            return 0
        order = failover
        if order is None:
            own = self._specs.get(self.own)
            order = own.failover if own is not None else ()
            if not order:
                return 1
        return order.index(region) + 1 if region in order else NOWHERE

    def state(self, region: str) -> str:
        """Return what the table says of a region; READY where it says nothing."""
        spec = self._specs.get(region)
        return "READY" if spec is None else spec.state
