"""The addresses that a connection runs over: proven or not, how much and how large (RFC 9000 §8, §9, §14).

The MTU is found by probes, each a step of a ladder: sizes that real links have, from the smallest that QUIC allows
to a loopback's. A probe that is lost three times ends the search; large packets lost time and again begin it anew.
Imports nothing but limits.
"""

from __future__ import annotations

import os
from typing import Final

from router.transport.codec.quic.limits import AMPLIFICATION, MIN_DATAGRAM_BYTES

Address = tuple[str, int] | tuple[str, int, int, int]

# UDP payloads: PPPoE and tunnels, Ethernet over IPv6 and IPv4, jumbo frames, a loopback.
MTU_LADDER: Final = (1_252, 1_352, 1_420, 1_452, 1_472, 4_052, 8_952, 16_332)
MAX_TRIES: Final = 3
BLACK_HOLE: Final = 3
"""Probe timeouts in a row after which large packets are suspected."""
RAISE_S: Final = 600.0
"""Between two searches: the path may have changed (RFC 8899 §5.1.1)."""
CHALLENGES: Final = 3


class Mtu:
    """The largest datagram that is known to arrive, and the search for a larger one. `ceiling` is the peer's."""

    __slots__ = ("_again_s", "_tries", "ceiling", "is_probing", "size", "step")

    def __init__(self, size: int, ceiling: int) -> None:
        self.size = size
        self.ceiling = ceiling
        self.step = 0
        self.is_probing = False
        self._tries = 0
        self._again_s = 0.0

    def wanted(self, now: float) -> int:
        """Return the size of the probe that is due, 0 if none is."""
        if self.is_probing:
            return 0
        if self._again_s:
            if now < self._again_s:
                return 0
            self._again_s = 0.0
            self.step = 0
        while self.step < len(MTU_LADDER) and MTU_LADDER[self.step] <= self.size:
            self.step += 1
        if self.step >= len(MTU_LADDER) or MTU_LADDER[self.step] > self.ceiling:
            self._again_s = now + RAISE_S
            return 0
        return MTU_LADDER[self.step]

    def acked(self, size: int) -> bool:
        """Take a probe's arrival; whether packets grow."""
        self.is_probing = False
        self._tries = 0
        if size <= self.size:
            return False
        self.size = size
        return True

    def lost(self, now: float) -> None:
        """Take a probe's loss."""
        self.is_probing = False
        self._tries += 1
        if self._tries >= MAX_TRIES:
            self._tries = 0
            self._again_s = now + RAISE_S

    def fall_back(self, now: float) -> None:
        """Send small packets: large ones vanish."""
        self.size = MIN_DATAGRAM_BYTES
        self._again_s = now + RAISE_S


class Path:
    """One address of the peer, and the one of ours that it is reached from."""

    __slots__ = (
        "address",
        "answers",
        "challenge",
        "challenge_s",
        "challenges_left",
        "is_validated",
        "local",
        "mtu",
        "peer_id",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(self, address: Address, local: object, mtu: Mtu, *, is_validated: bool) -> None:
        self.address = address
        self.local = local
        self.mtu = mtu
        self.is_validated = is_validated
        self.peer_id = b""  # of the peer's ids, the one that is used here
        self.received_bytes = 0
        self.sent_bytes = 0
        self.challenge = b""
        self.challenges_left = 0
        self.challenge_s = 0.0  # when the next challenge is due, 0 if none is
        self.answers: list[bytes] = []  # challenges of the peer's to be answered

    def room(self) -> int:
        """Return how much may be sent here (RFC 9000 §8.1)."""
        if self.is_validated:
            return 1 << 30
        return AMPLIFICATION * self.received_bytes - self.sent_bytes

    def begin_validation(self, now: float) -> None:
        """Ask whoever is there to answer."""
        self.challenge = os.urandom(8)
        self.challenges_left = CHALLENGES
        self.challenge_s = now
