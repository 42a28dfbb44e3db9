"""What a worker counts of its robots, by name; two of them also fall. Imports nothing but histograms."""

from __future__ import annotations

from typing import Final

from router.counters import Histogram

ROBOT_NUMBERS: Final = (
    "robot_sessions_open",
    "robot_sessions",
    "robot_refused",
    "robot_faults",
    "robot_stalled",
    "robot_epochs",
    "robot_state_in",
    "robot_command_in",
    "robot_telemetry_in",
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
    """Plain integers, and histograms of what robots say of their links, one value a LINK."""

    __slots__ = (*ROBOT_NUMBERS, *ROBOT_HISTOGRAMS)

    def __init__(self) -> None:
        self.robot_sessions_open = 0
        self.robot_sessions = 0  # that were welcome
        self.robot_refused = 0
        self.robot_faults = 0  # connections ended since the client broke the protocol or a limit
        self.robot_stalled = 0  # since it did not read
        self.robot_epochs = 0  # replicas after the first
        self.robot_state_in = 0  # messages handed to a replica
        self.robot_command_in = 0
        self.robot_telemetry_in = 0
        self.robot_state_out = 0  # messages of a replica, queued for the robot
        self.robot_command_out = 0
        self.robot_stale_in = 0  # dropped, since there was a newer one
        self.robot_stale_out = 0
        self.robot_late_in = 0  # dropped, since its deadline had passed
        self.robot_reported_late = 0  # dropped by robots, as they say
        self.robot_reported_stale = 0
        self.webtransport_sessions = 0  # that are open: it falls, too
        self.webtransport_rejected = 0  # streams of sessions that are gone, never were, or came too late
        self.robot_rtt = Histogram()
        self.robot_jitter = Histogram()
        self.robot_gap = Histogram()  # the largest between two replies within a second
        self.robot_loss = Histogram()  # of datagrams: a share, not a time
