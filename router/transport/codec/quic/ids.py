"""Connection ids of both sides: issued, in use, retired (RFC 9000 §5.1, §19.15, §19.16).

Imports nothing but its neighbours.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.transport.codec.quic.limits import (
    CONNECTION_ID_LIMIT_ERROR,
    FRAME_ENCODING_ERROR,
    HELD_IDS,
    ISSUED_IDS,
    MAX_RETIRING,
    PROTOCOL_VIOLATION,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnIds:
    """Ids that the peer may send to. `make` gives new ones; `on_issued`, `on_retired` tell who routes by them."""

    __slots__ = ("_limit", "_make", "_next", "_on_retired", "by_sequence", "due", "known")

    def __init__(self, first: bytes, make: Callable[[], bytes], on_retired: Callable[[bytes], None]) -> None:
        self._make = make
        self._on_retired = on_retired
        self._limit = 2
        self.by_sequence: dict[int, bytes] = {0: first}
        self.known: dict[bytes, int] = {first: 0}
        self._next = 1
        self.due: list[int] = []  # sequences of which a NEW_CONNECTION_ID is to be sent

    def issue(self, limit: int) -> None:
        """Issue as many as the peer keeps, and we want it to have."""
        self._limit = min(limit, ISSUED_IDS)
        while len(self.by_sequence) < self._limit:
            made = self._make()
            sequence = self._next
            self._next += 1
            self.by_sequence[sequence] = made
            self.known[made] = sequence
            self.due.append(sequence)

    def retire(self, sequence: int, used: bytes) -> int:
        """Take a RETIRE_CONNECTION_ID that came in a packet to `used`; return 0 or an error code."""
        if sequence >= self._next:
            return PROTOCOL_VIOLATION
        gone = self.by_sequence.get(sequence)
        if gone is None:
            return 0
        if gone == used:
            return PROTOCOL_VIOLATION
        del self.by_sequence[sequence]
        del self.known[gone]
        if sequence in self.due:
            self.due.remove(sequence)
        self._on_retired(gone)
        self.issue(self._limit)
        return 0


class PeerIds:
    """Ids that we may send to."""

    __slots__ = ("_gone", "_retire_below", "current", "retiring", "sequences", "spare", "tokens")

    def __init__(self, first: bytes) -> None:
        self.current = first
        self.sequences: dict[bytes, int] = {first: 0}
        self.spare: list[bytes] = []
        self.tokens: dict[bytes, bytes] = {}  # stateless reset tokens of those in use or spare
        self.retiring: list[int] = []  # sequences of which a RETIRE_CONNECTION_ID is to be sent
        self._retire_below = 0
        self._gone: deque[int] = deque(maxlen=MAX_RETIRING)  # sequences that were retired last

    def replace_first(self, chosen: bytes) -> None:
        """Take the id that the server chose for itself, or a Retry gave."""
        self.sequences = {chosen: 0}
        self.current = chosen

    def add(self, sequence: int, retire_below: int, new: bytes, token: bytes) -> int:
        """Take a NEW_CONNECTION_ID; return 0 or an error code."""
        if retire_below > sequence or not 1 <= len(new) <= 20:
            return FRAME_ENCODING_ERROR
        if not self.current:
            return PROTOCOL_VIOLATION  # RFC 9000 §19.15: a peer that is reached without ids has none
        known = self.sequences.get(new, -1)
        if known >= 0 and known != sequence:
            return PROTOCOL_VIOLATION
        if known == sequence:
            if sequence and self.tokens.get(new) != token:
                return PROTOCOL_VIOLATION
        elif sequence in self.sequences.values():
            return PROTOCOL_VIOLATION
        elif sequence in self._gone:
            pass  # repeated by a peer that has not heard yet: it was used, and the word is under way
        elif sequence < self._retire_below:
            self._retire(sequence)
        else:
            self.sequences[new] = sequence
            self.tokens[new] = token
            self.spare.append(new)
        if retire_below > self._retire_below:
            self._retire_below = retire_below
            for old in [old for old, number in self.sequences.items() if number < retire_below]:
                if old == self.current:
                    if not self.spare:
                        return CONNECTION_ID_LIMIT_ERROR
                    self.current = b""
                else:
                    self.spare.remove(old)
                self._forget(old)
            if not self.current:
                if not self.spare:
                    return CONNECTION_ID_LIMIT_ERROR
                self.current = self.spare.pop(0)
        if len(self.sequences) > HELD_IDS or len(self.retiring) > MAX_RETIRING:
            return CONNECTION_ID_LIMIT_ERROR
        return 0

    def change(self) -> bool:
        """Use another id from now on, so that two paths are not linked; False if there is none (RFC 9000 §9.5)."""
        if not self.spare:
            return False
        old = self.current
        self.current = self.spare.pop(0)
        self._forget(old)
        return True

    def is_reset(self, tail: bytes) -> bool:
        """Whether these last 16 bytes of a datagram are a stateless reset's."""
        return tail in self.tokens.values()

    def _forget(self, old: bytes) -> None:
        self._retire(self.sequences.pop(old))
        self.tokens.pop(old, None)

    def _retire(self, sequence: int) -> None:
        self._gone.append(sequence)
        if sequence not in self.retiring:
            self.retiring.append(sequence)
