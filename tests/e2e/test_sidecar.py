"""`router sidecar` beside a simulated engine: its row, its drain under load, its engine's death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import grpc
import grpc.aio
import httpx
import psutil
import pytest
import pytest_asyncio
from certkit import Authority
from childkit import first_line

sys.path.insert(0, str(Path(__file__).parent))

from storekit import StoreProcess, Traffic, child_env, stamp, table_of  # noqa: E402

from inference_backend.ports import free_port  # noqa: E402
from router.client import RobotSession  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Sidecar:
    """One `router sidecar … -- python -m inference_backend simulate`."""

    def __init__(self, store, folder, replica):
        self._store = store
        self._stderr = folder / f"{replica}-{free_port()}.err"
        self.replica = replica
        self.process = None
        self.url = ""

    async def start(self, *flags, engine=("--time-scale", "1"), grpc=False, program="simulate"):
        port, upstream = free_port(), free_port()
        engine = (*engine, "--grpc-port", str(upstream)) if grpc else engine
        upstream = f"h2c://127.0.0.1:{upstream}" if grpc else f"http://127.0.0.1:{port}"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "sidecar", "--upstream", upstream,
                 "--endpoint", "e", "--replica", self.replica, "--store", self._store.setting, "--json",
                 "--settle-s", "0.3", *map(str, flags),
                 "--", sys.executable, "-m", "inference_backend", program, "--port", str(port), *engine],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                env={**child_env(), "TMPDIR": str(self._stderr.parent)},  # one that is killed leaves its folder
            )  # fmt: skip
        line = await asyncio.to_thread(first_line, self.process)
        assert line, self.stderr()
        self.url = json.loads(line)["listen"][0]
        self.says = json.loads(line)
        return self

    def stderr(self):
        return self._stderr.read_text(errors="replace")

    def engine(self):
        """The engine's process."""
        found = [
            child for child in psutil.Process(self.process.pid).children(recursive=True)
            if "inference_backend" in child.cmdline() and "simulate" in child.cmdline()[:4]
        ]  # fmt: skip
        return found[0] if found else None

    def signal(self, number):
        self.process.send_signal(number)

    async def wait(self, within_s=15):
        return await asyncio.to_thread(self.process.wait, within_s)

    def end(self):
        if self.process is None:
            return
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        _, left = psutil.wait_procs(children, timeout=10)
        for child in left:
            child.kill()
        assert not left, f"left behind: {left}"
        assert "Traceback" not in self.stderr(), self.stderr()


@pytest_asyncio.fixture(loop_scope="session")
async def folder():
    with tempfile.TemporaryDirectory(prefix="r") as name:
        yield Path(name)


@pytest_asyncio.fixture(loop_scope="session")
async def store(folder):
    found = StoreProcess(folder)
    try:
        await found.start()
        async with found.writer() as writer:
            await writer.put_endpoint("e", create=True, unauthenticated=True, hosts=("*",))
        yield found
    finally:
        await asyncio.to_thread(found.end)


@pytest_asyncio.fixture(loop_scope="session")
async def beside(store, folder):
    """`await beside(replica, *flags, engine=(…))`: a sidecar that registers as `replica`."""
    sidecars = []

    async def start(replica, *flags, engine=("--time-scale", "1"), on=None, **more):
        sidecar = Sidecar(on or store, folder, replica)
        sidecars.append(sidecar)
        return await sidecar.start(*flags, engine=engine, **more)

    yield start
    failures = []
    for sidecar in sidecars:
        try:
            await asyncio.to_thread(sidecar.end)
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


@pytest_asyncio.fixture(loop_scope="session")
async def router(start_router, store, folder):
    return await start_router(
        "--store", store.setting, "--state-dir", folder / "a", "--drain-settle-s", 0, workers=2
    )  # fmt: skip


def rows(store):
    async def read():
        async with store.writer() as writer:
            return {row["replica"]: row for row in await writer.replicas("e")}

    return read


async def row_is(store, until, replica, state, generation=None, within_s=15.0):
    async def found():
        row = (await rows(store)()).get(replica)
        return row and row["state"] == state and (generation is None or row["generation"] == generation) and row

    return await until(found, within_s)


async def in_table(router, until, *names, within_s=10.0):
    """Every worker's table has these READY replicas and no other."""

    async def has():
        dump = (await router.ask("/config_dump")).json()
        versions = {worker["table_version"] for worker in dump["workers"]}
        return table_of(dump).get("e", set()) == set(names) and versions == {dump["table"]["version"]}

    await until(has, within_s)


class Streams:
    """Streaming completions, `count` at a time; one that does not come to its end whole is a failure."""

    def __init__(self, client, router, count=6, tokens=60):
        self._client, self._router, self._count, self._tokens = client, router, count, tokens
        self._is_over = False
        self.whole = 0
        self.failures = []

    async def __aenter__(self):
        self._task = asyncio.gather(*(self._loop() for _ in range(self._count)))
        return self

    async def __aexit__(self, *_):
        self._is_over = True
        await self._task

    async def _loop(self):
        body = {"model": "sim", "prompt": "hello", "max_tokens": self._tokens, "stream": True, "ignore_eos": True}
        while not self._is_over:
            try:
                async with self._client.stream("POST", self._router.url + "/v1/completions", json=body) as answer:
                    text = (await answer.aread()).decode()
            except Exception as failure:
                self.failures.append(repr(failure))
                continue
            if answer.status_code != 200 or "data: [DONE]" not in text or text.count("data: {") < self._tokens // 4:
                self.failures.append((answer.status_code, text[-300:]))
            else:
                self.whole += 1


async def test_it_registers_once_its_engine_is_ready(store, beside, router, client, until):
    sidecar = await beside("s1", "--region", "eu", "--zone", "z", "--weight", 2, engine=("--startup-s", "0.7"))
    row = await row_is(store, until, "s1", "STARTING", 1)
    assert (row["region"], row["zone"], row["weight"]) == ("eu", "z", 2.0)
    await row_is(store, until, "s1", "READY", 1)
    await in_table(router, until, "s1")
    answer = await client.post(router.url + "/_sim/echo", content=b"x")
    assert (answer.status_code, answer.headers["x-router-replica"]) == (200, "s1")
    async with store.writer() as writer:
        ((node, expires),) = await writer.query("SELECT NodeId, LeaseExpiresAt FROM Nodes")
    assert node == row["node"]
    assert expires
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.wait() == 0
    assert await rows(store)() == {}
    await in_table(router, until)


@pytest_asyncio.fixture(loop_scope="session")
async def quic_router(start_router, store, folder):
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", "127.0.0.1").write(folder, "local")
    return await start_router(
        "--store", store.setting, "--state-dir", folder / "q", "--drain-settle-s", 0, "--listen-quic", "127.0.0.1:0",
        "--tls-cert", folder / "local.pem", "--tls-key", folder / "local.key",
    )  # fmt: skip


async def test_robots_come_by_lanes_and_go_on_at_another_when_one_is_killed(store, beside, quic_router, folder, until):
    taken = {
        replica: await beside(
            replica, "--listen-quic", "127.0.0.1:0", "--ready-path", "/healthz", program="policy", engine=()
        )
        for replica in ("one", "two")
    }
    await in_table(quic_router, until, "one", "two")
    row = (await rows(store)())["one"]
    (port,) = [url.rpartition(":")[2] for url in taken["one"].says["listen"] if url.startswith("quic://")]
    lanes = row["capabilities"]["lanes"]
    assert str(lanes["port"]) == port
    assert "BEGIN CERTIFICATE" in lanes["certificate"]
    (url,) = [url for url in quic_router.listen if url.startswith("quic://")]
    epochs = []
    async with RobotSession(
        f"{url}/echo", ca=folder / "ca.pem", websocket_url="", on_epoch=lambda epoch, replica: epochs.append((epoch, replica))
    ) as robot:
        (first,) = [row["id"] for row in await quic_router.rows() if row["in_flight"]]
        for size in (3, 300_000):
            robot.send(bytes(size))
            assert (await robot.recv(5)).data == bytes(size)
        robot.send(b"go", lane="command")
        assert (await robot.recv(5)).data == b"go"
        assert await metric(quic_router, "router_robot_lanes_opened_total") == 1
        taken[first].signal(signal.SIGKILL)
        started = monotonic()
        await until(lambda: epochs)
        assert monotonic() - started < 10.0
        assert epochs == [(2, {"one": "two", "two": "one"}[first])]
        robot.send(b"again", lane="command")
        assert (await robot.recv(5)).data == b"again"
    assert await metric(quic_router, "router_robot_lanes_opened_total") == 2
    assert await metric(quic_router, "router_robot_lanes_failed_total") == 0


async def metric(router, name):
    text = (await router.ask("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.slow
async def test_a_drain_under_streams_fails_none(store, beside, router, client, until):
    leaving, staying = await beside("s1"), await beside("s2")
    await row_is(store, until, "s1", "READY")
    await row_is(store, until, "s2", "READY")
    await in_table(router, until, "s1", "s2")
    async with Streams(client, router) as streams:
        await until(lambda: streams.whole > 6)
        leaving.signal(signal.SIGTERM)
        assert await leaving.wait() == 0
        await in_table(router, until, "s2")
        whole = streams.whole
        await until(lambda: streams.whole > whole + 6)
    assert streams.failures == []
    assert await rows(store)() == {"s2": (await rows(store)())["s2"]}
    assert staying.process.poll() is None


@pytest.mark.slow
async def test_a_second_signal_cuts_what_is_under_way_and_leaves_no_row(store, beside, router, client, until):
    sidecar = await beside("s1")
    await in_table(router, until, "s1", within_s=15)
    body = {"model": "sim", "prompt": "hello", "max_tokens": 4_000, "stream": True, "ignore_eos": True}
    async with client.stream("POST", router.url + "/v1/completions", json=body) as answer:
        pieces = answer.aiter_bytes()
        await anext(pieces)
        sidecar.signal(signal.SIGTERM)
        await row_is(store, until, "s1", "DRAINING")
        began = monotonic()
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.wait() == 4
        assert monotonic() - began < 3.0
        with contextlib.suppress(httpx.HTTPError):
            async for _ in pieces:
                pass
    assert "Traceback" not in sidecar.stderr(), sidecar.stderr()
    assert await rows(store)() == {}


@pytest.mark.slow
async def test_a_rolling_exchange_of_all_replicas_fails_no_stream(store, beside, router, client, until):
    old = [await beside("a1"), await beside("a2")]
    await in_table(router, until, "a1", "a2", within_s=15)
    async with Streams(client, router) as streams:
        for i, sidecar in enumerate(old):
            await beside(f"b{i + 1}")
            await row_is(store, until, f"b{i + 1}", "READY")
            sidecar.signal(signal.SIGTERM)
            assert await sidecar.wait() == 0
        await in_table(router, until, "b1", "b2")
        whole = streams.whole
        await until(lambda: streams.whole > whole + 6)
    assert streams.failures == []


@pytest.mark.slow
async def test_a_killed_engine_is_out_of_every_table_within_a_second_and_comes_back_newer(
    store, beside, router, client, until
):
    sidecar, _ = await beside("s1"), await beside("s2")
    await row_is(store, until, "s1", "READY", 1)
    await in_table(router, until, "s1", "s2", within_s=15)
    killed = sidecar.engine()
    began = monotonic()
    killed.kill()
    await in_table(router, until, "s2", within_s=1.0)
    assert monotonic() - began < 1.0
    await row_is(store, until, "s1", "READY", 2)
    await in_table(router, until, "s1", "s2")
    assert sidecar.engine().pid != killed.pid
    async with Traffic(router.port) as traffic:
        await until(lambda: {"s1", "s2"} <= set(traffic.replicas))
    assert traffic.failures == []


@pytest.mark.slow
async def test_a_store_that_is_away_does_not_keep_an_engine_from_serving(folder, beside, store, client, until):
    store.kill()
    sidecar = await beside("s1")

    async def serves():
        with contextlib.suppress(Exception):
            return (await client.post(sidecar.url + "/_sim/echo", content=b"x")).status_code == 200

    await until(serves, 15)
    await store.start(init=False)
    row = await row_is(store, until, "s1", "READY")
    assert row["generation"] > 1_000_000_000, "above any that counted up from one: an older row must not fence it"


@pytest.mark.slow
async def test_a_store_killed_and_started_again_costs_no_request(store, beside, router, client, until):
    sidecar = await beside("s1")
    await row_is(store, until, "s1", "READY")
    await in_table(router, until, "s1")
    async with Traffic(router.port) as traffic:
        store.kill()
        before = traffic.done
        await until(lambda: traffic.done > before + 100)
        await store.start(init=False)
        before = traffic.done
        await until(lambda: traffic.done > before + 100)
    assert traffic.failures == []
    await row_is(store, until, "s1", "READY", 1)
    sidecar.signal(signal.SIGTERM)
    assert await sidecar.wait() == 0
    assert await rows(store)() == {}


@pytest.mark.slow
async def test_an_older_incarnation_does_not_speak_for_a_newer_one(store, beside, router, until):
    older = await beside("s1")
    await row_is(store, until, "s1", "READY", 1)
    newer = await beside("s1")
    row = await row_is(store, until, "s1", "READY", 2)
    older.signal(signal.SIGTERM)
    assert await older.wait() == 0
    assert (await rows(store)())["s1"] == row
    assert newer.process.poll() is None
    await in_table(router, until, "s1")


@pytest.mark.slow
async def test_a_row_that_somebody_deletes_comes_back(store, beside, until):
    """The operator deletes the row of a live replica: the next change of its state must not fail for ever."""
    sidecar = await beside("s1")
    await row_is(store, until, "s1", "READY", 1)
    async with store.writer() as writer:
        await writer.delete_replica("e", "s1")
    sidecar.engine().kill()
    await row_is(store, until, "s1", "READY", 2)


@pytest.mark.slow
async def test_an_endpoint_that_is_not_there_yet_is_waited_for(store, beside, until):
    async with store.writer() as writer:
        await writer.delete_endpoint("e")
        sidecar = await beside("s1")
        await until(lambda: "router endpoint create e" in sidecar.stderr(), 15)
        await writer.put_endpoint("e", create=True)
    await row_is(store, until, "s1", "READY", 1)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_sidecar_that_is_killed_is_reaped_with_its_lease(store, beside, router, client, until):
    lost = await beside("s1")
    await beside("s2")
    await in_table(router, until, "s1", "s2", within_s=15)
    engine = lost.engine()
    lost.process.kill()
    lost.process.wait()
    await until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
    await row_is(store, until, "s1", "DOWN", within_s=40.0)
    await in_table(router, until, "s2")
    assert (await rows(store)())["s2"]["state"] == "READY"


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_store_away_for_longer_than_a_lease_takes_no_replica_out(store, beside, router, client, until):
    await beside("s1")
    await in_table(router, until, "s1", within_s=15)
    store.kill()
    async with Traffic(router.port, count=2) as traffic:
        await asyncio.sleep(12)  # a lease is 10 s, by the store's clock
        await store.start(init=False)
        before = traffic.done
        began = monotonic()
        await until(lambda: traffic.done > before + 100 and monotonic() - began > 8, 30)
    assert traffic.failures == []
    await stamp(router, client)
    await in_table(router, until, "s1")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--upstream", "127.0.0.1:1", "--endpoint", "e"), "--upstream"),
        (("--upstream", "https://h:1", "--endpoint", "e"), "--upstream"),
        (("--upstream", "http://h", "--endpoint", "e"), "--upstream"),
        (("--upstream", "http://h:1"), "--endpoint"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--listen", "0.0.0.0:0"), "--unauthenticated"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--listen", "0.0.0.0:0", "--unauthenticated"), "--advertise"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--advertise", "nonsense"), "--advertise"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--store", "nonsense"), "--store"),
        (("--upstream", "http://h:1", "--endpoint", "e e"), "--endpoint"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--replica", "a b"), "--replica"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--listen-quic", "0.0.0.0:0"), "--unauthenticated"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--listen-quic", "nonsense"), "--listen-quic"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--attach-cert", __file__), "--attach-cert"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--attach", "127.0.0.1:1", "--attach-name", "a", "--attach-token", "t", "--attach-cert", __file__), "--attach-key"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--attach", "127.0.0.1:1", "--attach-name", "a", "--attach-token", "t", "--attach-cert", __file__, "--attach-key", __file__), "--attach-"),
        (("--upstream", "http://h:1", "--endpoint", "e", "--listen-quic", "127.0.0.1:0", "--attach", "127.0.0.1:1"), "--listen-quic"),
    ],
)
async def test_arguments_that_cannot_be_used_are_named(run_router, flags, says):
    done = await run_router("sidecar", *flags, "--", "true", within_s=8)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
async def test_an_engine_that_speaks_grpc(store, router, beside, until):
    """Ready by gRPC's health service, registered as h2c, called through router and sidecar, drained."""
    sidecar = await beside("g", grpc=True)
    await row_is(store, until, "g", "READY")
    await in_table(router, until, "g")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router.port}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=10) == b"\x08\x01"
        sidecar.signal(signal.SIGTERM)
        await in_table(router, until)
        assert await sidecar.wait() == 0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
