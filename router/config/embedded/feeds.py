"""Change records on their way to readers: what was committed lately, kept per partition, and who waits for more.

A commit wakes the readers of the partitions it wrote to, and no other. A reader that is up to date takes records
from memory, where one bytes object serves all; one that is behind reads the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT: Final = 256  # records of a partition in memory
Record = tuple[int, int, bytes]  # commit timestamp, id, PartialResultSet.values


class Feed:
    """The newest records of one partition."""

    __slots__ = ("_complete_from", "_recent", "_waiting", "ended", "readers")

    def __init__(self, complete_from: tuple[int, int]) -> None:
        self._recent: deque[Record] = deque()
        self._complete_from = complete_from
        self._waiting: set[asyncio.Future[None]] = set()
        self.readers = 0
        self.ended = False

    def append(self, records: list[Record]) -> None:
        """Take new records, in order."""
        self._recent.extend(records)
        while len(self._recent) > KEPT:
            at, id_, _ = self._recent.popleft()
            self._complete_from = (at, id_)

    def after(self, position: tuple[int, int]) -> list[Record] | None:
        """Return what follows a position, or None if only the log knows."""
        if position < self._complete_from:
            return None
        found: list[Record] = []
        for record in reversed(self._recent):
            if record[:2] <= position:
                break
            found.append(record)
        found.reverse()
        return found

    def wake(self) -> None:
        """Have every waiting reader look again."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when something happened, or after the time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.add(future)
        timer = loop.call_later(seconds, _let_go, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)


class Feeds:
    """The feeds of a database, made when somebody first reads a partition."""

    def __init__(self) -> None:
        self._feeds: dict[int, Feed] = {}

    def open(self, partition: int, complete_from: tuple[int, int]) -> Feed:
        """Return a partition's feed; a new one knows every record after `complete_from`."""
        feed = self._feeds.get(partition)
        if feed is None:
            feed = self._feeds[partition] = Feed(complete_from)
        return feed

    def close(self, partition: int, feed: Feed) -> None:
        """A reader has gone; without any, the feed goes too."""
        if not feed.readers and self._feeds.get(partition) is feed:
            del self._feeds[partition]

    def get(self, partition: int) -> Feed | None:
        """Return a feed that somebody reads."""
        return self._feeds.get(partition)

    def readers(self) -> Iterator[tuple[int, int]]:
        """Yield each partition that is read, with how many read it."""
        for partition, feed in self._feeds.items():
            yield partition, feed.readers

    def all(self) -> Iterator[Feed]:
        """Yield every feed."""
        yield from list(self._feeds.values())


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
