"""The time of this tick: read once by the shell at the start of each I/O callback."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """`now` is monotonic seconds as of the current callback; `source` is asked for it, a test's own too."""

    __slots__ = ("_source", "now")

    def __init__(self, source: Callable[[], float] = monotonic) -> None:
        self._source = source
        self.now = source()

    def read(self) -> float:
        """Read the real clock and keep it."""
        self.now = now = self._source()
        return now
