"""What survives: a kill -9 under load loses no commit that was acknowledged, and the command line starts, tells and stops."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import grpc
import pytest

START_S = 30.0
CODE = "from router.cli.store import store; store()"


class Store:
    """`router store` as a child process."""

    def __init__(self, *flags):
        self.process = subprocess.Popen([sys.executable, "-c", CODE, "--json", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    async def ready(self):
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), START_S)
        return json.loads(line) if line else None

    def end(self, number):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=START_S)
        return self.process.returncode, errors


@pytest.fixture
def start():
    children = []

    def make(*flags):
        children.append(Store(*map(str, flags)))
        return children[-1]

    yield make
    for child in children:
        child.process.kill()
        child.process.wait(START_S)
        child.process.stdout.close()
        child.process.stderr.close()


async def test_kill_9_loses_nothing_that_was_acknowledged(start, tmp_path, helpers):
    acknowledged, last = {}, 0
    for round_ in range(2):
        store = start("--data", tmp_path / "d", *(["--durable"] if round_ else []))
        ready = await store.ready()
        client = helpers.Client(ready["address"])
        if not round_:
            await client.setup()
        stop = time.monotonic() + 0.7
        done = asyncio.Event()

        async def write(worker, round_=round_, client=client, done=done):
            nonlocal last
            for n in range(100_000):
                key = f"{round_}-{worker}-{n}"
                try:
                    at = await client.commit(helpers.mutation("insert", "Endpoints", ["EndpointId", "N"], [key, n]))
                except grpc.aio.AioRpcError:
                    return
                assert at not in acknowledged.values()
                acknowledged[key] = at
                if len(acknowledged) % 500 == 0 or time.monotonic() > stop:
                    done.set()

        writers = [asyncio.ensure_future(write(worker)) for worker in range(4)]
        await asyncio.wait_for(done.wait(), START_S)
        os.kill(store.process.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*writers), START_S)
        assert min(at for key, at in acknowledged.items() if key.startswith(f"{round_}-")) > last
        last = max(acknowledged.values())
        await client.channel.close()
    store = start("--data", tmp_path / "d")
    ready = await store.ready()
    client = helpers.Client(ready["address"])
    found = set(await helpers.gather(client.read("Endpoints", ["EndpointId"])))
    assert len(acknowledged) > 20
    assert acknowledged.keys() <= found
    recorded = set()
    first = min(acknowledged.values())
    (token,) = await client.tokens(first)
    for value in await helpers.gather(client.changes(first, token, end_us=last)):
        for data in value[0][0]:
            recorded |= {json.loads(mod[0])["EndpointId"] for mod in data[6]}
    assert acknowledged.keys() <= recorded
    assert await client.commit(helpers.mutation("insert", "Endpoints", ["EndpointId"], ["after"])) > last
    await client.channel.close()
    assert store.end(signal.SIGTERM)[0] == 0


async def test_the_command_starts_tells_and_stops(start, tmp_path):
    first = start("--data", tmp_path / "d", "--listen", "127.0.0.1:0", "--retention", "1h", "--max-readers", "20")
    ready = await first.ready()
    assert ready["event"] == "ready"
    assert ready["data"] == str(tmp_path / "d")
    second = start("--data", tmp_path / "d", "--listen", f"unix:{tmp_path}/s")
    assert await second.ready() is None
    code, errors = second.end(signal.SIGTERM)
    assert code == 3
    assert f"pid {first.process.pid}" in errors
    third = start("--data", tmp_path / "e", "--listen", ready["address"])
    assert await third.ready() is None
    assert third.end(signal.SIGTERM)[0] == 3
    code, errors = first.end(signal.SIGINT)
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize("flags", [["--listen", "nowhere"], ["--listen", "unix:"], ["--listen", "h:99999"], ["--retention", "soon"], ["--max-readers", "0"], ["--nope"]])  # fmt: skip
def test_usage(flags):
    from click.testing import CliRunner

    from router.cli.store import store

    assert CliRunner().invoke(store, flags).exit_code == 2


def test_help_names_the_subset():
    from click.testing import CliRunner

    from router.cli.store import store

    out = CliRunner().invoke(store, ["--help"]).output
    for word in ("SELECT", "LIKE", "CHANGE", "UNIMPLEMENTED", "--durable", "--listen"):
        assert word in out
    assert "test-hooks" not in out


def test_the_command_line_is_quick_to_import():
    code = "import sys, router.cli.store; print([m for m in ('grpc', 'google.cloud', 'sqlite3', 'uvloop') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "grpc" not in done.stdout
    assert "google.cloud" not in done.stdout
