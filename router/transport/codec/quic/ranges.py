"""Sets of integers as ranges that grow at their end: packet numbers, and bytes that came out of order.

Invariant: `starts` and `ends` are as long as each other and ascend; ranges are half-open, apart and not empty.
Imports nothing.
"""

from __future__ import annotations

from bisect import bisect_right


class Ranges:
    """What was received."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add the integers from `start` to before `end`."""
        starts, ends = self.starts, self.ends
        if not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            return
        if start == ends[-1]:
            ends[-1] = end
            return
        first = bisect_right(starts, start)
        if first and ends[first - 1] >= start:
            first -= 1
            start = starts[first]
        last = bisect_right(starts, end, first)
        if last > first:
            end = max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]

    def has(self, value: int) -> bool:
        """Whether `value` is among them."""
        ends = self.ends
        if not ends or value >= ends[-1]:
            return False
        at = bisect_right(self.starts, value)
        return at > 0 and value < ends[at - 1]

    def drop_below(self, value: int) -> None:
        """Forget everything smaller."""
        starts, ends = self.starts, self.ends
        at = bisect_right(ends, value)
        del starts[:at], ends[:at]
        if starts and starts[0] < value:
            starts[0] = value

    def __len__(self) -> int:
        return len(self.starts)
