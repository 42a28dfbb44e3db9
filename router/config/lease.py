"""A node's lease: the node lives as long as somebody on it renews this row.

10 s long, renewed each third of it, by the store's clock alone. A store that is away for longer lets the lease
lapse without harm: routers never expire rows by their own clocks, and whoever renews first afterwards is told
that it lapsed, so that it says again what it has here. Several processes of one node may share its lease.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import TYPE_CHECKING

from router.config.errors import StoreError
from router.config.pace import Pace
from router.config.timestamps import parse_timestamp
from router.config.writer import open_writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.client import Transaction
    from router.config.target import Target
    from router.config.writer import Writer

_log = logging.getLogger("router.lease")

LEASE_S = 10.0
SHARDS = 16
"""Nodes are spread over so many parts of the lease index, whose other key ascends with time."""


class NodeLease:
    """Keeps one node's lease; `on_lapsed` is called when it had run out, or was not there, and is held again."""

    def __init__(
        self, target: Target, node: str, region: str, on_lapsed: Callable[[], None], lease_s: float = LEASE_S
    ) -> None:
        self._target = target
        self._node = node
        self._region = region
        self._on_lapsed = on_lapsed
        self._lease_s = lease_s
        self._pace = Pace()
        self.renewals = 0
        self.trouble = ""

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            try:
                async with open_writer(self._target) as writer:
                    while True:
                        lapsed = await renew(writer, self._node, self._region, self._lease_s)
                        self._pace.succeeded()
                        self.renewals += 1
                        self.trouble = ""
                        if lapsed:
                            self._on_lapsed()
                        await asyncio.sleep(self._lease_s / 3)
            except StoreError as failure:
                if str(failure) != self.trouble:
                    _log.warning("the lease of node %s was not renewed: %s", self._node, failure)
                self.trouble = str(failure)
            await self._pace.wait()


async def renew(writer: Writer, node: str, region: str, lease_s: float = LEASE_S) -> bool:
    """Extend the lease from the store's now; return whether it was not held before."""
    until = f"TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL {int(lease_s * 1e3)} MILLISECOND)"

    async def work(t: Transaction) -> bool:
        rows, _ = await t.execute(
            "SELECT LeaseExpiresAt, CURRENT_TIMESTAMP() FROM Nodes WHERE NodeId = @node", {"node": node}
        )
        if not rows:
            await t.execute(
                "INSERT INTO Nodes (NodeId, Shard, RegionId, Generation, LeaseExpiresAt, UpdatedAt) "  # noqa: S608
                f"VALUES (@node, @shard, @region, 1, {until}, PENDING_COMMIT_TIMESTAMP())",
                {"node": node, "shard": zlib.crc32(node.encode()) % SHARDS, "region": region},
            )
            return True
        lapsed = parse_timestamp(rows[0][0]) < parse_timestamp(rows[0][1])
        await t.execute(
            f"UPDATE Nodes SET LeaseExpiresAt = {until}, RegionId = @region, "  # noqa: S608 - a number of ours
            "UpdatedAt = PENDING_COMMIT_TIMESTAMP() WHERE NodeId = @node",
            {"node": node, "region": region},
        )
        return lapsed

    return bool(await writer.transact(work))
