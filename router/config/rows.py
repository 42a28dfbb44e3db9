"""What one row of the store means, or why it cannot be used.

Pure: each function takes a row as it was streamed and returns the spec that it stands for. RowError names the
column, and the place in it where it is JSON. Writers ask the same functions, so that what would be put into
quarantine is refused before it is written.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import msgspec

from router.config.static import ConfigError, check_name, check_prefix, check_replica_id
from router.config.timestamps import parse_timestamp
from router.routing.load import split_address
from router.routing.session_token import MIN_KEY_BYTES
from router.routing.spec import (
    EndpointSpec,
    EnvironmentName,
    HealthSpec,
    LaneSpec,
    PoolSettings,
    RegionName,
    RegionSpec,
    RegionState,
    ReplicaSpec,
    SessionEntry,
    State,
    TokenSpec,
)
from router.transport.attached import is_name

if TYPE_CHECKING:
    from router.config.wire import Key, Row

_STATES = frozenset(get_args(State))
_REGION_STATES = frozenset(get_args(RegionState))
_DIGEST_BYTES = 32  # SHA-256
PIN = "pin"
"""The scope that allows to name the replica."""
ENDPOINT_SCOPE = "endpoint:"
ATTACH_SCOPE = "attach:"
MAX_KEYS = 8
MIN_RATE_PER_S, MAX_RATE_PER_S = 1e-6, 1e6


class PolicyEntry(PoolSettings, frozen=True, forbid_unknown_fields=True):
    """Endpoints.Policy. Who may call is asked for a token of its environment, unless it says not to."""

    unauthenticated: bool = False


class MatchEntry(msgspec.Struct, forbid_unknown_fields=True):
    """Routes.Match."""

    path_prefix: str = "/"


class ActionEntry(msgspec.Struct, forbid_unknown_fields=True):
    """Routes.Action: an endpoint, or the one that the OpenAI `model` of the request's body names."""

    endpoint: str = ""
    by_model: bool = False


class Capabilities(msgspec.Struct):
    """Replicas.Capabilities; what a replica says of itself beyond this is for others."""

    scheme: str = "http"
    lanes: LaneSpec | None = None


class RowError(ValueError):
    """A row that cannot be used; the text is the reason."""


class SessionKeyEntry(msgspec.Struct):
    """Row `session_key` of Meta."""

    keys: Annotated[list[str], msgspec.Meta(max_length=MAX_KEYS)] = []


class RateLimit(msgspec.Struct, forbid_unknown_fields=True):
    """AuthTokens.RateLimit: requests a second, and how many may come at once; a second's worth by default."""

    per_s: Annotated[float, msgspec.Meta(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S)]
    burst: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0


def read_endpoint(name: str, row: Row) -> EndpointSpec:
    """Return the settings that an Endpoints row says; RowError for what it cannot."""
    _check(check_name, name, "EndpointId")
    if row[3] not in ("ACTIVE", "PAUSED"):
        raise RowError(f"State: {row[3]!r} is neither ACTIVE nor PAUSED")
    policy = _json(row[1], PolicyEntry, "Policy") or PolicyEntry()
    health = _json(row[2], HealthSpec, "Health") or HealthSpec()
    try:
        environment = msgspec.convert(row[0] or "main", EnvironmentName)
    except msgspec.ValidationError:
        raise RowError(f"Environment: {row[0]!r} is not of letters, digits and ._:/-") from None
    return EndpointSpec(
        name=name, health=health, environment=environment, needs_token=not policy.unauthenticated,
        **policy.pool_settings(),
    )  # fmt: skip


def keep_shut(known: EndpointSpec, row: Row) -> EndpointSpec:
    """Return the last good settings of an endpoint whose row cannot be used, less the rights that it takes away.

    What can be read of it counts: a token is asked for where it says so, and one of the environment that it names.
    """
    policy = row[1]
    try:
        said = msgspec.json.decode(policy if isinstance(policy, str) else msgspec.json.encode(policy))
    except (msgspec.DecodeError, RecursionError):
        said = None
    is_shut = isinstance(said, dict) and said.get("unauthenticated") is False
    try:
        environment = msgspec.convert(row[0], EnvironmentName)
    except msgspec.ValidationError:
        environment = known.environment
    needs_token = known.needs_token or is_shut
    return msgspec.structs.replace(known, needs_token=needs_token, environment=environment)


def read_replica(replica_id: str, row: Row) -> ReplicaSpec:
    """Return the replica that a Replicas row says; RowError for what it cannot."""
    _check(check_replica_id, replica_id, "ReplicaId")
    _, region, _, host, port, weight, state, generation, capabilities = row
    if not isinstance(state, str) or state not in _STATES:
        raise RowError(f"State: {state!r} is none of {', '.join(sorted(_STATES))}")
    scheme, lanes = "http", None
    if capabilities is not None and capabilities != "{}":
        found = _json(capabilities, Capabilities, "Capabilities") or Capabilities()
        scheme, lanes = found.scheme, found.lanes
    if not isinstance(host, str):
        raise RowError("Address: there is none")
    address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    try:
        split_address(address)
    except ValueError as failure:
        raise RowError(f"Address: {failure}") from None
    # NaN fails both comparisons; JSON writes it as a text.
    if not isinstance(weight, (int, float)) or not 0.001 <= weight <= 1_000.0:
        raise RowError(f"Weight: {weight!r} is not between 0.001 and 1000")
    try:
        region = msgspec.convert(region or "", RegionName)
    except msgspec.ValidationError:
        raise RowError(f"RegionId: {region!r} is not of letters, digits and ._:/-, up to 64") from None
    try:
        generation = int(generation or 0)
    except (TypeError, ValueError):
        raise RowError(f"Generation: {generation!r} is no number") from None
    return ReplicaSpec(
        replica_id, address, float(weight), cast("State", state), region=region, generation=generation, lanes=lanes
    )


def read_region(name: str, row: Row) -> RegionSpec:
    """Return the region that a Regions row says; RowError for what it cannot."""
    _check(check_name, name, "RegionId")
    state, weight, failover = row
    if state not in _REGION_STATES:
        raise RowError(f"State: {state!r} is none of {', '.join(sorted(_REGION_STATES))}")
    if not isinstance(weight, (int, float)) or (weight != 0.0 and not 0.001 <= weight <= 1_000.0):
        raise RowError(f"Weight: {weight!r} is neither 0 nor between 0.001 and 1000")
    others = _json(failover, tuple[RegionName, ...], "Failover") or ()
    return RegionSpec(name, cast("RegionState", state), float(weight), others)


def read_token(key: Key, row: Row) -> TokenSpec | None:
    """Return the credential that an AuthTokens row says, None for a revoked one; RowError for what it cannot.

    A scope that nobody here knows makes the whole token unusable: it was meant to narrow what it may do.
    """
    subject, environment, scopes, rate_limit, not_after, revoked_at = row
    try:
        digest = base64.b64decode(key[0], validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != _DIGEST_BYTES:
        raise RowError("TokenHash: it is not a SHA-256 hash in base64")
    if revoked_at is not None:
        return None
    try:
        environment = msgspec.convert(environment, EnvironmentName)
    except msgspec.ValidationError:
        raise RowError(f"Environment: {environment!r} is not of letters, digits and ._:/-") from None
    for scope in scopes or ():
        check_scope(scope)
    rate = _json(rate_limit, RateLimit, "RateLimit")
    try:
        not_after_us = 0 if not_after is None else parse_timestamp(not_after)
    except (TypeError, ValueError):
        raise RowError(f"NotAfter: {not_after!r} is no time") from None
    return TokenSpec(
        digest,
        str(subject).rpartition(":")[2],
        environment,
        tuple(scopes or ()),
        not_after_us,
        0.0 if rate is None else rate.per_s,
        1 if rate is None else rate.burst or max(1, int(rate.per_s)),
    )


def check_scope(scope: Any) -> None:
    """Refuse what is no scope."""
    if isinstance(scope, str) and scope.startswith(ATTACH_SCOPE):
        if not is_name(scope.removeprefix(ATTACH_SCOPE)):
            raise RowError(f"Scopes: {scope!r} names no label of letters, digits and hyphens")
        return
    name = scope.removeprefix(ENDPOINT_SCOPE) if isinstance(scope, str) else ""
    if scope != PIN and (name == scope or not name):
        raise RowError(f"Scopes: {scope!r} is none of {ENDPOINT_SCOPE}NAME, {ATTACH_SCOPE}NAME and {PIN}")
    if name != scope:
        _check(check_name, name, "Scopes")


def read_session(session_id: str, row: Row) -> SessionEntry | None:
    """Return the open session that a Sessions row says, None for one that ended; RowError for what it cannot."""
    endpoint, replica, state, idle = row
    if state != "OPEN":
        return None
    _check(check_name, endpoint, "EndpointId")
    _check(check_replica_id, replica, "ReplicaId")
    try:
        idle_s = int(idle)
    except (TypeError, ValueError):
        raise RowError(f"IdleTimeoutS: {idle!r} is no number") from None
    return SessionEntry(session_id, endpoint, replica, idle_s)


def read_session_keys(row: Row | None) -> tuple[bytes, ...]:
    """Return the keys that the row `session_key` of Meta says; RowError for what it cannot."""
    if row is None:
        return ()
    entry = _json(row[0], SessionKeyEntry, "V") or SessionKeyEntry()
    try:
        keys = tuple(bytes.fromhex(key) for key in entry.keys)
    except ValueError:
        raise RowError("V.keys: a key is not of hexadecimal digits") from None
    if any(len(key) < MIN_KEY_BYTES for key in keys):
        raise RowError(f"V.keys: a key has less than {MIN_KEY_BYTES} bytes")
    return keys


def read_route(row: Row) -> tuple[int, str, str]:
    """Return priority, path prefix and endpoint (empty for `by_model`) of a Routes row; RowError as above."""
    match = _json(row[1], MatchEntry, "Match") or MatchEntry()
    action = _json(row[2], ActionEntry, "Action")
    if action is None:
        raise RowError("Action: there is none")
    if bool(action.endpoint) == action.by_model:
        raise RowError("Action: either `endpoint` names one, or `by_model` is true")
    _check(check_prefix, match.path_prefix, "Match.path_prefix")
    try:
        priority = int(row[0])
    except (TypeError, ValueError):
        raise RowError(f"Priority: {row[0]!r} is no number") from None
    return priority, match.path_prefix, action.endpoint


def _check(check: Any, value: str, column: str) -> None:
    try:
        check(value)
    except ConfigError as failure:
        raise RowError(f"{column}: {failure}") from None


def _json(text: Any, kind: type[Any], column: str) -> Any:
    """Decode a JSON column; None for NULL."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text if isinstance(text, str) else msgspec.json.encode(text), type=kind)
    except msgspec.ValidationError as failure:
        complaint, _, place = str(failure).partition(" - at `$")
        where = place.strip(".`")
        raise RowError(f"{column}{'.' if where else ''}{where}: {complaint}") from None
    except msgspec.DecodeError as failure:
        raise RowError(f"{column}: {failure}") from None
