"""STUN messages: the vectors of RFC 5769 and 8489, aioice as the other side, and what a stranger may send."""

import os
import random

import pytest
from aioice import stun as peer
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec import stun
from router.transport.codec.stun import (
    BINDING_ERROR,
    BINDING_INDICATION,
    BINDING_REQUEST,
    BINDING_SUCCESS,
    MAX_ADDED_BYTES,
    MAX_MESSAGE_BYTES,
    binding_error,
    binding_request,
    binding_success,
    is_stun,
    read_message,
)

TRANSACTION = bytes(range(12))
KEY = b"a password"


def octets(text):
    return bytes.fromhex(text.replace("\n", " "))


# RFC 5769 §2.1–2.4, RFC 8489 §B.1
PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
REQUEST = octets("""
    000100582112a442b7e7a701bc34d686fa87dfae 802200105354554e207465737420636c69656e74
    002400046e0001ff 80290008932ff9b151263b36 0006000965766a743a68367659202020
    000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004e57a3bcf""".replace("65766a74", "6576746a"))
IPV4_RESPONSE = octets("""
    0101003c2112a442b7e7a701bc34d686fa87dfae 8022000b7465737420766563746f7220
    002000080001a147e112a643 000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004c07d4c96""")
IPV6_RESPONSE = octets("""
    010100482112a442b7e7a701bc34d686fa87dfae 8022000b7465737420766563746f7220
    002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9
    00080014a382954e4be67bf11784c97c8292c275bfe3ed41 80280004c8fb0b4c""")
LONG_TERM = octets("""
    000100602112a44278ad3433c6ad72c029da412e 00060012e3839ee38388e383aae38383e382afe382b90000
    0015001c662f2f3439396b39353464364f4c33346f4c394654767936347341 0014000b6578616d706c652e6f726700
    00080014f67024656dd64a3e02b8e0712e85c9a28ca89666""".replace("394654767936347341", "39465354767936347341"))
LONG_TERM_SHA256 = octets("""
    000100882112a44278ad3433c6ad72c029da412e
    001e00204a3cf38fef6992bda952c67804 17da0f2481941556 9e60b205c46e41407f1704
    001500296f62 4d61744a6f73324141414366 2f2f3439396b39353464364f4c33346f4c39465354767936347341000000
    0014000b6578616d706c652e6f726700
    001c0020fd8c273860d2e18ebca4c89b6973befa7ee8ecc69e9642db326fab65a0b955ba""")
USER = "マトリックス".encode()


def long_term_key(hash_name):
    import hashlib

    return hashlib.new(hash_name, USER + b":example.org:TheMatrIX").digest()


def attribute(number, value):
    return number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4)


def message(*attributes, kind=BINDING_REQUEST, transaction=TRANSACTION):
    body = b"".join(attributes)
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + transaction + body


class TestVectors:
    def test_request(self):
        found = read_message(REQUEST, PASSWORD)
        assert (found.kind, found.username, found.transaction) == (BINDING_REQUEST, b"evtj:h6vY", REQUEST[8:20])
        assert found.has_integrity and found.is_sha1 and found.has_fingerprint
        assert found.unknown == [0x24], "PRIORITY would have to be understood, ICE-CONTROLLED and SOFTWARE not"

    @pytest.mark.parametrize(
        ("data", "address"), [(IPV4_RESPONSE, "192.0.2.1"), (IPV6_RESPONSE, "2001:db8:1234:5678:11:2233:4455:6677")]
    )
    def test_response(self, data, address):
        found = read_message(data, PASSWORD)
        assert (found.kind, found.mapped, found.unknown) == (BINDING_SUCCESS, (address, 32_853), [])

    def test_long_term(self):
        found = read_message(LONG_TERM, lambda username: long_term_key("md5") if username == USER else b"")
        assert found.username == USER and found.is_sha1 and not found.has_fingerprint
        assert found.unknown == [0x15, 0x14]

    def test_long_term_of_sha256(self):
        found = read_message(LONG_TERM_SHA256, long_term_key("md5"))
        assert found.has_integrity and not found.is_sha1
        assert found.unknown == [0x1E, 0x15, 0x14]

    @pytest.mark.parametrize("data", [REQUEST, IPV4_RESPONSE, IPV6_RESPONSE, LONG_TERM, LONG_TERM_SHA256], ids=range(5))
    def test_a_bit_that_flips_is_noticed(self, data):
        keys = {LONG_TERM: long_term_key("md5"), LONG_TERM_SHA256: long_term_key("md5")}
        key = keys.get(data, PASSWORD)
        assert read_message(data, key) is not None
        harmless = 0
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            harmless += read_message(bytes(changed), key) is not None
        # A FINGERPRINT that became something else is not read, behind the integrity attribute.
        assert harmless == (16 if data[-8:-4] == b"\x80\x28\0\4" else 0)


class TestOurs:
    @pytest.mark.parametrize("address", [("192.0.2.7", 1), ("0.0.0.0", 65_535), ("::1", 4_711), ("2001:db8::5", 443)])
    @pytest.mark.parametrize("key", [b"", KEY])
    def test_both_ways(self, address, key):
        request = read_message(binding_request(TRANSACTION, username=b"a:b", key=key), key)
        assert (request.kind, request.username, request.has_integrity) == (BINDING_REQUEST, b"a:b", bool(key))
        assert not request.is_sha1 and request.has_fingerprint
        answer = read_message(binding_success(request, address, key=key), key)
        assert (answer.kind, answer.mapped, answer.transaction) == (BINDING_SUCCESS, address, TRANSACTION)
        assert (answer.has_integrity, answer.has_fingerprint, answer.unknown) == (bool(key), True, [])

    @pytest.mark.parametrize(
        ("heard", "told"),
        [(("::ffff:192.0.2.7", 9, 0, 0), "192.0.2.7"), (("fe80::1%lo", 9, 0, 1), "fe80::1"), (("fe80::1", 9, 0, 1), "fe80::1")],
    )
    def test_addresses_as_sockets_give_them(self, heard, told):
        request = read_message(binding_request(TRANSACTION))
        assert read_message(binding_success(request, heard)).mapped == (told, 9)

    def test_an_error(self):
        request = read_message(message(attribute(0x24, b"1234"), attribute(0x25, b""), attribute(0x24, b"")))
        assert request.unknown == [0x24, 0x25]
        data = binding_error(request, 420, request.unknown)
        answer = read_message(data)
        assert (answer.kind, answer.error_code, answer.has_fingerprint) == (BINDING_ERROR, 420, False)
        assert data.endswith(b"\x00\x0a\x00\x04\x00\x24\x00\x25")
        assert read_message(binding_error(request, 401, key=KEY), KEY).error_code == 401

    def test_the_fingerprint_is_the_requests(self):
        assert not read_message(binding_success(read_message(message()), ("192.0.2.1", 5))).has_fingerprint

    @given(st.lists(st.integers(0, 0xFFFF).filter(lambda n: n not in (0x6, 0x8, 0x9, 0x1C, 0x20, 0x8028)), max_size=300), st.booleans())
    def test_an_answer_is_hardly_larger_than_its_request(self, numbers, is_ipv6):
        data = message(*(attribute(number, b"") for number in numbers))
        request = read_message(data)
        answer = binding_error(request, 420, request.unknown) if request.unknown else binding_success(request, ("::1" if is_ipv6 else "1.1.1.1", 1))
        assert len(answer) <= len(data) + MAX_ADDED_BYTES
        assert read_message(answer) is not None


class TestAioice:
    """An implementation of another maker, both ways."""

    def test_it_reads_ours(self):
        request = peer.parse_message(binding_request(TRANSACTION, username=b"a:b"))
        assert request.attributes["USERNAME"] == "a:b" and request.transaction_id == TRANSACTION
        asked = read_message(binding_request(TRANSACTION))
        for address in (("192.0.2.9", 77), ("2001:db8::9", 77)):
            assert peer.parse_message(binding_success(asked, address)).attributes["XOR-MAPPED-ADDRESS"] == address
        assert peer.parse_message(binding_error(asked, 400)).error_code == 400

    def test_we_read_its(self):
        request = peer.Message(peer.Method.BINDING, peer.Class.REQUEST, attributes={"USERNAME": "a:b"})
        request.add_message_integrity(KEY)
        found = read_message(bytes(request), KEY)
        assert found.username == b"a:b" and found.is_sha1 and found.transaction == request.transaction_id
        assert read_message(bytes(request), b"another") is None

    def test_its_kind_of_integrity_is_answered_in_kind(self):
        request = peer.Message(peer.Method.BINDING, peer.Class.REQUEST, attributes={"USERNAME": "a:b"})
        request.add_message_integrity(KEY)
        answer = peer.parse_message(binding_success(read_message(bytes(request), KEY), ("192.0.2.9", 77), key=KEY))
        assert answer.check_message_integrity(KEY) and answer.attributes["XOR-MAPPED-ADDRESS"] == ("192.0.2.9", 77)

    def test_indications_and_other_methods(self):
        made = bytes(peer.Message(peer.Method.BINDING, peer.Class.INDICATION))
        assert read_message(made).kind == BINDING_INDICATION
        for method in (peer.Method.ALLOCATE, peer.Method.SEND):
            made = bytes(peer.Message(method, peer.Class.REQUEST))
            assert is_stun(made) and read_message(made) is None


class TestIntegrity:
    def test_a_key_is_asked_for(self):
        assert read_message(message(), KEY) is None
        assert read_message(binding_request(TRANSACTION), KEY) is None
        assert read_message(binding_request(TRANSACTION, key=KEY), b"another") is None
        assert read_message(binding_request(TRANSACTION, key=KEY)).has_integrity, "not asked for: there, and not looked at"

    def test_a_key_by_name(self):
        keys = {b"a": KEY}
        for username, is_known in ((b"a", True), (b"b", False)):
            data = binding_request(TRANSACTION, username=username, key=KEY)
            assert (read_message(data, lambda name: keys.get(name, b"")) is not None) is is_known

    def test_an_empty_key_is_nobodys(self):
        import hashlib
        import hmac

        body = message(attribute(0x1C, bytes(32)))
        forged = body[:-32] + hmac.digest(b"", body[:-36], hashlib.sha256)
        assert read_message(forged, lambda _: b"") is None

    def test_truncated(self):
        """RFC 8489 §14.6: 16 to 32 bytes, in steps of four."""
        import hmac

        for size in range(40):
            body = message(attribute(0x1C, bytes(size)))
            made = hmac.digest(KEY, body[:2] + (4 + size).to_bytes(2, "big") + body[4:20], "sha256") + bytes(8)
            data = body[:24] + made[:size] + body[24 + size :]
            assert (read_message(data, KEY) is not None) is (size in (16, 20, 24, 28, 32)), size

    def test_what_follows_it_is_not_read(self):
        import hmac

        body = message(attribute(0x1C, bytes(32)))
        signed = body[:-32] + hmac.digest(KEY, body[:20], "sha256")
        more = attribute(0x6, b"mallory") + attribute(0x24, b"")
        data = signed[:2] + (len(signed) - 20 + len(more)).to_bytes(2, "big") + signed[4:] + more
        found = read_message(data, KEY)
        assert found is not None and found.username == b"" and found.unknown == []

    def test_the_first_of_a_kind_counts(self):
        import hmac

        both = message(attribute(0x1C, bytes(32)), attribute(0x1C, bytes(32)))
        right = hmac.digest(KEY, both[:2] + (36).to_bytes(2, "big") + both[4:20], "sha256")
        assert read_message(both[:24] + right + both[56:], KEY) is not None
        assert read_message(both[:60] + right, KEY) is None

    def test_the_better_of_two_counts(self):
        """A SHA-1 that fits does not help where the SHA-256 does not."""
        import hmac

        sha1 = hmac.digest(KEY, message(bytes(24))[:20], "sha1")
        both = message(attribute(0x8, sha1), attribute(0x1C, bytes(32)))
        assert read_message(message(attribute(0x8, sha1)), KEY).is_sha1
        assert read_message(both, KEY) is None
        right = hmac.digest(KEY, both[:44], "sha256")
        found = read_message(both[:48] + right, KEY)
        assert found is not None and not found.is_sha1


MAPPED = b"\x00\x01\xa1\x47\xe1\x12\xa6\x43"
ROWS = [
    ("an empty message", message(), True),
    ("too short", message()[:19], False),
    ("more than it says", message() + bytes(4), False),
    ("less than it says", message(attribute(0x8022, bytes(8)))[:-4], False),
    ("another cookie", message()[:4] + bytes(4) + message()[8:], False),
    ("a QUIC packet's first byte", b"\x40" + message()[1:], False),
    ("no multiple of four", message(bytes(2)), False),
    ("no room for a header", message(attribute(0x8022, b""), b"\x80\x22\0\1"), False),
    ("a value beyond the end", message(b"\x80\x22\0\x08", bytes(4)), False),
    ("a value that ends in its padding", message(b"\x80\x22\0\x05", bytes(8)), True),
    ("padding that is not zero", message(b"\x80\x22\0\x01aPAD"), True),
    ("nothing but an optional one", message(attribute(0x8022, b"x")), True),
    ("a name too many", message(attribute(0x6, b"a"), attribute(0x6, b"b")), True),
    ("a name too many, of nothing", message(attribute(0x6, b"a"), attribute(0x6, b"")), False),
    ("no name", message(attribute(0x6, b"")), False),
    ("a long name", message(attribute(0x6, bytes(508))), True),
    ("too long a name", message(attribute(0x6, bytes(509))), False),
    ("a fingerprint that is another's", message(attribute(0x8028, bytes(4))), False),
    ("a fingerprint of eight bytes", message(attribute(0x8028, bytes(8))), False),
    ("a fingerprint of none", message(attribute(0x8028, b"")), False),
    ("SHA-1 of 16 bytes", message(attribute(0x8, bytes(16))), False),
    ("an address", message(attribute(0x20, MAPPED), kind=BINDING_SUCCESS), True),
    ("an address cut off", message(attribute(0x20, MAPPED[:7]), kind=BINDING_SUCCESS), False),
    ("an address of no family", message(attribute(0x20, b"\0\3" + MAPPED[2:]), kind=BINDING_SUCCESS), False),
    ("IPv4 as long as IPv6", message(attribute(0x20, MAPPED + bytes(12)), kind=BINDING_SUCCESS), False),
    ("an address without anything", message(attribute(0x20, b""), kind=BINDING_SUCCESS), False),
    ("an error of class 2", message(attribute(0x9, b"\0\0\2\0"), kind=BINDING_ERROR), False),
    ("an error of class 7", message(attribute(0x9, b"\0\0\7\0"), kind=BINDING_ERROR), False),
    ("an error number of 100", message(attribute(0x9, b"\0\0\4\x64"), kind=BINDING_ERROR), False),
    ("an error of three bytes", message(attribute(0x9, b"\0\0\4"), kind=BINDING_ERROR), False),
    ("an error with a reason", message(attribute(0x9, b"\0\0\4\x14why"), kind=BINDING_ERROR), True),
    ("another method", message(kind=0x0003), False),
    ("as large as may be", message(attribute(0x8022, bytes(MAX_MESSAGE_BYTES - 24))), True),
    ("too large", message(attribute(0x8022, bytes(MAX_MESSAGE_BYTES - 20))), False),
]


@pytest.mark.parametrize(("data", "is_taken"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rows(data, is_taken):
    assert (read_message(data) is not None) is is_taken


def with_fingerprint(size, *more):
    """A message whose FINGERPRINT is right for where it stands."""
    import zlib

    data = message(attribute(0x8028, bytes(size)), *more)
    made = (zlib.crc32(data[:20]) ^ 0x5354554E).to_bytes(size, "big")
    return data[:24] + made + data[24 + size :]


def test_a_fingerprint_is_four_bytes_and_the_last():
    assert read_message(with_fingerprint(4)).has_fingerprint
    assert read_message(with_fingerprint(8)) is None
    assert read_message(with_fingerprint(4, attribute(0x8022, b""))) is None


def test_what_is_not_known_is_bounded():
    found = read_message(message(*(attribute(0x100 + n, b"") for n in range(300))))
    assert found.unknown == [0x100 + n for n in range(stun.MAX_UNKNOWN)]


def test_the_first_name_counts():
    assert read_message(message(attribute(0x6, b"a"), attribute(0x6, b"b"))).username == b"a"


def test_the_first_address_counts():
    data = message(attribute(0x1, MAPPED), attribute(0x20, MAPPED), attribute(0x20, b"\0\1" + bytes(6)), kind=BINDING_SUCCESS)
    found = read_message(data)
    assert found.mapped == ("192.0.2.1", 32_853) and found.unknown == []


@given(st.binary(max_size=200))
def test_noise(body):
    body = body[: len(body) & ~3]
    for data in (body, message(body), message(body, kind=BINDING_SUCCESS)):
        for key in (b"", KEY):
            found = read_message(data, key)
            assert found is None or (is_stun(data) and not key)


def test_damage():
    """Whatever is changed in a whole message: it is read, or it is not."""
    chance = random.Random(5)
    whole = message(attribute(0x6, b"name"), attribute(0x20, MAPPED), attribute(0x9, b"\0\0\4\x14why"), attribute(0x24, b"1234"))
    read = 0
    for _ in range(5_000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        read += read_message(bytes(data)) is not None
    assert 0 < read < 5_000


def test_packets_of_quic_are_none():
    for first in (0x04, 0x40, 0x43, 0x80, 0xC0, 0xFF):
        assert not is_stun(bytes((first, 1, 0, 40)) + b"\x21\x12\xa4\x42" + os.urandom(52))
    assert is_stun(bytes((3, 1, 0, 40)) + b"\x21\x12\xa4\x42" + os.urandom(52))


def test_transactions_are_twelve_bytes():
    with pytest.raises(AssertionError):
        binding_request(b"short")
    assert stun.TRANSACTION_BYTES == 12
