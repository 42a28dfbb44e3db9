"""How long a connection that ends is waited for: as long as its peer takes what was sent, and a little longer.

What was written may still be in the kernel's buffer, megabytes of it: cutting the connection would destroy the end
of an answer that somebody is reading slowly.
"""

from __future__ import annotations


class Ending:
    """Begun when the last byte is written. `until_s` is when to look again."""

    __slots__ = ("_moved_s", "_unsent_bytes", "until_s")

    def __init__(self, now: float, grace_s: float) -> None:
        self.until_s = now + grace_s
        self._moved_s = now
        self._unsent_bytes = -1

    def goes_on(self, unsent_bytes: int, now: float, grace_s: float, stall_s: float) -> bool:
        """Whether to wait on: `grace_s` beyond the last byte taken, and no more than `stall_s` between any two."""
        if unsent_bytes != self._unsent_bytes:
            was_looked_at = self._unsent_bytes >= 0
            self._unsent_bytes = unsent_bytes
            self._moved_s = now
            if not unsent_bytes and not was_looked_at:
                return False  # all was gone long ago
        elif not unsent_bytes or self._moved_s + stall_s <= now:
            return False
        self.until_s = now + grace_s
        return True
