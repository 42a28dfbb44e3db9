"""Retry packets that clients of other makers accept, and tokens that prove an address and nothing else."""

import os

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import get_retry_integrity_tag, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec.quic.retry import (
    CLOCK_S,
    MAX_TOKEN_BYTES,
    RETRY_VALID_S,
    TOKEN_VALID_S,
    Tokens,
    make_retry,
    retry_tag,
)

NOW = 1_700_000_000.25
ORIGINAL = bytes.fromhex("8394c8f03e515708")
A4_RETRY = bytes.fromhex("ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba")
HOST, PORT, CHOSEN = "192.0.2.7", 50_000, b"c" * 12


@pytest.fixture
def tokens():
    return Tokens(bytes(range(32)))


class TestPacket:
    def test_the_one_of_rfc_9001_a4(self):
        assert make_retry(b"", bytes.fromhex("f067a5502a4262b5"), ORIGINAL, b"token", 0xF) == A4_RETRY

    def test_the_unused_bits_are_noise(self):
        assert make_retry(b"", b"12345678", ORIGINAL, b"token", 0x35)[0] == 0xF5

    @given(st.binary(max_size=20), st.binary(min_size=8, max_size=20), st.binary(min_size=1, max_size=60))
    def test_aioquic_reads_it(self, client_id, original_id, token):
        packet = make_retry(client_id, CHOSEN, original_id, token, 0)
        header = pull_quic_header(Buffer(data=packet), host_cid_length=len(client_id))
        assert (header.destination_cid, header.source_cid, header.token) == (client_id, CHOSEN, token)
        assert header.integrity_tag == packet[-16:]
        assert get_retry_integrity_tag(packet[:-16], original_id, header.version) == packet[-16:]
        assert retry_tag(original_id, packet[:-16]) == packet[-16:]


class TestRetryToken:
    def test_it_gives_the_original_id_back(self, tokens):
        token = tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW)
        assert tokens.is_of_retry(token)
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW + 1) == ORIGINAL
        assert Tokens(bytes(range(32))).open_retry(token, HOST, PORT, CHOSEN, NOW) == ORIGINAL, "in another worker"

    @pytest.mark.parametrize(
        ("host", "port", "chosen"),
        [("192.0.2.8", PORT, CHOSEN), (HOST, 50_001, CHOSEN), (HOST, PORT, b"d" * 12), (HOST, PORT, b"")],
    )
    def test_it_is_for_nobody_else(self, tokens, host, port, chosen):
        token = tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW)
        assert tokens.open_retry(token, host, port, chosen, NOW) is None

    def test_it_ends(self, tokens):
        token = tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW)
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW + RETRY_VALID_S - 0.1) == ORIGINAL
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW + RETRY_VALID_S + 0.1) is None
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW - CLOCK_S + 0.1) == ORIGINAL
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW - CLOCK_S - 0.1) is None

    def test_any_changed_bit_is_noticed(self, tokens):
        token = tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW)
        for i in range(len(token)):
            forged = token[:i] + bytes((token[i] ^ 1,)) + token[i + 1 :]
            assert tokens.open_retry(forged, HOST, PORT, CHOSEN, NOW) is None, i
            assert tokens.open_retry(token[:i], HOST, PORT, CHOSEN, NOW) is None, i

    def test_no_two_are_alike(self, tokens):
        assert tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW) != tokens.of_retry(HOST, PORT, CHOSEN, ORIGINAL, NOW)


class TestConnectionToken:
    def test_it_is_for_an_address_and_a_day(self, tokens):
        token = tokens.of_connection(HOST, NOW)
        assert not tokens.is_of_retry(token)
        assert tokens.is_known(token, HOST, NOW + TOKEN_VALID_S - 1)
        assert not tokens.is_known(token, HOST, NOW + TOKEN_VALID_S + 1)
        assert not tokens.is_known(token, "192.0.2.8", NOW)

    def test_neither_passes_for_the_other(self, tokens):
        of_retry = tokens.of_retry(HOST, 0, b"", ORIGINAL, NOW)
        of_connection = tokens.of_connection(HOST, NOW)
        assert not tokens.is_known(b"\x4e" + of_retry[1:], HOST, NOW)
        assert tokens.open_retry(b"\x52" + of_connection[1:], HOST, 0, b"", NOW) is None


@given(st.binary(max_size=300))
def test_garbage_is_no_token(data):
    tokens = Tokens(bytes(range(32)))
    for token in (data, b"\x52" + data, b"\x4e" + data):
        assert not tokens.is_known(token, HOST, NOW)
        assert tokens.open_retry(token, HOST, PORT, CHOSEN, NOW) is None


def test_ours_are_shorter_than_what_is_tried():
    tokens = Tokens(os.urandom(32))
    assert len(tokens.of_retry("2001:db8:0:0:0:0:0:1%interface", 65_535, CHOSEN, b"o" * 20, NOW)) <= MAX_TOKEN_BYTES
