"""What a worker counts of its robots, by name; two of them also fall.

Each session counts for itself, in a part of the whole that shares its histograms: so the same integers tell of one
session and, added up when asked, of all. A part that is settled is added to the whole; who counts on counts there.
Imports nothing but histograms and what is seen of a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.counters import Histogram
from router.transport.codec.robot.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Callable

ROBOT_NUMBERS: Final = (
    "robot_sessions_open",
    "robot_sessions",
    "robot_refused",
    "robot_faults",
    "robot_stalled",
    "robot_epochs",
    "robot_resumed",
    "robot_resume_ignored",
    "robot_superseded",
    "robot_state_in",
    "robot_command_in",
    "robot_telemetry_in",
    "robot_telemetry_relayed",
    "robot_telemetry_collected",
    "robot_telemetry_unused",
    "robot_telemetry_dropped_rate",
    "robot_telemetry_dropped_lanes",
    "robot_telemetry_dropped_collector",
    "robot_state_out",
    "robot_command_out",
    "robot_stale_in",
    "robot_stale_out",
    "robot_late_in",
    "robot_reported_late",
    "robot_reported_stale",
    "webtransport_sessions",
    "webtransport_rejected",
)
ROBOT_HISTOGRAMS: Final = ("robot_rtt", "robot_jitter", "robot_gap", "robot_loss")


class RobotCounters:
    """Plain integers, and histograms of what robots say of their links, one value a LINK.

    `parts`: the sessions that are not over; one that has a replica has an epoch. `seen`: of the session that it is.
    """

    __slots__ = (*ROBOT_NUMBERS, *ROBOT_HISTOGRAMS, "_numbers", "_whole", "parts", "seen")

    def __init__(self, whole: RobotCounters | None = None) -> None:
        self._whole = whole
        self._numbers = 0  # of parts so far
        self.parts: dict[int, RobotCounters] = {}
        self.seen = Seen()
        self.robot_sessions_open = 0
        self.robot_sessions = 0  # that were welcome
        self.robot_refused = 0
        self.robot_faults = 0  # connections ended since the client broke the protocol or a limit
        self.robot_stalled = 0  # since it did not read
        self.robot_epochs = 0  # replicas after the first
        self.robot_resumed = 0  # sessions that were ones of before
        self.robot_resume_ignored = 0  # whose token did not hold: they began anew
        self.robot_superseded = 0  # sessions that were still open when their robot came again
        self.robot_state_in = 0  # messages handed to a replica
        self.robot_command_in = 0
        self.robot_telemetry_in = 0  # which is the sum of the next six
        self.robot_telemetry_relayed = 0  # passed on to a sidecar
        self.robot_telemetry_collected = 0  # handed to the collector
        self.robot_telemetry_unused = 0  # nobody has let it in yet, or there is no collector
        self.robot_telemetry_dropped_rate = 0  # more than a session may send
        self.robot_telemetry_dropped_lanes = 0  # more, or larger, than the connection to the sidecar took
        self.robot_telemetry_dropped_collector = 0  # more than it took, or it is not there
        self.robot_state_out = 0  # messages of a replica, queued for the robot
        self.robot_command_out = 0
        self.robot_stale_in = 0  # dropped, since there was a newer one
        self.robot_stale_out = 0
        self.robot_late_in = 0  # dropped, since its deadline had passed
        self.robot_reported_late = 0  # dropped by robots, as they say
        self.robot_reported_stale = 0
        self.webtransport_sessions = 0  # that are open: it falls, too
        self.webtransport_rejected = 0  # streams of sessions that are gone, never were, or came too late
        self.robot_rtt: Histogram = Histogram() if whole is None else whole.robot_rtt
        self.robot_jitter: Histogram = Histogram() if whole is None else whole.robot_jitter
        # the largest between two replies within a second
        self.robot_gap: Histogram = Histogram() if whole is None else whole.robot_gap
        # of datagrams: a share, not a time
        self.robot_loss: Histogram = Histogram() if whole is None else whole.robot_loss

    def begin(self, where: Callable[[], str], transport: str) -> RobotCounters:
        """Return the part of a session that begins; `where` says at any time where its robot is."""
        part = RobotCounters(self)
        self._numbers += 1
        part.seen.key = self._numbers
        part.seen.where = where
        part.seen.transport = transport
        self.parts[self._numbers] = part
        return part

    def settle(self) -> RobotCounters:
        """Add this part to the whole, and return who is to count from now on; once is enough."""
        whole = self._whole
        if whole is None:
            return self
        if whole.parts.pop(self.seen.key, None) is not None:
            for name in ROBOT_NUMBERS:
                setattr(whole, name, getattr(whole, name) + getattr(self, name))
        return whole

    def numbers(self) -> dict[str, int]:
        """Return every count by name, over all parts."""
        found = {name: int(getattr(self, name)) for name in ROBOT_NUMBERS}
        for part in self.parts.values():
            for name in ROBOT_NUMBERS:
                found[name] += getattr(part, name)
        return found
