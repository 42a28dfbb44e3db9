"""Pictures: of a comparison, ratios ours/peer per measure, with the range of the rounds; of a day, replicas.

Drawn off screen (Agg) and written as PNG. Imports `report`'s values only as types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadtest.percentiles import Spread
    from loadtest.report import Report
    from loadtest.summary import MeasureSummary

_COLOURS = ("#2b6cb0", "#2f855a", "#b7791f", "#c05621", "#6b46c1")


def plot_ratios(report: Report, path: Path) -> None:
    """Write CPU and added-latency ratios as two panels; nothing when there is no ratio at all."""
    if not any(summary.ratios for summary in report.summaries):
        return
    import matplotlib as mpl  # noqa: PLC0415 -- takes most of a second; only a finished run needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 -- the backend must be chosen first

    figure, panels = plt.subplots(1, 2, figsize=(13, 0.9 + 0.75 * len(report.summaries)), sharey=True)
    for panel, name, title in zip(panels, ("cpu", "added_p50"), ("CPU per unit", "added p50"), strict=True):
        _panel(panel, report.summaries, name)
        panel.set_title(f"{title}, ours / peer (left of 1 is better)")
    panels[0].invert_yaxis()
    handles = {}
    for panel in panels:
        handles.update(dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True)))
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=max(1, len(handles)), frameon=False
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_day(need: Sequence[int], ready: Sequence[int], current: Sequence[int], path: Path) -> None:
    """Write replicas against demand over a day, a value each second; the most of each minute is drawn."""
    import matplotlib as mpl  # noqa: PLC0415 -- as above

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    minutes = range(0, len(need), 60)
    hours = [at / 3_600 for at in minutes]
    figure, panel = plt.subplots(figsize=(13, 5))
    panel.fill_between(
        hours, [max(need[at : at + 60]) for at in minutes], step="post", color="#b7791f", alpha=0.35,
        label="demand, in replicas at the target",
    )  # fmt: skip
    for values, colour, label in ((current, "#c05621", "there, starting or draining"), (ready, "#2b6cb0", "ready")):
        most = [max(values[at : at + 60]) for at in minutes]
        panel.step(hours, most, where="post", color=colour, label=label, lw=1)
    panel.set(xlim=(0, len(need) / 3_600), xticks=range(0, 25, 2), xlabel="hour", ylabel="replicas")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(panel: Any, summaries: list[MeasureSummary], figure: str) -> None:
    peers = list(dict.fromkeys(row.peer for summary in summaries for row in summary.ratios))
    height = 0.8 / max(1, len(peers))
    for place, peer in enumerate(peers):
        rows: list[tuple[float, Spread]] = []
        for line, summary in enumerate(summaries):
            for ratios in summary.ratios:
                value: Spread | None = getattr(ratios, figure)
                if ratios.peer == peer and value is not None:
                    rows.append((line - 0.4 + height * (place + 0.5), value))
        if not rows:
            continue
        at = [row[0] for row in rows]
        medians = [row[1].median for row in rows]
        below = [row[1].median - row[1].low for row in rows]
        above = [row[1].high - row[1].median for row in rows]
        panel.barh(at, medians, height * 0.9, color=_COLOURS[place % len(_COLOURS)], label=peer)
        panel.errorbar(
            medians, at, xerr=(below, above), fmt="none", ecolor="#333333", elinewidth=1, capsize=2
        )
    panel.axvline(1.0, color="#333333", linewidth=1)
    panel.set_yticks(range(len(summaries)), [summary.title for summary in summaries])
    panel.set_xlim(left=0)
