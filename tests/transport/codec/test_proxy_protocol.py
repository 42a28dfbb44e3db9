"""PROXY headers of both versions: read whole and byte by byte, and what is none refused as early as it can be."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec.proxy_protocol import (
    MAX_HEADER_BYTES,
    MAX_TEXT_BYTES,
    ProxyProtocolError,
    client_address,
    crc32c,
    header_end,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TCP4 = bytes((198, 51, 100, 7, 127, 0, 0, 1)) + struct.pack("!HH", 5000, 80)
TCP6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("::1").packed + struct.pack("!HH", 5000, 80)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")


def v2(body=TCP4, family=0x11, command=0x21, length=None):
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body) if length is None else length) + body


def tlv(kind, value):
    return bytes((kind,)) + struct.pack("!H", len(value)) + value


def with_checksum(tlvs=b"", *, wrong=0):
    blank = v2(TCP4 + tlvs + tlv(3, bytes(4)))
    return blank[:-4] + struct.pack("!I", crc32c(blank) ^ wrong)


GOOD = {
    "tcp4": (b"PROXY TCP4 198.51.100.7 127.0.0.1 5000 80\r\n", b"198.51.100.7"),
    "tcp6": (b"PROXY TCP6 2001:DB8:0::7 ::1 65535 0\r\n", b"2001:db8::7"),
    "mapped": (b"PROXY TCP6 ::ffff:198.51.100.7 ::1 5000 80\r\n", b"198.51.100.7"),
    "unknown": (b"PROXY UNKNOWN\r\n", b""),
    "unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", b""),
    "longest": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", b""),
    "v2 tcp4": (v2(), b"198.51.100.7"),
    "v2 tcp6": (v2(TCP6, 0x21), b"2001:db8::7"),
    "v2 unix": (v2(UNIX, 0x31), b"unix"),
    "v2 unspecified": (v2(b"", 0x00), b""),
    "v2 local": (v2(b"", 0x00, 0x20), b""),
    "v2 local, with what is to be skipped": (v2(TCP4 + b"xx", 0x11, 0x20), b""),
    "v2 tlvs": (v2(TCP4 + tlv(1, b"h2") + tlv(4, b"") + tlv(0xEA, b"x" * 300)), b"198.51.100.7"),
    "v2 checksum": (with_checksum(tlv(1, b"h2")), b"198.51.100.7"),
    "v2 largest": (v2(TCP4 + tlv(4, bytes(MAX_HEADER_BYTES - 16 - 12 - 3))), b"198.51.100.7"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\n"])
def test_a_header_whatever_follows_it(name, more):
    header, address = GOOD[name]
    assert header_end(header + more) == len(header)
    assert client_address(header) == address


@pytest.mark.parametrize("name", GOOD)
def test_byte_by_byte(name):
    header, _ = GOOD[name]
    assert all(header_end(header[:i]) == 0 for i in range(len(header)))


EARLY = {
    "a request": b"G",
    "tls": b"\x16",
    "lower case": b"p",
    "another word": b"PROXZ",
    "no blank": b"PROXY\r",
    "a blank first": b" ",
    "half a signature": b"\r\n\r\n\x01",
    "a signature that ends wrongly": SIGNATURE[:-1] + b"\r",
    "endless line": b"PROXY TCP4 " + b"1" * (MAX_TEXT_BYTES - 11),
    "too long": SIGNATURE + b"\x21\x11" + struct.pack("!H", MAX_HEADER_BYTES - 15),
    "longest length": SIGNATURE + b"\x21\x11\xff\xff",
}


@pytest.mark.parametrize("name", EARLY)
def test_no_header_is_known_by_its_beginning(name):
    with pytest.raises(ProxyProtocolError):
        header_end(EARLY[name])
    assert header_end(EARLY[name][:-1]) == 0


def line(text):
    return text.encode("latin-1") + b"\r\n"


BAD = [
    line(text)
    for text in (
        "PROXY ", "PROXY TCP4", "PROXY TCP4 1.2.3.4 5.6.7.8 1", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3", "PROXY TCP4  1.2.3.4 5.6.7.8 1 2",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 ", "PROXY TCP4 ::1 ::2 1 2", "PROXY TCP6 1.2.3.4 5.6.7.8 1 2", "PROXY TCP4 1.2.3.256 5.6.7.8 1 2",
        "PROXY TCP4 1.2.3.04 5.6.7.8 1 2", "PROXY TCP4 1.2.3 5.6.7.8 1 2", "PROXY TCP4 1.2.3.4 x 1 2", "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2",
        "PROXY TCP4 1.2.3.4 5.6.7.8 01 2", "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2", "PROXY TCP4 1.2.3.4 5.6.7.8 1 \xb2", "PROXY UDP4 1.2.3.4 5.6.7.8 1 2",
        "PROXY TCP4\t1.2.3.4 5.6.7.8 1 2", "PROXY unknown", "PROXY UNKNOWNx", "PROXY TCP6 ::1%eth0 ::2 1 2", "PROXY UNKNOWN a\rb",
    )
] + [
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
    b"PROXY UNKNOWN\n",
    v2(command=0x11),
    v2(command=0x31),
    v2(command=0x22),
    v2(command=0x2F),
    v2(family=0x12),
    v2(family=0x22),
    v2(family=0x13),
    v2(family=0x41),
    v2(family=0xFF),
    v2(TCP4[:-1]),
    v2(b""),
    v2(TCP6[:-1], 0x21),
    v2(UNIX[:-1], 0x31),
    v2(TCP4 + b"\x01"),
    v2(TCP4 + b"\x01\x00"),
    v2(TCP4 + b"\x01\x00\x05abcd"),
    v2(TCP4 + tlv(1, b"h2") + b"\x04\xff\xff"),
    v2(TCP4 + tlv(3, b"abc")),
    with_checksum(wrong=1),
    with_checksum(tlv(1, b"h2"), wrong=0x80000000),
]  # fmt: skip


@pytest.mark.parametrize("header", BAD)
def test_a_whole_header_that_is_malformed(header):
    assert header_end(header) == len(header)
    with pytest.raises(ProxyProtocolError):
        client_address(header)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0\x20"]))
def test_whatever_comes_the_answer_is_an_address_or_a_refusal(data, begins):
    data = begins + data
    try:
        end = header_end(data)
        assert 0 <= end <= min(len(data), MAX_HEADER_BYTES)
        if end:
            address = client_address(data[:end])
            assert address in (b"", b"unix") or ipaddress.ip_address(address.decode())
    except ProxyProtocolError:
        pass


def test_crc32c():
    """RFC 3720 appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
