"""The time of this tick: read once by the shell at the start of each I/O callback."""

from __future__ import annotations

from time import monotonic


class Clock:
    """`now` is monotonic seconds as of the current callback. Tests set it by hand."""

    __slots__ = ("now",)

    def __init__(self, now: float | None = None) -> None:
        self.now = monotonic() if now is None else now

    def read(self) -> float:
        """Read the real clock and keep it."""
        self.now = now = monotonic()
        return now
