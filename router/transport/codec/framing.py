"""How the messages of a tunnel stand in the bytes that cross the exchange: a WebSocket's, or each with its lane.

A replica that speaks WebSocket has one ordered stream, masked as a client has to. One whose sidecar speaks robot
sessions is told of each message by which lane it goes and until when it is of use. These stand as on the command
lane itself (length, flags, deadline, payload), with two flags more that no wire shows, as both ends are here.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import trait

from router.transport.codec import messages
from router.transport.codec.quic.varint import varint
from router.transport.codec.robot.wire import FLAG_TEXT, CommandReader

ANY_LANE: Final = 0
STATE_LANE: Final = 1
COMMAND_LANE: Final = 2

FLAG_STATE: Final = 2
FLAG_CLOSE: Final = 4
"""The payload is that of a WebSocket's close frame."""

JOIN_BYTES: Final = 16_384
"""A message above that is not copied behind its frame's header."""
_NOTHING: Final = b""


@trait
class Framing:
    """Both directions of one tunnel. `fault` is the close code for what the replica did wrong."""

    __slots__ = ()

    fault: int

    def write(self, data: bytes, is_text: bool, is_state: bool, deadline: int) -> tuple[bytes, bytes]:
        """Return a message in two pieces, of which the second may be empty."""
        raise NotImplementedError

    def write_close(self, code: int, reason: str) -> bytes:
        """Return the last word."""
        raise NotImplementedError

    def read(self, data: bytes) -> list[messages.Message]:
        """Return the messages that are whole now."""
        raise NotImplementedError


class WebSocketFraming(Framing):
    """RFC 6455."""

    __slots__ = ("_reader", "fault")

    def __init__(self, max_bytes: int) -> None:
        self._reader = messages.MessageReader(max_bytes)
        self.fault = 0

    def write(self, data: bytes, is_text: bool, is_state: bool, deadline: int) -> tuple[bytes, bytes]:
        """Return one masked frame."""
        kind = messages.TEXT if is_text else messages.BINARY
        if len(data) < JOIN_BYTES:
            return messages.write_frame(kind, data), _NOTHING
        return messages.write_pieces(kind, data)

    def write_close(self, code: int, reason: str) -> bytes:
        """Return a close frame."""
        return messages.write_frame(messages.CLOSE, messages.close_payload(code, reason))

    def read(self, data: bytes) -> list[messages.Message]:
        """Return messages and control frames."""
        found = self._reader.read(data)
        self.fault = self._reader.fault
        return found


class LaneFraming(Framing):
    """Messages that name their lanes."""

    __slots__ = ("_reader", "fault")

    def __init__(self) -> None:
        self._reader = lane_reader()
        self.fault = 0

    def write(self, data: bytes, is_text: bool, is_state: bool, deadline: int) -> tuple[bytes, bytes]:
        """Return header and payload: neither is copied."""
        flags = (FLAG_TEXT if is_text else 0) | (FLAG_STATE if is_state else 0)
        return lane_header(len(data), flags, deadline), data

    def write_close(self, code: int, reason: str) -> bytes:
        """Return a close."""
        return lane_close(code, reason)

    def read(self, data: bytes) -> list[messages.Message]:
        """Return messages, and the close."""
        found: list[messages.Message] = []
        for command in self._reader.read(data):
            payload = command.data
            if command.flags & FLAG_CLOSE:
                code = int.from_bytes(payload[:2], "big")
                found.append(messages.Message(messages.CLOSE, payload[2:], code))
                continue
            kind = messages.TEXT if command.is_text else messages.BINARY
            lane = STATE_LANE if command.flags & FLAG_STATE else COMMAND_LANE
            found.append(messages.Message(kind, payload, 0, lane))
        self.fault = self._reader.fault
        return found


def lane_reader() -> CommandReader:
    """Return what takes the bytes of either direction."""
    return CommandReader(from_client=False, known=FLAG_TEXT | FLAG_STATE | FLAG_CLOSE)


def lane_header(size: int, flags: int, deadline: int) -> bytes:
    """Return what stands before a message."""
    return varint(size) + varint(flags) + varint(deadline)


def lane_close(code: int, reason: str) -> bytes:
    """Return a close, as either side says it."""
    payload = messages.close_payload(code, reason)
    return lane_header(len(payload), FLAG_CLOSE, 0) + payload
