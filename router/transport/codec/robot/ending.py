"""How a robot's session ends: what it owns of lanes, replica and times, and the ways out of it.

Refused or closed by the replica, the client first gets what it was sent: a close would cut off what was not
acknowledged. At a fault, a BYE, a cut, or when the robot has come again, nobody waits. Inside a tunnel's callback
nothing closes: the flush does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.continuity import Continuity
from router.errors import WIRE, Kind, ProxyError, Source
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.command_lane import CommandOut
from router.transport.codec.robot.epochs import Epochs
from router.transport.codec.robot.limits import GOODBYE_S, HELLO_LIMIT_S, MAX_REASON_BYTES, PAGE_S
from router.transport.codec.robot.state_lane import StateOut
from router.transport.codec.webtransport.codes import to_http3

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.transport.codec.message_tunnel import Tunnel
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.codec.robot.counters import RobotCounters
    from router.transport.codec.webtransport.host import Asked

WAITING: Final = 0
OPENING: Final = 1
OPEN: Final = 2
REOPENING: Final = 3
ENDING: Final = 4
OVER: Final = 5

UNKNOWN_S: Final = -1.0  # a time that the next flush sets


class RobotEnding:
    """Base of `RobotServer`. Times are 0 for none."""

    __slots__ = (
        "asked",
        "bearer",
        "bye_s",
        "command_out",
        "continuity",
        "control",
        "counters",
        "epochs",
        "goodbye",
        "goodbye_s",
        "hello_by_s",
        "is_read_out",
        "on_refused",
        "phase",
        "ping_s",
        "stalled_s",
        "state_out",
        "tunnel",
        "unacknowledged",
        "was_refused",
    )

    def __init__(
        self,
        bearer: Bearer,
        on_refused: Callable[[ProxyError], None],
        counters: RobotCounters,
        now: float,
        asked: Asked | None,
    ) -> None:
        self.bearer = bearer
        self.asked = asked
        self.on_refused = on_refused
        self.counters = counters
        self.phase = WAITING
        self.epochs = Epochs()
        self.continuity = Continuity()
        self.tunnel: Tunnel | None = None
        self.control: Flow | None = None
        self.command_out = CommandOut()
        self.state_out = StateOut(bearer, stale=self.stream_code(wire.STALE))
        self.hello_by_s = now + HELLO_LIMIT_S
        self.ping_s = 0.0
        self.stalled_s = 0.0
        self.bye_s = 0.0
        self.goodbye_s = 0.0
        self.goodbye = (wire.DONE, b"")
        self.was_refused = False
        self.is_read_out = False  # a page has all, and a moment to read it
        self.unacknowledged: set[int] = set()  # streams whose end is to arrive before the close

    def stream_code(self, code: int) -> int:
        """Return a code as streams of this bearer have it."""
        return code if self.asked is None else to_http3(code)

    def say(self, body: control.Body) -> None:
        """Send a control frame."""
        if self.control is not None:
            self.control.send(control.encode(body), False)

    def refuse(self, error: ProxyError) -> None:
        """Say why there will be no replica, without having asked for one."""
        self.on_refused(error)
        row = WIRE[error.kind]
        after_s = error.retry_after_s or row.retry_after_s
        self.say_refused(error.kind.value, row.status, error.detail.encode(), after_s)
        self.end(row.close_code, error.kind.value)

    def say_refused(self, code: str, status: int, body: bytes, retry_after_s: int) -> None:
        """Send REFUSED."""
        self.counters.robot_refused += 1
        self.was_refused = self.control is not None
        message = body[:MAX_REASON_BYTES].decode("utf-8", "replace")
        self.say(control.Refused(code, status, message, retry_after_s))

    def fault(self, code: int, reason: str) -> None:
        """End at once: the client broke the protocol, or a limit."""
        if self.phase >= ENDING:
            return
        self.counters.robot_faults += 1
        if self.phase == WAITING:
            self.on_refused(ProxyError(Kind.BAD_REQUEST, Source.DOWNSTREAM, detail=reason))
        self.shut(code, reason, wire.GOING)

    def end(self, code: int, reason: str) -> None:
        """Close once the client has what it was sent, or after `GOODBYE_S`."""
        if self.phase >= ENDING:
            return
        self.leave(ENDING)
        self.goodbye = (code, reason.encode())
        for flow in (self.control, self.command_out.flow):
            if flow is not None and flow.can_send():
                flow.send(b"", True)
                flow.stop(self.stream_code(code))
                self.unacknowledged.add(flow.id)
        self.state_out.hurry()
        last = self.state_out.last
        if last is not None:
            self.unacknowledged.add(last.id)
        self.goodbye_s = UNKNOWN_S
        self.bearer.touch()

    def shut(self, code: int, reason: str, to_replica: int) -> None:
        """Close without waiting for anybody; `to_replica` is the code that the replica sees."""
        if self.phase == OVER:
            return
        self.let_replica_go(to_replica)
        self.goodbye = (code, reason.encode())
        self.close()

    def supersede(self) -> None:
        """End: the robot has come again, so this connection is one that it lost, or somebody shows its token.

        Its replica is free at once. Who does hear this is not to come again: two would take each other's place
        for ever.
        """
        if self.phase >= ENDING:
            return
        self.counters.robot_superseded += 1
        if self.tunnel is not None:
            self.tunnel.abandon()
        self.leave(ENDING)
        self.goodbye = (wire.NOT_ALLOWED, wire.SUPERSEDED.encode())
        self.goodbye_s = UNKNOWN_S
        self.bearer.touch()

    def see_goodbye(self, now: float) -> None:
        """At a flush: close if the client has everything, else wait for that.

        A browser acknowledges what its page has not read yet, and drops it at a close: a page gets a moment more.
        One that was refused closes by itself.
        """
        if not self.unacknowledged and self.asked is None:
            self.close()
        elif not self.unacknowledged and not self.was_refused and not self.is_read_out:
            self.is_read_out = True
            self.goodbye_s = now + PAGE_S
            self.bearer.watch()
        elif self.goodbye_s < 0.0:
            self.goodbye_s = now + GOODBYE_S
            self.bearer.watch()

    def close(self) -> None:
        """Say goodbye; the replica that has not answered a close by now gets none."""
        self.leave(OVER)
        self.let_replica_go(wire.GOING)
        self.bearer.close(*self.goodbye)

    def leave(self, phase: int) -> None:
        """Count a session that ends, and forget every time."""
        if self.phase < ENDING:
            if self.epochs.number:
                self.counters.robot_sessions_open -= 1
            self.counters = self.counters.settle()
            self.continuity.over()
        self.phase = phase
        self.hello_by_s = self.ping_s = self.stalled_s = self.bye_s = self.goodbye_s = 0.0
        self.epochs.retry_s = 0.0

    def let_replica_go(self, code: int) -> None:
        """End the tunnel; nothing where it has ended."""
        if self.tunnel is not None:
            self.tunnel.close(code, waits=False)
