"""The router's side of a robot's session: its connection, control and lanes. `replica_side.py` is the other half.

    WAITING --HELLO--> OPENING --tunnel open: WELCOME--> OPEN --the replica goes--> REOPENING
                          |                                ^----tunnel open: EPOCH------+
                          +--refused: REFUSED--> ENDING --acknowledged, or GOODBYE_S--> OVER <--fault, BYE, cut--

Refusals, faults and goodbyes are `ending.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.continuity import Continuity
from router.errors import WIRE, Kind, ProxyError, Source
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.quic.seam import Application
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.asked import make_request
from router.transport.codec.robot.ending import ENDING, OPEN, OPENING, OVER, REOPENING, WAITING
from router.transport.codec.robot.limits import (
    CONTROL_BURST,
    CONTROL_RATE,
    DATAGRAM_BURST,
    DATAGRAM_RATE,
    DIRECT_EVERY_S,
    MAX_UNREAD_BYTES,
    PING_S,
    STALL_S,
    TELEMETRY_BURST,
    TELEMETRY_RATE,
)
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.codec.robot.replica_side import ReplicaSide
from router.transport.codec.robot.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.attach.control import Place
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.codec.robot.counters import RobotCounters
    from router.transport.codec.robot.wire import Frame
    from router.transport.codec.webtransport.host import Asked

_ONE_WAY: Final = 0x2
_COMMAND: Final = bytes((wire.COMMAND,))
# What the router says to a replica itself: compression above all, which it would have to read.
_OURS: Final = frozenset(
    (b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-version",
     b"x-router-replies")
)  # fmt: skip
_EARLY: Final = (b"early-data", b"1")  # RFC 8470 §5.1
_COMMAND_REPLIES: Final = (b"x-router-replies", b"command")  # for a leg that has lanes; no replica sees it


class RobotServer(ReplicaSide, Application):
    """One robot's connection."""

    __slots__ = (
        "_allowance",
        "_collect",
        "_command",
        "_datagram_allowance",
        "_direct_from_s",
        "_early_hello",
        "_find_replica",
        "_frames",
        "_is_sidecar",
        "_reports",
        "_telemetry_allowance",
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
        collect: Callable[[str, bytes, int, bytes, float], bool] | None = None,
        *,
        is_sidecar: bool = False,
    ) -> None:
        """`on_refused` learns of sessions that were malformed or late before they had an exchange.

        `asked`: the bearer is a WebTransport session, begun by this. `find_replica` asks a replica, by its host in
        the table, where a robot may come to it directly. `collect` is given telemetry that goes no further
        (session, authority, sequence, payload, when it came), and says whether it was taken. `is_sidecar`: who
        relays is a router, which names its sessions.
        """
        super().__init__(bearer, on_request, on_refused, counters, now, asked)
        self._find_replica = find_replica
        self._direct_from_s = 0.0  # when the next question for that is answered
        self._frames = wire.FrameReader()
        self._early_hello: control.Hello | None = None
        self._allowance = Allowance(CONTROL_BURST, CONTROL_RATE, now)
        self._datagram_allowance = Allowance(DATAGRAM_BURST, DATAGRAM_RATE, now)
        self._telemetry_allowance = Allowance(TELEMETRY_BURST, TELEMETRY_RATE, now)
        self._collect = collect
        self.collects = collect is not None
        self._is_sidecar = is_sidecar
        self._reports = Reports(counters)
        self._command: Flow | None = None
        bearer.watch()

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """What came early is no replay: commands may go, at the flush."""
        self.is_connected = True
        self.now = self.ping_s = self.bearer.now
        self.bearer.watch()
        hello, self._early_hello = self._early_hello, None
        if hello is not None and self.phase == WAITING:
            self._take_hello(hello)

    def stream_opened(self, flow: Flow) -> None:
        """Begin a state message, or take one of the two streams that there are beside."""
        if self.phase >= ENDING:
            flow.stop(self.stream_code(wire.STALE))
        elif flow.id & _ONE_WAY:
            self.state_in.open(flow)
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
        self.now = self.bearer.now
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
            before = self.state_in.stale
            self.state_in.lose(flow)
            self.counters.robot_stale_in += self.state_in.stale - before
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
        """Pass telemetry on; answer a PING as it came; ignore what is neither."""
        sequence = wire.read_telemetry(data)
        if sequence:
            self._take_telemetry(sequence, data)
            return
        body = control.read_datagram(data)
        self.now = self.bearer.now
        if body is None or self.phase >= ENDING or not self._datagram_allowance.take(self.now):
            return
        now_us = microseconds(self.now)
        if isinstance(body, control.Ping):
            self.bearer.send_datagram(control.encode_datagram(control.Pong(body.n, body.t, now_us, now_us)))
        else:
            self.clock.learn(body, now_us)

    def _take_telemetry(self, sequence: int, data: bytes) -> None:
        """Pass it on as it came, by the replica's lanes, if who is there wants it; or it ends here."""
        counters, tunnel, now = self.counters, self.tunnel, self.bearer.now
        counters.robot_telemetry_in += 1
        if not self._telemetry_allowance.take_if_any(now):
            counters.robot_telemetry_dropped_rate += 1
        elif not self.is_connected:
            counters.robot_telemetry_unused += 1  # it may be a replay, which nothing about it shows where it ends
        elif tunnel is not None and tunnel.takes_datagrams():
            if tunnel.send_datagram(data):
                counters.robot_telemetry_relayed += 1
            else:
                counters.robot_telemetry_dropped_lanes += 1
        elif self._collect is None or not self._is_let_in():
            counters.robot_telemetry_unused += 1
        elif self._collect(
            self.relayed_session or self.continuity.id, counters.seen.authority, sequence,
            wire.telemetry_payload(data), now,
        ):  # fmt: skip
            counters.robot_telemetry_collected += 1
        else:
            counters.robot_telemetry_dropped_collector += 1

    def _is_let_in(self) -> bool:
        """Whether a replica has taken the session. One by POST is open before anybody was asked who it is."""
        if self.phase not in (OPEN, REOPENING):
            return False
        counters = self.counters
        return not self.is_post or counters.robot_state_out + counters.robot_command_out > 0

    def streams_available(self) -> None:
        """Send the reply that waits."""
        if self.phase < ENDING:
            self.state_out.send_waiting()

    def before_send(self, now: float) -> None:
        """Set times that began between flushes; take another replica; hand on what waited."""
        self.now = now
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
            self.retry()

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Let the replica go."""
        self.leave(OVER)
        if self.is_relayed and by_peer and code == wire.GOING and self.tunnel is not None:
            self.tunnel.abandon()  # cut by the router, which has room for another from now on: so must we
        self.let_replica_go(wire.DONE if by_peer and code == wire.DONE else wire.GOING)

    def drain(self) -> None:
        """Go on: a robot at work is not interrupted before the deadline. But nobody else is let in."""
        self.is_draining = True
        if self.phase == WAITING:
            self.refuse(ProxyError(Kind.DRAINING, Source.ROUTER))

    def retire(self, now: float) -> None:
        """Go on; who comes anew goes elsewhere by then."""
        self.is_draining = True

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
                self.bye()
            else:
                self.fault(wire.BROKEN, "half a control frame")

    def _take_frame(self, frame: Frame) -> None:
        if not self._allowance.take(self.now):
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
            now_us = microseconds(self.now)
            self.say(control.Pong(body.n, body.t, now_us, now_us))
        elif isinstance(body, control.Pong):
            self.clock.learn(body, microseconds(self.now))
        elif isinstance(body, control.Link):
            self._reports.take(body, self.now)
        elif isinstance(body, control.Bye):
            self.bye()
        elif isinstance(body, control.Direct):
            self._take_direct(body)
        else:
            self.fault(wire.BROKEN, "a control frame that the router sends")

    def _take_hello(self, hello: control.Hello) -> None:
        if self.phase != WAITING or self._early_hello is not None:
            self.fault(wire.BROKEN, "a second HELLO")
            return
        self.is_post = hello.upstream == "post"
        if hello.resume and not self.is_connected and not self.is_post:
            self._early_hello = hello  # who held it back and sends it later must not end the session that there is
            return
        self.hello_by_s = 0.0
        shown = b"" if self.is_post else hello.resume.encode()
        self.continuity = Continuity(shown, hello.attempt, self.supersede)
        self.is_relayed = hello.is_relayed
        if self._is_sidecar and hello.is_relayed:
            self.relayed_session = hello.session
        self.replies = wire.COMMAND if hello.replies == "command" else wire.STATE
        if hello.authority is None and self.asked is None:
            self.fault(wire.BROKEN, "a control frame is malformed")
            return
        authority, path, headers = make_request(hello, self.asked)
        self.counters.seen.ask(authority, path, hello.upstream, self.now)
        headers = [field for field in headers if field[0] not in _OURS]
        if self.replies == wire.COMMAND:
            headers.append(_COMMAND_REPLIES)
        if not self.is_connected and not self.is_post:  # a POST is not asked before it can be no replay
            headers.append(_EARLY)
        self.request = authority, path, headers
        self.open_tunnel(OPENING)

    def _take_direct(self, body: control.Direct) -> None:
        """Ask the replica where it is, if it is one that attached; not too often."""
        host = self.tunnel.replica_host() if self.tunnel is not None and self.phase == OPEN else ""
        if self._find_replica is None or not host or self.now < self._direct_from_s:
            self._offer(control.Offer("", b"", ""))
            return
        self._direct_from_s = self.now + DIRECT_EVERY_S
        self._find_replica(host, body.places, self._offer)

    def _offer(self, offer: control.Offer) -> None:
        if self.phase < ENDING:
            self.say(offer)

    # -- to the replica -------------------------------------------------------------------------------

    def _read_state(self, flow: Flow, data: bytes, end: bool) -> None:
        lane = self.state_in
        before = lane.stale
        whole = lane.read(flow, data, end)
        self.counters.robot_stale_in += lane.stale - before
        if lane.fault:
            self.fault(lane.fault, "a state message is malformed or too large")
            return
        now_us = microseconds(self.now)
        if whole is not None:
            self.counters.seen.arrive(now_us)
            if self.clock.is_late(whole.deadline, now_us):
                self.counters.robot_late_in += 1
                return
            if self.state_waiting is not None:
                self.counters.robot_stale_in += 1
            self.state_waiting = whole
            self.pump()
        elif self.clock.is_late(lane.peek(flow), now_us):
            self.counters.robot_late_in += 1
            lane.drop(flow)

    def _read_command(self, flow: Flow, data: bytes, end: bool) -> None:
        lane, out = self.command_in, self.command_out
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
            self.pump()

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
        self.now = now
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
                self.say(control.Ping(self.clock.ask(now_us), now_us))
                token = self.continuity.renewed(self.continuity.base + self.epochs.number, now)
                if token:
                    self.say(control.Token(token.decode()))
        if 0.0 < self.epochs.retry_s <= now:
            self.bearer.touch()  # the flush opens the next
