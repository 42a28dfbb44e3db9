"""How often data is acknowledged, which its sender may ask for (draft-ietf-quic-ack-frequency).

    peer's ACK_FREQUENCY --> our acknowledgements are as rare as it asks, within our limits
    much to send, the window allows it --> ours, for eight acknowledgements a window instead of every other packet

To acknowledge earlier than one was asked to is always allowed (draft §4), so the limits refuse nothing. Codepoints
are those of draft 07 and later, which quinn has. Imports nothing but its neighbours.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.limits import ACK_EVERY, MAX_ACK_DELAY_S
from router.transport.codec.quic.varint import varint

IMMEDIATE_ACK: Final = 0x1F
ACK_FREQUENCY: Final = 0xAF
MIN_ACK_DELAY_US: Final = 1_000
"""What we announce: timers of the event loop are no finer."""
MAX_ASKED_EVERY: Final = 1_024
"""Packets without an acknowledgement, whatever the peer asks for …"""
MAX_ASKED_DELAY_S: Final = 0.25
"""… and for how long: what a peer forgets is its own concern, but what we owe it has an end."""
ACKS_PER_WINDOW: Final = 8
"""What we ask for: enough for pace and loss detection."""
MAX_ASKING_EVERY: Final = 64
ASK_FROM_PACKETS: Final = 16
"""Packets that wait to be sent, from which it is worth a frame to ask for fewer acknowledgements."""
BY_DEFAULT: Final = 1
"""Packets out of order before an acknowledgement is due at once (RFC 9000 §13.2.1)."""


class AckFrequency:
    """One connection's, in both directions. `is_due`: a frame of ours is to be sent."""

    __slots__ = ("_heard", "asked_every", "delay_s", "every", "is_due", "reordering", "sequence")

    def __init__(self) -> None:
        # what the peer asks of us
        self.every = ACK_EVERY  # packets that make an acknowledgement due
        self.delay_s = MAX_ACK_DELAY_S
        self.reordering = BY_DEFAULT
        self._heard = -1
        # what we ask of the peer
        self.asked_every = ACK_EVERY
        self.sequence = -1
        self.is_due = False

    def receive(self, sequence: int, threshold: int, delay_us: int, reordering: int) -> bool:
        """Take the peer's ACK_FREQUENCY; False if its delay is shorter than we said we can (draft §4)."""
        if delay_us < MIN_ACK_DELAY_US:
            return False
        if sequence > self._heard:  # others are overtaken
            self._heard = sequence
            self.every = min(threshold, MAX_ASKED_EVERY - 1) + 1
            self.delay_s = min(delay_us / 1e6, MAX_ASKED_DELAY_S)
            self.reordering = reordering
        return True

    def consider(self, window: int, mtu: int, unsent_bytes: int) -> None:
        """Ask anew if the window has become another; for fewer acknowledgements only with much to send."""
        every = max(ACK_EVERY, min(window // (mtu * ACKS_PER_WINDOW), MAX_ASKING_EVERY))
        asked = self.asked_every
        if every * 2 <= asked or (every >= 2 * asked and unsent_bytes >= ASK_FROM_PACKETS * mtu):
            self.asked_every = every
            self.is_due = True

    def write(self, delay_us: int, reordering: int) -> bytes:
        """Return the frame that is due. `delay_us` may not be less than the peer's `min_ack_delay`."""
        self.is_due = False
        self.sequence += 1
        fields = (ACK_FREQUENCY, self.sequence, self.asked_every - 1, delay_us, reordering)
        return b"".join([varint(field) for field in fields])
