"""TLS to replicas: who is trusted, who is told apart, what is shown, and answers to slow clients."""

import asyncio
import os
import ssl

import httpx
import pytest
from certkit import Authority

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def files(tmp_path, authority):
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    authority.sign("127.0.0.1").write(tmp_path, "replica")
    authority.sign("named.test").write(tmp_path, "named")
    authority.client().write(tmp_path, "client")
    return tmp_path


def serving(files, stem="replica", *, ask=False, alpn=("http/1.1",)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / f"{stem}.pem", files / f"{stem}.key")
    context.set_alpn_protocols(list(alpn))
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files / "ca.pem")
    return context


def answering(body=b"ok", seen=None):
    async def serve(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if seen is not None:
                seen.append((head, writer.get_extra_info("ssl_object")))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    return serve


@pytest.fixture
def start_replica(start_server):
    async def start(serve, context):
        return (await start_server(serve, ssl=context)).replace("http://", "https://")

    return start


async def test_a_replica_is_verified_and_its_connections_are_kept(start_router, start_replica, files, client, until):
    seen = []
    url = await start_replica(answering(seen=seen), serving(files, alpn=("h2", "http/1.1")[1:]))
    router = await start_router("--upstream-ca", files / "ca.pem", "--health", "http", replicas=[url])

    async def is_healthy():
        return all(row["is_healthy"] and row["health_reason"] == "ok" for row in await router.rows())

    await until(is_healthy)
    for _ in range(3):
        answer = await client.get(router.url + "/x")
        assert (answer.status_code, answer.content) == (200, b"ok")
    assert 'desc="reused"' in answer.headers["server-timing"]
    requests = [tls for head, tls in seen if head.startswith(b"GET /x ")]
    assert len({id(tls) for tls in requests}) == 1
    assert requests[0].version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("flags", "stem"),
    [([], "replica"), (["--upstream-ca", "CA"], "named"), (["--upstream-ca", "CA", "--upstream-server-name", "x.test"], "replica")],
    ids=["an unknown authority", "another name", "not the name asked for"],
)
async def test_one_that_cannot_be_verified_is_never_spoken_to(start_router, start_replica, files, client, flags, stem):
    seen = []
    url = await start_replica(answering(seen=seen), serving(files, stem))
    flags = [files / "ca.pem" if flag == "CA" else flag for flag in flags]
    router = await start_router("--health", "none", *flags, replicas=[url])
    answer = await client.post(router.url + "/", content=b"secret")
    assert answer.status_code == 503
    assert answer.headers["x-router-error"] == "connect_failed"
    assert answer.headers["x-router-upstream-reached"] == "no"
    assert not seen


@pytest.mark.parametrize("flags", [["--upstream-ca", "CA", "--upstream-server-name", "named.test"], ["--upstream-insecure"]])
async def test_another_name_or_none_checked(start_router, start_replica, files, client, flags):
    url = await start_replica(answering(), serving(files, "named"))
    flags = [files / "ca.pem" if flag == "CA" else flag for flag in flags]
    router = await start_router("--health", "none", *flags, replicas=[url])
    assert (await client.get(router.url + "/")).status_code == 200
    assert ("not verified" in router.stderr()) is (flags[-1] == "--upstream-insecure")


async def test_a_replica_that_asks_is_shown_our_certificate(start_router, start_replica, files, client):
    seen = []
    url = await start_replica(answering(seen=seen), serving(files, ask=True))
    shown = ["--upstream-cert", files / "client.pem", "--upstream-key", files / "client.key"]
    router = await start_router("--health", "none", "--upstream-ca", files / "ca.pem", *shown, replicas=[url])
    assert (await client.get(router.url + "/")).status_code == 200
    assert dict(field[0] for field in seen[0][1].getpeercert()["subject"]) == {"commonName": "operator"}
    without = await start_router("--health", "none", "--upstream-ca", files / "ca.pem", replicas=[url])
    assert (await client.get(without.url + "/")).status_code in (502, 503)


async def test_the_file_says_it_per_endpoint_and_rotated_authorities_hold(start_router, start_replica, files, client):
    async def once(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()

    url = await start_replica(once, serving(files))
    router = await start_router(toml=(
        f'[[endpoint]]\nname = "e"\ntls = {{ ca = "{files}/ca.pem" }}\nhealth = {{ kind = "none" }}\n'
        f'[[endpoint.replica]]\naddress = "{url}"\n'
    ))  # fmt: skip
    assert (await client.get(router.url + "/")).status_code == 200
    (files / "new").write_bytes(Authority("other").cert)
    os.replace(files / "new", files / "ca.pem")
    assert (await client.get(router.url + "/")).status_code == 503


async def test_a_slow_client_gets_all_of_an_answer_whose_replica_has_gone(start_router, start_replica, files):
    body = os.urandom(6 << 20)
    sent = asyncio.Event()

    async def once(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        sent.set()

    url = await start_replica(once, serving(files))
    router = await start_router("--health", "none", "--upstream-ca", files / "ca.pem", replicas=[url])
    async with (
        httpx.AsyncClient(timeout=30, trust_env=False) as slow,
        slow.stream("GET", router.url + "/") as answer,
    ):
        got = b""
        async for piece in answer.aiter_bytes(65_536):
            got += piece
            await asyncio.sleep(0.002)
    assert got == body
    assert sent.is_set()
    await router.settled()


async def test_a_client_that_leaves_is_told_to_the_replica(start_router, start_replica, files):
    gone = asyncio.Event()

    async def endless(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        try:
            assert not await reader.read()
        except (ConnectionError, ssl.SSLError):
            pass
        gone.set()

    url = await start_replica(endless, serving(files))
    router = await start_router("--health", "none", "--upstream-ca", files / "ca.pem", replicas=[url])
    async with (
        httpx.AsyncClient(timeout=30, trust_env=False) as client,
        client.stream("GET", router.url + "/") as answer,
    ):
        await anext(answer.aiter_bytes())
    async with asyncio.timeout(5):
        await gone.wait()
    await router.settled()
