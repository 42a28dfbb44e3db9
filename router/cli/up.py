"""`router up`: everything on one machine.

Two simulated replicas and a robot policy server behind a router, which first checks itself through every
protocol it has and then keeps serving.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop
from rich.console import Console

from router.app import EXIT_FATAL, Supervisor
from router.cli.options import make_settings, settings_options
from router.cli.selfcheck import Target, check_all, print_table
from router.cli.serve import configure_logging, ready_line, start

if TYPE_CHECKING:
    from router.config.settings import Settings

CHAT_ENDPOINT = "sim"
POLICY_ENDPOINT = "policy"
POLICY_HOST = "policy.localhost"


@click.command()
@settings_options
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(1, 64), help="Simulated replicas.")
@click.option("--time-scale", default=0.1, show_default=True, type=click.FloatRange(0.0, 100.0),
              help="Speed of the simulated engine: 1 is that of the real one, 0 takes no time.")  # fmt: skip
@click.option("--once", is_flag=True, help="End after the check: exit 0 if all of it passed, 1 if not.")
@click.option("--no-check", is_flag=True, help="Serve at once.")
def up(replicas: int, time_scale: float, once: bool, no_check: bool, **values: Any) -> None:
    r"""Run replicas and a router on this machine, check every protocol, keep serving.

    \b
    router up            # Ctrl-C ends it
    router up --once     # for scripts: exit 0 or 1
    """
    if values["replica"] or values["config"]:
        raise click.UsageError("`router up` makes its own replicas; use `router serve` for yours")
    configure_logging(values["log_level"] if values["log_level"] != "INFO" else "WARNING")
    sys.exit(uvloop.run(_up(values, replicas, time_scale, once=once, check=not no_check)))


async def _up(values: dict[str, Any], replicas: int, time_scale: float, *, once: bool, check: bool) -> int:
    try:
        from inference_backend.launch import LaunchError, ReplicaProcess  # noqa: PLC0415 - of an extra
    except ImportError as missing:
        hint = "install the replicas with: pip install 'replica-router[backend]'"
        raise click.UsageError(f"{missing}; {hint}") from None
    console = Console(stderr=values["json"])
    async with AsyncExitStack() as stack:
        engines = [ReplicaProcess.simulate(time_scale=time_scale, seed=i) for i in range(replicas)]
        policy = ReplicaProcess.policy()
        with console.status(f"starting {replicas} simulated replicas and a policy server"):
            try:
                for process in (*engines, policy):
                    await stack.enter_async_context(process)
            except LaunchError as failure:
                click.echo(f"Error: {failure}", err=True)
                return EXIT_FATAL
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="router-up-"))
        policy_url = policy.url.replace("ws://", "http://")
        values["config"] = _write_table(Path(folder), [engine.url for engine in engines], policy_url)
        settings: Settings = make_settings(values)
        supervisor = Supervisor(settings)
        code = await start(supervisor)
        if code:
            return code
        if settings.json:
            hosts = {"chat": "localhost", "policy": POLICY_HOST}
            line = ready_line(supervisor, hosts=hosts)
            click.echo(json.dumps({**json.loads(line), "listen": supervisor.listen[0]}))
        if check:
            target = Target(supervisor.listen[0], engines[0].url, policy_url, POLICY_HOST)
            with console.status("checking every protocol, directly and through the router"):
                rows = await asyncio.to_thread(check_all, target)
            print_table(console, rows)
            if once:
                await supervisor.close()
                return 0 if all(row.passed for row in rows) else 1
        if not settings.json:
            _print_hints(console, supervisor)
        return await supervisor.run()


def _write_table(folder: Path, engines: list[str], policy: str) -> str:
    """Write the table as the file a user would write, so that SIGHUP works here as well."""
    lines = [
        "[[endpoint]]", f'name = "{CHAT_ENDPOINT}"', 'health = { kind = "http" }',
        *(f'[[endpoint.replica]]\naddress = "{url}"' for url in engines),
        "[[endpoint]]", f'name = "{POLICY_ENDPOINT}"', f'hosts = ["{POLICY_HOST}"]',
        f'[[endpoint.replica]]\naddress = "{policy}"',
    ]  # fmt: skip
    path = folder / "router.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _print_hints(console: Console, supervisor: Supervisor) -> None:
    address = supervisor.listen[0]
    console.print(f"\n  serving    [bold]{address}[/]   (robot policy: Host {POLICY_HOST})")
    console.print(f"  dashboard  [bold]{supervisor.admin}/[/]   metrics {supervisor.admin}/metrics")
    console.print(
        f"\n  curl {address}/v1/chat/completions -H 'content-type: application/json' \\\n"
        """    -d '{"model":"sim","stream":true,"messages":[{"role":"user","content":"hello"}]}'\n"""
        "\n  Ctrl-C ends it.",
        markup=False, highlight=False,
    )  # fmt: skip
