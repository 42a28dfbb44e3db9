"""What this tick touched: every connection with output, a change of reading, or an end to carry out.

Flushed as the last line of each I/O callback, so that all a tick produced for one connection leaves in one
write (a write is a system call on uvloop: three cost 4.9 us, one 2.0). Watermarks, releases and the parsing
of held input run inside the flush and may touch further connections; it ends when none is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.clock import Clock
    from router.stream import Shell


class Outbox:
    """The connections touched in this tick; between two of them order does not matter."""

    __slots__ = ("_clock", "touched")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.touched: list[Shell] = []

    def flush(self) -> None:
        """Flush until nothing is touched."""
        touched = self.touched
        if touched:
            now = self._clock.now
            while touched:
                touched.pop().flush(now)
