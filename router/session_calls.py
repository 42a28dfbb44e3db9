"""What workers ask of the keeper of sticky sessions, and its answers on their way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.control import EndSession, SessionAnswer, SessionsUsed, StartSession
from router.session_keeper import Begun
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.control import AboutSessions
    from router.session_keeper import SessionKeeper


class SessionCalls:
    """Between all workers and one keeper."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper

    def handle(self, worker: int, message: AboutSessions, reply: Callable[[SessionAnswer], bool]) -> None:
        """Take a worker's word; `reply` says whether the process that asked is still there."""
        if isinstance(message, SessionsUsed):
            self._keeper.take(worker, message.uses)
        else:
            spawn(self._answer(message, reply), "session")

    async def _answer(self, asked: StartSession | EndSession, reply: Callable[[SessionAnswer], bool]) -> None:
        if isinstance(asked, EndSession):
            refusal = await self._keeper.end(asked.id)
            reply(SessionAnswer(asked.question, refusal="" if refusal is None else refusal.value))
            return
        begun = await self._keeper.start(asked.endpoint, asked.replica, asked.idle_s)
        if not isinstance(begun, Begun):
            reply(SessionAnswer(asked.question, refusal=begun.value))
        elif not reply(SessionAnswer(asked.question, begun.id, begun.at_s)):
            await self._keeper.end(begun.id)
