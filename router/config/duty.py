"""Duties: what one process of a fleet does at a time, under a lease in a row of `Meta`.

Whoever finds the lease run out takes it up, in one transaction and by the store's clock alone; who has it extends
it each time. A gap in it means that nobody could write for a while, and what it takes then to be careful is the
duty's own matter (`steady_s`, `patience_s`). A row that cannot be read is taken for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from router.config.client import COMMIT_TIME
from router.config.timestamps import format_timestamp, parse_timestamp

if TYPE_CHECKING:
    from router.config.client import Transaction

REAPER = "reaper"
AUTOSCALER = "autoscaler"
"""The rows of Meta."""
_EVER = "1970-01-01T00:00:00Z"


class Duty(NamedTuple):
    """A row of Meta: who has the duty, until when, and from when on; microseconds of the store's time."""

    owner: str
    until_us: int
    from_us: int


def read_duty(text: object) -> Duty | None:
    """Return the duty that the row says; None if there is none, or none that can be read."""
    try:
        found = msgspec.json.decode(text if isinstance(text, str) else "")
        return Duty(str(found["owner"]), parse_timestamp(found["until"]), parse_timestamp(found.get("from", _EVER)))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError):
        return None


async def take_duty(
    t: Transaction, key: str, owner: str, length_s: float, *, steady_s: float = 0.0, patience_s: float = 0.0
) -> tuple[bool, bool]:
    """Return whether the duty is the owner's, for `length_s` from now, and whether it may be done yet.

    Where it was not extended within `steady_s` it may be done only `patience_s` later.
    """
    rows, _ = await t.execute("SELECT V FROM Meta WHERE K = @key", {"key": key})
    (((now,),), _) = await t.execute("SELECT CURRENT_TIMESTAMP()")
    now_us = parse_timestamp(now)
    duty = read_duty(rows[0][0] if rows else None)
    from_us = now_us
    if duty is not None:
        if duty.until_us > now_us and duty.owner != owner:
            return False, False
        last_us = duty.until_us - int(length_s * 1e6)
        was_steady = duty.until_us > now_us and now_us - last_us <= steady_s * 1e6
        from_us = duty.from_us if was_steady else now_us + int(patience_s * 1e6)
    value = {
        "owner": owner,
        "until": format_timestamp(now_us + int(length_s * 1e6)),
        "from": format_timestamp(from_us),
    }
    columns = ("K", "V", "UpdatedAt")
    t.write("insert_or_update", "Meta", columns, (key, msgspec.json.encode(value).decode(), COMMIT_TIME))
    return True, from_us <= now_us


async def leave_duty(t: Transaction, key: str, owner: str) -> None:
    """Let the next one take it up at once; nothing if it is another's."""
    rows, _ = await t.execute("SELECT V FROM Meta WHERE K = @key", {"key": key})
    duty = read_duty(rows[0][0] if rows else None)
    if duty is not None and duty.owner == owner:
        t.write("delete", "Meta", (), (key,))
