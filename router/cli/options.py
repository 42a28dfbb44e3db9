"""The flags of the daemon, once: name, type, help. Environment twin and file key follow from the name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from router.config.settings import Settings
from router.config.static import ConfigError, read_file
from router.forwarded import MAX_HOPS
from router.routing.spec import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULTS: dict[str, Any] = msgspec.to_builtins(Settings())
_SECONDS = click.FloatRange(min=0.0, max=7 * 86_400.0)
_POSITIVE = click.FloatRange(min=0.0, max=7 * 86_400.0, min_open=True)
_COUNT = click.IntRange(min=0)

_PER_ADDRESS = (
    "Of one client at one worker (IPv6: its /64). Behind a proxy without PROXY header the client is the proxy, "
    "whatever --trusted-hops says; Unix sockets are exempt. 0: no limit."
)

_TELEMETRY = (
    "udp://HOST:PORT or unix:PATH to which robots' telemetry goes, unless a sidecar takes it: a datagram each, "
    "a msgpack map of session, authority, sequence, received_unix_us, payload."
)

# (flag, type, help); a list as default makes the flag repeatable, a bool makes it a switch.
_FLAGS: list[tuple[str, Any, str]] = [
    ("listen", str, "HOST:PORT or unix:PATH; repeatable. [default: 127.0.0.1:8080, unless another is given]"),
    ("listen-tls", str, "HOST:PORT to serve on over TLS; repeatable."),
    ("listen-quic", str, "HOST:PORT (UDP) to serve HTTP/3 on, with the same certificates, and STUN; repeatable."),
    ("may-attach", str, "NAME=TOKEN of a replica that may attach to --listen-quic; repeatable."),
    ("quic-portal", str, "HOST[/PATH] that clients of the quic-portal package get on --listen-quic."),
    ("robot-telemetry", str, _TELEMETRY),
    ("tls-cert", str, "Certificate with its chain, in PEM; repeatable: the name a client asks for decides."),
    ("tls-key", str, "Its key; as many as --tls-cert, in the same order."),
    ("tls-client-ca", str, "Authorities of clients, in PEM: who shows no certificate of theirs is not served."),
    ("tls-min-version", click.Choice(["1.2", "1.3"]), "Oldest TLS spoken with clients."),
    ("unix-mode", str, "Mode of the socket files of --listen, octal."),
    ("proxy-protocol", bool, "Every connection must begin with a PROXY header, version 1 or 2."),
    ("proxy-protocol-from", str, "Network whose proxies may send it; repeatable. [default: loopback]"),
    ("trusted-hops", click.IntRange(0, MAX_HOPS), "Proxies before this one whose x-forwarded-* are believed."),
    ("replica", str, "Replica as http://HOST:PORT; repeatable. One endpoint, any host."),
    ("store", str, "Where the table comes from: embedded, spanner://P/I/D, or emulator|omni|relay://HOST:PORT."),
    ("state-dir", str, "Directory of the table's checkpoint and the embedded store."),
    ("store-start-timeout-s", _SECONDS, "Without a checkpoint, how long to wait for the store; 0: for ever."),
    ("shrink-guard", click.FloatRange(0.0, 1.0), "A change that takes out more ready replicas is held; 0: none."),
    ("reaper", bool, "Take out replicas of nodes whose lease ran out; one router of a store does at a time."),
    ("region", str, "Region this router is in: its replicas come first."),
    ("demand-store", str, "Where demand is published, if --store is a relay. [default: --store]"),
    ("workers", click.IntRange(1, 256), "Processes that relay, sharing the port by SO_REUSEPORT."),
    ("admin", str, "HOST:PORT, unix:PATH or `none` for health, metrics and the dashboard."),
    ("admin-token", str, "Bearer token of the admin listener; needed beyond loopback."),
    ("auth-token", str, "Token clients must send as Bearer or x-router-key; repeatable."),
    ("unauthenticated", bool, "Listen beyond loopback without a token: something in front checks."),
    ("policy", click.Choice(get_args(Policy)), "How a replica is chosen."),
    ("engine", click.Choice(["any", "sglang"]), "Whose manners to mend: see the README."),
    ("health", click.Choice(["none", "tcp", "http", "grpc"]), "Active checks of the replicas."),
    ("health-path", str, "Path of http checks; /health is asked where it answers 404."),
    ("health-interval-s", _POSITIVE, "Time between two checks of a replica."),
    ("connect-timeout-s", _POSITIVE, "For a connection to a replica."),
    ("first-byte-timeout-s", _SECONDS, "For a response to begin; 0: no limit, long prefills are normal."),
    ("request-timeout-s", _SECONDS, "For a whole request; 0: no limit."),
    ("idle-timeout-s", _POSITIVE, "Nothing moves on a request or tunnel."),
    ("head-timeout-s", _POSITIVE, "For a request head to arrive, from its first byte."),
    ("keep-alive-s", _POSITIVE, "An idle client connection is kept this long."),
    ("stall-timeout-s", _POSITIVE, "A client does not take what waits for it down to the low mark."),
    ("max-body-bytes", _COUNT, "Largest request body; 0: no limit."),
    ("max-concurrency", _COUNT, "Requests in flight on one replica; 0: no limit."),
    ("upstream-ca", str, "Authorities of https replicas, in PEM; the system's if not given."),
    ("upstream-cert", str, "Certificate shown to https replicas, in PEM."),
    ("upstream-key", str, "Its key."),
    ("upstream-server-name", str, "Name that https replicas must have, instead of their host."),
    ("upstream-insecure", bool, "Take any certificate of https replicas: for trying out."),
    ("max-connections", click.IntRange(min=1), "Client connections of one worker."),
    ("max-connections-per-address", _COUNT, _PER_ADDRESS),
    ("lag-limit-ms", click.FloatRange(0.0, 60_000.0), "A worker whose loop is later sheds requests; 0: none."),
    ("memory-limit-mb", _COUNT, "Of one worker: from 90 % on it refuses a share, at 100 % connections; 0: none."),
    ("stuck-worker-s", _SECONDS, "A worker whose event loop stands still so long is replaced; 0: never."),
    ("access-log", str, "File for one JSON line per request; `-` for stdout."),
    ("access-log-sample", click.FloatRange(0.0, 1.0), "Share of requests logged; failures always are."),
    ("log-level", click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), "Of the process log on stderr."),
    ("drain-settle-s", _SECONDS, "After SIGTERM, time in which load balancers learn that it is not ready."),
    ("drain-deadline-s", _SECONDS, "After that, time in which requests may finish before they are cut."),
    ("upgrade-timeout-s", _POSITIVE, "After SIGQUIT, time for the new process to be ready, else the old goes on."),
    ("pid-file", str, "File for the number of the process that serves; an upgrade writes the new one."),
    ("json", bool, "Print one JSON line on stdout once ready: its addresses."),
]


def env_name(flag: str) -> str:
    """Return the environment twin of a flag."""
    return "ROUTER_" + flag.replace("-", "_").upper()


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every flag of the daemon to a command; values reach it as keyword arguments."""
    for flag, kind, text in reversed(_FLAGS):
        default = _DEFAULTS[flag.replace("-", "_")]
        shared: dict[str, Any] = {
            "help": text, "envvar": env_name(flag), "show_envvar": True,
            "show_default": default not in ("", []), "default": default,
        }  # fmt: skip
        if kind is bool:
            option = click.option(f"--{flag}/--no-{flag}", **shared)
        else:
            option = click.option(f"--{flag}", type=kind, multiple=isinstance(default, list), **shared)
        command = option(command)
    return click.option(
        "--config", default="", is_eager=True, callback=_load_file, envvar="ROUTER_CONFIG", show_envvar=True,
        metavar="FILE", help="TOML file: [router] with these flags as keys, and [[endpoint]] tables.",
    )(command)  # fmt: skip


def _load_file(context: click.Context, _option: click.Parameter, path: str) -> str:
    """Make the file's [router] table the defaults of this command."""
    if not path:
        return path
    try:
        values = read_file(path).router
    except ConfigError as refusal:
        raise click.UsageError(str(refusal), context) from None
    known = {flag.replace("-", "_") for flag, _, _ in _FLAGS}
    for key in values:
        if key.replace("-", "_") not in known:
            raise click.UsageError(f"{path}: router.{key}: there is no such setting", context)
    context.default_map = {key.replace("-", "_"): value for key, value in values.items()}
    return path


def make_settings(values: dict[str, Any]) -> Settings:
    """Build and check the settings of a command's arguments; ends with exit code 2 if they cannot be used."""
    try:
        settings = msgspec.convert(
            {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}, Settings
        )
        settings.check()
        settings.server_tls()
        if not settings.store:
            settings.table(1)
    except (ConfigError, msgspec.ValidationError) as refusal:
        raise click.UsageError(str(refusal)) from None
    return settings
