"""Our engine with quinn's on the other side, over a socket: the client of quic-portal, which is built on it."""

import asyncio
import contextlib
import time

import pytest
import quic_portal
from udpkit import bound, open_udp, until

from inference_backend.ports import free_port
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.quic.handshake import Tickets
from router.transport.codec.quic.server import ServerConnection
from router.transport.udp import DatagramReceiver
from tests.certkit import Authority
from tests.transport.codec.quic.rig import End, OneIdentity

PACKETS = 200
_authority = Authority()
_identity = OneIdentity(_authority.sign("robot.test"))


class Host(DatagramReceiver):
    """One client's connection on a socket; deadlines are looked at each millisecond."""

    def __init__(self):
        self.end = End()
        self.config = QuicConfig(is_server=True, alpn=["h3"])
        self.config.takes_no_alpn = True
        self.config.identities, self.config.tickets = _identity, Tickets()
        self.sock, _ = open_udp(bound(), self)

    def receive(self, sock, data, segment_bytes, address, local, ecn):
        now = time.monotonic()
        if self.end.connection is None:
            first = data[6 : 6 + data[5]]
            self.end.connection = ServerConnection(
                self.config, self.end, now, address, None, first, first, False
            )
        self.end.connection.receive(data, segment_bytes, address, None, now, ecn)

    def received(self):
        self.flush()

    def flush(self):
        if self.end.connection is not None:
            for burst in self.end.connection.datagrams_to_send(time.monotonic()):
                self.sock.send(burst.pieces, burst.segment_bytes, b"", burst.address)

    async def run(self):
        while True:
            await asyncio.sleep(0.001)
            connection, now = self.end.connection, time.monotonic()
            deadline = connection.next_deadline() if connection is not None else None
            if deadline is not None and deadline <= now:
                connection.handle_deadline(now)
                self.flush()


@contextlib.asynccontextmanager
async def connected():
    """Yield the host and quic-portal's client, whose first message has come."""
    host = Host()
    turn = asyncio.ensure_future(host.run())
    portal = quic_portal.Portal()
    try:
        await asyncio.to_thread(portal.connect, "127.0.0.1", host.sock.address()[1], free_port())
        await asyncio.to_thread(portal.send, b"go")
        await until(lambda: host.end.app.data)
        yield host, portal
    finally:
        turn.cancel()
        host.sock.close()


async def acknowledgements(*, every):
    """Return how many packets came for `PACKETS` that were sent one each millisecond."""
    async with connected() as (host, portal):
        connection = host.end.connection
        assert connection.takes_ack_frequency, "quinn says so in its transport parameters"
        (flow,) = host.end.app.flows.values()
        if every:
            connection.recovery.congestion.window = 8 * every * connection.path.mtu.size
            connection.ack_frequency.consider(connection.recovery.congestion.window, 1_200, 1 << 20)
        before = connection.received_packets
        flow.send((100 * PACKETS).to_bytes(4, "big"), False)
        for _ in range(PACKETS):
            flow.send(bytes(100), False)
            host.flush()
            await asyncio.sleep(0.001)  # the traffic's pace: read at once they would be acknowledged at once
        assert await asyncio.to_thread(portal.recv, timeout_ms=5_000) == bytes(100 * PACKETS)
        assert bool(every) == (connection.ack_frequency.sequence >= 0)
        assert not connection.closed_by_peer
        return connection.received_packets - before


@pytest.mark.timeout(60)
async def test_quinn_acknowledges_as_rarely_as_it_is_asked_to():
    usual, asked = await acknowledgements(every=0), await acknowledgements(every=60)
    assert usual > PACKETS / 4, "every other packet, or every second batch of a slow machine"
    assert asked < usual / 3, "every 60th, or after 25 ms"


@pytest.mark.timeout(60)
async def test_quinn_goes_on_marking_what_it_sends():
    """It gives ECN up at the first acknowledgement without counts, or with ones that do not fit."""
    async with connected() as (host, portal):
        for _ in range(20):
            before = host.end.connection.received_packets
            await asyncio.to_thread(portal.send, bytes(5_000))
            await until(lambda: host.end.connection.received_packets > before + 3)  # noqa: B023 - awaited at once
        space = host.end.connection.space(3)
        assert space.expected > 80
        assert space.ect0_packets > 0.9 * space.expected, "it leaves out some numbers"
