"""Child processes start, fail with a reason, and never stay behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import uvloop

from inference_backend.launch import LaunchError, ReplicaProcess


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def start_and_stop():
    async with ReplicaProcess.simulate(time_scale=0) as replica:
        pid = replica.pid
        assert replica.url.startswith("http://127.0.0.1:") and replica.returncode is None
    assert replica.returncode == 0 and is_gone(pid)


async def test_on_asyncio():
    await start_and_stop()


def test_on_uvloop():
    uvloop.run(start_and_stop())


async def test_several_start_at_once():
    replicas = await asyncio.gather(*(ReplicaProcess.simulate(time_scale=0).start() for _ in range(3)))
    assert len({replica.url for replica in replicas}) == 3
    assert await asyncio.gather(*(replica.kill() for replica in replicas)) == [-signal.SIGKILL] * 3
    for replica in replicas:
        assert await replica.stop() == -signal.SIGKILL  # harmless afterwards
        replica.close()


async def test_a_child_that_exits_tells_why():
    with pytest.raises(LaunchError, match="(?s)simulate --nonsense 1.*exit code 2.*No such option"):
        await ReplicaProcess.simulate(nonsense=1).start()


async def test_a_child_that_is_late_is_killed():
    replica = ReplicaProcess("simulate", "--load-s", "60", start_timeout_s=0.5)
    with pytest.raises(LaunchError, match="not ready within 0.5 s"):
        await replica.start()
    assert replica.returncode == -signal.SIGKILL


async def test_a_cancelled_start_leaves_no_child():
    replica = ReplicaProcess("simulate", "--load-s", "60")
    task = asyncio.ensure_future(replica.start())
    while replica._process is None:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert replica.returncode == -signal.SIGKILL
    replica.close()


async def test_environment_and_flags():
    replica = ReplicaProcess("simulate", env={"SIM_TIME_SCALE": "nonsense"})
    with pytest.raises(LaunchError, match="time-scale"):
        await replica.start()
    made = ReplicaProcess.simulate(time_scale=0.5, header_overrides=True, cache_report=False, model=None)
    assert made.arguments == ("simulate", "--time-scale", "0.5", "--header-overrides", "--no-cache-report")


async def test_a_child_dies_with_its_parent(eventually):
    program = """
        import asyncio
        from inference_backend.launch import ReplicaProcess
        async def main():
            replica = await ReplicaProcess.simulate(time_scale=0).start()
            print(replica.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as parent:
        child = int(await asyncio.to_thread(parent.stdout.readline))
        assert not is_gone(child)
        os.kill(parent.pid, signal.SIGKILL)

    async def gone():
        return is_gone(child)

    await eventually(gone)
