"""A Unix socket to be served on: shared by workers, its file made, guarded, replaced and taken away."""

import asyncio
import os
import signal
import socket
import stat

import httpx
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


def over(path):
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://local", timeout=20)


async def test_workers_share_one(start_router, engine, tmp_path):
    path = tmp_path / "socket"
    router = await start_router("--listen", f"unix:{path}", replicas=[engine.url], workers=2)
    assert f"unix:{path}" in router.listen
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    async with over(path) as client:
        answers = await asyncio.gather(*(client.get("/v1/models", headers={"x-request-id": f"u{i}"}) for i in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await router.record("u0"))["client"] == "unix"
    router.send_signal(signal.SIGINT)
    await router.wait()
    assert not path.exists()


async def test_a_worker_that_dies_is_replaced_on_the_same_socket(start_router, engine, tmp_path, until):
    path = tmp_path / "socket"
    router = await start_router("--listen", f"unix:{path}", replicas=[engine.url])
    pid = await router.worker_pid()
    os.kill(pid, signal.SIGKILL)

    async def is_new():
        (worker,) = await router.workers()
        return worker["state"] == "ready" and worker["pid"] != pid

    async with over(path) as client:
        assert (await client.get("/v1/models")).status_code == 200, "it waited in the queue"
    await until(is_new)


async def test_a_drain_takes_the_file_away(start_router, engine, tmp_path):
    path = tmp_path / "socket"
    router = await start_router("--listen", f"unix:{path}", "--drain-settle-s", 0, replicas=[engine.url])
    router.send_signal(signal.SIGTERM)
    assert await router.wait() == 0
    assert not path.exists()


async def test_its_mode(start_router, engine, tmp_path):
    path = tmp_path / "socket"
    await start_router("--listen", f"unix:{path}", "--unix-mode", "0666", replicas=[engine.url])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


async def test_a_stale_one_is_replaced(start_router, engine, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    await start_router("--listen", f"unix:{path}", replicas=[engine.url])
    async with over(path) as client:
        assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("there", ["a listener", "a file", "no folder"])
async def test_what_cannot_be_bound_is_named(run_router, engine, tmp_path, there):
    path = tmp_path / "socket"
    complaint = {"a listener": "another process listens there", "a file": "no socket", "no folder": "No such file"}[there]
    with socket.socket(socket.AF_UNIX) as other:
        if there == "a listener":
            other.bind(str(path))
            other.listen()
        elif there == "a file":
            path.write_text("precious")
        else:
            path = tmp_path / "none" / "socket"
        done = await run_router("serve", "--replica", engine.url, "--admin", "none", "--listen", f"unix:{path}")
    assert done.returncode == 3
    assert f"--listen unix:{path}: " in done.stderr and complaint in done.stderr
    if there == "a file":
        assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--listen", "unix:"], "--listen: 'unix:' is not unix:PATH"),
        (["--listen", "unix:/" + "x" * 107], "is not unix:PATH"),
        (["--listen", "unix:/x", "--unix-mode", "rw"], "--unix-mode: 'rw'"),
        (["--listen", "unix:/x", "--unix-mode", "888"], "--unix-mode: '888'"),
        (["--listen-tls", "unix:/x"], "--listen-tls"),
    ],
)
async def test_flags(run_router, flags, complaint):
    done = await run_router("serve", "--check", "--replica", "http://127.0.0.1:1", *flags)
    assert done.returncode == 2
    assert complaint in done.stderr


async def test_an_open_router_may_listen_there(run_router):
    done = await run_router("serve", "--check", "--replica", "http://127.0.0.1:1", "--listen", "unix:/x")
    assert done.returncode == 0, done.stderr
