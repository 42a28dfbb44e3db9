"""`router robot list`: the robot sessions that a running daemon has open, and how their links do."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import click

from router.cli.admin_client import AdminClient, UnreachableError, error_text
from router.cli.writing import show
from router.config.settings import Settings
from router.config.static import ConfigError

_SHOWN = 50


@click.command("list")
@click.option("--admin", default=Settings().admin, show_default=True, envvar="ROUTER_ADMIN", show_envvar=True,
              help="Admin listener of the daemon, HOST:PORT or unix:PATH.")  # fmt: skip
@click.option("--admin-token", default="", envvar="ROUTER_ADMIN_TOKEN", show_envvar=True, help="Its token.")
@click.option("--session", default="", metavar="ID", help="Only the one of this id.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=_SHOWN, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON: all that is known of each.")
def list_robots(admin: str, admin_token: str, session: str, limit: int, as_json: bool) -> None:
    r"""List the robots that are connected, the worst link first: round trip, loss, jitter, gaps, what was dropped.

    Round trip, loss and jitter are the robot's own word, once it has said so. The gap is the largest between two
    observations, or two replies, of late.

    \b
    router robot list
    router robot list --admin 127.0.0.1:9901 --json
    """
    try:
        client = AdminClient(admin, admin_token)
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    query = {"limit": str(limit)} | ({"session": session} if session else {})
    try:
        status, found = client.call("GET", "/debug/robots?" + urlencode(query))
    except UnreachableError as failure:
        raise click.ClickException(f"no daemon answers on --admin {failure}") from None
    if status != 200:
        raise click.ClickException(error_text(found))
    if as_json:
        click.echo(json.dumps(found))
        return
    show([_row(robot) for robot in found["robots"]], as_json=False)
    if found["left_out"] and not session:
        click.echo(f"and {found['left_out']} more", err=True)
    if found["silent_workers"]:
        click.echo(f"did not answer: workers {', '.join(map(str, found['silent_workers']))}", err=True)


def _row(robot: dict[str, Any]) -> dict[str, Any]:
    has_reported = robot["reported_rtt_us"] >= 0
    loss = robot["reported_loss_ppm"]
    return {
        "session": robot["session"],
        "client": robot["client"],
        "over": robot["transport"],
        "endpoint": robot["endpoint"] or robot["authority"],
        "replica": robot["replica"],
        "epoch": robot["epoch"],
        "rtt": _ms(robot["reported_rtt_us"] if has_reported else robot["rtt_us"]),
        "loss": "" if loss < 0 else f"{loss / 1e4:.1f} %",
        "jitter": _ms(robot["reported_jitter_us"]),
        "gap": _ms(max(robot["gap_us"], robot["reported_gap_us"])),
        "late": str(robot["late_in"] + robot["reported_late"]),
        "stale": str(robot["stale_in"] + robot["stale_out"] + robot["reported_stale"]),
        "seconds": f"{robot['age_s']:.0f}",
    }


def _ms(us: int) -> str:
    return "" if us < 0 else f"{us / 1e3:.1f} ms"
