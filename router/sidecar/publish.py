"""Keeps the replica's row in the store as it is wanted, however often the store is away.

There is no queue: only the latest wish is written. A write that failed may still have taken effect, so after a
failure nothing is assumed about the row and the wish is written even if it equals what stood there before. A
new wish is tried at once; the same one again after a growing wait. Serving never waits for any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from random import random
from typing import TYPE_CHECKING

from router.sidecar.ports import State, StoreUnavailable
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.sidecar.ports import Registry

_log = logging.getLogger("router.sidecar")

ATTEMPT_S = 5.0  # a store that hangs is a store that is away
FLOOR_S = 0.1
CEILING_S = 5.0


@dataclass(frozen=True, slots=True)
class _Row:
    generation: int
    state: State | None  # None: unknown, after a write that failed


class Publisher:
    """Writes to `registry` from one task, which `close` or `remove` ends."""

    def __init__(
        self,
        registry: Registry,
        *,
        attempt_s: float = ATTEMPT_S,
        floor_s: float = FLOOR_S,
        ceiling_s: float = CEILING_S,
    ) -> None:
        self.failures = 0
        self.was_ready = False  # a router may have seen this replica READY
        self._registry = registry
        self._attempt_s = attempt_s
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._wanted: _Row | None = None
        self._written: _Row | None = None
        self._was_tried = False
        self._is_closed = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the row is not known to be as wanted."""
        return self._wanted != self._written

    def register(self, generation: int) -> None:
        """Want the row of a new incarnation, in state STARTING."""
        self._want(_Row(generation, State.STARTING))

    def want(self, state: State) -> None:
        """Want another state for the row; nothing happens before the first `register`."""
        if self._wanted is not None:
            self._want(_Row(self._wanted.generation, state))

    def again(self) -> None:
        """Write it all anew: somebody else (the reaper, after the lease was lost) may have changed the row."""
        self._written = None
        if self._wanted is not None:
            self._want(self._wanted)

    async def settled(self, limit_s: float) -> bool:
        """Wait until the row is as wanted, for `limit_s` at most; return whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.is_behind:
                    self._settled.clear()
                    await self._settled.wait()
        return not self.is_behind

    async def remove(self, limit_s: float) -> bool:
        """Delete the row, or else say DOWN, in `limit_s` each; return whether it is gone.  The last call."""
        await self.close()
        if not self._was_tried or await self._insist(self._registry.remove, limit_s):
            return True
        if not await self._insist(lambda: self._registry.set_state(State.DOWN), limit_s):
            _log.error("the replica's row stays behind in the store until the node's lease ends")
        return False

    async def close(self) -> None:
        """Stop writing; what is wanted later is not written, so that no row comes back after its removal."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def _want(self, row: _Row) -> None:
        if self._is_closed:
            return
        self._wanted = row
        self._changed.set()
        if self._task is None:
            self._task = spawn(self._keep(), "sidecar publisher")

    async def _keep(self) -> None:
        wait_s = self._floor_s
        while True:
            self._changed.clear()
            wanted = self._wanted
            assert wanted is not None, "the task starts with the first wish"
            if wanted == self._written:
                self._settled.set()
                wait_s = self._floor_s
                await self._changed.wait()
            elif await self._write(wanted):
                wait_s = self._floor_s
            else:
                with contextlib.suppress(TimeoutError):  # with jitter: a host's sidecars must not move in step
                    async with asyncio.timeout(wait_s * (0.5 + random())):
                        await self._changed.wait()
                wait_s = min(wait_s * 2, self._ceiling_s)

    async def _write(self, wanted: _Row) -> bool:
        """Take one step from what is written to what is wanted."""
        written = self._written
        if written is None or written.generation != wanted.generation:
            self._written = None
            if await self._attempt(self._registry.register(wanted.generation)):
                self._written = _Row(wanted.generation, State.STARTING)
                return True
            return False
        assert wanted.state is not None, "only what is written may be unknown"
        self.was_ready |= wanted.state is State.READY
        self._written = _Row(wanted.generation, None)
        if await self._attempt(self._registry.set_state(wanted.state)):
            self._written = wanted
            return True
        return False

    async def _attempt(self, write: Awaitable[None], limit_s: float | None = None) -> bool:
        self._was_tried = True
        try:
            async with asyncio.timeout(self._attempt_s if limit_s is None else limit_s):
                await write
        except (StoreUnavailable, TimeoutError) as failure:
            if not self.failures:
                _log.warning("the store is away (%s); serving goes on", failure or "no answer")
        except Exception:  # the shell around the store: whatever it threw, the row must come right in the end
            _log.exception("the replica's row could not be written")
        else:
            return True
        self.failures += 1
        return False

    async def _insist(self, write: Callable[[], Awaitable[None]], limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + limit_s
        wait_s = self._floor_s
        while (left_s := give_up_s - loop.time()) > 0:
            if await self._attempt(write(), left_s):
                return True
            await asyncio.sleep(min(wait_s, max(give_up_s - loop.time(), 0)))
            wait_s *= 2
        return False
