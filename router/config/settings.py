"""Settings of the daemon: one flag, one environment variable, one key in the file for each.

The command line reads them (flag > environment > file > default); this module checks what can only be
checked together and turns them into a table. Durations are seconds, sizes bytes, 0 means no limit.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from pathlib import Path
from typing import Any, Literal

import msgspec

from router.config.static import ConfigError, EndpointEntry, ReplicaEntry, build_table, read_file
from router.config.target import parse_target
from router.routing.spec import Engine, HealthSpec, HttpPath, LimitSpec, Policy, TableSpec, TimeoutSpec
from router.transport.codec.h1.limits import ServerLimits
from router.transport.sockets import keep_alive

DEFAULT_ENDPOINT = "default"
SECRETS = frozenset(("admin_token", "auth_token"))


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What `router serve` was told."""

    listen: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1:8080"])
    replica: list[str] = []
    config: str = ""
    store: str = ""
    state_dir: str = ""
    store_start_timeout_s: float = 30.0
    shrink_guard: float = 0.5
    reaper: bool = True
    workers: int = 1
    admin: str = "127.0.0.1:9901"
    admin_token: str = ""
    auth_token: list[str] = []
    unauthenticated: bool = False
    policy: Policy = "p2c"
    engine: Engine = "any"
    health: Literal["none", "tcp", "http"] = "tcp"
    health_path: str = "/ready"
    health_interval_s: float = 1.0
    connect_timeout_s: float = 1.0
    first_byte_timeout_s: float = 0.0
    request_timeout_s: float = 0.0
    idle_timeout_s: float = 1800.0
    head_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    stall_timeout_s: float = 60.0
    max_body_bytes: int = 0
    max_concurrency: int = 0
    max_connections: int = 100_000
    access_log: str = ""
    access_log_sample: float = 1.0
    log_level: str = "INFO"
    drain_settle_s: float = 5.0
    drain_deadline_s: float = 30.0
    json: bool = False

    def public(self) -> dict[str, Any]:
        """Return everything, with secrets masked."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        for name in SECRETS:
            if shown[name]:
                shown[name] = "***"
        return shown

    def server_limits(self) -> ServerLimits:
        """Return the bounds of a client connection."""
        return ServerLimits(
            head_s=self.head_timeout_s,
            keep_alive_s=self.keep_alive_s,
            idle_s=self.idle_timeout_s,
            stall_s=self.stall_timeout_s,
        )

    def check(self) -> None:
        """Refuse what cannot be served; `ConfigError` names the flag."""
        for name, value in self.public().items():
            if isinstance(value, float) and math.isnan(value):
                raise ConfigError(f"--{name.replace('_', '-')}: nan is not a number to use")
        if any(not token.strip() for token in self.auth_token):
            raise ConfigError("--auth-token: a token is empty; is the variable set?")
        try:
            msgspec.convert(self.health_path, HttpPath)
        except msgspec.ValidationError:
            raise ConfigError(f"--health-path: {self.health_path!r} is not a path beginning with /") from None
        if not self.listen:
            raise ConfigError("--listen: at least one address is needed")
        for address in self.listen:
            host, _ = parse_listen(address, "--listen")
            if not (self.auth_token or self.unauthenticated or is_loopback(host)):
                raise ConfigError(
                    f"--listen {address}: an open router listens on loopback only; "
                    "give --auth-token, or --unauthenticated if something in front of it checks"
                )
        if self.admin != "none" and not self.admin.startswith("unix:"):
            host, _ = parse_listen(self.admin, "--admin")
            if not (self.admin_token or is_loopback(host)):
                raise ConfigError(f"--admin {self.admin}: needs --admin-token to listen beyond loopback")
        self._check_access_log()
        if self.store:
            parse_target(self.store, self.state_dir)
            if self.replica or (self.config and read_file(self.config).endpoint):
                raise ConfigError("--store: the table comes from there; name no replicas or endpoints beside it")
            return
        if self.replica and self.config and read_file(self.config).endpoint:
            raise ConfigError(f"--replica: {self.config} has endpoints already; name replicas in one place")
        if not self.replica and not (self.config and read_file(self.config).endpoint):
            raise ConfigError(
                "--replica: no replica is named; give --replica URL, --config FILE with endpoints, or --store"
            )

    def _check_access_log(self) -> None:
        if self.access_log in ("", "-"):
            return
        try:
            with Path(self.access_log).open("ab"):
                pass
        except OSError as failure:
            raise ConfigError(f"--access-log {self.access_log}: {failure.strerror}") from None

    def entries(self) -> list[EndpointEntry]:
        """Return the endpoints of the file, or the one that --replica makes."""
        if not self.replica:
            return read_file(self.config).endpoint
        return [
            EndpointEntry(
                name=DEFAULT_ENDPOINT,
                policy=self.policy,
                engine=self.engine,
                health=HealthSpec(
                    kind=self.health, path=self.health_path, interval_s=self.health_interval_s
                ),
                timeouts=TimeoutSpec(
                    connect_s=self.connect_timeout_s,
                    first_byte_s=self.first_byte_timeout_s,
                    total_s=self.request_timeout_s,
                    idle_s=self.idle_timeout_s,
                ),
                limits=LimitSpec(max_body_bytes=self.max_body_bytes, max_concurrency=self.max_concurrency),
                replica=[ReplicaEntry(address=address) for address in self.replica],
            )
        ]

    def table(self, version: int) -> TableSpec:
        """Build the static table, without slots."""
        return build_table(self.entries(), version, self.config if not self.replica else "--replica")


def parse_listen(address: str, flag: str) -> tuple[str, int]:
    """Split HOST:PORT; IPv6 in brackets, port 0 for any free one."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"{flag}: {address!r} is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Return a bound, not yet listening TCP socket; OSError says why not."""
    family, kind, proto, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_alive(sock)  # accepted connections inherit it
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock
