"""`router up`: everything on one machine, the way it runs on many.

An embedded store; simulated replicas and a robot policy server, each behind a sidecar that registers it under a
lease; the replicas' gRPC ports, registered by hand; and a router whose table streams from the store. It first
checks itself through every protocol it has, then keeps serving.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import uvloop
from rich.console import Console

from router.app import EXIT_FATAL, Supervisor
from router.cli.certs import make_dev
from router.cli.options import make_settings, settings_options
from router.cli.selfcheck import Target, check_all, print_table
from router.cli.serve import configure_logging, ready_line, start
from router.config.errors import StoreError
from router.config.listeners import DEFAULT_LISTEN, QUIC_MODULES
from router.config.target import default_socket, parse_target
from router.sidecar.engine import EngineProcess

if TYPE_CHECKING:
    from router.config.settings import Settings

CHAT_ENDPOINT = "sim"
GRPC_ENDPOINT = "sim-grpc"
GRPC_PREFIXES = (
    "/sglang.grpc.scheduler.SglangScheduler/",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)
POLICY_ENDPOINT = "policy"
POLICY_HOST = "policy.localhost"
READY_LIMIT_S = 60.0
STOP_GRACE_S = 10.0


@click.command()
@settings_options
@click.option("--replicas", default=2, show_default=True, type=click.IntRange(1, 64), help="Simulated replicas.")
@click.option("--time-scale", default=0.1, show_default=True, type=click.FloatRange(0.0, 100.0),
              help="Speed of the simulated engine: 1 is that of the real one, 0 takes no time.")  # fmt: skip
@click.option("--once", is_flag=True, help="End after the check: exit 0 if all of it passed, 1 if not.")
@click.option("--no-check", is_flag=True, help="Serve at once.")
def up(replicas: int, time_scale: float, once: bool, no_check: bool, **values: Any) -> None:
    r"""Run a store, replicas and a router on this machine, check every protocol, keep serving.

    \b
    router up            # Ctrl-C ends it
    router up --once     # for scripts: exit 0 or 1

    What is left to try is printed: the store's commands work on it while it runs.
    """
    if values["replica"] or values["config"] or values["store"]:
        raise click.UsageError("`router up` makes its own store and replicas; use `router serve` for yours")
    try:
        import grpc_health  # noqa: F401, PLC0415
        import grpc_reflection  # noqa: F401, PLC0415
        import h2  # noqa: F401, PLC0415

        from inference_backend import launch  # noqa: F401, PLC0415
    except ImportError as missing:
        hint = "install what it runs with: pip install 'replica-router[store,backend,grpc]'"
        raise click.UsageError(f"{missing}; {hint}") from None
    # Its endpoints ask for no token, so it listens where any open router may.
    make_settings({**values, "replica": ("http://127.0.0.1:1",)})
    configure_logging(values["log_level"] if values["log_level"] != "INFO" else "WARNING")
    sys.exit(uvloop.run(_up(values, replicas, time_scale, once=once, check=not no_check)))


class Cluster:
    """The processes beside the router, and where they are."""

    def __init__(self, stack: AsyncExitStack, state: str) -> None:
        self._stack = stack
        self._state = state
        self.store = f"embedded:{default_socket(state)}"
        self.engines: list[str] = []
        self.grpc: list[str] = []
        self.policy = ""

    async def start_store(self) -> None:
        """Start the store and make its schema and endpoints."""
        from router.config.setup import initialise  # noqa: PLC0415 - half a second, and of an extra
        from router.config.writer import open_writer  # noqa: PLC0415

        socket = default_socket(self._state)
        await self._run("router", "store", "--data", str(socket.parent), "--listen", f"unix:{socket}")
        target = parse_target(self.store)
        await asyncio.to_thread(initialise, target)
        async with open_writer(target) as writer:
            anybody: dict[str, Any] = {"create": True, "unauthenticated": True}
            await writer.put_endpoint(CHAT_ENDPOINT, hosts=("*",), **anybody)
            await writer.put_endpoint(POLICY_ENDPOINT, hosts=(POLICY_HOST,), **anybody)
            await writer.put_endpoint(GRPC_ENDPOINT, hosts=("*",), prefixes=GRPC_PREFIXES, **anybody)

    async def start_replicas(self, count: int, time_scale: float) -> None:
        """Start sidecars, each with its engine; they register themselves."""
        from inference_backend.ports import free_port  # noqa: PLC0415 - of an extra

        for i in range(count):
            port, grpc_port = free_port(), free_port()
            ports = ("--port", str(port), "--grpc-port", str(grpc_port))
            engine = ("simulate", *ports, "--time-scale", str(time_scale), "--seed", str(i))
            await self._sidecar(CHAT_ENDPOINT, f"{CHAT_ENDPOINT}-{i}", port, engine)
            self.engines.append(f"http://127.0.0.1:{port}")
            self.grpc.append(f"h2c://127.0.0.1:{grpc_port}")
        port = free_port()
        paths = ("--ready-path", "/healthz", "--engine", "any")
        await self._sidecar(POLICY_ENDPOINT, "policy-0", port, ("policy", "--port", str(port)), *paths)
        self.policy = f"http://127.0.0.1:{port}"

    async def register_grpc(self) -> None:
        """Register the engines' gRPC ports, as an operator would: a sidecar relays HTTP/1.1."""
        from router.config.writer import open_writer  # noqa: PLC0415

        async with open_writer(parse_target(self.store)) as writer:
            for i, url in enumerate(self.grpc):
                parts = urlsplit(url)
                await writer.put_replica(
                    GRPC_ENDPOINT, f"{GRPC_ENDPOINT}-{i}", create=True, address=parts.hostname, port=parts.port,
                    capabilities='{"scheme": "h2c"}',
                )  # fmt: skip

    async def _sidecar(
        self, endpoint: str, replica: str, port: int, engine: tuple[str, ...], *options: str
    ) -> None:
        await self._run(
            "router", "sidecar", "--store", self.store, "--endpoint", endpoint, "--replica", replica,
            "--upstream", f"http://127.0.0.1:{port}", "--log-level", "ERROR", "--settle-s", "0",
            "--exit-grace-s", "2", "--engine-grace-s", "2", *options,
            "--", sys.executable, "-m", "inference_backend", *engine,
        )  # fmt: skip

    async def _run(self, *arguments: str) -> None:
        process = EngineProcess((sys.executable, "-m", *arguments), stdout=subprocess.DEVNULL)
        await process.start()
        self._stack.push_async_callback(process.stop, STOP_GRACE_S)


async def _up(values: dict[str, Any], replicas: int, time_scale: float, *, once: bool, check: bool) -> int:
    console = Console(stderr=values["json"])
    async with AsyncExitStack() as stack:
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="router-up-"))
        cluster = Cluster(stack, state)
        with console.status(f"starting a store, {replicas} simulated replicas and a policy server, with sidecars"):
            try:
                await cluster.start_store()
                await cluster.start_replicas(replicas, time_scale)
            except (StoreError, OSError) as failure:
                click.echo(f"Error: {failure}", err=True)
                return EXIT_FATAL
            values |= {"store": cluster.store, "state_dir": state}
            ca = _serve_quic(values, Path(state))
            settings: Settings = make_settings(values)
            supervisor = Supervisor(settings)
            code = await start(supervisor)
            if code:
                return code
            ready = await _until_ready(supervisor, replicas + 1)
            if ready:
                await cluster.register_grpc()
                ready = await _until_ready(supervisor, 2 * replicas + 1)
            if not ready:
                click.echo(f"Error: the replicas were not ready within {READY_LIMIT_S:g} s", err=True)
                await supervisor.close()
                return EXIT_FATAL
        if settings.json:
            hosts = {"chat": "localhost", "policy": POLICY_HOST}
            line = ready_line(supervisor, hosts=hosts, store=cluster.store)
            quic = supervisor.listen[-1] if ca else ""
            click.echo(json.dumps({**json.loads(line), "listen": supervisor.listen[0], "quic": quic}))
        if check:
            target = Target(
                supervisor.listen[0], cluster.engines[0], cluster.grpc[0], cluster.policy, POLICY_HOST,
                supervisor.listen[-1] if ca else "", ca,
            )  # fmt: skip
            with console.status("checking every protocol, directly and through the router"):
                rows = await asyncio.to_thread(check_all, target)
            print_table(console, rows)
            if once:
                await supervisor.close()
                return 0 if all(row.passed for row in rows) else 1
        if not settings.json:
            _print_hints(console, supervisor, cluster)
        return await supervisor.run()


def _serve_quic(values: dict[str, Any], state: Path) -> str:
    """Have HTTP/3 served too, with a certificate made for it; return its authority's file, empty if it is not."""
    given = values["listen_tls"] or values["listen_quic"] or values["tls_cert"]
    if given or any(find_spec(name) is None for name in QUIC_MODULES):
        return ""
    folder = state / "certs"
    make_dev(folder)
    values["listen"] = values["listen"] or (DEFAULT_LISTEN,)
    values["listen_quic"] = ("127.0.0.1:0",)
    values["tls_cert"], values["tls_key"] = (str(folder / "server.pem"),), (str(folder / "server.key"),)
    return str(folder / "ca.pem")


async def _until_ready(supervisor: Supervisor, wanted: int) -> bool:
    """Wait until so many replicas are READY in the table."""
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            while supervisor.ready_replicas() < wanted:  # noqa: ASYNC110 - once, at the start
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


def _print_hints(console: Console, supervisor: Supervisor, cluster: Cluster) -> None:
    address = supervisor.listen[0]
    console.print(f"\n  serving    [bold]{address}[/]   (robot policy: Host {POLICY_HOST})")
    if len(supervisor.listen) > 1:
        console.print(f"  HTTP/3     [bold]{supervisor.listen[-1]}[/]   (with a certificate made for this run)")
    console.print(f"  gRPC       [bold]{urlsplit(address).netloc}[/]   (plaintext; {GRPC_PREFIXES[0].strip('/')})")
    console.print(f"  dashboard  [bold]{supervisor.admin}/[/]   metrics {supervisor.admin}/metrics")
    console.print(
        f"\n  curl {address}/v1/chat/completions -H 'content-type: application/json' \\\n"
        """    -d '{"model":"sim","stream":true,"messages":[{"role":"user","content":"hello"}]}'\n"""
        f"\n  export ROUTER_STORE={cluster.store}\n"
        "  router replica list\n"
        f"  router replica update {CHAT_ENDPOINT} {CHAT_ENDPOINT}-0 --state DRAINING\n"
        "\n  Ctrl-C ends it.",
        markup=False, highlight=False,
    )  # fmt: skip
