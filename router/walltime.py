"""The time of day, for what must end at one: tokens and sessions.

A host's clock can be set, by a person or by a time server that went mad. A step against the monotonic clock is
believed only when it has stayed for a while, so that a clock which jumps for some seconds neither revives what
expired nor ends what did not; what drifts is followed. Imports nothing of the project.
"""

from __future__ import annotations

from time import monotonic, time

STEP_S = 5.0  # between two looks a clock that is only slewed does not move that far
BELIEVED_AFTER_S = 60.0


class WallTime:
    """Seconds of the Unix epoch by the monotonic clock; `look` is to be called now and then."""

    __slots__ = ("_doubted_since_s", "_offset_s", "_proposed_s")

    def __init__(self) -> None:
        self._offset_s = time() - monotonic()
        self._proposed_s = self._offset_s
        self._doubted_since_s = 0.0

    def at(self, now: float) -> float:
        """Return the Unix time of a monotonic one."""
        return now + self._offset_s

    def look(self, now: float, wall_s: float) -> None:
        """Compare with the host's clock."""
        offset_s = wall_s - now
        if abs(offset_s - self._offset_s) <= STEP_S:
            self._offset_s = offset_s
            self._doubted_since_s = 0.0
        elif not self._doubted_since_s or abs(offset_s - self._proposed_s) > STEP_S:
            self._proposed_s = offset_s
            self._doubted_since_s = now
        elif now - self._doubted_since_s >= BELIEVED_AFTER_S:
            self._offset_s = offset_s
            self._doubted_since_s = 0.0
