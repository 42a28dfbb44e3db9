"""`router drain`: have a running daemon finish and end. And waiting for a replica to be idle."""

from __future__ import annotations

import sys
import time
from typing import Any, NoReturn

import click

from router.cli.admin_client import LOOK_S, AdminClient, UnreachableError, error_text
from router.config.settings import Settings
from router.config.static import ConfigError

_DEFAULT_ADMIN = Settings().admin


@click.command("drain")
@click.option("--admin", default=_DEFAULT_ADMIN, show_default=True, envvar="ROUTER_ADMIN", show_envvar=True,
              help="Admin listener of the daemon, HOST:PORT or unix:PATH.")  # fmt: skip
@click.option("--admin-token", default="", envvar="ROUTER_ADMIN_TOKEN", show_envvar=True, help="Its token.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return once it has ended.")
@click.option("--wait-s", default=600.0, show_default=True, type=click.FloatRange(0.0), help="At most so long.")
def drain(admin: str, admin_token: str, wait: bool, wait_s: float) -> None:
    """Drain a running daemon, as SIGTERM does: not ready, settle, finish, end. Exit 1 if it did not."""
    try:
        client = AdminClient(admin, admin_token)
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    try:
        status, answer = client.call("POST", "/drain_listeners")
    except UnreachableError as failure:
        _fail(f"no daemon answers on --admin {failure}")
    if status != 202:
        _fail(error_text(answer))
    if not wait:
        click.echo("draining")
        return
    ends_s = time.monotonic() + wait_s
    while time.monotonic() < ends_s:
        try:
            client.call("GET", "/livez")
        except UnreachableError:
            click.echo("drained: it has ended")
            return
        time.sleep(LOOK_S)
    _fail(f"it still drains after {wait_s:g} s")


def wait_idle(admins: tuple[str, ...], token: str, endpoint: str, replica: str, limit_s: float) -> str:
    """Wait until none of these routers has a request on the replica; return what was left when time ran out."""
    clients = [AdminClient(admin, token) for admin in admins or (_DEFAULT_ADMIN,)]
    ends_s = time.monotonic() + limit_s
    while True:
        left = [text for client in clients if (text := _left_on(client, endpoint, replica))]
        if not left or time.monotonic() >= ends_s:
            return "; ".join(left)
        time.sleep(LOOK_S)


def _left_on(client: AdminClient, endpoint: str, replica: str) -> str:
    try:
        status, answer = client.call("GET", "/clusters?format=json")
    except UnreachableError as failure:
        return str(failure)
    if status != 200:
        return f"{client.address}: {error_text(answer)}"
    row = _row(answer, endpoint, replica)
    if row is None:
        return ""
    if row["state"] != "DRAINING":
        return f"{client.address}: it is still {row['state']} there"
    return f"{client.address}: {row['in_flight']} requests on it" if row["in_flight"] else ""


def _row(answer: Any, endpoint: str, replica: str) -> dict[str, Any] | None:
    for known in answer["endpoints"]:
        if known["name"] == endpoint:
            for row in known["replicas"]:
                if row["id"] == replica:
                    found: dict[str, Any] = row
                    return found
    return None


def _fail(text: str) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    sys.exit(1)
