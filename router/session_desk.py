"""A worker's word with the supervisor about sessions: asks for new ones, ends some, tells which are in use.

An answer may come late; whoever asked is called with it all the same. A session that is being started counts on its
replica from the question on, so that many starts at once spread. Pure: `send` takes the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.control import EndSession, SessionsUsed, StartSession
from router.errors import Kind
from router.routing.spec import SessionEntry
from router.session_book import SessionUse

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.control import AboutSessions, SessionAnswer
    from router.routing.sessions import SessionIndex

    Answer = Callable[[str, int, Kind | None], None]

MAX_ASKED: Final = 4_096  # questions without an answer


class SessionDesk:
    """One in a worker. Implements `core.Desk`."""

    def __init__(self, send: Callable[[AboutSessions], None], sessions: SessionIndex) -> None:
        self._send = send
        self._sessions = sessions
        self._asked: dict[int, tuple[StartSession | EndSession, Answer]] = {}
        self._count = 0

    def start(self, endpoint: str, replica: str, idle_s: int, answer: Answer) -> None:
        """Ask for a session on a replica; `answer` is given its id and when it began, or why there is none."""
        if len(self._asked) >= MAX_ASKED:
            answer("", 0, Kind.AT_CAPACITY)
            return
        self._sessions.count(endpoint, replica, 1)
        self._count += 1
        self._ask(StartSession(self._count, endpoint, replica, idle_s), answer)

    def end(self, session_id: str, answer: Answer) -> None:
        """Ask for the end of a session."""
        if len(self._asked) >= MAX_ASKED:
            answer(session_id, 0, Kind.SESSION_UNAVAILABLE)
            return
        self._count += 1
        self._ask(EndSession(self._count, session_id), answer)

    def _ask(self, question: StartSession | EndSession, answer: Answer) -> None:
        self._asked[question.question] = (question, answer)
        self._send(question)

    def take(self, told: SessionAnswer, now: float) -> None:
        """Take the supervisor's answer."""
        found = self._asked.pop(told.question, None)
        if found is None:
            return
        question, answer = found
        refusal = Kind(told.refusal) if told.refusal else None
        sessions = self._sessions
        if isinstance(question, StartSession):
            name, replica = question.endpoint, question.replica
            sessions.count(name, replica, -1)
            if refusal is None:
                sessions.begin(SessionEntry(told.id, name, replica, question.idle_s), now)
            answer(told.id, told.at_s, refusal)
            return
        if refusal is None:
            sessions.change((), (question.id,), now)
        answer(question.id, 0, refusal)

    def report(self, now: float) -> None:
        """Tell which sessions began or ended a request since the last time."""
        self._sessions.settle(now)
        touched = self._sessions.take_touched()
        if touched:
            uses = [SessionUse(s.id, s.endpoint, s.replica.decode(), s.idle_s, busy) for s, busy in touched]
            self._send(SessionsUsed(uses))
