"""Where the engine is between its start and its end: starting, ready, draining.

SIGTERM as SGLang's Python front end takes it: /ready and /health turn 503 at once, new requests are still
accepted, what is in flight finishes, then the process exits; a second SIGTERM does not wait.
"""

from __future__ import annotations

import asyncio
import os
import signal
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.02
FORCED_EXIT = 128 + signal.SIGTERM


class Lifecycle:
    """Starting until `startup_s` are over, then ready, then draining."""

    __slots__ = ("_loop", "_ready_at", "draining", "stopping")

    def __init__(self, startup_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready_at = monotonic() + startup_s if startup_s else 0.0
        self.draining = False
        self.stopping = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """What /ready says."""
        return not self.draining and (not self._ready_at or monotonic() >= self._ready_at)

    def watch_signals(self) -> None:
        """Drain on SIGTERM or SIGINT; exit at once on the second."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.draining:
            os._exit(FORCED_EXIT)
        self.draining = True
        self.stopping.set()

    async def drained(self, in_flight: Callable[[], int], drain_s: float, linger_s: float) -> None:
        """Return when nothing is in flight and `linger_s` are over, or after `drain_s` in any case."""
        begin = monotonic()
        while (now := monotonic()) - begin < drain_s and (  # noqa: ASYNC110 -- SGLang's watchdog polls too
            in_flight() or now - begin < linger_s
        ):
            await asyncio.sleep(_POLL_S)
