"""The real SGLang on a CPU behind its sidecar: streamed to by the openai SDK, drained and killed under load.

    python -m inference_backend sglang-cpu install      # once: makes the environment
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import httpx
import openai
import psutil
import pytest
import pytest_asyncio
from toldkit import NOT_ASKED, told

from inference_backend.ports import free_port
from inference_backend.sglang_cpu.place import NOT_PRESENT, Place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
]
REAL_SGLANG = "sidecar, real SGLang"
READY_S = 150.0
CLIENTS = 6


@pytest.fixture(scope="session", autouse=True)
def real_is_told():
    told.setdefault(REAL_SGLANG, NOT_ASKED)


@asynccontextmanager
async def process(*arguments, reads=True):
    """One of our commands; SIGTERM at the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *map(str, arguments), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        child.ready = json.loads(await child.stdout.readline()) if reads else {}
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), 60)
            except TimeoutError:
                child.kill()
                await child.wait()


class Cluster:
    """A store, a router with two workers, and two engines with sidecars."""

    def __init__(self, stack, folder):
        self.stack = stack
        self.folder = Path(folder)
        self.store = f"embedded:{folder}/s.sock"
        self.sidecars = {}
        self.router = None

    async def run(self, *arguments):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router", *arguments, "--store", self.store, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
        assert child.returncode == 0, out
        return out

    async def start(self):
        await self.stack.enter_async_context(
            process("router", "store", "--data", self.folder, "--listen", f"unix:{self.folder}/s.sock", "--json")
        )
        await self.run("store", "init")
        await self.run("endpoint", "create", "tiny", "--unauthenticated", "--host", "*")
        self.router = await self.stack.enter_async_context(
            process("router", "serve", "--store", self.store, "--state-dir", self.folder / "state", "--workers", 2,
                    "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain-settle-s", 0, "--json")
        )  # fmt: skip
        await asyncio.gather(*map(self.start_replica, ("a", "b")))
        await self.until({"a": "READY", "b": "READY"}, READY_S)

    async def start_replica(self, name):
        port = free_port()
        self.sidecars[name] = await self.stack.enter_async_context(
            process("router", "sidecar", "--store", self.store, "--endpoint", "tiny", "--replica", name,
                    "--upstream", f"http://127.0.0.1:{port}", "--json", "--",
                    sys.executable, "-m", "inference_backend", "sglang-cpu", "serve", "--port", port)
        )  # fmt: skip

    async def states(self):
        async with httpx.AsyncClient(trust_env=False) as client:
            found = (await client.get(f"{self.router.ready['admin']}/clusters?format=json")).json()
        return {row["id"]: row["state"] for endpoint in found["endpoints"] for row in endpoint["replicas"]}

    async def until(self, wanted, within_s):
        """Poll until the table says so; return how long it took."""
        began_s = monotonic()
        while (found := await self.states()) != wanted:
            assert monotonic() < began_s + within_s, found
            await asyncio.sleep(0.02)
        return monotonic() - began_s


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster():
    if not Place().is_present:
        told[REAL_SGLANG] = NOT_PRESENT
        pytest.skip(f"real SGLang: {NOT_PRESENT}")
    told[REAL_SGLANG] = "did not start"
    with TemporaryDirectory(prefix="sgl-") as folder:
        async with AsyncExitStack() as stack:
            cluster = Cluster(stack, folder)
            await cluster.start()
            told[REAL_SGLANG] = "ran"
            yield cluster


async def stream(client):
    """One whole stream; what went wrong is raised."""
    pieces = 0
    finish = None
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=24, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    async for chunk in answer:
        pieces += 1
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "length" and pieces > 10


class Load:
    """Clients that stream one after another until told to stop."""

    def __init__(self, url):
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self.done = 0
        self.failures = []
        self.stopping = False

    async def _go(self):
        while not self.stopping:
            try:
                await stream(self.client)
                self.done += 1
            except (openai.OpenAIError, httpx.HTTPError, AssertionError) as failure:
                self.failures.append(repr(failure))
                await asyncio.sleep(0.05)

    async def __aenter__(self):
        self.tasks = [asyncio.ensure_future(self._go()) for _ in range(CLIENTS)]
        return self

    async def __aexit__(self, *_):
        self.stopping = True
        await asyncio.gather(*self.tasks)
        await self.client.close()


async def test_it_streams_and_its_death_is_noticed_and_mended(cluster):
    async with Load(cluster.router.ready["listen"][0]) as load:
        while load.done < CLIENTS:
            await asyncio.sleep(0.05)
        (engine,) = [
            child for child in psutil.Process(cluster.sidecars["b"].pid).children(recursive=True)
            if "launch_server" in " ".join(child.cmdline()) and os.getpgid(child.pid) == child.pid
        ][:1]  # fmt: skip
        os.kill(engine.pid, signal.SIGKILL)
        began_s = monotonic()
        while (await cluster.states())["b"] == "READY":
            await asyncio.sleep(0.01)
        noticed_s = monotonic() - began_s
        assert noticed_s <= 1.0
        before = load.done
        while load.done < before + 2 * CLIENTS:  # the other one serves
            await asyncio.sleep(0.05)
        assert len(load.failures) <= CLIENTS, "only what was in flight on it"
        await cluster.until({"a": "READY", "b": "READY"}, READY_S)
    shown = json.loads(await cluster.run("replica", "show", "tiny", "b", "--json"))
    assert shown["generation"] == 2


async def test_drained_under_load_nothing_fails(cluster):
    async with Load(cluster.router.ready["listen"][0]) as load:
        while load.done < CLIENTS:
            await asyncio.sleep(0.05)
        leaving = cluster.sidecars["a"]
        leaving.terminate()
        assert await asyncio.wait_for(leaving.wait(), 90) == 0
        before = load.done
        while load.done < before + 2 * CLIENTS:
            await asyncio.sleep(0.05)
    assert load.failures == []
    assert await cluster.states() == {"b": "READY"}
