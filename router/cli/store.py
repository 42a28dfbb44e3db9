"""`router store`: the embedded configuration store, alone in a process.

What imports gRPC stays inside functions, so that `router --help` is quick.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from router.config.addresses import is_loopback, parse_listen
from router.config.errors import StoreError
from router.config.static import ConfigError
from router.config.target import default_socket, parse_target

if TYPE_CHECKING:
    from router.config.embedded.limits import Settings
    from router.config.relay import Relay
    from router.config.target import Target

EXIT_CANNOT_START = 3
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A time such as 90s, 30m, 12h or 7d, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        form = re.fullmatch(r"(\d{1,9})([smhd])", str(value), re.ASCII)
        if form is None:
            self.fail(f"{value!r} is not a time such as 90s, 30m, 12h or 7d", param, ctx)
        return float(int(form[1]) * _UNIT_S[form[2]])


def check_listen(address: str) -> str:
    """Return an address that may be listened on. click.BadParameter."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path and len(path.encode()) < 108:
            return address
        raise click.BadParameter("a socket's path has 1 to 107 bytes", param_hint="--listen")
    host, colon, port = address.rpartition(":")
    if colon and host and port.isascii() and port.isdigit() and int(port) < 65_536:
        return address
    raise click.BadParameter("needs unix:/path or host:port", param_hint="--listen")


@click.group(invoke_without_command=True)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ROUTER_STORE_DATA",
    help="Directory of the database files.  [default: ~/.local/state/router/store]",
)
@click.option(
    "--listen", envvar="ROUTER_STORE_LISTEN", help="unix:/path or host:port.  [default: unix:<data>/store.sock]"
)
@click.option(
    "--unauthenticated", is_flag=True, help="Listen beyond loopback: the store asks nobody who they are."
)
@click.option(
    "--durable",
    is_flag=True,
    help="Have each commit survive a power cut (4 ms instead of 0.1); kill -9 never loses one.",
)
@click.option("--retention", type=Duration(), help="Keep change records so long, whatever the streams say.")
@click.option(
    "--max-readers",
    type=click.IntRange(min=1),
    help="Concurrent readers of a partition; Spanner has 20.  [default: no limit]",
)
@click.option("--follow", metavar="UPSTREAM", help="Be a relay: serve what UPSTREAM (as of --store elsewhere) has.")
@click.option("--test-hooks", is_flag=True, hidden=True, help="Faults on demand, for tests.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON line on stdout when ready.")
@click.pass_context
def store(
    context: click.Context,
    data: Path | None,
    listen: str | None,
    unauthenticated: bool,
    durable: bool,
    retention: float | None,
    max_readers: int | None,
    follow: str | None,
    test_hooks: bool,
    json_: bool,
) -> None:
    r"""Serve google.spanner.v1 from SQLite, for Spanner's own client libraries.

    \b
    router store
    SPANNER_EMULATOR_HOST=unix:$HOME/.local/state/router/store/store.sock  <any Spanner client>

    Schema: CREATE/ALTER/DROP TABLE (interleaved, ON DELETE CASCADE, ROW DELETION POLICY), [UNIQUE] INDEX, CHANGE
    STREAM; types BOOL INT64 FLOAT64 STRING BYTES TIMESTAMP DATE JSON and ARRAYs of them. No views, foreign keys,
    checks, generated columns, sequences, NUMERIC, named schemas.

    Queries: SELECT [DISTINCT] expressions FROM tables with [INNER|LEFT] JOIN … ON, WHERE, GROUP BY, HAVING, ORDER
    BY, LIMIT/OFFSET; COUNT MIN MAX SUM AVG; + - * / || comparisons, AND OR NOT, IN, BETWEEN, LIKE, IS NULL;
    COALESCE IFNULL IF STARTS_WITH ENDS_WITH UPPER LOWER CONCAT LENGTH CURRENT_TIMESTAMP TIMESTAMP_ADD
    TIMESTAMP_SUB; INFORMATION_SCHEMA's SCHEMATA, TABLES, COLUMNS, INDEXES, CHANGE_STREAMS. INSERT [OR UPDATE|OR
    IGNORE] … VALUES | SELECT, UPDATE, DELETE, THEN RETURN. Everything else is UNIMPLEMENTED; nothing is ever
    answered approximately.

    Exit codes: 0 clean, 2 usage, 3 cannot bind, or another process has the data.
    """
    if context.invoked_subcommand is not None:
        return
    from router.config.embedded.limits import Settings  # noqa: PLC0415 -- see the module

    data = data or default_socket().parent
    try:
        upstream = None if follow is None else parse_target(follow, flag="--follow")
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    address = check_listen(listen or f"unix:{data}/store.sock")
    is_open = not address.startswith("unix:") and not is_loopback(parse_listen(address, "--listen")[0])
    if is_open and not unauthenticated:
        raise click.UsageError(f"--listen {address}: give --unauthenticated if only routers can reach it there")
    settings = Settings(durable=durable, retention_s=retention, max_readers=max_readers)
    import uvloop  # noqa: PLC0415

    from router.cli.serve import configure_logging  # noqa: PLC0415

    configure_logging("INFO")
    sys.exit(uvloop.run(_serve(data, address, settings, upstream, test_hooks=test_hooks, json_=json_)))


async def _serve(
    data: Path, address: str, settings: Settings, upstream: Target | None, *, test_hooks: bool, json_: bool
) -> int:
    from router.config.embedded.hooks import TestHooks  # noqa: PLC0415 -- see the module
    from router.config.embedded.server import BindError, LockedError, StoreServer  # noqa: PLC0415

    server = StoreServer(data, address, settings=settings, hooks=TestHooks() if test_hooks else None)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await server.start()
    except (BindError, LockedError, OSError) as refusal:
        click.echo(f"Error: {refusal}", err=True)
        return EXIT_CANNOT_START
    relay: Relay | None = None
    if upstream is not None:
        from router.config.relay import Relay  # noqa: PLC0415 -- see the module

        relay = Relay(server, upstream)
        try:
            await relay.start()
        except StoreError as refusal:
            click.echo(f"Error: {refusal}", err=True)
            await server.stop()
            return EXIT_CANNOT_START
    if json_:
        click.echo(json.dumps({"event": "ready", "address": server.address, "data": str(data)}))
    else:
        click.echo(f"store at {server.address}; SPANNER_EMULATOR_HOST={server.address}", err=True)
    sys.stdout.flush()
    await stop.wait()
    if relay is not None:
        await relay.close()
    await server.stop()
    return 0
