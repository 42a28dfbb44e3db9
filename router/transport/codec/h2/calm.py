"""What a peer may waste: frames that cost something and carry nothing, each kind within an allowance."""

from __future__ import annotations


class Allowance:
    """So many at once, and so many a second for ever."""

    __slots__ = ("_burst", "_left", "_per_s", "_since_s")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._since_s = now

    def take(self, now: float) -> bool:
        """Use one; False when there is none left."""
        self._left = left = min(self._burst, self._left + (now - self._since_s) * self._per_s) - 1.0
        self._since_s = now
        return left >= 0.0

    def take_if_any(self, now: float) -> bool:
        """As `take`, but what is refused costs nothing: so many get through however many come."""
        left = min(self._burst, self._left + (now - self._since_s) * self._per_s)
        self._since_s = now
        self._left = left - 1.0 if left >= 1.0 else left
        return left >= 1.0
