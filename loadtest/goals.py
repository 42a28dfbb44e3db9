"""The ratios this project set itself, so that a report says which hold.

Each is an upper bound on the median of ours/peer. The two levels are those of the project's plan:
*reach* is what a release must show, *beyond* what would be better still. Imports `summary`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from loadtest.percentiles import Spread

if TYPE_CHECKING:
    from loadtest.summary import MeasureSummary, Ratios


Figure = Literal["cpu", "added_p50", "p50", "p99"]
Level = Literal["reach", "beyond"]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """`figure` of ours over that of `peer` at `measure` is at most `at_most`."""

    measure: str
    figure: Figure
    peer: str
    at_most: float
    level: Level


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A goal beside what was measured; `measured` is None when the peer was absent."""

    goal: Goal
    measured: Spread | None

    @property
    def holds(self) -> bool | None:
        """Whether the median is within the goal; None when there is nothing to compare."""
        return None if self.measured is None else self.measured.median <= self.goal.at_most


def _goals() -> tuple[Goal, ...]:
    rows: list[tuple[str, Figure, str, float, Level]] = []
    for measure in ("unary-1", "unary-32"):
        rows += [
            (measure, "cpu", "envoy", 0.6, "reach"),
            (measure, "cpu", "sglang-router", 0.4, "reach"),
            (measure, "cpu", "nginx", 1.5, "beyond"),
        ]
    for measure in ("unary-1", "unary-open"):
        rows += [
            (measure, "added_p50", "envoy", 0.75, "reach"),
            (measure, "added_p50", "envoy", 0.6, "beyond"),
        ]
    rows += [("sse-32", "cpu", "envoy", 0.7, "reach"), ("sse-32", "cpu", "nginx", 1.2, "beyond")]
    for measure in ("websocket-1", "websocket-8"):
        rows += [(measure, "cpu", "envoy", 1.0, "reach"), (measure, "cpu", "nginx", 1.1, "beyond")]
    rows += [
        ("grpc-1", "cpu", "envoy", 0.7, "reach"),
        ("grpc-4x8", "cpu", "envoy", 0.7, "reach"),
        ("grpc-4x8", "cpu", "nginx", 1.3, "reach"),
        ("grpc-4x8", "cpu", "nginx", 1.0, "beyond"),
        ("grpc-stream-32", "cpu", "envoy", 0.7, "reach"),
    ]
    for measure in ("h3-1", "h3-4x8"):
        rows += [(measure, "cpu", "envoy", 1.0, "reach"), (measure, "p50", "envoy", 1.0, "reach")]
    rows += [("h3-rate", "cpu", "envoy", 1.0, "reach"), ("h3-rate", "p99", "envoy", 1.0, "beyond")]
    return tuple(
        Goal(measure=measure, figure=figure, peer=peer, at_most=bound, level=level)
        for measure, figure, peer, bound, level in rows
    )


GOALS = _goals()


def verdicts(summaries: list[MeasureSummary]) -> list[Verdict]:
    """Each goal whose measure was run, beside its ratio."""
    by_key: dict[str, dict[str, Ratios]] = {
        summary.key: {row.peer: row for row in summary.ratios} for summary in summaries
    }
    return [
        Verdict(goal=goal, measured=_figure(by_key[goal.measure].get(goal.peer), goal))
        for goal in GOALS
        if goal.measure in by_key
    ]


def _figure(row: Ratios | None, goal: Goal) -> Spread | None:
    if row is None:
        return None
    found: Spread | None = getattr(row, goal.figure)
    return found
