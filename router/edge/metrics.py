"""Names the workers' counts for Prometheus: `router_*`, seconds and bytes.

`Totals` adds up what every worker counted. It adds the *growth* of each number since the worker's last
snapshot, so that a restarted worker, which counts from zero, never makes a total fall; a dead process
stays counted up to the last snapshot seen of it. Beyond `MAX_ENDPOINTS` and `MAX_REPLICAS` label sets the
rest is summed into `other`. `RouterCollector` turns totals, and gauges of live workers, into metric families.
Both may be used by several threads. Imports telemetry only.
"""

from __future__ import annotations

import platform
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from router.counters import BOUNDS_S
from router.edge.quic_metrics import QUIC_GAUGES, QUIC_HISTOGRAM, quic_families
from router.edge.robot_metrics import ROBOT_GAUGES, ROBOT_HISTOGRAMS, robot_families
from router.telemetry import EndpointSnapshot, HistogramSnapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable

    from prometheus_client.core import Metric

    from router.telemetry import ReplicaSnapshot, WorkerSnapshot

MAX_ENDPOINTS = 1_000
MAX_REPLICAS = 1_000
UNROUTED = "-"  # the endpoint of a request that no route took
OTHER = "other"
SERVING_STATES = ("ready", "draining")

# Numbers of a worker that also fall; everything else in `WorkerSnapshot.counters` only grows.
_WORKER_GAUGES = ("connections_open", "upstream_open", *QUIC_GAUGES, *ROBOT_GAUGES)

_LE = (*(repr(float(f"{bound:g}")) for bound in BOUNDS_S), "+Inf")

# (name without `_total`, help, attribute of EndpointSnapshot)
_ENDPOINT_COUNTERS = (
    ("router_requests", "Requests received.", "requests"),
    ("router_aborts", "Responses cut after their head was sent.", "aborts"),
    ("router_retries", "Requests sent on to another replica: they provably never reached the first.", "retries"),
    ("router_keyed_requests", "Requests with a routing key.", "keyed"),
    ("router_prompts", "Requests that were looked up by the beginning of their prompt.", "prompts"),
    ("router_known_prompts", "Those of them that went where it was sent before.", "known_prompts"),
    ("router_spilled_requests", "Requests sent to another region than the router's own.", "spilled"),
    ("router_dropped_trailers", "Trailer sections that the other side could not take.", "dropped_trailers"),
    ("router_received_bytes", "Body bytes received from clients.", "bytes_received"),
    ("router_sent_bytes", "Body bytes sent to clients.", "bytes_sent"),
)
_ENDPOINT_GAUGES = (
    ("router_requests_in_flight", "Requests under way.", "in_flight"),
    ("router_requests_waiting", "Requests that wait for a cold start.", "waiting"),
    ("router_sessions_waiting", "Starts of sticky sessions that wait for room.", "starting"),
)
_ENDPOINT_HISTOGRAMS = (
    ("router_request_duration_seconds", "From a request's head to the end of its response.", "duration"),
    ("router_overhead_seconds", "Time that the router itself added to a request.", "overhead"),
    ("router_time_to_first_byte_seconds", "From a request's head to the replica's first body byte.", "first_byte"),
    ("router_event_gap_seconds", "Between two pieces of one event stream.", "event_gap"),
)
_WORKER_COUNTERS = (
    ("router_connections_accepted", "Client connections accepted.", "connections_accepted"),
    ("router_floods", "Client connections ended for wasting the router's time.", "floods"),
    ("router_upstream_connects", "Connections opened to replicas.", "upstream_connects"),
    ("router_upstream_reused", "Requests sent over a connection that served an earlier one.", "upstream_reused"),
    ("router_malformed_requests", "Requests refused before they were routed.", "malformed_requests"),
    ("router_tls_handshakes", "TLS handshakes of clients that ended well.", "tls_handshakes"),
    ("router_tls_handshake_failures", "TLS handshakes of clients that did not.", "tls_handshake_failures"),
    ("router_proxy_headers_refused", "Connections closed for want of a PROXY header.", "proxy_headers_refused"),
    ("router_internal_errors", "Connections dropped by a bug of the router.", "internal_errors"),
    ("router_access_log_dropped", "Access log records dropped, since writing fell behind.", "access_log_dropped"),
)
# (name without `_total`, help, reason to attribute of `WorkerSnapshot.counters`)
_WORKER_COUNTERS_BY_REASON = (
    (
        "router_connections_refused",
        "Client connections refused: too many in all, too many of one address, too little memory.",
        {"limit": "connections_refused", "address": "refused_address", "memory": "refused_memory"},
    ),
    (
        "router_shed",
        "Requests refused because a worker had too much to do: its loop was late, or its memory short.",
        {"lag": "shed_lag", "memory": "shed_memory"},
    ),
)
_WORKER_HISTOGRAMS = (
    ("router_config_delay_seconds", "From a commit in the store to the table being in force.", "config_delay"),
    ("router_loop_lag_seconds", "How late a worker's event loop came to its timer.", "loop_lag"),
    ("router_gc_pause_seconds", "Garbage collections of a worker.", "gc_pause"),
)
_REPLICA_COUNTERS = (
    ("router_replica_requests", "Requests sent to the replica.", "requests"),
    ("router_replica_failures", "Failures counted against the replica.", "failures"),
    ("router_replica_backpressured", "Answers of the replica that said it is full.", "backpressured"),
    ("router_replica_ejections", "Times that a worker ejected the replica.", "ejections"),
)
_REPLICA_GAUGES = (
    ("router_replica_ready", "Share of workers to which the replica is ready (READY and healthy).", "ready"),
    ("router_replica_healthy", "Share of workers to which its active health checks pass.", "healthy"),
    ("router_replica_ejected", "Share of workers that have ejected it.", "ejected"),
    ("router_replica_in_flight", "Requests in flight on the replica.", "in_flight"),
    ("router_replica_latency_seconds", "Smoothed latency, a mean over workers by their requests.", "latency_s"),
    ("router_replica_pooled_connections", "Idle connections kept to the replica.", "pooled"),
)

Key = TypeVar("Key", bound="Hashable")


class LabelCap(Generic[Key]):
    """Gives the first `limit` keys labels of their own and all later ones `other`.

    A key keeps what it was given until it is forgotten, so that no count moves from one series to another.
    """

    __slots__ = ("_given", "_limit", "_other", "_own")

    def __init__(self, limit: int, other: Key) -> None:
        self._limit = limit
        self._other = other
        self._given: dict[Key, Key] = {}
        self._own: set[Key] = set()

    def label(self, key: Key) -> Key:
        """Return the label of `key`, giving it one if it is new."""
        given = self._given.get(key)
        if given is None:
            given = self._other
            if len(self._own) < self._limit:
                self._own.add(key)
                given = key
            self._given[key] = given
        return given

    def keep_only(self, keys: set[Key]) -> set[Key]:
        """Forget all others; return those of them that had labels of their own."""
        for key in self._given.keys() - keys:
            del self._given[key]
        gone = self._own - keys
        self._own -= gone
        return gone


class ReplicaTotals(msgspec.Struct):
    """What was counted for one replica over all workers there ever were."""

    requests: int = 0
    failures: int = 0
    backpressured: int = 0
    ejections: int = 0


class Totals:
    """All that was ever counted, by label. Read it while holding `lock`."""

    def __init__(self, max_endpoints: int = MAX_ENDPOINTS, max_replicas: int = MAX_REPLICAS) -> None:
        self.lock = threading.Lock()
        self.endpoint_labels: LabelCap[str] = LabelCap(max_endpoints, OTHER)
        self.replica_labels: LabelCap[tuple[str, str]] = LabelCap(max_replicas, (OTHER, OTHER))
        self.endpoints: dict[str, EndpointSnapshot] = {}
        self.replicas: dict[tuple[str, str], ReplicaTotals] = {}
        self.counters: dict[str, int] = {}
        self.histograms: dict[tuple[str, int], HistogramSnapshot] = {}
        self._last: dict[int, WorkerSnapshot] = {}

    def add(self, snapshots: list[WorkerSnapshot]) -> None:
        """Add what grew since the last call. Of one worker, snapshots must come in the order they were taken."""
        with self.lock:
            before = self._last
            # A missing worker is dead for now: its table still counts until another process takes its place.
            self._last = before | {snapshot.worker: snapshot for snapshot in snapshots}
            self._forget_removed(self._last.values())
            for snapshot in snapshots:
                last = before.get(snapshot.worker)
                self._add_worker(snapshot, last if last is not None and last.pid == snapshot.pid else None)

    def _add_worker(self, now: WorkerSnapshot, last: WorkerSnapshot | None) -> None:
        for name, value in now.counters.items():
            if name not in _WORKER_GAUGES:
                before = last.counters.get(name, 0) if last is not None else 0
                self.counters[name] = self.counters.get(name, 0) + max(0, value - before)
        for name, histogram in now.histograms.items():
            total = self.histograms.setdefault((name, now.worker), HistogramSnapshot())
            _add_growth(total, histogram, last.histograms.get(name) if last is not None else None)
        for name, endpoint in now.endpoints.items():
            label = self.endpoint_labels.label(name or UNROUTED)
            known = self.endpoints.setdefault(label, EndpointSnapshot())
            _add_endpoint(known, endpoint, last.endpoints.get(name) if last is not None else None)
        earlier = {(replica.endpoint, replica.id): replica for replica in last.replicas} if last is not None else {}
        for replica in now.replicas:
            key = (replica.endpoint, replica.id)
            counted = self.replicas.setdefault(self.replica_labels.label(key), ReplicaTotals())
            _add_replica(counted, replica, earlier.get(key))

    def _forget_removed(self, snapshots: Collection[WorkerSnapshot]) -> None:
        """Drop the series of what no worker's table has any more; what went into `other` stays in it."""
        endpoints = {name or UNROUTED for snapshot in snapshots for name in snapshot.endpoints}
        for label in self.endpoint_labels.keep_only(endpoints):
            self.endpoints.pop(label, None)
        replicas = {(replica.endpoint, replica.id) for snapshot in snapshots for replica in snapshot.replicas}
        for pair in self.replica_labels.keep_only(replicas):
            self.replicas.pop(pair, None)


def _add_growth(total: HistogramSnapshot, now: HistogramSnapshot, before: HistogramSnapshot | None) -> None:
    if before is None:
        total.add(now)
        return
    if now.counts != before.counts:
        total.counts = [t + max(0, n - b) for t, n, b in zip(total.counts, now.counts, before.counts, strict=True)]
        total.sum_s += max(0.0, now.sum_s - before.sum_s)


def _add_endpoint(total: EndpointSnapshot, now: EndpointSnapshot, before: EndpointSnapshot | None) -> None:
    if before is None or now.requests < before.requests:  # the endpoint left the table and came back
        before = EndpointSnapshot()
    for _, _, name in _ENDPOINT_COUNTERS:
        setattr(total, name, getattr(total, name) + max(0, getattr(now, name) - getattr(before, name)))
    for _, _, name in _ENDPOINT_HISTOGRAMS:
        _add_growth(getattr(total, name), getattr(now, name), getattr(before, name))
    total.statuses = _grown(total.statuses, now.statuses, before.statuses)
    total.codes = _grown(total.codes, now.codes, before.codes)
    total.grpc_statuses = _grown(total.grpc_statuses, now.grpc_statuses, before.grpc_statuses)


def _add_replica(total: ReplicaTotals, now: ReplicaSnapshot, before: ReplicaSnapshot | None) -> None:
    is_same = before is not None and now.requests >= before.requests
    for _, _, name in _REPLICA_COUNTERS:
        growth = getattr(now, name) - (getattr(before, name) if is_same else 0)
        setattr(total, name, getattr(total, name) + max(0, growth))


Label = TypeVar("Label", int, str)


def _grown(total: dict[Label, int], now: dict[Label, int], before: dict[Label, int]) -> dict[Label, int]:
    grown = dict(total)
    for key, value in now.items():
        grown[key] = grown.get(key, 0) + max(0, value - before.get(key, 0))
    return grown


class _ReplicaGauges:
    """One replica's gauges, from all workers that serve."""

    __slots__ = ("ejected", "healthy", "in_flight", "latency_s", "pooled", "ready", "requests")

    def __init__(self) -> None:
        self.ready = self.healthy = self.ejected = 0.0
        self.in_flight = self.pooled = self.requests = 0
        self.latency_s = 0.0

    def add(self, replica: ReplicaSnapshot, share: float) -> None:
        """Add what one worker sees; `share` is 1 / the number of workers."""
        self.ready += share * replica.is_ready
        self.healthy += share * replica.is_healthy
        self.ejected += share * replica.is_ejected
        self.in_flight += replica.in_flight
        self.pooled += replica.pooled
        if replica.requests:
            self.requests += replica.requests
            self.latency_s += (replica.latency_s - self.latency_s) * replica.requests / self.requests


class RouterCollector(Collector):
    """Makes metric families of `totals`, of the snapshots of workers that serve now, and of the state."""

    def __init__(self, totals: Totals, serving: list[WorkerSnapshot], state: dict[str, Any]) -> None:
        self._totals = totals
        self._serving = serving
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Return every family."""
        with self._totals.lock:
            return [
                *self._endpoint_families(),
                *self._replica_families(),
                *self._worker_families(),
                *self._process_families(),
            ]

    def _endpoint_families(self) -> Iterable[Metric]:
        endpoints = self._totals.endpoints
        for name, text, attribute in _ENDPOINT_COUNTERS:
            family = CounterMetricFamily(name, text, labels=["endpoint"])
            for endpoint, counted in endpoints.items():
                family.add_metric([endpoint], getattr(counted, attribute))
            yield family
        text = "Responses by HTTP status, the router's own among them."
        responses = CounterMetricFamily("router_responses", text, labels=["endpoint", "status"])
        text = "Failed requests by `x-router-error` code."
        errors = CounterMetricFamily("router_errors", text, labels=["endpoint", "code"])
        text = "gRPC calls by status, of the replica or the router."
        calls = CounterMetricFamily("router_grpc_calls", text, labels=["endpoint", "grpc_status"])
        for endpoint, counted in endpoints.items():
            for grpc_status, count in sorted(counted.grpc_statuses.items()):
                calls.add_metric([endpoint, str(grpc_status)], count)
            for status, count in sorted(counted.statuses.items()):
                responses.add_metric([endpoint, str(status)], count)
            for code, count in sorted(counted.codes.items()):
                errors.add_metric([endpoint, code], count)
        yield responses
        yield errors
        yield calls
        for name, text, attribute in _ENDPOINT_HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=["endpoint"])
            for endpoint, counted in endpoints.items():
                _add_histogram(histogram, [endpoint], getattr(counted, attribute))
            yield histogram
        for name, text, attribute in _ENDPOINT_GAUGES:
            now = dict.fromkeys(endpoints, 0)
            for snapshot in self._serving:
                for endpoint, seen in snapshot.endpoints.items():
                    label = self._totals.endpoint_labels.label(endpoint or UNROUTED)
                    now[label] = now.get(label, 0) + getattr(seen, attribute)
            gauge = GaugeMetricFamily(name, text, labels=["endpoint"])
            for endpoint, count in now.items():
                gauge.add_metric([endpoint], count)
            yield gauge

    def _replica_families(self) -> Iterable[Metric]:
        labels = ["endpoint", "replica"]
        for name, text, attribute in _REPLICA_COUNTERS:
            family = CounterMetricFamily(name, text, labels=labels)
            for pair, counted in self._totals.replicas.items():
                family.add_metric(pair, getattr(counted, attribute))
            yield family
        gauges: dict[tuple[str, str], _ReplicaGauges] = {}
        share = 1 / max(1, len(self._serving))
        for snapshot in self._serving:
            for replica in snapshot.replicas:
                pair = self._totals.replica_labels.label((replica.endpoint, replica.id))
                gauges.setdefault(pair, _ReplicaGauges()).add(replica, share)
        for name, text, attribute in _REPLICA_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for pair, seen in gauges.items():
                gauge.add_metric(pair, round(getattr(seen, attribute), 9))
            yield gauge

    def _worker_families(self) -> Iterable[Metric]:
        counters = self._totals.counters
        for name, text, key in _WORKER_COUNTERS:
            yield CounterMetricFamily(name, text, value=counters.get(key, 0))
        for name, text, keys in _WORKER_COUNTERS_BY_REASON:
            family = CounterMetricFamily(name, text, labels=["reason"])
            for reason, key in keys.items():
                family.add_metric([reason], counters.get(key, 0))
            yield family
        for name, text, key in (
            ("router_connections_open", "Client connections open.", "connections_open"),
            ("router_upstream_connections_open", "Connections open to replicas.", "upstream_open"),
        ):
            yield GaugeMetricFamily(name, text, value=sum(seen.counters.get(key, 0) for seen in self._serving))
        for name, text, key in _WORKER_HISTOGRAMS:
            yield self._worker_histogram(name, text, key)
        if "quic_handshakes" in counters:
            yield from quic_families(counters, self._serving)
            yield self._worker_histogram(*QUIC_HISTOGRAM)
            yield from robot_families(counters, self._serving)
            for name, text, key in ROBOT_HISTOGRAMS:
                yield self._worker_histogram(name, text, key)
        version = GaugeMetricFamily("router_table_version", "Version of the table in force.", labels=["worker"])
        for snapshot in self._serving:
            version.add_metric([str(snapshot.worker)], snapshot.table_version)
        yield version

    def _worker_histogram(self, name: str, text: str, key: str) -> Metric:
        histogram = HistogramMetricFamily(name, text, labels=["worker"])
        for (kind, worker), counted in sorted(self._totals.histograms.items()):
            if kind == key:
                _add_histogram(histogram, [str(worker)], counted)
        return histogram

    def _process_families(self) -> Iterable[Metric]:
        state = self._state
        up = GaugeMetricFamily("router_worker_up", "Whether the worker serves and answers.", labels=["worker"])
        restarts = CounterMetricFamily(
            "router_worker_restarts", "Times the worker was started anew.", labels=["worker"]
        )
        stuck = CounterMetricFamily(
            "router_worker_stuck", "Times the worker was ended because its loop stood still.", labels=["worker"]
        )
        overloaded = GaugeMetricFamily(
            "router_worker_overloaded", "Whether the worker refuses a share of new requests.", labels=["worker"]
        )
        for worker in state["workers"]:
            label = [str(worker["index"])]
            up.add_metric(label, int(worker["state"] in SERVING_STATES and not worker["stalled"]))
            restarts.add_metric(label, worker["restarts"])
            stuck.add_metric(label, worker.get("stuck", 0))
            overloaded.add_metric(label, int(bool(worker.get("overload"))))
        yield up
        yield restarts
        yield stuck
        yield overloaded
        generation = "Which generation of processes serves: 1 is the first, one more with each upgrade."
        yield GaugeMetricFamily("router_generation", generation, value=state.get("generation", 1))
        text = "Upgrades that failed: this process went on."
        yield CounterMetricFamily("router_upgrade_failures", text, value=state.get("upgrade_failures", 0))
        yield GaugeMetricFamily("router_ready", "Whether /readyz answers 200.", value=int(state["ready"]))
        yield GaugeMetricFamily(
            "router_config_staleness_seconds",
            "Age of the configuration; 0 for a static table.",
            value=_or_nan(state.get("config_staleness_s")),
        )
        yield from _config_families(state.get("config"))
        yield from _demand_families(state.get("demand"))
        yield from self._session_families(state.get("sessions"))
        yield GaugeMetricFamily(
            "router_start_time_seconds", "Unix time of the start.", value=float(state["started_epoch_s"])
        )
        yield from _certificate_families(state)
        info = GaugeMetricFamily("router_build_info", "Always 1; see its labels.", labels=["version", "python"])
        info.add_metric([str(state["version"]), platform.python_version()], 1)
        yield info


    def _session_families(self, sessions: dict[str, Any] | None) -> Iterable[Metric]:
        """Name what is known of sticky sessions; endpoints beyond the cap of labels are counted together."""
        if sessions is None:
            return
        label = self._totals.endpoint_labels.label
        now: dict[str, int] = {}
        for endpoint, count in sessions["open"].items():
            now[label(endpoint)] = now.get(label(endpoint), 0) + count
        gauge = GaugeMetricFamily("router_sessions", "Open sticky sessions, of the fleet.", labels=["endpoint"])
        for endpoint, count in now.items():
            gauge.add_metric([endpoint], count)
        yield gauge
        begun: dict[str, int] = {}
        for endpoint, count in sessions["started"].items():
            begun[label(endpoint)] = begun.get(label(endpoint), 0) + count
        started = CounterMetricFamily(
            "router_sessions_started", "Sticky sessions that this daemon began.", labels=["endpoint"]
        )
        for endpoint, count in begun.items():
            started.add_metric([endpoint], count)
        yield started
        over: dict[tuple[str, str], int] = {}
        for endpoint, reason, count in sessions["ended"]:
            pair = (label(endpoint), reason)
            over[pair] = over.get(pair, 0) + count
        ended = CounterMetricFamily(
            "router_sessions_ended", "Sticky sessions that this daemon ended.", labels=["endpoint", "reason"]
        )
        for pair, count in over.items():
            ended.add_metric(list(pair), count)
        yield ended


def _certificate_families(state: dict[str, Any]) -> Iterable[Metric]:
    """Name what is known of the certificates, and whether the last reload was taken whole."""
    expiry = GaugeMetricFamily(
        "router_tls_certificate_expiry_timestamp_seconds",
        "Unix time at which a certificate of the TLS listeners expires.",
        labels=["certificate"],
    )
    for shown in state.get("certificates", ()):
        expiry.add_metric([shown["certificate"]], shown["expires_epoch_s"])
    yield expiry
    last = state.get("last_reload")
    if last is not None:
        text = "Whether everything that was read again last was taken: file and certificates."
        yield GaugeMetricFamily("router_last_reload_ok", text, value=float(bool(last["ok"])))


def _or_nan(value: float | None) -> float:
    """Return NaN for what is not known: nothing must look fresh that was never there."""
    return float("nan") if value is None else float(value)


def _config_families(config: dict[str, Any] | None) -> Iterable[Metric]:
    """Name what is known of the store; nothing for a static table."""
    if config is None:
        return
    for name, text, key in (
        ("router_config_connected", "Whether the store answers.", "connected"),
        ("router_config_partitions", "Partitions of the change stream that are followed.", "partitions"),
        ("router_config_quarantined_rows", "Rows of the store that cannot be used.", "quarantined"),
        ("router_config_held_rows", "Rows whose change the shrink guard holds.", "held"),
        ("router_reaper_on_duty", "Whether this router reaps the replicas of lapsed nodes.", "reaping"),
        ("router_reaper_spared_replicas", "Ready replicas of lapsed nodes, too many to be reaped.", "spared"),
    ):
        yield GaugeMetricFamily(name, text, value=float(config[key]))
    for name, text, key in (
        ("router_config_attempts", "Attempts to reach a store that did not answer.", "attempts"),
        ("router_config_restarts", "Partition streams that broke and were started again.", "restarts"),
        ("router_config_bootstraps", "Times that the whole store was read.", "bootstraps"),
        ("router_reaper_reaped", "Replicas taken out because their node's lease ran out.", "reaped"),
    ):
        yield CounterMetricFamily(name, text, value=float(config[key]))
    rows = GaugeMetricFamily("router_config_rows", "Rows known of each table of the store.", labels=["table"])
    for table, count in config["rows"].items():
        rows.add_metric([table], count)
    yield rows


def _demand_families(demand: dict[str, Any] | None) -> Iterable[Metric]:
    """Name how publishing demand goes; what is published are router_requests, …_in_flight and router_errors."""
    if demand is None:
        return
    text = "Time since the store was last told what endpoints are asked for."
    yield GaugeMetricFamily("router_demand_age_seconds", text, value=_or_nan(demand["age_s"]))
    yield CounterMetricFamily("router_demand_commits", "Commits of demand to the store.", value=demand["commits"])
    text = "Attempts to tell the store that failed."
    yield CounterMetricFamily("router_demand_failures", text, value=demand["failures"])


def _add_histogram(family: HistogramMetricFamily, labels: list[str], counted: HistogramSnapshot) -> None:
    seen = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(_LE, counted.counts, strict=True):
        seen += count
        buckets.append((bound, seen))
    family.add_metric(labels, buckets=buckets, sum_value=counted.sum_s)


def serving_snapshots(snapshots: list[WorkerSnapshot], state: dict[str, Any]) -> list[WorkerSnapshot]:
    """Return those of processes that still serve: a dead one's gauges mean nothing."""
    pids = {worker["pid"] for worker in state["workers"] if worker["state"] in SERVING_STATES}
    return [snapshot for snapshot in snapshots if snapshot.pid in pids]


def render_metrics(
    totals: Totals, serving: list[WorkerSnapshot], state: dict[str, Any], accept: str
) -> tuple[bytes, str]:
    """Return the exposition and its content type: OpenMetrics where it is accepted, else text 0.0.4."""
    collector = RouterCollector(totals, serving, state)
    if "application/openmetrics-text" in accept:
        body: bytes = openmetrics.generate_latest(collector)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return exposition.generate_latest(collector), exposition.CONTENT_TYPE_PLAIN_0_0_4
