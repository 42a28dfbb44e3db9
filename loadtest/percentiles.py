"""Percentiles, medians and spreads: the only arithmetic behind a figure of the report.

Imports nothing of the project. Durations come in as seconds and leave as microseconds; a ratio is a
plain number. An empty sample has no percentile, so it gives ``None`` rather than a made-up zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a sample of durations, in microseconds."""

    count: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median of a few rounds with their extremes; ``rounds`` says how many there were."""

    median: float
    low: float
    high: float
    rounds: int


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Value below which `fraction` (0 to 1) of the ascending `ordered` lies, linear between neighbours."""
    if not ordered:
        raise ValueError("an empty sample has no percentile")
    if not 0 <= fraction <= 1:
        raise ValueError(f"a percentile lies between 0 and 1, not at {fraction}")
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def distribution(samples_s: Iterable[float]) -> Distribution | None:
    """Summary in microseconds of durations in seconds; None when there was no sample."""
    ordered = sorted(samples_s)
    if not ordered:
        return None
    return Distribution(
        count=len(ordered),
        p50_us=percentile(ordered, 0.50) * 1e6,
        p90_us=percentile(ordered, 0.90) * 1e6,
        p99_us=percentile(ordered, 0.99) * 1e6,
        max_us=ordered[-1] * 1e6,
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and extremes of the values that are there; None when none is."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    return Spread(median=percentile(ordered, 0.5), low=ordered[0], high=ordered[-1], rounds=len(ordered))


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """`ours` over `theirs`; None unless both are positive (an added latency may drown in noise)."""
    if ours is None or theirs is None or ours <= 0 or theirs <= 0:
        return None
    return ours / theirs
