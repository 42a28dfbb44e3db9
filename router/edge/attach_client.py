"""The replica's side of `router-attach/1`: says who it is, and connects the router's streams to its listener."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from router.core import Peer
from router.edge.attach_side import AttachSide
from router.edge.connection import ServerConnection
from router.edge.splice import Splice
from router.transport.codec.attach import control
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.edge.listener import Listener
    from router.errors import ProxyError
    from router.transport.codec.quic.seam import Bearer, Flow

_log = logging.getLogger("router.attach")

ATTACH_LIMIT_S: Final = 10.0
"""From the connection's beginning to the router's answer."""
_ONE_WAY: Final = 0x2


class AttachCalls:
    """What becomes of it, for the owner."""

    __slots__ = ("attached", "leaving", "lost", "punch")

    def __init__(
        self,
        attached: Callable[[control.Attached], None],
        leaving: Callable[[], None],
        lost: Callable[[int, str], None],
        punch: Callable[[control.Punch], control.Punching],
    ) -> None:
        """`lost` is called once, with code and reason; `punch` says where a robot may come to."""
        self.attached = attached
        self.leaving = leaving
        self.lost = lost
        self.punch = punch


class AttachClient(AttachSide):
    """One connection to a router. Requests are the listener's, as if they had come over TCP from there."""

    __slots__ = (
        "_by_s", "_calls", "_connections", "_hello", "_is_abandoned", "_is_draining", "_is_left", "_listener",
        "_peer",
    )  # fmt: skip

    def __init__(
        self,
        bearer: Bearer,
        hello: control.Attach,
        listener: Listener,
        peer: Peer,
        calls: AttachCalls,
        now: float,
    ) -> None:
        super().__init__(bearer)
        self._hello = hello
        self._listener = listener
        self._peer = peer
        self._calls = calls
        self._connections: dict[int, ServerConnection] = {}  # of the listener, at the splices' other ends
        self._by_s = now + ATTACH_LIMIT_S
        self._is_draining = False
        self._is_left = False  # by the router's word
        self._is_abandoned = False  # by ours: there is another connection

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """Say who we are: not before the router has proven who it is."""
        self.control = flow = self.bearer.open_stream(unidirectional=False)
        if flow is None:
            self.end(control.BROKEN, "the router takes no stream")
        else:
            flow.send(control.encode(self._hello), False)

    def stream_opened(self, flow: Flow) -> None:
        """Connect it to the listener."""
        if flow.id & _ONE_WAY:
            self.end(control.BROKEN, "a one-way stream")
            return
        splice = Splice(self._listener.reactor, flow)
        self.splices[flow.id] = splice
        connection = ServerConnection(self._listener, Peer(self._peer.address, b"http"))
        self._connections[flow.id] = connection
        if self._is_abandoned:
            connection.retire(self._listener.reactor.clock.now)
        spawn(self._connect(splice, connection), "attached request")

    async def _connect(self, splice: Splice, connection: ServerConnection) -> None:
        loop = asyncio.get_running_loop()
        try:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            accept: Any = loop.connect_accepted_socket
            connect: Any = loop.create_unix_connection
            await accept(lambda: connection, theirs)
            await connect(lambda: splice, sock=ours)
        except OSError as failure:  # out of files, above all
            _log.warning("a request of the router cannot be taken: %s", failure)
            splice.lose()

    def stream_gone(self, flow: Flow) -> None:
        """Forget it; the last one ends a connection that drains."""
        super().stream_gone(flow)
        self._connections.pop(flow.id, None)
        self._see_end()

    def next_deadline(self) -> float | None:
        """When the router has to have answered."""
        return self._by_s or None

    def handle_deadline(self, now: float) -> None:
        """Try again, or elsewhere."""
        if 0.0 < self._by_s <= now:
            self.end(control.BROKEN, "the router does not answer ATTACH")

    def leave(self, now: float) -> None:
        """Drain, as there is a better way to us: have what comes here again and again come there.

        The router's workers, and its successor's, keep connections to us: the next answer on each is its last.
        """
        self._is_left = self._is_abandoned = True
        for connection in list(self._connections.values()):
            connection.retire(now)
        self.drain()
        self._listener.reactor.outbox.flush()

    def drain(self) -> None:
        """End once nothing is under way; the listener closes connections that are idle."""
        self._is_draining = True
        self._see_end()

    def retire(self, now: float) -> None:
        """As `drain`."""
        self.drain()

    def cut(self, error: ProxyError) -> None:
        """End now."""
        self.end(control.DONE, error.kind.value)

    # -- control --------------------------------------------------------------------------------------

    def read_control(self, data: bytes, end: bool) -> None:
        """Take what the router says."""
        for frame in self.frames.read(data):
            if self.is_over:
                return
            if not control.is_known(frame.kind):
                continue
            self._obey(control.decode(frame))
        if not self.is_over and (self.frames.fault or end):
            self.end(control.BROKEN, "control ended")

    def _obey(self, body: control.Body | None) -> None:
        if isinstance(body, control.Attached):
            self._by_s = 0.0
            self._calls.attached(body)
        elif isinstance(body, control.Leaving):
            if not self._is_left:
                self._is_left = True
                self._calls.leaving()
        elif isinstance(body, control.Punch):
            self.say(self._calls.punch(body))
        else:
            self.end(control.BROKEN, "a control frame is malformed or out of place")

    def _see_end(self) -> None:
        if self._is_draining and not self.splices:
            self.end(control.DONE, "draining")

    def let_go(self, code: int, reason: str) -> None:
        """Let the requests go."""
        self._by_s = 0.0
        self._connections.clear()
        self._calls.lost(code, reason)
