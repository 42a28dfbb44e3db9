"""Where robots' sessions are among the workers, for those that come again at another one. The supervisor's side.

Knows a session's workers, and nothing else of it: who comes again is asked for at those alone, and most are not
there at all. Of two that come again at the same time at two workers the one that is heard of later stays. What a
worker says when it is gone comes from nobody, so its sessions are forgotten with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, assert_never

from router.control import CameAgain, EarlierEnded, EndEarlier, HasLeft, IsHere, TakenOver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.control import AboutTakeovers, ToWorker


class Told(Protocol):
    """A worker's process, or its place while there is none."""

    def send(self, message: ToWorker) -> None:
        """Tell it something."""


class TakeoverCalls:
    """Between all workers. `workers` by their index."""

    def __init__(self, workers: Sequence[Told]) -> None:
        self._workers = workers
        self._where: dict[str, int] = {}  # a bit for each worker
        self._heard: dict[int, int] = {}  # the last question of each worker

    def handle(self, worker: int, message: AboutTakeovers) -> None:
        """Take a worker's word."""
        match message:
            case CameAgain():
                self._heard[worker] = message.question
                others = self._where.get(message.session, 0) & ~(1 << worker)
                self._where[message.session] = others | 1 << worker
                if not others:
                    self._workers[worker].send(TakenOver(message.question))
                told = others.bit_count()
                while others:
                    other = others.bit_length() - 1
                    others &= ~(1 << other)
                    heard = self._heard.get(other, 0)
                    self._workers[other].send(
                        EndEarlier(worker, message.question, message.session, message.attempt, heard, told)
                    )
            case EarlierEnded():
                self._workers[message.worker].send(TakenOver(message.question, message.told))
            case IsHere():
                found = self._where.get(message.session, 0)
                self._where[message.session] = found | 1 << worker
                if found & ~(1 << worker):  # its robot was elsewhere before this was read: nobody waits for that
                    heard = self._heard.get(worker, 0)
                    self._workers[worker].send(EndEarlier(worker, 0, message.session, "", heard, 1))
            case HasLeft():
                self._drop(message.session, worker)
            case _:
                assert_never(message)

    def drop_worker(self, worker: int) -> None:
        """Forget the sessions of a process that ended, and its questions: the next one numbers anew."""
        self._heard.pop(worker, None)
        for session in [session for session, bits in self._where.items() if bits >> worker & 1]:
            self._drop(session, worker)

    def _drop(self, session: str, worker: int) -> None:
        left = self._where.get(session, 0) & ~(1 << worker)
        if left:
            self._where[session] = left
        else:
            self._where.pop(session, None)
