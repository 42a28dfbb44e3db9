"""`router robot ping|drive|list`: try a link to a policy as a robot would, or see those of a daemon's robots.

Nothing of the client is imported before a command runs: QUIC is an extra's.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from router.cli.robot_list import list_robots

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from router.client import RobotSession

_SECONDS = click.FloatRange(min=0.0, max=86_400.0, min_open=True)

robot = click.Group(
    "robot",
    help="Robots: measure a link (ping), drive a policy as a robot would (drive), list a daemon's (list).",
    context_settings={"help_option_names": ["-h", "--help"]},
)

robot.add_command(list_robots)


def _session_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both commands take."""
    options = (
        click.option("--token", envvar="ROUTER_TOKEN", help="The router's token. [env: ROUTER_TOKEN]"),
        click.option("--header", "headers", multiple=True, metavar="NAME:VALUE",
                     help="Sent along to the replica; repeatable."),
        click.option("--ca", type=click.Path(exists=True, dir_okay=False),
                     help="Authorities of the router's certificate, in PEM."),
        click.option("--server-name", help="Name that the certificate must have, instead of the URL's host."),
        click.option("--insecure", is_flag=True, help="Take any certificate: for trying out."),
        click.option("--direct", is_flag=True,
                     help="Look for the replica behind its NAT, and go there without the router if it is found."),
        click.option("--post", is_flag=True, help="The policy is asked by HTTP: each observation is a POST."),
        click.option("--websocket", is_flag=True, help="Over a WebSocket, as where UDP is blocked."),
        click.option("--websocket-url", metavar="URL", help="Where it is. [default: wss:// at the same place]"),
        click.option("--connect-timeout", "connect_timeout_s", type=_SECONDS, default=10.0, show_default=True,
                     help="Seconds for a session to come about."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object at the end, nothing else."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@robot.command()
@click.argument("url")
@click.option("--count", type=click.IntRange(1, 100_000), default=20, show_default=True, help="PINGs to send.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.02, 60.0), default=0.2, show_default=True,
              help="Seconds between two of them.")  # fmt: skip
@_session_options
def ping(url: str, count: int, interval_s: float, as_json: bool, **options: Any) -> None:
    r"""Measure the link to the router at quic://HOST:PORT/PATH: round trips, how they vary, what gets lost.

    PINGs go as datagrams, so that what is lost is seen. Over a WebSocket they go to the replica and are repeated
    until they arrive. Exit code 1 if nothing came back.

    \b
    router robot ping quic://router.example:443/
    router robot ping quic://127.0.0.1:8443/ --insecure --count 100 --interval 0.05
    """
    from router.cli.robot_runs import PingRun, show_ping  # noqa: PLC0415

    run = PingRun(count, interval_s, None if as_json else click.echo)
    _run(lambda: _with(_make(url, options, ping_every_s=interval_s, on_round_trip=run.take), run.work))
    summary = run.summary()
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_ping(summary)
    if not summary["answered"]:
        raise SystemExit(1)


@robot.command()
@click.argument("url")
@click.option("--hz", type=click.FloatRange(0.01, 1_000.0), default=10.0, show_default=True,
              help="Observations a second.")  # fmt: skip
@click.option("--bytes", "size_bytes", type=click.IntRange(64, 16_000_000), default=300_000, show_default=True,
              help="Of one observation.")  # fmt: skip
@click.option("--seconds", "seconds_s", type=_SECONDS, default=10.0, show_default=True, help="How long.")
@click.option("--deadline-ms", type=click.FloatRange(0.1, 600_000.0),
              help="Observations that cannot be there by then are dropped; a later reply is a miss.")  # fmt: skip
@click.option("--lane", type=click.Choice(["state", "command"]), default="state", show_default=True,
              help="state: the newest wins; command: in order, none lost. Replies come on it, too.")  # fmt: skip
@click.option("--telemetry-hz", type=click.FloatRange(0.0, 2_000.0), default=0.0, show_default=True,
              help="Telemetry a second beside them, 100 bytes each; it has no reply and may be lost.")  # fmt: skip
@_session_options
def drive(
    url: str, hz: float, size_bytes: int, seconds_s: float, deadline_ms: float | None, lane: str,
    telemetry_hz: float, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    r"""Send observations to the policy at quic://HOST:PORT/PATH and receive its replies, as a robot does.

    Shows what a control loop feels: how long replies take, the gaps between them, what was late, overtaken or lost.
    An observation is a msgpack map, {"image": BYTES, "sequence": N}, which any policy server can read and most
    refuse: `python -m inference_backend policy` takes it. Exit code 1 if no reply came.

    \b
    router robot drive quic://127.0.0.1:8443/ --insecure --hz 50 --bytes 150000 --deadline-ms 100
    """
    from router.cli.robot_runs import DriveRun, show_drive  # noqa: PLC0415

    run = DriveRun(hz, size_bytes, seconds_s, None if deadline_ms is None else deadline_ms / 1e3, lane,
                   telemetry_hz, is_live=not as_json)  # fmt: skip
    _run(lambda: _with(_make(url, options, replies=lane), run.work))
    summary = run.summary()
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_drive(summary)
    if run.failure:
        raise click.ClickException(run.failure)
    if not summary["replies"]:
        raise click.ClickException('no reply came: is there a policy that answers {"image": …, "sequence": …}?')


def _make(url: str, options: dict[str, Any], **more: Any) -> RobotSession:
    """Return a session; what is wrong with its options is the user's to mend."""
    try:
        from router.client import RobotSession  # noqa: PLC0415
    except ImportError as failure:
        raise click.UsageError(f"{failure}; install it with: pip install 'replica-router[robot]'") from None
    headers = []
    for header in options["headers"]:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header {header!r} is no NAME:VALUE")
        headers.append((name.strip(), value.strip()))
    ca: str | Path | None = options["ca"]
    try:
        return RobotSession(
            url,
            token=options["token"],
            headers=headers,
            ca=ca,
            verify=not options["insecure"],
            server_name=options["server_name"],
            websocket_url=options["websocket_url"],
            direct=options["direct"],
            upstream="post" if options["post"] else "websocket",
            transport="websocket" if options["websocket"] else "auto",
            connect_timeout_s=options["connect_timeout_s"],
            **more,
        )
    except (ValueError, OSError) as failure:
        raise click.UsageError(str(failure)) from None


async def _with(session: RobotSession, work: Callable[[RobotSession], Coroutine[Any, Any, None]]) -> None:
    from router.client import RobotError  # noqa: PLC0415

    try:
        async with session:
            await work(session)
    except RobotError as failure:
        raise click.ClickException(_advice(failure)) from None


def _advice(failure: Any) -> str:
    """Return the error and what may be done about it."""
    text = str(failure)
    if failure.status in (401, 403):
        return f"{text}: give the router's token with --token"
    if failure.status == 404:
        return f"{text}: no route leads from this host and path to an endpoint"
    if failure.status == 503:
        return f"{text}: see the replicas on the router's admin listener, /clusters"
    if failure.code == 1_015:
        return f"{text}: name its authority with --ca, its name with --server-name, or take any with --insecure"
    if failure.code == 1_006:
        return f"{text}: is the router serving --listen-quic there, and is UDP let through?"
    return text


def _run(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it; an interrupt ends it early, and what was measured is shown."""
    from router.client.blocking import new_loop  # noqa: PLC0415

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(make())
    except KeyboardInterrupt:
        click.echo("", err=True)
