"""What a session's end sees of the link: round trips, how they vary, what gets lost, how long replies stay out.

By PINGs alone, and by when messages come: nothing of the engine is asked, so it is the same over a WebSocket. Loss
is counted only of PINGs in DATAGRAMs, since what is repeated until it arrives tells of none. Fixed buckets, a few
numbers: a session of a week costs as much as one of a minute. No clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from router.counters import Histogram
from router.transport.codec.robot.control import Link, Ping, Pong
from router.transport.codec.robot.peer_clock import PeerClock, microseconds
from router.transport.codec.robot.wire import clamp

LOST_AFTER_S: Final = 1.0
LOST_AFTER_ROUND_TRIPS: Final = 4.0
"""A PING without an answer for the longer of the two is lost."""
LOSS_WINDOW: Final = 100
"""PINGs that the share of lost ones is of."""
MAX_UNANSWERED: Final = 256
IDLE_S: Final = 1.0
"""Without a message from us for so long a robot is idle, and has no reply to wait for."""


class LinkMeter:
    """One connection's. Times in seconds; `loss` is a share of 1."""

    __slots__ = (
        "_first_sent_s",
        "_largest_s",
        "_last_reply_s",
        "_outcomes",
        "_unanswered",
        "answered",
        "clock",
        "gaps",
        "jitter_s",
        "largest_gap_s",
        "last_s",
        "late",
        "lost",
        "min_s",
        "replies",
        "rtt_s",
        "stale",
    )

    def __init__(self) -> None:
        self.clock = PeerClock()
        self.rtt_s = 0.0  # smoothed as TCP does; 0 while it is not known
        self.min_s = 0.0
        self.last_s = 0.0
        self.jitter_s = 0.0  # mean difference of round trips that follow each other, RFC 3550 §6.4.1
        self.answered = 0
        self.lost = 0
        self.gaps = Histogram()  # between two replies
        self.largest_gap_s = 0.0
        self.replies = 0
        self.late = 0  # messages whose deadline had passed, either way
        self.stale = 0  # state messages that a newer one overtook, either way
        self._outcomes: deque[bool] = deque(maxlen=LOSS_WINDOW)  # whether it was lost
        self._unanswered: dict[int, float] = {}  # when sent, of PINGs that tell of loss
        self._last_reply_s = 0.0
        self._first_sent_s = 0.0  # of ours since the last reply
        self._largest_s = 0.0  # gap since the last report

    def follow(self, before: LinkMeter) -> None:
        """Count on from another connection's: the gap between their replies is one, too."""
        self._last_reply_s = self._last_reply_s or before._last_reply_s
        self._first_sent_s = before._first_sent_s or self._first_sent_s

    def add(self, other: LinkMeter) -> None:
        """Add another connection's counts to these; what is smoothed is the other's."""
        self.answered += other.answered
        self.lost += other.lost
        self.replies += other.replies
        self.late += other.late
        self.stale += other.stale
        self.gaps.sum_s += other.gaps.sum_s
        for index, count in enumerate(other.gaps.counts):
            self.gaps.counts[index] += count
        self.largest_gap_s = max(self.largest_gap_s, other.largest_gap_s)
        if other.answered:
            self.rtt_s, self.last_s, self.jitter_s = other.rtt_s, other.last_s, other.jitter_s
            self.min_s = min(self.min_s, other.min_s) if self.min_s else other.min_s
        self._outcomes.extend(other._outcomes)

    @property
    def loss(self) -> float:
        """The share of the last PINGs that was lost."""
        outcomes = self._outcomes
        return sum(outcomes) / len(outcomes) if outcomes else 0.0

    # -- PINGs ----------------------------------------------------------------------------------------

    def ask(self, now: float, *, may_be_lost: bool) -> Ping:
        """Return the PING that is sent now."""
        now_us = microseconds(now)
        number = self.clock.ask(now_us)
        if may_be_lost and len(self._unanswered) < MAX_UNANSWERED:
            self._unanswered[number] = now
        return Ping(number, now_us)

    def forget(self, ping: Ping) -> None:
        """Learn that it could not be sent."""
        self._unanswered.pop(ping.n, None)

    def hear(self, pong: Pong, now: float) -> bool:
        """Take an answer; whether it is one to a PING of ours."""
        round_trip_us = self.clock.learn(pong, microseconds(now))
        if round_trip_us < 0:
            return False
        if self._unanswered.pop(pong.n, None) is not None:
            self._outcomes.append(False)
        self.take(round_trip_us / 1e6)
        return True

    def take(self, round_trip_s: float) -> None:
        """Count one round trip."""
        self.answered += 1
        if self.answered == 1:
            self.rtt_s = self.min_s = round_trip_s
        else:
            self.jitter_s += (abs(round_trip_s - self.last_s) - self.jitter_s) / 16
            self.rtt_s += (round_trip_s - self.rtt_s) / 8
            self.min_s = min(self.min_s, round_trip_s)
        self.last_s = round_trip_s

    def expire(self, now: float) -> None:
        """Count PINGs as lost that were not answered in time."""
        limit_s = max(LOST_AFTER_S, LOST_AFTER_ROUND_TRIPS * self.rtt_s)
        for number in [number for number, sent_s in self._unanswered.items() if now - sent_s > limit_s]:
            del self._unanswered[number]
            self._outcomes.append(True)
            self.lost += 1

    # -- messages -------------------------------------------------------------------------------------

    def sent(self, now: float) -> None:
        """Count a message of ours."""
        if not self._first_sent_s:
            self._first_sent_s = now

    def reply(self, now: float) -> None:
        """Count a message of the replica's; the time since the one before it is a gap, unless we were idle."""
        self.replies += 1
        last_s, sent_s = self._last_reply_s, self._first_sent_s
        self._last_reply_s = now
        self._first_sent_s = 0.0
        if not last_s:
            return
        if sent_s and sent_s - last_s > IDLE_S:
            last_s = sent_s
        gap_s = now - last_s
        if not sent_s and gap_s > IDLE_S:
            return
        self.gaps.observe(gap_s)
        self._largest_s = max(self._largest_s, gap_s)
        self.largest_gap_s = max(self.largest_gap_s, gap_s)

    def report(self) -> Link:
        """Return what the other side is told; the largest gap begins anew."""
        largest_s = self._largest_s
        self._largest_s = 0.0
        return Link(
            clamp(microseconds(self.rtt_s)),
            clamp(int(self.loss * 1e6)),
            clamp(microseconds(self.jitter_s)),
            clamp(microseconds(largest_s)),
            self.late,
            self.stale,
        )
