"""Takes the replicas of nodes whose lease ran out out of the table: DOWN first, deleted a minute later.

One reaper works at a time, under a lease of its own in `Meta`; each agent stands by. It compares with the
store's clock inside one transaction, so that a renewal between reading and writing aborts it. An endpoint that
would lose more than 30 % of its ready replicas at once is left alone and named: by then it is the leases that
are ill, not the nodes.
"""

from __future__ import annotations

import asyncio
import logging
from random import random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from router.config.client import COMMIT_TIME
from router.config.errors import StoreError
from router.config.lease import LEASE_S, SHARDS
from router.config.pace import Pace
from router.config.timestamps import format_timestamp, parse_timestamp
from router.config.writer import open_writer

if TYPE_CHECKING:
    from router.config.client import Transaction
    from router.config.target import Target
    from router.config.writer import Writer

_log = logging.getLogger("router.reaper")

PERIOD_S = 3.0
DUTY_S = 12.0  # the lease of the reaper itself
STAND_BY_S = 10.0
DELETE_AFTER_S = 60.0
MAX_SHARE = 0.3
SHARE_FLOOR = 10
"""Ready replicas of an endpoint; a smaller one may lose all of them with its one node."""
DUTY_KEY = "reaper"
_EVER = "1970-01-01T00:00:00Z"


class Duty(NamedTuple):
    """Row `reaper` of Meta: who reaps, until when, and from when on; microseconds of the store's time."""

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


class Reaper:
    """One agent's reaper: works while it is on duty, else stands by."""

    def __init__(self, target: Target, name: str, delete_after_s: float = DELETE_AFTER_S) -> None:
        self._target = target
        self._name = name
        self._delete_after_s = delete_after_s
        self._pace = Pace()
        self.is_on_duty = False
        self._is_patient_enough = False
        self.reaped = 0
        self.refused: dict[str, int] = {}
        """Endpoint to how many of its replicas were spared: the alarm."""

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            try:
                async with open_writer(self._target) as writer:
                    while True:
                        await self.turn(writer)
                        self._pace.succeeded()
                        wait_s = PERIOD_S if self.is_on_duty else STAND_BY_S
                        await asyncio.sleep(wait_s * (0.75 + random() * 0.5))
            except StoreError as failure:
                self.is_on_duty = False
                _log.debug("the reaper waits for the store: %s", failure)
            await self._pace.wait()

    async def turn(self, writer: Writer) -> None:
        """Take up the duty if nobody has it, and then do it."""
        self.is_on_duty, self._is_patient_enough = await writer.transact(self._take_duty)
        if not self.is_on_duty:
            return
        if not self._is_patient_enough:
            return
        down, deleted, self.refused = await writer.transact(self._reap)
        self.reaped += down
        if down or deleted:
            _log.warning("reaped: %d replicas of lapsed nodes are down, %d rows are deleted", down, deleted)
        for endpoint, count in self.refused.items():
            _log.error(
                "not reaped: %d of the ready replicas of endpoint %s are on nodes whose leases ran out, "
                "more than %.0f %%", count, endpoint, MAX_SHARE * 100,
            )  # fmt: skip

    async def _take_duty(self, t: Transaction) -> tuple[bool, bool]:
        """Return whether the duty is ours, and whether it may be done yet.

        A duty that had run out means that nobody could write for a while: every node's lease may have run out with
        it, and each gets the time of a lease to come back before anybody is taken for dead.
        """
        rows, _ = await t.execute("SELECT V FROM Meta WHERE K = @key", {"key": DUTY_KEY})
        (((now,),), _) = await t.execute("SELECT CURRENT_TIMESTAMP()")
        now_us = parse_timestamp(now)
        duty = read_duty(rows[0][0] if rows else None)
        from_us = now_us
        if duty is not None and duty.until_us > now_us:
            if duty.owner != self._name:
                return False, False
            from_us = duty.from_us
        elif duty is not None:
            from_us = now_us + int(LEASE_S * 1e6)
        value = {
            "owner": self._name,
            "until": format_timestamp(now_us + int(DUTY_S * 1e6)),
            "from": format_timestamp(from_us),
        }
        columns = ("K", "V", "UpdatedAt")
        t.write("insert_or_update", "Meta", columns, (DUTY_KEY, msgspec.json.encode(value).decode(), COMMIT_TIME))
        return True, from_us <= now_us

    async def _reap(self, t: Transaction) -> tuple[int, int, dict[str, int]]:
        nodes, _ = await t.execute(
            "SELECT NodeId, LeaseExpiresAt, CURRENT_TIMESTAMP() FROM Nodes "
            "WHERE Shard BETWEEN 0 AND @last AND LeaseExpiresAt < CURRENT_TIMESTAMP()",
            {"last": SHARDS - 1},
        )
        lapsing: dict[str, list[Any]] = {}
        long_gone: list[tuple[str, str]] = []
        for node, expires, now in nodes:
            is_long_gone = parse_timestamp(now) - parse_timestamp(expires) > self._delete_after_s * 1e6
            rows, _ = await t.execute(
                "SELECT EndpointId, ReplicaId, State FROM Replicas WHERE NodeId = @node", {"node": node}
            )
            for endpoint, replica, state in rows:
                if state != "DOWN":
                    lapsing.setdefault(endpoint, []).append((replica, state))
                elif is_long_gone:
                    long_gone.append((endpoint, replica))
            if is_long_gone and all(state == "DOWN" for _, _, state in rows):
                t.write("delete", "Nodes", (), (node,))
        refused = {}
        down = 0
        for endpoint, replicas in lapsing.items():
            lost = sum(state == "READY" for _, state in replicas)
            rows, _ = await t.execute(
                "SELECT COUNT(*) FROM Replicas WHERE EndpointId = @endpoint AND State = 'READY'",
                {"endpoint": endpoint},
            )
            ready = int(rows[0][0])
            if ready >= SHARE_FLOOR and lost > MAX_SHARE * ready:
                refused[endpoint] = lost
                continue
            down += len(replicas)
            t.write("update", "Replicas", ("EndpointId", "ReplicaId", "State", "UpdatedAt"),
                    *((endpoint, replica, "DOWN", COMMIT_TIME) for replica, _ in replicas))  # fmt: skip
        if long_gone:
            t.write("delete", "Replicas", (), *long_gone)
        return down, len(long_gone), refused
