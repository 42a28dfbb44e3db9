"""`router edge`: an Envoy in front of this router, configured and run."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from router.cli.serve import configure_logging
from router.config.addresses import parse_listen
from router.config.static import ConfigError
from router.edge.envoy.bootstrap import EdgeSpec, bootstrap
from router.edge.envoy.run import Envoy, EnvoyError, exit_code
from router.transport.certificates import TlsFileError
from router.transport.server_tls import read_server_tls


@click.command()
@click.option("--listen", multiple=True, metavar="HOST:PORT", default=["127.0.0.1:8443"], show_default=True,
              envvar="ROUTER_EDGE_LISTEN", help="Where clients come; repeatable; port 0 takes any free one.")
@click.option("--router", "routers", multiple=True, metavar="HOST:PORT", default=["127.0.0.1:8080"],
              show_default=True, envvar="ROUTER_EDGE_ROUTER",
              help="Where this router listens, without TLS; repeatable.")
@click.option("--router-admin", metavar="HOST:PORT", envvar="ROUTER_EDGE_ROUTER_ADMIN",
              help="Its admin listener: a router that drains is left alone at once. Else its port is tried.")
@click.option("--tls-cert", multiple=True, type=click.Path(dir_okay=False), envvar="ROUTER_EDGE_TLS_CERT",
              help="Certificate with its chain, in PEM; repeatable: the name a client asks for decides.")
@click.option("--tls-key", multiple=True, type=click.Path(dir_okay=False), envvar="ROUTER_EDGE_TLS_KEY",
              help="Its key; as many as --tls-cert, in the same order.")
@click.option("--tls-client-ca", default="", envvar="ROUTER_EDGE_TLS_CLIENT_CA",
              help="Authorities of clients, in PEM: who shows no certificate of theirs is not served.")
@click.option("--http3/--no-http3", default=None, envvar="ROUTER_EDGE_HTTP3",
              help="HTTP/3 on the same port number over UDP, offered by alt-svc. [default: with TLS]")
@click.option("--protocol", type=click.Choice(["h2", "h1"]), default="h2", show_default=True,
              envvar="ROUTER_EDGE_PROTOCOL", help="Spoken to the router; gRPC and WebSocket over HTTP/2 need h2.")
@click.option("--send-proxy", type=click.Choice(["none", "v1", "v2"]), default="none", show_default=True,
              envvar="ROUTER_EDGE_SEND_PROXY", help="PROXY header to the router (--proxy-protocol there).")
@click.option("--accept-proxy", is_flag=True, envvar="ROUTER_EDGE_ACCEPT_PROXY",
              help="Expect a PROXY header of a load balancer in front.")
@click.option("--trusted-hops", type=click.IntRange(0, 16), default=0, show_default=True,
              envvar="ROUTER_EDGE_TRUSTED_HOPS", help="Proxies in front whose x-forwarded-for is believed.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=1, show_default=True,
              envvar="ROUTER_EDGE_CONCURRENCY", help="Threads of Envoy.")
@click.option("--drain-deadline-s", type=click.FloatRange(0.0, 3_600.0), default=30.0, show_default=True,
              envvar="ROUTER_EDGE_DRAIN_DEADLINE_S", help="For what is under way when SIGTERM comes.")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="WARNING",
              show_default=True, envvar="ROUTER_EDGE_LOG_LEVEL", help="Of Envoy and of this command.")
@click.option("--json", "as_json", is_flag=True, help="Tell where it listens as a line of JSON on stdout.")
@click.option("--print", "print_only", is_flag=True, help="Print Envoy's configuration and run nothing.")
def edge(print_only: bool, **values: Any) -> None:  # fmt: skip
    r"""Run Envoy at the edge: TLS, HTTP/3 and HTTP/2 towards clients, this router behind it.

    \b
    router serve --replica http://127.0.0.1:30000 --trusted-hops 1
    router edge --tls-cert certs/server.pem --tls-key certs/server.key --router-admin 127.0.0.1:9901

    The router must be told to believe it: `--trusted-hops 1`, or `--proxy-protocol` with --send-proxy. SIGTERM
    drains, SIGINT ends at once, SIGHUP hands over the certificates again; changed files are noticed.
    """
    spec = _read(values)
    if print_only:
        click.echo(json.dumps(bootstrap(spec), indent=2))
        return
    configure_logging(values["log_level"])
    sys.exit(asyncio.run(_run(spec, values)))


def _read(values: dict[str, Any]) -> EdgeSpec:
    certs, keys, client_ca = values["tls_cert"], values["tls_key"], values["tls_client_ca"]
    try:
        spec = EdgeSpec(
            listen=tuple(parse_listen(address, "--listen") for address in values["listen"]),
            routers=tuple(parse_listen(address, "--router") for address in values["routers"]),
            router_admin=(
                parse_listen(values["router_admin"], "--router-admin") if values["router_admin"] else None
            ),
            certificates=tuple(zip(certs, keys, strict=False)),
            client_ca=client_ca,
            http3=bool(certs) if values["http3"] is None else values["http3"],
            protocol=values["protocol"],
            send_proxy=values["send_proxy"],
            accept_proxy=values["accept_proxy"],
            trusted_hops=values["trusted_hops"],
        )
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    if len(certs) != len(keys):
        raise click.UsageError("--tls-key: as many are needed as --tls-cert, in the same order")
    if (spec.http3 or client_ca) and not certs:
        raise click.UsageError(f"{'--http3' if spec.http3 else '--tls-client-ca'}: needs --tls-cert and --tls-key")
    if spec.accept_proxy and spec.http3:
        raise click.UsageError("--accept-proxy: a PROXY header stands before TCP alone; give --no-http3 as well")
    if certs:
        try:
            read_server_tls(list(certs), list(keys), client_ca, "1.2")
        except TlsFileError as failure:
            raise click.UsageError(f"--tls-{failure.field}: {failure}") from None
    return spec


async def _run(spec: EdgeSpec, values: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory(prefix="router-edge-") as folder:
        try:
            envoy = Envoy(
                spec, Path(folder), values["concurrency"], values["log_level"], values["drain_deadline_s"]
            )
            await envoy.start()
        except EnvoyError as failure:
            click.echo(f"Error: {failure}", err=True)
            return 1
        return await _serve(envoy, as_json=values["as_json"])


async def _serve(envoy: Envoy, *, as_json: bool) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def tell(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    loop.add_signal_handler(signal.SIGHUP, envoy.reload)
    if as_json:
        click.echo(json.dumps({"event": "ready", "listen": envoy.listen}))
    else:
        click.echo(f"envoy on {', '.join(envoy.listen)}", err=True)
    ended = asyncio.ensure_future(envoy.wait())
    await asyncio.wait([told, ended], return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        click.echo(f"Error: envoy ended by itself with {ended.result()}", err=True)
        return exit_code(ended.result()) or 1
    loop.add_signal_handler(signal.SIGINT, envoy.hurry)
    if told.result() == signal.SIGTERM:
        await envoy.drain()
        return 0
    await envoy.stop()
    return 128 + signal.SIGINT
