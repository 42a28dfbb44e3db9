"""TLS listeners and PROXY headers at the wire (RFC 7301, RFC 8446, RFC 9113 §3.2, §9.2; PROXY protocol 1 and 2)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

import pytest
import wirekit
from h2kit import ENABLE_PUSH, PREFACE, SETTINGS, H2Client, head, headers, settings
from wirekit import until

sys.path.insert(0, str(Path(__file__).parents[1]))

from certkit import Authority  # noqa: E402

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    pair = authority.sign("localhost", "127.0.0.1")
    return authority, *pair.write(folder, "server")


@pytest.fixture
def tls_router(authority, replica_server, start_router):
    _, cert, key = authority
    flags = ("--listen-tls", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--head-timeout-s", "1", "--keep-alive-s", "2")
    router = start_router([f"http://127.0.0.1:{replica_server.port}"], flags)
    if not hasattr(router, "tls_port"):
        # The ready line named both; which is which, a handshake tells.
        import psutil

        ports = {
            c.laddr.port for p in [psutil.Process(router.process.pid), *psutil.Process(router.process.pid).children(recursive=True)]
            for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN
        }  # fmt: skip
        for port in ports - {router.port}:
            with contextlib.suppress(OSError, ssl.SSLError), socket.create_connection(("127.0.0.1", port), 2) as sock:
                with context(authority).wrap_socket(sock, server_hostname="localhost"):
                    router.tls_port = port
    yield router
    router.check()


def context(authority, *protocols, **more):
    made = ssl.create_default_context(cadata=authority[0].cert.decode())
    if protocols:
        made.set_alpn_protocols(list(protocols))
    for name, value in more.items():
        setattr(made, name, value)
    return made


class Tls:
    """A blocking client in a thread: `talk(bytes)` returns everything up to the end of what is wanted."""

    def __init__(self, port, made, name="localhost"):
        raw = socket.create_connection(("127.0.0.1", port), 5)
        raw.settimeout(5)
        try:
            self.sock = made.wrap_socket(raw, server_hostname=name)
        except BaseException:
            raw.close()
            raise

    def talk(self, data, enough):
        self.sock.sendall(data)
        got = b""
        while not enough(got):
            piece = self.sock.recv(65_536)
            if not piece:
                break
            got += piece
        return got

    def close(self):
        self.sock.close()


def parts(data):
    """Whole frames of these bytes."""
    found = []
    while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


H2_GET = PREFACE + settings({ENABLE_PUSH: 0}) + headers(1, head(scheme=b"https"))
H1_GET = b"GET /t HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def served_h2(data):
    return any(kind == 0 and flags & 1 and stream == 1 for kind, flags, stream, _ in parts(data))


ALPN = {
    "h2": (("h2",), "h2"), "h2-first": (("h2", "http/1.1"), "h2"), "http/1.1": (("http/1.1",), "http/1.1"), "none": ((), None),
    "unknown": (("foo", "spdy/3"), None), "unknown-and-h2": (("foo", "h2"), "h2"), "h2-16": (("h2-16",), None), "h2c": (("h2c",), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ALPN)
async def test_what_alpn_comes_to(name, authority, tls_router, replica):
    offered, chosen = ALPN[name]

    def talk():
        client = Tls(tls_router.tls_port, context(authority, *offered))
        try:
            protocol = client.sock.selected_alpn_protocol()
            got = client.talk(*((H2_GET, served_h2) if protocol == "h2" else (H1_GET, lambda data: data.endswith(b"/t"))))
            return protocol, got
        finally:
            client.close()

    protocol, got = await asyncio.to_thread(talk)
    assert protocol == chosen
    assert served_h2(got) if chosen == "h2" else got.startswith(b"HTTP/1.1 200")
    assert replica.requests[-1].get(b"x-forwarded-proto") == b"https"


@pytest.mark.parametrize("spoken", ["h1-over-h2", "h2-over-http/1.1"])
async def test_a_client_that_speaks_another_than_it_negotiated(spoken, authority, tls_router, replica):
    # RFC 9113 §3.2, §3.4: what was negotiated is spoken; HTTP/1.1 where h2 was is no preface.
    def talk():
        client = Tls(tls_router.tls_port, context(authority, "h2" if spoken == "h1-over-h2" else "http/1.1"))
        try:
            with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
                return client.talk(H1_GET if spoken == "h1-over-h2" else H2_GET, served_h2)
            return b""
        finally:
            client.close()

    got = await asyncio.to_thread(talk)
    if spoken == "h1-over-h2":
        assert b"HTTP/1.1 200" not in got
        assert not replica.seen
    else:
        assert served_h2(got) or b" 200 " not in got[:20]


async def test_h2_over_tls_in_small_records(authority, tls_router, replica):
    def talk():
        client = Tls(tls_router.tls_port, context(authority, "h2"))
        try:
            for i in range(len(H2_GET) - 1):
                client.sock.sendall(H2_GET[i : i + 1])
            return client.talk(H2_GET[-1:], served_h2)
        finally:
            client.close()

    got = await asyncio.to_thread(talk)
    assert served_h2(got)
    assert parts(got)[0][0] == SETTINGS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions(version, authority, tls_router, replica):
    made = context(authority, "h2", minimum_version=version, maximum_version=version)

    def talk():
        client = Tls(tls_router.tls_port, made)
        try:
            return client.sock.cipher()[0], client.talk(H2_GET, served_h2)
        finally:
            client.close()

    cipher, got = await asyncio.to_thread(talk)
    assert served_h2(got)
    # §9.2.2, appendix A: no cipher without forward secrecy or AEAD.
    assert ("GCM" in cipher or "CHACHA20" in cipher) and (cipher.startswith(("TLS_", "ECDHE"))), cipher


async def test_a_renegotiation_or_compression_is_not_offered(authority, tls_router, replica):
    # §9.2.1.
    def talk():
        client = Tls(tls_router.tls_port, context(authority, "h2", maximum_version=ssl.TLSVersion.TLSv1_2))
        try:
            return client.sock.compression()
        finally:
            client.close()

    assert await asyncio.to_thread(talk) is None


HELLOS = {
    "http": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "preface": PREFACE + settings(), "zeros": bytes(500), "record-endless": b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    "alert": b"\x15\x03\x01\x00\x02\x02\x28", "hello-cut": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(40), "sslv2": b"\x80\x2e\x01\x00\x02" + bytes(44),
    "empty-records": b"\x16\x03\x01\x00\x00" * 1000, "proxy": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "byte": b"\x16", "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HELLOS)
async def test_what_is_no_handshake_costs_the_connection(name, authority, tls_router, replica):
    client = await wirekit.Client.connect(tls_router.tls_port)
    await client.send(HELLOS[name])
    await client.ending(4)
    assert b"200" not in bytes(client.unread)
    client.close()
    assert not replica.seen


async def test_slow_handshakes_are_bounded(authority, tls_router, replica):
    # --head-timeout-s 1: 200 that hold a half hello are gone by then, and others are served meanwhile.
    slow = [await wirekit.Client.connect(tls_router.tls_port) for _ in range(200)]
    for client in slow:
        await client.send(HELLOS["hello-cut"])

    def talk():
        began = time.monotonic()
        client = Tls(tls_router.tls_port, context(authority, "h2"))
        try:
            return client.talk(H2_GET, served_h2), time.monotonic() - began
        finally:
            client.close()

    got, took = await asyncio.to_thread(talk)
    assert served_h2(got) and took < 2
    for client in slow:
        await client.ending(4)
        client.close()


async def test_a_flood_of_handshakes(authority, tls_router, replica):
    before = tls_router.memory_bytes()

    def shake():
        with contextlib.suppress(OSError):
            Tls(tls_router.tls_port, context(authority, "h2")).close()

    await asyncio.gather(*(asyncio.to_thread(shake) for _ in range(200)))
    client = await H2Client.connect(tls_router.port)
    assert (await client.get(b"/t")).status == 200
    client.close()
    assert tls_router.memory_bytes() - before < 40 << 20


async def test_an_end_without_close_notify(authority, tls_router, replica):
    # A truncation attack: an upload that TLS did not end is not whole.
    def talk():
        client = Tls(tls_router.tls_port, context(authority, "http/1.1"))
        client.sock.sendall(b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        raw = socket.socket(fileno=client.sock.detach())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        raw.close()

    await asyncio.to_thread(talk)
    await until(lambda: replica.seen and replica.seen[0][0].ended, "the replica sees the end")
    assert not replica.requests[0].complete


# --- PROXY protocol, hostile (haproxy doc/proxy-protocol.txt §2) ---------------------------------------------------------

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command=1, family=0x11, body=b"\1\2\3\4\5\6\7\x08\0\1\0\2", version=2, length=None):
    return SIGNATURE + bytes([version << 4 | command, family]) + struct.pack(">H", len(body) if length is None else length) + body


GOOD = {
    "v1": b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n", "v1-6": b"PROXY TCP6 ::1 ::2 1000 80\r\n", "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v1-unknown-text": b"PROXY UNKNOWN ffff:f...f 1 2\r\n", "v2": v2(), "v2-6": v2(family=0x21, body=bytes(32) + b"\0\1\0\2"), "v2-local": v2(0, 0, b""),
    "v2-local-body": v2(0, 0x11), "v2-unspec": v2(family=0, body=b""), "v2-tlv": v2(body=b"\1\2\3\4\5\6\7\x08\0\1\0\2" + b"\x04\0\3abc"),
}  # fmt: skip
BAD = {
    "none-h1": b"", "v1-lower": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "v1-lf": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "v1-two-spaces": b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1-port": b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 2\r\n", "v1-port-sign": b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", "v1-address": b"PROXY TCP4 1.2.3.400 5.6.7.8 1 2\r\n",
    "v1-family": b"PROXY TCP4 ::1 ::2 1 2\r\n", "v1-short": b"PROXY TCP4 1.2.3.4\r\n", "v1-more": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", "v1-udp": b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "v1-long": b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n", "v1-nul": b"PROXY TCP4 1.2.3.4\0 5.6.7.8 1 2\r\n", "v1-injection": b"PROXY TCP4 1.2.3.4\nx 5.6.7.8 1 2\r\n",
    "v2-version-1": v2(version=1), "v2-version-3": v2(version=3), "v2-command-2": v2(2), "v2-command-15": v2(15), "v2-short": v2(body=b"\1\2\3\4"),
    "v2-6-short": v2(family=0x21), "v2-huge": v2(length=65_535) + bytes(65_523), "v2-signature": b"\r\n\r\n\0\r\nQUIX\n" + v2()[12:],
    "v2-tlv-cut": v2(body=b"\1\2\3\4\5\6\7\x08\0\1\0\2" + b"\x04\0\xffabc"), "v2-crc": v2(body=b"\1\2\3\4\5\6\7\x08\0\1\0\2" + b"\x03\0\4\0\0\0\0"),
}  # fmt: skip


@pytest.fixture
def proxied(replica_server, start_router):
    router = start_router([f"http://127.0.0.1:{replica_server.port}"], ("--proxy-protocol", "--head-timeout-s", "1"))
    yield router
    router.check()


@pytest.mark.parametrize("kind", ["h1", "h2"])
@pytest.mark.parametrize("mode", ["whole", "bytes"])
@pytest.mark.parametrize("name", GOOD)
async def test_good_proxy_headers(name, mode, kind, proxied, replica):
    if kind == "h1":
        client = await wirekit.Client.connect(proxied.port)
        await client.send(GOOD[name] + b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n", mode)
        assert (await client.response()).status == 200
    else:
        client = await H2Client.connect(proxied.port, bare=True)
        client.raw_settings = True
        stream = client.stream(1)
        await client.send(GOOD[name] + PREFACE + settings() + headers(1, head()), mode)
        assert (await stream.done()).status == 200, client.describe()
    client.close()
    if name == "v1":
        assert replica.requests[-1].get(b"x-forwarded-for") == b"1.2.3.4"


@pytest.mark.parametrize("mode", ["whole", "bytes"])
@pytest.mark.parametrize("name", BAD)
async def test_hostile_proxy_headers(name, mode, proxied, replica):
    if mode == "bytes" and len(BAD[name]) > 500:
        pytest.skip("as long as an upload")
    client = await wirekit.Client.connect(proxied.port)
    await client.send(BAD[name] + b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n", mode)
    await client.ending(4)
    assert not client.unread, "nothing is said to who did not say who he is"
    client.close()
    assert not replica.seen
