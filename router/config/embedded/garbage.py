"""What may go: versions and records that nobody may read any more, and rows whose deletion policy has come true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config.embedded import keys
from router.config.embedded.timestamps import US_PER_S, text_of_us

if TYPE_CHECKING:
    from router.config.embedded.catalog import Table
    from router.config.embedded.database import Database


def collect(database: Database, most: int = 500) -> int:
    """Delete up to about `most` versions and as many records that nobody may read any more; return how many."""
    done = 0
    now = database.safe()
    horizon = now - int(database.settings.version_retention_s * US_PER_S)
    with database.storage.transaction():
        if horizon > (database.storage.meta("collected") or 0):
            database.storage.set_meta("collected", horizon)
        for relation in database.relations():
            if done < most:
                done += relation.collect(horizon, most - done)
        for stream in database.catalog.streams.values():
            oldest = now - int(database.retention_s(stream) * US_PER_S)
            for partition in list(database.partitions.of(stream.id)):
                if done >= most:
                    break
                gone = database.storage.collect_records(partition.id, oldest, most - done)
                done += gone
                if not gone and partition.ended is not None and partition.ended < oldest:
                    database.partitions.forget(partition)
    return done


def expired(database: Database, most: int = 500) -> list[tuple[Table, list[bytes]]]:
    """Return up to about `most` keys per table whose row deletion policy has come true."""
    found: list[tuple[Table, list[bytes]]] = []
    now = database.safe()
    for table in database.catalog.tables.values():
        policy = table.deletion
        if policy is None:
            continue
        horizon = text_of_us(now - policy.days * 86_400 * US_PER_S)
        at = table.positions()[policy.column.lower()]
        doomed = []
        for key, row in database.scan(table, [keys.ALL], now):
            if row[at] is not None and row[at] < horizon:
                doomed.append(key)
                if len(doomed) >= most:
                    break
        if doomed:
            found.append((table, doomed))
    return found
