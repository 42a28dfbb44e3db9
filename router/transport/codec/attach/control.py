"""The frames of `router-attach/1`, for both roles. Not compiled: a few in a connection's life.

Unknown keys are ignored, as are frames of unknown types; whatever else does not fit is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from router.transport.codec.robot.wire import write_frame

if TYPE_CHECKING:
    from router.transport.codec.robot.wire import Frame

ALPN: Final = "router-attach/1"

# How a connection ends, in CONNECTION_CLOSE.
DONE: Final = 0
BROKEN: Final = 1
"""What came is not of this protocol."""
REFUSED: Final = 2
"""Not under this name, or not with this token: the reason beside it says why."""
REPLACED: Final = 3
"""Another one attached under the same name."""

MAX_PLACES: Final = 4
"""That one side may name: what it has itself, and where others see it."""
PUNCH_SUFFIX: Final = ".punch"
"""Of the path of the socket on which a replica's worker answers `Punch` by `Found`."""

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1_024)]
Pem: TypeAlias = Annotated[str, msgspec.Meta(max_length=8_192)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Place: TypeAlias = tuple[Annotated[str, msgspec.Meta(max_length=64)], Annotated[int, msgspec.Meta(ge=0, lt=65_536)]]
"""An address and a port."""
Places: TypeAlias = Annotated[list[Place], msgspec.Meta(max_length=MAX_PLACES)]


class Attach(msgspec.Struct, omit_defaults=True):
    """The replica's first word. `certificate`: of its authority, PEM, if robots may come to it directly."""

    name: Text
    token: Text
    certificate: Pem = ""


class Attached(msgspec.Struct):
    """It is served from now on; `address` is where the router sees it."""

    address: Place


class Leaving(msgspec.Struct):
    """The router begins no new stream here, or does not for long: attach anew. What is under way goes on."""


class Punch(msgspec.Struct):
    """A robot wants to come directly from one of `places`. `user`, `key`: what both prove themselves with in STUN.

    `ticket`: what the robot will show in its HELLO.
    """

    n: _Count
    user: Text
    key: bytes
    ticket: Text
    places: Places


class Punching(msgspec.Struct):
    """The answer to `Punch`: where the robot may find the replica; none if it may not come."""

    n: _Count
    places: Places


class Found(msgspec.Struct):
    """What a robot's worker is told by the replica's, within this host: `Punching`, and how to get there.

    The first of `places` is where the router sees the replica, by the listening socket of the name `listener`.
    """

    places: Places = []
    certificate: Pem = ""
    listener: Text = ""


Body: TypeAlias = Attach | Attached | Leaving | Punch | Punching | Found

_TYPES: Final[dict[type[Body], int]] = {
    Attach: 0x01,
    Punching: 0x02,
    Attached: 0x11,
    Leaving: 0x12,
    Punch: 0x13,
    Found: 0x21,
}
_decoders: Final = {kind: msgspec.msgpack.Decoder(body) for body, kind in _TYPES.items()}
_encoder: Final = msgspec.msgpack.Encoder()


def encode(body: Body) -> bytes:
    """Return the whole frame."""
    return write_frame(_TYPES[type(body)], _encoder.encode(body))


def is_known(kind: int) -> bool:
    """Whether there are frames of this type; others are ignored."""
    return kind in _decoders


def decode(frame: Frame) -> Body | None:
    """Return what a frame of a known type says; None if it is no such map."""
    try:
        found: Body = _decoders[frame.kind].decode(frame.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found
