"""`router sidecar`: beside one inference server."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from importlib.util import find_spec
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import uvloop

from router.app import EXIT_BIND
from router.cli.serve import configure_logging
from router.cli.sidecar_quic import SidecarQuic, quic_options
from router.config.addresses import is_loopback, parse_listen
from router.config.settings import Settings
from router.config.static import ConfigError, check_name, check_replica_id
from router.config.target import parse_target
from router.listening import BindError
from router.transport.attached import PORT, SUFFIX

if TYPE_CHECKING:
    from router.config.target import Target
    from router.sidecar.ports import Engine

_log = logging.getLogger("router.sidecar")
# SGLang then takes the request id from `x-override-rid`, by which the relay can tell it to stop.
ENGINE_ENV = {"SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES": "1"}
_GRACE = click.FloatRange(0.0, 7 * 86_400.0)


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--upstream", required=True, metavar="URL",
              help="The engine, as http://127.0.0.1:30000; h2c:// if it speaks gRPC.")
@click.option("--endpoint", required=True, help="Endpoint whose replica this is.")
@click.option("--replica", "replica_id", help="Its name. [default: HOST:PORT of --advertise]")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="HOST:PORT that routers connect to.")
@click.option("--advertise", help="HOST:PORT to register, where that is another one than --listen.")
@click.option("--unauthenticated", is_flag=True, help="Listen beyond loopback: only routers can reach it there.")
@click.option("--node", help="Whose lease it lives under. [default: HOSTNAME/REPLICA]")
@click.option("--region", default="", envvar="ROUTER_REGION", help="Where it is.")
@click.option("--zone", default="", help="Where in the region.")
@click.option("--weight", default=1.0, type=click.FloatRange(0.001, 1_000.0), help="Its share beside others.")
@click.option("--max-concurrency", default=0, type=click.IntRange(0), help="In flight; more get 503. 0: any.")
@click.option("--engine", type=click.Choice(["any", "sglang"]), default="sglang", show_default=True,
              help="Whose manners to mend: sglang refuses a stream with a 200.")  # fmt: skip
@click.option("--ready-path", default="/ready", show_default=True, help="Answers 200 when the engine is ready.")
@click.option("--fallback-path", default="/health", show_default=True, help="Asked where --ready-path is a 404.")
@click.option("--settle-s", default=0.5, show_default=True, type=_GRACE, help="For routers to see it leave.")
@click.option("--exit-grace-s", default=60.0, show_default=True, type=_GRACE, help="For requests to finish.")
@click.option("--engine-grace-s", default=20.0, show_default=True, type=_GRACE, help="From SIGTERM to SIGKILL.")
@click.option("--store", default="embedded", show_default=True, envvar="ROUTER_STORE", show_envvar=True,
              help="Where to register; `none` where somebody else keeps the row.")  # fmt: skip
@click.option("--state-dir", default="", envvar="ROUTER_STATE_DIR", help="Where the store's socket is.")
@click.option("--admin", default="none", show_default=True, help="HOST:PORT or unix:PATH of the relay's own admin.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line on stdout once it listens.")
@quic_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def sidecar(**values: Any) -> None:
    r"""Stand beside one inference server: start it, wait until it is ready, register it, relay to it, drain it.

    \b
    router sidecar --upstream http://127.0.0.1:30000 --endpoint llama -- \
        python -m sglang.launch_server --model-path MODEL --port 30000

    Without a COMMAND it watches an engine that somebody else runs. SIGTERM drains: out of rotation everywhere,
    requests finish, then SIGTERM and SIGKILL to the engine. Exit codes as of `router serve`.
    """
    configure_logging(values["log_level"])
    quic = None
    try:
        target = None if values["store"] == "none" else parse_target(values["store"], values["state_dir"])
        settings = _settings(values)
        if target is not None and find_spec("grpc") is None:
            raise click.UsageError("no grpc; install it with: pip install 'replica-router[store]'")
        quic = SidecarQuic(values, settings)
        settings.check()
        code = uvloop.run(_run(values, target, settings, quic))
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    finally:
        if quic is not None:
            quic.close()
    sys.exit(code)


def _settings(values: dict[str, Any]) -> Settings:
    """Return the relay's settings; ConfigError names the flag."""
    parts = urlsplit(values["upstream"])
    if parts.scheme not in ("http", "h2c") or parts.port is None:
        raise ConfigError(f"--upstream: {values['upstream']!r} is neither http://HOST:PORT nor h2c://HOST:PORT")
    for flag, check in (("endpoint", check_name), ("replica_id", check_replica_id)):
        try:
            check(values[flag] or "unnamed")
        except ConfigError as refusal:
            raise ConfigError(f"--{flag.removesuffix('_id')}: {refusal}") from None
    if values["advertise"]:
        parse_listen(values["advertise"], "--advertise")
    host, _ = parse_listen(values["listen"], "--listen")
    if not is_loopback(host) and not values["unauthenticated"]:
        raise ConfigError(f"--listen {values['listen']}: give --unauthenticated if only routers can reach it there")
    if host in ("0.0.0.0", "::") and not (values["advertise"] or values["attach"]):  # noqa: S104 - refused, not bound
        raise ConfigError(f"--listen {values['listen']}: give --advertise HOST:PORT, by which routers reach it")
    settings = Settings(
        listen=[values["listen"]],
        replica=[values["upstream"]],
        unauthenticated=values["unauthenticated"],
        admin=values["admin"],
        health="none",  # the sidecar watches the engine itself
        engine=values["engine"],
        max_concurrency=values["max_concurrency"],
        log_level=values["log_level"],
    )
    settings.table(1)
    return settings


async def _run(
    values: dict[str, Any], target: Target | None, settings: Settings, quic: SidecarQuic
) -> int:
    import asyncio  # noqa: PLC0415

    from router.engine_relay import EngineRelay  # noqa: PLC0415
    from router.sidecar.engine import EngineProcess, ExternalEngine  # noqa: PLC0415
    from router.sidecar.life import Graces, SidecarLife  # noqa: PLC0415
    from router.sidecar.ports import StoreUnavailable  # noqa: PLC0415
    from router.sidecar.readiness import ReadinessWatch  # noqa: PLC0415
    from router.sidecar.registry import NoRegistry, Place, StoreRegistry  # noqa: PLC0415
    from router.transport.upstream.question import ask_grpc_status, ask_http  # noqa: PLC0415

    attach = quic.attach
    relay = EngineRelay(settings, attach)
    try:
        await relay.open()
    except BindError as refusal:
        click.echo(f"Error: {refusal}", err=True)
        await relay.supervisor.close()
        return EXIT_BIND
    own = urlsplit(relay.supervisor.listen[0])
    host, port = own.hostname or "", own.port or 0
    if values["advertise"]:
        host, port = parse_listen(values["advertise"], "--advertise")
    elif attach is not None:
        host, port = attach.name + SUFFIX, PORT
    replica_id = values["replica_id"] or f"{host}:{port}"
    node = values["node"] or f"{socket.gethostname()}/{replica_id}"
    place = Place(
        values["endpoint"], replica_id, node, values["region"], values["zone"], host, port, values["weight"],
        urlsplit(values["upstream"]).scheme, quic.lanes(relay.supervisor.listen),
    )  # fmt: skip
    registry = NoRegistry() if target is None else StoreRegistry(target, place)
    try:
        last = await registry.last_generation()
    except StoreUnavailable as failure:
        _log.warning("the store is away; serving goes on: %s", failure)
        last = int(time())  # above any that counted from one: the row of an older run must not fence this one
    command = list(values["command"])
    stdout = sys.stderr.fileno() if values["as_json"] else None  # of which the one JSON line is
    engine: Engine = (
        EngineProcess(command, generation=last, env=ENGINE_ENV, stdout=stdout)
        if command
        else ExternalEngine(values["upstream"], generation=last)
    )
    graces = Graces(
        settle_s=values["settle_s"], exit_s=values["exit_grace_s"], engine_s=values["engine_grace_s"]
    )
    paths = {"path": values["ready_path"], "fallback_path": values["fallback_path"]}
    ask = ask_http if place.scheme == "http" else ask_grpc_status
    life = SidecarLife(
        registry, relay, engine, lambda heard: ReadinessWatch(values["upstream"], heard, ask=ask, **paths),
        graces=graces,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.stop)
    registry.attach(on_lapsed=life.lease_restored, on_fenced=life.leave)
    if values["as_json"]:
        line = {"event": "ready", "listen": relay.supervisor.listen, "replica": replica_id, "pid": os.getpid()}
        click.echo(json.dumps(line))
    try:
        return await life.run()
    finally:
        await registry.close()
        await relay.supervisor.close()
