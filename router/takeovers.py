"""Open sessions of a worker to which a token leads back, by id: whoever comes again takes the earlier one over.

    token holds -> `take_over`: earlier sessions of that id end, here at once, elsewhere when the others are told
    the client is given a token -> `enter`        the session ends -> `leave`

Whoever shows a token that holds may do so; which of a session's tokens it is does not matter, since a client may
have lost the newest. Connections that one attempt of a client opens side by side leave each other alone. Asked once
a session, never for a message. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.continuity import Continuity

MAX_BESIDE: Final = 8
"""Sessions of one attempt: a client has as many addresses to try, not more."""


class Elsewhere(Protocol):
    """The other workers."""

    def came_again(self, session: str, attempt: str, then: Callable[[], None]) -> int:
        """Have earlier sessions end there. `then` is called once at most, when that is done; perhaps never.

        Returns the turn of who came: a greater one each time.
        """

    def is_here(self, session: str) -> None:
        """Tell that a session began that could be taken over."""

    def has_left(self, session: str) -> None:
        """Tell that no session of that id is left here."""


class Takeovers:
    """One in a worker. `elsewhere`: None where there is no other."""

    __slots__ = ("_open", "elsewhere")

    def __init__(self) -> None:
        self._open: dict[str, list[Continuity]] = {}
        self.elsewhere: Elsewhere | None = None

    def take_over(self, continuity: Continuity, then: Callable[[], None]) -> bool:
        """End earlier sessions of this id; True if others have to be told: `then` follows, perhaps."""
        self.end(continuity.id, continuity.attempt)
        self._add(continuity)
        if self.elsewhere is None:
            return False
        continuity.turn = self.elsewhere.came_again(continuity.id, continuity.attempt, then)
        return True

    def enter(self, continuity: Continuity) -> None:
        """Keep a session while it lasts; once is enough."""
        if self._add(continuity) and self.elsewhere is not None:
            self.elsewhere.is_here(continuity.id)

    def end(self, session: str, attempt: str, turn: int | None = None) -> None:
        """End the sessions of an id, but for those of the same attempt or a later one, and those after a turn."""
        found = self._open.get(session)
        if found is None:
            return
        beside = 0
        for one in reversed(found.copy()):
            if turn is not None and one.turn > turn:
                continue
            if attempt and _is_not_before(one.attempt, attempt):
                beside += 1
                if beside < MAX_BESIDE:
                    continue
            one.supersede()

    def leave(self, continuity: Continuity) -> None:
        """Forget a session that is over."""
        found = self._open[continuity.id]
        found.remove(continuity)
        if not found:
            del self._open[continuity.id]
            if self.elsewhere is not None:
                self.elsewhere.has_left(continuity.id)

    def _add(self, continuity: Continuity) -> bool:
        if not continuity.keep(self.leave):
            return False
        self._open.setdefault(continuity.id, []).append(continuity)
        return True


def _is_not_before(one: str, other: str) -> bool:
    """Whether one attempt is the other, or a later one of the same client, whose number behind the dot grows.

    What a client has given up may still be on its way, and arrive behind what it has now.
    """
    if one == other:
        return True
    client, _, number = one.rpartition(".")
    other_client, _, other_number = other.rpartition(".")
    if not client or client != other_client or not (number + other_number).isdecimal():
        return False
    return bool(number and other_number) and int(number) > int(other_number)
