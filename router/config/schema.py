"""The store's schema: tables, change stream, migrations, and what a client reads of them.

A migration is a list of DDL statements; `Meta` says up to which one a database is, and which client is the
oldest that may read it. Keys never ascend with time. `UpdatedAt` is for people: no index uses it and the tail
does not read it, since within a change record it is not the commit's time yet.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIENT_VERSION = 3
"""The schema this code was written for."""
STREAMED_VERSION = 1
"""The schema that last changed what a streamed table's rows look like: a checkpoint of another is not read."""
DEMAND_VERSION = 2
"""The schema from which on there are Demand and Sessions."""

SESSION_VERSION = 3
"""The schema from which on sessions are streamed."""

STREAM = "RouterStream"
SCHEMA_KEY = "schema"
"""Row of `Meta`: {"version": N, "oldest_client": N, "identity": TEXT made once per database}."""
SESSION_KEY = "session_key"
"""Row of `Meta`: {"keys": [HEX, …]}; the first one signs session tokens, all of them verify."""

_UPDATED = "UpdatedAt TIMESTAMP NOT NULL OPTIONS (allow_commit_timestamp=true)"

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"""CREATE TABLE Meta (
  K STRING(64) NOT NULL,
  V JSON,
  {_UPDATED},
) PRIMARY KEY (K)""",
        f"""CREATE TABLE Regions (
  RegionId STRING(64) NOT NULL,
  State STRING(16) NOT NULL,
  Weight FLOAT64 NOT NULL,
  Failover JSON,
  {_UPDATED},
) PRIMARY KEY (RegionId)""",
        f"""CREATE TABLE Endpoints (
  EndpointId STRING(128) NOT NULL,
  Environment STRING(64) NOT NULL,
  Policy JSON,
  Health JSON,
  State STRING(16) NOT NULL,
  {_UPDATED},
) PRIMARY KEY (EndpointId)""",
        f"""CREATE TABLE Replicas (
  EndpointId STRING(128) NOT NULL,
  ReplicaId STRING(128) NOT NULL,
  NodeId STRING(128) NOT NULL,
  RegionId STRING(64) NOT NULL,
  Zone STRING(64) NOT NULL,
  Address STRING(256) NOT NULL,
  Port INT64 NOT NULL,
  Weight FLOAT64 NOT NULL,
  State STRING(16) NOT NULL,
  Generation INT64 NOT NULL,
  Capabilities JSON,
  {_UPDATED},
) PRIMARY KEY (EndpointId, ReplicaId),
  INTERLEAVE IN PARENT Endpoints ON DELETE CASCADE""",
        "CREATE INDEX ReplicasByNode ON Replicas(NodeId)",
        f"""CREATE TABLE RouteSets (
  RouteSetId STRING(128) NOT NULL,
  {_UPDATED},
) PRIMARY KEY (RouteSetId)""",
        f"""CREATE TABLE Routes (
  RouteSetId STRING(128) NOT NULL,
  RouteId STRING(128) NOT NULL,
  Priority INT64 NOT NULL,
  Match JSON,
  Action JSON,
  {_UPDATED},
) PRIMARY KEY (RouteSetId, RouteId),
  INTERLEAVE IN PARENT RouteSets ON DELETE CASCADE""",
        f"""CREATE TABLE Hosts (
  Host STRING(256) NOT NULL,
  RouteSetId STRING(128) NOT NULL,
  Tls JSON,
  AuthPolicy JSON,
  {_UPDATED},
) PRIMARY KEY (Host)""",
        f"""CREATE TABLE AuthTokens (
  TokenHash BYTES(32) NOT NULL,
  Subject STRING(128) NOT NULL,
  Environment STRING(64) NOT NULL,
  Scopes ARRAY<STRING(64)>,
  RateLimit JSON,
  NotAfter TIMESTAMP,
  RevokedAt TIMESTAMP,
  {_UPDATED},
) PRIMARY KEY (TokenHash)""",
        f"""CREATE TABLE Nodes (
  NodeId STRING(128) NOT NULL,
  Shard INT64 NOT NULL,
  RegionId STRING(64) NOT NULL,
  Generation INT64 NOT NULL,
  LeaseExpiresAt TIMESTAMP NOT NULL,
  {_UPDATED},
) PRIMARY KEY (NodeId)""",
        "CREATE INDEX NodesByLease ON Nodes(Shard, LeaseExpiresAt)",
        f"""CREATE CHANGE STREAM {STREAM}
  FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens
  OPTIONS (retention_period='7d', value_capture_type='NEW_ROW')""",
    ),
    # Not streamed: written each second, read by the one autoscaler. A router that is gone deletes its rows; of one
    # that could not, they are ignored soon (`autoscale.follow.FRESH_S`) and go by their age.
    (
        f"""CREATE TABLE Demand (
  EndpointId STRING(128) NOT NULL,
  RouterId STRING(128) NOT NULL,
  InFlight INT64 NOT NULL,
  Arrivals INT64 NOT NULL,
  Unserved INT64 NOT NULL,
  Waiting INT64 NOT NULL,
  Sessions INT64 NOT NULL,
  RegionId STRING(64) NOT NULL,
  {_UPDATED},
) PRIMARY KEY (EndpointId, RouterId),
  ROW DELETION POLICY (OLDER_THAN(UpdatedAt, INTERVAL 1 DAY))""",
        f"""CREATE TABLE Sessions (
  SessionId STRING(64) NOT NULL,
  EndpointId STRING(128) NOT NULL,
  ReplicaId STRING(128) NOT NULL,
  State STRING(16) NOT NULL,
  IdleTimeoutS INT64 NOT NULL,
  LastUsedAt TIMESTAMP NOT NULL OPTIONS (allow_commit_timestamp=true),
  {_UPDATED},
) PRIMARY KEY (SessionId),
  ROW DELETION POLICY (OLDER_THAN(UpdatedAt, INTERVAL 8 DAY))""",
    ),
    # Every router is told that a session began or ended, but not each time that it was used.
    (
        "CREATE INDEX SessionsByReplica ON Sessions(EndpointId, ReplicaId)",
        f"""ALTER CHANGE STREAM {STREAM}
  SET FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens,
    Sessions(EndpointId, ReplicaId, State, IdleTimeoutS)""",
    ),
)


@dataclass(frozen=True, slots=True)
class StreamedTable:
    """What a client reads of a table: key columns first. JSON columns are texts to it.

    `since`: the schema from which on the stream has it.
    """

    name: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    since: int = 1

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Keys, then columns: the order in which rows are read."""
        return self.keys + self.columns


# In the order in which a bootstrap reads them: what others refer to comes first.
STREAMED: tuple[StreamedTable, ...] = (
    StreamedTable("Meta", ("K",), ("V",)),
    StreamedTable("Regions", ("RegionId",), ("State", "Weight", "Failover")),
    StreamedTable("Endpoints", ("EndpointId",), ("Environment", "Policy", "Health", "State")),
    StreamedTable(
        "Replicas",
        ("EndpointId", "ReplicaId"),
        ("NodeId", "RegionId", "Zone", "Address", "Port", "Weight", "State", "Generation", "Capabilities"),
    ),
    StreamedTable("RouteSets", ("RouteSetId",), ()),
    StreamedTable("Routes", ("RouteSetId", "RouteId"), ("Priority", "Match", "Action")),
    StreamedTable("Hosts", ("Host",), ("RouteSetId", "Tls", "AuthPolicy")),
    StreamedTable(
        "AuthTokens",
        ("TokenHash",),
        ("Subject", "Environment", "Scopes", "RateLimit", "NotAfter", "RevokedAt"),
    ),
    StreamedTable(
        "Sessions", ("SessionId",), ("EndpointId", "ReplicaId", "State", "IdleTimeoutS"), SESSION_VERSION
    ),
)


def streamed(version: int) -> tuple[StreamedTable, ...]:
    """Return the tables that a database of this schema streams."""
    return tuple(table for table in STREAMED if table.since <= version)


BY_NAME = {table.name: table for table in STREAMED}
