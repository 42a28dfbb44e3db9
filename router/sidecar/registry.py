"""The sidecar's row in the store, under its node's lease."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.config.errors import StoreError, StoreUnavailableError
from router.config.lease import NodeLease
from router.config.writer import FencedError, Writer, open_writer
from router.sidecar.ports import StoreUnavailable
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from router.config.target import Target

_log = logging.getLogger("router.sidecar")


@dataclass(frozen=True, slots=True)
class Place:
    """What the row says of the replica besides its state."""

    endpoint: str
    replica: str
    node: str
    region: str
    zone: str
    address: str
    port: int
    weight: float
    scheme: str = "http"
    lanes: dict[str, Any] | None = None


class StoreRegistry:
    """Implements `ports.Registry`."""

    def __init__(self, target: Target, place: Place) -> None:
        self._target = target
        self._place = place
        self._on_fenced: Callable[[], None] | None = None
        self._generation = 0
        self._lease: NodeLease | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def last_generation(self) -> int:
        """Return the generation that the store has; 0 if there is no row. StoreUnavailable if it is away."""
        async with self._open() as writer:
            return await writer.generation(self._place.endpoint, self._place.replica)

    def attach(self, on_lapsed: Callable[[], None], on_fenced: Callable[[], None]) -> None:
        """Begin to renew the node's lease; `on_lapsed` when it had run out.

        `on_fenced` is called when a newer incarnation has taken the row.
        """
        self._on_fenced = on_fenced
        self._lease = NodeLease(self._target, self._place.node, self._place.region, on_lapsed)
        self._renewing = spawn(self._lease.run(), "node lease")

    async def close(self) -> None:
        """Stop renewing; the lease runs out by itself."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])

    async def register(self, generation: int) -> None:
        """Write the row; see `ports.Registry`."""
        place = self._place
        self._generation = generation
        async with self._open() as writer:
            await writer.register(
                place.endpoint, place.replica, generation,
                node=place.node, region=place.region, zone=place.zone,
                address=place.address, port=place.port, weight=place.weight,
                capabilities=json.dumps(
                    {"scheme": place.scheme} | ({} if place.lanes is None else {"lanes": place.lanes})
                ),
            )  # fmt: skip

    async def set_state(self, state: str) -> None:
        """Change the state; see `ports.Registry`."""
        async with self._open() as writer:
            await writer.set_state(self._place.endpoint, self._place.replica, self._generation, state)

    async def remove(self) -> None:
        """Delete the row; see `ports.Registry`."""
        async with self._open() as writer:
            await writer.withdraw(self._place.endpoint, self._place.replica, self._generation)

    def _open(self) -> AbstractAsyncContextManager[Writer]:
        return _opened(self._target, self._on_fenced)


class NoRegistry:
    """Implements `ports.Registry` where an operator keeps the row, or a file names the replica."""

    async def last_generation(self) -> int:
        """There is none."""
        return 0

    def attach(self, on_lapsed: Callable[[], None], on_fenced: Callable[[], None]) -> None:
        """There is no lease to renew."""

    async def close(self) -> None:
        """Nothing is open."""

    async def register(self, generation: int) -> None:
        """Nobody is told."""

    async def set_state(self, state: str) -> None:
        """Nobody is told: routers see by their checks of health."""

    async def remove(self) -> None:
        """Nobody is told."""


@asynccontextmanager
async def _opened(target: Target, on_fenced: Callable[[], None] | None) -> AsyncIterator[Writer]:
    try:
        async with open_writer(target) as writer:
            yield writer
    except FencedError as refusal:
        _log.error("%s", refusal)
        if on_fenced is not None:
            on_fenced()
        raise StoreUnavailable(str(refusal)) from None
    except StoreUnavailableError as failure:
        raise StoreUnavailable(str(failure)) from None
    except StoreError as failure:
        # An endpoint that is not there yet, a row that somebody deleted: it may come right.
        _log.warning("%s", failure)
        raise StoreUnavailable(str(failure)) from None
