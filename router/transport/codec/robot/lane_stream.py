"""A robot's tunnel to a replica whose sidecar speaks robot sessions: the lanes go on, on a connection of our own.

To the exchange it is the replica's side of a WebSocket request; to the sidecar we are a robot with a ticket. Newest
wins here as on the first leg, a deadline is the sidecar's to see to as well, and a lost packet of an observation
holds up no command.

    OPENING --WELCOME: 200--> OPEN --end, reset: BYE--> OVER
       +---REFUSED: its status; cut----^--the sidecar's end: its code, cut---^
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Source
from router.http import ResponseHead, ResponseShape
from router.stream import UpstreamStream
from router.transport.codec.framing import FLAG_CLOSE, FLAG_STATE, lane_close, lane_header, lane_reader
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.client import RobotCalls, RobotClient
from router.transport.codec.robot.link import LinkMeter

if TYPE_CHECKING:
    from router.http import Headers, RequestHead
    from router.stream import ResponseReceiver
    from router.transport.codec.quic.seam import Bearer

PING_EVERY_S: Final = 0.5
"""Between our PINGs: they keep a NAT's mapping, and tell how far the clocks are apart."""
ROOM_BYTES: Final = 512
"""Of a HELLO, for its ticket and for what an exchange adds to a head at the last moment."""
ROOM_FIELDS: Final = 4
_CUT: Final = ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, detail="the way to its sidecar was cut")
_NO_WORD: Final = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, detail="its sidecar ended without a WELCOME")
_LARGEST_CODE: Final = 4_999


class LaneStream(UpstreamStream):
    """One session's. `ticket`: what the sidecar lets us in with, if it asks; `application`: from `send_head` on."""

    __slots__ = (
        "_bearer",
        "_commands",
        "_holds",
        "_is_full",
        "_is_open",
        "_is_too_large",
        "_newest",
        "_now",
        "_reader",
        "_receiver",
        "_ticket",
        "application",
        "may_be_untouched",
        "meter",
    )

    def __init__(self, bearer: Bearer, receiver: ResponseReceiver, ticket: str, now: float) -> None:
        self._bearer = bearer
        self._receiver: ResponseReceiver | None = receiver
        self._ticket = ticket
        self._now = now
        self._reader = lane_reader()
        self._commands: deque[tuple[bytes, bool]] = deque()  # that came while the client takes nothing
        self._newest: bytes | None = None  # of the state messages that did
        self._holds = 0
        self._is_open = False
        self._is_full = False  # the command lane, as the exchange was told
        self._is_too_large = False  # a message, for the sidecar: the flush ends it
        self.application: RobotClient | None = None
        self.may_be_untouched = False
        self.meter = LinkMeter()

    # -- for the exchange -----------------------------------------------------------------------------

    def send_head(self, head: RequestHead, end: bool) -> None:
        """Say HELLO."""
        hello = _hello_of(head)
        if self._ticket:
            hello.headers.append(("x-router-key", self._ticket))
        calls = RobotCalls()
        calls.welcome = self._welcome
        calls.message = self._message
        calls.flushed = self._flushed
        calls.closed = self._closed
        self.application = RobotClient(self._bearer, hello, calls, self.meter, self._now, PING_EVERY_S)

    def send_data(self, data: bytes, end: bool) -> None:
        """Send messages by their lanes; at the end, or a close, say goodbye behind them."""
        client = self.application
        if client is None:
            return
        now = self._bearer.now
        for message in self._reader.read(data):
            if message.flags & FLAG_CLOSE:
                client.leave(now)
            elif self._is_too_large or len(message.data) > client.max_message_bytes:
                self._is_too_large = True  # as a replica that closes with 1009 takes nothing behind it
                self._bearer.touch()
            elif message.flags & FLAG_STATE:
                client.send_state(message.data, message.deadline, now)
            else:
                client.send_command(message.data, message.deadline, now, is_text=message.is_text, is_held=True)
                if client.is_command_full() and not self._is_full:
                    self._bearer.touch()  # the flush says so
        if end:
            client.leave(now)

    def send_datagram(self, data: bytes) -> bool:
        """Pass on a telemetry DATAGRAM as it came; False if the connection takes none for now."""
        client = self.application
        return client is not None and client.pass_telemetry_on(data)

    def send_trailers(self, trailers: Headers) -> None:
        """End: there are none in a tunnel."""
        self.send_data(b"", True)

    def reset(self, error: ProxyError) -> None:
        """End now."""
        self._receiver = None
        self._commands.clear()
        self._newest = None
        client = self.application
        self.application = None
        if client is not None:
            client.cut(error)

    def hold(self, why: int) -> None:
        """Let commands wait with the sidecar, which gets no more credit; of state messages keep the newest."""
        self._holds |= why

    def release(self, why: int) -> None:
        """Go on at the flush."""
        self._holds &= ~why
        if not self._holds:
            self._bearer.touch()

    def is_untouched(self) -> bool:
        """No: a HELLO is not repeated."""
        return False

    # -- from the sidecar -----------------------------------------------------------------------------

    def _welcome(self, body: control.Welcome) -> None:
        receiver = self._receiver
        if receiver is not None:
            self._is_open = True
            shape = ResponseShape(200)
            shape.accepts_tunnel = shape.has_lanes = True
            shape.takes_datagrams = body.collects
            receiver.response_head(ResponseHead(shape), False)

    def _message(self, lane: int, sequence: int, data: bytes, is_text: bool) -> None:
        is_state = lane == wire.STATE
        if is_state and (self._holds or self._commands or self._newest is not None):
            # Let go in this tick, what waits goes at its flush: nothing is to overtake it.
            self.meter.stale += self._newest is not None
            self._newest = data
        elif self._holds or self._commands:
            self._commands.append((data, is_text))
        else:
            self._deliver(data, FLAG_STATE if is_state else wire.FLAG_TEXT if is_text else 0)

    def _deliver(self, data: bytes, flags: int) -> None:
        """Hand a message on; one of the command lane makes room for the next."""
        if not flags & FLAG_STATE and self.application is not None:
            self.application.took(data)
        if self._receiver is not None:
            self._receiver.response_data(lane_header(len(data), flags, 0), False)
        if data and self._receiver is not None:
            self._receiver.response_data(data, False)

    def _deliver_waiting(self, *, is_last: bool = False) -> None:
        """Deliver what the client takes; before the end all of it, however full its lanes are."""
        while self._commands and (is_last or not self._holds):
            data, is_text = self._commands.popleft()
            self._deliver(data, wire.FLAG_TEXT if is_text else 0)
        if self._newest is not None and (is_last or not self._holds):
            newest = self._newest
            self._newest = None
            self._deliver(newest, FLAG_STATE)

    def _flushed(self) -> None:
        """At the end of a tick: deliver what was held, say whether commands have to wait."""
        self._deliver_waiting()
        client, receiver = self.application, self._receiver
        if client is None or receiver is None:
            return
        if self._is_too_large:
            self._receiver = None
            client.leave(self._bearer.now)
            receiver.response_data(lane_close(wire.TOO_LARGE, "its sidecar takes no message so large"), True)
            return
        is_full = client.is_command_full()
        if is_full != self._is_full:
            self._is_full = is_full
            if is_full:
                receiver.pause_request()
            else:
                receiver.resume_request()

    def _closed(self, code: int, reason: str, by_peer: bool, refused: control.Refused | None) -> None:
        """Say how it ended: before WELCOME as a response, later as a close, where the sidecar said one."""
        receiver = self._receiver
        if receiver is not None:
            self._tell_end(receiver, code, reason, refused if not self._is_open else None, by_peer=by_peer)
        self.application = None  # whose calls lead back to us

    def _tell_end(
        self, receiver: ResponseReceiver, code: int, reason: str, refused: control.Refused | None, *, by_peer: bool
    ) -> None:
        if refused is not None and 400 <= refused.status < 600:
            self._receiver = None
            body = refused.message.encode()
            head = ResponseHead(ResponseShape(refused.status), len(body))
            why = refused.code[: control.MAX_CODE_CHARS].encode("ascii", "replace")
            head.added.append((b"x-router-error", why))
            if refused.retry_after_s:
                head.added.append((b"retry-after", b"%d" % refused.retry_after_s))
            receiver.response_head(head, not body)
            if body:
                receiver.response_data(body, True)
        elif not self._is_open:
            self._fail(_NO_WORD)
        elif by_peer and wire.DONE <= code <= _LARGEST_CODE:
            self._deliver_waiting(is_last=True)
            self._receiver = None
            receiver.response_data(lane_close(code, reason), True)
        else:
            self._fail(_CUT)

    def _fail(self, error: ProxyError) -> None:
        receiver = self._receiver
        self._receiver = None
        if receiver is not None:
            receiver.response_reset(error)


def fits(head: RequestHead) -> bool:
    """Whether a HELLO holds what the request says: its fields are bounded, and texts."""
    try:
        hello = _hello_of(head)
    except UnicodeDecodeError:
        return False
    size = len(control.encode(hello)) + ROOM_BYTES
    return size <= wire.MAX_FRAME_BYTES and len(hello.headers) + ROOM_FIELDS <= control.MAX_RELAYED_HEADERS


def _hello_of(head: RequestHead) -> control.Hello:
    shape = head.shape
    return control.Hello(
        shape.authority.decode(),
        shape.path.decode(),
        [(name.decode(), value.decode()) for name, value in (*shape.fields, *head.added)],
        "command" if shape.known.get(b"x-router-replies") == b"command" else "state",
        is_relayed=True,
        session="" if head.continuity is None else head.continuity.id,
    )
