"""The listener with the real engine: aioquic in memory behind a real socket, HTTP/3, certificates, one socket for two."""

import asyncio
import gc
import time

import pytest
import pytest_asyncio
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted
from certkit import Authority
from quickit import Rig
from udpkit import until

from router.edge.attach_server import AttachedReplicas
from router.edge.quic_protocols import ServedProtocols
from router.transport.attached import NOWHERE
from router.transport.codec.h1.limits import ServerLimits
from router.transport.server_tls import CertificatePair, ServerTls


@pytest.fixture(scope="module")
def authority():
    return Authority()


def tls_of(authority, name="localhost"):
    pair = authority.sign(name)
    return ServerTls((CertificatePair("x.pem", pair.cert, pair.key, (name,), 0.0),))


@pytest_asyncio.fixture
async def rig(authority):
    refused = []
    rig = Rig(protocols=lambda rig: ServedProtocols(
        tls_of(authority), ServerLimits(), rig.counters, refused.append, AttachedReplicas(NOWHERE, None, rig.reactor)
    )).start()  # fmt: skip
    rig.refused = refused
    yield rig
    rig.close()


class Client:
    """aioquic on a socket that it may share with others."""

    def __init__(self, rig, authority, sock=None, alpn=H3_ALPN):
        self.rig, self.sock = rig, sock or rig.client()
        configuration = QuicConfiguration(is_client=True, alpn_protocols=alpn, cadata=authority.cert, server_name="localhost")
        self.quic = QuicConnection(configuration=configuration)
        self.quic.connect(rig.address, now=time.time())
        self.http = None
        self.events = []

    def take(self):
        """Return the datagrams that it wants to send."""
        return [data for data, _ in self.quic.datagrams_to_send(time.time())]

    def pump(self):
        for data in self.take():
            self.sock.send(data)

    def receive(self, data):
        self.quic.receive_datagram(data, self.rig.address, time.time())
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self.http = H3Connection(self.quic)
            if self.http is not None:
                self.events += self.http.handle_event(event)

    async def turn(self, *others):
        """Read what came, by all who share the socket, and answer."""
        try:
            while True:
                data = self.sock.recv(65_535)
                for client in (self, *others):
                    client.receive(data)
        except BlockingIOError:
            pass
        for client in (self, *others):
            client.pump()
        await asyncio.sleep(0.001)

    async def connected(self, *others):
        async with asyncio.timeout(5):
            while self.http is None:
                await self.turn(*others)
        return self

    def get(self, end=True):
        stream = self.quic.get_next_available_stream_id()
        head = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
        self.http.send_headers(stream, head, end_stream=end)
        return stream

    async def answer(self):
        async with asyncio.timeout(5):
            while not any(getattr(event, "stream_ended", False) for event in self.events):
                await self.turn()
        (head,) = [dict(event.headers) for event in self.events if isinstance(event, HeadersReceived)]
        return head, b"".join(event.data for event in self.events if isinstance(event, DataReceived))


async def test_a_request_makes_an_exchange(rig, authority):
    client = await Client(rig, authority).connected()
    client.get()
    head, body = await client.answer()
    assert head[b":status"] == b"503" and b"no_replica" in body, "there is no table"
    assert rig.core.unrouted.requests == 1
    assert rig.count("handshakes") == 1 and rig.listener.handshaking == 0


async def test_two_connections_of_one_socket_in_one_read(rig, authority):
    """The kernel joins by addresses: another connection's first packet comes behind a full one of this one."""
    one = await Client(rig, authority).connected()
    one.http.send_data(one.get(end=False), bytes(6_000), end_stream=False)
    two = Client(rig, authority, one.sock)
    full = [data for data in one.take() if len(data) >= 1_200]
    (first,) = two.take()
    size = len(full[0])
    assert len(first) <= size and all(len(data) == size for data in full[:3])
    (sock,) = rig.listener._sockets.values()
    rig.listener.receive(sock, b"".join((*full[:3], first)), size, one.sock.getsockname(), b"", 0)
    rig.listener.received()
    assert rig.listener.open_connections == 2
    await two.connected(one)
    assert rig.listener.numbers()["quic_drop_unknown"] == 0


async def test_one_that_closes_is_gone_in_the_end(rig, authority):
    client = await Client(rig, authority).connected()
    client.quic.close(error_code=0x100)
    client.pump()
    await until(lambda: rig.listener.is_idle)
    await until(lambda: rig.listener.open_connections == 0)
    assert not rig.listener._by_id and rig.headcount.open == 0


@pytest.mark.parametrize("how", ["answered", "cut", "in the midst", "a handshake", "no common protocol"])
async def test_nothing_is_left_to_the_collector(rig, authority, how):
    """As for TCP: what only the collector finds grows until it stops the worker."""
    gc.collect()
    gc.disable()
    try:
        client = Client(rig, authority, alpn=["another"] if how == "no common protocol" else H3_ALPN)
        client.pump()
        await until(lambda: rig.listener.open_connections)
        if how == "no common protocol":
            await until(lambda: rig.listener.numbers()["quic_handshake_failures"])
        elif how != "a handshake":
            await client.connected()
            stream = client.get(end=how != "in the midst")
            client.pump()
        if how == "answered":
            await client.answer()
            client.quic.close(error_code=0x100)
        elif how == "in the midst":
            client.http.send_data(stream, bytes(3_000), end_stream=False)
            client.pump()
            client.quic.close(error_code=0x100)
        client.pump()
        if how in ("cut", "a handshake"):
            (shell,) = rig.listener._shells
            shell.end()
            del shell
        await until(lambda: not rig.listener.open_connections)
        rig.listener.timers._sweep()
        rig.reactor.wheel.turn(rig.reactor.clock.read() + 60.0)
        rig.reactor.wheel.turn(rig.reactor.clock.read() + 120.0)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("router.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


@pytest.mark.parametrize("how", ["drain", "retire"])
async def test_a_handshake_in_the_midst_of_an_end(rig, authority, how):
    """It is finished, and what it asks for is answered: the client could not know."""
    client = Client(rig, authority)
    client.pump()
    await until(lambda: rig.listener.open_connections)
    rig.listener.stop_accepting()
    getattr(rig.listener, how)()
    (sock,) = rig.listener._sockets.values()
    sock.start_reading()  # as if another process passed it on
    await client.connected()
    client.get()
    assert (await client.answer())[0][b":status"] == b"503"


async def test_no_protocol_in_common(rig, authority):
    client = Client(rig, authority, alpn=["nothing"])
    client.pump()
    await until(lambda: rig.count("handshake_failures") == 1)
    assert rig.count("handshakes") == 0


async def test_other_certificates_are_for_new_connections(rig, authority):
    old = await Client(rig, authority).connected()
    other = Authority("another")
    rig.protocols.set_tls(tls_of(other))
    await Client(rig, other).connected()
    old.get()
    head, _ = await old.answer()
    assert head[b":status"] == b"503"


async def test_tokens_are_given_and_taken(rig, authority):
    tokens = []
    first = Client(rig, authority)
    first.quic._token_handler = tokens.append
    await first.connected()
    async with asyncio.timeout(5):
        while not tokens:
            await first.turn()
    second = Client(rig, authority)
    second.quic._peer_token = tokens[0]
    await second.connected()
    assert rig.count("tokens_used") == 1


async def test_a_retry_on_the_way(rig, authority):
    rig.listener.handshaking = 64
    client = await Client(rig, authority).connected()
    client.get()
    assert (await client.answer())[0][b":status"] == b"503"
    assert (rig.count("retries"), rig.count("retries_answered")) == (1, 1)
    rig.listener.handshaking -= 64
