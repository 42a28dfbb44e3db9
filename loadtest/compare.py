"""`python -m loadtest.compare`: our router beside Envoy, nginx, HAProxy and SGLang's router, in one run.

Prints a table of ratios and writes a report folder. A peer that is not installed is named together
with the package that brings it, and the run goes on without it. The exit code is 0 for a whole run,
1 when a process failed or a request of ours did, 130 on Ctrl-C. Imports everything below it.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest import report as reports
from loadtest.certificate import PACKAGE as OPENSSL_PACKAGE
from loadtest.certificate import openssl
from loadtest.clients import h2load
from loadtest.measures import GROUPS, WORKS, chosen
from loadtest.peers import PEER_NAMES, PEERS, Nginx, Ours
from loadtest.peers.base import Site
from loadtest.peers.ours import CHECKOUT
from loadtest.pins import choose_pins
from loadtest.plot import plot_ratios
from loadtest.processes import Fleet, NotReadyError, interrupt_on_sigterm
from loadtest.rounds import OURS, Plan, Slot, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadtest.peers.base import Peer

DEFAULT_ROUNDS, DEFAULT_DURATION_S = 5, 0.6
QUICK_ROUNDS, QUICK_DURATION_S = 1, 0.35

EPILOG = """\b
Examples:
  python -m loadtest.compare --quick
  python -m loadtest.compare --work unary --peer envoy,nginx --rounds 9
  python -m loadtest.compare --work sse --duration-s 2 --no-pin
  python -m loadtest.compare --work h2 --peer envoy,nginx --rounds 3
  python -m loadtest.compare --ours-python ../other-build/.venv/bin/python
"""


def names(
    known: tuple[str, ...], groups: Mapping[str, tuple[str, ...]] | None = None
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Click callback for a comma-separated choice of `known` names, in their order; a group is its members."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
        given = {name.strip() for name in value.split(",") if name.strip()}
        wanted = {member for name in given for member in (groups or {}).get(name, (name,))}
        unknown = sorted(wanted - set(known))
        if unknown:
            raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return [name for name in known if name in wanted]

    return parse


def present(wanted: list[str], peers: tuple[Peer, ...] = PEERS) -> tuple[list[Peer], list[str]]:
    """Peers of `wanted` that are installed, and a sentence for each that is not."""
    chosen_peers = [peer for peer in peers if peer.name in wanted]
    absent = [
        f"{peer.name} is not installed ({peer.package}): the run goes on without it."
        for peer in chosen_peers
        if peer.binary() is None
    ]
    return [peer for peer in chosen_peers if peer.binary() is not None], absent


def skips(plan: Plan) -> list[str]:
    """Return a sentence for each peer that cannot do all of the works."""
    works = list(dict.fromkeys(one.work for one in plan.measures))
    lacking = {peer.name: [work for work in works if work not in peer.works] for peer in plan.peers}
    return [
        f"{name} does not relay {', '.join(missing)}: not compared there."
        for name, missing in lacking.items()
        if missing
    ]


def doable(works: list[str]) -> tuple[list[str], list[str]]:
    """Those of `works` whose tools are installed, and a sentence for each that is left out."""
    nginx = Nginx()
    needs = (
        ("grpc", "h2load", h2load.binary(), h2load.PACKAGE),
        ("tls", "openssl", openssl(), OPENSSL_PACKAGE),
        ("h3", "openssl", openssl(), OPENSSL_PACKAGE),
        ("tls", "nginx", nginx.binary(), nginx.package),  # the replica: `direct` speaks TLS to it
    )
    missing = [(work, tool, package) for work, tool, path, package in needs if work in works and path is None]
    sentences = [f"{tool} is not installed ({package}): {work} is not measured." for work, tool, package in missing]
    return [work for work in works if work not in {one[0] for one in missing}], sentences


def settings_of(plan: Plan, absent: list[str], started: datetime) -> reports.Settings:
    """Describe the run for its report."""
    place = Site(Path("DIR"), 0, 0, 0)
    nginx = Nginx().binary()
    return reports.Settings(
        started=started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        rounds=plan.rounds,
        duration_s=plan.duration_s,
        rate_per_s=plan.rate_per_s,
        pins=plan.pins.describe(),
        replica="nginx, canned" if nginx else "loadtest.replica (nginx is not installed)",
        ours_command=shlex.join(["python", *plan.ours.configure(place)[1:]]),
        versions={peer.name: peer.version() for peer in [plan.ours, *plan.peers]},
        absent=absent,
        skipped=skips(plan),
    )


def measure_all(plan: Plan, console: Console, failed: list[str]) -> list[Slot]:
    """Run the plan under a progress bar; every child is gone when this returns or raises.

    A peer that did not start is named in `failed`.
    """
    slots: list[Slot] = []
    progress = Progress(
        TextColumn("{task.description:<42}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=2,  # drawn by this process on CPUs that are being measured
    )
    with (
        interrupt_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="compare-") as folder,
        Fleet() as fleet,
        progress,
    ):
        task = progress.add_task("starting the proxies", total=plan.slots())
        for slot in run(plan, fleet, Path(folder), failed):
            slots.append(slot)
            label = f"{slot.measure}: {slot.proxy}, round {slot.round + 1}"
            progress.update(task, advance=1, description=label)
    return slots


def show(report: reports.Report, console: Console) -> None:
    """Print the report's tables."""
    for summary in report.summaries:
        header, rows = reports.columns(summary)
        console.print(_table(reports.heading(summary), header, rows))
    if ratio_rows := reports.ratio_rows(report):
        title = "Ours / peer, per round: median (range); below 1 is ours, except for the rate"
        console.print(_table(title, reports.RATIO_HEADER, ratio_rows))
        goals = [row for row in reports.goal_rows(report) if row[-1] != "not measured"]
        console.print(_table("Goals", reports.GOAL_HEADER, goals))


def _table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(header):
        text = place == 0 or name == "peer"
        table.add_column(name, justify="left" if text else "right", no_wrap=text)
    for row in rows:
        style = {"yes": "green", "no": "red"}.get(row[-1]) or ("bold" if row[0] == OURS else None)
        table.add_row(*row, style=style)
    return table


@click.command(epilog=EPILOG)
@click.option(
    "--work",
    "works",
    default=",".join(WORKS),
    show_default=True,
    callback=names(WORKS, GROUPS),
    help="What to measure, comma-separated; h2 is grpc,grpc-stream,h2-body, http1 is unary,sse,websocket.",
)
@click.option(
    "--peer",
    "peers",
    default=",".join(PEER_NAMES),
    show_default=True,
    callback=names(PEER_NAMES),
    help="What to compare with, comma-separated.",
)
@click.option(
    "--rounds", type=click.IntRange(1), help=f"Rounds of each measure.  [default: {DEFAULT_ROUNDS}]"
)
@click.option(
    "--duration-s",
    type=click.FloatRange(0.05, 600),
    help=f"Length of one window.  [default: {DEFAULT_DURATION_S}]",
)
@click.option(
    "--rate",
    "rate_per_s",
    default=2000.0,
    show_default=True,
    type=click.FloatRange(1, 100_000),
    help="Requests a second of the open loop.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"About a minute: {QUICK_ROUNDS} round of {QUICK_DURATION_S} s windows. Ratios, not evidence.",
)
@click.option(
    "--pin/--no-pin",
    default=True,
    show_default=True,
    help="Give the proxy a CPU of its own; generator and replica have another.",
)
@click.option("--ours-args", default="", help="More arguments for our daemon, in one string.")
@click.option(
    "--ours-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter whose router is measured instead of this checkout's.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Report folder.  [default: loadtest/reports/<time>]",
)
def main(
    *,
    works: list[str],
    peers: list[str],
    rounds: int | None,
    duration_s: float | None,
    rate_per_s: float,
    quick: bool,
    pin: bool,
    ours_args: str,
    ours_python: Path | None,
    output: Path | None,
) -> None:  # fmt: skip
    """Measure our router beside Envoy, nginx, HAProxy and SGLang's router, in one interleaved run.

    Prints tables and writes a report folder (JSON, Markdown, PNG). A peer that is not installed is
    named together with the package that brings it, and the run goes on without it. The exit code is
    0 for a whole run, 1 when a process failed or a request of ours did, 130 on Ctrl-C.
    """
    # Without a terminal rich would wrap at 80 columns; a log file has room.
    console = Console(width=None if sys.stdout.isatty() else 120)
    found, absent = present(peers)
    works, undoable = doable(works)
    absent += undoable
    plan = Plan(
        measures=chosen(works, quick=quick),
        peers=found,
        # Made absolute but not resolved: a venv's interpreter is a link, and the link is what counts.
        ours=Ours((ours_python or Path(sys.executable)).absolute(), tuple(shlex.split(ours_args))),
        rounds=rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS),
        duration_s=duration_s or (QUICK_DURATION_S if quick else DEFAULT_DURATION_S),
        rate_per_s=rate_per_s,
        pins=choose_pins(os.sched_getaffinity(0), pin=pin),
    )
    for line in [*absent, *skips(plan)]:
        console.print(line, style="yellow", highlight=False)
    if not plan.ours.is_compiled():
        console.print("ours runs as Python source: `router compile` makes it what is deployed.", style="yellow")
    named = len(absent)
    console.print(f"{plan.pins.describe()}; about {plan.expected_s() + 10:.0f} s.", highlight=False)
    started = datetime.now(UTC)
    try:
        slots = measure_all(plan, console, absent)
    except NotReadyError as failure:
        console.print(str(failure), style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; every process is ended", style="yellow")
        sys.exit(130)
    report = reports.make_report(settings_of(plan, absent, started), plan.measures, slots)
    folder = output or CHECKOUT / "loadtest" / "reports" / started.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    reports.write_report(report, folder)
    plot_ratios(report, folder / "ratios.png")
    show(report, console)
    for line in absent[named:]:
        console.print(line, style="red", markup=False)
    console.print(f"report: {folder / 'report.md'}", highlight=False, soft_wrap=True)
    sys.exit(1 if any(slot.result.errors for slot in slots if slot.proxy == OURS) else 0)


if __name__ == "__main__":
    main()
