"""The table as plain data: what the supervisor builds and every worker receives.

Structs of msgspec, frozen, with no behaviour: `routing.table` makes the live table of them. The same
names stand in the TOML file; durations are seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Policy = Literal["p2c", "round_robin", "random", "least_inflight"]
State = Literal["READY", "DRAINING", "DOWN"]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=7 * 86_400.0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0.0, le=7 * 86_400.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Weight = Annotated[float, msgspec.Meta(ge=0.001, le=1_000.0)]


class HealthSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Active checks. `tcp` asks whether the port accepts; `http` for a 2xx on `path`.

    On 404 `fallback_path` is asked instead: SGLang's Rust front end has no /ready.
    """

    kind: Literal["none", "tcp", "http"] = "tcp"
    path: str = "/ready"
    fallback_path: str = "/health"
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

    max_body_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_concurrency: Count = 0  # requests in flight on one replica


class ReplicaSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One inference server. `slot` is its cell in the load board that the workers share."""

    id: str
    address: str
    weight: Weight = 1.0
    state: State = "READY"
    slot: int = 0


class EndpointSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named pool with a policy. `slow_start_s` ramps a new replica up from a tenth of its weight."""

    name: str
    replicas: tuple[ReplicaSpec, ...] = ()
    policy: Policy = "p2c"
    slow_start_s: Seconds = 0.0
    retries: Count = 2
    health: HealthSpec = HealthSpec()
    outlier: OutlierSpec = OutlierSpec()
    timeouts: TimeoutSpec = TimeoutSpec()
    limits: LimitSpec = LimitSpec()


class RouteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Host and path prefix to an endpoint. Host `*` is any, `*.example.com` any below it."""

    host: str
    path_prefix: str
    endpoint: str


class TableSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of everything."""

    version: int
    endpoints: tuple[EndpointSpec, ...] = ()
    routes: tuple[RouteSpec, ...] = ()
