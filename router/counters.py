"""What the hot path counts with: plain integers and lists, no label look-ups, no metric objects.

An endpoint's counters hang on the endpoint itself. `telemetry` copies them when a scrape asks. Imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_extensions import i64

# Upper bounds in seconds: 1-2-5 steps from 10 us, where our own overhead lies, to 1,000 s, where a long
# generation ends.
BOUNDS_S: Final[tuple[float, ...]] = (
    *[step * 10.0**power for power in range(-5, 3) for step in (1.0, 2.0, 5.0)],
    1000.0,
)


def bucket(seconds: float) -> int:
    """Return the first bucket whose bound is not below `seconds`, or the one for all above.

    `bisect_left` by hand: once compiled this is a fifth of that call, of which every request makes three.
    """
    low: i64 = 0
    high: i64 = len(BOUNDS_S)
    while low < high:
        middle = (low + high) >> 1
        if BOUNDS_S[middle] < seconds:
            low = middle + 1
        else:
            high = middle
    return low


# The bucket of a gap of so many whole milliseconds: a token's time is nearly always in this table, and a
# bisection by name would be a tenth of what relaying the event costs.
_GAP_BUCKETS: Final = tuple(bucket((ms + 0.5) / 1e3) for ms in range(256))


class Histogram:
    """Counts of durations by `BOUNDS_S`, the last one for all above; and their sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bucket(seconds)] += 1
        self.sum_s += seconds

    def observe_gap(self, seconds: float) -> None:
        """Count the time between two events of a stream, to the whole millisecond."""
        ms = int(seconds * 1e3)
        self.counts[_GAP_BUCKETS[ms] if ms < 256 else bucket(seconds)] += 1
        self.sum_s += seconds


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
        "grpc_statuses",
        "in_flight",
        "keyed",
        "known_prompts",
        "overhead",
        "prompts",
        "requests",
        "retries",
        "spilled",
        "starting",
        "statuses",
        "waiting",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.statuses: dict[int, int] = {}
        self.codes: dict[str, int] = {}
        self.grpc_statuses: dict[int, int] = {}
        self.aborts = 0
        self.keyed = 0  # had a routing key
        self.prompts = 0  # were looked up by their prompt …
        self.known_prompts = 0  # … and went where its beginning was sent before
        self.spilled = 0  # went to another region
        self.waiting = 0  # for a cold start, now; they are in flight, too
        self.starting = 0  # sessions that wait for room; they are not
        self.retries = 0
        self.dropped_trailers = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.duration = Histogram()
        self.overhead = Histogram()
        self.first_byte = Histogram()
        self.event_gap = Histogram()


WORKER_NUMBERS = (
    "access_log_dropped",
    "connections_accepted",
    "connections_open",
    "connections_refused",
    "floods",
    "internal_errors",
    "malformed_requests",
    "proxy_headers_refused",
    "refused_address",
    "refused_memory",
    "shed_lag",
    "shed_memory",
    "tls_handshake_failures",
    "tls_handshakes",
    "upstream_connects",
    "upstream_open",
    "upstream_reused",
)
"""The plain numbers of `WorkerCounters`, by name."""


class WorkerCounters:
    """What is not of one endpoint: connections, pools, the loop and the collector."""

    __slots__ = (*WORKER_NUMBERS, "config_delay", "gc_pause", "loop_lag")

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_open = 0
        self.connections_refused = 0
        self.refused_address = 0
        self.refused_memory = 0
        self.shed_lag = 0
        self.shed_memory = 0
        self.floods = 0
        self.proxy_headers_refused = 0
        self.tls_handshakes = 0
        self.tls_handshake_failures = 0
        self.upstream_connects = 0
        self.upstream_open = 0
        self.upstream_reused = 0
        self.malformed_requests = 0
        self.internal_errors = 0
        self.access_log_dropped = 0
        self.config_delay = Histogram()
        self.loop_lag = Histogram()
        self.gc_pause = Histogram()
