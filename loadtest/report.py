"""The report of a comparison: one value, written as JSON for machines and Markdown for people.

The folder holds `report.json` (every slot, so that any other figure can be made from it),
`report.md` and `ratios.png`. Imports `summary`, `goals` and `rounds`.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadtest.goals import Verdict, verdicts
from loadtest.rounds import Slot
from loadtest.summary import Figures, MeasureSummary, summarise

if TYPE_CHECKING:
    from loadtest.measures import Measure
    from loadtest.percentiles import Spread


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures are from."""

    system: str
    processor: str
    cpus: int
    python: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the run was made; `versions` by proxy, `absent` and `skipped` are whole sentences."""

    started: str
    rounds: int
    duration_s: float
    rate_per_s: float
    pins: str
    replica: str
    ours_command: str
    versions: dict[str, str]
    absent: list[str]
    skipped: list[str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run found."""

    machine: Machine
    settings: Settings
    summaries: list[MeasureSummary]
    verdicts: list[Verdict]
    slots: list[Slot]


def machine() -> Machine:
    """Describe this machine."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=processor,
        cpus=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
    )


def make_report(settings: Settings, measures: list[Measure], slots: list[Slot]) -> Report:
    """Put the figures beside how they were made."""
    summaries = summarise(measures, slots)
    return Report(
        machine=machine(), settings=settings, summaries=summaries, verdicts=verdicts(summaries), slots=slots
    )


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.md` into `folder`."""
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (folder / "report.json").write_bytes(encoded + b"\n")
    (folder / "report.md").write_text(markdown(report))


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def median_of(value: Spread | None) -> str:
    """Median alone."""
    return number(value.median if value else None)


def with_range(value: Spread | None) -> str:
    """Median with the extremes of its rounds."""
    if value is None:
        return "-"
    if value.rounds == 1:
        return _ratio(value.median)
    return f"{_ratio(value.median)} ({_ratio(value.low)}-{_ratio(value.high)})"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


_STREAMED = {"event", "streamed message"}


def heading(summary: MeasureSummary) -> str:
    """Title of the table of absolute figures: what was measured and what its columns are about."""
    what = {
        "request": ", latency of answers",
        "event": ", latency to the first event",
        "message": ", round trips",
        "call": ", latency of answers",
        "streamed message": ", latency to the first message",
        "handshake": ", time to connect",
        "MiB": "",
    }
    return f"{summary.key}: {summary.title}; CPU per {summary.unit}{what[summary.unit]}"


def columns(summary: MeasureSummary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of absolute figures, for the terminal and for Markdown."""
    header = ["proxy", "CPU µs", "p50 µs", "p99 µs", "added p50 µs"]
    header += ["gap p99 ms"] if summary.unit in _STREAMED else []
    header += ["peak MiB"] if summary.unit == "MiB" else []
    header += ["MiB/s" if summary.unit == "MiB" else f"{summary.unit}s/s", "errors"]
    return header, [_row(summary, figures) for figures in summary.figures]


def _row(summary: MeasureSummary, figures: Figures) -> list[str]:
    cpu = median_of(figures.cpu_us)
    if (relay := median_of(figures.relay_cpu_us)) != cpu:
        cpu += f" (worker {relay})"
    row = [figures.proxy, cpu, *map(median_of, (figures.p50_us, figures.p99_us, figures.added_p50_us))]
    if summary.unit in _STREAMED:
        row.append(number(figures.gap_p99_us.median / 1e3 if figures.gap_p99_us else None))
    if summary.unit == "MiB":
        row.append(median_of(figures.peak_mib))
    errors = f"{figures.errors}: {figures.detail}" if figures.errors else "0"
    return [*row, median_of(figures.rate_per_s), errors]


RATIO_HEADER = ["measure", "peer", "CPU", "added p50", "p50", "p99", "rate"]


def ratio_rows(report: Report) -> list[list[str]]:
    """Rows of the table of ratios ours/peer."""
    return [
        [
            summary.key,
            row.peer,
            with_range(row.cpu),
            with_range(row.added_p50),
            with_range(row.p50),
            with_range(row.p99),
            with_range(row.rate),
        ]
        for summary in report.summaries
        for row in summary.ratios
    ]


GOAL_HEADER = ["measure", "figure", "peer", "level", "at most", "measured", "holds"]


def goal_rows(report: Report) -> list[list[str]]:
    """Rows of the table of goals."""
    words = {True: "yes", False: "no", None: "not measured"}
    return [
        [
            one.goal.measure,
            {"cpu": "CPU", "added_p50": "added p50", "p50": "p50", "p99": "p99"}[one.goal.figure],
            one.goal.peer,
            one.goal.level,
            f"{one.goal.at_most:g}",
            with_range(one.measured),
            words[one.holds],
        ]
        for one in report.verdicts
    ]


def settings_lines(report: Report) -> list[str]:
    """How the run was made, a sentence a line."""
    settings, host = report.settings, report.machine
    return [
        f"{host.system}, {host.processor}, {host.cpus} CPUs, Python {host.python}; {settings.pins}.",
        f"{settings.rounds} rounds, windows of {settings.duration_s:g} s.",
        f"Rate of the open loop: {settings.rate_per_s:g}/s.",
        f"Replica of the unary work: {settings.replica}.",
        f"Ours: `{settings.ours_command}`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in settings.versions.items()) + ".",
        *settings.absent,
        *settings.skipped,
    ]


def markdown(report: Report) -> str:
    """Return the whole report as Markdown."""
    parts = [f"# Comparison of {report.settings.started}", ""]
    parts += [f"* {line}" for line in settings_lines(report)]
    parts += ["", "## Ours over each peer (median of the rounds, range in brackets)", ""]
    parts += _table(RATIO_HEADER, ratio_rows(report))
    parts += ["", "Below 1 is in our favour, except for the rate.", ""]
    parts += ["![ratios](ratios.png)", "", "## Goals", ""]
    parts += _table(GOAL_HEADER, goal_rows(report))
    for summary in report.summaries:
        parts += ["", f"## {heading(summary)} (medians)", "", *_table(*columns(summary))]
    return "\n".join(parts) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
