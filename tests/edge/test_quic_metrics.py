"""The counts of QUIC listeners by their names: all of them, none without QUIC, gauges of who serves only."""

import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

sys.path.insert(0, str(Path(__file__).parent))

from adminkit import daemon_state, snapshot

from router.edge.metrics import Totals, render_metrics
from router.edge.quic_counters import ATTACH_NUMBERS, DROP_REASONS, LANE_NUMBERS, QUIC_NUMBERS, QuicCounters
from router.edge.quic_metrics import QUIC_GAUGES
from router.telemetry import HistogramSnapshot, snapshot_histogram
from router.transport.udp import UDP_NUMBERS

NUMBERS = (*QUIC_NUMBERS, *ATTACH_NUMBERS, *LANE_NUMBERS, *(f"udp_{name}" for name in UDP_NUMBERS))


def scrape(*snapshots, totals=None):
    totals = totals or Totals()
    totals.add(list(snapshots))
    body, _ = render_metrics(totals, list(snapshots), daemon_state(), "")
    families = {family.name: family for family in parse_text(body.decode())}
    return {name: family for name, family in families.items() if name.startswith(("router_quic_", "router_stun_", "router_attach", "router_robot_lanes"))}


def worker(index, value, rtt=()):
    found = snapshot(index, 100 + index, **dict.fromkeys(NUMBERS, value))
    histogram = QuicCounters().rtt
    for seconds in rtt:
        histogram.observe(seconds)
    found.histograms["quic_rtt"] = snapshot_histogram(histogram)
    return found


def value(families, name, **labels):
    (found,) = [s.value for s in families[name].samples if s.labels == labels and not s.name.endswith("_created")]
    return found


def test_without_quic_there_are_none():
    assert scrape(snapshot(0, 100)) == {}


def test_every_number_is_shown():
    """Each is set to a value of its own: all of these values are in the exposition."""
    values = {name: 1_000 + i for i, name in enumerate(NUMBERS)}
    found = snapshot(0, 100, **values)
    shown = {sample.value for family in scrape(found).values() for sample in family.samples}
    assert set(values.values()) <= shown


def test_drops_by_reason():
    families = scrape(worker(0, 3), worker(1, 4))
    reasons = {sample.labels["reason"] for sample in families["router_quic_dropped"].samples}
    assert reasons == {*DROP_REASONS, "truncated", "send_buffer", "too_large", "send_failed"}
    assert value(families, "router_quic_dropped", reason="unknown") == 7
    assert value(families, "router_quic_handshakes", result="done") == 7


def test_what_also_falls_is_of_who_serves_now():
    totals = Totals()
    scrape(worker(0, 9), totals=totals)
    families = scrape(worker(0, 2), totals=totals)
    assert value(families, "router_quic_connections_open") == 2
    assert value(families, "router_quic_packets_sent") == 9, "a total never falls"
    assert set(QUIC_GAUGES) <= set(NUMBERS)


def test_round_trip_times():
    families = scrape(worker(0, 1, rtt=(0.02, 0.03)))
    samples = {s.name: s.value for s in families["router_quic_rtt_seconds"].samples if "bucket" not in s.name}
    assert samples["router_quic_rtt_seconds_count"] == 2
    assert samples["router_quic_rtt_seconds_sum"] == pytest.approx(0.05)
    assert isinstance(worker(0, 1).histograms["quic_rtt"], HistogramSnapshot)
