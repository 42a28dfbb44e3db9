"""Every bound of the store, by name. A peer that reaches one gets RESOURCE_EXHAUSTED or what is said here."""

from __future__ import annotations

from dataclasses import dataclass

# Spanner's own limits, so that what works here works there.
MAX_STRING_CHARS = 2_621_440  # of a STRING(MAX) value
MAX_BYTES = 10_485_760  # of a BYTES(MAX) value
MAX_MUTATIONS = 80_000  # columns written by one commit, a deleted range counting one; INVALID_ARGUMENT
MAX_KEY_BYTES = 8_192
MAX_DEADLINE_S = 3_600  # a read at a later timestamp than this from now is refused at once
MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS = 100, 300_000
STREAMS_PER_TABLE = 3

# Ours.
MAX_RECEIVE_BYTES = 64 << 20  # of one request; grpc answers RESOURCE_EXHAUSTED
MAX_SQL_CHARS = 1 << 20
MAX_SQL_DEPTH = 64  # nested parentheses, NOTs and signs; INVALID_ARGUMENT. Python's own stack allows ~150
MAX_SQL_ROWS = 1_000_000  # held by one ORDER BY, GROUP BY or JOIN
MAX_JSON_DEPTH = 80  # as Spanner's
MAX_SESSIONS = 10_000  # remembered for ListSessions; the oldest is forgotten, and stays usable
MAX_TRANSACTIONS = 1_000  # open read-write transactions of a database
TRANSACTION_IDLE_S = 10.0  # then ABORTED, as Spanner may
MAX_OPERATIONS = 1_000  # finished long-running operations remembered
RECENT_COMMITS = 20_000  # rows remembered to validate transactions; an older transaction is ABORTED
MAX_DDL_STATEMENTS = 1_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose.

    `durable`: wait for the disk in each commit, so that a power cut loses nothing (a kill -9 never does).
    `retention_s`: overrides every stream's retention_period if not None.
    `version_retention_s`: how far back reads may go; Spanner's default is an hour.
    `max_readers`: concurrent readers of a change stream partition; None for no limit, 20 on Spanner.
    `max_streams`: change stream queries a server holds open.
    `chunk_bytes`: about the size of a streamed message.
    """

    durable: bool = False
    retention_s: float | None = None
    version_retention_s: float = 3_600.0
    max_readers: int | None = None
    max_streams: int = 5_000
    chunk_bytes: int = 256 << 10
