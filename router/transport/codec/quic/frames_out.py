"""Frames that say something about the connection or a stream, and what becomes of them when they are lost.

What is said is looked up anew when it is said again: a limit that has moved on is told as it is then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.ack_frequency import ACK_FREQUENCY
from router.transport.codec.quic.frames_in import (
    HANDSHAKE_DONE,
    MAX_DATA,
    MAX_STREAMS_BIDI,
    NEW_CONNECTION_ID,
    RESET_STREAM,
    RETIRE_CONNECTION_ID,
    STOP_SENDING,
)
from router.transport.codec.quic.limits import ACK_DELAY_EXPONENT
from router.transport.codec.quic.recovery import SentFrame
from router.transport.codec.quic.varint import varint

if TYPE_CHECKING:
    from router.transport.codec.quic.flow import QuicFlow
    from router.transport.codec.quic.recovery import Space
    from router.transport.codec.quic.state import ConnectionState

STREAM_CREDIT: Final = 0x11


class ConnectionFrame(SentFrame):
    """A frame about the connection as a whole; `value` is a sequence number, or the kind of streams."""

    __slots__ = ("connection", "kind", "value")

    def __init__(self, connection: ConnectionState, kind: int, value: int) -> None:
        self.connection = connection
        self.kind = kind
        self.value = value

    def on_acked(self) -> None:
        """Nothing to do."""

    def on_lost(self) -> None:
        """Say it again if it still holds."""
        connection = self.connection
        kind = self.kind
        if kind == MAX_DATA:
            connection.streams.max_data_due = True
        elif kind == HANDSHAKE_DONE:
            connection.handshake_done_due = True
        elif kind == NEW_CONNECTION_ID:
            if self.value in connection.own_ids.by_sequence:
                connection.own_ids.due.append(self.value)
        elif kind == RETIRE_CONNECTION_ID:
            connection.peer_ids.retiring.append(self.value)
        elif kind == MAX_STREAMS_BIDI:
            connection.streams.max_streams_due[self.value] = True
        elif kind == ACK_FREQUENCY and self.value == connection.ack_frequency.sequence:
            connection.ack_frequency.is_due = True


class FlowFrame(SentFrame):
    """A frame about one stream."""

    __slots__ = ("flow", "kind")

    def __init__(self, flow: QuicFlow, kind: int) -> None:
        self.flow = flow
        self.kind = kind

    def on_acked(self) -> None:
        """Our side is over once the peer knows that it was reset."""
        if self.kind == RESET_STREAM:
            self.flow.reset_acked()

    def on_lost(self) -> None:
        """Say it again if it still holds."""
        flow = self.flow
        if self.kind == RESET_STREAM:
            flow.say_again(reset=True, stop=False, credit=False)
        elif self.kind == STOP_SENDING:
            flow.say_again(reset=False, stop=flow.final_size < 0, credit=False)
        else:
            flow.say_again(reset=False, stop=False, credit=flow.final_size < 0 and not flow.is_settled)


def write_ack(space: Space, now: float, more: int) -> bytes:
    """Return an ACK of the last range received, and of at most so many before it (RFC 9000 §13.2.4).

    With counts once a packet had an ECN mark (§13.4.1).
    """
    received = space.received
    starts, ends = received.starts, received.ends
    last = len(starts) - 1
    first = max(0, last - more)
    delay_us = int((now - space.largest_s) * 1e6) if now > space.largest_s else 0
    low = starts[last]
    parts = [
        b"\x03" if space.is_marked else b"\x02",
        varint(ends[last] - 1),
        varint(delay_us >> ACK_DELAY_EXPONENT),
        varint(last - first),
        varint(ends[last] - 1 - low),
    ]
    for at in range(last - 1, first - 1, -1):
        parts += (varint(low - ends[at] - 1), varint(ends[at] - 1 - starts[at]))
        low = starts[at]
    if space.is_marked:
        parts += (varint(space.ect0_packets), varint(space.ect1_packets), varint(space.ce_packets))
    return b"".join(parts)
