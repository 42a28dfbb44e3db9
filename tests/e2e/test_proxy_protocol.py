"""PROXY headers before plain HTTP, TLS and on a Unix socket; who may send one; what becomes of everything else."""

import asyncio
import ssl
import struct
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import pytest_asyncio
from certkit import Authority

pytestmark = pytest.mark.asyncio(loop_scope="session")

V1 = b"PROXY TCP4 198.51.100.7 127.0.0.1 5000 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", 12 + 6) + bytes((198, 51, 100, 8, 127, 0, 0, 1, 0, 1, 0, 80)) + b"\x04\0\x03abc"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"


BODY = b'{"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":1}'


def chat(request_id):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: {request_id}\r\nconnection: close\r\n"
    return head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost").write(folder, "local")
    router = await keep_router(
        "--proxy-protocol", "--head-timeout-s", 0.5, "--listen", f"unix:{folder}/socket", "--listen-tls", "127.0.0.1:0",
        "--tls-cert", folder / "local.pem", "--tls-key", folder / "local.key", replicas=[engine.url],
    )  # fmt: skip
    router.files = folder
    return router


async def open_plain(router):
    return await asyncio.open_connection("127.0.0.1", router.port)


async def whole(reader, writer):
    """The answer up to the end; a reset is an end as well."""
    data = b""
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65_536):
                data += piece
    except ConnectionResetError:
        data += b"<reset>"
    writer.close()
    return data


@asynccontextmanager
async def h2_connection(streams, before=b""):
    """`await ask(request_id)` sends a chat on a connection of HTTP/2 that begins with `before`; the status."""
    reader, writer = streams
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    writer.write(before)

    async def ask(request_id):
        stream = connection.get_next_available_stream_id()
        head = {":method": "POST", ":scheme": "https", ":authority": "a", ":path": "/v1/chat/completions"}
        fields = {"content-type": "application/json", "x-request-id": request_id}
        connection.send_headers(stream, [*head.items(), *fields.items()])
        connection.send_data(stream, BODY, end_stream=True)
        status = ""
        async with asyncio.timeout(10):
            while True:
                writer.write(connection.data_to_send())
                for event in connection.receive_data(await reader.read(65_536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[":status"]
                    elif isinstance(event, h2.events.StreamEnded):
                        return status

    yield ask
    writer.close()


async def metric(router, name):
    text = (await router.ask("/metrics")).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("header", "address"), [(V1, "198.51.100.7"), (V2, "198.51.100.8"), (LOCAL, "127.0.0.1"), (b"PROXY UNKNOWN\r\n", "127.0.0.1")], ids=["v1", "v2", "local", "unknown"]
)
@pytest.mark.parametrize("pieces", ["whole", "header first", "bytes"])
async def test_the_client_is_who_the_header_says(router, engine, journal_of, header, address, pieces):
    request_id = f"proxy-{len(header)}-{pieces.replace(' ', '-')}"
    data = header + chat(request_id)
    cuts = {"whole": [data], "header first": [header, data[len(header) :]], "bytes": [data[i : i + 1] for i in range(len(data))]}
    reader, writer = await open_plain(router)
    for piece in cuts[pieces]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await whole(reader, writer)).startswith(b"HTTP/1.1 200 ")
    assert (await router.record(request_id))["client"] == address
    assert (await journal_of(engine, request_id))["headers"]["x-forwarded-for"] == address


async def test_it_stands_before_tls(router):
    context = ssl.create_default_context(cafile=router.files / "ca.pem")
    port = httpx.URL(next(url for url in router.listen if url.startswith("https"))).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(V2)
    await writer.start_tls(context, server_hostname="localhost")
    writer.write(chat("proxy-tls"))
    assert (await whole(reader, writer)).startswith(b"HTTP/1.1 200 ")
    assert (await router.record("proxy-tls"))["client"] == "198.51.100.8"


async def test_it_stands_before_http2(router):
    async with h2_connection(await open_plain(router), V1) as ask:
        assert await ask("proxy-h2-1") == await ask("proxy-h2-2") == "200"
    for number in (1, 2):
        assert (await router.record(f"proxy-h2-{number}"))["client"] == "198.51.100.7"


async def test_it_stands_before_http2_over_tls(router):
    context = ssl.create_default_context(cafile=router.files / "ca.pem")
    context.set_alpn_protocols(["h2"])
    port = httpx.URL(next(url for url in router.listen if url.startswith("https"))).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(V2)
    await writer.start_tls(context, server_hostname="localhost")
    async with h2_connection((reader, writer)) as ask:
        assert await ask("proxy-h2-tls") == "200"
    assert (await router.record("proxy-h2-tls"))["client"] == "198.51.100.8"


async def test_a_unix_sockets_peer_may_send_one(router):
    reader, writer = await asyncio.open_unix_connection(str(router.files / "socket"))
    writer.write(V1 + chat("proxy-unix"))
    assert (await whole(reader, writer)).startswith(b"HTTP/1.1 200 ")
    assert (await router.record("proxy-unix"))["client"] == "198.51.100.7"


@pytest.mark.parametrize(
    "data",
    [chat("none"), V1.replace(b"TCP4", b"TCP5"), V1.replace(b"\r\n", b"\n"), b"PROXY " + b"x" * 200, V2[:13] + b"\xff" + V2[14:],
     V2[:14] + b"\xff\xff" + V2[16:], b"\x16\x03\x01\x02\0", b"PROXY TCP4 198", V2[:20]],
)  # fmt: skip
async def test_without_a_valid_header_the_connection_is_closed_and_counted(router, data):
    before = await metric(router, "router_proxy_headers_refused_total")
    reader, writer = await open_plain(router)
    writer.write(data)
    assert await whole(reader, writer) in (b"", b"<reset>")
    assert await metric(router, "router_proxy_headers_refused_total") == before + 1


async def test_a_probe_that_only_connects_is_no_failure(router):
    before = await metric(router, "router_proxy_headers_refused_total")
    _, writer = await open_plain(router)
    writer.close()
    reader, writer = await open_plain(router)
    writer.write(V1 + chat("proxy-after"))
    assert (await whole(reader, writer)).startswith(b"HTTP/1.1 200 ")
    assert await metric(router, "router_proxy_headers_refused_total") == before


async def test_bytes_that_trickle_cost_no_processor_time(router):
    """What has come of a header is taken from the socket: nothing wakes the worker until more comes."""
    import psutil

    worker = psutil.Process(await router.worker_pid())
    opened = [await open_plain(router) for _ in range(20)]
    before = sum(worker.cpu_times()[:2])
    for _, writer in opened:
        writer.write(b"PROXY TCP4 198.51.")
    for reader, writer in opened:
        assert await whole(reader, writer) in (b"", b"<reset>")
    assert sum(worker.cpu_times()[:2]) - before < 0.25, "half a second of waiting"


async def test_only_named_peers_may_send_one(start_router, engine):
    other = await start_router("--proxy-protocol", "--proxy-protocol-from", "192.0.2.0/24", replicas=[engine.url])
    reader, writer = await open_plain(other)
    writer.write(V1 + chat("x"))
    assert await whole(reader, writer) in (b"", b"<reset>")
    assert await metric(other, "router_proxy_headers_refused_total") == 1


async def test_a_drain_cuts_those_that_are_not_ready(start_router, engine):
    import signal

    other = await start_router("--proxy-protocol", "--drain-settle-s", 0, replicas=[engine.url])
    reader, writer = await open_plain(other)
    writer.write(b"PROXY ")
    await asyncio.sleep(0.05)
    other.send_signal(signal.SIGTERM)
    assert await whole(reader, writer) in (b"", b"<reset>")
    assert await other.wait() == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--proxy-protocol-from", "10.0.0.0/8"], "--proxy-protocol-from: is for --proxy-protocol"),
        (["--proxy-protocol", "--proxy-protocol-from", "10.0.0.1/8"], "--proxy-protocol-from: 10.0.0.1/8 has host bits set"),
        (["--proxy-protocol", "--proxy-protocol-from", "lan"], "--proxy-protocol-from: 'lan'"),
    ],
)
async def test_flags(run_router, flags, complaint):
    done = await run_router("serve", "--check", "--replica", "http://127.0.0.1:1", *flags)
    assert done.returncode == 2
    assert complaint in done.stderr
