"""What a user of robot sessions holds in hand: messages, errors, what the link is like. Plain values.

Lanes: `state`, where the newest wins; `command`, ordered, nothing lost; `telemetry`, which may be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from router.counters import BOUNDS_S
from router.transport.codec.robot import wire

Lane: TypeAlias = Literal["state", "command", "telemetry"]

GAP_BOUNDS_S: Final = BOUNDS_S
"""Upper bounds of `Link.gaps`; one more bucket is for all above."""

LINK_LOST: Final = 1_006
"""No code was heard: the link, or the router, is gone."""
TLS_FAILED: Final = 1_015

_FINAL: Final = frozenset((wire.DONE, wire.BROKEN, wire.NOT_ALLOWED))
_MAY_PASS: Final = frozenset((408, 425, 429))  # of HTTP's 4xx, those that say: not now


@dataclass(frozen=True, slots=True)
class Message:
    """What a replica sent. `sequence` counts a lane's messages; `epoch` is the replica it is of, counted from 1.

    Where a packet was lost at a change of replicas, the first of the new one may overtake the word of it, and are
    told with the epoch before.
    """

    data: bytes
    lane: Lane
    sequence: int
    epoch: int
    is_text: bool


class RobotError(Exception):
    """A session that is not, or is no more.

    `code` as WebSocket's (1006: the link is gone, 1015: TLS), `status` HTTP's where the router refused, else 0.
    """

    def __init__(self, code: int, reason: str, status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason or 'closed'} (code {code}{f', status {status}' if status else ''})")
        self.code = code
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_superseded(self) -> bool:
        """Whether the session goes on elsewhere: somebody has shown its token."""
        return self.code == wire.NOT_ALLOWED and self.reason == wire.SUPERSEDED

    @property
    def is_final(self) -> bool:
        """Whether to come again would be of no use: done, our fault, or not allowed."""
        if self.status:
            return 400 <= self.status < 500 and self.status not in _MAY_PASS
        return self.code in _FINAL


@dataclass(frozen=True, slots=True)
class Link:
    """What a session has measured so far. Times in seconds, `loss` a share of 1; 0 while nothing is known.

    Round trips are to the router over QUIC, to the replica over a WebSocket. `gaps` counts times between two
    replies by `GAP_BOUNDS_S`. `late`: messages whose deadline had passed; `stale`: state messages that a newer one
    overtook; `is_direct`: to the replica, without the router; `refused`: messages for which there was no room.
    """

    transport: Literal["quic", "websocket", ""]
    is_direct: bool
    epoch: int
    replica: str
    connections: int
    moves: int
    rtt_s: float
    rtt_min_s: float
    rtt_last_s: float
    jitter_s: float
    loss: float
    pings_answered: int
    pings_lost: int
    replies: int
    largest_gap_s: float
    gaps: tuple[int, ...]
    late: int
    stale: int
    refused: int
    telemetry_dropped: int
