"""The seam between the generator and its clients: a command, a window of time, a result.

Clients append to a `Window` from their callbacks; what completes outside the window is not counted.
The closed loops count by completion, the open loop by the intended time of sending, and says so.
Imports `percentiles`.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Literal, Protocol

import msgspec

from loadtest.percentiles import Distribution, distribution

Mode = Literal["closed", "open", "sse", "websocket", "h2load", "grpc-streams", "h2-body", "tls", "h3"]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement that the generator is asked for.

    `pids` are the processes whose CPU time is read at both ends of the window. `events` is the length
    of a stream including `[DONE]`, by which a truncated one is told. `rate_per_s` is the open loop's;
    `streams` are calls at once on each connection (HTTP/2); `resume` is of TLS sessions; with
    `deadline` each call carries a grpc-timeout.
    """

    mode: Mode
    port: int
    connections: int
    duration_s: float
    warmup_s: float
    rate_per_s: float = 0.0
    events: int = 0
    streams: int = 1
    body_mib: int = 0
    resume: bool = False
    deadline: bool = False
    pids: list[int] = []


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one measurement gave: `units` (see the measure) in `elapsed_s`; per process CPU time and peak memory."""

    units: int
    errors: int
    elapsed_s: float
    latency: Distribution | None
    first_event: Distribution | None
    gap: Distribution | None
    cpu_ns: dict[int, int]
    detail: str
    peak_bytes: dict[int, int] = {}


class Window:
    """Counts of what completes between `begin` and `end`; all times are `time.perf_counter` seconds.

    `took_s`, where a client knows it better, is what the units took.
    """

    __slots__ = (
        "begun_at",
        "detail",
        "ended_at",
        "errors",
        "first_events",
        "gaps",
        "latencies",
        "took_s",
        "units",
    )

    def __init__(self) -> None:
        self.begun_at = math.inf
        self.ended_at = math.inf
        self.units = 0
        self.errors = 0
        self.latencies: list[float] = []
        self.first_events: list[float] = []
        self.gaps: list[float] = []
        self.detail = ""
        self.took_s = 0.0

    def begin(self) -> None:
        """Forget the warm-up (its errors stay) and count from now."""
        self.units = 0
        self.latencies.clear()
        self.first_events.clear()
        self.gaps.clear()
        self.begun_at = time.perf_counter()

    def end(self) -> None:
        """Count nothing that happens from now on."""
        self.ended_at = time.perf_counter()

    def ended(self) -> bool:
        """Whether the window was closed: a closed loop then sends nothing more."""
        return self.ended_at != math.inf

    def fail(self, detail: str) -> None:
        """Count one error and keep the first description."""
        self.errors += 1
        if not self.detail:
            self.detail = detail

    def result(self, units: int, cpu_ns: dict[int, int], peak_bytes: dict[int, int]) -> Result:
        """Summary, with `units` as counted when the CPU clocks were read."""
        return Result(
            units=units,
            errors=self.errors,
            elapsed_s=self.took_s or (self.ended_at - self.begun_at if self.ended() else 0.0),
            latency=distribution(self.latencies),
            first_event=distribution(self.first_events),
            gap=distribution(self.gaps),
            cpu_ns=cpu_ns,
            detail=self.detail,
            peak_bytes=peak_bytes,
        )


class Client(Protocol):
    """A way of asking; called by the generator in this order."""

    async def start(self) -> None:
        """Connect everything and begin to send."""

    async def work(self) -> None:
        """Do the window's work; when this returns the window is over."""

    async def drain(self) -> None:
        """Wait, a bounded time, for what the window still needs; called after the window ended."""

    def close(self) -> None:
        """Drop every connection at once."""


class Paced:
    """The part of a `Client` whose window is a length of time."""

    def __init__(self, command: Command) -> None:
        self.command = command

    async def work(self) -> None:
        """Let the time pass."""
        await asyncio.sleep(self.command.duration_s)
