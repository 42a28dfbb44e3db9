"""Where would this request go, and why: the hot path's own table, eligibility and loads, put into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.routing.outlier import is_ready

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.routing.table import Endpoint, Table


def explain(table: Table, host: str, path: str, now: float) -> dict[str, Any]:
    """Return the route, and for each replica its load or why it is passed over. Takes no lease."""
    route = table.routes.find(host.lower().encode(), path.encode())
    if route is None:
        return {"host": host, "path": path, "route": None, "error": "no_route", "table_version": table.version}
    endpoint = table.endpoints[route.endpoint]
    candidates = [_candidate(endpoint, replica, now) for replica in endpoint.replicas]
    open_now = [candidate for candidate in candidates if candidate["excluded"] is None]
    ready = sum(is_ready(replica) for replica in endpoint.replicas)
    return {
        "host": host,
        "path": path,
        "table_version": table.version,
        "route": {
            "host": route.host.decode(),
            "path_prefix": route.path_prefix.decode(),
            "endpoint": endpoint.name,
            "policy": endpoint.policy,
        },
        "error": None if open_now else ("at_capacity" if endpoint.picker.eligible else "no_replica"),
        "panic": any(replica.ejected_until_s > now for replica in endpoint.picker.eligible),
        "ready": ready,
        "least_loaded": min(open_now, key=lambda candidate: candidate["load"])["replica"] if open_now else None,
        "candidates": candidates,
    }


def _candidate(endpoint: Endpoint, replica: Replica, now: float) -> dict[str, Any]:
    return {
        "replica": replica.id,
        "address": replica.address,
        "load": round(replica.load(now), 6),
        "in_flight": replica.total_in_flight(),
        "weight": round(replica.weight, 6),
        "latency_ms": round(replica.latency_s * 1e3, 3),
        "excluded": _exclusion(endpoint, replica, now),
    }


def _exclusion(endpoint: Endpoint, replica: Replica, now: float) -> str | None:
    if replica.state != "READY":
        return f"state is {replica.state}"
    if not replica.is_healthy:
        return "active health checks fail"
    if replica not in endpoint.picker.eligible:
        return f"ejected for another {max(0.0, replica.ejected_until_s - now):.1f} s"
    limit = endpoint.limits.max_concurrency
    if limit and replica.total_in_flight() >= limit:
        return f"at its limit of {limit} in flight"
    return None
