"""One place among the workers is filled again, whatever became of its last process."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest

from router import worker_process
from router.control import Patch, Start
from router.routing.spec import TablePatch
from router.transport.codec.h1.limits import ServerLimits
from router.worker_process import WorkerProcess


def start(index):
    return [Start(index, 1, ServerLimits(), 10), Patch(TablePatch(1))]


@pytest.fixture
async def place(tmp_path, monkeypatch):
    """Make places; end them with the test."""
    made = []
    deaths = []
    may_greet = asyncio.Event()
    may_greet.set()
    may_accept = asyncio.Event()
    may_accept.set()
    with contextlib.ExitStack() as stack, (tmp_path / "board").open("wb") as board:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def make():
            made.append(
                WorkerProcess(
                    0, start, board.fileno(), [sock], deaths.append, may_greet, may_accept, lambda *told: None, lambda *told: None
                )
            )
            made[-1].deaths = deaths
            return made[-1]

        yield make
        for worker in made:
            await worker.kill()


async def test_after_a_fork_that_failed(place, monkeypatch, caplog):
    real = asyncio.create_subprocess_exec
    failures = [BlockingIOError(11, "Resource temporarily unavailable")]

    async def fork(*arguments, **options):
        if failures:
            raise failures.pop()
        return await real(*arguments, **options)

    monkeypatch.setattr(worker_process.asyncio, "create_subprocess_exec", fork)
    worker = place()
    async with asyncio.timeout(20):
        await worker.ready.wait()
    assert worker.restarts == 1
    assert worker.deaths == [0]
    assert "could not be run" in caplog.text


async def test_a_stop_in_the_wait_before_a_replacement_is_quick(place, monkeypatch):
    async def fork(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_process.asyncio, "create_subprocess_exec", fork)
    monkeypatch.setattr(worker_process, "RESTART_FLOOR_S", 30.0)
    monkeypatch.setattr(worker_process, "RESTART_CEILING_S", 30.0)
    worker = place()
    async with asyncio.timeout(5):
        while worker.state != "restarting":
            await asyncio.sleep(0.01)
        await worker.drain(30.0, 3.0)
    assert worker.state == "stopped"
    assert worker.cut == 0


async def test_who_stands_still_is_ended_and_replaced(place, caplog):
    worker = place()
    async with asyncio.timeout(20):
        await worker.ready.wait()
        pid = worker.pid
        while not worker._is_heard:  # its pulse
            await asyncio.sleep(0.01)
        worker.watch(2.0)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(4):
            worker._is_heard = False
            worker.watch(2.0)
        while worker.pid == pid or not worker.ready.is_set():
            await asyncio.sleep(0.01)
    assert (worker.stuck, worker.restarts) == (1, 1)
    assert "said nothing for 2 s" in caplog.text


async def test_who_stands_still_is_killed_all_the_same(place):
    worker = place()
    async with asyncio.timeout(20):
        await worker.ready.wait()
        os.kill(worker.pid, signal.SIGSTOP)
        began_s = asyncio.get_running_loop().time()
        await worker.kill()
    assert asyncio.get_running_loop().time() - began_s < 3.0
    assert worker.state == "stopped"
    assert worker._process.returncode == -signal.SIGKILL


async def test_who_is_ended_says_goodbye(place):
    worker = place()
    async with asyncio.timeout(20):
        await worker.ready.wait()
        await worker.kill()
    assert worker._process.returncode == 0


async def test_a_supervisor_that_stood_still_blames_nobody(place):
    """Turns of the watch are counted, and between two of them there is time to hear."""
    worker = place()
    async with asyncio.timeout(20):
        await worker.ready.wait()
        for _ in range(3):
            worker._is_heard = False
            worker.watch(2.0)
        worker._is_heard = False
        while not worker._is_heard:
            await asyncio.sleep(0.01)
        worker.watch(2.0)
        worker.watch(2.0)
    assert worker.stuck == 0


async def test_who_starts_has_longer(place):
    worker = place()
    async with asyncio.timeout(20):
        await worker.has_process.wait()
        for _ in range(10):
            worker._is_heard = False
            worker.state = "starting"
            worker.watch(2.0)
        assert worker.stuck == 0
        await worker.ready.wait()
