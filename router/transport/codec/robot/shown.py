"""Open sessions as they are shown to who asks, the worst link first; and how links do over all of them.

Made when asked, from what sessions wrote down (`seen.py`). How bad a link is: how long a message takes there and
back if things go badly, that is the round trip, four times its jitter (RFC 6298 §2.3 waits as long), and up to one
round trip more for losses of up to 1 %, from where on one in a hundred has to be repeated. Not compiled.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

import msgspec

from router.counters import Histogram
from router.telemetry import LinkSnapshot
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.codec.robot.seen import FIRST_BIT, GAP_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.transport.codec.robot.counters import RobotCounters
    from router.transport.codec.robot.seen import Seen

SLICE: Final = 256
"""Sessions that are looked at before the loop has its turn."""
SHOWN_SLICE: Final = 32
"""Of those that are written out, which takes ten times as long."""
MAX_SHOWN: Final = 1_000
"""Sessions in one answer; of more the worst are shown, and the others counted."""
MAX_PATH_BYTES: Final = 256
MAX_NAME_CHARS: Final = 128
GAP_BOUNDS_US: Final = tuple(1 << bit for bit in range(FIRST_BIT, FIRST_BIT + GAP_BUCKETS - 1))
LINK_MEASURES: Final = ("robot_link_rtt", "robot_link_jitter", "robot_link_gap", "robot_link_loss")
_WHOLE_PPM: Final = 10_000
_MAX_PPM: Final = 1_000_000
_MAX_US: Final = 3_600_000_000  # of what a robot says: beyond an hour it is no matter how much


class ShownRobot(msgspec.Struct):
    """One session. `*_us` are microseconds, -1 where nothing is known; what has `reported` in it the robot said."""

    session: str
    worker: int
    client: str
    authority: str
    path: str
    endpoint: str
    """As the table in force routes it; empty where that takes more than host and path."""
    replica: str
    epoch: int
    upstream: str
    """`websocket`, `lanes` to the replica's sidecar, or `post`."""
    transport: str
    """`quic` or `webtransport`."""
    age_s: float
    badness_us: int
    rtt_us: int
    """As the router's PINGs find it, smoothed."""
    reported_rtt_us: int
    reported_loss_ppm: int
    reported_jitter_us: int
    reported_gap_us: int
    """Largest between two replies in the second before the report."""
    reported_late: int
    reported_stale: int
    reported_ago_s: float | None
    gap_us: int
    """Largest between two state messages that arrived, of the last ten to twenty seconds."""
    silent_us: int
    """Since the last of them."""
    gaps: list[int]
    """How many gaps were below each of `GAP_BOUNDS_US`, and how many above, as a histogram has it."""
    state_in: int
    command_in: int
    telemetry_in: int
    state_out: int
    command_out: int
    stale_in: int
    stale_out: int
    late_in: int


async def shown_robots(
    counters: RobotCounters, worker: int, session: str, limit: int, now: float,
    find_endpoint: Callable[[bytes, bytes], str], pause: Callable[[], Awaitable[None]],
) -> tuple[int, list[ShownRobot]]:  # fmt: skip
    """Return how many sessions are open, and those to show: `limit` at most, or the one of that id.

    `pause` is awaited behind every slice of them: messages come between.
    """
    count = 0
    found: list[tuple[int, int, RobotCounters]] = []  # the worst so far; of equals the older ones
    for done, part in enumerate(list(counters.parts.values()), 1):
        seen = part.seen
        count += seen.epoch > 0
        if seen.epoch and (not session or seen.id == session):
            ranked = badness_us(seen), -seen.key, part
            if len(found) < limit:
                heapq.heappush(found, ranked)
            else:
                heapq.heappushpop(found, ranked)
        if done % SLICE == 0:
            await pause()
    found.sort(reverse=True)
    shown: list[ShownRobot] = []
    for done, (_, _, part) in enumerate(found, 1):
        if part.seen.key in counters.parts:  # else it ended in a pause
            shown.append(_show(part, worker, now, find_endpoint))
        if done % SHOWN_SLICE == 0:
            await pause()
    return count, shown


def badness_us(seen: Seen) -> int:
    """Return how bad a link is; 0 while nothing is known."""
    link, rtt_us = seen.link, min(seen.clock.rtt_us, _MAX_US)
    if link is None:
        return rtt_us
    rtt_us = max(rtt_us, min(link.rtt_us, _MAX_US))
    return rtt_us + 4 * min(link.jitter_us, _MAX_US) + rtt_us * min(link.loss_ppm, _WHOLE_PPM) // _WHOLE_PPM


def _show(part: RobotCounters, worker: int, now: float, find_endpoint: Callable[[bytes, bytes], str]) -> ShownRobot:
    seen, now_us = part.seen, microseconds(now)
    link = seen.link
    return ShownRobot(
        session=seen.id,
        worker=worker,
        client=seen.where(),
        authority=seen.authority.decode("ascii", "replace")[:MAX_NAME_CHARS],
        # without the query, which may hold credentials
        path=seen.path[:MAX_PATH_BYTES].partition(b"?")[0].decode("ascii", "replace"),
        endpoint=find_endpoint(seen.authority, seen.path),
        replica=seen.replica[:MAX_NAME_CHARS],
        epoch=seen.epoch,
        upstream=seen.upstream,
        transport=seen.transport,
        age_s=round(max(0.0, now - seen.since_s), 3),
        badness_us=badness_us(seen),
        rtt_us=seen.clock.rtt_us if seen.clock.is_known else -1,
        reported_rtt_us=link.rtt_us if link is not None and link.rtt_us else -1,
        reported_loss_ppm=link.loss_ppm if link is not None else -1,
        reported_jitter_us=link.jitter_us if link is not None else -1,
        reported_gap_us=link.gap_us if link is not None else -1,
        reported_late=link.late if link is not None else 0,
        reported_stale=link.stale if link is not None else 0,
        reported_ago_s=round(max(0.0, now - seen.link_s), 3) if link is not None else None,
        gap_us=seen.largest_gap_us(now_us),
        silent_us=seen.silent_us(now_us),
        gaps=list(seen.gaps),
        state_in=part.robot_state_in,
        command_in=part.robot_command_in,
        telemetry_in=part.robot_telemetry_in,
        state_out=part.robot_state_out,
        command_out=part.robot_command_out,
        stale_in=part.robot_stale_in,
        stale_out=part.robot_stale_out,
        late_in=part.robot_late_in,
    )


class LinkMeasures:
    """How the links of open sessions do at this moment: histograms over sessions, and the worst of each measure.

    Of what robots said last. The round trip is the router's own where a robot has said nothing yet.
    """

    def __init__(self) -> None:
        self.histograms = {name: Histogram() for name in LINK_MEASURES}
        self.worst = dict.fromkeys(LINK_MEASURES, 0.0)

    def add(self, seen: Seen) -> None:
        """Take one session."""
        link, rtt_us = seen.link, seen.clock.rtt_us
        if not seen.epoch:
            return
        if link is not None and link.rtt_us:
            rtt_us = link.rtt_us
            self._observe("robot_link_jitter", min(link.jitter_us, _MAX_US) / 1e6)
            self._observe("robot_link_loss", min(link.loss_ppm, _MAX_PPM) / 1e6)
        if link is not None and link.gap_us:
            self._observe("robot_link_gap", min(link.gap_us, _MAX_US) / 1e6)
        if rtt_us:
            self._observe("robot_link_rtt", min(rtt_us, _MAX_US) / 1e6)

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)
        self.worst[name] = max(self.worst[name], value)

    def snapshots(self) -> dict[str, LinkSnapshot]:
        """Return each measure by name."""
        return {name: LinkSnapshot(list(one.counts), self.worst[name]) for name, one in self.histograms.items()}
