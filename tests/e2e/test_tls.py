"""TLS to clients: real clients over it, who is shown which certificate, who is not served, and rotation."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
import websockets
from certkit import Authority

sys.path.insert(0, str(Path(__file__).parent))

from grpckit import Stubs  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def files(tmp_path_factory, authority):
    """ca.pem; local.pem for localhost; other.pem for other.test and *.wild.test."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", "127.0.0.1").write(folder, "local")
    authority.sign("other.test", "*.wild.test").write(folder, "other")
    authority.client().write(folder, "client")
    Authority("nobody").client("stranger").write(folder, "stranger")
    return folder


def tls_flags(folder, *stems):
    flags = ["--listen-tls", "127.0.0.1:0"]
    for stem in stems or ("local",):
        flags += ["--tls-cert", folder / f"{stem}.pem", "--tls-key", folder / f"{stem}.key"]
    return flags


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine, files):
    return await keep_router(*tls_flags(files, "local", "other"), replicas=[engine.url])


def https_of(router):
    return next(url for url in router.listen if url.startswith("https://"))


def trusting(files, *, alpn=("http/1.1",), cert="", version=None):
    context = ssl.create_default_context(cafile=files / "ca.pem")
    context.set_alpn_protocols(list(alpn))
    if cert:
        context.load_cert_chain(files / f"{cert}.pem", files / f"{cert}.key")
    if version:
        context.minimum_version = context.maximum_version = version
    return context


def connect(router, context, name="localhost"):
    """Shake hands over a blocking socket."""
    port = httpx.URL(https_of(router)).port
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=name)


async def metric(router, name):
    text = (await router.ask("/metrics")).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


async def run(*command, stdin=b""):
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate(stdin)
    return process.returncode, out.decode(), err.decode()


# -- clients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [["--tls-max", "1.2"], ["--tlsv1.3"]])
async def test_curl(router, files, version):
    url = https_of(router).replace("127.0.0.1", "localhost")
    code, out, err = await run(
        "curl", "-sv", "--http1.1", *version, "--cacert", files / "ca.pem", "--max-time", "10",
        url + "/v1/chat/completions", "-d", json.dumps(CHAT), "-H", "content-type: application/json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["choices"]
    assert version[-1][-3:] in err  # TLSv1.2, TLSv1.3


async def test_the_replica_is_told_https(router, files, engine, journal_of):
    async with httpx.AsyncClient(verify=trusting(files), trust_env=False) as client:
        answer = await client.post(
            https_of(router) + "/v1/chat/completions", json=CHAT,
            headers={"x-request-id": "tls-proto", "x-forwarded-proto": "http"},
        )  # fmt: skip
    assert answer.status_code == 200
    seen = (await journal_of(engine, "tls-proto"))["headers"]
    assert seen["x-forwarded-proto"] == "https"
    assert seen["x-forwarded-for"] == "127.0.0.1"


async def test_events_stream(router, files):
    async with (
        httpx.AsyncClient(verify=trusting(files), trust_env=False) as client,
        client.stream("POST", https_of(router) + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_a_large_body_both_ways(router, files, start_server, start_router):
    async def echo(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % size + body)
        await writer.drain()

    other = await start_router(*tls_flags(files), "--health", "none", replicas=[await start_server(echo, limit=1 << 24)])
    body = os.urandom(8 << 20)
    async with httpx.AsyncClient(verify=trusting(files), trust_env=False, timeout=30) as client:
        answer = await client.post(https_of(other) + "/", content=body)
    assert answer.content == body


async def test_a_websocket_is_closed_cleanly_by_either_side(start_router, start_policy, files):
    policy = await start_policy()
    other = await start_router(*tls_flags(files), replicas=[policy.url])
    url = https_of(other).replace("https", "wss")
    context = trusting(files)
    async with asyncio.timeout(15):
        began = asyncio.get_running_loop().time()
        async with websockets.connect(url, ssl=context, proxy=None, close_timeout=8) as client:
            assert await client.recv()
        assert client.close_code == 1000
        assert asyncio.get_running_loop().time() - began < 4, "it did not wait for its close timeout"
    (record,) = [r for r in await poll_records(other) if r["status"] == 101]
    assert record["code"] == "", "the end of a tunnel is no failure"
    await other.settled()


async def poll_records(router):
    async with asyncio.timeout(5):
        while not router.records():
            await asyncio.sleep(0.01)
    return router.records()


async def test_a_replica_that_ends_its_tunnel_ends_the_clients(start_router, start_server, files):
    """The client waits for the server to close (RFC 6455 §7.1.1), and half of a TLS connection cannot be."""

    async def serve(reader, writer):
        async def handler(connection):
            await connection.recv()
            await connection.close(1001, "bye")

        await websockets_over(reader, writer, handler)

    other = await start_router(*tls_flags(files), "--health", "none", replicas=[await start_server(serve)])
    url = https_of(other).replace("https", "wss")
    async with asyncio.timeout(10), websockets.connect(url, ssl=trusting(files), proxy=None) as client:
        await client.send("go")
        with pytest.raises(websockets.ConnectionClosed) as ended:
            await client.recv()
        assert ended.value.rcvd.code == 1001
        await client.wait_closed()


async def websockets_over(reader, writer, handler):
    """Serve one WebSocket with the sans-I/O server protocol of `websockets`."""
    from websockets.frames import Opcode
    from websockets.server import ServerProtocol

    protocol = ServerProtocol()

    class Connection:
        async def recv(self):
            while True:
                for event in protocol.events_received():
                    if getattr(event, "opcode", None) in (Opcode.TEXT, Opcode.BINARY):
                        return event.data
                await pump()

        async def close(self, code, reason):
            protocol.send_close(code, reason)
            flush()

    def flush():
        for data in protocol.data_to_send():
            if data:
                writer.write(data)

    async def pump():
        data = await reader.read(65_536)
        if not data:
            raise ConnectionResetError
        protocol.receive_data(data)
        flush()

    while not (requests := protocol.events_received()):
        await pump()
    protocol.send_response(protocol.accept(requests[0]))
    flush()
    await handler(Connection())
    await writer.drain()


async def test_an_early_answer_reaches_a_client_that_still_uploads(start_router, engine, files):
    """The connection lingers over TLS too: a reset would destroy the answer on its way."""
    other = await start_router(*tls_flags(files), "--max-body-bytes", 1000, replicas=[engine.url])

    def upload():
        with connect(other, trusting(files)) as sock:
            chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
            # Together: to the head alone the replica might answer first, that it has no such path.
            sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + chunk)
            with_answer = b""
            try:
                for _ in range(50):
                    sock.sendall(chunk)
            except OSError:
                pass
            while b"}}" not in with_answer and (data := sock.recv(65_536)):
                with_answer += data
            return with_answer

    assert (await asyncio.to_thread(upload)).startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_leaves_ends_the_generation(router, files, engine, journal_of):
    def leave():
        with connect(router, trusting(files)) as sock:
            body = json.dumps({**CHAT, "max_tokens": 2000, "stream": True, "ignore_eos": True}).encode()
            sock.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: tls-gone\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            assert sock.recv(1000)

    await asyncio.to_thread(leave)
    record = await router.record("tls-gone")
    assert record["code"] == "client_gone"
    await router.settled()


async def test_close_notify_ends_the_connection_at_once(router, files):
    """What is left idle by a pool that never reads is not waited for."""

    def half_close():
        sock = connect(router, trusting(files))
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65_536):
            data += piece
        sock.unwrap()
        sock.close()
        return data

    assert (await asyncio.to_thread(half_close)).startswith(b"HTTP/1.1 200 ")


async def test_a_drain_does_not_wait_for_idle_clients_that_read_nothing(start_router, engine, files):
    other = await start_router(
        *tls_flags(files), "--drain-settle-s", 0, "--drain-deadline-s", 20, replicas=[engine.url]
    )
    sock = await asyncio.to_thread(connect, other, trusting(files))
    began = asyncio.get_running_loop().time()
    other.send_signal(signal.SIGTERM)
    assert await other.wait(10) == 0
    assert asyncio.get_running_loop().time() - began < 8
    sock.close()


# -- the handshake --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subject"),
    [("localhost", "localhost"), ("other.test", "other.test"), ("OTHER.test", "other.test"),
     ("a.wild.test", "other.test"), ("b.a.wild.test", "localhost"), ("unknown.test", "localhost"), (None, "localhost")],
)  # fmt: skip
async def test_the_name_asked_for_decides_on_the_certificate(router, files, name, subject):
    context = trusting(files)
    context.check_hostname = False
    with await asyncio.to_thread(connect, router, context, name) as sock:
        assert dict(field[0] for field in sock.getpeercert()["subject"]) == {"commonName": subject}


async def test_alpn(router, files):
    for offered, taken in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), (("h2",), "h2"), (("x",), None)):
        with await asyncio.to_thread(connect, router, trusting(files, alpn=offered)) as sock:
            assert sock.selected_alpn_protocol() == taken
            if taken is None:  # no overlap cannot be refused with Python's ssl: such a client is served HTTP/1.1
                sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                assert (await asyncio.to_thread(sock.recv, 100)).startswith(b"HTTP/1.1 200 ")


async def test_old_versions_and_ciphers_are_refused(router, files):
    before = await metric(router, "router_tls_handshake_failures_total")
    port = httpx.URL(https_of(router)).port
    for options in (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES128-SHA"],
                    ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"]):  # fmt: skip
        code, out, _ = await run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options)
        assert code != 0 or "Cipher is (NONE)" in out, (options, out)
    assert await metric(router, "router_tls_handshake_failures_total") == before + 3
    code, out, _ = await run(
        "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"
    )
    assert code == 0 and "Compression: NONE" in out


async def test_the_oldest_version_may_be_newer(start_router, engine, files):
    other = await start_router(*tls_flags(files), "--tls-min-version", "1.3", replicas=[engine.url])
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(connect, other, trusting(files, version=ssl.TLSVersion.TLSv1_2))
    with await asyncio.to_thread(connect, other, trusting(files)) as sock:
        assert sock.version() == "TLSv1.3"


async def test_hostile_beginnings_cost_the_connection_and_are_counted(start_router, engine, files):
    other = await start_router(
        *tls_flags(files, "local", "other"), "--head-timeout-s", 0.3, "--log-level", "INFO", replicas=[engine.url]
    )
    port = httpx.URL(https_of(other)).port
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"", b"\x16\x03\x01\xff\xff" + b"x" * 300, b"\0" * 100):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    assert await metric(other, "router_tls_handshake_failures_total") == 5
    code, _, _ = await run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", b"\xc3\xa9".decode())
    assert code != 0, "a name that is no text"
    with await asyncio.to_thread(connect, other, trusting(files)) as sock:
        assert sock.version()
    assert await metric(other, "router_tls_handshakes_total") == 1
    said = other.stderr()
    assert "andshake" not in said and "xception" not in said, said


# -- clients with certificates --------------------------------------------------------------------------


async def test_a_client_without_a_certificate_of_the_authority_is_not_served(start_router, engine, files):
    other = await start_router(*tls_flags(files), "--tls-client-ca", files / "ca.pem", replicas=[engine.url])

    async def ask(context):
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            return (await client.get(https_of(other) + "/v1/models")).status_code

    assert await ask(trusting(files, cert="client")) == 200
    for context in (trusting(files), trusting(files, cert="stranger"),
                    trusting(files, version=ssl.TLSVersion.TLSv1_2)):  # fmt: skip
        with pytest.raises(httpx.TransportError):
            await ask(context)
    assert await metric(other, "router_tls_handshake_failures_total") == 3


@pytest.mark.parametrize("shown", ["client", "stranger", ""])
async def test_grpcio_with_certificates_and_two_workers(start_router, start_grpc, files, shown):
    """All four kinds on connections of HTTP/2 over TLS to each worker; without a certificate of the authority, no call."""
    kit = await start_grpc()
    router = await start_router(
        *tls_flags(files), "--tls-client-ca", files / "ca.pem", "--health", "grpc", replicas=[kit.url], workers=2
    )
    pair = [(files / f"{shown}.{kind}").read_bytes() if shown else None for kind in ("key", "pem")]
    trusted = grpc.ssl_channel_credentials((files / "ca.pem").read_bytes(), *pair)
    target = f"localhost:{httpx.URL(https_of(router)).port}"
    served_by = set()
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    for _ in range(40):
        async with grpc.aio.secure_channel(target, trusted, options=options) as channel:
            stubs = Stubs(channel)
            if shown != "client":
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await stubs.unary(b"hello", timeout=10)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
                return
            call = stubs.unary(b"hello", timeout=10)
            assert await call == b"hello"
            served_by.add(dict(await call.initial_metadata())["x-request-id"].partition("-")[0])
            parts = [b"x" * 100_000, b"y"]
            assert [m async for m in stubs.bidi(iter(parts), timeout=10)] == parts
            assert json.loads(await stubs.client_stream(iter(parts), timeout=10))["bytes"] == 100_001
            assert len([m async for m in stubs.server_stream(b"n", timeout=10)]) == 3
        if len(served_by) == 2:
            return
    pytest.fail("one worker took every connection")


# -- rotation -------------------------------------------------------------------------------------------


def replace(folder, pair, stem="local"):
    """As certificate managers do: each file is renamed into its place."""
    pair.write(folder, "new")
    os.replace(folder / "new.key", folder / f"{stem}.key")
    os.replace(folder / "new.pem", folder / f"{stem}.pem")


async def serial(router, files):
    with await asyncio.to_thread(connect, router, trusting(files)) as sock:
        return sock.getpeercert()["serialNumber"]


@asynccontextmanager
async def held(router, files):
    """A connection that is there before and after."""
    sock = await asyncio.to_thread(connect, router, trusting(files))
    with sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await asyncio.to_thread(sock.recv, 65_536)).startswith(b"HTTP/1.1 200 ")
        yield sock
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await asyncio.to_thread(sock.recv, 65_536)).startswith(b"HTTP/1.1 200 "), "it lived on"


@pytest.fixture
def rotated(tmp_path, authority):
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost").write(tmp_path, "local")
    return tmp_path


@pytest.mark.parametrize("by_signal", [pytest.param(True, id="signal"), pytest.param(False, id="watch", marks=pytest.mark.slow)])
async def test_new_certificates_serve_new_connections(start_router, engine, rotated, authority, until, by_signal):
    other = await start_router(*tls_flags(rotated), replicas=[engine.url], workers=2)
    before = await serial(other, rotated)
    async with held(other, rotated):
        pair = authority.sign("localhost", ends=authority_days(5))
        replace(rotated, pair)
        if by_signal:
            other.send_signal(signal.SIGHUP)
        wanted = f"{pair.certificate.serial_number:X}"

        async def is_new():
            seen = {(await serial(other, rotated)).lstrip("0") for _ in range(8)}  # of both workers
            return seen == {wanted}

        await until(is_new)
    assert before.lstrip("0") != wanted
    assert await metric(other, "router_tls_certificate_expiry_timestamp_seconds") == pair.expires
    assert await metric(other, "router_last_reload_ok") == 1


def authority_days(days):
    import datetime as dt

    return dt.timedelta(days=days)


@pytest.mark.slow
async def test_bad_new_certificates_are_refused_and_the_old_go_on(start_router, engine, rotated, authority, until, gone):
    other = await start_router(*tls_flags(rotated), replicas=[engine.url])
    before = await serial(other, rotated)
    good = (rotated / "local.pem").read_bytes()
    (rotated / "local.pem").write_bytes(authority.sign("localhost", ends=-authority_days(0.5)).cert)

    async def refusal():
        last = (await other.ask("/config_dump")).json()["last_reload"]
        return not last["ok"] and last["error"]

    said = await until(refusal)
    assert said.startswith("--tls-key: ") and "local.key: does not belong to the certificate" in said
    assert await metric(other, "router_last_reload_ok") == 0
    assert await serial(other, rotated) == before
    pid = await other.worker_pid()
    os.kill(pid, signal.SIGKILL)  # the next worker serves what was checked, not what is in the files now

    async def replaced():
        workers = await other.workers()
        return workers[0]["state"] == "ready" and workers[0]["pid"] != pid

    await until(replaced)
    assert await serial(other, rotated) == before
    (rotated / "local.pem").write_bytes(good)

    async def is_good():
        return (await other.ask("/config_dump")).json()["last_reload"]["ok"]

    await until(is_good)


async def test_new_authorities_of_clients_hold_for_new_connections(start_router, engine, rotated, until):
    new = Authority("new")
    (rotated / "clients.pem").write_bytes(new.cert)
    new.client().write(rotated, "client")
    other = await start_router(
        *tls_flags(rotated), "--tls-client-ca", rotated / "clients.pem", replicas=[engine.url]
    )

    def status():
        try:
            with connect(other, trusting(rotated, cert="client")) as sock:
                sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                return sock.recv(100)[9:12]
        except OSError:
            return b"refused"

    assert await asyncio.to_thread(status) == b"200"
    (rotated / "clients.pem").write_bytes(Authority("newer").cert)
    other.send_signal(signal.SIGHUP)
    await until(lambda: status() in (b"refused", b""))


# -- at the start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"--tls-key": "other.key"}, "--tls-key: .*other.key: does not belong"),
        ({"--tls-cert": "expired.pem", "--tls-key": "expired.key"}, "--tls-cert: .*expired.pem: has expired"),
        ({"--tls-cert": "none.pem"}, "--tls-cert: .*none.pem: cannot be read"),
        ({"--tls-client-ca": "local.pem"}, "--tls-client-ca: .*local.pem: holds no certificate of an authority"),
        ({"--tls-key": ""}, "--tls-key: 0 keys for 1 of --tls-cert"),
        ({"--tls-cert": "", "--tls-key": ""}, "--tls-cert: --listen-tls needs a certificate"),
        ({"--listen-tls": ""}, "--tls-cert: is for --listen-tls"),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused_by_name(run_router, files, authority, change, complaint):
    import re

    authority.sign("x", ends=-authority_days(0.5)).write(files, "expired")
    flags = {"--listen-tls": "127.0.0.1:0", "--tls-cert": "local.pem", "--tls-key": "local.key"} | change
    command = ["serve", "--check", "--replica", "http://127.0.0.1:1"]
    for flag, value in flags.items():
        if value:
            command += [flag, files / value if "." in value and ":" not in value else value]
    done = await run_router(*command)
    assert done.returncode == 2
    assert re.search(complaint, done.stderr), done.stderr
