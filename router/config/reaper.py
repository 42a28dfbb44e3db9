"""Takes the replicas of nodes whose lease ran out out of the table: DOWN first, deleted a minute later.

One reaper works at a time, under a lease of its own in `Meta`; each agent stands by. It compares with the
store's clock inside one transaction, so that a renewal between reading and writing aborts it. An endpoint that
would lose more than 30 % of its ready replicas at once is left alone and named: by then it is the leases that
are ill, not the nodes.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from router.config.client import COMMIT_TIME
from router.config.duty import REAPER, take_duty
from router.config.errors import StoreError
from router.config.lease import LEASE_S, SHARDS
from router.config.pace import Pace
from router.config.sessions import check_sessions, reap_orphans
from router.config.timestamps import parse_timestamp
from router.config.writer import open_writer

if TYPE_CHECKING:
    from router.config.client import Transaction
    from router.config.target import Target
    from router.config.writer import Writer

_log = logging.getLogger("router.reaper")

PERIOD_S = 3.0
DUTY_S = 12.0  # the lease of the reaper itself
STEADY_S = 4.5  # since the last turn: every lease has 6.7 s left when the store goes away, and needs time to return
STAND_BY_S = 10.0
DELETE_AFTER_S = 60.0
MAX_SHARE = 0.3
SHARE_FLOOR = 10
"""Ready replicas of an endpoint; a smaller one may lose all of them with its one node."""
SESSIONS_S = 15.0  # between looks for sessions that nobody ends
MAX_NODES = 200  # looked at in one turn
DUTY_KEY = REAPER


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
        self.reaped_sessions = 0
        self._sessions_s = 0.0
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
        await self._reap_sessions(writer)
        suspects = await self._suspects(writer)
        if not suspects:
            self.refused = {}
            return
        down, deleted, self.refused = await writer.transact(lambda t: self._reap(t, suspects))
        self.reaped += down
        if down or deleted:
            _log.warning("reaped: %d replicas of lapsed nodes are down, %d rows are deleted", down, deleted)
        for endpoint, count in self.refused.items():
            _log.error(
                "not reaped: %d of the ready replicas of endpoint %s are on nodes whose leases ran out, "
                "more than %.0f %%", count, endpoint, MAX_SHARE * 100,
            )  # fmt: skip

    async def _reap_sessions(self, writer: Writer) -> None:
        """End the sessions of routers that are gone, now and then; a store of an older schema has none."""
        now_s = monotonic()
        if now_s < self._sessions_s:
            return
        self._sessions_s = now_s + SESSIONS_S
        with suppress(StoreError):
            await check_sessions(writer)
            count = await reap_orphans(writer)
            self.reaped_sessions += count

    async def _take_duty(self, t: Transaction) -> tuple[bool, bool]:
        """Return whether the duty is ours, and whether it may be done yet.

        A gap in it means that nobody could write for a while: every node's lease may have run out meanwhile, and
        each gets the time of a lease to come back before anybody is taken for dead.
        """
        return await take_duty(t, DUTY_KEY, self._name, DUTY_S, steady_s=STEADY_S, patience_s=LEASE_S)

    async def _suspects(self, writer: Writer) -> dict[str, set[str]]:
        """Return the nodes whose lease seems to have run out, with the endpoints their replicas are of.

        Looked up outside of any transaction: one that had read the whole index would be aborted by each renewal.
        """
        nodes = await writer.query(
            "SELECT NodeId FROM Nodes WHERE Shard BETWEEN 0 AND @last AND LeaseExpiresAt < CURRENT_TIMESTAMP()",
            {"last": SHARDS - 1},
        )
        suspects: dict[str, set[str]] = {}
        for (node,) in nodes[:MAX_NODES]:
            rows = await writer.query("SELECT EndpointId FROM Replicas WHERE NodeId = @node", {"node": node})
            suspects[node] = {endpoint for (endpoint,) in rows}
        return suspects

    async def _reap(self, t: Transaction, suspects: dict[str, set[str]]) -> tuple[int, int, dict[str, int]]:
        """Judge each suspect anew, by its own row: a renewal or a change in between aborts the transaction."""
        lapsed: dict[str, bool] = {}  # to whether it is long gone
        for node in suspects:
            rows, _ = await t.execute(
                "SELECT LeaseExpiresAt, CURRENT_TIMESTAMP() FROM Nodes WHERE NodeId = @node", {"node": node}
            )
            for expires, now in rows:
                over_us = parse_timestamp(now) - parse_timestamp(expires)
                if over_us > 0:
                    lapsed[node] = over_us > self._delete_after_s * 1e6
        keeping = set[str]()  # nodes some of whose replicas are not deleted yet
        refused: dict[str, int] = {}
        down = deleted = 0
        for endpoint in sorted(set[str]().union(*(suspects[node] for node in lapsed))):
            rows, _ = await t.execute(
                "SELECT ReplicaId, NodeId, State FROM Replicas WHERE EndpointId = @endpoint", {"endpoint": endpoint}
            )
            theirs = [(replica, node, state) for replica, node, state in rows if node in lapsed]
            lapsing = [(replica, state) for replica, _, state in theirs if state != "DOWN"]
            gone = [(endpoint, replica) for replica, node, state in theirs if state == "DOWN" and lapsed[node]]
            keeping |= {node for _, node, state in theirs if state != "DOWN"}
            lost = sum(state == "READY" for _, state in lapsing)
            ready = sum(state == "READY" for _, _, state in rows)
            if gone:
                deleted += len(gone)
                t.write("delete", "Replicas", (), *gone)
            if ready >= SHARE_FLOOR and lost > MAX_SHARE * ready:
                refused[endpoint] = lost
            elif lapsing:
                down += len(lapsing)
                t.write("update", "Replicas", ("EndpointId", "ReplicaId", "State", "UpdatedAt"),
                        *((endpoint, replica, "DOWN", COMMIT_TIME) for replica, _ in lapsing))  # fmt: skip
        for node, is_long_gone in lapsed.items():
            if is_long_gone and node not in keeping:
                t.write("delete", "Nodes", (), (node,))
        return down, deleted, refused
