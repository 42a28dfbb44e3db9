"""Names the counts of QUIC listeners for Prometheus, `router_quic_*` and `router_stun_*`. Imports names only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from router.edge.quic_counters import DROP_REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from router.telemetry import WorkerSnapshot

# (name, help, number) of what also falls
_GAUGES = (
    ("router_quic_connections_open", "QUIC connections, those among them that are being closed.",
     "quic_connections_open"),
    ("router_quic_handshakes_open", "QUIC handshakes under way.", "quic_handshaking"),
    ("router_attached_replicas", "Replicas that dialled and are served through that.", "attached_replicas"),
    ("router_quic_sockets_without_gro", "UDP sockets that read datagrams one by one.", "udp_without_gro"),
    ("router_quic_sockets_without_gso", "UDP sockets that write datagrams one by one.", "udp_without_gso"),
)  # fmt: skip
QUIC_GAUGES = tuple(number for _, _, number in _GAUGES)
# (name without `_total`, help, number)
_COUNTERS = (
    ("router_attach_refused", "Replicas that may not attach.", "attach_refused"),
    ("router_attach_streams", "Connections spliced to a stream of an attached replica.", "attach_streams"),
    ("router_robot_lanes_opened", "Robots' tunnels to attached replicas by lanes.", "lanes_opened"),
    ("router_robot_lanes_failed", "Those that became a WebSocket, as there was no way.", "lanes_failed"),
    ("router_quic_retries", "Clients asked to prove their address (Retry).", "quic_retries"),
    ("router_quic_retries_answered", "Clients that did.", "quic_retries_answered"),
    ("router_quic_invalid_tokens", "Answers to a Retry that were forged or too late.", "quic_invalid_tokens"),
    ("router_quic_tokens_used", "Clients that proved it by an earlier connection's token.", "quic_tokens_used"),
    ("router_quic_refused", "Connections refused: too many, or the daemon ends.", "quic_refused"),
    ("router_quic_version_negotiations", "Clients told which versions are spoken.", "quic_negotiations"),
    ("router_quic_stateless_resets", "Clients told that their connection is gone.", "quic_resets"),
    ("router_quic_migrations", "Changes of a client's address.", "quic_migrations"),
    ("router_quic_packets_received", "Packets that were authentic.", "quic_packets_received"),
    ("router_quic_packets_sent", "Packets sent.", "quic_packets_sent"),
    ("router_quic_packets_lost", "Packets sent and taken for lost.", "quic_packets_lost"),
    ("router_quic_datagrams_received", "UDP datagrams read.", "udp_datagrams_received"),
    ("router_quic_datagrams_sent", "UDP datagrams written.", "udp_datagrams_sent"),
    ("router_quic_reads", "System calls that read datagrams.", "udp_reads"),
    ("router_quic_writes", "System calls that wrote datagrams.", "udp_writes"),
    ("router_quic_forwarded", "Reads passed on to the process that has the connection.", "quic_forwarded"),
    ("router_quic_taken_over", "Reads that another process passed on.", "quic_taken_over"),
    ("router_stun_answers", "STUN clients that were told their address.", "stun_answers"),
    ("router_stun_refusals", "STUN requests with attributes that are not understood.", "stun_refusals"),
    ("router_stun_checks", "STUN requests with a name: checks of a way.", "stun_checks"),
)
QUIC_HISTOGRAM = (
    "router_quic_rtt_seconds", "Smoothed round-trip time of QUIC connections when they ended.", "quic_rtt",
)  # fmt: skip
_UDP_DROPS = {
    "truncated": "udp_dropped_truncated",
    "send_buffer": "udp_dropped_unsent",
    "too_large": "udp_dropped_too_large",
    "send_failed": "udp_dropped_failed",
}


def quic_families(counters: dict[str, int], serving: list[WorkerSnapshot]) -> Iterable[Metric]:
    """Return every family but the histogram's; `counters` are totals, gauges are of `serving`."""
    text = "QUIC handshakes of clients by how they ended."
    handshakes = CounterMetricFamily("router_quic_handshakes", text, labels=["result"])
    handshakes.add_metric(["done"], counters["quic_handshakes"])
    handshakes.add_metric(["failed"], counters["quic_handshake_failures"])
    yield handshakes
    for name, text, number in _COUNTERS:
        yield CounterMetricFamily(name, text, value=counters[number])
    text = "Datagrams that led nowhere, by reason."
    dropped = CounterMetricFamily("router_quic_dropped", text, labels=["reason"])
    for reason in DROP_REASONS:
        dropped.add_metric([reason], counters[f"quic_drop_{reason}"])
    for reason, number in _UDP_DROPS.items():
        dropped.add_metric([reason], counters[number])
    yield dropped
    for name, text, number in _GAUGES:
        yield GaugeMetricFamily(name, text, value=sum(seen.counters.get(number, 0) for seen in serving))
