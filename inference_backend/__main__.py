"""`python -m inference_backend`: the simulated engine, two policy servers, and the real SGLang on a CPU.

Each option of the first three has an environment twin: SIM_ and the option's name in capitals.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import uvloop
from rich.console import Console

from inference_backend import ready
from inference_backend.engine import serve
from inference_backend.policy import PolicySettings, serve_policy
from inference_backend.profiles import PROFILES
from inference_backend.settings import Settings
from inference_backend.sglang_cpu.place import NOT_PRESENT, InstallError, Place

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CONTEXT = {"auto_envvar_prefix": "SIM", "show_default": True, "max_content_width": 110}


def _option(*names: str, **kwargs: Any) -> Callable[[_Function], _Function]:
    return click.option(*names, show_envvar=True, **kwargs)


def _acceptance(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        parsed = tuple(float(item) for item in value.split(",") if item.strip())
    except ValueError:
        raise click.BadParameter("expected probabilities separated by commas") from None
    if any(not 0 <= probability <= 1 for probability in parsed):
        raise click.BadParameter("a probability is between 0 and 1")
    return parsed


def _with_grpc(_context: click.Context, _parameter: click.Parameter, value: int | None) -> int | None:
    """Refuse what needs gRPC where it is not installed."""
    if value is not None and (missing := _missing_for_grpc()):
        raise click.UsageError(missing)
    return value


def _missing_for_grpc() -> str:
    for name in ("grpc", "grpc_health", "grpc_reflection", "google.protobuf"):
        try:
            found = find_spec(name)
        except ModuleNotFoundError:  # of its parent
            found = None
        if found is None:
            return f"no module {name}; the gRPC services need: pip install 'replica-router[grpc]'"
    return ""


@click.group(context_settings={"max_content_width": 110})
def main() -> None:
    """Stand-ins for the servers behind a router.

    simulate, policy and lerobot print a line of JSON on stdout once they listen: {"event":"ready","url":…,"pid":…}.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command(context_settings=_CONTEXT)
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option("--port", default=0, type=click.IntRange(0, 65_535), help="Port; 0 takes a free one.")
@_option(
    "--grpc-port",
    type=click.IntRange(0, 65_535),
    callback=_with_grpc,
    help="Serve SGLang's gRPC scheduler service beside HTTP; 0 takes a free port.  [default: no gRPC]",
)
@_option("--model", default="", help="Served model name; empty takes the profile's.")
@_option(
    "--profile",
    default="qwen3-8b-h100",
    type=click.Choice(sorted(PROFILES)),
    help="Model and GPU whose steps to copy.",
)
@_option(
    "--time-scale",
    default=1.0,
    type=click.FloatRange(0),
    help="Factor on every simulated duration: 1 real time, 0.1 ten times faster, 0 no waiting at all.",
)
@_option("--max-running", type=click.IntRange(1), help="Requests decoded at once.  [default: the profile's]")
@_option("--max-queued", type=click.IntRange(0), help="Requests waiting before 503.  [default: no limit]")
@_option("--kv-tokens", type=click.IntRange(64), help="KV capacity in tokens.  [default: the profile's]")
@_option("--page-tokens", default=64, type=click.IntRange(1), help="Page size of the prefix cache.")
@_option(
    "--acceptance",
    default="",
    callback=_acceptance,
    help="Speculative decoding: conditional acceptance per draft position, e.g. 0.75,0.65,0.58.",
)
@_option(
    "--keep-alive-s", default=5.0, type=click.FloatRange(0), help="Idle connections are closed after this."
)
@_option("--load-s", default=0.0, type=click.FloatRange(0), help="Before listening: the port refuses.")
@_option(
    "--startup-s",
    default=0.0,
    type=click.FloatRange(0),
    help="After listening: /ready and /health answer 503.",
)
@_option(
    "--health-s",
    type=click.FloatRange(0),
    help="What /health takes on an idle engine.  [default: 1 s times the time scale, as SGLang]",
)
@_option(
    "--drain-s", default=10.0, type=click.FloatRange(0), help="After SIGTERM, the longest wait for streams."
)
@_option(
    "--linger-s", default=0.0, type=click.FloatRange(0), help="After SIGTERM, stay this long even when idle."
)
@_option(
    "--unary-abort-s",
    default=0.0,
    type=click.FloatRange(0),
    help="Delay before a non-streaming client's departure is noticed (SGLang: up to 4).",
)
@_option(
    "--mean-output-tokens",
    default=128,
    type=click.IntRange(1),
    help="Mean length of a chat answer without max_tokens.",
)
@_option("--header-overrides/--no-header-overrides", default=False, help="Honour x-override-rid.")
@_option("--cache-report/--no-cache-report", default=True, help="Report cached_tokens in usage.")
@_option(
    "--history", default=1_000, type=click.IntRange(0), help="Finished requests /_sim/requests remembers."
)
@_option("--seed", default=0, type=int, help="Seed of text, lengths and acceptance.")
@_option("--die-with", default=0, type=int, help="Exit when this parent process dies; 0 for never.")
def simulate(profile: str, die_with: int, **options: Any) -> None:
    """Run a simulated SGLang engine.

    SIGTERM drains it as SGLang's Python front end does: /ready turns 503, new requests are still accepted,
    streams finish, then it exits; a second SIGTERM exits at once.
    """
    if die_with:
        ready.die_with(die_with)
    uvloop.run(serve(Settings(profile=PROFILES[profile], **options)))


@main.command(context_settings=_CONTEXT)
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option("--port", default=0, type=click.IntRange(0, 65_535), help="Port; 0 takes a free one.")
@_option("--action-horizon", default=50, type=click.IntRange(1), help="Actions in one answer.")
@_option("--action-dim", default=14, type=click.IntRange(1), help="Numbers in one action.")
@_option("--delay-ms", default=0.0, type=click.FloatRange(0), help="What one inference takes.")
@_option("--api-key", default="", help="Require the header `Authorization: Api-Key KEY`; empty for none.")
@_option("--die-with", default=0, type=int, help="Exit when this parent process dies; 0 for never.")
def policy(die_with: int, **options: Any) -> None:
    """Run an openpi policy server (WebSocket).

    Every path but /healthz, /echo and /_sim/connections speaks the policy protocol.  SIGTERM closes every
    connection with 1001 and exits.
    """
    if die_with:
        ready.die_with(die_with)
    uvloop.run(serve_policy(PolicySettings(**options)))


@main.command(context_settings=_CONTEXT)
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option("--port", default=0, type=click.IntRange(0, 65_535), help="Port; 0 takes a free one.")
@_option("--action-horizon", default=50, type=click.IntRange(1), help="Actions in one answer.")
@_option("--action-dim", default=14, type=click.IntRange(1), help="Numbers in one action.")
@_option("--delay-ms", default=0.0, type=click.FloatRange(0), help="What one inference takes.")
@_option(
    "--wait-s",
    default=2.0,
    type=click.FloatRange(0),
    help="How long GetActions waits for an observation before it answers with nothing.",
)
@_option("--die-with", default=0, type=int, help="Exit when this parent process dies; 0 for never.")
def lerobot(die_with: int, **options: Any) -> None:
    """Run LeRobot's policy server for asynchronous inference (gRPC, HTTP/2 in the clear)."""
    if missing := _missing_for_grpc():
        raise click.UsageError(missing)
    from inference_backend.rpc.lerobot import RobotSettings, serve_robots  # noqa: PLC0415 -- of an extra

    if die_with:
        ready.die_with(die_with)
    uvloop.run(serve_robots(RobotSettings(**options)))


_directory = click.argument(
    "directory", required=False, type=click.Path(file_okay=False, path_type=Path)
)


@main.group("sglang-cpu")
def sglang_cpu() -> None:
    """Run the real SGLang server on this machine's CPU, with a tiny random model.

    Its environment is a directory of its own: DIRECTORY, else $ROUTER_SGLANG_CPU, else in the user's cache.
    """


@sglang_cpu.command()
@_directory
def install(directory: Path | None) -> None:
    """Make the environment, or complete it: 1.8 GB, one to five minutes. pip as it is configured here."""
    place = Place(directory)
    console = Console(stderr=True)
    console.print(f"the real SGLang on a CPU, in {place.root}", highlight=False)
    try:
        with console.status("looking at what is there") as status:
            place.install(
                lambda line: console.print(line, highlight=False, markup=False),
                lambda line: status.update(line.replace("[", "\\[")[: max(console.width - 4, 20)]),
            )
    except InstallError as failure:
        raise click.ClickException(str(failure)) from None
    console.print("ready; run it with: python -m inference_backend sglang-cpu serve --port 30000", highlight=False)


@sglang_cpu.command()
@_directory
def path(directory: Path | None) -> None:
    """Print where the environment is; exit code 1 if it is not whole."""
    place = Place(directory)
    click.echo(place.root)
    if not place.is_present:
        raise click.ClickException(NOT_PRESENT)


@sglang_cpu.command("serve", context_settings={"ignore_unknown_options": True})
@click.option("--port", default=30_000, show_default=True, type=click.IntRange(1, 65_535), help="Port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="The environment's place.")
@click.option("--die-with", default=0, type=int, help="Exit when this parent process dies; 0 for never.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve_sglang(port: int, host: str, directory: Path | None, die_with: int, flags: tuple[str, ...]) -> NoReturn:
    """Become the server; FLAGS are SGLang's own, e.g. --max-queued-requests 4."""
    place = Place(directory)
    if not place.is_present:
        raise click.ClickException(NOT_PRESENT)
    if die_with:
        ready.die_with(die_with)  # it outlives exec
    command = place.command(port, host, flags)
    os.execve(command[0], command, place.environment(os.environ))  # noqa: S606 - ours, and no shell is wanted


if __name__ == "__main__":
    main(prog_name="python -m inference_backend")
