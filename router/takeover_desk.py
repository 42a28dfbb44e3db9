"""A worker's word with the others, by way of the supervisor, about robots that come again. Implements `Elsewhere`.

    came again here --CameAgain--> supervisor --EndEarlier--> who has it
    go on           <--TakenOver-- supervisor <--EarlierEnded-- (of each that has it; at once if nobody has)

Pure: `send` takes the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.control import CameAgain, EarlierEnded, EndEarlier, HasLeft, IsHere

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.control import AboutTakeovers, TakenOver
    from router.takeovers import Takeovers

MAX_ASKED: Final = 4_096
"""Who waits for an answer; for one more the oldest gives up, whose time was up long before."""


class TakeoverDesk:
    """One in a worker that has others beside it."""

    def __init__(self, send: Callable[[AboutTakeovers], None], takeovers: Takeovers) -> None:
        self._send = send
        self._takeovers = takeovers
        self._asked: dict[int, tuple[Callable[[], None], int]] = {}  # with the answers so far
        self._count = 0

    def came_again(self, session: str, attempt: str, then: Callable[[], None]) -> int:
        """Have earlier sessions end in other workers; `then` is called when they have. Returns the turn."""
        if len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._count += 1
        self._asked[self._count] = then, 0
        self._send(CameAgain(self._count, session, attempt))
        return self._count

    def is_here(self, session: str) -> None:
        """Tell that a session began that could be taken over."""
        self._send(IsHere(session))

    def has_left(self, session: str) -> None:
        """Tell that no session of that id is left here."""
        self._send(HasLeft(session))

    def take(self, told: EndEarlier | TakenOver) -> None:
        """End what came again at another worker; or go on with what came again here."""
        if isinstance(told, EndEarlier):
            self._takeovers.end(told.session, told.attempt, told.heard)
            self._send(EarlierEnded(told.worker, told.question, told.told))
            return
        asked = self._asked.get(told.question)
        if asked is None:
            return
        then, answers = asked
        if answers + 1 < told.told:
            self._asked[told.question] = then, answers + 1
        else:
            del self._asked[told.question]
            then()
