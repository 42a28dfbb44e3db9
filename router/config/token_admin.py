"""What operators do to tokens of a store: make one, see them, revoke or delete one.

A secret is made here, returned once, and stored as a hash: neither the store nor a list can give it back. What a
router would put into quarantine is refused, with the field named.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import TYPE_CHECKING

from router.config.client import COMMIT_TIME
from router.config.errors import StoreError
from router.config.rows import RowError, read_token
from router.config.timestamps import parse_timestamp
from router.config.writer import decoded

if TYPE_CHECKING:
    from router.config.client import Transaction
    from router.config.writer import Item, Writer


async def create_token(
    writer: Writer,
    subject: str,
    environment: str,
    scopes: tuple[str, ...],
    not_after: str | None,
    rate_limit: str | None = None,
) -> Item:
    """Make a token; its secret is in the answer and nowhere else. `rate_limit` is a text of JSON."""
    if not_after is not None:
        try:
            parse_timestamp(not_after)
        except ValueError as failure:
            raise StoreError(f"--not-after: {failure}, as in 2027-01-31T00:00:00Z") from None
    key, secret = f"wk-{secrets.token_hex(8)}", f"ws-{secrets.token_urlsafe(32)}"
    hashed = base64.b64encode(token_hash(key, secret)).decode()
    values = (f"{subject}:{key}", environment, list(scopes), rate_limit, not_after)
    try:
        read_token((hashed,), (*values, None))
    except RowError as reason:
        raise StoreError(str(reason)) from None
    columns = ("TokenHash", "Subject", "Environment", "Scopes", "RateLimit", "NotAfter", "UpdatedAt")
    await writer.write([("insert", "AuthTokens", columns, [(hashed, *values, COMMIT_TIME)])])
    shown = {"subject": subject, "environment": environment, "scopes": list(scopes)}
    return {"key": key, "secret": secret, **shown}


async def tokens(writer: Writer, key: str | None = None) -> list[Item]:
    """List tokens; the secrets are not known."""
    rows = await writer.query(
        "SELECT Subject, Environment, Scopes, RateLimit, NotAfter, RevokedAt FROM AuthTokens"
    )
    found = []
    for subject, environment, scopes, rate_limit, not_after, revoked_at in rows:
        name, _, own_key = subject.rpartition(":")
        if key is None or own_key == key:
            found.append({
                "key": own_key, "subject": name, "environment": environment, "scopes": scopes or [],
                "rate_limit": decoded(rate_limit), "not_after": not_after, "revoked_at": revoked_at,
            })  # fmt: skip
    return found


async def change_token(writer: Writer, key: str, *, delete: bool) -> None:
    """Revoke a token, or delete it."""

    async def work(t: Transaction) -> None:
        rows, _ = await t.execute("SELECT TokenHash, Subject FROM AuthTokens")
        hashes = [hashed for hashed, subject in rows if subject.rpartition(":")[2] == key]
        if not hashes:
            raise StoreError(f"token {key!r} is not there")
        if delete:
            t.write("delete", "AuthTokens", (), (hashes[0],))
            return
        now, _ = await t.execute("SELECT CURRENT_TIMESTAMP()")
        columns = ("TokenHash", "RevokedAt", "UpdatedAt")
        t.write("update", "AuthTokens", columns, (hashes[0], now[0][0], COMMIT_TIME))

    await writer.transact(work)


def token_hash(key: str, secret: str) -> bytes:
    """Return what the store knows of a token: SHA-256 of `KEY.SECRET`."""
    return hashlib.sha256(f"{key}.{secret}".encode()).digest()
