"""What a worker counts: plain integers on the hot path, one snapshot struct at scrape time.

No label look-ups and no metric objects in relay methods: an endpoint's counters hang on the endpoint
itself. A worker sends a `WorkerSnapshot` to the supervisor when asked; the supervisor merges them and
`edge.metrics` names them for Prometheus. Imports nothing of the project.
"""

from __future__ import annotations

import gc
import time
from bisect import bisect_left
from typing import Any

import msgspec

# Upper bounds in seconds: 1-2-5 steps from 10 us, where our own overhead lies, to 1,000 s, where a long
# generation ends. bisect over 25 floats costs 0.1 us.
BOUNDS_S: tuple[float, ...] = tuple(
    step * 10.0**power for power in range(-5, 3) for step in (1.0, 2.0, 5.0)
) + (1000.0,)


class Histogram:
    """Counts of durations by `BOUNDS_S`, the last one for all above; and their sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def snapshot(self) -> HistogramSnapshot:
        """Copy it for the supervisor."""
        return HistogramSnapshot(counts=list(self.counts), sum_s=self.sum_s)


class EndpointCounters:
    """One endpoint's counts in one worker, kept across table swaps by name."""

    __slots__ = (
        "aborts",
        "bytes_received",
        "bytes_sent",
        "codes",
        "dropped_trailers",
        "duration",
        "event_gap",
        "first_byte",
        "in_flight",
        "overhead",
        "requests",
        "retries",
        "statuses",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.statuses: dict[int, int] = {}
        self.codes: dict[str, int] = {}
        self.aborts = 0
        self.retries = 0
        self.dropped_trailers = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.duration = Histogram()
        self.overhead = Histogram()
        self.first_byte = Histogram()
        self.event_gap = Histogram()

    def snapshot(self) -> EndpointSnapshot:
        """Copy it for the supervisor."""
        return EndpointSnapshot(
            requests=self.requests,
            in_flight=self.in_flight,
            statuses=dict(self.statuses),
            codes=dict(self.codes),
            aborts=self.aborts,
            retries=self.retries,
            dropped_trailers=self.dropped_trailers,
            bytes_received=self.bytes_received,
            bytes_sent=self.bytes_sent,
            duration=self.duration.snapshot(),
            overhead=self.overhead.snapshot(),
            first_byte=self.first_byte.snapshot(),
            event_gap=self.event_gap.snapshot(),
        )


class WorkerCounters:
    """What is not of one endpoint: connections, pools, the loop and the collector."""

    __slots__ = (
        "access_log_dropped",
        "connections_accepted",
        "connections_open",
        "connections_refused",
        "gc_pause",
        "internal_errors",
        "loop_lag",
        "malformed_requests",
        "upstream_connects",
        "upstream_open",
        "upstream_reused",
    )

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_open = 0
        self.connections_refused = 0
        self.upstream_connects = 0
        self.upstream_open = 0
        self.upstream_reused = 0
        self.malformed_requests = 0
        self.internal_errors = 0
        self.access_log_dropped = 0
        self.loop_lag = Histogram()
        self.gc_pause = Histogram()


class GcWatch:
    """Times garbage collections through `gc.callbacks`."""

    __slots__ = ("_histogram", "_started_s")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._started_s = 0.0
        gc.callbacks.append(self._on_collection)

    def close(self) -> None:
        """Stop timing."""
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._started_s = time.perf_counter()
        else:
            self._histogram.observe(time.perf_counter() - self._started_s)


class HistogramSnapshot(msgspec.Struct):
    """A histogram on its way to the supervisor."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, other: HistogramSnapshot) -> None:
        """Merge another worker's."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s

    def quantile(self, q: float) -> float:
        """Return the upper bound in seconds under which a share `q` of the counts lies; 0 when empty."""
        wanted = q * sum(self.counts)
        if wanted <= 0:
            return 0.0
        seen = 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= wanted:
                return bound
        return BOUNDS_S[-1]


class EndpointSnapshot(msgspec.Struct):
    """An endpoint's counters on their way to the supervisor."""

    requests: int = 0
    in_flight: int = 0
    statuses: dict[int, int] = {}
    codes: dict[str, int] = {}
    aborts: int = 0
    retries: int = 0
    dropped_trailers: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    duration: HistogramSnapshot = msgspec.field(default_factory=HistogramSnapshot)
    overhead: HistogramSnapshot = msgspec.field(default_factory=HistogramSnapshot)
    first_byte: HistogramSnapshot = msgspec.field(default_factory=HistogramSnapshot)
    event_gap: HistogramSnapshot = msgspec.field(default_factory=HistogramSnapshot)


class ReplicaSnapshot(msgspec.Struct):
    """One replica as one worker sees it."""

    endpoint: str
    id: str
    address: str
    state: str
    is_healthy: bool
    is_ready: bool
    is_ejected: bool
    weight: float
    in_flight: int
    requests: int
    failures: int
    backpressured: int
    ejections: int
    latency_s: float
    pooled: int


class WorkerSnapshot(msgspec.Struct):
    """Everything one worker counted, at one moment."""

    worker: int
    pid: int
    table_version: int
    draining: bool
    in_flight: int
    counters: dict[str, int]
    histograms: dict[str, HistogramSnapshot]
    endpoints: dict[str, EndpointSnapshot]
    replicas: list[ReplicaSnapshot]
