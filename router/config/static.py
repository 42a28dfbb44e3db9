"""The static table: replicas named on the command line, or endpoints in a TOML file.

    [[endpoint]]
    name = "llama"
    hosts = ["llama.example.com"]        # default: any host
    path_prefixes = ["/v1"]              # default: every path
    policy = "p2c"                       # p2c | round_robin | random | least_inflight
    [endpoint.timeouts]
    first_byte_s = 30
    [[endpoint.replica]]
    address = "http://127.0.0.1:30000"
    weight = 2
    region = "eu"
    [[region]]                           # which the router is in, and others: see --region
    name = "eu"
    failover = ["us"]

Every key of `routing.spec` may stand there. A file that does not parse, or says something impossible, is
refused whole with the place named; the caller keeps what it had.
"""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from router.routing.load import split_address
from router.routing.spec import (
    EndpointSpec,
    EnvironmentName,
    HealthSpec,
    LaneSpec,
    PoolSettings,
    RegionName,
    RegionSpec,
    ReplicaSpec,
    RouteSpec,
    State,
    TableSpec,
    Weight,
)
from router.transport.certificates import TlsFileError
from router.transport.tls import check_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_HOST = re.compile(r"\*|\*\.[a-z0-9._-]+|[a-z0-9._-]+(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?")


class ConfigError(ValueError):
    """Settings or a file that cannot be used; the text names the field and says what it should be."""


class ReplicaEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One `[[endpoint.replica]]`. The id is made of the address when it is left out."""

    address: str
    id: str = ""
    weight: Weight = 1.0
    state: State = "READY"
    region: RegionName = ""
    lanes: LaneSpec | None = None


class EndpointEntry(PoolSettings, frozen=True, forbid_unknown_fields=True):
    """One `[[endpoint]]`."""

    name: str
    hosts: tuple[str, ...] = ("*",)
    path_prefixes: tuple[str, ...] = ("/",)
    health: HealthSpec = HealthSpec()
    environment: EnvironmentName = "main"
    replica: tuple[ReplicaEntry, ...] = ()


class File(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file: settings by the names of their flags, endpoints, regions, hosts that route by model."""

    router: dict[str, Any] = {}
    endpoint: list[EndpointEntry] = []
    region: list[RegionSpec] = []
    model_hosts: list[str] = []


def read_file(path: str) -> File:
    """Read and check a TOML file; `ConfigError` names the file and the place in it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{path}: cannot be read: {failure}") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise ConfigError(f"{path}: not TOML: {failure}") from None
    _refuse_nan(raw, path)
    try:
        return msgspec.convert(raw, File)
    except msgspec.ValidationError as failure:
        complaint, _, place = str(failure).partition(" - at `$")
        raise ConfigError(f"{path}: {place.strip('.`') or 'file'}: {complaint}") from None


def _refuse_nan(value: object, place: str) -> None:
    """Refuse what TOML allows and no bound catches: nan is neither below nor above any limit."""
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{place}: nan is not a number to use")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_nan(inner, f"{place}: {key}" if ":" not in place else f"{place}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_nan(inner, f"{place}[{i}]")


def build_table(file: File, version: int, source: str) -> TableSpec:
    """Turn a file into a table; `ConfigError` names the field, with `source` before it."""
    names: set[str] = set()
    endpoints: list[EndpointSpec] = []
    routes: list[RouteSpec] = []
    claimed: dict[tuple[str, str], str] = {}
    for i, entry in enumerate(file.endpoint):
        place = f"{source}: endpoint[{i}]"
        _at(f"{place}.name", check_name, entry.name)
        if entry.name in names:
            raise ConfigError(f"{place}.name: {entry.name!r} stands twice")
        names.add(entry.name)
        try:
            check_files(entry.tls)
        except TlsFileError as failure:
            raise ConfigError(f"{place}.tls.{failure.field}: {failure}") from None
        endpoints.append(
            EndpointSpec(
                name=entry.name,
                replicas=_replicas(entry.replica, place),
                health=entry.health,
                environment=entry.environment,
                **entry.pool_settings(),
            )
        )
        for route in _routes(entry, place):
            other = claimed.setdefault((route.host, route.path_prefix), entry.name)
            if other != entry.name:
                raise ConfigError(f"{place}: host {route.host!r} with {route.path_prefix!r} belongs to {other!r}")
            routes.append(route)
    for host in file.model_hosts:
        _at(f"{source}: model_hosts", check_host, host)
        if (host.lower(), "/") in claimed:
            raise ConfigError(f"{source}: model_hosts: {host!r} belongs to endpoint {claimed[host.lower(), '/']!r}")
        routes.append(RouteSpec(host.lower(), "/", "", by_model=True))
    return TableSpec(version=version, endpoints=tuple(endpoints), routes=tuple(routes), regions=tuple(file.region))


def _replicas(entries: Sequence[ReplicaEntry], place: str) -> tuple[ReplicaSpec, ...]:
    replicas: list[ReplicaSpec] = []
    ids: set[str] = set()
    for j, entry in enumerate(entries):
        try:
            _, host, port = split_address(entry.address)
        except ValueError as failure:
            raise ConfigError(f"{place}.replica[{j}].address: {failure}") from None
        replica_id = entry.id or f"{host}:{port}"
        _at(f"{place}.replica[{j}].id", check_replica_id, replica_id)
        if replica_id in ids:
            raise ConfigError(f"{place}.replica[{j}].id: {replica_id!r} stands twice")
        ids.add(replica_id)
        replicas.append(
            ReplicaSpec(
                replica_id, entry.address, entry.weight, entry.state, region=entry.region, lanes=entry.lanes
            )
        )
    return tuple(replicas)


def _routes(entry: EndpointEntry, place: str) -> list[RouteSpec]:
    routes: list[RouteSpec] = []
    for host in entry.hosts:
        _at(f"{place}.hosts", check_host, host)
        for prefix in entry.path_prefixes:
            _at(f"{place}.path_prefixes", check_prefix, prefix)
            routes.append(RouteSpec(host.lower(), prefix, entry.name))
    return routes


def check_name(name: str) -> None:
    """Refuse what cannot name an endpoint."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not of letters, digits and ._:/-, up to 128")


def check_replica_id(replica_id: str) -> None:
    """Refuse what cannot name a replica; it may be HOST:PORT with brackets."""
    if not _NAME.fullmatch(replica_id.replace("[", "").replace("]", "")):
        raise ConfigError(f"{replica_id!r} is not of letters, digits and ._:/-")


def check_host(host: str) -> None:
    """Refuse what cannot be the host of a route."""
    if not _HOST.fullmatch(host.lower()):
        raise ConfigError(f"{host!r} is not host[:port], `*` or `*.domain`")


def check_prefix(prefix: str) -> None:
    """Refuse what cannot be the path prefix of a route."""
    if not prefix.startswith("/") or not prefix.isascii() or not prefix.isprintable() or " " in prefix:
        raise ConfigError(f"{prefix!r} is not a path beginning with /")


def _at(place: str, check: Callable[[str], None], value: str) -> None:
    try:
        check(value)
    except ConfigError as refusal:
        raise ConfigError(f"{place}: {refusal}") from None
