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
from typing import TYPE_CHECKING

import msgspec

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


class RankLoad(msgspec.Struct):
    """What one data-parallel rank says, as far as it is used."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_waiting_uncached_tokens: int = 0
    token_usage: float = 0.0


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
    """Asks while there is anybody to ask; tells `on_loads(endpoint, {replica: load})` after each round."""

    def __init__(self, image: TableImage, on_loads: Callable[[str, dict[str, float]], None]) -> None:
        self._image = image
        self._on_loads = on_loads
        self._free = asyncio.Semaphore(MAX_PARALLEL)
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Look at the table again: it has changed."""
        if self._task is None and any(spec.policy == POLICY for spec in self._image.endpoints.values()):
            self._task = spawn(self._run(), "engine loads")

    def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            began_s = monotonic()
            try:
                names = [name for name, spec in self._image.endpoints.items() if spec.policy == POLICY]
                await asyncio.gather(*map(self._ask_endpoint, names))
            except Exception:  # a bug: the next round must come
                _log.exception("a round of engine loads failed")
            await asyncio.sleep(max(0.0, INTERVAL_S - (monotonic() - began_s)))

    async def _ask_endpoint(self, name: str) -> None:
        spec = self._image.endpoints[name]
        replicas = [r for r in self._image.replicas.get(name, {}).values() if r.state in ("READY", "DRAINING")]
        answers = await asyncio.gather(*(self._ask(replica, spec.tls) for replica in replicas))
        loads = {
            replica.id: load for replica, load in zip(replicas, answers, strict=True) if load is not None
        }
        if loads:
            self._on_loads(name, loads)

    async def _ask(self, replica: ReplicaSpec, tls: TlsSpec) -> float | None:
        async with self._free:
            try:
                async with asyncio.timeout(LIMIT_S):
                    status, body = await fetch_http(replica.address, PATH, tls)
                    return score(body) if status == 200 else None
            except (OSError, ValueError, RecursionError) as failure:  # TimeoutError among them
                _log.debug("replica %s does not tell its load: %s", replica.id, failure or "no answer in time")
                return None
