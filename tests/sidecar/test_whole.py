"""The life beside a simulated engine: real processes, real sockets, a fake store and relay."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from sidekit import Diary, FakeRegistry, FakeRelay, now

from inference_backend.launch import ReplicaProcess
from inference_backend.ports import free_port
from inference_backend.sglang_cpu.place import NOT_PRESENT, Place
from router.sidecar.engine import EngineProcess, ExternalEngine
from router.sidecar.life import Graces, SidecarLife
from router.transport.tasks import spawn


@asynccontextmanager
async def living(address, engine, within_s=15):
    diary = Diary()
    registry = FakeRegistry(diary)
    graces = Graces(settle_s=0.05)
    life = SidecarLife.beside(address, registry, FakeRelay(diary), engine, graces=graces)
    task = spawn(life.run(), "life")

    async def row(generation, state):
        async with asyncio.timeout(within_s):
            while registry.row != (generation, state):
                assert not task.done()
                await asyncio.sleep(0.005)

    try:
        yield life, diary, row, task
    finally:
        life.stop()
        assert await task == 0
        assert registry.row is None


async def test_an_engine_of_ours_from_start_over_a_crash_to_the_end():
    port = free_port()
    command = (sys.executable, "-m", "inference_backend", "simulate", "--time-scale", "0", "--port", str(port))
    engine = EngineProcess((*command, "--startup-s", "0.2"), floor_s=0.05)
    async with living(f"http://127.0.0.1:{port}", engine) as (_, diary, row, task):
        await row(1, "READY")
        killed_s = now()
        os.kill(engine.pid, signal.SIGKILL)
        await row(2, "READY")
        assert diary.at("store", "DOWN") - killed_s < 0.5
        assert engine.restarts == 1
        pid = engine.pid
    assert await engine.exited() == "exit code 0"
    assert not os.path.exists(f"/proc/{pid}")


async def test_an_engine_of_somebody_else():
    """It drains by itself and is killed: each is on the row within a second."""
    async with ReplicaProcess.simulate(time_scale=0, linger_s=30, drain_s=30) as replica:
        async with living(replica.url, ExternalEngine(replica.url)) as (_, diary, row, _):
            await row(1, "READY")
            asked_s = now()
            replica.send_signal(signal.SIGTERM)
            await row(1, "DRAINING")
            assert now() - asked_s < 1
            killed_s = now()
            await replica.kill()
            await row(1, "DOWN")
            assert now() - killed_s < 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("front_end", ["python", "rust"])
async def test_beside_the_real_sglang(front_end):
    """Ready, killed, ready again, stopped: the same as beside the simulated one, on both of its front ends."""
    place = Place()
    if not place.is_present:
        pytest.skip(f"real SGLang: {NOT_PRESENT}")
    port = free_port()
    variables = place.environment({"SGLANG_RUST_SERVER": "1"} if front_end == "rust" else {})
    engine = EngineProcess(place.command(port), env=variables, floor_s=0.05)
    async with living(f"http://127.0.0.1:{port}", engine, within_s=90) as (_, diary, row, _):
        await row(1, "READY")
        killed_s = now()
        os.kill(engine.pid, signal.SIGKILL)
        await row(2, "STARTING")
        assert diary.at("store", "DOWN") - killed_s < 1
        await row(2, "READY")
