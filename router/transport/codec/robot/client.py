"""The robot's side of a session: lanes and control frames on one QUIC connection. No I/O, no clock.

    OPENING --WELCOME--> OPEN --leave--> LEAVING: lane ended and acknowledged, BYE --> OVER
       +------ REFUSED, a fault, the connection's end, in any of them ---------------^

HELLO and the command lane's first byte leave with the first flight, early where an earlier connection allows that;
so may messages, since the router keeps commands until they can be no replay. The lanes are `state_lane.py` and
`client_commands.py`. Who uses this is told by `RobotCalls`, plain callables: a compiled class has no interpreted
heirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h2.calm import Allowance
from router.transport.codec.quic.seam import Application
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.client_commands import ClientCommands
from router.transport.codec.robot.limits import (
    CONTROL_BURST,
    CONTROL_RATE,
    DATAGRAM_BURST,
    DATAGRAM_RATE,
    GOODBYE_S,
    MAX_TELEMETRY_WAITING,
)
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.codec.robot.state_lane import StateIn, StateOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.errors import ProxyError
    from router.transport.codec.attach.control import Place
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.codec.robot.link import LinkMeter
    from router.transport.codec.robot.wire import Frame

OPENING: Final = 0
OPEN: Final = 1
LEAVING: Final = 2
OVER: Final = 3

LINK_S: Final = 1.0
STREAM_PING_S: Final = 1.0
"""Between PINGs where the path takes no DATAGRAMs: the router allows eight control frames a second."""
_ONE_WAY: Final = 0x2
_PING_BYTES: Final = 64


def _nothing(*_: object) -> None:
    """Stand for who does not want to know."""


class RobotCalls:
    """Who is told of what. Each is called inside the connection's `receive`, or its deadlines."""

    __slots__ = ("closed", "epoch", "flushed", "message", "offer", "pong", "token", "welcome")

    def __init__(self) -> None:
        self.welcome: Callable[[control.Welcome], None] = _nothing
        self.epoch: Callable[[control.Epoch], None] = _nothing
        # lane, sequence (0 on the command lane), payload, whether it is text; commands are to be `took`
        self.message: Callable[[int, int, bytes, bool], None] = _nothing
        self.offer: Callable[[control.Offer], None] = _nothing
        self.token: Callable[[str], None] = _nothing  # to find back with, instead of the one before
        self.pong: Callable[[float], None] = _nothing  # a round trip, seconds
        self.flushed: Callable[[], None] = _nothing  # the tick is about to end: what waits for that is due
        # code, reason, whether the peer ended it, and why if the router refused; the last word
        self.closed: Callable[[int, str, bool, control.Refused | None], None] = _nothing


class RobotClient(Application):
    """One connection. `ping_every_s` is what the path is asked at; see `STREAM_PING_S`."""

    __slots__ = (
        "_allowance",
        "_bearer",
        "_calls",
        "_commands",
        "_control",
        "_datagram_allowance",
        "_frames",
        "_hello",
        "_leave_by_s",
        "_link_s",
        "_meter",
        "_now",
        "_ping_s",
        "_refused",
        "_said_bye",
        "_state_in",
        "_state_out",
        "_telemetry",
        "max_message_bytes",
        "phase",
        "ping_every_s",
    )

    def __init__(
        self,
        bearer: Bearer,
        hello: control.Hello,
        calls: RobotCalls,
        meter: LinkMeter,
        now: float,
        ping_every_s: float = 0.2,
    ) -> None:
        self._bearer = bearer
        self._hello = hello
        self._calls = calls
        self._meter = meter
        self._now = now
        self.ping_every_s = ping_every_s
        self.phase = OPENING
        self.max_message_bytes = wire.MAX_MESSAGE_BYTES
        self._control: Flow | None = None
        self._frames = wire.FrameReader()
        self._allowance = Allowance(CONTROL_BURST, CONTROL_RATE + 1.0 / STREAM_PING_S, now)
        self._datagram_allowance = Allowance(DATAGRAM_BURST, DATAGRAM_RATE, now)
        self._commands = ClientCommands()
        self._state_in = StateIn(gives_credit=True)
        self._state_out = StateOut(bearer)
        self._telemetry = 0
        self._refused: control.Refused | None = None
        self._ping_s = 0.0
        self._link_s = 0.0
        self._leave_by_s = 0.0
        self._said_bye = False
        self._begin()

    def _begin(self) -> None:
        """Say HELLO once the router allows the two streams."""
        bearer = self._bearer
        if self._control is None:
            self._control = flow = bearer.open_stream(unidirectional=False)
            if flow is None:
                return
            flow.send(control.encode(self._hello), False)
        if self._commands.flow is None:
            flow = bearer.open_stream(unidirectional=False)
            if flow is not None:
                self._commands.open(flow)

    # -- for the session ------------------------------------------------------------------------------

    def send_state(self, payload: bytes, deadline: int, now: float) -> bool:
        """Send a message instead of the one before; `deadline` by our clock in microseconds, 0 for none."""
        if self.phase >= LEAVING or not self._is_sendable(payload, deadline, now):
            return False
        self._meter.sent(now)
        before = self._state_out.stale
        self._state_out.send(payload, deadline)
        self._meter.stale += self._state_out.stale - before
        self._bearer.touch()
        if deadline:
            self._bearer.watch()
        return True

    def send_command(
        self, payload: bytes, deadline: int, now: float, *, is_text: bool = False, is_held: bool = False
    ) -> bool:
        """Queue a message behind those before it; False while too much waits.

        `is_held`: who sends sees to `is_command_full` itself, and nothing is too much.
        """
        if self.phase >= LEAVING or not self._is_sendable(payload, deadline, now):
            return False
        is_queued = self._commands.send(payload, deadline, is_text=is_text, is_held=is_held)
        if is_queued:
            self._meter.sent(now)
        return is_queued

    def is_command_full(self) -> bool:
        """Whether so much of the lane is unsent that who has a choice sends no more for now."""
        return self._commands.is_full()

    def send_telemetry(self, payload: bytes) -> bool:
        """Send a DATAGRAM; False if the path takes none so large."""
        if self.phase >= LEAVING:
            return False
        self._telemetry += 1
        return self._bearer.send_datagram(wire.telemetry(self._telemetry, payload))

    def pass_telemetry_on(self, data: bytes) -> bool:
        """Send a robot's DATAGRAM as it came, its sequence with it; False if it is too large, or too many wait."""
        bearer = self._bearer
        if self.phase >= LEAVING or bearer.waiting_datagrams() >= MAX_TELEMETRY_WAITING:
            return False
        return bearer.send_datagram(data)

    def took(self, payload: bytes) -> None:
        """Learn that the user has a command: the router may send on."""
        self._commands.took(payload)

    def unsent(self) -> tuple[list[wire.Command], tuple[bytes, int] | None]:
        """Return what never left: commands, and a state message. It may be sent in another connection."""
        return self._commands.take_unsent(), self._state_out.take_waiting()

    def unsent_state(self) -> tuple[bytes, int] | None:
        """Return the state message that never left, if there is one; commands go on."""
        return self._state_out.take_waiting()

    def ask_direct(self, places: list[Place]) -> None:
        """Ask where the replica is, that we may come to it from one of these places. `RobotCalls.offer` follows."""
        if self.phase == OPEN:
            self._say(control.Direct(places))

    def leave(self, now: float) -> None:
        """Say goodbye once all commands are the router's, or after `GOODBYE_S`."""
        if self.phase == OVER or self._leave_by_s:
            return
        lane = self._commands.flow
        if self.phase == OPENING or lane is None:
            self._close(wire.DONE, b"")
            return
        self.phase = LEAVING
        self._leave_by_s = now + GOODBYE_S
        lane.send(b"", True)
        self._bearer.touch()
        self._bearer.watch()

    def _is_sendable(self, payload: bytes, deadline: int, now: float) -> bool:
        if len(payload) > self.max_message_bytes:
            raise ValueError(f"a message of {len(payload)} bytes; at most {self.max_message_bytes} are taken")
        if 0 < deadline <= microseconds(now):
            self._meter.late += 1
            return False
        return True

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """Measure from now on."""
        self._now = self._bearer.now
        self._begin()
        self._ping_s = self._now
        self._link_s = self._now + LINK_S
        self._bearer.watch()

    def stream_opened(self, flow: Flow) -> None:
        """Begin a reply."""
        if self.phase == OVER:
            return
        if flow.id & _ONE_WAY:
            self._state_in.open(flow)
        else:
            self._fault(wire.BROKEN, b"a two-way stream of the router's")

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Read on."""
        self._now = self._bearer.now
        if self.phase == OVER:
            return
        if flow.id & _ONE_WAY:
            self._read_state(flow, data, end)
        elif flow is self._control:
            flow.credit(len(data))
            self._read_control(data)
        elif flow is self._commands.flow:
            self._read_command(data)

    def stream_reset(self, flow: Flow, code: int) -> None:
        """A reply has a newer one; without the others there is no session."""
        if flow.id & _ONE_WAY:
            before = self._state_in.stale
            self._state_in.lose(flow)
            self._meter.stale += self._state_in.stale - before
        elif self.phase < LEAVING:
            self._fault(wire.BROKEN, b"a lane was reset")

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """A state message is not wanted any more. A lane that is stopped is one whose session ends: that comes."""
        if flow.id & _ONE_WAY:
            before = self._state_out.stale
            self._state_out.stopped(flow)
            self._meter.stale += self._state_out.stale - before
            self._bearer.touch()

    def stream_drained(self, flow: Flow) -> None:
        """There is room again: the flush tells who waits for it."""
        self._bearer.touch()

    def stream_gone(self, flow: Flow) -> None:
        """Forget it."""
        self._state_out.gone(flow)

    def datagram(self, data: bytes) -> None:
        """Answer a PING, or take a PONG; nothing else comes in DATAGRAMs."""
        body = control.read_datagram(data)
        self._now = self._bearer.now
        if body is None or self.phase == OVER or not self._datagram_allowance.take(self._now):
            return
        if isinstance(body, control.Ping):
            self._bearer.send_datagram(control.encode_datagram(self._answer(body)))
        else:
            self._take_pong(body)

    def streams_available(self) -> None:
        """Send what waited for a stream."""
        self._begin()
        self._state_out.send_waiting()

    def before_send(self, now: float) -> None:
        """Give up what is late; send what waited; go on with a goodbye."""
        self._now = now
        if self.phase == OVER:
            return
        out = self._state_out
        if out.next_deadline():
            before = out.late
            out.expire(microseconds(now))
            self._meter.late += out.late - before
        out.send_waiting()
        self._calls.flushed()
        if self.phase == LEAVING and not self._said_bye and self._commands.is_over():
            self._say_bye()

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Tell the session."""
        self._end(code, reason, by_peer=by_peer)

    def drain(self) -> None:
        """Go on: a robot at work is not interrupted. Its session's owner says goodbye."""

    def retire(self, now: float) -> None:
        """Go on."""

    def cut(self, error: ProxyError) -> None:
        """End now."""
        self._close(wire.GOING, error.kind.value.encode())

    # -- control --------------------------------------------------------------------------------------

    def _read_control(self, data: bytes) -> None:
        frames = self._frames
        for frame in frames.read(data):
            self._take_frame(frame)
            if self.phase == OVER:
                return
        if frames.fault:
            self._fault(frames.fault, b"a control frame is too large")

    def _take_frame(self, frame: Frame) -> None:
        if not self._allowance.take(self._now):
            self._fault(wire.NOT_ALLOWED, b"too many control frames")
            return
        if not control.is_known(frame.kind):
            return
        body = control.decode(frame)
        if body is None:
            self._fault(wire.BROKEN, b"a control frame is malformed")
        elif isinstance(body, control.Ping):
            self._say(self._answer(body))
        elif isinstance(body, control.Pong):
            self._take_pong(body)
        elif isinstance(body, control.Welcome):
            self._take_welcome(body)
        elif isinstance(body, control.Epoch):
            if self.phase == OPENING:
                self._fault(wire.BROKEN, b"EPOCH before WELCOME")
            else:
                self._calls.epoch(body)
        elif isinstance(body, control.Refused):
            self._refused = body
        elif isinstance(body, control.Offer):
            self._calls.offer(body)
        elif isinstance(body, control.Token):
            self._calls.token(body.token)
        else:
            self._fault(wire.BROKEN, b"a control frame that clients send")

    def _take_welcome(self, body: control.Welcome) -> None:
        if self.phase != OPENING:
            if self.phase == OPEN:
                self._fault(wire.BROKEN, b"a second WELCOME")
            return
        self.phase = OPEN
        self.max_message_bytes = min(self.max_message_bytes, body.max_message_bytes)
        self._calls.welcome(body)

    def _answer(self, ping: control.Ping) -> control.Pong:
        now_us = microseconds(self._now)
        return control.Pong(ping.n, ping.t, now_us, now_us)

    def _take_pong(self, pong: control.Pong) -> None:
        if self._meter.hear(pong, self._now):
            self._calls.pong(self._meter.last_s)

    def _say(self, body: control.Body) -> None:
        if self._control is not None:
            self._control.send(control.encode(body), False)

    # -- messages -------------------------------------------------------------------------------------

    def _read_state(self, flow: Flow, data: bytes, end: bool) -> None:
        lane, meter = self._state_in, self._meter
        before = lane.stale
        whole = lane.read(flow, data, end)
        meter.stale += lane.stale - before
        if lane.fault:
            self._fault(lane.fault, b"a state message is malformed or too large")
        elif whole is not None:
            if meter.clock.is_late(whole.deadline, microseconds(self._now)):
                meter.late += 1
                return
            meter.reply(self._now)
            self._calls.message(wire.STATE, whole.sequence, whole.payload(), False)

    def _read_command(self, data: bytes) -> None:
        lane, meter = self._commands, self._meter
        for command in lane.read(data):
            meter.reply(self._now)
            if meter.clock.is_late(command.deadline, microseconds(self._now)):
                meter.late += 1
                continue
            lane.wait(command.data)
            self._calls.message(wire.COMMAND, 0, command.data, command.is_text)
            if self.phase == OVER:
                return
        if lane.fault:
            self._fault(lane.fault, b"a command is malformed or too large")
        else:
            lane.give_credit()

    # -- time, and the end ----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return the first of all times that are set."""
        if self.phase == OVER:
            return None
        first = 0.0
        late_s = self._state_out.next_deadline() / 1e6
        for time_s in (self._ping_s, self._link_s, self._leave_by_s, late_s):
            if time_s > 0.0 and (not first or time_s < first):
                first = time_s
        return first or None

    def handle_deadline(self, now: float) -> None:
        """Act on each that has passed."""
        self._now = now
        if 0.0 < self._leave_by_s <= now:
            if self._said_bye:
                self._close(wire.DONE, b"")
                return
            self._leave_by_s = now + GOODBYE_S
            self._say_bye()
        if 0.0 < self._ping_s <= now:
            self._ping(now)
        if 0.0 < self._link_s <= now:
            self._link_s = now + LINK_S
            self._say(self._meter.report())
        self._bearer.touch()  # the flush gives up what is late

    def _ping(self, now: float) -> None:
        bearer, meter = self._bearer, self._meter
        meter.expire(now)
        takes_datagrams = bearer.max_datagram_bytes() >= _PING_BYTES
        every_s = self.ping_every_s if takes_datagrams else max(self.ping_every_s, STREAM_PING_S)
        self._ping_s = now + every_s
        ping = meter.ask(now, may_be_lost=takes_datagrams)
        if not takes_datagrams:
            self._say(ping)
        elif not bearer.send_datagram(control.encode_datagram(ping)):
            meter.forget(ping)

    def _say_bye(self) -> None:
        self._said_bye = True
        if self._control is not None:
            self._control.send(control.encode(control.Bye()), True)

    def _fault(self, code: int, reason: bytes) -> None:
        self._close(code, reason)

    def _close(self, code: int, reason: bytes) -> None:
        """End the connection ourselves."""
        if self.phase == OVER:
            return
        self._bearer.close(code, reason)
        self._end(code, reason.decode(), by_peer=False)

    def _end(self, code: int, reason: str, *, by_peer: bool) -> None:
        if self.phase == OVER:
            return
        self.phase = OVER
        self._calls.closed(code, reason, by_peer, self._refused)
