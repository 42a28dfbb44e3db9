"""What the commands that write to the store share: the target, answers as a table or JSON, errors in words."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from router.config.errors import StoreError
from router.config.static import ConfigError
from router.config.target import Target, parse_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.config.writer import Item, Writer

EXIT_STORE = 1


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --store, --state-dir and --json; the command gets `target` and `as_json`."""

    @click.option("--store", default="embedded", show_default=True, envvar="ROUTER_STORE", show_envvar=True,
                  help="embedded, spanner://P/I/D, or emulator|omni|relay://HOST:PORT.")  # fmt: skip
    @click.option("--state-dir", default="", envvar="ROUTER_STATE_DIR", show_envvar=True,
                  help="Where the embedded store keeps its socket.")  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
    @wraps(command)
    def wrapped(store: str, state_dir: str, **values: Any) -> Any:
        try:
            target = parse_target(store, state_dir)
        except ConfigError as refusal:
            raise click.UsageError(str(refusal)) from None
        return command(target=target, **values)

    return wrapped


def write(target: Target, work: Callable[[Writer], Awaitable[Any]]) -> Any:
    """Run `work` on an open writer; a StoreError becomes a message and exit code 1."""
    try:
        from router.config.writer import open_writer  # noqa: PLC0415 - half a second, and of an extra
    except ImportError as missing:
        hint = "install it with: pip install 'replica-router[store]'"
        raise click.UsageError(f"{missing}; {hint}") from None

    async def run() -> Any:
        async with open_writer(target) as writer:
            return await work(writer)

    try:
        return asyncio.run(run())
    except StoreError as failure:
        click.echo(f"Error: {failure}", err=True)
        sys.exit(EXIT_STORE)


def one(found: list[Item], kind: str, name: str) -> Item:
    """Return what was looked for by its name; exit code 1 if it is not there."""
    if not found:
        click.echo(f"Error: {kind} {name!r} is not there", err=True)
        raise SystemExit(EXIT_STORE)
    return found[0]


def show(found: Any, as_json: bool) -> None:
    """Print an item, a list of items or a text."""
    if as_json:
        click.echo(json.dumps(found))
        return
    if isinstance(found, str):
        click.echo(found)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    items = found if isinstance(found, list) else [found]
    if not items:
        click.echo("none")
        return
    if isinstance(found, dict):
        width = max(map(len, found))
        for key, value in found.items():
            click.echo(f"{key:<{width}}  {_text(value)}")
        return
    table = Table(*items[0], box=None, pad_edge=False)
    for item in items:
        table.add_row(*map(_text, item.values()))
    # Written whole to a pipe: a table cut at 80 columns is of no use to a program.
    Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 4_096).print(table)


def _text(value: Any) -> str:
    if value in (None, "", {}, []):
        return "-"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
