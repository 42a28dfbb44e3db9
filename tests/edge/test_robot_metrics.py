"""Robots' counts by their names; links of open sessions: quantiles over all workers, no series of one session."""

from router.counters import Histogram
from router.edge.robot_metrics import robot_families
from router.telemetry import LinkSnapshot, WorkerSnapshot
from router.transport.codec.robot.counters import ROBOT_NUMBERS
from tests.edge.test_quic_metrics import worker as serving


def links_of(*rtts_s):
    histogram = Histogram()
    for rtt_s in rtts_s:
        histogram.observe(rtt_s)
    return LinkSnapshot(list(histogram.counts), max(rtts_s, default=0.0))


def worker(index, *rtts_s) -> WorkerSnapshot:
    found = serving(index, 1)
    found.links = {"robot_link_rtt": links_of(*rtts_s), "robot_link_loss": links_of()}
    return found


def gauges(*workers):
    found = {}
    for family in robot_families({}, list(workers)):
        if family.name.startswith("router_robot_link_"):
            assert all(set(sample.labels) == {"quantile"} for sample in family.samples)
            found[family.name] = {sample.labels["quantile"]: sample.value for sample in family.samples}
    return found


def test_none_is_known_where_none_is_open():
    assert gauges(worker(0), serving(1, 1)) == {
        "router_robot_link_rtt_seconds": {},
        "router_robot_link_jitter_seconds": {},
        "router_robot_link_gap_seconds": {},
        "router_robot_link_loss_ratio": {},
    }


def test_quantiles_are_over_all_workers():
    found = gauges(worker(0, *[0.004] * 90), worker(1, *[0.004] * 9, 0.3))
    assert found["router_robot_link_rtt_seconds"] == {"0.5": 0.005, "0.99": 0.005, "max": 0.3}
    found = gauges(worker(0, *[0.004] * 90), worker(1, *[0.004] * 8, 0.3, 0.3))
    assert found["router_robot_link_rtt_seconds"] == {"0.5": 0.005, "0.99": 0.3, "max": 0.3}, "no more than the worst"
    assert found["router_robot_link_loss_ratio"] == {}


def test_telemetry_by_what_became_of_it():
    numbers = {f"robot_telemetry_{name}": n for n, name in enumerate(
        ("relayed", "collected", "unused", "dropped_rate", "dropped_lanes", "dropped_collector"), 1
    )}  # fmt: skip
    found = {
        (sample.name, sample.labels.get("reason")): sample.value
        for family in robot_families(numbers, [])
        for sample in family.samples
        if sample.name.startswith("router_robot_telemetry_")
    }
    assert found == {
        ("router_robot_telemetry_relayed_total", None): 1,
        ("router_robot_telemetry_collected_total", None): 2,
        ("router_robot_telemetry_unused_total", None): 3,
        ("router_robot_telemetry_dropped_total", "rate"): 4,
        ("router_robot_telemetry_dropped_total", "lanes"): 5,
        ("router_robot_telemetry_dropped_total", "collector"): 6,
    }
    assert set(numbers) < set(ROBOT_NUMBERS)
