"""The PROXY protocol's header, versions 1 and 2: who the client of a proxy before this one is. Pure.

A header is the first thing on a connection, before TLS. `header_end` says how far it reaches in what has come, so
that its reader takes exactly that much; `client_address` reads a whole one. Both raise for what is no header, as
early as it can be known. Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final

MAX_TEXT_BYTES: Final = 107  # §2.1: the longest line of version 1, with its CRLF
MAX_HEADER_BYTES: Final = 4_096  # of version 2: addresses need 232, vendors add TLVs of some hundreds

_TEXT: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16  # signature, version and command, family, length
_LINE: Final = re.compile(rb"PROXY (TCP4|TCP6) ([0-9a-fA-F.:]{2,45}) ([0-9a-fA-F.:]{2,45}) (\d{1,5}) (\d{1,5})\r\n")
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN( [^\r\n]*)?\r\n")
# Bytes of addresses and ports by family and transport. Datagrams do not come over a stream.
_ADDRESSES: Final = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
_CRC: Final = 0x03
_CRC_BYTES: Final = 4


class ProxyProtocolError(ValueError):
    """What came is no header of the PROXY protocol; the text says why."""


def header_end(data: bytes) -> int:
    """Return where the header ends that `data` begins with, 0 while that is not known: all of it is header then."""
    if data[:1] == _SIGNATURE[:1]:
        if data[: len(_SIGNATURE)] != _SIGNATURE[: len(data)]:
            raise ProxyProtocolError("the signature of version 2 is damaged")
        if len(data) < _FIXED:
            return 0
        end = _FIXED + int.from_bytes(data[14:16], "big")
        if end > MAX_HEADER_BYTES:
            raise ProxyProtocolError(f"a header of {end} bytes; the limit is {MAX_HEADER_BYTES}")
        return end if end <= len(data) else 0
    if data[: len(_TEXT)] != _TEXT[: len(data)]:
        raise ProxyProtocolError("no header comes first")
    end = data.find(b"\n", 0, MAX_TEXT_BYTES) + 1
    if not end and len(data) >= MAX_TEXT_BYTES:
        raise ProxyProtocolError(f"a line of more than {MAX_TEXT_BYTES} bytes")
    return end


def client_address(header: bytes) -> bytes:
    """Return the client's address of a whole header; empty if it says to take the connection's own."""
    return _read_binary(header) if header[:1] == _SIGNATURE[:1] else _read_text(header)


def _read_text(line: bytes) -> bytes:
    if _UNKNOWN.fullmatch(line):
        return b""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ProxyProtocolError("the line of version 1 is malformed")
    family, source, target, *ports = match.groups()
    for port in ports:
        if int(port) > 65_535 or (port[:1] == b"0" and port != b"0"):
            raise ProxyProtocolError("a port is no port")
    read = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        read(target.decode())
        return _shown(read(source.decode()))
    except ValueError:
        raise ProxyProtocolError(f"an address is not of {family.decode()}") from None


def _read_binary(header: bytes) -> bytes:
    version, command = divmod(header[12], 16)
    if version != 2 or command > 1:
        raise ProxyProtocolError("neither LOCAL nor PROXY of version 2")
    size = _ADDRESSES.get(header[13])
    if size is None:
        raise ProxyProtocolError(f"family and transport {header[13]:#04x} are not served")
    body = header[_FIXED:]
    if command == 0:
        return b""  # §2.2: the proxy's own connection, such as a health check; the rest is to be skipped
    if len(body) < size:
        raise ProxyProtocolError("shorter than its addresses")
    _check_tlvs(header, _FIXED + size)
    if size == 12:
        return _shown(IPv4Address(body[:4]))
    if size == 36:
        return _shown(IPv6Address(body[:16]))
    return b"unix" if size else b""


def _check_tlvs(header: bytes, at: int) -> None:
    """Walk the TLVs: they must fill the header, and a checksum among them must be right."""
    end = len(header)
    while at < end:
        if end - at < 3:
            raise ProxyProtocolError("a TLV is cut short")
        kind, value = header[at], at + 3
        at = value + int.from_bytes(header[at + 1 : value], "big")
        if at > end:
            raise ProxyProtocolError("a TLV is cut short")
        if kind == _CRC:
            blank = header[:value] + bytes(_CRC_BYTES) + header[at:]
            if at - value != _CRC_BYTES or crc32c(blank) != int.from_bytes(header[value:at], "big"):
                raise ProxyProtocolError("the checksum is wrong")


def _shown(address: IPv4Address | IPv6Address) -> bytes:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address).encode()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 4960 appendix B). One header's bytes: 8 us for a usual one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _make_table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)  # noqa: PLW2901
        table.append(crc)
    return tuple(table)


_TABLE: Final = _make_table()
