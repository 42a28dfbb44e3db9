"""What the admin listener shows of replicas and workers: table, verdicts and snapshots put side by side.

Pure functions of what `AdminSource` returned. Readiness comes of the table and the health checks alone, so
that it can be told without asking a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from router.demand import EndpointDemand

if TYPE_CHECKING:
    from router.routing.spec import TableSpec
    from router.telemetry import WorkerSnapshot


def without_hashes(table: TableSpec) -> TableSpec:
    """Return the table as it may be shown: without hashes and keys; sessions have a place of their own."""
    tokens = tuple(msgspec.structs.replace(token, digest=b"") for token in table.tokens)
    return msgspec.structs.replace(table, tokens=tokens, sessions=None, session_keys=None)


class ReplicaRow(msgspec.Struct):
    """One replica: as configured, as checked, and as the workers that serve see it, summed.

    `is_ejected`: at least one worker ejected it; `ejected_by` says how many. `latency_ms` is a mean over workers by
    their requests.
    """

    endpoint: str
    id: str
    address: str
    state: str
    weight: float
    is_healthy: bool
    is_ready: bool
    health_reason: str
    checked_ago_s: float | None
    is_ejected: bool = False
    ejected_by: int = 0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    backpressured: int = 0
    ejections: int = 0
    latency_ms: float = 0.0
    pooled: int = 0
    region: str = ""


def replica_rows(table: TableSpec, health: list[dict[str, Any]], serving: list[WorkerSnapshot]) -> list[ReplicaRow]:
    """Return a row for each replica of the table, in its order."""
    verdicts = {(verdict["endpoint"], verdict["replica"]): verdict for verdict in health}
    rows: dict[tuple[str, str], ReplicaRow] = {}
    for endpoint in table.endpoints:
        for replica in endpoint.replicas:
            verdict = verdicts.get((endpoint.name, replica.id), {})
            is_healthy = bool(verdict.get("is_healthy", True))
            rows[endpoint.name, replica.id] = ReplicaRow(
                endpoint=endpoint.name,
                id=replica.id,
                address=replica.address,
                state=replica.state,
                weight=replica.weight,
                is_healthy=is_healthy,
                is_ready=is_healthy and replica.state == "READY",
                health_reason=str(verdict.get("reason") or ""),
                checked_ago_s=verdict.get("checked_ago_s"),
                region=replica.region,
            )
    for snapshot in serving:
        for seen in snapshot.replicas:
            row = rows.get((seen.endpoint, seen.id))
            if row is None:
                continue  # a worker that has not swapped its table yet
            row.is_ejected |= seen.is_ejected
            row.ejected_by += seen.is_ejected
            row.in_flight += seen.in_flight
            row.requests += seen.requests
            row.failures += seen.failures
            row.backpressured += seen.backpressured
            row.ejections += seen.ejections
            row.pooled += seen.pooled
            if seen.requests:
                row.latency_ms += (seen.latency_s * 1e3 - row.latency_ms) * seen.requests / row.requests
    for row in rows.values():
        row.latency_ms = round(row.latency_ms, 3)
    return list(rows.values())


def by_endpoint(table: TableSpec, rows: list[ReplicaRow]) -> list[dict[str, Any]]:
    """Group rows: name, policy, ready, total and replicas of each endpoint."""
    grouped: dict[str, list[ReplicaRow]] = {endpoint.name: [] for endpoint in table.endpoints}
    for row in rows:
        grouped[row.endpoint].append(row)
    return [
        {
            "name": endpoint.name,
            "policy": endpoint.policy,
            "ready": sum(row.is_ready for row in grouped[endpoint.name]),
            "total": len(grouped[endpoint.name]),
            "replicas": grouped[endpoint.name],
        }
        for endpoint in table.endpoints
    ]


def demand_rows(
    table: TableSpec, rows: list[ReplicaRow], demand: dict[str, EndpointDemand]
) -> list[dict[str, Any]]:
    """Return what each endpoint is asked for at this router, and what it has to meet it.

    `in_flight`, `waiting` (held until a replica is there) and `sessions` are of this moment; `arrivals` and
    `unserved` (503 for want of a replica, or of room on any) only grow; `replicas`, those `ready`, and `scaling`
    as configured.
    """
    return [
        {
            "endpoint": found["name"],
            **msgspec.structs.asdict(demand.get(found["name"], EndpointDemand())),
            "replicas": found["total"],
            "ready": found["ready"],
            "scaling": endpoint.scaling,
        }
        for endpoint, found in zip(table.endpoints, by_endpoint(table, rows), strict=True)
    ]


def readiness_lines(state: dict[str, Any], table: TableSpec, rows: list[ReplicaRow]) -> list[str]:
    """Return what /readyz?verbose says."""
    lines = [f"[-] {reason}" for reason in state["reasons"]]
    for worker in state["workers"]:
        stalled = ", stalled" if worker["stalled"] else ""
        sign = "+" if worker["state"] == "ready" and not stalled else "-"
        overload = worker.get("overload")
        suffers = f", overloaded: {overload}" if overload else ""
        lines.append(f"[{sign}] worker {worker['index']}: {worker['state']}{stalled}{suffers}")
    for endpoint in by_endpoint(table, rows):
        sign = "+" if endpoint["ready"] else "-"
        lines.append(
            f"[{sign}] endpoint {endpoint['name']}: {endpoint['ready']}/{endpoint['total']} replicas ready"
        )
    lines.append("ready" if state["ready"] else "not ready")
    return lines


def cluster_lines(endpoints: list[dict[str, Any]]) -> list[str]:
    """Return /clusters as Envoy writes it: `endpoint::address::key::value`."""
    lines = []
    for endpoint in endpoints:
        name = endpoint["name"]
        lines += [
            f"{name}::policy::{endpoint['policy']}",
            f"{name}::ready::{endpoint['ready']}/{endpoint['total']}",
        ]
        for row in endpoint["replicas"]:
            lead = f"{name}::{row.address.partition('://')[2] or row.address}"
            flags = "" if row.is_healthy else "/failed_active_hc"
            flags += "/failed_outlier_check" if row.is_ejected else ""
            lines.append(f"{lead}::health_flags::{flags or 'healthy'}")
            for key, value in msgspec.structs.asdict(row).items():
                if key not in ("endpoint", "address"):
                    lines.append(f"{lead}::{key}::{_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # A value is one line whatever a reason holds.
    return "" if value is None else " ".join(str(value).split())


def sglang_worker(row: ReplicaRow) -> dict[str, Any]:
    """Return one replica as SGLang's gateway lists its workers."""
    address = row.address
    return {
        "id": row.id,
        "url": address if "://" in address else f"http://{address}",
        "model_id": row.endpoint,
        "priority": 50,
        "cost": 1.0,
        "worker_type": "regular",
        "is_healthy": row.is_ready and not row.is_ejected,
        "load": row.in_flight,
        "connection_mode": "http",
        "runtime_type": "sglang",
        "weight": row.weight,
        "state": row.state,
        "endpoint": row.endpoint,
    }


def sglang_workers(rows: list[ReplicaRow]) -> dict[str, Any]:
    """Return GET /workers of SGLang's gateway."""
    return {
        "workers": [sglang_worker(row) for row in rows],
        "total": len(rows),
        "stats": {"prefill_count": 0, "decode_count": 0, "regular_count": len(rows)},
    }
