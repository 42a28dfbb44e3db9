"""How loaded engines say they are: SGLang's /v1/loads, asked once a second, beside the data path in the supervisor.

Only replicas of endpoints whose policy is `engine_load` are asked. What they say is handed on as one number for
each, in requests: those that run or wait, a thousand tokens of prefill that wait for one more, and more as the KV
memory runs out, since the engine then takes requests back. A replica that does not answer is left out, and what was
known of it grows stale. Who reads it decides how old it may be.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import msgspec

from router.transport.attached import NOWHERE
from router.transport.tasks import spawn
from router.transport.upstream.question import fetch_http

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.routing.image import TableImage
    from router.routing.spec import ReplicaSpec, TlsSpec

_log = logging.getLogger(__name__)

POLICY = "engine_load"
PATH = "/v1/loads?include=core"
INTERVAL_S = 1.0
LIMIT_S = 0.9  # for an answer
MAX_PARALLEL = 64
TOKENS_A_REQUEST = 1_024  # of prefill that waits: about as long as a request that runs keeps others waiting
FULL_FROM = 0.9  # of the KV memory


_Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class RankLoad(msgspec.Struct):
    """What one data-parallel rank says, as far as it is used."""

    num_running_reqs: _Number = 0
    num_waiting_reqs: _Number = 0
    num_waiting_uncached_tokens: _Number = 0
    token_usage: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)] = 0.0


class Loads(msgspec.Struct):
    """The answer of /v1/loads."""

    loads: list[RankLoad]


_decoder = msgspec.json.Decoder(Loads)


def score(body: bytes) -> float:
    """Return an engine's load in requests. ValueError if it is not an answer of /v1/loads."""
    found = _decoder.decode(body)  # its errors are ValueErrors
    if not found.loads:
        raise ValueError("no rank is named")
    total = 0.0
    for rank in found.loads:
        requests = max(0, rank.num_running_reqs) + max(0, rank.num_waiting_reqs)
        total += requests + max(0, rank.num_waiting_uncached_tokens) / TOKENS_A_REQUEST
        if rank.token_usage > FULL_FROM:
            total += requests * min(1.0, (rank.token_usage - FULL_FROM) / (1.0 - FULL_FROM))
    return total


class EngineLoadPoller:
    """Asks while there is anybody to ask; tells `on_loads(endpoint, {replica: load})` after each round.

    Each endpoint has rounds and connections of its own, so that engines which hang make nobody else's loads stale.
    """

    def __init__(self, image: TableImage, on_loads: Callable[[str, dict[str, float]], None]) -> None:
        self.attached = NOWHERE  # set once it is known where replicas attach
        self._image = image
        self._on_loads = on_loads
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(self) -> None:
        """Look at the table again: it has changed."""
        endpoints = self._image.endpoints
        for name, spec in endpoints.items():
            if spec.policy == POLICY and name not in self._tasks:
                self._tasks[name] = spawn(self._run(name), f"engine loads of {name}")
        for name in [name for name in self._tasks if name not in endpoints or endpoints[name].policy != POLICY]:
            self._tasks.pop(name).cancel()

    def close(self) -> None:
        """Stop asking."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _run(self, name: str) -> None:
        free = asyncio.Semaphore(MAX_PARALLEL)
        while True:
            began_s = monotonic()
            try:
                await self._ask_endpoint(name, free)
            except Exception:  # a bug: the next round must come
                _log.exception("a round of engine loads failed")
            await asyncio.sleep(max(0.01, INTERVAL_S - (monotonic() - began_s)))

    async def _ask_endpoint(self, name: str, free: asyncio.Semaphore) -> None:
        spec = self._image.endpoints[name]
        replicas = [r for r in self._image.replicas.get(name, {}).values() if r.state in ("READY", "DRAINING")]
        answers = await asyncio.gather(*(self._ask(replica, spec.tls, free) for replica in replicas))
        loads = {
            replica.id: load for replica, load in zip(replicas, answers, strict=True) if load is not None
        }
        if loads:
            self._on_loads(name, loads)

    async def _ask(self, replica: ReplicaSpec, tls: TlsSpec, free: asyncio.Semaphore) -> float | None:
        async with free:
            try:
                async with asyncio.timeout(LIMIT_S):
                    status, body = await fetch_http(replica.address, PATH, tls, self.attached)
                    return score(body) if status == 200 else None
            # TimeoutError among them; nested too deep
            except (OSError, ValueError, RecursionError) as failure:
                _log.debug("replica %s does not tell its load: %s", replica.id, failure or "no answer in time")
                return None
