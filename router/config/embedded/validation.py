"""What was written lately, for the validation of read-write transactions.

Did anything change that one of them read? The last `RECENT_COMMITS` rows are kept in memory. In doubt, that is for
a transaction older than those or than the process, the answer is yes, and it is begun again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from router.config.embedded import keys, limits

if TYPE_CHECKING:
    from router.config.embedded.keys import Range

Reads = dict[int, tuple[set[bytes], list["Range"]]]  # table id → keys and ranges


class _Touched(NamedTuple):
    """What a commit wrote to a table: its id, or 0 for a change of the schema, which touches everything."""

    at: int
    table: int
    keys: list[bytes]


class RecentCommits:
    """Complete for what came after `since`."""

    def __init__(self, since: int) -> None:
        self._since = since
        self._commits: deque[_Touched] = deque()
        self._rows = 0

    def note(self, at: int, table: int, touched: list[bytes]) -> None:
        """Remember the keys that a commit wrote."""
        self._commits.append(_Touched(at, table, touched))
        self._rows += len(touched) + 1
        while self._rows > limits.RECENT_COMMITS and len(self._commits) > 1:
            oldest = self._commits.popleft()
            self._rows -= len(oldest.keys) + 1
            self._since = oldest.at

    def changed(self, at: int, reads: Reads) -> bool:
        """Tell whether a commit after `at` wrote what was read."""
        if at < self._since:
            return True
        for touched in reversed(self._commits):
            if touched.at <= at:
                break
            if touched.table == 0:
                return True
            seen = reads.get(touched.table)
            if seen is not None and any(key in seen[0] or keys.overlaps(seen[1], key) for key in touched.keys):
                return True
        return False
