"""Settings of the daemon: one flag, one environment variable, one key in the file for each.

The command line reads them (flag > environment > file > default); this module checks what can only be
checked together and turns them into a table. Durations are seconds, sizes bytes, 0 means no limit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from router.config.addresses import is_loopback, parse_listen, unix_path
from router.config.listeners import DEFAULT_LISTEN, check_listeners, read_listener_tls, upstream_tls
from router.config.static import ConfigError, EndpointEntry, File, ReplicaEntry, build_table, read_file
from router.config.target import parse_target
from router.overload import OverloadLimits
from router.routing.spec import (
    Engine,
    HealthKind,
    HealthSpec,
    HttpPath,
    LimitSpec,
    Policy,
    RegionName,
    ServerName,
    TableSpec,
    TimeoutSpec,
)
from router.transport.codec.h1.limits import ServerLimits
from router.transport.server_tls import MinVersion, ServerTls

DEFAULT_ENDPOINT = "default"
SECRETS = frozenset(("admin_token", "auth_token", "may_attach"))


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What `router serve` was told."""

    listen: list[str] = []
    listen_tls: list[str] = []
    listen_quic: list[str] = []
    quic_portal: str = ""
    robot_telemetry: str = ""
    may_attach: list[str] = []
    tls_cert: list[str] = []
    tls_key: list[str] = []
    tls_client_ca: str = ""
    tls_min_version: MinVersion = "1.2"
    unix_mode: str = "600"
    proxy_protocol: bool = False
    proxy_protocol_from: list[str] = []
    trusted_hops: int = 0
    replica: list[str] = []
    config: str = ""
    store: str = ""
    state_dir: str = ""
    store_start_timeout_s: float = 30.0
    shrink_guard: float = 0.5
    reaper: bool = True
    region: str = ""
    demand_store: str = ""
    workers: int = 1
    admin: str = "127.0.0.1:9901"
    admin_token: str = ""
    auth_token: list[str] = []
    unauthenticated: bool = False
    policy: Policy = "p2c"
    engine: Engine = "any"
    health: HealthKind = "tcp"
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
    upstream_ca: str = ""
    upstream_cert: str = ""
    upstream_key: str = ""
    upstream_server_name: ServerName = ""
    upstream_insecure: bool = False
    max_connections: int = 100_000
    max_connections_per_address: int = 0
    lag_limit_ms: float = 200.0
    memory_limit_mb: int = 0
    stuck_worker_s: float = 10.0
    access_log: str = ""
    access_log_sample: float = 1.0
    log_level: str = "INFO"
    drain_settle_s: float = 5.0
    drain_deadline_s: float = 30.0
    upgrade_timeout_s: float = 60.0
    pid_file: str = ""
    json: bool = False

    def public(self) -> dict[str, Any]:
        """Return everything, with secrets masked."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        for name in SECRETS:
            if shown[name]:
                shown[name] = "***"
        return shown

    def addresses(self) -> list[str]:
        """Return what --listen says; its default counts only where nothing else is listened on."""
        return self.listen or ([] if self.listen_tls or self.listen_quic else [DEFAULT_LISTEN])

    def server_tls(self) -> ServerTls | None:
        """Read the files of TLS listeners, None without any; `ConfigError` names flag and file."""
        return read_listener_tls(self)

    def server_limits(self) -> ServerLimits:
        """Return the bounds of a client connection."""
        return ServerLimits(
            head_s=self.head_timeout_s,
            keep_alive_s=self.keep_alive_s,
            idle_s=self.idle_timeout_s,
            stall_s=self.stall_timeout_s,
        )

    def overload_limits(self) -> OverloadLimits:
        """Return what one worker may take on."""
        return OverloadLimits(
            lag_s=self.lag_limit_ms / 1e3,
            memory_bytes=self.memory_limit_mb << 20,
            connections_per_address=self.max_connections_per_address,
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
        try:
            msgspec.convert(self.region, RegionName)
        except msgspec.ValidationError:
            raise ConfigError(f"--region: {self.region!r} is not of letters, digits and ._:/-, up to 64") from None
        check_listeners(self)
        if self.admin != "none" and not unix_path(self.admin, "--admin"):
            host, _ = parse_listen(self.admin, "--admin")
            if not (self.admin_token or is_loopback(host)):
                raise ConfigError(f"--admin {self.admin}: needs --admin-token to listen beyond loopback")
        self._check_access_log()
        if self.demand_store and parse_target(self.demand_store, self.state_dir, "--demand-store").kind == "relay":
            raise ConfigError("--demand-store: a relay takes no writes; name the store that it follows")
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

    def file(self) -> File:
        """Return the file, or what --replica makes of one."""
        tls = upstream_tls(self)
        if not self.replica:
            return read_file(self.config)
        only = EndpointEntry(
            name=DEFAULT_ENDPOINT,
            policy=self.policy,
            engine=self.engine,
            health=HealthSpec(kind=self.health, path=self.health_path, interval_s=self.health_interval_s),
            timeouts=TimeoutSpec(
                connect_s=self.connect_timeout_s,
                first_byte_s=self.first_byte_timeout_s,
                total_s=self.request_timeout_s,
                idle_s=self.idle_timeout_s,
            ),
            limits=LimitSpec(max_body_bytes=self.max_body_bytes, max_concurrency=self.max_concurrency),
            tls=tls,
            replica=tuple(ReplicaEntry(address=address) for address in self.replica),
        )
        return File(endpoint=[only])

    def table(self, version: int) -> TableSpec:
        """Build the static table, without slots."""
        return build_table(self.file(), version, self.config if not self.replica else "--replica")
