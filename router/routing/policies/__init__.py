"""The policies by name. Each is a picker over a fixed tuple of eligible replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.routing.policies.engine_load import EngineLoad
from router.routing.policies.least_inflight import LeastInFlight
from router.routing.policies.p2c import P2C
from router.routing.policies.random import Random
from router.routing.policies.round_robin import RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.routing.load import Replica
    from router.routing.policies.chooser import Chooser
    from router.routing.spec import Policy


POLICIES: dict[Policy, Callable[[Sequence[Replica]], Chooser]] = {
    "p2c": P2C,
    "round_robin": RoundRobin,
    "random": Random,
    "least_inflight": LeastInFlight,
    "prefix_affinity": P2C,  # for what no replica has begun; see `tier`
    "engine_load": EngineLoad,
}
