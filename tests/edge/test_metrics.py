"""The exposition, read by prometheus_client's own parsers, and the totals behind it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

sys.path.insert(0, str(Path(__file__).parent))

from adminkit import FakeSource, daemon_state, endpoint, replica, serve, snapshot, worker_state

from router.counters import BOUNDS_S
from router.edge.metrics import Totals, render_metrics, serving_snapshots

COUNTERS = {
    "router_requests", "router_responses", "router_errors", "router_aborts", "router_retries",
    "router_keyed_requests", "router_prompts", "router_known_prompts", "router_spilled_requests",
    "router_dropped_trailers", "router_received_bytes", "router_sent_bytes", "router_replica_requests",
    "router_replica_failures", "router_replica_backpressured", "router_replica_ejections",
    "router_connections_accepted", "router_connections_refused", "router_upstream_connects",
    "router_floods", "router_grpc_calls",
    "router_upstream_reused", "router_malformed_requests", "router_internal_errors",
    "router_access_log_dropped", "router_worker_restarts",
    "router_tls_handshakes", "router_tls_handshake_failures", "router_proxy_headers_refused",
    "router_shed", "router_worker_stuck", "router_upgrade_failures",
    "router_sessions_started", "router_sessions_ended",
}  # fmt: skip
GAUGES = {
    "router_requests_in_flight", "router_requests_waiting", "router_sessions", "router_sessions_waiting", "router_replica_ready", "router_replica_healthy", "router_replica_ejected",
    "router_replica_in_flight", "router_replica_latency_seconds", "router_replica_pooled_connections",
    "router_connections_open", "router_upstream_connections_open", "router_table_version", "router_worker_up",
    "router_tls_certificate_expiry_timestamp_seconds", "router_last_reload_ok",
    "router_generation", "router_worker_overloaded",
    "router_ready", "router_config_staleness_seconds", "router_start_time_seconds", "router_build_info",
}  # fmt: skip
HISTOGRAMS = {
    "router_request_duration_seconds", "router_overhead_seconds", "router_time_to_first_byte_seconds",
    "router_event_gap_seconds", "router_config_delay_seconds", "router_loop_lag_seconds", "router_gc_pause_seconds",
}  # fmt: skip


def scrape(totals, snapshots, state=None):
    """Add, render, parse: {(sample name, labels): value}."""
    state = state or daemon_state([worker_state(s.worker, s.pid) for s in snapshots])
    totals.add(snapshots)
    body, _ = render_metrics(totals, serving_snapshots(snapshots, state), state, "")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def counted(requests, **values):
    return {"llama": endpoint(requests, **values), "": endpoint()}


async def test_text_is_served_by_default_with_every_family():
    async with serve() as admin, admin.client() as client:
        response = await client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {family.name: family for family in parse_text(response.text)}
        assert set(families) == COUNTERS | GAUGES | HISTOGRAMS
        for name, family in families.items():
            expected = "counter" if name in COUNTERS else "gauge" if name in GAUGES else "histogram"
            assert family.type == expected, name
            assert family.documentation
            if name in COUNTERS:
                assert {sample.name for sample in family.samples} <= {name + "_total"}
        samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
        assert samples["router_requests_total", "llama"] == 3
        assert samples["router_responses_total", "-", "404"] == 1
        assert samples["router_requests_in_flight", "llama"] == 1
        assert samples["router_replica_in_flight", "llama", "a:1"] == 2
        assert samples["router_replica_ejected", "llama", "b:1"] == 1
        assert samples["router_worker_up", "0"] == 1
        assert samples["router_table_version", "0"] == 7
        assert samples["router_sessions", "llama"] == 2
        assert samples["router_sessions_started_total", "llama"] == 5
        assert samples["router_sessions_ended_total", "llama", "idle"] == 3
        info = families["router_build_info"].samples[0]
        assert (info.labels["version"], info.value) == ("1.2.3", 1)


async def test_openmetrics_is_served_when_asked_for():
    async with serve() as admin, admin.client() as client:
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        response = await client.get("/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert response.text.endswith("# EOF\n")
        families = {family.name: family for family in parse_openmetrics(response.text)}
        assert set(families) == COUNTERS | GAUGES | HISTOGRAMS


async def test_without_any_worker():
    source = FakeSource()
    source.taken, source.workers = [], [worker_state(0, 0, "starting")]
    async with serve(source) as admin, admin.client() as client:
        families = {family.name: family for family in parse_text((await client.get("/metrics")).text)}
        assert families["router_worker_up"].samples[0].value == 0
        assert families["router_connections_open"].samples[0].value == 0
        assert (await client.get("/dashboard.json")).status_code == 200


def test_histograms_are_cumulative_and_end_at_infinity():
    durations = (0.000_001, 0.000_01, 0.003, 0.003, 1.0, 2_000.0)
    found = scrape(Totals(), [snapshot(endpoints=counted(6, duration_s=durations))])
    buckets = [
        (dict(labels)["le"], value)
        for (name, *labels), value in found.items()
        if name == "router_request_duration_seconds_bucket" and ("endpoint", "llama") in labels
    ]
    assert [float(le) for le, _ in buckets] == pytest.approx([*BOUNDS_S, float("inf")])
    assert buckets[0] == ("1e-05", 2)
    assert all(len(le) < 7 for le, _ in buckets), "bounds are written short"
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert values[-2:] == [5, 6]
    label = ("endpoint", "llama")
    assert found["router_request_duration_seconds_count", label] == 6
    assert found["router_request_duration_seconds_sum", label] == pytest.approx(sum(durations))


def test_workers_are_summed():
    found = scrape(
        Totals(),
        [
            snapshot(
                0,
                100,
                endpoints=counted(
                    5, statuses={200: 4, 503: 1}, codes={"no_replica": 1}, bytes_sent=10, in_flight=1
                ),
                replicas=[replica(requests=1, in_flight=1, latency_s=0.1, pooled=1)],
                connections_accepted=2,
                connections_open=1,
            ),
            snapshot(
                1,
                101,
                endpoints=counted(7, in_flight=2),
                replicas=[replica(requests=3, in_flight=4, latency_s=0.5, is_ejected=True)],
                connections_accepted=3,
                connections_open=2,
            ),
        ],
    )
    llama = ("endpoint", "llama")
    assert found["router_requests_total", llama] == 12
    assert found["router_responses_total", llama, ("status", "200")] == 11
    assert found["router_errors_total", ("code", "no_replica"), llama] == 1
    assert found["router_sent_bytes_total", llama] == 10
    assert found["router_requests_in_flight", llama] == 3
    assert found["router_connections_accepted_total",] == 5
    assert found["router_connections_open",] == 3
    one = (llama, ("replica", "a:1"))
    assert found["router_replica_requests_total", *one] == 4
    assert found["router_replica_in_flight", *one] == 5
    assert found["router_replica_ejected", *one] == 0.5
    assert found["router_replica_ready", *one] == 1
    assert found["router_replica_latency_seconds", *one] == pytest.approx(0.4)
    assert found["router_loop_lag_seconds_count", ("worker", "0")] == 1
    assert found["router_loop_lag_seconds_count", ("worker", "1")] == 1


def monotonic(samples):
    return {
        key: value for key, value in samples.items() if key[0].endswith(("_total", "_count", "_sum", "_bucket"))
    }


def test_counters_never_fall_across_a_restart():
    totals = Totals()

    def worker(pid, requests):
        return snapshot(
            0,
            pid,
            endpoints=counted(requests, duration_s=[0.1] * requests, statuses={200: requests}, bytes_sent=requests),
            replicas=[replica(requests=requests, failures=requests)],
            connections_accepted=requests,
            lag_s=[0.001] * requests,
        )

    other = snapshot(1, 101, endpoints=counted(1000))
    rounds = [
        [worker(100, 10), other],
        [worker(100, 15), other],
        [worker(100, 15), other],  # stalled: its last known one
        [other],  # dead, not yet replaced
        [worker(200, 2), other],
        [worker(200, 40), other],
        [worker(300, 0), other],
    ]
    expected = [1010, 1015, 1015, 1015, 1017, 1055, 1055]
    before = {}
    llama = ("endpoint", "llama")
    for snapshots, requests in zip(rounds, expected, strict=True):
        found = scrape(totals, snapshots)
        assert found["router_requests_total", llama] == requests
        now = monotonic(found)
        for key, value in before.items():
            if key in now:
                assert now[key] >= value, key
        before = before | now
    assert before["router_request_duration_seconds_count", llama] == 55
    assert before["router_replica_failures_total", llama, ("replica", "a:1")] == 55
    assert before["router_connections_accepted_total",] == 55
    assert before["router_sent_bytes_total", llama] == 55


def test_gauges_of_a_dead_process_do_not_count():
    totals = Totals()
    dead = snapshot(0, 100, endpoints=counted(5, in_flight=5), connections_open=5)
    state = daemon_state([worker_state(0, 100, "restarting", restarts=1)])
    found = scrape(totals, [dead], state)
    assert found["router_requests_total", ("endpoint", "llama")] == 5
    assert found["router_requests_in_flight", ("endpoint", "llama")] == 0
    assert found["router_connections_open",] == 0
    assert found["router_worker_up", ("worker", "0")] == 0
    assert found["router_worker_restarts_total", ("worker", "0")] == 1


def test_a_stalled_worker_is_not_up():
    state = daemon_state([worker_state(stalled=True)])
    assert scrape(Totals(), [snapshot()], state)["router_worker_up", ("worker", "0")] == 0


def test_what_left_the_table_leaves_the_metrics():
    totals = Totals()
    both = {"llama": endpoint(5), "gone": endpoint(7), "": endpoint()}
    assert ("router_requests_total", ("endpoint", "gone")) in scrape(totals, [snapshot(endpoints=both)])
    assert ("router_requests_total", ("endpoint", "gone")) not in scrape(totals, [snapshot(endpoints=counted(5))])
    back = scrape(totals, [snapshot(endpoints={**both, "gone": endpoint(2)})])
    assert back["router_requests_total", ("endpoint", "gone")] == 2
    assert back["router_requests_total", ("endpoint", "llama")] == 5


def test_an_endpoint_that_left_and_came_back_between_two_scrapes():
    totals = Totals()
    scrape(totals, [snapshot(endpoints=counted(5, duration_s=[0.1] * 5))])
    found = scrape(totals, [snapshot(endpoints=counted(2, duration_s=[0.1] * 2))])
    assert found["router_requests_total", ("endpoint", "llama")] == 7
    assert found["router_request_duration_seconds_count", ("endpoint", "llama")] == 7


def test_labels_are_capped_and_the_rest_is_summed():
    totals = Totals(max_endpoints=3, max_replicas=2)

    def round_of(requests, names):
        return snapshot(
            endpoints={name: endpoint(requests, in_flight=1) for name in names},
            replicas=[replica(name, f"{name}:1", requests=requests, in_flight=1) for name in names],
        )

    names = ["", "a", "b", "c", "d"]
    found = scrape(totals, [round_of(10, names)])
    by_endpoint = {key[1][1]: v for key, v in found.items() if key[0] == "router_requests_total"}
    assert by_endpoint == {"-": 10, "a": 10, "b": 10, "other": 20}
    in_flight = {key[1][1]: v for key, v in found.items() if key[0] == "router_requests_in_flight"}
    assert in_flight == {"-": 1, "a": 1, "b": 1, "other": 2}
    replicas = {key[2][1]: v for key, v in found.items() if key[0] == "router_replica_requests_total"}
    assert replicas == {":1": 10, "a:1": 10, "other": 30}

    # One with a label leaves: its place goes to a newcomer, and nobody in `other` moves out of it.
    found = scrape(totals, [round_of(11, ["", "b", "c", "d", "e"])])
    by_endpoint = {key[1][1]: v for key, v in found.items() if key[0] == "router_requests_total"}
    assert by_endpoint == {"-": 11, "b": 11, "other": 22, "e": 11}

    # One in `other` leaves: what it counted stays there.
    before = by_endpoint["other"]
    found = scrape(totals, [round_of(11, ["", "b", "d", "e"])])
    assert found["router_requests_total", ("endpoint", "other")] == before


def test_the_real_caps_bound_the_series():
    names = [f"endpoint-{i}" for i in range(1_200)]
    taken = snapshot(
        endpoints={name: endpoint(1) for name in names},
        replicas=[replica(name, "r:1", requests=1) for name in names],
    )
    found = scrape(Totals(), [taken])
    series = [key for key in found if key[0] == "router_requests_total"]
    assert len(series) == 1_001
    assert found["router_requests_total", ("endpoint", "other")] == 200
    assert sum(found[key] for key in series) == 1_200
    assert len([key for key in found if key[0] == "router_replica_requests_total"]) == 1_001


def test_label_values_are_escaped():
    odd = 'a"b\\c\nd'
    found = scrape(Totals(), [snapshot(endpoints={odd: endpoint(4)}, replicas=[replica(odd, odd, requests=2)])])
    assert found["router_requests_total", ("endpoint", odd)] == 4
    assert found["router_replica_requests_total", ("endpoint", odd), ("replica", odd)] == 2


def test_snapshots_are_not_changed():
    totals = Totals()
    first = snapshot(endpoints=counted(5, duration_s=[0.1] * 5))
    kept = msgspec.msgpack.encode(first)
    totals.add([first])
    totals.add([snapshot(0, 200, endpoints=counted(3, duration_s=[0.1] * 3))])
    assert msgspec.msgpack.encode(first) == kept


def test_what_was_refused_by_its_reason():
    found = scrape(
        Totals(),
        [snapshot(connections_refused=1, refused_address=2, refused_memory=3, shed_lag=4, shed_memory=5)],
        daemon_state([worker_state() | {"stuck": 2, "overload": "lag 120 ms"}]) | {"generation": 3, "upgrade_failures": 1},
    )
    refused = "router_connections_refused_total"
    assert [found[refused, ("reason", reason)] for reason in ("limit", "address", "memory")] == [1, 2, 3]
    assert [found["router_shed_total", ("reason", reason)] for reason in ("lag", "memory")] == [4, 5]
    assert found["router_worker_stuck_total", ("worker", "0")] == 2
    assert found["router_worker_overloaded", ("worker", "0")] == 1
    assert found[("router_generation",)] == 3 and found[("router_upgrade_failures_total",)] == 1
