"""What operators do to sticky sessions of a store: see them, end one, change the key that signs their tokens."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from router.config.client import COMMIT_TIME
from router.config.errors import StoreError
from router.config.rows import RowError, read_session_keys
from router.config.schema import SESSION_KEY
from router.config.sessions import check_sessions
from router.session_book import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.client import Transaction
    from router.config.writer import Item, Writer

KEPT_KEYS: Final = 2
"""The one that signs, and the one before, so that no session ends by a change."""


async def sessions(writer: Writer, endpoint: str | None = None) -> list[Item]:
    """List open sessions, of one endpoint or of all."""
    await check_sessions(writer)
    where = "" if endpoint is None else " WHERE EndpointId = @endpoint"
    rows = await writer.query(
        f"SELECT SessionId, EndpointId, ReplicaId, IdleTimeoutS, LastUsedAt FROM Sessions{where}",  # noqa: S608
        {} if endpoint is None else {"endpoint": endpoint},
    )
    columns = ("session", "endpoint", "replica", "idle_timeout_s", "last_used_at")
    return [dict(zip(columns, (*row[:3], int(row[3]), row[4]), strict=True)) for row in rows]


async def end_session(writer: Writer, session_id: str) -> None:
    """End a session; StoreError if there is none."""
    await check_sessions(writer)

    async def work(t: Transaction) -> None:
        rows, _ = await t.execute("SELECT SessionId FROM Sessions WHERE SessionId = @id", {"id": session_id})
        if not rows:
            raise StoreError(f"session {session_id!r} is not there")
        t.write("delete", "Sessions", (), (session_id,))

    await writer.transact(work)


async def rotate_key(writer: Writer, wait_s: float) -> int:
    """Sign with a new key; return how many keys are verified with. Twice in a row ends old sessions.

    The new one only verifies for `wait_s`, until every router has it: none must sign what another cannot read.
    """
    await check_sessions(writer)
    new = secrets.token_bytes(KEY_BYTES)
    await writer.transact(lambda t: _write_keys(t, lambda known: (*known[:1], new)))
    await asyncio.sleep(wait_s)
    return await writer.transact(lambda t: _write_keys(t, lambda known: (new, *(k for k in known if k != new))))


async def _write_keys(t: Transaction, change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> int:
    rows, _ = await t.execute("SELECT V FROM Meta WHERE K = @key", {"key": SESSION_KEY})
    try:
        known = read_session_keys(tuple(rows[0]) if rows else None)
    except RowError:
        known = ()
    keys = [key.hex() for key in change(known)[:KEPT_KEYS]]
    value = msgspec.json.encode({"keys": keys}).decode()
    t.write("insert_or_update", "Meta", ("K", "V", "UpdatedAt"), (SESSION_KEY, value, COMMIT_TIME))
    return len(keys)
