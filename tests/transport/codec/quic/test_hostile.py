"""What a peer may not do, as frames in packets that authenticate, and the transport error that each is (RFC 9000)."""

import random

import pytest

from router.transport.codec.quic import limits
from router.transport.codec.quic.state import CLOSING, DRAINING, HANDSHAKING, OPEN, OVER
from router.transport.codec.quic.varint import varint
from tests.transport.codec.quic.rig import CLIENT, SERVER, Rig

ENCODING, VIOLATION, STATE = limits.FRAME_ENCODING_ERROR, limits.PROTOCOL_VIOLATION, limits.STREAM_STATE_ERROR
FLOW, FINAL, STREAMS, IDS = (
    limits.FLOW_CONTROL_ERROR,
    limits.FINAL_SIZE_ERROR,
    limits.STREAM_LIMIT_ERROR,
    limits.CONNECTION_ID_LIMIT_ERROR,
)


def stream(stream_id, offset, data, *, fin=False):
    return bytes((0x0E | fin,)) + varint(stream_id) + varint(offset) + varint(len(data)) + data


def new_id(sequence, retire, identity, token=bytes(16)):
    return b"\x18" + varint(sequence) + varint(retire) + bytes((len(identity),)) + identity + token


class Attacker(Rig):
    """A client whose keys are used to say anything."""

    def inject(self, *payloads, first=0x41):
        client, server = self.client.connection, self.server.connection
        space = client.space(3)
        for payload in payloads:
            number = space.next_number
            space.next_number += 1
            header = bytes((first | client.key_phase << 2,)) + client.peer_ids.current
            size = (first & 3) + 1
            if payload and len(payload) < 4:
                payload = bytes(4) + payload  # in front: behind it padding could be taken for what is missing
            packet = space.send_key.seal_packet(number, header, payload, size, 0x1F)
            server.receive(packet, 0, CLIENT, None, self.now)
        return server


@pytest.fixture
def attacker():
    rig = Attacker().connect()
    rig.run(limit_s=0.5)
    return rig


FAULTS = {
    "an unknown frame": (b"\x21", ENCODING),
    "an unknown frame of two bytes": (b"\x40\x99", ENCODING),
    "a type not encoded shortest": (b"\x40\x01", VIOLATION),
    "a frame cut off": (b"\x10", ENCODING),
    "STREAM cut off": (b"\x0a\x00\x05ab", ENCODING),
    "STREAM beyond every offset": (b"\x0e\x00" + varint((1 << 62) - 1) + b"\x01a", ENCODING),
    "STREAM beyond the stream's window": (stream(0, limits.STREAM_WINDOW, b"x"), FLOW),
    "STREAM on a stream of ours not opened": (stream(1, 0, b"x"), STATE),
    "STREAM on our one-way stream": (stream(3, 0, b"x"), STATE),
    "too many streams": (stream(4 * limits.MAX_STREAMS, 0, b"x"), STREAMS),
    "too many one-way streams": (stream(2 + 4 * limits.MAX_UNI_STREAMS, 0, b"x"), STREAMS),
    "a final size that grows": (stream(0, 0, b"ab", fin=True) + stream(0, 2, b"c"), FINAL),
    "a final size that changes": (stream(0, 0, b"ab", fin=True) + stream(0, 0, b"a", fin=True), FINAL),
    "a final size below what came": (stream(0, 0, b"abc") + stream(0, 1, b"", fin=True), FINAL),
    "RESET_STREAM below what came": (stream(0, 0, b"abc") + b"\x04\x00\x00\x02", FINAL),
    "RESET_STREAM beyond the window": (b"\x04\x00\x00" + varint(limits.STREAM_WINDOW + 1), FLOW),
    "RESET_STREAM of our one-way stream": (b"\x04\x03\x00\x00", STATE),
    "STOP_SENDING of the peer's own one-way stream": (b"\x05\x02\x00", STATE),
    "STOP_SENDING of one of ours not opened": (b"\x05\x01\x00", STATE),
    "MAX_STREAM_DATA for the peer's own one-way stream": (b"\x11\x02\x05", STATE),
    "MAX_STREAM_DATA for one of ours not opened": (b"\x11\x05\x05", STATE),
    "MAX_STREAMS beyond all": (b"\x12" + varint((1 << 60) + 1), ENCODING),
    "STREAMS_BLOCKED beyond all": (b"\x17" + varint((1 << 60) + 1), ENCODING),
    "STREAM_DATA_BLOCKED on our one-way stream": (b"\x15\x03\x05", STATE),
    "NEW_TOKEN from a client": (b"\x07\x01x", VIOLATION),
    "ACK_FREQUENCY cut off": (b"\x40\xaf\x00\x01\x7f\xff", ENCODING),
    "ACK_FREQUENCY for sooner than we can": (b"\x40\xaf\x00\x01\x43\xe7\x01", VIOLATION),
    "HANDSHAKE_DONE from a client": (b"\x1e", VIOLATION),
    "an ACK of what was never sent": (b"\x02" + varint(50_000) + b"\x00\x00\x00", VIOLATION),
    "an ACK below zero": (b"\x02\x00\x00\x00\x05", ENCODING),
    "an ACK whose ranges go below zero": (b"\x02\x02\x00\x01\x01\x05\x00", ENCODING),
    "RETIRE of an id never issued": (b"\x19\x20", VIOLATION),
    "NEW_CONNECTION_ID that retires beyond itself": (new_id(5, 6, b"12345678"), ENCODING),
    "NEW_CONNECTION_ID of no length": (new_id(5, 0, b""), ENCODING),
    "NEW_CONNECTION_ID too long": (b"\x18\x05\x00\x15" + bytes(21 + 16), ENCODING),
    "an id under two numbers": (new_id(7, 4, b"12345678") + new_id(8, 4, b"12345678"), VIOLATION),
    "two ids under one number": (new_id(7, 4, b"12345678") + new_id(7, 4, b"abcdefgh"), VIOLATION),
    "more ids than were asked for": (b"".join(new_id(10 + k, 0, b"idno%04d" % k) for k in range(8)), IDS),
    "retiring without end": (
        b"".join(new_id(10 + k, 10 + k, b"idno%04d" % k) for k in range(limits.MAX_RETIRING + 2)),
        IDS,
    ),
    "CRYPTO far ahead": (b"\x06" + varint(limits.CRYPTO_BYTES + 1) + b"\x01x", limits.CRYPTO_BUFFER_EXCEEDED),
    "CRYPTO that is no message of a client": (b"\x06\x00\x05\x04\x00\x00\x01x", 0x100 + 10),
    "an empty packet": (b"", VIOLATION),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(attacker, name):
    payload, code = FAULTS[name]
    server = attacker.inject(payload, first=0x41 if payload else 0x43)
    assert server.phase == CLOSING, name
    assert server.close_code == code, server.close_reason
    assert not server.close_is_application
    assert attacker.server.app.lost is not None
    if "12345678" not in repr(payload) and "retiring" not in name:  # else it is not to where the client listens
        assert attacker.run(lambda: attacker.client.app.lost is not None)
        assert attacker.client.app.lost[0] == code


HARMLESS = {
    "padding and pings": b"\x01" + bytes(40) + b"\x01",
    "data again": stream(0, 0, b"ab") + stream(0, 0, b"ab") + stream(0, 1, b"b"),
    "an end again": stream(0, 0, b"ab", fin=True) * 2,
    "credit that goes back": b"\x10\x01" + b"\x12\x00",
    "DATA_BLOCKED and its kin": b"\x14\x05\x16\x01\x17\x01",
    "an ACK again": b"\x02\x00\x00\x00\x00" * 5,
    "an ACK with ECN counts": b"\x03\x00\x00\x00\x00\x01\x02\x03",
    "a challenge": b"\x1a12345678",
    "an answer to nothing": b"\x1b12345678",
    "RETIRE of one that is gone": b"\x19\x02\x19\x02",
    "a reset behind a reset": b"\x04\x00\x01\x00\x04\x00\x02\x00",
    "a stop behind a stop": stream(0, 0, b"") + b"\x05\x00\x01\x05\x00\x02",
    "a datagram without a length": b"\x30telemetry",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(attacker, name):
    server = attacker.inject(HARMLESS[name])
    assert server.phase == OPEN, server.close_reason
    flow = attacker.client.connection.open_stream(unidirectional=True)
    flow.send(b"still here", True)
    assert attacker.run(lambda: flow.id in attacker.server.app.ended)


def test_reserved_bits_are_a_fault(attacker):
    server = attacker.inject(b"\x01\x00\x00\x00", first=0x59)
    assert server.close_code == VIOLATION


def test_a_close_of_the_peer_is_the_end(attacker):
    server = attacker.inject(b"\x1d\x40\x63\x04why?")
    assert server.phase == DRAINING
    assert attacker.server.app.lost == (0x63, "why?", True)
    assert not server.datagrams_to_send(attacker.now)


@pytest.mark.parametrize("kind", ["reset", "stopped"])
def test_an_end_is_told_before_the_acknowledgement_read_with_it_makes_the_stream_go(attacker, kind):
    """The last of our side may be acknowledged behind the RESET_STREAM or STOP_SENDING, in one read."""
    flow = attacker.client.connection.open_stream(unidirectional=False)
    flow.send(b"asked", kind == "stopped")
    app, server = attacker.server.app, attacker.server.connection
    assert attacker.run(lambda: app.data.get(flow.id) == b"asked")
    app.flows[flow.id].send(b"answered", True)
    assert server.datagrams_to_send(attacker.now)
    end = b"\x04\x00\x07\x05" if kind == "reset" else b"\x05\x00\x07"
    largest = varint(server.space(3).next_number - 1)
    attacker.inject(end + b"\x02" + largest + b"\x00\x00" + largest)
    assert server.phase == OPEN and app.said[-1] == (kind, flow.id, 7)
    assert app.gone == {flow.id} and not server.streams.flows


def test_no_stream_is_opened_at_an_application_that_has_closed(attacker):
    app, server = attacker.server.app, attacker.server.connection
    app.on_opened = lambda flow: server.close(9)
    attacker.inject(stream(8, 0, b"the third: the two before it are open, too"))
    assert server.phase == CLOSING and [said for said in app.said if said[0] == "opened"] == [("opened", 0)]


class TestFloods:
    def test_challenges(self, attacker):
        for _ in range(limits.CONTROL_BURST + 2):
            server = attacker.inject(b"\x1a12345678")
            server.datagrams_to_send(attacker.now)
            if server.phase != OPEN:
                break
        assert server.close_code == VIOLATION

    def test_a_thousand_challenges_in_one_packet_get_four_answers(self, attacker):
        server = attacker.inject(b"\x1a12345678" * 120)
        assert len(server.path.answers) == 4

    def test_gaps_are_bounded(self, attacker):
        server = attacker.server.connection
        for at in range(0, 4_000, 40):
            frames = b"".join(stream(0, 2 * k + 1, b"x") for k in range(at, at + 40))
            attacker.inject(frames)
        flow = server.streams.flows[0]
        assert server.phase == OPEN
        assert len(flow._reorder._ranges) <= limits.MAX_GAPS
        space = server.space(3)
        assert space.expected < attacker.client.connection.space(3).next_number  # what was dropped is not acknowledged

    def test_packet_numbers_far_apart(self, attacker):
        space = attacker.client.connection.space(3)
        for _ in range(400):
            space.next_number += 30
            attacker.inject(b"\x01")
        assert len(attacker.server.connection.space(3).received) <= limits.MAX_ACK_RANGES
        sent = attacker.server.connection.datagrams_to_send(attacker.now)
        assert sum(len(burst.pieces) for burst in sent) < 10

    def test_streams_opened_and_reset_are_forgotten(self, attacker):
        server = attacker.server.connection
        for k in range(3_000):
            attacker.inject(b"\x04" + varint(4 * k) + b"\x00\x00" + b"\x05" + varint(4 * k) + b"\x00")
            if server.phase != OPEN:
                break
            if k % 50 == 0:
                attacker._send(attacker.server, attacker.down, False)
                attacker.run(limit_s=0.05)
        assert len(server.streams.flows) <= limits.MAX_STREAMS

    def test_datagrams_that_nobody_takes_are_bounded(self, attacker):
        server = attacker.server.connection
        attacker.server.app.datagrams.clear()
        server.application, kept = None, server.application
        for _ in range(100):
            attacker.inject(b"".join(b"\x31\x01x" for _ in range(100)))
        server.application = kept
        assert len(server.datagrams_in) <= limits.MAX_DATAGRAMS


class TestGarbage:
    @pytest.mark.parametrize("seed", range(30))
    def test_frames_of_noise_end_in_an_error_or_in_nothing(self, seed):
        rig = Attacker().connect()
        chance = random.Random(seed)
        for _ in range(60):
            payload = bytes((chance.randrange(0x32),)) + chance.randbytes(chance.randrange(3, 60))
            server = rig.inject(payload)
            server.datagrams_to_send(rig.now)
            if server.phase != OPEN:
                break
        rig.run(limit_s=5.0)

    @pytest.mark.parametrize("seed", range(20))
    def test_datagrams_that_were_tampered_with_are_dropped(self, seed):
        chance = random.Random(seed)
        rig = Rig()

        def tamper(data):
            if chance.random() < 0.3:
                spoilt = bytearray(data)
                for _ in range(chance.randrange(1, 6)):
                    spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
                if rig.server.connection is not None:
                    rig.server.connection.receive(bytes(spoilt), 0, CLIENT, None, rig.now)
            if chance.random() < 0.1 and rig.server.connection is not None:
                rig.server.connection.receive(data[: chance.randrange(1, len(data))], 0, CLIENT, None, rig.now)
            return False

        rig.up.drop = tamper
        rig.connect()
        flow = rig.client.connection.open_stream(unidirectional=False)
        flow.send(b"x" * 50_000, True)
        assert rig.run(lambda: flow.id in rig.server.app.ended)

    @pytest.mark.parametrize("seed", range(10))
    def test_noise_in_any_size(self, seed):
        rig = Rig().connect()
        chance = random.Random(seed)
        target = next(iter(rig.server.ids))
        for _ in range(300):
            data = chance.randbytes(chance.randrange(1, 1_500))
            if chance.random() < 0.5:
                data = bytes((data[0] & 0x7F | 0x40,)) + target + data
            rig.server.connection.receive(data, chance.choice([0, 0, 50, 1_200]), CLIENT, None, rig.now)
        assert rig.server.connection.phase == OPEN


def test_acknowledgements_at_once_are_not_asked_for_without_end(attacker):
    """IMMEDIATE_ACK has a packet of ours made for each of the peer's; beyond the budget it is a PING."""
    server = attacker.server.connection
    server.ack_frequency.receive(0, 100, 25_000, 1)
    answers = 0
    for _ in range(limits.CONTROL_BURST + 300):
        attacker.inject(b"\x1f")
        answers += len(server.datagrams_to_send(attacker.now))
    assert server.phase == OPEN
    assert limits.CONTROL_BURST <= answers <= limits.CONTROL_BURST + 300 // 100 + 2


def test_a_version_negotiation_ends_only_who_is_named_in_a_whole_one():
    whole = b"\x80\0\0\0\0\x0c%s\x08" + bytes(8) + b"\x6b\x33\x43\xcf"
    rig = Rig()
    client = rig.client.connection
    for size in range(1, 27):
        client.receive((whole % client.source_id)[:size], 0, SERVER, None, rig.now)
    client.receive(whole % bytes(12), 0, SERVER, None, rig.now)
    client.receive(whole % client.source_id + b"\0\0\0\1", 0, SERVER, None, rig.now)
    assert client.phase == HANDSHAKING
    client.receive(whole % client.source_id, 0, SERVER, None, rig.now)
    assert client.phase == OVER


def test_an_empty_datagram_is_nothing(attacker):
    for connection, address in ((attacker.server.connection, CLIENT), (attacker.client.connection, SERVER)):
        connection.receive(b"", 0, address, None, attacker.now)
        assert connection.phase == OPEN
