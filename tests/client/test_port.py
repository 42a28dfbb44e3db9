"""One socket for the connection to the router and the one to the replica: whose it is to leave or to change."""

import asyncio
import socket

import pytest

from router.client import quic_carrier
from router.client.memory import Memory
from router.client.port import ClientPort, PortUser
from router.client.quic_carrier import QuicCarrier
from router.client.target import read_target

pytestmark = pytest.mark.asyncio
HERE = "127.0.0.1"


class User(PortUser):
    def __init__(self):
        self.heard = []
        self.moves = 0

    def receive(self, data, segment_bytes, address, ecn):
        self.heard.append(data)

    def received(self):
        pass

    def moved(self):
        self.moves += 1


async def until(condition, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


async def test_nobody_takes_the_place_of_another():
    """As an offer might have it whose place is the router's own address."""
    port = ClientPort(socket.AF_INET)
    router, other = User(), User()
    port.join(router, (HERE, 9))
    port.join(router, (HERE, 9))
    with pytest.raises(OSError, match="there is a connection"):
        port.join(other, (HERE, 9))
    port.leave(other)
    assert port.sock is not None
    port.leave(router)
    assert port.sock is None
    port.join(other, (HERE, 9))
    port.leave(other)


async def test_the_last_one_closes_it_and_both_move():
    port = ClientPort(socket.AF_INET)
    first, second = User(), User()
    port.join(first, (HERE, 9))
    port.join(second, (HERE, 10))
    before = port.sock.address()
    port.rebind()
    assert port.sock.address() != before
    assert (first.moves, second.moves) == (1, 1)
    port.leave(first)
    assert port.sock is not None and not port.is_shared
    port.leave(second)
    assert port.sock is None


def carrier(port=None):
    options = {"token": None, "headers": (), "ca": None, "verify": False, "replies": "state", "websocket_url": "", "server_name": None}
    place = socket.AF_INET, (HERE, 9 if port is None else 10)
    made = QuicCarrier(read_target("quic://127.0.0.1:9/", **options), place, Memory(), None, "", silence_s=5.0, ping_every_s=0.2, port=port)
    made.start()
    return made


@pytest.mark.parametrize("who", ["relayed", "direct", "relayed, leaving"])
async def test_whose_silence_moves_the_socket(monkeypatch, who):
    """A new port is let in by the router, but by no NAT that knows the old one."""
    monkeypatch.setattr(quic_carrier, "SILENT_S", -1.0)
    monkeypatch.setattr(quic_carrier, "SILENT_ROUND_TRIPS", -1.0)
    monkeypatch.setattr(quic_carrier, "LOOK_S", 0.01)
    relayed = carrier()
    direct = carrier(relayed.endpoint.port)
    looking = direct if who == "direct" else relayed
    looking._look_around()
    before = looking.moves
    if who == "relayed, leaving":
        looking.leave()
    await asyncio.sleep(0.1)
    assert (looking.moves > before) is (who == "relayed")
    await direct.end()
    await relayed.end()


async def test_a_direct_one_moves_with_the_network(monkeypatch):
    relayed = carrier()
    direct = carrier(relayed.endpoint.port)
    monkeypatch.setattr(quic_carrier, "find_local_host", lambda family, address: "192.0.2.1")
    direct._look_around()
    assert direct.moves == 1
    await direct.end()
    await relayed.end()
