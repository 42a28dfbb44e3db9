"""HTTP/3 in the check of `router up`, by aioquic: a fault of our engine cannot hide behind itself."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from aioquic.quic.events import QuicEvent

LIMIT_S = 10.0


class Client(QuicConnectionProtocol):
    """One request at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self._status = b""
        self._body: deque[bytes] = deque()
        self._done: asyncio.Future[tuple[int, bytes]] | None = None

    async def post(
        self, authority: str, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        stream_id = self._quic.get_next_available_stream_id()
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
        ]
        self._http.send_headers(stream_id, fields)
        self._http.send_data(stream_id, body, end_stream=True)
        self._body.clear()
        self._done = asyncio.get_running_loop().create_future()
        self.transmit()
        async with asyncio.timeout(LIMIT_S):
            return await self._done

    def quic_event_received(self, event: QuicEvent) -> None:
        """Gather the answer."""
        for found in self._http.handle_event(event):
            if isinstance(found, HeadersReceived):
                self._status = dict(found.headers).get(b":status", self._status)
            elif isinstance(found, DataReceived):
                self._body.append(found.data)
            ended = isinstance(found, HeadersReceived | DataReceived) and found.stream_ended
            if ended and self._done is not None and not self._done.done():
                self._done.set_result((int(self._status or b"0"), b"".join(self._body)))


def connection(url: str, ca: str) -> AbstractAsyncContextManager[Any]:
    """Return a context manager of a `Client` connected to quic://HOST:PORT; without `ca` any certificate does."""
    parts = urlsplit(url)
    mode = ssl.CERT_REQUIRED if ca else ssl.CERT_NONE
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], verify_mode=mode)
    if ca:
        configuration.load_verify_locations(ca)
    configuration.server_name = "localhost"
    return connect(parts.hostname or "", parts.port or 0, configuration=configuration, create_protocol=Client)


def http3(url: str, ca: str, path: str, body: bytes) -> Callable[[], tuple[float, int, bytes]]:
    """Connect; return a call that posts and returns the seconds it took, the status and the body."""
    runner = asyncio.Runner()
    context = connection(url, ca)
    client: Any = runner.run(_enter(context))

    def call(_kept: Any = context) -> tuple[float, int, bytes]:  # were it collected, the connection would be closed
        began = perf_counter()
        status, answer = runner.run(client.post("localhost", path, body))
        return perf_counter() - began, status, answer

    return call


async def _enter(context: Any) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await context.__aenter__()  # the check is all that this process does: it is never left
