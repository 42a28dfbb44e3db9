"""The dashboard: one self-contained page, and the summary that it asks for each second.

The summary holds running totals and histograms; the page takes differences of them itself, so the listener
keeps nothing for anybody who looks. A large table is cut to its busiest endpoints and replicas.
"""

from __future__ import annotations

import time
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from router.counters import BOUNDS_S
from router.edge.admin_views import by_endpoint, replica_rows
from router.edge.metrics import UNROUTED
from router.telemetry import EndpointSnapshot, HistogramSnapshot

if TYPE_CHECKING:
    from router.edge.metrics import Totals
    from router.routing.spec import TableSpec
    from router.telemetry import WorkerSnapshot
    from router.transport.codec.robot.shown import ShownRobot

MAX_ENDPOINTS = 100
MAX_REPLICAS = 500
MAX_ROBOTS = 50

# The page's own script and style stand in it, its icon is empty; nothing else may be loaded, nobody may frame it.
CONTENT_SECURITY_POLICY = b"default-src 'self' 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


@cache
def page() -> bytes:
    """Return the page, read once."""
    return files("router.edge").joinpath("dashboard.html").read_bytes()


def summary(
    totals: Totals,
    serving: list[WorkerSnapshot],
    state: dict[str, Any],
    table: TableSpec,
    health: list[dict[str, Any]],
    robots: dict[str, Any] | None = None,
) -> bytes:
    """Return the JSON that the page lives on. Counters only grow; in-flight numbers are of this moment."""
    rows = replica_rows(table, health, serving)
    sessioned = {endpoint.name for endpoint in table.endpoints if endpoint.sessions is not None}
    open_now = (state.get("sessions") or {}).get("open", {})
    with totals.lock:
        endpoints = _endpoints(totals, serving, by_endpoint(table, rows))
        for endpoint in endpoints:
            endpoint["sessions"] = open_now.get(endpoint["name"], 0) if endpoint["name"] in sessioned else None
        seen = {snapshot.worker: snapshot for snapshot in serving}
        workers = [_worker(worker, seen.get(worker["index"]), totals) for worker in state["workers"]]
        counters = dict(totals.counters)
    busiest = sorted(rows, key=lambda row: (-row.in_flight, -row.requests)) if len(rows) > MAX_REPLICAS else rows
    return msgspec.json.encode(
        {
            "now_s": time.time(),
            "uptime_s": time.time() - state["started_epoch_s"],
            "version": state["version"],
            "ready": state["ready"],
            "reasons": state["reasons"],
            "draining": state["draining"],
            "last_reload": state.get("last_reload"),
            "last_upgrade": state.get("last_upgrade"),
            "config": state.get("config"),
            "config_staleness_s": state.get("config_staleness_s", 0.0),
            "table_version": table.version,
            "bounds_s": BOUNDS_S,
            "counters": counters,
            "workers": workers,
            "endpoints": endpoints[:MAX_ENDPOINTS],
            "endpoint_count": len(table.endpoints),
            "replicas": busiest[:MAX_REPLICAS],
            "replica_count": len(rows),
            "robots": [_robot(robot) for robot in robots["robots"]] if robots is not None else [],
            "robot_count": robots["open"] if robots is not None else 0,
        }
    )


def _endpoints(
    totals: Totals, serving: list[WorkerSnapshot], grouped: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    in_flight: dict[str, int] = {}
    for snapshot in serving:
        for name, counted in snapshot.endpoints.items():
            label = totals.endpoint_labels.label(name or UNROUTED)
            in_flight[label] = in_flight.get(label, 0) + counted.in_flight
    configured = {endpoint["name"]: endpoint for endpoint in grouped}
    names = [*configured, *(name for name in totals.endpoints if name not in configured)]
    none = EndpointSnapshot()
    endpoints = []
    for name in names:
        endpoint = configured.get(name, {"policy": None, "ready": None, "total": None})
        counted = totals.endpoints.get(name, none)
        endpoints.append(
            {
                "name": name,
                "policy": endpoint["policy"],
                "ready": endpoint["ready"],
                "total": endpoint["total"],
                **msgspec.structs.asdict(counted),
                "in_flight": in_flight.get(name, 0),
            }
        )
    if len(endpoints) > MAX_ENDPOINTS:
        endpoints.sort(key=lambda endpoint: -endpoint["requests"])
    return endpoints


def _robot(robot: ShownRobot) -> dict[str, Any]:
    """Return a row: what the robot says of its link, and the round trip as the router finds it until it has."""
    return {
        "session": robot.session,
        "worker": robot.worker,
        "client": robot.client,
        "where": robot.endpoint or robot.authority + robot.path,
        "replica": robot.replica,
        "epoch": robot.epoch,
        "transport": robot.transport,
        "rtt_us": robot.reported_rtt_us if robot.reported_rtt_us >= 0 else robot.rtt_us,
        "loss_ppm": robot.reported_loss_ppm,
        "jitter_us": robot.reported_jitter_us,
        "gap_us": max(robot.gap_us, robot.reported_gap_us),
        "late": robot.late_in + robot.reported_late,
        "stale": robot.stale_in + robot.stale_out + robot.reported_stale,
    }


def _worker(worker: dict[str, Any], seen: WorkerSnapshot | None, totals: Totals) -> dict[str, Any]:
    lag = totals.histograms.get(("loop_lag", worker["index"]), HistogramSnapshot())
    return {
        **worker,
        "in_flight": seen.in_flight if seen is not None else 0,
        "connections_open": seen.counters.get("connections_open", 0) if seen is not None else 0,
        "table_version": seen.table_version if seen is not None else None,
        "loop_lag": lag,
    }
