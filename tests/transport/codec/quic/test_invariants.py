"""Headers of strangers: read in any split and version, answered with less than they sent."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec.quic.invariants import (
    EARLY,
    HANDSHAKE,
    ID_BYTES,
    INITIAL,
    MAX_RESET_BYTES,
    MIN_RESET_BYTES,
    RETRY,
    VERSION_1,
    VERSIONS,
    initial_token,
    is_long,
    make_stateless_reset,
    make_version_negotiation,
    read_long,
    short_id,
)

# RFC 9001 appendix A.2 and A.3: the beginning of a client's Initial packet, and the whole of a server's.
CLIENT_INITIAL = bytes.fromhex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11")
SERVER_INITIAL = bytes.fromhex(
    "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a"
    "5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3"
    "bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158"
    "407dd074ee"
)
A4_RETRY = bytes.fromhex("ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba")


def long_packet(version=1, kind=INITIAL, destination=b"d" * 8, source=b"s" * 5, rest=b""):
    first = 0xC0 | kind << 4
    return (
        bytes((first,)) + version.to_bytes(4, "big")
        + bytes((len(destination),)) + destination + bytes((len(source),)) + source + rest
    )  # fmt: skip


def read(data):
    return read_long(data, 0, len(data))


def test_the_packets_of_the_rfc():
    header = read(CLIENT_INITIAL)
    assert (header.version, header.kind) == (VERSION_1, INITIAL)
    assert (header.destination_id.hex(), header.source_id) == ("8394c8f03e515708", b"")
    assert initial_token(CLIENT_INITIAL, header.rest_at, len(CLIENT_INITIAL)) == b""
    header = read(SERVER_INITIAL)
    assert (header.destination_id, header.source_id.hex()) == (b"", "f067a5502a4262b5")
    assert read(A4_RETRY).kind == RETRY
    assert is_long(CLIENT_INITIAL, 0) and not is_long(b"\x7f", 0)


@pytest.mark.parametrize("kind", [INITIAL, EARLY, HANDSHAKE, RETRY])
def test_the_types_of_version_1(kind):
    assert read(long_packet(kind=kind)).kind == kind


def test_it_is_read_where_it_stands():
    packet = long_packet(rest=b"\x03tok")
    data = b"\xff" * 9 + packet + b"\xff" * 9
    header = read_long(data, 9, 9 + len(packet))
    assert (header.destination_id, header.source_id) == (b"d" * 8, b"s" * 5)
    assert initial_token(data, header.rest_at, 9 + len(packet)) == b"tok"


def test_ids_of_another_version_may_be_as_long_as_a_byte_says():
    header = read(long_packet(0x0A0A0A0A, destination=b"d" * 255, source=b"s" * 255))
    assert header.destination_id == b"d" * 255 and header.source_id == b"s" * 255


def test_whatever_is_cut_off_is_none():
    packet = long_packet()
    assert read(packet) is not None
    for end in range(len(packet)):
        assert read_long(packet, 0, end) is None, end


@pytest.mark.parametrize("size", [b"\x03", b"\x40\x03", b"\x80\x00\x00\x03", b"\xc0" + bytes(6) + b"\x03"])
def test_a_tokens_length_in_each_encoding(size):
    packet = long_packet(rest=size + b"tok" + b"more")
    at = read(packet).rest_at
    assert initial_token(packet, at, len(packet)) == b"tok"
    for end in range(at, len(packet) - 4):
        assert initial_token(packet, at, end) is None, end


def test_a_token_that_claims_more_than_there_is():
    for size in (b"\x3f", b"\x7f\xff", b"\xbf\xff\xff\xff", b"\xff" * 8):
        packet = long_packet(rest=size + b"x" * 20)
        assert initial_token(packet, read(packet).rest_at, len(packet)) is None


@given(st.binary(max_size=80), st.integers(0, 10), st.integers(0, 10))
def test_no_bytes_do_harm(data, before, behind):
    at, end = before, max(before, len(data) - behind)
    header = read_long(data, at, end) if end <= len(data) else None
    if header is not None:
        assert header.rest_at <= end
        token = initial_token(data, header.rest_at, end)
        assert token is None or len(token) <= end - header.rest_at
    short_id(data, min(at, len(data)), len(data))


def test_the_id_of_a_short_header():
    data = b"ab" + b"\x40" + bytes(range(ID_BYTES)) + b"rest"
    assert short_id(data, 2, len(data)) == bytes(range(ID_BYTES))
    assert short_id(data, 2, 2 + ID_BYTES) == b"", "there is no room for it in this datagram"


class TestVersionNegotiation:
    def test_ids_are_turned_round_and_the_versions_offered(self):
        header = read(long_packet(0x1A2A3A4A, destination=b"D" * 30, source=b"S" * 3))
        packet = make_version_negotiation(header, os.urandom(6))
        assert packet[0] & 0xC0 == 0xC0
        answer = read(packet)
        assert (answer.version, answer.destination_id, answer.source_id) == (0, b"S" * 3, b"D" * 30)
        offered = packet[answer.rest_at :]
        versions = [int.from_bytes(offered[i : i + 4], "big") for i in range(0, len(offered), 4)]
        assert len(offered) % 4 == 0 and set(VERSIONS) < set(versions)
        (reserved,) = set(versions) - set(VERSIONS)
        assert reserved & 0x0F0F0F0F == 0x0A0A0A0A

    @pytest.mark.parametrize("asked", [0x0A0A0A0A, 0xFAFAFAFA, 0x1A2A3A4A])
    def test_what_was_asked_for_is_not_offered(self, asked):
        header = read(long_packet(asked))
        noise = b"\0" + asked.to_bytes(4, "big") + b"\0"
        packet = make_version_negotiation(header, noise)
        assert asked.to_bytes(4, "big") not in packet[read(packet).rest_at :]

    def test_the_reserved_one_has_no_fixed_place(self):
        header = read(long_packet(0x1A2A3A4A))
        first = {make_version_negotiation(header, bytes((i,)) + bytes(5))[-4:] for i in range(4)}
        assert len(first) == 2


class TestStatelessReset:
    @given(st.integers(0, 1_500), st.binary(min_size=64, max_size=64))
    def test_smaller_than_what_caused_it_and_never_too_small(self, size, noise):
        packet = make_stateless_reset(b"T" * 16, size, noise)
        if size <= MIN_RESET_BYTES:
            assert not packet
            return
        assert MIN_RESET_BYTES <= len(packet) < size
        assert len(packet) <= MAX_RESET_BYTES + 4
        assert packet[0] & 0xC0 == 0x40 and packet[-16:] == b"T" * 16

    def test_it_looks_like_another_each_time(self):
        packets = {make_stateless_reset(b"T" * 16, 1_200, os.urandom(64)) for _ in range(20)}
        assert len(packets) == 20 and len({packet[0] for packet in packets}) > 5
        assert len({len(packet) for packet in packets}) > 1
