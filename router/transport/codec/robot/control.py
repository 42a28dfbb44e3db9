"""The maps in control frames of `router-robot/1`, for both roles. Not compiled: some a second, and msgspec is.

Unknown keys are ignored, as are frames of unknown types; whatever else does not fit is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec

from router.transport.codec.attach.control import Pem, Places, Text
from router.transport.codec.robot import wire

if TYPE_CHECKING:
    from router.transport.codec.robot.wire import Frame

MAX_HEADERS: Final = 100
"""Of a robot's HELLO."""
MAX_RELAYED_HEADERS: Final = MAX_HEADERS + 16
"""With those that a router adds; the request that they become has a few more."""

MAX_ATTEMPT_CHARS: Final = 32

MAX_CODE_CHARS: Final = 64
"""Of a REFUSED's code, where it is passed on."""

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Session: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z_-]{0,64}\Z")]
_Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Hello(msgspec.Struct, omit_defaults=True):
    """The client's first word: for whom it is, and who asks. In a WebTransport session all may be left out.

    `is_relayed`: a router says it for a robot of its own, and takes another replica itself when this one goes;
    `session` is that robot's with the router, by which a sidecar tells of it. `attempt`: the same for connections
    that a client tries side by side.
    """

    authority: str | None = None
    path: str = ""
    headers: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=MAX_RELAYED_HEADERS)] = []
    replies: Literal["state", "command"] = "state"
    resume: str = ""
    upstream: Literal["websocket", "post"] = "websocket"
    is_relayed: bool = msgspec.field(default=False, name="relayed")
    attempt: Annotated[str, msgspec.Meta(max_length=MAX_ATTEMPT_CHARS)] = ""
    session: _Session = ""


class Ping(msgspec.Struct):
    """`t` is the sender's clock, microseconds."""

    n: _Count
    t: _Time


class Pong(msgspec.Struct):
    """`n` and `t` as they came; `r` when they did and `s` when this was sent, by the answerer's clock."""

    n: _Count
    t: _Time
    r: _Time
    s: _Time


class Link(msgspec.Struct, omit_defaults=True):
    """What the client sees of the link. `late` and `stale` are counts so far."""

    rtt_us: _Count = 0
    loss_ppm: _Count = 0
    jitter_us: _Count = 0
    gap_us: _Count = 0
    late: _Count = 0
    stale: _Count = 0


class Bye(msgspec.Struct):
    """The end."""


class Welcome(msgspec.Struct):
    """A replica is there. `collects`: telemetry is of use, so a router that relays passes it on."""

    session: str
    epoch: _Count
    token: str = ""
    replica: str = ""
    max_message_bytes: _Count = wire.MAX_MESSAGE_BYTES
    collects: bool = False


class Refused(msgspec.Struct):
    """There is none; CONNECTION_CLOSE follows."""

    code: str
    status: _Count = 0
    message: str = ""
    retry_after_s: _Count = 0


class Epoch(msgspec.Struct):
    """Another replica from here on."""

    epoch: _Count
    replica: str = ""
    token: str = ""


class Token(msgspec.Struct):
    """What to show from now on to find back: the one before ends."""

    token: str


class Direct(msgspec.Struct):
    """The client would come to the replica itself, from one of these places."""

    places: Places


class Offer(msgspec.Struct):
    """Where the replica is, if it lets the client in: `user` and `key` for the checks, the ticket for its HELLO."""

    user: Text
    key: bytes
    ticket: Text
    places: Places = []
    certificate: Pem = ""


Body: TypeAlias = Hello | Ping | Pong | Link | Bye | Direct | Welcome | Refused | Epoch | Token | Offer

_TYPES: Final[dict[type[Body], int]] = {
    Hello: wire.HELLO,
    Ping: wire.PING,
    Pong: wire.PONG,
    Link: wire.LINK,
    Bye: wire.BYE,
    Direct: wire.DIRECT,
    Welcome: wire.WELCOME,
    Refused: wire.REFUSED,
    Epoch: wire.EPOCH,
    Offer: wire.OFFER,
    Token: wire.TOKEN,
}
_decoders: Final = {kind: msgspec.msgpack.Decoder(body) for body, kind in _TYPES.items()}
_encoder: Final = msgspec.msgpack.Encoder()


def encode(body: Body) -> bytes:
    """Return the whole frame."""
    return wire.write_frame(_TYPES[type(body)], _encoder.encode(body))


def encode_datagram(body: Ping | Pong) -> bytes:
    """Return the DATAGRAM that says the same as the frame."""
    return bytes((_TYPES[type(body)],)) + _encoder.encode(body)


def read_datagram(data: bytes) -> Ping | Pong | None:
    """Return the PING or PONG that a DATAGRAM is; None if it is none."""
    if not data or data[0] not in (wire.PING, wire.PONG) or len(data) > wire.MAX_FRAME_BYTES:
        return None
    found = decode(wire.Frame(data[0], data[1:]))
    return found if isinstance(found, Ping | Pong) else None


def is_known(kind: int) -> bool:
    """Whether there are frames of this type; others are ignored."""
    return kind in _decoders


def decode(frame: Frame) -> Body | None:
    """Return what a frame of a known type says; None if it is no such map."""
    try:
        found: Body = _decoders[frame.kind].decode(frame.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # of a name; nested deeper than it goes
        return None
    return found
