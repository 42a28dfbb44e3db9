"""`router store init` and `router store status`, on any target."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from router.cli.store import store
from router.cli.writing import EXIT_STORE, show, store_options
from router.config.errors import StoreError

if TYPE_CHECKING:
    from router.config.target import Target

__all__ = ["store"]


@store.command("init")
@store_options
def init(target: Target, as_json: bool) -> None:
    """Make instance, database and schema where they are missing, and migrate. Repeating it does no harm."""
    from router.config.setup import initialise  # noqa: PLC0415 - a second, and of an extra

    try:
        version = initialise(target, lambda step: click.echo(step, err=True))
    except StoreError as failure:
        click.echo(f"Error: {failure}", err=True)
        sys.exit(EXIT_STORE)
    show(
        {"store": str(target), "database": target.database, "schema": version}
        if as_json
        else f"{target}: {target.database} is at schema {version}",
        as_json,
    )


@store.command("status")
@store_options
def status(target: Target, as_json: bool) -> None:
    """Show version, watermark, staleness, partitions, readers, rows, nodes and who reaps, as a reader sees them."""
    from router.config.inspection import inspect  # noqa: PLC0415 - half a second, and of an extra

    try:
        found: dict[str, Any] = asyncio.run(inspect(target))
    except StoreError as failure:
        click.echo(f"Error: {failure}", err=True)
        sys.exit(EXIT_STORE)
    show(found, as_json)
