"""Real processes: started, noticed, stopped, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from time import monotonic

import psutil
import pytest
import uvloop

from router.sidecar.engine import EngineProcess, ExternalEngine

FOREVER = "while :; do sleep 60; done"


def shell(program):
    return ("/bin/sh", "-c", program)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def group(pid):
    """Living members of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


@asynccontextmanager
async def running(program, **options):
    engine = EngineProcess(shell(program), **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(0)
        assert not group(engine.pid)


@pytest.fixture
def fifo(tmp_path):
    """What a program says: `echo word > {fifo}`, then `await fifo()`."""
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def heard():
        return (await asyncio.to_thread(path.read_text)).split()

    heard.path = path
    return heard


async def test_it_runs_in_a_group_of_its_own_and_ends_when_asked(fifo):
    async with running(f"trap 'exit 0' TERM; echo $$ > {fifo.path}; sleep 60 & wait") as engine:
        assert await fifo() == [str(engine.pid)]
        assert engine.is_running and engine.generation == 1 and engine.restarts == 0
        assert os.getpgid(engine.pid) == os.getsid(engine.pid) == engine.pid
        assert await engine.stop(10) is True
        assert not engine.is_running and await engine.exited() == "exit code 0"
        assert await engine.stop(10) is True  # harmless


@pytest.mark.parametrize(("end", "said"), [("exit 3", "exit code 3"), ("kill -9 $$", "killed by SIGKILL")])
async def test_an_exit_is_noticed_at_once_and_leaves_no_child(fifo, end, said):
    async with running(f"sleep 60 & echo $! $(date +%s.%N) > {fifo.path}; {end}") as engine:
        (child, _), how = await asyncio.gather(fifo(), engine.exited())
        noticed = monotonic()
        assert how == said
        while not is_gone(int(child)):
            assert monotonic() - noticed < 2
            await asyncio.sleep(0.001)


async def test_one_that_ignores_sigterm_is_killed_with_its_children(fifo):
    program = f"trap '' TERM; (trap '' TERM; {FOREVER}) & echo $! > {fifo.path}; {FOREVER}"
    async with running(program) as engine:
        child = int((await fifo())[0])
        begin = monotonic()
        assert await engine.stop(0.2) is False
        assert 0.2 <= monotonic() - begin < 2
        assert is_gone(child) and not group(engine.pid)
        assert await engine.exited() == "killed by SIGKILL"


async def test_sigterm_goes_to_the_engine_alone(fifo):
    """It ends its children in its own order: here it still needs its child's answer."""
    program = f"(trap 'echo child-got-it > {fifo.path}; exit' TERM; {FOREVER}) & trap 'kill $!; wait; exit 5' TERM; echo up > {fifo.path}; wait"
    async with running(program.replace("sleep 60", "sleep 0.01")) as engine:
        assert await fifo() == ["up"]
        stopping = asyncio.ensure_future(engine.stop(10))
        assert await fifo() == ["child-got-it"]
        assert await stopping is True and await engine.exited() == "exit code 5"


async def test_a_cancelled_stop_can_be_made_harder(fifo):
    async with running(f"trap '' TERM; echo up > {fifo.path}; {FOREVER}") as engine:
        await fifo()
        patient = asyncio.ensure_future(engine.stop(60))
        await asyncio.sleep(0)
        patient.cancel()
        await asyncio.wait([patient])
        assert await engine.stop(0) is False


async def test_a_cancelled_start_leaves_no_process():
    engine = EngineProcess(shell(FOREVER))
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled() and not engine.is_running and not group(engine.pid)


async def test_restarts_back_off_and_recover():
    engine = EngineProcess(shell("exit 1"), generation=41, floor_s=0.5, ceiling_s=3, old_age_s=1_000)
    waits = [engine.back_off_s()]
    for _ in range(5):
        await engine.start()
        await engine.exited()
        waits.append(engine.back_off_s())
    assert waits == [0, 0.5, 1, 2, 3, 3]
    assert engine.generation == 46 and engine.restarts == 4
    engine._old_age_s = 0  # it lived long enough
    await engine.start()
    await engine.exited()
    assert engine.back_off_s() == 0.5
    await engine.stop(0)


async def test_a_command_that_does_not_exist():
    engine = EngineProcess(("no-such-engine", "--port", "1"))
    with pytest.raises(FileNotFoundError, match="no-such-engine"):
        await engine.start()
    assert engine.back_off_s() == 0.5 and await engine.stop(1)


async def test_a_command_that_cannot_be_run_says_so(tmp_path, capfd):
    broken = tmp_path / "engine"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    engine = EngineProcess((str(broken),))
    await engine.start()
    assert await engine.exited() == "exit code 127"
    assert "format error" in capfd.readouterr().err
    await engine.stop(0)


async def test_output_passes_through_and_environment_is_added(capfd):
    async with running("echo out $ENGINE_WORD; echo err >&2; cat", env={"ENGINE_WORD": "seen"}) as engine:
        assert await engine.exited() == "exit code 0"  # stdin is empty
        assert capfd.readouterr() == ("out seen\n", "err\n")


async def test_the_engine_gets_the_signals_as_a_shell_would_give_them(fifo):
    program = f"grep SigIgn /proc/$$/status > {fifo.path}"
    async with running(program) as engine:
        _, ignored = await fifo()
        await engine.exited()
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGTERM - 1)) == 0


def test_on_uvloop():
    async def whole():
        async with running("exit 7") as engine:
            assert await engine.exited() == "exit code 7"
        async with running(f"trap '' TERM; {FOREVER}") as engine:
            await engine.stop(0.05)

    uvloop.run(whole())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_the_sidecar(fifo, number):
    """The engine, its children and the guard are gone, although the sidecar could do nothing about it."""
    program = f"(trap '' TERM; {FOREVER}) & echo $$ $! > {fifo.path}; {FOREVER}"
    parent_program = f"""
        import asyncio
        from router.sidecar.engine import EngineProcess
        async def main():
            await EngineProcess(("/bin/sh", "-c", {program!r})).start()
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent_program)], stdout=subprocess.PIPE) as parent:
        engine, child = map(int, await fifo())
        assert len(group(engine)) >= 3
        parent.send_signal(number)
        assert await asyncio.to_thread(parent.stdout.read) == b""  # nobody holds its output any more
    deadline = monotonic() + 5
    while group(engine) or not is_gone(child):
        assert monotonic() < deadline, group(engine)
        await asyncio.sleep(0.005)


async def test_an_external_engine_is_only_waited_for():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    engine = ExternalEngine(f"http://127.0.0.1:{port}", generation=4, poll_s=0.005)
    await engine.start()  # the first is not waited for: it may be loading
    assert engine.generation == 5 and engine.restarts == 0 and engine.back_off_s() == 0
    again = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0.02)
    assert not again.done()
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
    await again
    assert engine.generation == 6 and engine.restarts == 1 and await engine.stop(9) is True
    exited = asyncio.ensure_future(engine.exited())
    await asyncio.sleep(0)
    assert not exited.done()
    exited.cancel()
    server.close()
    await server.wait_closed()
