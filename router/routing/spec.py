"""The table as plain data: what the supervisor keeps, and the patches that every worker receives.

Structs of msgspec, frozen, with no behaviour: `routing.stage` makes the live table of them. The same
names stand in the TOML file and in the store's JSON columns; durations are seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Policy = Literal["p2c", "round_robin", "random", "least_inflight", "prefix_affinity", "engine_load"]
State = Literal["STARTING", "READY", "DRAINING", "DOWN"]
Engine = Literal["any", "sglang"]
"""Whose manners to mend; see `engine_manners`."""
HealthKind = Literal["none", "tcp", "http", "grpc"]
HttpPath = Annotated[str, msgspec.Meta(pattern=r"\A/[!-~]*\Z", max_length=1_024)]
HttpPathOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(/[!-~]*)?\Z", max_length=1_024)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=7 * 86_400.0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0.0, le=7 * 86_400.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
FilePath = Annotated[str, msgspec.Meta(max_length=4_096, pattern=r"\A[^\0]*\Z")]
ServerName = Annotated[str, msgspec.Meta(max_length=253, pattern=r"\A[A-Za-z0-9._:-]*\Z")]
PositiveCount = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Weight = Annotated[float, msgspec.Meta(ge=0.001, le=1_000.0)]
RegionState = Literal["READY", "DRAINING", "DOWN"]
RegionName = Annotated[str, msgspec.Meta(max_length=64, pattern=r"\A[A-Za-z0-9._:/-]*\Z")]
EnvironmentName = Annotated[str, msgspec.Meta(max_length=64, pattern=r"\A[A-Za-z0-9._:/-]+\Z")]
ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]


class HealthSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Active checks. `tcp` asks whether the port accepts; `http` for a 2xx on `path`; `grpc` grpc.health.v1.

    On 404 `fallback_path` is asked instead: SGLang's Rust front end has no /ready.
    """

    kind: HealthKind = "tcp"
    path: HttpPath = "/ready"
    fallback_path: HttpPathOrNone = "/health"
    interval_s: PositiveSeconds = 1.0
    timeout_s: PositiveSeconds = 2.0
    unhealthy_after: PositiveCount = 3
    healthy_after: PositiveCount = 1


class OutlierSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Passive ejection after consecutive failures, for growing periods."""

    consecutive_failures: Count = 5  # 0 turns it off
    base_ejection_s: PositiveSeconds = 5.0
    max_ejection_s: PositiveSeconds = 300.0
    max_ejected_share: Share = 0.5
    panic_threshold: Share = 0.5


class TimeoutSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of time; 0 means none. A long prefill is normal, so the first byte has none by default."""

    connect_s: PositiveSeconds = 1.0
    first_byte_s: Seconds = 0.0
    total_s: Seconds = 0.0
    idle_s: PositiveSeconds = 1800.0


class LimitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of size and number; 0 means none."""

    max_body_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    max_concurrency: Count = 0  # requests in flight on one replica …
    endpoint_concurrency: Count = 0  # … and on all of them, from the workers of one host


class TlsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `https` replicas are spoken to. Paths are of files on each router's own host; empty: none.

    `ca` takes the place of the system's authorities; `cert` and `key` are shown to a replica that asks who is
    there; `server_name` is asked for and checked instead of the replica's host; without `verify` any certificate
    is taken, so that anybody on the way may read and change everything.
    """

    ca: FilePath = ""
    cert: FilePath = ""
    key: FilePath = ""
    server_name: ServerName = ""
    verify: bool = True


class ConnectionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """HTTP/2 connections of one worker to one replica; HTTP/1.1 opens one a request and keeps those that are idle.

    `floor` are opened ahead of any request and again when lost; a request that finds `ceiling` of them full is
    refused. After `ping_s` without a byte on a connection in use a PING asks whether the replica lives; 0: never.
    gRPC servers take one in five minutes and end the connection of who asks more often.
    """

    floor: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    ceiling: Annotated[int, msgspec.Meta(ge=1, le=1_024)] = 8
    ping_s: Seconds = 300.0

    def __post_init__(self) -> None:
        """Refuse a floor that there is no room for."""
        if self.floor > self.ceiling:
            raise ValueError("floor is above ceiling")


class HoldSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may wait for a cold start instead of being refused at once, how long, and how many in one worker.

    By default nobody. `tunnels` alone are for stock robot clients, which die on any answer to their handshake but
    101.
    """

    wait_s: Annotated[float, msgspec.Meta(ge=0.0, le=3_600.0)] = 0.0
    max_waiting: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    only_tunnels: bool = True


class AffinitySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a routing key may load its replica: `load_factor` times the mean, and never less than `floor`."""

    load_factor: Annotated[float, msgspec.Meta(ge=1.0, le=1_000.0)] = 1.25
    floor: PositiveCount = 4


class StickySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sticky sessions: with this every request on the endpoint belongs to one, which stays on its replica.

    One ends after `idle_timeout_s` without a request under way; a client may ask for another time, up to
    `max_idle_timeout_s`. A start that finds no room waits for `start_wait_s`, `max_waiting` of them in one worker.
    """

    idle_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600
    max_idle_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 86_400
    max_per_replica: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    start_wait_s: Annotated[float, msgspec.Meta(ge=0.0, le=3_600.0)] = 60.0
    max_waiting: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256

    def __post_init__(self) -> None:
        """Refuse a default that nobody may ask for."""
        if self.max_idle_timeout_s < self.idle_timeout_s:
            raise ValueError("max_idle_timeout_s is below idle_timeout_s")


class ScalingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas an autoscaler keeps (`router autoscale`; routers only pass it on).

    Wanted are requests in flight / `target_concurrency`, rounded up, and `buffer_replicas` more while there is any
    demand, within `min_replicas` and `max_replicas`. Nothing changes within `tolerance` of what there is.
    Demand must have lasted for `scaleup_window_s`, and have been absent for `scaledown_window_s`.
    """

    target_concurrency: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
    min_replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    max_replicas: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    buffer_replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    tolerance: Share = 0.1
    scaleup_window_s: Annotated[float, msgspec.Meta(ge=0.0, le=3_600.0)] = 0.0
    scaledown_window_s: Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)] = 300.0

    def __post_init__(self) -> None:
        """Refuse bounds between which there is nothing."""
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")


class LaneSpec(msgspec.Struct, frozen=True):
    """Where a sidecar takes robots by lanes: a UDP port of the replica's host; its authority's certificate, PEM."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    certificate: Annotated[str, msgspec.Meta(max_length=8_192)]


class ReplicaSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One inference server. `slot` is its cell in the load board that the workers share.

    Without a `region` it is near to every router. `generation` rises with each process that takes the name over.
    """

    id: str
    address: str
    weight: Weight = 1.0
    state: State = "READY"
    slot: int = 0
    region: RegionName = ""
    generation: int = 0
    lanes: LaneSpec | None = None


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be said of an endpoint, in the file and in the store alike.

    `slow_start_s` ramps a new replica up from a tenth of its weight. `failover` are the regions to spill over to,
    in order; None: as the router's own region says, else to any; empty: nowhere. `models` are the names under which
    a shared host knows it, beside its own.
    """

    policy: Policy = "p2c"
    slow_start_s: Seconds = 0.0
    retries: Count = 2
    outlier: OutlierSpec = OutlierSpec()
    timeouts: TimeoutSpec = TimeoutSpec()
    limits: LimitSpec = LimitSpec()
    engine: Engine = "any"
    tls: TlsSpec = TlsSpec()
    connections: ConnectionSpec = ConnectionSpec()
    failover: tuple[RegionName, ...] | None = None
    affinity: AffinitySpec = AffinitySpec()
    hold: HoldSpec = HoldSpec()
    scaling: ScalingSpec | None = None
    sessions: StickySpec | None = None
    models: Annotated[tuple[ModelName, ...], msgspec.Meta(max_length=1_024)] = ()

    def pool_settings(self) -> dict[str, Any]:
        """Return these fields by name, whatever else a struct made of them has."""
        return {name: getattr(self, name) for name in PoolSettings.__struct_fields__}


class EndpointSpec(PoolSettings, frozen=True, forbid_unknown_fields=True):
    """A named pool with a policy, which belongs to one environment."""

    name: str
    replicas: tuple[ReplicaSpec, ...] = ()
    health: HealthSpec = HealthSpec()
    environment: EnvironmentName = "main"
    needs_token: bool = False


class TokenSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's credential, of which only the hash is known.

    `digest` is SHA-256 of `KEY.SECRET`. `scopes`: `endpoint:NAME` for each endpoint it is limited to, none for all
    of its environment; `pin`: it may name the replica; `attach:NAME`: a replica may attach with it as that, and it
    is for nothing else that it does not name. `not_after_us`: Unix time, 0 for never. `rate_per_s`: requests, 0 for
    no limit, of which `burst` may come at once; `slot` is its cell in the rate board.
    """

    digest: bytes
    key: str
    environment: EnvironmentName = "main"
    scopes: tuple[str, ...] = ()
    not_after_us: int = 0
    rate_per_s: float = 0.0
    burst: int = 1
    slot: int = -1


class RegionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A region: whether it takes requests, its weight beside others of one tier, where it spills over to."""

    name: str
    state: RegionState = "READY"
    weight: Annotated[float, msgspec.Meta(ge=0.0, le=1_000.0)] = 1.0
    failover: tuple[RegionName, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a weight beside which none of a replica's is a number."""
        if 0.0 < self.weight < 0.001:
            raise ValueError("weight is neither 0 nor at least 0.001")


class SessionEntry(msgspec.Struct, frozen=True, array_like=True):
    """An open session, and the replica it stays on."""

    id: str
    endpoint: str
    replica: str
    idle_s: int


class DialSpec(msgspec.Struct, frozen=True):
    """What the pool must know of an endpoint to reach its replicas."""

    connect_s: float
    connections: ConnectionSpec
    tls: TlsSpec


class RouteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Host and path prefix to an endpoint. Host `*` is any, `*.example.com` any below it.

    With `by_model` the OpenAI `model` of the body names the endpoint, within the token's environment. Within a host
    the higher `priority` comes first, then the longer prefix.
    """

    host: str
    path_prefix: str
    endpoint: str  # empty with `by_model`
    priority: int = 0
    by_model: bool = False


class TableSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of everything. Sessions and their keys are None where it says nothing of them."""

    version: int
    endpoints: tuple[EndpointSpec, ...] = ()
    routes: tuple[RouteSpec, ...] = ()
    tokens: tuple[TokenSpec, ...] = ()
    regions: tuple[RegionSpec, ...] = ()
    sessions: tuple[SessionEntry, ...] | None = None
    session_keys: tuple[bytes, ...] | None = None


class EndpointPatch(msgspec.Struct, frozen=True):
    """What changed of one endpoint. `spec`, without replicas, is there for a new or a changed one.

    `slot` is the endpoint's own cell in the load board.
    """

    name: str
    spec: EndpointSpec | None = None
    upsert: tuple[ReplicaSpec, ...] = ()
    remove: tuple[str, ...] = ()
    slot: int = -1


class TablePatch(msgspec.Struct, frozen=True):
    """The step from one version of the table to the next; nothing it does not name changes.

    `routes` and `regions`, where there, replace all of them; `tokens` are those that are new or changed, `revoked`
    the digests of those that left, `sessions` and `ended` likewise; `session_keys` replace all. With `more` the
    patch is a part: it is kept and comes into force, whole, with the next one that has not. `committed_us` is when
    the store committed it, in microseconds of the Unix epoch, 0 when that is not known.
    """

    version: int
    endpoints: tuple[EndpointPatch, ...] = ()
    gone: tuple[str, ...] = ()
    routes: tuple[RouteSpec, ...] | None = None
    more: bool = False
    committed_us: int = 0
    tokens: tuple[TokenSpec, ...] = ()
    revoked: tuple[bytes, ...] = ()
    regions: tuple[RegionSpec, ...] | None = None
    sessions: tuple[SessionEntry, ...] = ()
    ended: tuple[str, ...] = ()
    session_keys: tuple[bytes, ...] | None = None
