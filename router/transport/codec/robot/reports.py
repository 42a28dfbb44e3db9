"""What a robot says of its link, into histograms, and the last of it for who asks.

Counts are so far; what one LINK may add is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.robot.limits import MAX_REPORTED

if TYPE_CHECKING:
    from router.transport.codec.robot.control import Link
    from router.transport.codec.robot.counters import RobotCounters


class Reports:
    """Of one session."""

    __slots__ = ("_counters", "_late", "_stale")

    def __init__(self, counters: RobotCounters) -> None:
        self._counters = counters
        self._late = 0
        self._stale = 0

    def take(self, link: Link, now: float) -> None:
        """Count one; what is 0 is not known yet."""
        counters = self._counters
        counters.seen.hear(link, now)
        if link.rtt_us:
            counters.robot_rtt.observe(link.rtt_us / 1e6)
            counters.robot_jitter.observe(link.jitter_us / 1e6)
            counters.robot_loss.observe(min(link.loss_ppm, 1_000_000) / 1e6)
        if link.gap_us:
            counters.robot_gap.observe(link.gap_us / 1e6)
        counters.robot_reported_late += min(max(0, link.late - self._late), MAX_REPORTED)
        counters.robot_reported_stale += min(max(0, link.stale - self._stale), MAX_REPORTED)
        self._late = link.late
        self._stale = link.stale
