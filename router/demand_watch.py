"""What the daemon is asked for: asks the workers, and keeps their counts.

One asking runs at a time, so that each worker's answers are taken in the order in which they were made; who comes
meanwhile waits for it and asks again. A worker that is silent keeps its last counts, one that is dead only what it
served.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.demand import DemandBook

if TYPE_CHECKING:
    from router.demand import EndpointDemand
    from router.routing.image import TableImage
    from router.session_book import SessionBook
    from router.worker_process import WorkerProcess

ASK_LIMIT_S = 0.25


class DemandWatch:
    """Over the workers, a list that the supervisor fills, and the table in force."""

    def __init__(self, workers: list[WorkerProcess], image: TableImage, sessions: SessionBook) -> None:
        self._sessions = sessions
        self._workers = workers
        self._image = image
        self._book = DemandBook()
        self._asking = asyncio.Lock()

    async def read(self) -> dict[str, EndpointDemand]:
        """Return the demand of each endpoint that was ever asked for anything."""
        async with self._asking:
            answers = await asyncio.gather(*(worker.ask_demand(ASK_LIMIT_S) for worker in self._workers))
            for worker, answer in zip(self._workers, answers, strict=True):
                if answer is not None:
                    self._book.take(worker.index, answer.pid, answer.endpoints)
            alive = [worker.index for worker in self._workers if worker.state in ("ready", "draining")]
            self._book.keep_workers(alive)
            self._book.keep_endpoints(self._image.endpoints)
            sessions = {n: count for n, count in self._sessions.counts().items() if n in self._image.endpoints}
            return self._book.read(sessions)
