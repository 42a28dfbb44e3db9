"""What is known of one robot's session while it lasts: who, where, which replica, and how its link does.

Written by the session as it goes, a few integers a message; read by who asks (`shown.py`). It is a part of the
session's counters, and goes with them. No clock, no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.robot.peer_clock import PeerClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.transport.codec.robot.control import Link

FIRST_BIT: Final = 10
GAP_BUCKETS: Final = 15
"""Gaps below 2 ** 10 us, below 2 ** 11 …, and in the last all from 2 ** 23 us (8.4 s) on."""
WINDOW_US: Final = 10_000_000
"""The largest gap that is told is of this window and the one before it: an hour-old one says nothing of a link."""


def _nowhere() -> str:
    return ""


class Seen:
    """One session. `epoch` is 0 until a replica takes it; times in seconds of the monotonic clock."""

    __slots__ = (
        "_largest_us", "_last_us", "_previous_us", "_window_us", "authority", "clock", "epoch", "gaps", "id", "key",
        "link", "link_s", "path", "replica", "since_s", "transport", "upstream", "where",
    )  # fmt: skip

    def __init__(self) -> None:
        self.key = 0  # among the sessions of this worker
        self.where: Callable[[], str] = _nowhere
        self.transport = ""
        self.id = ""
        self.authority = b""
        self.path = b""
        self.upstream = ""
        self.replica = ""
        self.epoch = 0
        self.since_s = 0.0
        self.clock = PeerClock()
        self.link: Link | None = None  # as the robot said last
        self.link_s = 0.0
        self.gaps = [0] * GAP_BUCKETS  # between state messages that arrived whole
        self._last_us = 0
        self._window_us = 0  # when it began
        self._largest_us = 0  # gap in it
        self._previous_us = 0  # and in the one before

    def ask(self, authority: bytes, path: bytes, upstream: str, now: float) -> None:
        """Note what HELLO asks for."""
        self.authority = authority
        self.path = path
        self.upstream = upstream
        self.since_s = now

    def open(self, session: str, epoch: int, replica: str, *, has_lanes: bool = False) -> None:
        """Note which replica serves from here on, and whether its sidecar takes lanes."""
        if self.upstream != "post":
            self.upstream = "lanes" if has_lanes else "websocket"
        self.id = session
        self.epoch = epoch
        self.replica = replica

    def hear(self, link: Link, now: float) -> None:
        """Keep what the robot says of its link."""
        self.link = link
        self.link_s = now

    def arrive(self, now_us: int) -> None:
        """Count a state message that is whole."""
        last_us = self._last_us
        self._last_us = now_us
        if not last_us:
            self._window_us = now_us
            return
        gap_us = now_us - last_us
        self.gaps[min(max(0, gap_us.bit_length() - FIRST_BIT), GAP_BUCKETS - 1)] += 1
        if now_us - self._window_us >= WINDOW_US:
            self._turn(now_us)
        self._largest_us = max(self._largest_us, gap_us)

    def largest_gap_us(self, now_us: int) -> int:
        """Return the largest gap of late."""
        if now_us - self._window_us >= WINDOW_US:
            self._turn(now_us)
        return max(self._largest_us, self._previous_us)

    def silent_us(self, now_us: int) -> int:
        """Return how long ago the last state message was; -1 if there was none."""
        return now_us - self._last_us if self._last_us else -1

    def _turn(self, now_us: int) -> None:
        """Begin another window."""
        is_next = now_us - self._window_us < 2 * WINDOW_US
        self._previous_us = self._largest_us if is_next else 0
        self._largest_us = 0
        self._window_us = now_us
