"""Counters on their way out of a worker: one snapshot struct at scrape time.

A worker sends a `WorkerSnapshot` to the supervisor when asked; the supervisor merges them and `edge.metrics`
names them for Prometheus. Imports only `counters`.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import msgspec

from router.counters import BOUNDS_S, EndpointCounters, Histogram


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
    grpc_statuses: dict[int, int] = {}
    aborts: int = 0
    keyed: int = 0
    prompts: int = 0
    known_prompts: int = 0
    spilled: int = 0
    waiting: int = 0
    starting: int = 0
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


class LinkSnapshot(msgspec.Struct):
    """One measure of links at one moment: how many sessions were in which bucket of `BOUNDS_S`, and the worst."""

    counts: list[int]
    worst: float


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
    links: dict[str, LinkSnapshot] = {}  # of sessions that are open, by measure; empty where there are none


def snapshot_histogram(histogram: Histogram) -> HistogramSnapshot:
    """Copy a histogram."""
    return HistogramSnapshot(counts=list(histogram.counts), sum_s=histogram.sum_s)


def snapshot_endpoint(counters: EndpointCounters) -> EndpointSnapshot:
    """Copy an endpoint's counters."""
    return EndpointSnapshot(
        requests=counters.requests,
        in_flight=counters.in_flight,
        statuses=dict(counters.statuses),
        codes=dict(counters.codes),
        grpc_statuses=dict(counters.grpc_statuses),
        aborts=counters.aborts,
        keyed=counters.keyed,
        prompts=counters.prompts,
        known_prompts=counters.known_prompts,
        spilled=counters.spilled,
        waiting=counters.waiting,
        starting=counters.starting,
        retries=counters.retries,
        dropped_trailers=counters.dropped_trailers,
        bytes_received=counters.bytes_received,
        bytes_sent=counters.bytes_sent,
        duration=snapshot_histogram(counters.duration),
        overhead=snapshot_histogram(counters.overhead),
        first_byte=snapshot_histogram(counters.first_byte),
        event_gap=snapshot_histogram(counters.event_gap),
    )
