"""The asyncio shell around the scheduler: wall time, a callback per step, no task.

A turn ends the batch in flight, hands each event to its request's owner, and arms one timer for the end of
the batch that now runs. Steps follow their own schedule, not the moment a late timer fired, so a loop whose
timers have millisecond grain (uvloop's) keeps the modelled rate. With a time scale of 0 a turn follows the
last at once; while no stream is watching it takes several steps per turn, since nobody can tell.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from inference_backend.scheduler import Request, Scheduler

_STEPS_PER_TURN = 16
_LATEST_S = 0.005  # further behind than this, the schedule restarts from now
_GRAIN_S = 0.0005  # half of uvloop's timer grain: sooner than this is now


class Owner(Protocol):
    """Whoever waits for a request's tokens; called inside a turn, must not raise or block."""

    is_stream: bool

    def generated(self, tokens: int, finish: str | None) -> None:
        """`tokens` more exist; `finish` ends the request and is the last call."""


class Driver:
    """Runs one scheduler on one loop."""

    __slots__ = ("_due", "_loop", "_running", "_time_scale", "scheduler", "streams")

    def __init__(self, scheduler: Scheduler, time_scale: float, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler = scheduler
        self.streams = 0  # unfinished requests whose owner is a stream
        self._time_scale = time_scale
        self._loop = loop
        self._running = False
        self._due = 0.0

    def submit(self, request: Request, owner: Owner) -> bool:
        """Queue the request for `owner`; False if the queue is full."""
        request.owner = owner
        if not self.scheduler.submit(request, monotonic()):
            return False
        self.streams += owner.is_stream
        if not self._running:
            self._running = True
            self._due = monotonic()
            self._loop.call_soon(self._turn)
        return True

    def abort(self, request: Request) -> None:
        """End the request at the next step, if it still runs."""
        self.scheduler.abort(request)

    def _turn(self) -> None:
        steps = _STEPS_PER_TURN
        while True:
            duration, events = self.scheduler.step(monotonic())
            for request, tokens, finish in events:
                owner: Owner = request.owner
                if finish is not None:
                    self.streams -= owner.is_stream
                owner.generated(tokens, finish)
            if duration is None:
                self._running = False
                return
            if self._time_scale > 0:
                self._arm(duration * self._time_scale)
                return
            steps -= 1
            if self.streams or not steps:
                self._loop.call_soon(self._turn)
                return

    def _arm(self, duration: float) -> None:
        now = monotonic()
        if now - self._due > _LATEST_S:
            self._due = now
        self._due += duration
        delay = self._due - now
        if delay > _GRAIN_S:
            self._loop.call_later(delay, self._turn)
        else:
            self._loop.call_soon(self._turn)
