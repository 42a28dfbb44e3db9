"""`router autoscale`: as many replicas as demand asks for."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from importlib.util import find_spec
from time import time
from typing import TYPE_CHECKING, Any

import click
import uvloop

from router.app import EXIT_CLEAN, EXIT_FATAL
from router.cli.serve import configure_logging
from router.config.agent import EXIT_NO_STORE
from router.config.static import ConfigError
from router.config.target import parse_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from router.autoscale.keeper import Keeper
    from router.autoscale.launcher import Launcher
    from router.config.target import Target

_GRACE = click.FloatRange(0.0, 7 * 86_400.0)
_POSITIVE = click.FloatRange(0.0, 86_400.0, min_open=True)
EVENTS_SHOWN = 12
REFRESH_S = 0.5


@click.command()
@click.option("--endpoint", "names", multiple=True, help="Endpoint to scale; repeatable.")
@click.option("--all", "is_all", is_flag=True, help="Scale every endpoint whose policy has `scaling`.")
@click.option("--launch", type=click.Choice(["sim", "command"]), default="sim", show_default=True,
              help="What a replica is: a simulated engine with a sidecar on this host, or your commands' business.")
@click.option("--launch-command", default="", metavar="COMMAND",
              help="Starts a replica; {replica}, {endpoint}, {region}, {desired} stand for their values. No shell.")
@click.option("--stop-command", default="", metavar="COMMAND", help="Drains and ends one, with the same values.")
@click.option("--command-timeout-s", default=60.0, show_default=True, type=_POSITIVE,
              help="For either command to end, before it is killed.")
@click.option("--launch-timeout-s", default=300.0, show_default=True, type=_POSITIVE,
              help="For a replica to become READY; until then it counts as there, then it is replaced.")
@click.option("--parallel-launches", default=8, show_default=True, type=click.IntRange(1, 1_000),
              help="Replicas on their way at a time, of all endpoints.")
@click.option("--engine-args", default="", metavar="ARGS", help="For each simulated engine, as '--time-scale 0.1'.")
@click.option("--region", default="", envvar="ROUTER_REGION", show_envvar=True, help="Where its replicas are.")
@click.option("--exit-grace-s", default=60.0, show_default=True, type=_GRACE,
              help="For requests on a replica that is stopped to finish (sim).")
@click.option("--engine-grace-s", default=20.0, show_default=True, type=_GRACE,
              help="From SIGTERM to SIGKILL of its engine (sim).")
@click.option("--replica-logs", type=click.Path(exists=True, file_okay=False, writable=True),
              metavar="DIRECTORY", help="Where each sidecar's output goes (sim). [default: nowhere]")
@click.option("--once", is_flag=True, help="Look for a second, act once, exit. Starts replicas; stops none, since "
              "that takes a whole scale-down window.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; beside one that works, too.")
@click.option("--stop-replicas", is_flag=True, help="At the end drain the replicas; else they go on serving.")
@click.option("--store", default="embedded", show_default=True, envvar="ROUTER_STORE", show_envvar=True,
              help="embedded, spanner://P/I/D, or emulator|omni://HOST:PORT.")
@click.option("--state-dir", default="", envvar="ROUTER_STATE_DIR", show_envvar=True,
              help="Where the embedded store keeps its socket.")
@click.option("--store-start-timeout-s", default=30.0, show_default=True, type=_GRACE,
              help="How long to wait for the store at the start; 0: for ever.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.option("--log-level", default="WARNING", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def autoscale(**values: Any) -> None:
    r"""Follow demand in the store, and start and stop replicas.

    \b
    router endpoint update llama --policy '{"scaling": {"target_concurrency": 8, "max_replicas": 4}}'
    router autoscale --endpoint llama
    router autoscale --all --launch command --launch-command 'launch.sh {endpoint} {replica}' \
        --stop-command 'stop.sh {endpoint} {replica}'

    Routers tell the store what they are asked for. Wanted are requests in flight / target_concurrency, within
    min_replicas and max_replicas, with buffer_replicas more; none where nobody asks, one at the first request
    that finds none. Fewer only after scaledown_window_s, and never a replica with live sessions.

    A replica that was started registers under the name it was given, which begins with `auto-`; others are
    counted, and never stopped. One autoscaler of a store works, others stand by. SIGTERM leaves replicas running:
    the next autoscaler takes them over. Exit codes: 0 clean, 1 the store cannot be used, or with --once another
    autoscaler is on duty, 2 usage, 5 the store was never reached, 130 SIGINT.
    """  # fmt: skip
    configure_logging(values["log_level"])
    if bool(values["names"]) == values["is_all"]:
        raise click.UsageError("give --endpoint NAME, or --all")
    if find_spec("grpc") is None:
        raise click.UsageError("no grpc; install it with: pip install 'replica-router[store]'")
    try:
        target = parse_target(values["store"], values["state_dir"])
        launcher = None if values["dry_run"] else _launcher(values, target)
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    if target.kind == "relay":
        raise click.UsageError("--store: a relay takes no writes; name the store that it follows")
    sys.exit(uvloop.run(_run(values, target, launcher)))


def _launcher(values: dict[str, Any], target: Target) -> Callable[[], Launcher]:
    """Return what makes the launcher, in the loop; ConfigError names the flag."""
    launch, stop = values["launch_command"], values["stop_command"]
    if values["launch"] == "command":
        from router.autoscale.commands import Commands, Template  # noqa: PLC0415

        Template(launch, "--launch-command")
        Template(stop, "--stop-command")
        return lambda: Commands(launch, stop, values["command_timeout_s"])
    if launch or stop:
        raise ConfigError("--launch-command: it is used with --launch command")
    try:
        from inference_backend.ports import free_port  # noqa: PLC0415 - of an extra

        engine_args = tuple(shlex.split(values["engine_args"]))
    except ImportError as missing:
        raise ConfigError(f"--launch sim: {missing}; pip install 'replica-router[store,backend]'") from None
    except ValueError as failure:
        raise ConfigError(f"--engine-args: {failure}") from None
    from router.autoscale.processes import SimOptions, SimProcesses  # noqa: PLC0415

    options = SimOptions(
        values["store"], values["state_dir"], target.key, engine_args, exit_grace_s=values["exit_grace_s"],
        engine_grace_s=values["engine_grace_s"], log_dir=values["replica_logs"] or "",
    )  # fmt: skip
    return lambda: SimProcesses(options, free_port, None if values["is_all"] else values["names"])


async def _run(values: dict[str, Any], target: Target, make: Callable[[], Launcher] | None) -> int:
    import asyncio  # noqa: PLC0415

    from router.autoscale.keeper import Keeper, NeverConnectedError, NotOnDutyError, Options  # noqa: PLC0415
    from router.config.errors import StoreError  # noqa: PLC0415
    from router.transport.tasks import spawn  # noqa: PLC0415

    show = _Show(as_json=values["as_json"])
    options = Options(
        values["region"], values["launch_timeout_s"], values["parallel_launches"], values["store_start_timeout_s"]
    )
    names = None if values["is_all"] else values["names"]
    keeper = Keeper(target, names, None if make is None else make(), options, show.tell)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    loop.add_signal_handler(signal.SIGTERM, end, EXIT_CLEAN)
    loop.add_signal_handler(signal.SIGINT, end, 128 + signal.SIGINT)
    work = spawn(_guarded(keeper, once=values["once"]), "autoscaler")
    show.begin(keeper)
    try:
        await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
        failure = None if work.cancelled() else work.result()
        if failure is None:
            return ended.result() if ended.done() else EXIT_CLEAN
        if isinstance(failure, NeverConnectedError):
            click.echo(f"Error: {target} was not usable in time: {failure}", err=True)
            return EXIT_NO_STORE
        if not isinstance(failure, (NotOnDutyError, StoreError)):
            raise failure
        click.echo(f"Error: {failure}", err=True)
        return EXIT_FATAL
    finally:
        await keeper.close(stop=values["stop_replicas"])
        show.end()


async def _guarded(keeper: Keeper, *, once: bool) -> Exception | None:
    """Return what ended it: an exit code has to come of it."""
    try:
        await (keeper.once() if once else keeper.run())
    except Exception as failure:
        return failure
    return None


class _Show:
    """Tells what happens: lines of JSON, lines of text, or a table on a terminal."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._events: list[str] = []
        self._live: Any = None

    def begin(self, keeper: Keeper) -> None:
        """Draw the table, where there is a terminal for it."""
        if self._as_json or not sys.stdout.isatty():
            return
        from rich.live import Live  # noqa: PLC0415

        self._live = Live(get_renderable=lambda: self._table(keeper), refresh_per_second=1 / REFRESH_S)
        self._live.start()

    def end(self) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()

    def tell(self, event: str, **values: Any) -> None:
        """Tell one event."""
        if self._as_json:
            click.echo(json.dumps({"event": event, "at_epoch_s": round(time(), 3), **values}))
            return
        text = " ".join([event, *(f"{name}={value}" for name, value in values.items() if value != "")])
        if self._live is None:
            click.echo(text)
        else:
            self._events = [*self._events, text][-EVENTS_SHOWN:]

    def _table(self, keeper: Keeper) -> Table:
        from rich.markup import escape  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        columns = (
            "endpoint", "in flight", "waiting", "sessions", "need", "ready", "pending", "held", "desired", "bounds",
            "because",
        )  # fmt: skip
        caption = escape("\n".join(self._events))
        table = Table(*columns, box=None, pad_edge=False, caption=caption, caption_justify="left")
        for line in keeper.lines.values():
            scaling = line.view.scaling
            view, decision = line.view, line.decision
            cells = (
                line.endpoint, view.in_flight, view.waiting, view.sessions, f"{decision.need:.1f}", line.ready,
                line.pending, line.held, decision.desired, f"{scaling.min_replicas}-{scaling.max_replicas}",
                decision.reason,
            )  # fmt: skip
            table.add_row(*map(str, cells))
        return table
