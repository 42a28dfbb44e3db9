"""A client's session over several connections: what it was, as a token says, and what it is given to show next.

Made by a protocol whose sessions outlive connections, carried by its requests' heads to the exchange, which alone
can say whether a token holds and which replica it prefers, and hands back how to sign the next. No field of a head
is involved, so nobody outside can set any of this. A protocol that can end a session whose client has come again
says how (`end`); while it is open it is one of the worker's `takeovers`. Imports nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

RESUME_S: Final = 3_600.0
"""For which a token holds: a robot that stays away for longer begins anew."""
RENEW_S: Final = RESUME_S / 2
"""After so long a client is given another, so that it always has one that holds for half the time."""
_ID_BYTES: Final = 8


class Continuity:
    """One session. `id` is new until a token is believed, `base` the epochs of before, `replica` who served."""

    __slots__ = (
        "_leave", "_signed_s", "attempt", "base", "end", "id", "is_resumed", "replica", "shown", "sign", "turn",
        "was_shown",
    )  # fmt: skip

    def __init__(self, shown: bytes = b"", attempt: str = "", end: Callable[[], None] | None = None) -> None:
        """`attempt`: the same for connections that a client tries side by side. `end`: None: it cannot be."""
        self.shown = shown  # until somebody has looked at it
        self.attempt = attempt
        self.end = end
        self.turn = 0  # among those that came again to this worker
        self._leave: Callable[[Continuity], None] | None = None
        self.was_shown = bool(shown)
        self.is_resumed = False
        self.id = os.urandom(_ID_BYTES).hex()
        self.base = 0
        self.replica = b""  # preferred until somebody serves: who is looked for after that is another
        self.sign: Callable[[str, int, float], bytes] | None = None  # with id, epoch and time
        self._signed_s = 0.0

    def token(self, epoch: int, now: float) -> bytes:
        """Return what the client is to show next time; empty where nobody can sign."""
        self._signed_s = now
        return b"" if self.sign is None else self.sign(self.id, epoch, now)

    def renewed(self, epoch: int, now: float) -> bytes:
        """Return another token if it is time for one, else nothing."""
        if self.sign is None or now - self._signed_s < RENEW_S:
            return b""
        return self.token(epoch, now)

    def keep(self, leave: Callable[[Continuity], None]) -> bool:
        """Have `leave` called when the session is over; False if it is kept already, or cannot be ended."""
        if self.end is None or self._leave is not None:
            return False
        self._leave = leave
        return True

    def supersede(self) -> None:
        """End the session: its client has come again."""
        if self.end is not None:
            self.end()

    def over(self) -> None:
        """Learn that the session is over."""
        leave, self._leave, self.end = self._leave, None, None
        if leave is not None:
            leave(self)
