"""The replica's half of a robot's session: a tunnel to one replica after another, and what waits for it.

What the tunnel tells comes in the replica's tick, when `Bearer.now` is old: times that begin there are set at the
flush, which knows the time. `server.py` has the robot's half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import Kind
from router.transport.codec.framing import COMMAND_LANE, STATE_LANE
from router.transport.codec.message_tunnel import MessageTunnel, TunnelOwner, close_code
from router.transport.codec.messages import NO_STATUS
from router.transport.codec.post_tunnel import PostTunnel
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.command_lane import CommandIn
from router.transport.codec.robot.ending import ENDING, OPEN, REOPENING, UNKNOWN_S, RobotEnding
from router.transport.codec.robot.limits import GOODBYE_S
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.codec.robot.state_lane import StateIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.errors import ProxyError
    from router.http import Headers, ResponseHead
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.quic.seam import Bearer
    from router.transport.codec.robot.counters import RobotCounters
    from router.transport.codec.robot.wire import StateReader
    from router.transport.codec.webtransport.host import Asked

_LEFT: Final = frozenset((wire.GOING, wire.DRAINING, wire.NO_ROOM))  # closes by which a replica says: take another
_LOST: Final = frozenset((Kind.UPSTREAM_CLOSED.value, Kind.UPSTREAM_RESET.value))


class ReplicaSide(RobotEnding, TunnelOwner):
    """Base of `RobotServer`, which reads the robot's lanes into `command_in` and `state_waiting`."""

    __slots__ = (
        "_is_first",
        "_on_request",
        "clock",
        "collects",
        "command_in",
        "is_connected",
        "is_draining",
        "is_post",
        "is_relayed",
        "now",
        "relayed_session",
        "replies",
        "request",
        "state_in",
        "state_waiting",
    )

    def __init__(
        self,
        bearer: Bearer,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        on_refused: Callable[[ProxyError], None],
        counters: RobotCounters,
        now: float,
        asked: Asked | None,
    ) -> None:
        super().__init__(bearer, on_refused, counters, now, asked)
        self._on_request = on_request
        self.now = now
        self.is_connected = False
        self.is_draining = False
        self.request: tuple[bytes, bytes, Headers] = (b"", b"", [])
        self.clock = counters.seen.clock
        self.command_in = CommandIn()
        self.state_in = StateIn(gives_credit=False, stale=self.stream_code(wire.STALE))
        self.state_waiting: StateReader | None = None  # the newest, which the replica does not take yet
        self.replies = wire.STATE  # the lane that the client wants them on
        self._is_first = True  # of the replica's messages
        self.is_post = False
        self.collects = False  # telemetry that ends here goes somewhere
        self.is_relayed = False  # by a router, which takes another replica itself
        self.relayed_session = ""  # what that calls it; to be shown by, and for nothing else

    # -- to the replica -------------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand on what waits, commands first, while the replica takes it; give credit for what it took."""
        if self.phase >= ENDING:
            return
        tunnel, lane, counters = self.tunnel, self.command_in, self.counters
        now_us = microseconds(self.now)
        while lane.waiting and self.is_connected and tunnel is not None and not tunnel.is_full():
            command = lane.take()
            if self.clock.is_late(command.deadline, now_us):
                counters.robot_late_in += 1
            else:
                counters.robot_command_in += 1
                deadline = self.clock.to_ours(command.deadline)
                tunnel.send(command.data, is_text=command.is_text, deadline=deadline)
        state = self.state_waiting
        may_ask = self.is_connected or not self.is_post
        if state is not None and may_ask and tunnel is not None and not tunnel.is_full():
            self.state_waiting = None
            if self.clock.is_late(state.deadline, now_us):
                counters.robot_late_in += 1
            else:
                counters.robot_state_in += 1
                tunnel.send(state.payload(), is_state=True, deadline=self.clock.to_ours(state.deadline))
        flow = self.command_out.flow
        if flow is not None and self.epochs.number:
            lane.give_credit(flow)
        if self.bye_s and not lane.waiting:
            self.bye()

    def bye(self) -> None:
        """End once the replica has the commands that wait."""
        if self.command_in.waiting and self.phase in (OPEN, REOPENING):
            self.bye_s = self.now + GOODBYE_S
            self.bearer.watch()
        else:
            self.shut(wire.DONE, "", wire.DONE)

    # -- the replica ----------------------------------------------------------------------------------

    def open_tunnel(self, phase: int) -> None:
        """Look for a replica."""
        self.phase = phase
        self.let_replica_go(wire.GOING)  # the one before, if it has not taken our answer to its close
        is_post = self.is_post
        self._is_first = not is_post  # the replica's first word, which a WebSocket may begin with
        limit = wire.MAX_MESSAGE_BYTES
        kind = PostTunnel if is_post else MessageTunnel
        tunnel = kind(self, limit, self.continuity)
        self.tunnel = tunnel
        authority, path, headers = self.request
        error = tunnel.open(self._on_request, authority, path, list(headers), wire.VERSION)
        if error is not None:
            self.refuse(error)

    def retry(self) -> None:
        """Take another replica once it is time for the next try."""
        if self.is_draining:
            self.end(wire.DRAINING, Kind.DRAINING.value)
        elif self.epochs.is_due(self.now):
            self.open_tunnel(REOPENING)

    def touch(self) -> None:
        """Be flushed."""
        self.bearer.touch()

    def tunnel_open(self, head: ResponseHead) -> None:
        """Tell the client who serves it. What waits goes at the flush."""
        replica = ""
        for name, value in head.added:
            if name == b"x-router-replica":
                replica = value.decode("ascii", "replace")
        epochs, counters = self.epochs, self.counters
        epochs.opened()
        self.phase = OPEN
        continuity = self.continuity
        epoch = continuity.base + epochs.number
        token = continuity.token(epoch, self.now).decode()
        if epochs.number == 1:
            counters.robot_sessions += 1
            counters.robot_sessions_open += 1
            counters.robot_resumed += continuity.is_resumed
            counters.robot_resume_ignored += continuity.was_shown and not continuity.is_resumed
            self.say(control.Welcome(continuity.id, epoch, token, replica, collects=self.collects))
            self.state_in.allow()
        else:
            counters.robot_epochs += 1
            self.say(control.Epoch(epoch, replica, token))
        counters.seen.open(
            self.relayed_session or continuity.id, epoch, replica, has_lanes=head.shape.has_lanes
        )
        if self.command_out.is_full and self.tunnel is not None:
            self.tunnel.pause()

    def tunnel_ready(self) -> None:
        """Hand on what waited."""
        self.pump()

    def tunnel_message(self, data: bytes, is_text: bool, lane: int) -> None:
        """Pass a message on: by its lane; if it has none the first, and texts, where nothing is lost."""
        counters = self.counters
        by_state = self.replies == wire.STATE and not is_text and (lane == STATE_LANE or not self._is_first)
        if by_state and lane != COMMAND_LANE:
            out = self.state_out
            before = out.stale
            out.send(data)
            counters.robot_state_out += 1
            counters.robot_stale_out += out.stale - before
            return
        self._is_first = False
        counters.robot_command_out += 1
        self.command_out.send(data, is_text=is_text)
        if self.command_out.is_full:
            if self.tunnel is not None:
                self.tunnel.pause()
            if not self.stalled_s:
                self.stalled_s = UNKNOWN_S
                self.bearer.touch()

    def tunnel_refused(self, status: int, code: str, retry_after_s: int, body: bytes) -> None:
        """Tell the client why, unless there was a replica before and another may yet come."""
        if self.phase >= ENDING:
            return
        if self.phase == REOPENING and (status >= 500 or status == 429):
            self.epochs.lost()
            self.bearer.touch()
            return
        self.say_refused(code or f"status_{status}", status, body, retry_after_s)
        self.end(close_code(status, code), code or f"status {status}")

    def tunnel_closed(self, code: int, reason: str) -> None:
        """Take another replica if this one only goes; else end as it did, once what it said is sent."""
        tunnel = self.tunnel
        if self.phase >= ENDING or tunnel is None:
            return
        if self.bye_s:
            self.end(wire.DONE, "")
            return
        if code in _LEFT or tunnel.failure in _LOST:
            if self.is_relayed:
                self.end(code if code in _LEFT else wire.GOING, reason)
                return
            self.phase = REOPENING
            self.epochs.lost()
            self.bearer.touch()
            return
        if code == NO_STATUS:
            code = wire.DONE
        self.end(code if wire.DONE <= code < 5_000 else wire.FAILED, reason)
