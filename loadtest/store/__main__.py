"""Run the measurements of the store, one after another, each in directories of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.store.measures import MEASURES, Row


@click.command()
@click.option("--measure", "-m", multiple=True, type=click.Choice(sorted(MEASURES)), help="Only these; repeatable.")
def main(measure: tuple[str, ...]) -> None:
    """Measure the configuration store: delay, bootstrap, look-up, outage, churn, relay. About three minutes."""
    console = Console()
    table = Table(title="store", title_justify="left")
    for heading in ("measure", "what", "figure", "goal", ""):
        table.add_column(heading)
    missed = False
    for name in measure or MEASURES:
        with tempfile.TemporaryDirectory(prefix="router-bench-") as folder, console.status(f"measuring {name}"):
            data, state = Path(folder) / "data", Path(folder) / "state"
            data.mkdir()
            state.mkdir()
            rows: list[Row] = uvloop.run(MEASURES[name](data, state))
        for row in rows:
            mark = "" if row.reached is None else "[green]ok[/]" if row.reached else "[red]missed[/]"
            missed |= row.reached is False
            table.add_row(name, row.what, row.figure, row.goal, mark)
    console.print(table)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
