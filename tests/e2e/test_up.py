"""`router up`: replicas and router on one machine, checked, and nothing of it left behind."""

from __future__ import annotations

import signal
from uuid import uuid4

import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARK = "E2E_RUN"
PORTS = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


def running(mark):
    """The processes that were started with this mark in their environment, orphans as well."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


async def grpc_health(port):
    """What grpc.health.v1 says at a port."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.fixture
def mark():
    """A value of MARK; whatever of it still runs after the test is ended."""
    mark = uuid4().hex
    yield mark
    for process in running(mark):
        process.kill()


async def test_once(run_router, mark, until):
    done = await run_router("up", "--once", *PORTS, env={MARK: mark, "COLUMNS": "200"}, within_s=50)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for protocol in ("HTTP/1.1 ", "HTTP/1.1 SSE", "WebSocket", "HTTP/2", "gRPC ", "gRPC stream", "HTTP/3", "QUIC robot"):
        assert any(protocol in line and "ok" in line for line in lines), done.stdout
    assert "Traceback" not in done.stderr
    await until(lambda: not running(mark))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 0, id="SIGTERM")],
)
async def test_each_endpoint_is_served(start_router, client, mark, number, code, until):
    router = await start_router(
        "--no-check", "--replicas", 3, "--time-scale", 0, "--drain-settle-s", 0, command="up", env={MARK: mark}
    )
    # Supervisor and worker; the store; four sidecars, each with a worker and an engine; and a guard beside each
    # of the store, the sidecars and the engines, which sees to it that nothing outlives its parent.
    assert len(running(mark)) == 2 + 2 + 4 * (2 + 1 + 2)
    hosts = router.ready["hosts"]
    used = set()
    for _ in range(30):
        answer = await client.post(
            f"{router.url}/v1/chat/completions", headers={"host": hosts["chat"]},
            json={"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]},
        )  # fmt: skip
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]
        used.add(answer.headers["x-router-replica"])
    assert len(used) >= 2
    async with connect(f"ws://{hosts['policy']}/echo", host="127.0.0.1", port=router.port, proxy=None) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
    assert await grpc_health(router.port) == "SERVING"
    assert (await router.ask("/")).headers["content-type"].startswith("text/html")
    assert (await router.ask("/readyz")).status_code == 200
    router.send_signal(number)
    assert await router.wait(20) == code
    await until(lambda: not running(mark))


@pytest.mark.slow
async def test_a_killed_up_leaves_nothing(start_router, mark, until):
    router = await start_router("--no-check", "--replicas", 1, command="up", env={MARK: mark})
    router.send_signal(signal.SIGKILL)
    await router.wait()
    await until(lambda: not running(mark))


async def test_it_makes_its_own_replicas(run_router):
    done = await run_router("up", "--replica", "http://127.0.0.1:9")
    assert done.returncode == 2 and "router serve" in done.stderr


@pytest.mark.slow
async def test_a_taken_port_ends_everything(run_router, mark, until):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = await run_router("up", "--once", "--listen", address, "--admin", "127.0.0.1:0", env={MARK: mark})
    assert done.returncode == 3 and address in done.stderr
    await until(lambda: not running(mark))
