"""How far the other side's clock is from ours, by PING and PONG, and so whether a deadline has passed. Both roles.

Clocks are whole microseconds. Of the last measurements the one with the shortest round trip is believed: queues
only make it longer. While nothing is known nothing is late.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.transport.codec.robot.limits import MAX_PINGS
from router.transport.codec.robot.wire import clamp

if TYPE_CHECKING:
    from router.transport.codec.robot.control import Pong


class PeerClock:
    """`offset_us`: the other's clock minus ours; `rtt_us`: round trips, smoothed as TCP does (RFC 6298 §2)."""

    __slots__ = ("_asked", "_number", "_samples", "is_known", "offset_us", "rtt_us")

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}  # when which PING was sent, of those that were not answered
        self._number = 0
        self._samples: deque[tuple[int, int]] = deque(maxlen=MAX_PINGS)  # round trip, offset
        self.is_known = False
        self.offset_us = 0
        self.rtt_us = 0

    def ask(self, now_us: int) -> int:
        """Return the number of the next PING, which is sent now."""
        self._number += 1
        self._asked[self._number] = now_us
        if len(self._asked) > MAX_PINGS:
            del self._asked[next(iter(self._asked))]
        return self._number

    def learn(self, pong: Pong, now_us: int) -> int:
        """Take an answer; return its round trip, -1 if it is none to a question of ours."""
        if self._asked.pop(pong.n, -1) != pong.t:
            return -1
        round_trip = max(0, now_us - pong.t - (pong.s - pong.r))
        self._samples.append((round_trip, ((pong.r - pong.t) + (pong.s - now_us)) // 2))
        self.offset_us = min(self._samples)[1]
        self.rtt_us = self.rtt_us + ((round_trip - self.rtt_us) >> 3) if self.is_known else round_trip
        self.is_known = True
        return round_trip

    def to_ours(self, deadline: int) -> int:
        """Return a time of the other's clock by ours; 0, no deadline, while that is not known."""
        return clamp(max(1, deadline - self.offset_us)) if deadline and self.is_known else 0

    def is_late(self, deadline: int, now_us: int) -> bool:
        """Whether a time of the other's clock has passed; 0 is no deadline."""
        return deadline != 0 and self.is_known and now_us + self.offset_us > deadline


def microseconds(now: float) -> int:
    """Return a time in seconds as the protocol has it."""
    return int(now * 1e6)
