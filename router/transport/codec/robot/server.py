"""The router's side of a robot's session: lanes to the robot, a WebSocket to one replica after another.

    WAITING --HELLO--> OPENING --tunnel open: WELCOME--> OPEN --the replica goes--> REOPENING
                          |                                ^----tunnel open: EPOCH------+
                          +--refused: REFUSED--> ENDING --acknowledged, or GOODBYE_S--> OVER <--fault, BYE, cut--

What the tunnel tells comes in the replica's tick, when `Bearer.now` is old: times that begin there are set at the
flush, which knows the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.continuity import Continuity
from router.errors import WIRE, Kind, ProxyError, Source
from router.transport.codec.framing import ANY_LANE, STATE_LANE
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.message_tunnel import MessageTunnel, TunnelOwner, close_code
from router.transport.codec.messages import NO_STATUS
from router.transport.codec.post_tunnel import PostTunnel
from router.transport.codec.quic.seam import Application
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.asked import make_request
from router.transport.codec.robot.command_lane import CommandIn
from router.transport.codec.robot.ending import (
    ENDING,
    OPEN,
    OPENING,
    OVER,
    REOPENING,
    UNKNOWN_S,
    WAITING,
    RobotEnding,
)
from router.transport.codec.robot.limits import (
    CONTROL_BURST,
    CONTROL_RATE,
    DATAGRAM_BURST,
    DATAGRAM_RATE,
    DIRECT_EVERY_S,
    GOODBYE_S,
    MAX_UNREAD_BYTES,
    PING_S,
    STALL_S,
)
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.codec.robot.reports import Reports
from router.transport.codec.robot.state_lane import StateIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, ResponseHead
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.attach.control import Place
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.codec.robot.counters import RobotCounters
    from router.transport.codec.robot.wire import Frame, StateReader
    from router.transport.codec.webtransport.host import Asked

_ONE_WAY: Final = 0x2
_COMMAND: Final = bytes((wire.COMMAND,))
# What the router says to a replica itself: compression above all, which it would have to read.
_OURS: Final = frozenset(
    (b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-version",
     b"x-router-replies")
)  # fmt: skip
_LEFT: Final = frozenset((wire.GOING, wire.DRAINING, wire.NO_ROOM))  # closes by which a replica says: take another
_LOST: Final = frozenset((Kind.UPSTREAM_CLOSED.value, Kind.UPSTREAM_RESET.value))
_EARLY: Final = (b"early-data", b"1")  # RFC 8470 §5.1
_COMMAND_REPLIES: Final = (b"x-router-replies", b"command")  # for a leg that has lanes; no replica sees it


class RobotServer(RobotEnding, Application, TunnelOwner):
    """One robot's connection."""

    __slots__ = (
        "_allowance",
        "_clock",
        "_command",
        "_command_in",
        "_continuity",
        "_datagram_allowance",
        "_direct_from_s",
        "_find_replica",
        "_frames",
        "_is_connected",
        "_is_draining",
        "_is_first",
        "_is_post",
        "_is_relayed",
        "_now",
        "_on_request",
        "_replies",
        "_reports",
        "_request",
        "_state_in",
        "_state_waiting",
    )

    def __init__(
        self,
        bearer: Bearer,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        on_refused: Callable[[ProxyError], None],
        counters: RobotCounters,
        now: float,
        asked: Asked | None = None,
        find_replica: Callable[[str, list[Place], Callable[[control.Offer], None]], None] | None = None,
    ) -> None:
        """`on_refused` learns of sessions that were malformed or late before they had an exchange.

        `asked`: the bearer is a WebTransport session, begun by this. `find_replica` asks a replica, by its host in
        the table, where a robot may come to it directly.
        """
        super().__init__(bearer, on_refused, counters, now, asked)
        self._on_request = on_request
        self._find_replica = find_replica
        self._direct_from_s = 0.0  # when the next question for that is answered
        self._now = now
        self._is_connected = False
        self._is_draining = False
        self._request: tuple[bytes, bytes, Headers] = (b"", b"", [])
        self._continuity = Continuity()
        self._frames = wire.FrameReader()
        self._allowance = Allowance(CONTROL_BURST, CONTROL_RATE, now)
        self._datagram_allowance = Allowance(DATAGRAM_BURST, DATAGRAM_RATE, now)
        self._clock = counters.seen.clock
        self._reports = Reports(counters)
        self._command: Flow | None = None
        self._command_in = CommandIn()
        self._state_in = StateIn(gives_credit=False, stale=self.stream_code(wire.STALE))
        self._state_waiting: StateReader | None = None  # the newest, which the replica does not take yet
        self._replies = wire.STATE  # the lane that the client wants them on
        self._is_first = True  # of the replica's messages
        self._is_post = False
        self._is_relayed = False  # by a router, which takes another replica itself
        bearer.watch()

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """What came early is no replay: commands may go, at the flush."""
        self._is_connected = True
        self.ping_s = self.bearer.now
        self.bearer.watch()

    def stream_opened(self, flow: Flow) -> None:
        """Begin a state message, or take one of the two streams that there are beside."""
        if self.phase >= ENDING:
            flow.stop(self.stream_code(wire.STALE))
        elif flow.id & _ONE_WAY:
            self._state_in.open(flow)
        elif self.asked is not None:
            return  # a session's streams may overtake each other: their first byte says what they are
        elif flow.id == wire.CONTROL_ID:
            self.control = flow
        elif flow.id == wire.COMMAND_ID:
            self._command = flow
        else:
            self.fault(wire.BROKEN, "a third two-way stream")

    def _name_lane(self, flow: Flow, data: bytes) -> None:
        """Find out which of the two a session's two-way stream is."""
        if self._command is None and data[:1] == _COMMAND:
            self._command = flow
        elif self.control is None:
            self.control = flow
        else:
            self.fault(wire.BROKEN, "a third two-way stream")

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Read on."""
        self._now = self.bearer.now
        if self.phase >= ENDING:
            flow.credit(len(data))
            return
        if flow.id & _ONE_WAY:
            self._read_state(flow, data, end)
            return
        if flow is not self.control and flow is not self._command:
            self._name_lane(flow, data)
        if flow is self.control:
            flow.credit(len(data))
            self._read_control(data, end)
        elif flow is self._command:
            self._read_command(flow, data, end)

    def stream_reset(self, flow: Flow, code: int) -> None:
        """A state message has a newer one; without the others there is no session."""
        if self.phase >= ENDING:
            return
        if flow.id & _ONE_WAY:
            before = self._state_in.stale
            self._state_in.lose(flow)
            self.counters.robot_stale_in += self._state_in.stale - before
        else:
            self.fault(wire.BROKEN, "a lane was reset")

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """A reply is not wanted any more; what is not a state message has to be."""
        if self.phase < ENDING and not flow.id & _ONE_WAY:
            self.fault(wire.BROKEN, "a lane was stopped")

    def stream_drained(self, flow: Flow) -> None:
        """Let the replica go on."""
        out = self.command_out
        if flow is out.flow and self.phase < ENDING:
            out.is_full = False
            self.stalled_s = 0.0
            if self.tunnel is not None:
                self.tunnel.resume()

    def stream_gone(self, flow: Flow) -> None:
        """Forget it; close when it was the last that a goodbye waited for."""
        self.state_out.gone(flow)
        if self.phase == ENDING:
            self.unacknowledged.discard(flow.id)
            if not self.unacknowledged:
                self.bearer.touch()

    def datagram(self, data: bytes) -> None:
        """Count telemetry, which goes no further; answer a PING as it came; ignore what is neither."""
        if wire.read_telemetry(data):
            self.counters.robot_telemetry_in += 1
            return
        body = control.read_datagram(data)
        self._now = self.bearer.now
        if body is None or self.phase >= ENDING or not self._datagram_allowance.take(self._now):
            return
        now_us = microseconds(self._now)
        if isinstance(body, control.Ping):
            self.bearer.send_datagram(control.encode_datagram(control.Pong(body.n, body.t, now_us, now_us)))
        else:
            self._clock.learn(body, now_us)

    def streams_available(self) -> None:
        """Send the reply that waits."""
        if self.phase < ENDING:
            self.state_out.send_waiting()

    def before_send(self, now: float) -> None:
        """Set times that began between flushes; take another replica; hand on what waited."""
        self._now = now
        if self.tunnel is not None:
            self.tunnel.flush()
        if self.phase >= ENDING:
            if self.phase == ENDING:
                self.see_goodbye(now)
            return
        self.state_out.send_waiting()
        if self.stalled_s < 0.0:
            self.stalled_s = now + STALL_S
            self.bearer.watch()
        epochs = self.epochs
        if not epochs.tick(now):
            self.refuse(ProxyError(Kind.NO_REPLICA, Source.UPSTREAM, detail="none stays"))
        elif epochs.retry_s:
            self.bearer.watch()
            self._retry()

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Let the replica go."""
        self.leave(OVER)
        self.let_replica_go(wire.DONE if by_peer and code == wire.DONE else wire.GOING)

    def drain(self) -> None:
        """Go on: a robot at work is not interrupted before the deadline. But nobody else is let in."""
        self._is_draining = True
        if self.phase == WAITING:
            self.refuse(ProxyError(Kind.DRAINING, Source.ROUTER))

    def retire(self, now: float) -> None:
        """Go on; who comes anew goes elsewhere by then."""
        self._is_draining = True

    def cut(self, error: ProxyError) -> None:
        """End now."""
        code = WIRE[error.kind].close_code
        self.shut(code, error.kind.value, code)

    # -- control --------------------------------------------------------------------------------------

    def _read_control(self, data: bytes, end: bool) -> None:
        frames = self._frames
        for frame in frames.read(data):
            self._take_frame(frame)
            if self.phase >= ENDING:
                return
        if frames.fault:
            self.fault(frames.fault, "a control frame is too large")
        elif end:
            if frames.is_between:
                self._bye()
            else:
                self.fault(wire.BROKEN, "half a control frame")

    def _take_frame(self, frame: Frame) -> None:
        if not self._allowance.take(self._now):
            self.fault(wire.NOT_ALLOWED, "too many control frames")
            return
        if not control.is_known(frame.kind):
            return
        body = control.decode(frame)
        if body is None:
            self.fault(wire.BROKEN, "a control frame is malformed")
        elif isinstance(body, control.Hello):
            self._take_hello(body)
        elif isinstance(body, control.Ping):
            now_us = microseconds(self._now)
            self.say(control.Pong(body.n, body.t, now_us, now_us))
        elif isinstance(body, control.Pong):
            self._clock.learn(body, microseconds(self._now))
        elif isinstance(body, control.Link):
            self._reports.take(body, self._now)
        elif isinstance(body, control.Bye):
            self._bye()
        elif isinstance(body, control.Direct):
            self._take_direct(body)
        else:
            self.fault(wire.BROKEN, "a control frame that the router sends")

    def _take_hello(self, hello: control.Hello) -> None:
        if self.phase != WAITING:
            self.fault(wire.BROKEN, "a second HELLO")
            return
        self.hello_by_s = 0.0
        self._is_post = hello.upstream == "post"
        self._continuity = Continuity(b"" if self._is_post else hello.resume.encode())
        self._is_relayed = hello.is_relayed
        self._replies = wire.COMMAND if hello.replies == "command" else wire.STATE
        if hello.authority is None and self.asked is None:
            self.fault(wire.BROKEN, "a control frame is malformed")
            return
        authority, path, headers = make_request(hello, self.asked)
        self.counters.seen.ask(authority, path, hello.upstream, self._now)
        headers = [field for field in headers if field[0] not in _OURS]
        if self._replies == wire.COMMAND:
            headers.append(_COMMAND_REPLIES)
        if not self._is_connected and not self._is_post:  # a POST is not asked before it can be no replay
            headers.append(_EARLY)
        self._request = authority, path, headers
        self._open(OPENING)

    def _take_direct(self, body: control.Direct) -> None:
        """Ask the replica where it is, if it is one that attached; not too often."""
        host = self.tunnel.replica_host() if self.tunnel is not None and self.phase == OPEN else ""
        if self._find_replica is None or not host or self._now < self._direct_from_s:
            self._offer(control.Offer("", b"", ""))
            return
        self._direct_from_s = self._now + DIRECT_EVERY_S
        self._find_replica(host, body.places, self._offer)

    def _offer(self, offer: control.Offer) -> None:
        if self.phase < ENDING:
            self.say(offer)

    def _bye(self) -> None:
        """End once the replica has the commands that wait."""
        if self._command_in.waiting and self.phase in (OPEN, REOPENING):
            self.bye_s = self._now + GOODBYE_S
            self.bearer.watch()
        else:
            self.shut(wire.DONE, "", wire.DONE)

    # -- to the replica -------------------------------------------------------------------------------

    def _read_state(self, flow: Flow, data: bytes, end: bool) -> None:
        lane = self._state_in
        before = lane.stale
        whole = lane.read(flow, data, end)
        self.counters.robot_stale_in += lane.stale - before
        if lane.fault:
            self.fault(lane.fault, "a state message is malformed or too large")
            return
        now_us = microseconds(self._now)
        if whole is not None:
            self.counters.seen.arrive(now_us)
            if self._clock.is_late(whole.deadline, now_us):
                self.counters.robot_late_in += 1
                return
            if self._state_waiting is not None:
                self.counters.robot_stale_in += 1
            self._state_waiting = whole
            self._pump()
        elif self._clock.is_late(lane.peek(flow), now_us):
            self.counters.robot_late_in += 1
            lane.drop(flow)

    def _read_command(self, flow: Flow, data: bytes, end: bool) -> None:
        lane, out = self._command_in, self.command_out
        if out.flow is None:
            was_full = out.is_full
            out.open(flow)
            if was_full and not out.is_full:
                self.stream_drained(flow)
        lane.read(data)
        if lane.fault:
            self.fault(lane.fault, "a command is malformed or too large")
        elif end and not lane.is_between:
            self.fault(wire.BROKEN, "half a command")
        else:
            self._pump()

    def _pump(self) -> None:
        """Hand on what waits, commands first, while the replica takes it; give credit for what it took."""
        if self.phase >= ENDING:
            return
        tunnel, lane, counters = self.tunnel, self._command_in, self.counters
        now_us = microseconds(self._now)
        while lane.waiting and self._is_connected and tunnel is not None and not tunnel.is_full():
            command = lane.take()
            if self._clock.is_late(command.deadline, now_us):
                counters.robot_late_in += 1
            else:
                counters.robot_command_in += 1
                deadline = self._clock.to_ours(command.deadline)
                tunnel.send(command.data, is_text=command.is_text, deadline=deadline)
        state = self._state_waiting
        may_ask = self._is_connected or not self._is_post
        if state is not None and may_ask and tunnel is not None and not tunnel.is_full():
            self._state_waiting = None
            if self._clock.is_late(state.deadline, now_us):
                counters.robot_late_in += 1
            else:
                counters.robot_state_in += 1
                tunnel.send(state.payload(), is_state=True, deadline=self._clock.to_ours(state.deadline))
        flow = self.command_out.flow
        if flow is not None and self.epochs.number:
            lane.give_credit(flow)
        if self.bye_s and not lane.waiting:
            self._bye()

    # -- the replica ----------------------------------------------------------------------------------

    def _open(self, phase: int) -> None:
        """Look for a replica."""
        self.phase = phase
        self.let_replica_go(wire.GOING)  # the one before, if it has not taken our answer to its close
        is_post = self._is_post
        self._is_first = not is_post  # the replica's first word, which a WebSocket may begin with
        limit = wire.MAX_MESSAGE_BYTES
        tunnel = PostTunnel(self, limit) if is_post else MessageTunnel(self, limit, self._continuity)
        self.tunnel = tunnel
        authority, path, headers = self._request
        error = tunnel.open(self._on_request, authority, path, list(headers), wire.VERSION)
        if error is not None:
            self.refuse(error)

    def _retry(self) -> None:
        if self._is_draining:
            self.end(wire.DRAINING, Kind.DRAINING.value)
        elif self.epochs.is_due(self._now):
            self._open(REOPENING)

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
        continuity = self._continuity
        epoch = continuity.base + epochs.number
        token = continuity.token(epoch, self._now).decode()
        if epochs.number == 1:
            counters.robot_sessions += 1
            counters.robot_sessions_open += 1
            counters.robot_resumed += continuity.is_resumed
            counters.robot_resume_ignored += continuity.was_shown and not continuity.is_resumed
            self.say(control.Welcome(continuity.id, epoch, token, replica))
            self._state_in.allow()
        else:
            counters.robot_epochs += 1
            self.say(control.Epoch(epoch, replica, token))
        counters.seen.open(continuity.id, epoch, replica, has_lanes=head.shape.has_lanes)
        if self.command_out.is_full and self.tunnel is not None:
            self.tunnel.pause()

    def tunnel_ready(self) -> None:
        """Hand on what waited."""
        self._pump()

    def tunnel_message(self, data: bytes, is_text: bool, lane: int) -> None:
        """Pass a message on: by its lane; if it has none the first, and texts, where nothing is lost."""
        counters = self.counters
        by_state = self._replies == wire.STATE and not self._is_first and not is_text
        if lane == STATE_LANE or (by_state and lane == ANY_LANE):
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
            if self._is_relayed:
                self.end(code if code in _LEFT else wire.GOING, reason)
                return
            self.phase = REOPENING
            self.epochs.lost()
            self.bearer.touch()
            return
        if code == NO_STATUS:
            code = wire.DONE
        self.end(code if wire.DONE <= code < 5_000 else wire.FAILED, reason)

    # -- time -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return the first of all times that are set."""
        first = 0.0
        for time_s in (
            self.hello_by_s, self.ping_s, self.stalled_s, self.bye_s, self.goodbye_s, self.epochs.retry_s,
        ):  # fmt: skip
            if time_s > 0.0 and (not first or time_s < first):
                first = time_s
        return first or None

    def handle_deadline(self, now: float) -> None:
        """Act on each that has passed."""
        self._now = now
        if 0.0 < self.goodbye_s <= now:
            self.close()
            return
        if 0.0 < self.hello_by_s <= now:
            self.fault(WIRE[Kind.REQUEST_TIMEOUT].close_code, "no HELLO")
        if 0.0 < self.bye_s <= now:
            self.shut(wire.DONE, "", wire.DONE)
        if 0.0 < self.stalled_s <= now:
            self.counters.robot_stalled += 1
            self.fault(wire.NOT_ALLOWED, "nothing is read")
        if 0.0 < self.ping_s <= now:
            self.ping_s = now + PING_S
            if self.control is not None and self.control.unsent_bytes > MAX_UNREAD_BYTES:
                self.fault(wire.NOT_ALLOWED, "control is not read")
            elif self.control is not None:
                now_us = microseconds(now)
                self.say(control.Ping(self._clock.ask(now_us), now_us))
                token = self._continuity.renewed(self._continuity.base + self.epochs.number, now)
                if token:
                    self.say(control.Token(token.decode()))
        if 0.0 < self.epochs.retry_s <= now:
            self.bearer.touch()  # the flush opens the next
