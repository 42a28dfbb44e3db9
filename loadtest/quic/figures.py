"""What the QUIC bench found: rows of text with a goal each, for the terminal and as JSON. Imports `percentiles`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loadtest.percentiles import percentile, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure; `low` and `high` are the extremes of its rounds, `at_most` its goal, if it has one."""

    work: str
    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is kept; None without one."""
        return None if self.at_most is None else self.value <= self.at_most

    def cells(self) -> list[str]:
        """Return a row of the table."""
        extremes = f"{_number(self.low)}-{_number(self.high)}" if self.low is not None else ""
        goal = "" if self.at_most is None else f"<= {self.at_most:g}"
        verdict = {True: "yes", False: "no", None: ""}[self.holds]
        return [self.work, self.name, f"{_number(self.value)} {self.unit}".strip(), extremes, goal, verdict]


HEADER = ["work", "figure", "median", "range", "goal", "holds"]


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of one window in seconds, and the CPU time of the process that served it."""

    seconds: list[float]
    cpu_ns: int
    errors: int = 0

    def p(self, share: float) -> float:
        """Return a percentile in milliseconds."""
        return percentile(sorted(self.seconds), share) * 1e3

    def cpu_us(self) -> float:
        """CPU microseconds for each."""
        return self.cpu_ns / 1e3 / len(self.seconds)


def over_rounds(
    work: str, name: str, values: Iterable[float], unit: str, at_most: float | None = None
) -> Figure:
    """Return the median of some rounds."""
    found = spread(values)
    assert found is not None
    low, high = (found.low, found.high) if found.rounds > 1 else (None, None)
    return Figure(work=work, name=name, value=found.median, unit=unit, low=low, high=high, at_most=at_most)


def failures(work: str, windows: Sequence[Samples]) -> Figure:
    """Return how many exchanges had no answer: figures beside some are none."""
    count = sum(window.errors for window in windows)
    return Figure(work=work, name="without an answer", value=count, unit="", at_most=0)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
