"""httpx and curl: bodies both ways, HEAD, keep-alive, expectations, HTTP/1.0, trailers."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from hashlib import sha256

import httpx
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

BIG = 32 << 20
PATTERN = bytes(range(256)) * 256


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["direct", "over-http2"])
async def router(request, keep_router, engine):
    """In front of the engine; or of another router that is spoken to over HTTP/2, so that both sides convert."""
    if request.param == "direct":
        return await keep_router(replicas=[engine.url])
    behind = await keep_router(replicas=[engine.url])
    return await keep_router(replicas=[f"h2c://127.0.0.1:{behind.port}"])


@pytest_asyncio.fixture(loop_scope="session")
async def http(router):
    async with httpx.AsyncClient(base_url=router.url, trust_env=False, timeout=30) as http:
        yield http


@pytest.fixture
def curl(router, tmp_path):
    """`await curl(*arguments, url=path, stdin=bytes)`: status, HTTP version, heads, body, seconds."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")

    async def run(*arguments, path, base=router.url, stdin=b""):
        heads = tmp_path / "heads"
        what = '%{stderr}{"status":%{http_code},"version":"%{http_version}","seconds":%{time_total},"connects":%{num_connects}}\\n'
        done = await asyncio.to_thread(
            subprocess.run,
            [program, "-q", "-sS", "--noproxy", "*", "-D", heads, "-w", what, *arguments, base + path],
            input=stdin, capture_output=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stderr.splitlines()[-1]), heads.read_text(), done.stdout

    return run


def sha_of(size):
    digest = sha256()
    for _ in range(size // len(PATTERN)):
        digest.update(PATTERN)
    return digest.hexdigest()


async def test_connections_are_kept(http):
    addresses = set()
    for _ in range(5):
        response = await http.get("/_sim/echo")
        assert response.status_code == 200 and response.http_version == "HTTP/1.1"
        addresses.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(addresses) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
async def test_methods_and_fields_arrive_as_sent(http, method, router):
    body = b"" if method in ("GET", "OPTIONS") else b"x" * 1000
    response = await http.request(
        method, "/_sim/echo/a%2Fb?q=%20x&q=2", content=body, headers={"X-Mixed-Case": "Some Value"}
    )
    seen = response.json()
    assert (seen["method"], seen["path"]) == (method, "/_sim/echo/a%2Fb?q=%20x&q=2")
    assert (seen["length"], seen["sha256"]) == (len(body), sha256(body).hexdigest())
    fields = {name.lower(): value for name, value in seen["headers"]}
    assert fields["x-mixed-case"] == "Some Value"
    assert set(fields["x-forwarded-for"].split(", ")) == {"127.0.0.1"} and fields["x-forwarded-proto"] == "http"
    assert fields["x-request-id"] == response.headers["x-request-id"]
    (replica,) = await router.rows()
    assert response.headers["x-router-replica"] == replica["id"]
    assert "router;dur=" in response.headers["server-timing"]


async def test_head_has_the_fields_and_no_body(http):
    get = await http.get("/_sim/bytes?n=1000&length=1")
    head = await http.head("/_sim/bytes?n=1000&length=1")
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"] == "1000"
    assert (await http.get("/_sim/bytes?n=3")).content == b"\0\1\2"  # the connection is in step


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_upload(http, router, framing):
    async def pieces():
        for _ in range(BIG // len(PATTERN)):
            yield PATTERN

    headers = {"content-length": str(BIG)} if framing == "length" else {}
    response = await http.post("/_sim/sink", content=pieces(), headers=headers)
    assert response.json() == {"length": BIG, "sha256": sha_of(BIG)}
    assert (await router.record(response.headers["x-request-id"]))["bytes_received"] == BIG


@pytest.mark.parametrize("length", [0, 1])
async def test_a_large_download(http, router, length):
    digest = sha256()
    async with http.stream("GET", f"/_sim/bytes?n={BIG}&length={length}") as response:
        assert ("content-length" in response.headers) == bool(length)
        async for piece in response.aiter_raw():
            digest.update(piece)
    assert digest.hexdigest() == sha_of(BIG)
    assert (await router.record(response.headers["x-request-id"]))["bytes_sent"] == BIG


async def test_many_at_once(http, router):
    async def call(i):
        response = await http.post("/_sim/echo", content=b"%d" % i, headers={"x-i": str(i)})
        return dict((k.lower(), v) for k, v in response.json()["headers"])["x-i"] == str(i)

    assert all(await asyncio.gather(*(call(i) for i in range(200))))
    await router.settled()


# -- curl ----------------------------------------------------------------------------------------------


async def test_curl_waits_for_100(curl, tmp_path):
    """With a limit of 20 s on the wait, only a 100 that passed makes this quick."""
    file = tmp_path / "body"
    file.write_bytes(PATTERN * 64)
    told, heads, body = await curl(
        "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file, path="/_sim/sink"
    )
    assert told["status"] == 200 and told["seconds"] < 10
    assert heads.startswith("HTTP/1.1 100")
    assert json.loads(body)["length"] == 64 * len(PATTERN)


async def test_curl_uploads_in_chunks(curl):
    told, _, body = await curl(
        "-X", "POST", "-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-T", "-", path="/_sim/echo",
        stdin=PATTERN * 16,
    )  # fmt: skip
    seen = json.loads(body)
    assert told["status"] == 200
    assert seen["sha256"] == sha256(PATTERN * 16).hexdigest()
    fields = {name.lower(): value.lower() for name, value in seen["headers"]}
    assert fields["transfer-encoding"] == "chunked" and "content-length" not in fields


async def test_curl_speaks_http_1_0(curl):
    told, heads, body = await curl("-0", path="/_sim/bytes?n=70000")
    assert told["status"] == 200 and len(body) == 70_000
    assert "transfer-encoding" not in heads.lower()
    told, _, body = await curl("-0", "--data-binary", "hello", path="/_sim/echo")
    assert told["status"] == 200 and json.loads(body)["length"] == 5


async def test_curl_reuses_its_connection(curl, router):
    told, _, body = await curl(router.url + "/_sim/bytes?n=1", path="/_sim/bytes?n=1")
    assert told["status"] == 200 and body[-1:] == b"\0"
    assert told["connects"] == 0  # of the second transfer


async def test_curl_gets_trailers(curl, start_server, start_router):
    async def serve(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
                b"5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n"
            )

    router = await start_router("--health", "none", replicas=[await start_server(serve)])
    told, heads, body = await curl("-H", "TE: trailers", path="/", base=router.url)
    assert (told["status"], body) == (200, b"hello")
    assert heads.rstrip().lower().endswith("x-sum: 42")
    told, heads, body = await curl(path="/", base=router.url)  # did not say that it takes them
    assert (told["status"], body) == (200, b"hello")
    assert "x-sum: 42" not in heads.lower()


async def test_curl_streams_events(curl):
    call = json.dumps(
        {"model": "sim", "stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    )
    told, heads, body = await curl(
        "-N", "-H", "Content-Type: application/json", "-d", call, path="/v1/chat/completions"
    )
    assert told["status"] == 200 and "text/event-stream" in heads
    assert body.endswith(b"data: [DONE]\n\n")
