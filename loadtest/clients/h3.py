"""HTTP/3 unary calls in a closed loop: N connections with M requests at once on each, by aioquic.

aioquic costs more than either proxy, on both sides alike, so CPU per request is of the proxy while p50 has much of
the client in it. In a closed loop it is the client that is full in front of the faster proxy, which shows in p99:
with a rate all of the M ask in turns of a fixed length, at most once each. What is not whole within `ANSWER_S` is
an error. Imports the seam and `wire`.
"""

from __future__ import annotations

import asyncio
import ssl
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamReset

from loadtest import wire
from loadtest.clients.window import Paced

if TYPE_CHECKING:
    from aioquic.quic.events import QuicEvent

    from loadtest.clients.window import Command, Window

CONNECT_S = 5.0
ANSWER_S = 5.0
_BODY = wire.chat_body(stream=False)


class Asked:
    """One request that is under way."""

    __slots__ = ("sent_at", "size", "status")

    def __init__(self) -> None:
        self.sent_at = perf_counter()
        self.status = b""
        self.size = 0


class Asker(QuicConnectionProtocol):
    """One connection; asks again as soon as it is answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.head = wire.chat_fields(stream=False)
        self.asked: dict[int, Asked] = {}
        self.window: Window | None = None
        self.turn_s = 0.0  # 0: ask again as soon as answered

    def end(self) -> None:
        """Say goodbye, which nobody waits for."""
        self.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def begin(self) -> None:
        """Ask."""
        stream = self._quic.get_next_available_stream_id()
        self.asked[stream] = Asked()
        self.http.send_headers(stream, self.head)
        self.http.send_data(stream, _BODY, end_stream=True)

    def quic_event_received(self, event: QuicEvent) -> None:
        """Count what is answered."""
        window = self.window
        if isinstance(event, ConnectionTerminated | StreamReset):
            if window is not None and self.asked and not window.ended():
                window.fail(f"{type(event).__name__} {event.error_code}")
            return
        for found in self.http.handle_event(event):
            if not isinstance(found, HeadersReceived | DataReceived):
                continue
            asked = self.asked.get(found.stream_id)
            if asked is None:
                continue
            if isinstance(found, HeadersReceived):
                asked.status = asked.status or dict(found.headers).get(b":status", b"")
            else:
                asked.size += len(found.data)
            if found.stream_ended:
                del self.asked[found.stream_id]
                self._answered(asked)

    def _answered(self, asked: Asked) -> None:
        window = self.window
        if window is None or window.ended():
            return
        if asked.status != b"200" or not asked.size:
            window.fail(f"status {asked.status.decode() or '-'}, {asked.size} bytes")
        else:
            window.latencies.append(perf_counter() - asked.sent_at)
            window.units += 1
        left_s = asked.sent_at + self.turn_s - perf_counter()
        if left_s > 0.0:
            self._loop.call_later(left_s, self._ask)
        else:
            self.begin()  # it leaves when all that came is dealt with

    def _ask(self) -> None:
        """Ask in a tick of its own."""
        if self.window is not None and not self.window.ended():
            self.begin()
            self.transmit()


class Http3(Paced):
    """`Client` of the calls; a unit is a request."""

    def __init__(self, command: Command, window: Window) -> None:
        super().__init__(command)
        self.window = window
        self.askers: list[Asker] = []

    async def start(self) -> None:
        """Connect all, and ask as many times on each."""
        loop = asyncio.get_running_loop()
        for _ in range(self.command.connections):
            configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE)
            configuration.server_name = "localhost"
            quic = QuicConnection(configuration=configuration)
            _, asker = await loop.create_datagram_endpoint(lambda: Asker(quic), local_addr=("127.0.0.1", 0))  # noqa: B023
            self.askers.append(asker)
            asker.connect(("127.0.0.1", self.command.port))
            async with asyncio.timeout(CONNECT_S):
                await asker.wait_connected()
            asker.window = self.window
        slots = self.command.connections * self.command.streams
        turn_s = slots / self.command.rate_per_s if self.command.rate_per_s else 0.0
        for place, asker in enumerate(self.askers):
            asker.turn_s = turn_s
            for stream in range(self.command.streams):
                at = (stream * self.command.connections + place) / slots
                loop.call_later(at * turn_s, asker._ask)  # noqa: SLF001 - of this module

    async def drain(self) -> None:
        """Fail what was never answered."""
        now = perf_counter()
        late = sum(now - asked.sent_at > ANSWER_S for asker in self.askers for asked in asker.asked.values())
        if late:
            self.window.fail(f"{late} requests without an answer")
        elif not self.window.units:
            self.window.fail("nothing was answered")

    def close(self) -> None:
        """Say goodbye, and drop the sockets."""
        for asker in self.askers:
            asker.window = None
            asker.end()
