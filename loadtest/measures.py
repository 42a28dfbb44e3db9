"""What is measured: the works, and for each the ways of asking.

A *work* is what the option `--work` names; a *measure* is one row of the report: a work, a way of
asking, a number of connections. The closed loops give CPU and rates, the open loop gives latency
percentiles under load. Imports the clients' seam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from loadtest.clients.window import Command, Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

Work = Literal["unary", "sse", "websocket"]
WORKS: tuple[Work, ...] = ("unary", "sse", "websocket")

# A stream is 40 events 5 ms apart and [DONE]: short enough for many first events in a round.
STREAM_EVENTS = 40
EVENT_INTERVAL_MS = 5.0
_STREAM_S = (STREAM_EVENTS + 1) * EVENT_INTERVAL_MS / 1e3


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One row: `unit` is what CPU time is divided by, `warmup_s` what runs before the window."""

    key: str
    title: str
    work: Work
    mode: Mode
    connections: int
    unit: Literal["request", "event", "message"]
    warmup_s: float
    in_quick: bool = True

    def command(self, *, port: int, pids: list[int], duration_s: float, rate_per_s: float) -> Command:
        """Ask for this measure of the proxy on `port` whose processes are `pids`."""
        return Command(
            mode=self.mode,
            port=port,
            pids=pids,
            connections=self.connections,
            duration_s=duration_s,
            warmup_s=self.warmup_s,
            rate_per_s=rate_per_s if self.mode == "open" else 0.0,
            events=STREAM_EVENTS + 1,
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
)


def chosen(works: Iterable[str], *, quick: bool) -> list[Measure]:
    """Measures of `works`, in the order of the report."""
    wanted = set(works)
    return [one for one in MEASURES if one.work in wanted and (one.in_quick or not quick)]
