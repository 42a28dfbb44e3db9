"""A network for one client: datagrams are delayed, lost and kept in order between it and a server, on loopback.

`forget` is what a NAT does that has forgotten the client: it is seen at another port from then on, and what comes
to the old one is lost. Imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any


class _End(asyncio.DatagramProtocol):
    def __init__(self, take: Any) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Hand it on."""
        self._take(data, addr)


class _Way:
    """One direction."""

    def __init__(self, delay_s: float, jitter_s: float, loss: float, seed: int) -> None:
        self._delay_s, self._jitter_s, self._loss = delay_s, jitter_s, loss
        self._random = random.Random(seed)
        self._last_s = 0.0
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()

    def carry(self, deliver: Any, data: bytes) -> None:
        """Deliver later, or never; never before what came earlier."""
        if self._random.random() < self._loss:
            return
        at = self._loop.time() + self._delay_s + self._random.random() * self._jitter_s
        self._last_s = at = max(at, self._last_s)
        self._waiting.append(data)
        self._loop.call_at(at, self._deliver_next, deliver)  # timers of one moment fire in no order

    def _deliver_next(self, deliver: Any) -> None:
        deliver(self._waiting.popleft())


class Relay:
    """Between one client, whichever speaks first, and the server at `port`. `async with`."""

    def __init__(
        self, port: int, *, rtt_s: float, jitter_s: float = 0.0, loss: float = 0.0, seed: int = 1
    ) -> None:
        self._server = ("127.0.0.1", port)
        self._settings = (rtt_s / 2, jitter_s, loss)
        self._seed = seed
        self._client: Any = None
        self.port = 0

    async def __aenter__(self) -> Relay:  # noqa: PYI034 - it is not for others
        """Open both sockets."""
        self._up, self._down = _Way(*self._settings, self._seed), _Way(*self._settings, self._seed + 1)
        self._near = await self._open(self._from_client)
        self._far = await self._open(self._from_server)
        self.port = int(self._near.get_extra_info("sockname")[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        self._near.close()
        self._far.close()

    async def forget(self) -> None:
        """Have the client seen at another port."""
        fresh = await self._open(self._from_server)
        self._far.close()
        self._far = fresh

    async def _open(self, take: Any) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _End(take), local_addr=("127.0.0.1", 0))
        return transport

    def _from_client(self, data: bytes, address: Any) -> None:
        self._client = address
        self._up.carry(self._to_server, data)

    def _to_server(self, data: bytes) -> None:
        if not self._far.is_closing():
            self._far.sendto(data, self._server)

    def _from_server(self, data: bytes, _: Any) -> None:
        self._down.carry(self._to_client, data)

    def _to_client(self, data: bytes) -> None:
        if not self._near.is_closing() and self._client is not None:
            self._near.sendto(data, self._client)
