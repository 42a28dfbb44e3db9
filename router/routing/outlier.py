"""Who is eligible: readiness, ejection of outliers, panic, slow start. Pure functions of state and time.

* ready      = READY by the table and healthy by active checks; nothing else is ever used.
* eligible   = ready and not ejected.
* ejection   = `consecutive_failures` in a row, for base, 2 x base, 3 x base … up to the maximum, and never
               more than `max_ejected_share` of the ready ones.
* panic      = fewer than `panic_threshold` of the ready ones eligible: ejections are ignored, since by then
               the fault is more likely to be ours or the network's than theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.routing.load import Replica
    from router.routing.spec import OutlierSpec

SLOW_START_FLOOR = 0.1  # share of its weight that a replica starts with
SLOW_START_STEPS = 10


def is_ready(replica: Replica) -> bool:
    """Whether the table and the active checks allow it."""
    return replica.state == "READY" and replica.is_healthy


def eligible_replicas(replicas: Sequence[Replica], spec: OutlierSpec, now: float) -> tuple[Replica, ...]:
    """Return those of an endpoint's replicas, of all regions that may be used, that a picker may choose from."""
    ready = tuple(replica for replica in replicas if is_ready(replica))
    kept = tuple(replica for replica in ready if replica.ejected_until_s <= now)
    if len(kept) < len(ready) * spec.panic_threshold:
        return ready
    return kept


def eject_until(replica: Replica, replicas: Sequence[Replica], spec: OutlierSpec, now: float) -> float:
    """Return until when `replica` is to be ejected after its latest failure; 0.0 to keep it."""
    if not spec.consecutive_failures or replica.failures_in_a_row < spec.consecutive_failures:
        return 0.0
    if replica.ejected_until_s > now:
        return 0.0
    ready = [other for other in replicas if is_ready(other)]
    ejected = sum(other.ejected_until_s > now for other in ready)
    if ejected + 1 > len(ready) * spec.max_ejected_share:
        return 0.0
    return now + min(spec.base_ejection_s * (replica.ejections + 1), spec.max_ejection_s)


def warmed_weight(replica: Replica, slow_start_s: float, now: float) -> float:
    """Return the weight that counts now: a tenth of it at first, all of it after `slow_start_s`."""
    if not slow_start_s or not replica.warm_from_s:
        return replica.spec_weight
    share = (now - replica.warm_from_s) / slow_start_s
    if share >= 1.0:
        replica.warm_from_s = 0.0
        return replica.spec_weight
    return replica.spec_weight * max(share, SLOW_START_FLOOR)


def next_change_s(replicas: Sequence[Replica], slow_start_s: float, refreshed_s: float) -> float | None:
    """Return when eligibility or weights next change with time alone, or None."""
    soonest: float | None = None
    for replica in replicas:
        at_s = 0.0
        if replica.ejected_until_s:
            at_s = replica.ejected_until_s
        elif slow_start_s and replica.warm_from_s:
            at_s = refreshed_s + slow_start_s / SLOW_START_STEPS
        if at_s and (soonest is None or at_s < soonest):
            soonest = at_s
    return soonest
