"""Datagrams of nobody's connection: answered with less than they cost, bounded, each outcome counted."""

import asyncio
import struct

import pytest
import pytest_asyncio
from aioice import stun as ice
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection as AioquicConnection
from aioquic.quic.events import ConnectionTerminated
from quickit import CLOSING, OPEN, Rig, answered, initial, short
from udpkit import until

from router.edge import quic_strangers
from router.edge.quic_strangers import (
    JUNK_BURST,
    MAX_HANDSHAKES,
    NEGOTIATION_BURST,
    RESET_BURST,
    RETRY_FROM,
    STUN_BURST,
    SUSPICION_S,
)
from router.transport.codec.quic.invariants import read_long
from router.transport.codec.quic.keyring import Keyring
from router.transport.codec.quic.retry import Tokens


@pytest_asyncio.fixture
async def rig():
    rig = Rig().start()
    yield rig
    rig.close()


def header_of(packet):
    return read_long(packet, 0, len(packet))


def retry_of(packet, source=b"src"):
    """Return the id and token of a Retry packet."""
    header = header_of(packet)
    assert (header.kind, header.destination_id) == (3, source)
    return header.source_id, packet[header.rest_at : -16]


def told_at_the_end(client):
    """Return the error code that ended a client of aioquic."""
    client.handle_timer(client.get_timer())
    while (event := client.next_event()) is not None:
        if isinstance(event, ConnectionTerminated):
            return event.error_code
    return None


async def silence(client):
    """Nothing comes: what was sent before this marker has been dealt with, and the marker's answer is first."""
    client.send(initial(version=0x1A2A3A4A, destination=b"a marker"))
    answer = await answered(client)
    assert header_of(answer).version == 0 and header_of(answer).source_id == b"a marker"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"\x00", "unknown"),
        (b"\x40" * 12, "unknown"),
        (b"\x40" + bytes(30), "unknown"),
        (b"\xc0", "malformed"),
        (b"\xc0\0\0\0\1\x08short", "malformed"),
        (initial(version=0), "malformed"),
        (initial(size=1_199), "small"),
        (initial(version=0x1A2A3A4A, size=1_199), "small"),
        (initial(destination=b"7 bytes"), "malformed"),
        (initial(destination=b"d" * 21), "malformed"),
        (initial(source=b"s" * 21), "malformed"),
        (initial()[:-1_170], "small"),
        (initial(kind=1), "early"),
        (initial(kind=2), "early"),
        (initial(kind=3), "malformed"),
    ],
    ids=[
        *("empty", "one-byte", "short-of-an-id", "no-id-of-ours", "only-a-form", "cut-off", "version-0"),
        *("initial-1199", "unknown-version-1199", "destination-7", "destination-21", "source-21", "initial-30"),
        *("0-rtt", "handshake", "retry"),
    ],
)
async def test_dropped(rig, data, reason):
    client = rig.client()
    client.send(data)
    await until(lambda: rig.count("drop_" + reason) == 1)
    await silence(client)
    assert not rig.engines


async def test_a_token_that_is_cut_off(rig):
    client = rig.client()
    packet = bytearray(initial(destination=b"d" * 8))
    packet[18:20] = b"\x7f\xff"  # its length: more than the datagram has
    assert header_of(bytes(packet)).rest_at == 18
    client.send(packet)
    await until(lambda: rig.count("drop_malformed") == 1)
    assert not rig.engines


class TestVersionNegotiation:
    async def test_an_unknown_version(self, rig):
        client = rig.client()
        client.send(initial(version=0xFF00001D, destination=b"D" * 30, source=b"S" * 25))
        answer = await answered(client)
        header = header_of(answer)
        assert (header.version, header.destination_id, header.source_id) == (0, b"S" * 25, b"D" * 30)
        assert rig.count("negotiations") == 1 and len(answer) < 1_200

    async def test_not_without_end(self, rig):
        client = rig.client()
        for _ in range(NEGOTIATION_BURST + 50):
            client.send(initial(version=0x1A2A3A4A))
        await until(lambda: rig.count("negotiations") + rig.count("drop_negotiation_limit") == NEGOTIATION_BURST + 50)
        assert rig.count("negotiations") < NEGOTIATION_BURST + 50
        assert rig.count("drop_negotiation_limit") > 0


class TestRetry:
    @pytest.fixture
    def busy(self, rig):
        """So many unfinished handshakes that clients have to prove their address."""
        rig.listener.handshaking = RETRY_FROM
        yield rig
        rig.listener.handshaking -= RETRY_FROM

    async def test_a_client_that_answers_is_served(self, busy):
        client = busy.client()
        client.send(initial(destination=b"original"))
        packet = await answered(client)
        assert not busy.engines and busy.count("retries") == 1 and len(packet) < 200
        chosen, token = retry_of(packet)
        assert busy.keyring.is_ours(chosen)
        client.send(initial(destination=chosen, token=token))
        await until(lambda: busy.engines)
        engine = busy.engines[0]
        assert (engine.original_id, engine.retry_id, engine.is_validated) == (b"original", chosen, True)
        assert busy.count("retries_answered") == 1

    async def test_aioquic_accepts_it(self, busy):
        client = busy.client()
        made = AioquicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
        made.connect(busy.address, now=0.0)
        client.send(made.datagrams_to_send(0.0)[0][0])
        made.receive_datagram(await answered(client), busy.address, 0.0)
        client.send(made.datagrams_to_send(0.0)[0][0])
        await until(lambda: busy.engines)
        assert busy.engines[0].is_validated

    async def test_who_comes_behind_a_copy_of_its_initial_proves_its_address(self, rig):
        """Who sees the first packet go by can be quicker with it, from another address."""
        copied, own_id = (await rig.connected())[1:]
        client = rig.client()
        hello = initial(destination=copied.original_id)
        copied.owner.stray(hello, client.getsockname())
        chosen, token = retry_of(await answered(client))
        client.send(initial(destination=chosen, token=token))
        await until(lambda: len(rig.engines) == 2)
        assert rig.engines[1].original_id == copied.original_id and rig.listener.open_connections == 2
        dropped = [
            initial(destination=own_id), short(copied.original_id), hello[:1_199],
            initial(destination=copied.original_id, kind=2), initial(destination=copied.original_id, version=9),
        ]  # fmt: skip
        for data in dropped:
            copied.owner.stray(data, client.getsockname())
        assert rig.count("retries") == 1 and rig.count("drop_unknown") == len(dropped)

    @pytest.mark.parametrize("wrong", ["port", "id", "forged", "expired"])
    async def test_a_wrong_token_is_told(self, busy, wrong):
        client = busy.client()
        client.send(initial(destination=b"original"))
        chosen, token = retry_of(await answered(client))
        if wrong == "port":
            client = busy.client()
        elif wrong == "id":
            chosen = b"another id"
        elif wrong == "forged":
            token = token[:-1] + bytes((token[-1] ^ 1,))
        else:
            busy.walltime._offset_s += 11.0
        client.send(initial(destination=chosen, token=token))
        await answered(client)
        assert busy.count("invalid_tokens") == 1 and not busy.engines

    async def test_an_invalid_token_is_what_the_client_reads(self, busy):
        client = busy.client()
        made = AioquicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
        made.connect(busy.address, now=0.0)
        client.send(made.datagrams_to_send(0.0)[0][0])
        made.receive_datagram(await answered(client), busy.address, 0.0)
        busy.walltime._offset_s += 11.0
        client.send(made.datagrams_to_send(0.0)[0][0])
        made.receive_datagram(await answered(client), busy.address, 0.0)
        assert told_at_the_end(made) == 0xB

    async def test_a_known_client_skips_it(self, busy):
        token = busy.listener.token_for(("127.0.0.1", 4_711))
        client = busy.client()
        client.send(initial(token=token))
        await until(lambda: busy.engines)
        assert busy.engines[0].is_validated and busy.engines[0].retry_id == b""
        assert (busy.count("tokens_used"), busy.count("retries")) == (1, 0)

    async def test_another_servers_token_is_none(self, busy):
        client = busy.client()
        client.send(initial(token=Tokens(bytes(32)).of_connection("127.0.0.1", busy.walltime.at(0))))
        retry_of(await answered(client))
        client.send(initial(token=b"whatever"))
        retry_of(await answered(client))
        assert busy.count("invalid_tokens") == 0

    async def test_a_token_counts_also_where_none_is_asked_for(self, rig):
        client = rig.client()
        client.send(initial(token=b"whatever"))
        await until(lambda: rig.engines)
        assert not rig.engines[0].is_validated


class TestFloods:
    async def test_spoofed_initials_are_bounded(self, rig):
        """Each from another address as it were: nothing is kept but so many handshakes."""
        client = rig.client()
        for i in range(2_000):
            client.send(initial())
            if not i % 100:
                await asyncio.sleep(0)
        await until(lambda: rig.listener.udp.datagrams_received == 2_000)
        assert len(rig.engines) == RETRY_FROM == rig.listener.handshaking
        assert rig.count("retries") == 2_000 - RETRY_FROM
        assert len(rig.listener._by_id) == 2 * RETRY_FROM

    async def test_junk_is_not_looked_at_for_ever(self, rig):
        """What does not authenticate leaves nothing behind and costs: after a while it has to prove its address."""
        client = rig.client()
        for i in range(JUNK_BURST + 100):
            client.send(initial(body=b"junk"))
            if not i % 20:
                await asyncio.sleep(0)
        await until(lambda: rig.count("drop_junk") + rig.count("retries") == JUNK_BURST + 100)
        assert rig.count("drop_junk") < JUNK_BURST + 50 and not rig.listener.handshaking
        honest = rig.client()
        honest.send(initial(destination=b"original"))
        chosen, token = retry_of(await answered(honest))
        honest.send(initial(destination=chosen, token=token))
        await until(lambda: rig.engines[-1].is_validated)
        honest.send(initial(token=rig.listener.token_for(("127.0.0.1", 1))))
        await until(lambda: rig.count("tokens_used") == 1)

    async def test_suspicion_ends(self, rig):
        now = rig.reactor.clock.now
        for _ in range(JUNK_BURST + 1):
            rig.listener._strangers.note_junk(now)
        assert rig.listener._strangers._suspicious_until_s == now + SUSPICION_S
        rig.listener._strangers._suspicious_until_s = now
        await rig.connected()
        assert rig.count("retries") == 0

    async def test_proved_addresses_are_bounded_too(self, rig):
        rig.listener.handshaking = MAX_HANDSHAKES
        client = rig.client()
        client.send(initial(token=rig.listener.token_for(("127.0.0.1", 1))))
        await until(lambda: rig.count("drop_handshakes") == 1)
        assert not rig.engines
        rig.listener.handshaking = 0

    async def test_finished_handshakes_make_room(self, rig):
        client = rig.client()
        for _ in range(RETRY_FROM):
            client.send(initial())
        await until(lambda: len(rig.engines) == RETRY_FROM)
        for engine in rig.engines:
            engine.complete() if engine is rig.engines[0] else setattr(engine, "phase", CLOSING)
            engine.owner.touch()
        rig.reactor.outbox.flush()
        assert rig.listener.handshaking == 0 and rig.engines[0].phase == OPEN
        client.send(initial())
        await until(lambda: len(rig.engines) == RETRY_FROM + 1)


class TestRefusal:
    async def test_told_in_one_packet(self, rig):
        rig.listener.stop_accepting()
        client = rig.client()
        made = AioquicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
        made.connect(rig.address, now=0.0)
        client.send(made.datagrams_to_send(0.0)[0][0])
        packet = await answered(client)
        made.receive_datagram(packet, rig.address, 0.0)
        assert told_at_the_end(made) == 0x2 and len(packet) < 100
        assert rig.count("refused") == 1


class TestReset:
    async def test_an_id_of_a_process_that_is_gone(self, rig):
        """A worker that died had the same place and the same keys."""
        gone = rig.keyring.make_id(0, 7)
        client = rig.client()
        client.send(short(gone, size=60))
        packet = await answered(client)
        assert packet[-16:] == rig.keyring.reset_token(gone) and packet[0] & 0xC0 == 0x40
        assert 21 <= len(packet) < 60 and rig.count("resets") == 1

    @pytest.mark.parametrize("incarnation", [6, 9, 200])
    async def test_an_id_of_an_older_daemon_with_the_same_keys(self, rig, incarnation):
        gone = rig.keyring.make_id(3, incarnation)
        client = rig.client()
        client.send(short(gone, size=60))
        assert (await answered(client))[-16:] == rig.keyring.reset_token(gone)
        assert rig.count("drop_forward_gone") == 1

    async def test_not_for_an_id_that_is_not_ours(self, rig):
        client = rig.client()
        client.send(short(Keyring(bytes(32)).make_id(0, 7), size=60))
        await until(lambda: rig.count("drop_unknown") == 1)
        await silence(client)
        assert rig.count("resets") == 0

    async def test_two_that_know_nothing_come_to_an_end(self, rig):
        client = rig.client()
        data = short(rig.keyring.make_id(0, 7), size=1_200)
        sizes = []
        while True:
            sizes.append(len(data))
            client.send(data)
            try:
                data = await answered(client, 0.2)
            except TimeoutError:
                break
            data = data[:1] + rig.keyring.make_id(0, 7) + data[13:]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
        assert sizes[-1] <= 21 and rig.count("drop_reset_limit") == 1

    async def test_not_without_end(self, rig):
        client = rig.client()
        for _ in range(RESET_BURST + 50):
            client.send(short(rig.keyring.make_id(0, 7), size=60))
        await until(lambda: rig.count("resets") + rig.count("drop_reset_limit") == RESET_BURST + 50)
        assert rig.count("drop_reset_limit") > 0


def binding(kind=ice.Class.REQUEST, **attributes):
    return ice.Message(ice.Method.BINDING, kind, attributes={n.replace("_", "-"): v for n, v in attributes.items()})


class TestStun:
    def count(self, rig, name):
        return getattr(rig.listener.counters, "stun_" + name)

    async def test_a_client_is_told_its_address(self, rig):
        client = rig.client()
        for fingerprint in (False, True):
            request = binding(SOFTWARE="aioice")
            if fingerprint:
                request.add_fingerprint()
            client.send(bytes(request))
            answer = ice.parse_message(await answered(client))
            assert (answer.message_class, answer.transaction_id) == (ice.Class.RESPONSE, request.transaction_id)
            assert answer.attributes["XOR-MAPPED-ADDRESS"] == client.getsockname()
            assert ("FINGERPRINT" in answer.attributes) is fingerprint
        assert self.count(rig, "answers") == 2 and not rig.engines

    async def test_what_has_to_be_understood_and_is_not(self, rig):
        client = rig.client()
        request = binding(PRIORITY=1, USE_CANDIDATE=None)
        client.send(bytes(request))
        data = await answered(client)
        assert ice.parse_message(data).error_code == 420 and data[-8:] == b"\0\x0a\0\4\0\x24\0\x25"
        assert self.count(rig, "refusals") == 1 and self.count(rig, "answers") == 0

    @pytest.mark.parametrize(
        "data",
        [
            bytes(binding(ice.Class.INDICATION)),
            bytes(binding(ice.Class.RESPONSE, XOR_MAPPED_ADDRESS=("192.0.2.1", 1))),
            bytes(binding(ice.Class.ERROR, ERROR_CODE=(400, ""))),
            bytes(ice.Message(ice.Method.ALLOCATE, ice.Class.REQUEST)),
            bytes(binding(FINGERPRINT=1)),
        ],
        ids=["indication", "response", "error", "allocate", "fingerprint"],
    )
    async def test_dropped(self, rig, data):
        client = rig.client()
        client.send(data)
        await until(lambda: rig.count("drop_stun") == 1)
        await silence(client)

    async def test_one_with_a_name_is_the_hosts(self, rig):
        taken = []
        rig.listener.on_check = lambda *check: taken.append(check) or b"the answer"
        client = rig.client()
        request = binding(USERNAME="a:b")
        client.send(bytes(request))
        await until(lambda: self.count(rig, "checks") == 1)
        await until(lambda: taken)
        assert taken == [(b"a:b", bytes(request), client.getsockname())]
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"the answer"

    async def test_nobody_waits_for_a_check(self, rig):
        client = rig.client()
        client.send(bytes(binding(USERNAME="a:b")))
        await until(lambda: self.count(rig, "checks") == 1)
        await silence(client)

    async def test_many_in_one_buffer(self, rig):
        """The kernel joins datagrams of one size, of STUN and of QUIC alike."""
        client, engine, own_id = await rig.connected()
        requests = [binding(SOFTWARE="x" * 76) for _ in range(3)]
        again = bytes(requests[0])
        pieces = [bytes(requests[0]), again, short(own_id, size=100), bytes(requests[1]), short(own_id, size=100), bytes(requests[2])]
        assert {len(piece) for piece in pieces} == {100}
        client.sendmsg([b"".join(pieces)], [(17, 103, struct.pack("H", 100))])
        await until(lambda: self.count(rig, "answers") == 4)
        transactions, pongs = [], 0
        while len(transactions) + pongs < 5:
            data = await answered(client)
            if data[:4] == b"pong":
                pongs += 1
            else:
                transactions.append(ice.parse_message(data).transaction_id)
        assert sorted(transactions) == sorted(r.transaction_id for r in (*requests, requests[0]))
        assert len(engine.received) == 3 and rig.listener.udp.reads == 2

    async def test_not_without_end(self, rig):
        client = rig.client()
        data = bytes(binding())
        for i in range(STUN_BURST + 100):
            client.send(data)
            if not i % 20:
                await asyncio.sleep(0)
        await until(lambda: self.count(rig, "answers") + rig.count("drop_stun_limit") == STUN_BURST + 100)
        assert self.count(rig, "answers") >= STUN_BURST and rig.count("drop_stun_limit") > 0

    async def test_a_flood_leaves_checks_alone(self, rig):
        client = rig.client()
        for _ in range(STUN_BURST + 100):
            client.send(bytes(binding()))
        client.send(bytes(binding(USERNAME="a:b")))
        await until(lambda: self.count(rig, "checks") == 1)


def test_limits_are_in_order():
    assert RETRY_FROM < MAX_HANDSHAKES
    assert quic_strangers.RETURNED_HOPS < quic_strangers.MAX_HOPS
