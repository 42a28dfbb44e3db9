"""Names the counts of robot sessions for Prometheus: `router_robot_*`, `router_webtransport_*`.

Links are of this moment, over the sessions that are open: the median, the 99th percentile (to the bucket) and the
worst. No session has a series of its own; see /debug/robots. Imports nothing of the project but types and buckets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from router.telemetry import HistogramSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from router.telemetry import LinkSnapshot, WorkerSnapshot

ROBOT_GAUGES = ("robot_sessions_open", "webtransport_sessions")
# (name without `_total`, help, number)
_COUNTERS = (
    ("router_robot_sessions", "Robot sessions that found a replica.", "robot_sessions"),
    ("router_robot_refused", "Robot sessions refused, or left without a replica.", "robot_refused"),
    ("router_robot_faults", "Robots that broke the protocol or a limit.", "robot_faults"),
    ("router_robot_stalled", "Those of them that did not read.", "robot_stalled"),
    ("router_robot_epochs", "Replicas taken for a session after the first one.", "robot_epochs"),
    ("router_robot_resumed", "Robot sessions that went on from a lost connection.", "robot_resumed"),
    ("router_robot_resume_ignored", "Tokens of robots that did not hold: new sessions began.",
     "robot_resume_ignored"),
    ("router_robot_superseded", "Robot sessions that ended since their robot had come again.", "robot_superseded"),
    ("router_robot_telemetry_relayed", "Telemetry passed on to sidecars.", "robot_telemetry_relayed"),
    ("router_robot_telemetry_collected", "Telemetry handed to the collector.", "robot_telemetry_collected"),
    ("router_robot_telemetry_unused", "Telemetry of robots that nobody had let in yet, or that nobody collects.",
     "robot_telemetry_unused"),
    ("router_webtransport_rejected", "Streams of WebTransport that were of no session.", "webtransport_rejected"),
)  # fmt: skip
# lane and direction of each number
_MESSAGES = (
    ("state", "up", "robot_state_in"),
    ("command", "up", "robot_command_in"),
    ("telemetry", "up", "robot_telemetry_in"),
    ("state", "down", "robot_state_out"),
    ("command", "down", "robot_command_out"),
)
# (direction, reason, number); what robots drop of replies is their own word
_DROPPED = (
    ("up", "stale", "robot_stale_in"),
    ("up", "late", "robot_late_in"),
    ("down", "stale", "robot_stale_out"),
    ("robot", "stale", "robot_reported_stale"),
    ("robot", "late", "robot_reported_late"),
)
_TELEMETRY_DROPPED = ("rate", "lanes", "collector")
# as above, the last one a measure of `WorkerSnapshot.links`
_LINKS = (
    ("router_robot_link_rtt_seconds", "Round-trip time of open robot sessions.", "robot_link_rtt"),
    ("router_robot_link_jitter_seconds", "Jitter of open robot sessions, as they report it.", "robot_link_jitter"),
    ("router_robot_link_gap_seconds", "Largest gap between replies in the last second of open robot sessions.",
     "robot_link_gap"),
    ("router_robot_link_loss_ratio", "Share of packets that open robot sessions lose, as they report it.",
     "robot_link_loss"),
)  # fmt: skip
ROBOT_HISTOGRAMS = (
    ("router_robot_rtt_seconds", "Round-trip time as robots report it, each second.", "robot_rtt"),
    ("router_robot_jitter_seconds", "Jitter as robots report it, each second.", "robot_jitter"),
    ("router_robot_gap_seconds", "Largest gap between replies within a second, as robots report it.", "robot_gap"),
    ("router_robot_loss_ratio", "Share of packets lost, as robots report it, each second.", "robot_loss"),
)


def robot_families(counters: dict[str, int], serving: list[WorkerSnapshot]) -> Iterable[Metric]:
    """Return every family but the histograms; `counters` are totals, gauges are of `serving`."""
    for name, text, number in _COUNTERS:
        yield CounterMetricFamily(name, text, value=counters.get(number, 0))
    text = "Messages of robots taken by replicas, and of replicas queued for robots, by lane."
    messages = CounterMetricFamily("router_robot_messages", text, labels=["lane", "direction"])
    for lane, direction, number in _MESSAGES:
        messages.add_metric([lane, direction], counters.get(number, 0))
    yield messages
    text = "Messages that were not delivered: a newer one was there, or their deadline had passed."
    dropped = CounterMetricFamily("router_robot_dropped", text, labels=["direction", "reason"])
    for direction, reason, number in _DROPPED:
        dropped.add_metric([direction, reason], counters.get(number, 0))
    yield dropped
    text = "Telemetry dropped: more than a session may send, than its lanes took, than the collector took."
    dropped = CounterMetricFamily("router_robot_telemetry_dropped", text, labels=["reason"])
    for reason in _TELEMETRY_DROPPED:
        dropped.add_metric([reason], counters.get(f"robot_telemetry_dropped_{reason}", 0))
    yield dropped
    total = sum(seen.counters.get("robot_sessions_open", 0) for seen in serving)
    yield GaugeMetricFamily("router_robot_sessions_open", "Robot sessions that have a replica.", value=total)
    for name, text, measure in _LINKS:
        gauge = GaugeMetricFamily(name, text, labels=["quantile"])
        found = [seen.links[measure] for seen in serving if measure in seen.links]
        for label, value in _over_sessions(found):
            gauge.add_metric([label], value)
        yield gauge
    total = sum(seen.counters.get("webtransport_sessions", 0) for seen in serving)
    yield GaugeMetricFamily("router_webtransport_sessions", "WebTransport sessions open.", value=total)


def _over_sessions(found: list[LinkSnapshot]) -> list[tuple[str, float]]:
    """Return quantiles over the sessions of all workers; none where nothing is known of any."""
    whole = HistogramSnapshot()
    for one in found:
        whole.add(HistogramSnapshot(one.counts))
    if not any(whole.counts):
        return []
    worst = max(one.worst for one in found)
    return [("0.5", min(worst, whole.quantile(0.5))), ("0.99", min(worst, whole.quantile(0.99))), ("max", worst)]
