"""What is measured: the works, and for each the ways of asking.

A *work* is what the option `--work` names; a *measure* is one row of the report: a work, a way of
asking, a number of connections. The closed loops give CPU and rates, the open loop gives latency
percentiles under load. Works that the same running proxies can do make a *stage*. Imports the clients' seam
and the wires of the peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from loadtest.clients.window import Command, Mode
from loadtest.peers.base import Wire

if TYPE_CHECKING:
    from collections.abc import Iterable

Work = Literal["unary", "sse", "websocket", "grpc", "grpc-stream", "h2-body", "tls", "h3"]
WORKS: tuple[Work, ...] = ("unary", "sse", "websocket", "grpc", "grpc-stream", "h2-body", "tls", "h3")
GROUPS: dict[str, tuple[Work, ...]] = {
    "http1": ("unary", "sse", "websocket"),
    "h2": ("grpc", "grpc-stream", "h2-body"),
}
"""Names for several works at once."""

Unit = Literal["request", "event", "message", "call", "streamed message", "MiB", "handshake"]

# A stream is 40 events 5 ms apart and [DONE]: short enough for many first events in a round.
STREAM_EVENTS = 40
EVENT_INTERVAL_MS = 5.0
_STREAM_S = (STREAM_EVENTS + 1) * EVENT_INTERVAL_MS / 1e3

BODY_MIB = 100


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Works for which the proxies are started once: what they speak, and what kind of replica is behind them."""

    label: str
    works: tuple[Work, ...]
    wire: Wire
    canned: bool
    has_direct: bool = True
    """Whether the replica can be asked without a proxy between."""


STAGES = (
    Stage(label="unary", works=("unary",), wire="http1", canned=True),
    Stage(label="streams", works=("sse", "websocket"), wire="http1", canned=False),
    Stage(label="grpc", works=("grpc",), wire="h2", canned=True),
    Stage(label="grpc-streams", works=("grpc-stream", "h2-body"), wire="h2", canned=False),
    Stage(label="tls", works=("tls",), wire="tls", canned=True),
    Stage(label="h3", works=("h3",), wire="h3", canned=True, has_direct=False),
)


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One row: `unit` is what CPU time is divided by, `warmup_s` what runs before the window.

    `streams` are calls at once on each connection. `work_s`, where it is not zero, is about how long the window is
    whatever was asked for. `rate_per_s` is a rate of its own, whatever was asked for.
    """

    key: str
    title: str
    work: Work
    mode: Mode
    connections: int
    unit: Unit
    warmup_s: float
    in_quick: bool = True
    streams: int = 1
    resume: bool = False
    deadline: bool = False
    work_s: float = 0.0
    rate_per_s: float = 0.0

    def command(self, *, port: int, pids: list[int], duration_s: float, rate_per_s: float) -> Command:
        """Ask for this measure of the proxy on `port` whose processes are `pids`."""
        return Command(
            mode=self.mode,
            port=port,
            pids=pids,
            connections=self.connections,
            duration_s=duration_s,
            warmup_s=self.warmup_s,
            rate_per_s=rate_per_s if self.mode == "open" else self.rate_per_s,
            events=STREAM_EVENTS + (self.work == "sse"),  # and [DONE]
            streams=self.streams,
            body_mib=BODY_MIB,
            resume=self.resume,
            deadline=self.deadline,
        )


MEASURES: tuple[Measure, ...] = (
    Measure(
        key="unary-1",
        title="HTTP/1.1 unary, 1 connection",
        work="unary",
        mode="closed",
        connections=1,
        unit="request",
        warmup_s=0.1,
    ),
    Measure(
        key="unary-32",
        title="HTTP/1.1 unary, 32 connections",
        work="unary",
        mode="closed",
        connections=32,
        unit="request",
        warmup_s=0.15,
    ),
    Measure(
        key="unary-open",
        title="HTTP/1.1 unary, fixed rate",
        work="unary",
        mode="open",
        connections=32,
        unit="request",
        warmup_s=0.1,
    ),
    Measure(
        key="sse-32",
        title="SSE, 32 streams",
        work="sse",
        mode="sse",
        connections=32,
        unit="event",
        warmup_s=_STREAM_S + 0.05,
    ),
    Measure(
        key="websocket-1",
        title="WebSocket, 1 connection",
        work="websocket",
        mode="websocket",
        connections=1,
        unit="message",
        warmup_s=0.1,
        in_quick=False,
    ),
    Measure(
        key="websocket-8",
        title="WebSocket, 8 connections",
        work="websocket",
        mode="websocket",
        connections=8,
        unit="message",
        warmup_s=0.1,
    ),
    Measure(
        key="grpc-1",
        title="gRPC unary, 1 connection, 1 stream",
        work="grpc",
        mode="h2load",
        connections=1,
        unit="call",
        warmup_s=0.0,
    ),
    Measure(
        key="grpc-4x8",
        title="gRPC unary, 4 connections, 8 streams each",
        work="grpc",
        mode="h2load",
        connections=4,
        streams=8,
        unit="call",
        warmup_s=0.0,
    ),
    Measure(
        key="grpc-4x8-deadline",
        title="the same, each call with a grpc-timeout",
        work="grpc",
        mode="h2load",
        connections=4,
        streams=8,
        unit="call",
        warmup_s=0.0,
        in_quick=False,
        deadline=True,
    ),
    Measure(
        key="grpc-stream-32",
        title="gRPC streams, 32 on 4 connections",
        work="grpc-stream",
        mode="grpc-streams",
        connections=4,
        streams=8,
        unit="streamed message",
        warmup_s=_STREAM_S + 0.05,
    ),
    Measure(
        key="h2-body",
        title=f"HTTP/2, a body of {BODY_MIB} MiB up and down",
        work="h2-body",
        mode="h2-body",
        connections=1,
        unit="MiB",
        warmup_s=0.0,
        in_quick=False,
        work_s=1.5,
    ),
    Measure(
        key="tls-full",
        title="TLS 1.3, full handshakes",
        work="tls",
        mode="tls",
        connections=1,
        unit="handshake",
        warmup_s=0.0,
    ),
    Measure(
        key="tls-resumed",
        title="TLS 1.3, resumed handshakes",
        work="tls",
        mode="tls",
        connections=1,
        unit="handshake",
        warmup_s=0.0,
        resume=True,
        in_quick=False,
    ),
    Measure(
        key="h3-1",
        title="HTTP/3 unary, 1 connection, 1 stream",
        work="h3",
        mode="h3",
        connections=1,
        unit="request",
        warmup_s=0.1,
    ),
    Measure(
        key="h3-4x8",
        title="HTTP/3 unary, 4 connections, 8 streams each",
        work="h3",
        mode="h3",
        connections=4,
        streams=8,
        unit="request",
        warmup_s=0.15,
    ),
    Measure(
        key="h3-rate",
        title="HTTP/3 unary, 1,000/s over 4 connections",
        work="h3",
        mode="h3",
        connections=4,
        streams=8,
        unit="request",
        warmup_s=0.15,
        rate_per_s=1_000.0,
        in_quick=False,
    ),
)


def stage_of(work: Work) -> Stage:
    """Return the stage that a work belongs to."""
    return next(stage for stage in STAGES if work in stage.works)


def chosen(works: Iterable[str], *, quick: bool) -> list[Measure]:
    """Measures of `works`, in the order of the report."""
    wanted = set(works)
    return [one for one in MEASURES if one.work in wanted and (one.in_quick or not quick)]
