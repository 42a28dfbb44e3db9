"""`router edge`: the real Envoy in front of a running router, and clients that nobody here wrote in front of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from childkit import first_line
from websockets.asyncio.client import connect

from router.edge.envoy.run import EnvoyError, find_envoy

sys.path.insert(0, str(Path(__file__).parent))

from h3kit import get  # noqa: E402

try:
    find_envoy()
except EnvoyError:
    pytest.skip("envoy is not installed", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Edge:
    def __init__(self, process, ready):
        self.process = process
        self.listen = ready["listen"]

    @property
    def url(self):
        (url,) = [url for url in self.listen if url.startswith("http")]
        return url

    @property
    def port(self):
        return httpx.URL(self.url).port


@contextmanager
def running(tmp_path, *arguments):
    with (tmp_path / "edge-stderr").open("wb") as stderr:
        command = [sys.executable, "-m", "router", "edge", "--listen", "127.0.0.1:0", "--json", *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
    try:
        line = first_line(process)
        assert line, (tmp_path / "edge-stderr").read_text()
        yield Edge(process, json.loads(line))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certs")
    subprocess.run([sys.executable, "-m", "router", "certs", "dev", "--dir", folder], check=True, capture_output=True)
    return folder


def pair(files):
    return ("--tls-cert", files / "server.pem", "--tls-key", files / "server.key")


def trust(files):
    return ssl.create_default_context(cafile=str(files / "ca.pem"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine):
    return await keep_router("--trusted-hops", "1", replicas=[engine.url])


@pytest.fixture(scope="module")
def edge(router, files, tmp_path_factory):
    arguments = ("--router", f"127.0.0.1:{router.port}", "--router-admin", router.admin.partition("://")[2], *pair(files))
    with running(tmp_path_factory.mktemp("edge"), *arguments) as edge:
        yield edge


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_requests_over_tls(edge, router, files, version):
    async with httpx.AsyncClient(http2=version == "HTTP/2", verify=trust(files), trust_env=False) as http:
        response = await http.post(edge.url + "/_sim/echo/a%2Fb?q=1", content=b"x" * 100_000)
        assert (response.status_code, response.http_version) == (200, version)
        seen = response.json()
        fields = {name.lower(): value for name, value in seen["headers"]}
        assert (seen["path"], seen["length"]) == ("/_sim/echo/a%2Fb?q=1", 100_000)
        assert fields["x-forwarded-proto"] == "https"
        client = fields["x-forwarded-for"].split(", ")[0]  # Envoy puts the machine's address for a loopback one
        assert response.headers["x-router-replica"]
        record = await router.record(response.headers["x-request-id"])
        assert (record["protocol"], record["client"]) == ("HTTP/2", client)


async def test_a_stream_of_events_is_not_buffered(edge, files):
    call = {"model": "sim", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "x"}]}
    async with (
        httpx.AsyncClient(verify=trust(files), trust_env=False) as http,
        http.stream("POST", edge.url + "/v1/chat/completions", json=call) as response,
    ):
        pieces = [piece async for piece in response.aiter_raw()]
    assert len(pieces) > 4 and b"".join(pieces).endswith(b"data: [DONE]\n\n")


async def test_the_routers_errors_pass(edge, router, files):
    async with httpx.AsyncClient(verify=trust(files), trust_env=False) as http:
        response = await http.post(edge.url + "/x", headers={"x-request-timeout-ms": "nonsense"})
    assert (response.status_code, response.headers["x-router-error"]) == (400, "bad_request")


async def test_websocket(keep_router, policy, files, tmp_path):
    router = await keep_router("--trusted-hops", "1", replicas=[policy.url])
    with running(tmp_path, "--router", f"127.0.0.1:{router.port}", *pair(files)) as edge:
        uri = f"wss://localhost:{edge.port}/echo"
        async with connect(uri, ssl=trust(files), proxy=None, compression=None) as socket:
            for message in ("text", b"x" * 300_000):
                await socket.send(message)
                assert await socket.recv() == message
    await router.settled()


async def test_grpc(start_router, start_grpc, files, tmp_path):
    kit = await start_grpc()
    router = await start_router("--trusted-hops", "1", "--health", "grpc", replicas=[kit.url])
    with running(tmp_path, "--router", f"127.0.0.1:{router.port}", *pair(files)) as edge:
        trusted = grpc.ssl_channel_credentials((files / "ca.pem").read_bytes())
        options = (("grpc.enable_http_proxy", 0),)
        async with grpc.aio.secure_channel(f"localhost:{edge.port}", trusted, options=options) as channel:
            unary = channel.unary_unary("/kit.Kit/Unary")
            assert await unary(b"hello", timeout=10) == b"hello"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await unary(b"", metadata=(("kit-status", "5"), ("kit-message", "no such thing")), timeout=10)
            assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await unary(b"", metadata=(("kit-sleep-ms", "20000"),), timeout=0.3)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            messages = [m async for m in channel.unary_stream("/kit.Kit/ServerStream")(b"x", timeout=10)]
            assert len(messages) == 3


async def test_http3_is_offered_and_answered(router, files, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--listen", f"127.0.0.1:{port}", "--router", f"127.0.0.1:{router.port}", *pair(files))
    with running(tmp_path, *arguments) as edge:
        assert f"h3://127.0.0.1:{port}" in edge.listen
        async with httpx.AsyncClient(verify=trust(files), trust_env=False) as http:
            response = await http.get(f"https://localhost:{port}/_sim/bytes?n=1")
        assert response.headers["alt-svc"] == f'h3=":{port}"; ma=86400'
        status, body = await get("localhost", port, "/_sim/bytes?n=70000", files / "ca.pem")
        assert (status, len(body)) == (200, 70_000)


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_proxy_headers_to_the_router(start_router, engine, files, tmp_path, version):
    router = await start_router("--proxy-protocol", replicas=[engine.url])
    admin = router.admin.partition("://")[2]
    arguments = ("--router", f"127.0.0.1:{router.port}", "--router-admin", admin, "--send-proxy", version, *pair(files))
    with running(tmp_path, *arguments) as edge:
        transport = httpx.AsyncHTTPTransport(verify=trust(files), local_address="127.0.0.7")
        async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
            response = await http.get(edge.url.replace("127.0.0.1", "localhost") + "/_sim/echo")
        assert response.status_code == 200
        assert (await router.record(response.headers["x-request-id"]))["client"] == "127.0.0.7"


@pytest.mark.slow
async def test_a_router_that_drains_is_left_alone(start_router, engine, files, tmp_path, until):
    """Two routers; one is told to stop under load, and nobody notices."""
    routers = [await start_router("--trusted-hops", "1", "--drain-settle-s", "3", replicas=[engine.url]) for _ in range(2)]
    # One admin address serves for both, so each Envoy here stands in front of the one it asks.
    first, second = routers
    arguments = (
        "--router", f"127.0.0.1:{first.port}", "--router-admin", first.admin.partition("://")[2], *pair(files),
    )  # fmt: skip
    with running(tmp_path, *arguments) as edge:
        async with httpx.AsyncClient(verify=trust(files), trust_env=False) as http:
            assert (await http.get(edge.url + "/_sim/bytes?n=1")).status_code == 200
            first.send_signal(signal.SIGTERM)

            async def refused():
                return (await http.get(edge.url + "/_sim/bytes?n=1")).status_code == 503

            await until(refused)
    assert await first.wait(20) == 0
    assert second.process.poll() is None


async def test_certificates_rotate_without_dropping_a_connection(router, files, tmp_path, until):
    mine = tmp_path / "mine"
    shutil.copytree(files, mine)
    with running(tmp_path, "--router", f"127.0.0.1:{router.port}", *pair(mine)) as edge:

        def serial():
            with socket.create_connection(("127.0.0.1", edge.port), 10) as plain, trust(files).wrap_socket(
                plain, server_hostname="localhost"
            ) as sock:
                return sock.getpeercert()["serialNumber"]

        before = await asyncio.to_thread(serial)
        async with httpx.AsyncClient(verify=trust(files), trust_env=False) as http:
            assert (await http.get(edge.url + "/_sim/bytes?n=1")).status_code == 200
            command = [sys.executable, "-m", "router", "certs", "dev", "--dir", mine, "--force"]
            subprocess.run(command, check=True, capture_output=True)
            edge.process.send_signal(signal.SIGHUP)

            async def rotated():
                return await asyncio.to_thread(serial) != before

            await until(rotated)
            response = await http.get(edge.url + "/_sim/bytes?n=1")
            assert response.status_code == 200


async def test_a_drain_lets_a_stream_finish(router, files, tmp_path):
    with running(tmp_path, "--router", f"127.0.0.1:{router.port}", *pair(files)) as edge:
        call = {"model": "sim", "stream": True, "max_tokens": 100, "ignore_eos": True, "prompt": "x"}
        async with (
            httpx.AsyncClient(verify=trust(files), trust_env=False) as http,
            http.stream("POST", edge.url + "/v1/completions", json=call) as response,
        ):
            pieces = response.aiter_raw()
            body = await anext(pieces)
            edge.process.send_signal(signal.SIGTERM)
            body += b"".join([piece async for piece in pieces])
        assert body.endswith(b"data: [DONE]\n\n")
        assert await asyncio.to_thread(edge.process.wait, 40) == 0


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "router", "edge", *map(str, arguments)], capture_output=True, text=True, timeout=30
    )


async def test_print_only_prints(files, tmp_path):
    done = run("--print", *pair(files))
    assert done.returncode == 0
    path = tmp_path / "envoy.json"
    path.write_text(done.stdout)
    checked = subprocess.run([find_envoy(), "-c", path, "--mode", "validate"], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--listen", "nowhere"), "--listen"),
        (("--tls-cert", "/none.pem", "--tls-key", "/none.key"), "--tls-cert"),
        (("--tls-cert", "/none.pem"), "--tls-key"),
        (("--http3",), "--http3"),
    ],
)
async def test_bad_settings_are_named(arguments, complaint):
    done = run("--print", *arguments)
    assert done.returncode == 2 and complaint in done.stderr
