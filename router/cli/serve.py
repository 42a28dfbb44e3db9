"""`router serve`: the daemon, with a table of its own or one streamed from a store."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import uvloop

from router.app import EXIT_BIND, EXIT_FATAL, Supervisor
from router.cli.options import make_settings, settings_options
from router.cli.upgrade import upgrade
from router.config.target import parse_target
from router.handover import HandoverError, Predecessor, refuse_on, take_pair
from router.listening import BindError
from router.upgrade import own_command

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from router.config.settings import Settings


class _ServeCommand(click.Command):
    """Tells the daemon that started this one to take over from it what is wrong with flags or file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            ctx.obj = take_pair()
        except HandoverError as refusal:
            raise click.UsageError(str(refusal), ctx) from None
        with _told(ctx.obj):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _told(ctx.obj):
            return super().invoke(ctx)


@contextmanager
def _told(pair: socket.socket | None) -> Iterator[None]:
    try:
        yield
    except click.UsageError as refusal:
        if pair is not None:
            refuse_on(pair, refusal.message)
        raise


@click.command(cls=_ServeCommand)
@settings_options
@click.option("--check", is_flag=True, help="Check settings and table, say so, and exit 0 or 2.")
@click.option("--upgrade", "is_upgrade", is_flag=True, help="Have the running daemon (by --admin or --pid-file) "
              "replace itself by a new process; exit 0 once that serves, 1 if the old goes on.")  # fmt: skip
@click.pass_obj
def serve(pair: socket.socket | None, /, check: bool, is_upgrade: bool, **values: Any) -> None:
    r"""Relay requests to replicas: those named here, those of a file, or those of a store.

    \b
    router serve --replica http://127.0.0.1:30000 --replica http://127.0.0.1:30001
    router serve --config router.toml --workers 2
    router serve --store embedded
    router serve --config router.toml --upgrade     # the one that runs, without losing a request

    SIGTERM drains, SIGINT ends at once, SIGHUP reads the file again and reopens the access log. SIGQUIT starts this
    command line anew, hands the sockets over when the new process is ready, and drains.
    """
    settings = make_settings(values)
    if check and settings.store:
        click.echo(f"ok: {parse_target(settings.store, settings.state_dir)}")
        return
    if check:
        table = settings.table(1)
        replicas = sum(len(endpoint.replicas) for endpoint in table.endpoints)
        click.echo(f"ok: {len(table.endpoints)} endpoints, {replicas} replicas")
        return
    if is_upgrade and pair is None:
        sys.exit(upgrade(settings))
    configure_logging(settings.log_level)
    sys.exit(uvloop.run(_serve(settings, pair)))


def configure_logging(level: str) -> None:
    """Send the process log to stderr."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", level=level, stream=sys.stderr
    )


def ready_line(supervisor: Supervisor, **more: object) -> str:
    """Return the JSON line that tells where the daemon is to be found."""
    return json.dumps({"event": "ready", "listen": supervisor.listen, "admin": supervisor.admin, **more})


async def start(supervisor: Supervisor) -> int:
    """Start; return 0, or the exit code of what went wrong, which was said on stderr."""
    try:
        await supervisor.start()
    except (BindError, HandoverError, RuntimeError) as failure:
        click.echo(f"Error: {failure}", err=True)
        supervisor.refuse(str(failure))
        await supervisor.close()
        return EXIT_BIND if isinstance(failure, BindError) else EXIT_FATAL
    return 0


async def _serve(settings: Settings, pair: socket.socket | None) -> int:
    predecessor = None if pair is None else Predecessor(pair)
    supervisor = Supervisor(settings, own_command(), predecessor)
    code = await start(supervisor)
    if code:
        return code
    if settings.json:
        click.echo(ready_line(supervisor))
    else:
        where = ", ".join(supervisor.listen)
        click.echo(f"serving on {where}; admin on {supervisor.admin or 'no address'}", err=True)
    return await supervisor.run()
