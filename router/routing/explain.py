"""Where would this request go, and why: the hot path's own table, tiers, ring and policies, put into words.

Nothing is taken and nothing counted. `without` asks what would be if one replica could take nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from router.errors import Kind
from router.routing.balancer import PINNABLE
from router.routing.outlier import is_ready
from router.routing.regions import NOWHERE

if TYPE_CHECKING:
    from router.routing.balancer import Picker
    from router.routing.load import Replica
    from router.routing.sessions import SessionIndex
    from router.routing.spec import StickySpec
    from router.routing.table import Endpoint, Table
    from router.routing.tier import Tier


class Asked(msgspec.Struct):
    """What is asked about: a request for `path` of `host`, with a routing key, or for a model in an environment.

    `session` is the id of a sticky session; without one it is asked where a new one would begin.
    """

    host: str = ""
    path: str = "/"
    key: str = ""
    model: str = ""
    environment: str = "main"
    without: str = ""
    session: str = ""


def explain(table: Table, asked: Asked, now: float) -> dict[str, Any]:
    """Return the route, the choice, and for each replica its score or why it is passed over."""
    found: dict[str, Any] = {
        "host": asked.host, "path": asked.path, "table_version": table.version, "route": None, "error": "no_route",
    }  # fmt: skip
    route = table.routes.find(asked.host.lower().encode(), asked.path.encode())
    if route is None:
        return found
    where: dict[str, Any] = {"host": route.host.decode(), "path_prefix": route.path_prefix.decode()}
    endpoint = table.endpoints.get(route.endpoint)
    if route.by_model:
        served = table.models.find(asked.environment, asked.model)
        endpoint = table.endpoints.get(served[0]) if served else None
        where |= {"by_model": True, "model": asked.model, "environment": asked.environment}
        if endpoint is None:
            error = Kind.MODEL_NOT_FOUND if asked.model else Kind.MODEL_MISSING
            return found | {"route": where, "error": error.value}
    assert endpoint is not None, "a route leads to an endpoint of its table"
    where |= {"endpoint": endpoint.name, "policy": endpoint.policy}
    return found | {"route": where, "environment": endpoint.environment, "needs_token": endpoint.needs_token} | (
        _of_endpoint(endpoint, table.sessions, asked, now)
    )


def _of_endpoint(endpoint: Endpoint, sessions: SessionIndex, asked: Asked, now: float) -> dict[str, Any]:
    picker, key = endpoint.picker, asked.key.encode()
    missing = endpoint.find(asked.without.encode()) if asked.without else None
    rank = NOWHERE
    if missing is not None:
        rank, missing.rank = missing.rank, NOWHERE
    try:
        # Even with nobody missing: the policies of the picker in force are not to move on for a question.
        imagined = picker.imagined(missing)
        found = _of_picker(endpoint, imagined, key, missing, now)
        if endpoint.sessions is not None:
            found |= _of_sessions(endpoint, endpoint.sessions, sessions, imagined, asked, found["candidates"])
        return found | {
            "panic": any(replica.ejected_until_s > now for replica in picker.eligible),
            "ready": sum(is_ready(replica) for replica in endpoint.replicas),
        }
    finally:
        if missing is not None:
            missing.rank = rank


def _of_sessions(
    endpoint: Endpoint,
    sticky: StickySpec,
    sessions: SessionIndex,
    picker: Picker,
    asked: Asked,
    candidates: list[dict[str, Any]],
) -> dict[str, Any]:
    """Say where a session is, or where a new one would begin."""
    for candidate in candidates:
        count = sessions.counts.get((endpoint.name, candidate["replica"]), 0)
        candidate["sessions"] = count
        if candidate["excluded"] is None and not asked.session and count >= sticky.max_per_replica:
            candidate["excluded"] = f"at its limit of {sticky.max_per_replica} sessions"
    error, choice = None, None
    if asked.session:
        entry = sessions.open.get(asked.session)
        is_known = entry is not None and entry.endpoint == endpoint.name
        replica = endpoint.find(entry.replica.encode()) if entry is not None and is_known else None
        if replica is None:
            error = Kind.SESSION_GONE.value
        elif replica.state not in PINNABLE or replica.id == asked.without:
            error = Kind.NO_REPLICA.value
        else:
            choice = replica.id
    else:
        found = sessions.choose(picker, endpoint.name, sticky.max_per_replica)
        error, choice = (found.value, None) if isinstance(found, Kind) else (None, found.id)
    return {"sessioned": True, "error": error, "choice": choice}


def _of_picker(
    endpoint: Endpoint, picker: Picker, key: bytes, missing: Replica | None, now: float
) -> dict[str, Any]:
    choice = picker.choose(key, None, (), now)
    limit = endpoint.limits.endpoint_concurrency
    error = choice.value if isinstance(choice, Kind) else None
    if limit and endpoint.load.total() >= limit:
        error = Kind.AT_CAPACITY.value
    tiers = {tier.eligible[0].rank: tier for tier in picker.tiers}
    candidates = []
    for replica in endpoint.replicas:
        why = "left out, as was asked" if replica is missing else _exclusion(endpoint, replica, now)
        candidates.append(_candidate(endpoint, tiers.get(replica.rank), replica, why, key, now))
    open_now = [candidate for candidate in candidates if candidate["excluded"] is None]
    return {
        "error": error,
        "choice": None if error or isinstance(choice, Kind) else choice.id,
        "key": _key(picker, key, now) if key else None,
        "tiers": [
            {"rank": rank, "regions": list(tier.regions), "eligible": len(tier.eligible)}
            for rank, tier in sorted(tiers.items())
        ],
        "in_flight": endpoint.load.total(),
        "waiting": endpoint.counters.waiting + endpoint.counters.starting,
        "least_loaded": min(open_now, key=lambda candidate: candidate["load"])["replica"] if open_now else None,
        "candidates": candidates,
    }


def _key(picker: Picker, key: bytes, now: float) -> dict[str, Any]:
    """Say whom a key belongs to in the nearest tier, and who was passed over on the way."""
    if not picker.tiers:
        return {"home": None, "passed_over": []}
    tier = picker.tiers[0]
    ring = picker.ring(tier)
    passed: list[str] = []
    for replica in ring.order(key):
        if tier.takes_affine(replica, now):
            break
        passed.append(replica.id)
    home = next(iter(ring.order(key)), None)
    return {"home": None if home is None else home.id, "passed_over": passed}


def _candidate(
    endpoint: Endpoint, tier: Tier | None, replica: Replica, why: str | None, key: bytes, now: float
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "replica": replica.id,
        "address": replica.address,
        "region": replica.region,
        "tier": None if why is not None and replica.rank < 0 else endpoint.region_rank(replica.region),
        "load": round(replica.load(now), 6) if replica.weight else None,
        "in_flight": replica.total_in_flight(),
        "weight": round(replica.weight, 6),
        "latency_ms": round(replica.latency_s * 1e3, 3),
        "engine_load": None if replica.engine_load_at_s < 0 else round(replica.engine_load, 3),
        "engine_load_age_s": None if replica.engine_load_at_s < 0 else round(now - replica.engine_load_at_s, 3),
        "excluded": why,
    }
    if key and tier is not None:
        shown["key_bound"] = round(tier.bound(replica), 3)
        shown["key_excluded"] = why or _key_exclusion(tier, replica, now)
    return shown


def _key_exclusion(tier: Tier, replica: Replica, now: float) -> str | None:
    if replica.avoid_until_s > now:
        return f"failed or refused; not for routing keys for another {replica.avoid_until_s - now:.1f} s"
    if not tier.takes_affine(replica, now):
        return f"loaded beyond its part of {tier.bound(replica):.1f} in flight"
    return None


def _exclusion(endpoint: Endpoint, replica: Replica, now: float) -> str | None:
    if replica.state != "READY":
        return f"state is {replica.state}"
    if endpoint.region_rank(replica.region) == NOWHERE:
        return f"region {replica.region} is not used: it drains, is down, or is not in the order of failover"
    if not replica.is_healthy:
        return "active health checks fail"
    if replica.rank < 0:
        return f"ejected for another {max(0.0, replica.ejected_until_s - now):.1f} s"
    limit = endpoint.limits.max_concurrency
    if limit and replica.total_in_flight() >= limit:
        return f"at its limit of {limit} in flight"
    return None
