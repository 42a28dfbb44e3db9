"""`python -m loadtest.quic`: QUIC at the listener and robots through the router, with the goals they have.

Prints a table and, with --output, writes the figures as JSON. The exit code is 0 for a whole run, whatever the
goals, 1 when a process failed or an exchange had no answer, 130 on Ctrl-C. HTTP/3 beside Envoy is
`python -m loadtest.compare --work h3`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from loadtest.certificate import PACKAGE, openssl
from loadtest.compare import names
from loadtest.pins import pinned
from loadtest.processes import Fleet, NotReadyError, interrupt_on_sigterm
from loadtest.quic import portal, robots
from loadtest.quic.figures import HEADER, Figure
from loadtest.quic.listener import NotBuiltError, beside_quic_portal, build
from loadtest.quic.place import Place
from router.compiled import is_current

if TYPE_CHECKING:
    from collections.abc import Callable

WORKS: dict[str, Callable[[Place, int, bool], list[Figure]]] = {
    "listener": lambda place, rounds, quick: beside_quic_portal(place, rounds, quick=quick),
    "portal": lambda place, rounds, quick: portal.through_the_router(place, rounds, quick=quick),
    "fleet": lambda place, _, quick: robots.fleet(place, quick=quick),
    "newest": lambda place, _, quick: robots.newest(place, quick=quick),
    "move": lambda place, _, quick: robots.move(place, quick=quick),
}
DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 2


def table(figures: list[Figure]) -> Table:
    """Return the table of the figures."""
    found = Table(title="QUIC and robots", title_justify="left", title_style="bold")
    for column in HEADER:
        left = column in {"work", "figure"}
        found.add_column(column, justify="left" if left else "right", no_wrap=True)
    for place, figure in enumerate(figures):
        last = place + 1 == len(figures) or figures[place + 1].work != figure.work
        style = {True: "green", False: "red", None: None}[figure.holds]
        found.add_row(*figure.cells(), style=style, end_section=last)
    return found


@click.command()
@click.option(
    "--work",
    "works",
    default=",".join(WORKS),
    show_default=True,
    callback=names(tuple(WORKS)),
    help="What to measure, comma-separated.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help=f"Rounds of what is measured beside something.  [default: {DEFAULT_ROUNDS}]",
)
@click.option("--quick", is_flag=True, help=f"Under a minute: {QUICK_ROUNDS} rounds, short windows.")
@click.option(
    "--pin/--no-pin",
    default=True,
    show_default=True,
    help="Give what is measured a CPU of its own.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures, as JSON.")
def main(*, works: list[str], rounds: int | None, quick: bool, pin: bool, output: Path | None) -> None:
    """Measure QUIC at the listener, quic-portal's clients and robots through the router.

    listener: our engine beside quic-portal's (quinn), by its own client. portal: that client through the router to
    a policy. fleet: 20 robots. newest: newest wins beside one ordered stream, with loss. move: changes of address.
    The first run of `listener` compiles a copy of the engine, for about a minute.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    if openssl() is None:
        console.print(f"openssl is not installed ({PACKAGE}): nothing can be measured", style="red")
        sys.exit(1)
    if not is_current():
        console.print("ours runs as Python source: `router compile` makes it what is deployed.", style="yellow")
    figures: list[Figure] = []
    turns = rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS)
    try:
        with interrupt_on_sigterm(), tempfile.TemporaryDirectory(prefix="quic-") as folder, Fleet() as fleet:
            if "listener" in works:
                with console.status("compiling a copy of the engine, if there is none of these sources"):
                    build()
            place = Place(fleet, Path(folder), pin=pin)
            console.print(place.pins.describe(), highlight=False)
            for work in works:
                with console.status(work), pinned(place.pins.generator):
                    figures += WORKS[work](place, turns, quick)
    except NotBuiltError as failure:
        console.print(f"the engine could not be compiled: {failure}", style="red", markup=False)
        sys.exit(1)
    except NotReadyError as failure:
        console.print(str(failure), style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; every process is ended", style="yellow")
        sys.exit(130)
    console.print(table(figures))
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    sys.exit(1 if any(one.name == "without an answer" and one.value for one in figures) else 0)


if __name__ == "__main__":
    main()
