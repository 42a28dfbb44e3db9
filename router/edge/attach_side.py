"""What both sides of `router-attach/1` do: hand streams to their splices, write control, end once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.attach import control
from router.transport.codec.quic.seam import Application
from router.transport.codec.robot.wire import FrameReader

if TYPE_CHECKING:
    from router.edge.splice import Splice
    from router.transport.codec.quic.seam import Bearer, Flow

MAX_UNREAD_BYTES: Final = 65_536
"""Of control frames that the other side does not take."""


class AttachSide(Application):
    """One connection. The heirs read control, make splices and let go."""

    __slots__ = ("bearer", "control", "frames", "is_over", "splices")

    def __init__(self, bearer: Bearer) -> None:
        self.bearer = bearer
        self.control: Flow | None = None
        self.frames = FrameReader()
        self.splices: dict[int, Splice] = {}
        self.is_over = False

    # -- for the heirs --------------------------------------------------------------------------------

    def read_control(self, data: bytes, end: bool) -> None:
        """Take bytes of the control stream."""
        raise NotImplementedError

    def let_go(self, code: int, reason: str) -> None:
        """Drop everything; called once, before or after the connection's end."""
        raise NotImplementedError

    def say(self, body: control.Body) -> None:
        """Write a control frame; who reads none is nobody at work."""
        flow = self.control
        if flow is None or self.is_over:
            return
        if flow.unsent_bytes > MAX_UNREAD_BYTES:
            self.end(control.BROKEN, "control is not read")
        else:
            flow.send(control.encode(body), False)

    def end(self, code: int, reason: str) -> None:
        """Close, with a code of `control`."""
        if not self.is_over:
            self._let_all_go(code, reason)
            self.bearer.close(code, reason.encode())

    def _let_all_go(self, code: int, reason: str) -> None:
        self.is_over = True
        for splice in self.splices.values():
            splice.cut()
        self.splices.clear()
        self.let_go(code, reason)

    # -- the connection -------------------------------------------------------------------------------

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Hand on what belongs to a splice; read control."""
        splice = self.splices.get(flow.id)
        if splice is not None:
            splice.take(data, end)
            return
        flow.credit(len(data))
        if flow is self.control:
            self.read_control(data, end)

    def stream_reset(self, flow: Flow, code: int) -> None:
        """Close the socket of it; without control there is nothing."""
        splice = self.splices.get(flow.id)
        if splice is not None:
            splice.cut()
        elif flow is self.control:
            self.end(control.BROKEN, "control was reset")

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """As if it had been reset."""
        self.stream_reset(flow, code)

    def stream_drained(self, flow: Flow) -> None:
        """Read on."""
        splice = self.splices.get(flow.id)
        if splice is not None:
            splice.drained()

    def stream_gone(self, flow: Flow) -> None:
        """Forget it."""
        self.splices.pop(flow.id, None)

    def datagram(self, data: bytes) -> None:
        """There are none."""

    def streams_available(self) -> None:
        """Who found none was refused."""

    def before_send(self, now: float) -> None:
        """Nothing waits."""

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Close every socket."""
        if not self.is_over:
            self._let_all_go(code if by_peer else control.DONE, reason or f"code {code:#x}")
