"""The daemon answers STUN on the port of QUIC: a client of another maker, workers, metrics, the same socket as HTTP/3."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from aioice import stun as ice

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(60)]


class Client(asyncio.DatagramProtocol):
    """aioice's transactions on a socket."""

    def connection_made(self, transport):
        self.transport = transport
        self.waiting = {}

    def datagram_received(self, data, address):
        message = ice.parse_message(data)
        self.waiting[message.transaction_id].response_received(message, address)

    def send_stun(self, message, address):
        self.transport.sendto(bytes(message), address)

    async def ask(self, server, **attributes):
        request = ice.Message(ice.Method.BINDING, ice.Class.REQUEST, attributes=attributes)
        self.waiting[request.transaction_id] = transaction = ice.Transaction(request, server, self, retransmissions=3)
        answer, _ = await transaction.run()
        return answer.attributes["XOR-MAPPED-ADDRESS"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_by_aioice(start_router, engine, files, host):
    shown = f"[{host}]" if ":" in host else host
    router = await start_router(
        "--listen-quic", f"{shown}:0", "--tls-cert", files / "local.pem", "--tls-key", files / "local.key", "--health", "none",
        replicas=[engine.url], workers=2,
    )  # fmt: skip
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    server = (host, httpx.URL(url).port)
    clients = []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(4):
            clients += [await loop.create_datagram_endpoint(Client, local_addr=(host, 0))]
        for transport, client in clients:
            assert await client.ask(server) == transport.get_extra_info("sockname")[:2]
        with pytest.raises(ice.TransactionFailed, match="420"):
            await client.ask(server, PRIORITY=1)
    finally:
        for transport, _ in clients:
            transport.close()
    text = (await router.ask("/metrics")).text
    assert "router_stun_answers_total 4.0" in text
    assert "router_stun_refusals_total 1.0" in text


async def test_on_every_address_of_a_wildcard(start_router, engine, files):
    """The answer comes from the address that was asked."""
    router = await start_router(
        "--listen-quic", "0.0.0.0:0", "--tls-cert", files / "local.pem", "--tls-key", files / "local.key", "--health", "none",
        "--auth-token", "secret", replicas=[engine.url],
    )  # fmt: skip
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    for host in ("127.0.0.1", "127.0.0.2"):
        transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
            Client, remote_addr=(host, httpx.URL(url).port)
        )
        client.send_stun = lambda message, _: transport.sendto(bytes(message))
        try:
            assert await client.ask(None) == transport.get_extra_info("sockname")
        finally:
            transport.close()
