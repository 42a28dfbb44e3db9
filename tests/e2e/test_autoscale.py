"""From no replica at all to as many as are wanted and back: a store, a router, an autoscaler, simulated engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from storekit import StoreProcess, child_env  # noqa: E402

from router.autoscale.processes import find_sidecars  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120), pytest.mark.slow]
HOST = {"host": "h"}
SHORT = {"target_concurrency": 2, "max_replicas": 3, "scaledown_window_s": 2}


class Autoscaler:
    """One `router autoscale --json`, and the events it told."""

    def __init__(self, store, folder, number):
        self._store = store
        self._out = folder / f"autoscale-{number}.out"
        self._err = folder / f"autoscale-{number}.err"
        self.process = None

    def start(self, *flags):
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "autoscale", "--store", self._store.setting, "--json",
                 "--engine-args", "--time-scale 0.2", "--exit-grace-s", "5", "--engine-grace-s", "3", *map(str, flags)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=child_env(),
            )  # fmt: skip
        return self

    def events(self, event=None):
        whole, _, _ = self._out.read_bytes().rpartition(b"\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [each for each in found if event in (None, each["event"])]

    async def told(self, until, event, count=1, within_s=30.0):
        await until(lambda: len(self.events(event)) >= count or self.process.poll() is not None, within_s)
        assert len(self.events(event)) >= count, (self.events(), self.stderr())
        return self.events(event)

    def stderr(self):
        return self._err.read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    async def stop(self, within_s=30.0):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, within_s)

    def end(self):
        if self.process is not None:
            if self.process.poll() is None:
                self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
            assert "Traceback" not in self.stderr(), self.stderr()


def sidecars(store):
    return {replica: pid for pid, _, replica in find_sidecars(store.target.key)}


@pytest_asyncio.fixture(loop_scope="session")
async def store():
    with tempfile.TemporaryDirectory(prefix="r") as name:
        found = StoreProcess(Path(name))
        try:
            await found.start()
            yield found
        finally:
            left = list(sidecars(found).values())  # replicas outlive their autoscaler: that is what they are to do
            processes = [psutil.Process(pid) for pid in left]
            for _ in range(2):
                for pid in left:
                    with_signal(pid, signal.SIGTERM)
            _, alive = psutil.wait_procs(processes, timeout=15)
            for process in alive:
                process.kill()
            await asyncio.to_thread(found.end)
            assert not alive


def with_signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@pytest_asyncio.fixture(loop_scope="session")
async def autoscale(store):
    """`autoscale(*flags)`: one autoscaler of the store; all end with the test."""
    started = []

    def start(*flags):
        started.append(Autoscaler(store, store.folder, len(started)))
        return started[-1].start(*flags)

    yield start
    failures = []
    for each in started:
        try:
            await asyncio.to_thread(each.end)
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, failures


@pytest_asyncio.fixture(loop_scope="session")
async def router(start_router, store):
    return await start_router("--store", store.setting, "--state-dir", store.folder / "state", "--drain-settle-s", 0)


async def endpoint(store, name="e", hosts=("*",), **scaling):
    async with store.writer() as writer:
        policy = json.dumps({"scaling": SHORT | scaling})
        await writer.put_endpoint(name, create=True, unauthenticated=True, hosts=hosts, policy=policy)


async def states(store, name="e"):
    async with store.writer() as writer:
        return {row["replica"]: row["state"] for row in await writer.replicas(name)}


async def ready(store, count, until, within_s=40.0):
    async def has():
        return sum(state == "READY" for state in (await states(store)).values()) == count

    await until(has, within_s)


async def ask(router, client):
    return await client.post(router.url + "/_sim/echo", content=b"x", headers=HOST)


class Load:
    """`count` streams at a time, of which each takes about a second."""

    def __init__(self, client, router, count):
        self._client, self._router, self._count = client, router, count
        self.statuses = []
        self._is_over = False

    async def __aenter__(self):
        self._task = asyncio.gather(*(self._loop() for _ in range(self._count)))
        return self

    async def __aexit__(self, *_):
        self._is_over = True
        await self._task

    async def _loop(self):
        body = {"model": "m", "stream": True, "max_tokens": 600, "messages": [{"role": "user", "content": "x"}]}
        while not self._is_over:
            answer = await self._client.post(self._router.url + "/v1/chat/completions", json=body, headers=HOST)
            self.statuses.append(answer.status_code)
            if answer.status_code != 200:
                await asyncio.sleep(0.2)


async def test_from_nothing_up_under_load_down_again_and_to_nothing(store, router, autoscale, client, until):
    await endpoint(store)
    keeper = autoscale("--endpoint", "e")
    await keeper.told(until, "desired")
    first = await until(lambda: _refused(router, client))
    assert first.headers["x-router-error"] == "no_replica"
    assert int(first.headers["retry-after"]) >= 1
    demand = (await router.ask("/v1/demand")).json()
    assert demand["endpoints"][0]["unserved"] >= 1
    assert demand["endpoints"][0]["scaling"]["target_concurrency"] == 2

    async def serves():
        return (await ask(router, client)).status_code == 200

    await ready(store, 1, until)  # who asks again all the time asks for more than one
    await until(serves)
    assert len(await states(store)) == 1
    async with Load(client, router, 6) as load:
        await ready(store, 3, until)
        asked = len(load.statuses)
        await until(lambda: len(load.statuses) > asked + 6, 20)
    assert set(load.statuses) == {200}
    await ready(store, 0, until)  # the window is two seconds
    await until(lambda: not sidecars(store), 20)
    assert await states(store) == {}
    told = [each["replicas"] for each in keeper.events("desired")]
    assert told[0] == 0 and max(told) == 3 and told[-1] == 0
    assert not keeper.events("lost") and not keeper.events("late")
    assert len(keeper.events("start")) == 3
    assert await keeper.stop() == 0


async def _refused(router, client):
    """The answer once every worker has the endpoint; without any, a 503 is nobody's."""
    dump = (await router.ask("/config_dump")).json()
    version = dump["table"]["version"] if dump["table"]["endpoints"] else None
    if {worker["table_version"] for worker in dump["workers"]} != {version}:
        return None
    answer = await ask(router, client)
    return answer if answer.status_code == 503 else None


async def test_who_is_not_let_in_starts_nothing(store, start_router, autoscale, client, until):
    router = await start_router(
        "--store", store.setting, "--state-dir", store.folder / "state", "--drain-settle-s", 0, "--auth-token", "t",
        workers=2,
    )  # fmt: skip
    await endpoint(store)
    await endpoint(store, "other", hosts=("other",))
    keeper = autoscale("--all")
    await keeper.told(until, "desired", 2)

    async def has_route():
        found = await client.get(router.url + "/", headers={"host": "other", "authorization": "Bearer t"})
        return found.status_code == 503

    await until(has_route)
    for _ in range(20):
        assert (await ask(router, client)).status_code == 401
    await until(lambda: any(each["endpoint"] == "other" for each in keeper.events("start")))
    # The other endpoint's request came last and has started a replica: the refused ones would have, too.
    assert {each["endpoint"] for each in keeper.events("start")} == {"other"}
    demand = {each["endpoint"]: each for each in (await router.ask("/v1/demand")).json()["endpoints"]}
    assert (demand["e"]["arrivals"], demand["e"]["unserved"]) == (0, 0)
    assert demand["other"]["unserved"] >= 1


@pytest.mark.slow
async def test_live_sessions_hold_their_replica(store, autoscale, until):
    await endpoint(store, min_replicas=2)
    keeper = autoscale("--endpoint", "e")
    await ready(store, 2, until)
    kept = min(await states(store))
    columns = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
    commit = "spanner.commit_timestamp()"
    async with store.writer() as writer:
        rows = [("live", "e", kept, "OPEN", 600, commit, commit), ("over", "e", kept, "ENDED", 600, commit, commit)]
        await writer.write([("insert", "Sessions", columns, rows)])
        await writer.put_endpoint("e", create=False, policy=json.dumps({"scaling": SHORT}))
    await until(lambda: keeper.events("stop"), 20)
    await until(lambda: keeper.events("gone"), 20)
    assert await states(store) == {kept: "READY"}
    assert keeper.events("desired")[-1]["reason"] == "live sessions"
    async with store.writer() as writer:
        await writer.write([("update", "Sessions", ("SessionId", "State", "UpdatedAt"), [("live", "ENDED", commit)])])
    await ready(store, 0, until)


@pytest.mark.slow
async def test_an_autoscaler_that_is_killed_leaves_replicas_and_the_next_takes_them_over(store, autoscale, until):
    await endpoint(store, min_replicas=2)
    first = autoscale("--endpoint", "e")
    await until(lambda: len(sidecars(store)) == 2, 20)
    first.kill()  # while they start
    before = sidecars(store)
    second = autoscale("--endpoint", "e", "--stop-replicas")
    await second.told(until, "standing by")
    await second.told(until, "on duty", within_s=30)
    await ready(store, 2, until)
    assert sidecars(store) == before
    assert set(await states(store)) == set(before)
    assert not second.events("start")
    third = autoscale("--endpoint", "e", "--once")
    assert await asyncio.to_thread(third.process.wait, 30) == 1
    assert "on duty" in third.stderr()
    assert await second.stop() == 0
    assert sidecars(store) == {}
    assert await states(store) == {}


@pytest.mark.slow
async def test_a_replica_whose_process_is_killed_is_replaced_at_once(store, autoscale, until):
    await endpoint(store, min_replicas=1)
    keeper = autoscale("--endpoint", "e")
    await ready(store, 1, until)
    ((name, pid),) = sidecars(store).items()
    os.kill(pid, signal.SIGKILL)
    (lost,) = await keeper.told(until, "lost")
    assert lost["replica"] == name
    assert len(await keeper.told(until, "start", 2)) == 2

    async def replaced():
        found = await states(store)
        return list(found.values()) == ["READY"] and name not in found

    await until(replaced, 30)


@pytest.mark.slow
async def test_a_dry_run_starts_nothing_and_once_does(store, autoscale, until):
    await endpoint(store, min_replicas=1)
    dry = autoscale("--endpoint", "e", "--endpoint", "nobody", "--dry-run", "--once")
    assert await asyncio.to_thread(dry.process.wait, 30) == 0
    assert dry.events("desired")[-1]["replicas"] == 1
    assert dry.events("skipped") == [pytest.approx({**dry.events("skipped")[0], "endpoint": "nobody"})]
    assert sidecars(store) == {}
    once = autoscale("--endpoint", "e", "--once")
    assert await asyncio.to_thread(once.process.wait, 30) == 0
    await ready(store, 1, until)
    assert len(sidecars(store)) == 1


@pytest.mark.slow
async def test_replicas_by_command(store, autoscale, until):
    """The commands are `router replica create` and `delete` themselves."""
    own = f"{sys.executable} -m router replica"
    await endpoint(store, min_replicas=1)
    keeper = autoscale(
        "--endpoint", "e", "--launch", "command", "--region", "eu",
        "--launch-command", f"{own} create --store {store.setting} {{endpoint}} {{replica}} --address h --port 1 --region {{region}}",
        "--stop-command", f"{own} delete --store {store.setting} {{endpoint}} {{replica}}",
    )  # fmt: skip
    await ready(store, 1, until)
    async with store.writer() as writer:
        await writer.put_replica("e", "by-hand", create=True, address="h", port=2)
        await writer.put_endpoint("e", create=False, policy=json.dumps({"scaling": SHORT}))
        assert {row["region"] for row in await writer.replicas("e", keeper.events("start")[0]["replica"])} == {"eu"}
    await ready(store, 1, until)
    assert await states(store) == {"by-hand": "READY"}  # counted, and not ours to stop
    await keeper.told(until, "gone")
    keeper.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(keeper.process.wait, 15) == 130


async def test_what_a_router_is_asked_for_is_in_the_store_until_it_ends(store, start_router, client, until):
    router = await start_router(
        "--store", store.setting, "--state-dir", store.folder / "state", "--drain-settle-s", 0, "--region", "eu", workers=2
    )
    await endpoint(store)
    await until(lambda: _refused(router, client))

    async def rows():
        async with store.writer() as writer:
            return await writer.query("SELECT EndpointId, Arrivals, Unserved, RegionId FROM Demand")

    found = await until(rows)
    assert [(row[0], row[3]) for row in found] == [("e", "eu")]
    assert int(found[0][1]) == int(found[0][2]) >= 1
    told = (await router.ask("/v1/demand")).json()["published"]
    assert (told["region"], told["rows"], told["error"], told["failures"]) == ("eu", 1, "", 0)
    assert f"router_demand_commits_total {told['commits']}" in (await router.ask("/metrics")).text.replace(".0", "")
    before = int(found[0][1])
    (first, second) = await router.workers()
    os.kill(first["pid"], signal.SIGKILL)
    os.kill(second["pid"], signal.SIGKILL)

    async def has_grown():
        with contextlib.suppress(httpx.TransportError):
            await ask(router, client)
        return int((await rows())[0][1]) > before

    await until(has_grown)  # on from what the dead ones had counted
    router.send_signal(signal.SIGTERM)
    assert await router.wait() == 0
    assert await rows() == []


@pytest.mark.slow
async def test_behind_a_relay_demand_goes_to_the_store_that_it_follows(store, start_router, client, until):
    with tempfile.TemporaryDirectory(prefix="r") as name:
        relay = StoreProcess(Path(name))
        try:
            await relay.start("--follow", store.setting, init=False)
            router = await start_router(
                "--store", f"relay:{relay.path}", "--demand-store", store.setting, "--state-dir", Path(name) / "state",
                "--drain-settle-s", 0,
            )  # fmt: skip
            await endpoint(store)
            await until(lambda: _refused(router, client), 20)

            async def has_row():
                async with store.writer() as writer:
                    return await writer.query("SELECT * FROM Demand WHERE Unserved > 0")

            await until(has_row)
            await router.stop()
        finally:
            await asyncio.to_thread(relay.end)


async def test_a_static_table_tells_its_demand_too(start_router, start_engine, client, until):
    engine = await start_engine(time_scale=1)
    router = await start_router(replicas=[engine.url], workers=2)

    async def demand():
        return (await router.ask("/v1/demand")).json()

    async def serves():
        return (await client.post(router.url + "/_sim/echo", content=b"x")).status_code == 200

    await until(serves)
    before = (await demand())["endpoints"][0]["arrivals"]
    for _ in range(10):
        await client.post(router.url + "/_sim/echo", content=b"x", headers={"connection": "close"})
    body = {"model": "m", "stream": True, "max_tokens": 4_000, "messages": [{"role": "user", "content": "x"}]}
    async with client.stream("POST", router.url + "/v1/chat/completions", json=body) as stream:
        assert stream.status_code == 200

        async def is_counted():
            (found,) = (await demand())["endpoints"]
            return found["in_flight"] == 1 and found["arrivals"] == before + 11

        await until(is_counted)
        found = await demand()
    assert found["published"] is None
    assert {key: found["endpoints"][0][key] for key in ("endpoint", "unserved", "waiting", "replicas", "ready", "scaling")} == {
        "endpoint": "default", "unserved": 0, "waiting": 0, "replicas": 1, "ready": 1, "scaling": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "--endpoint NAME, or --all"),
        (("--all", "--endpoint", "e"), "--endpoint NAME, or --all"),
        (("--all", "--launch", "command"), "--launch-command: there is no command"),
        (("--all", "--launch", "command", "--launch-command", "x {replica}"), "--stop-command: there is no command"),
        (("--all", "--launch", "command", "--launch-command", "x", "--stop-command", "y"), "must name the replica"),
        (("--all", "--launch", "command", "--launch-command", "x {replica} {zone}", "--stop-command", "y"), "{zone}"),
        (("--all", "--launch-command", "x {replica}"), "--launch command"),
        (("--all", "--store", "relay://h:1"), "--store"),
        (("--all", "--engine-args", "'"), "--engine-args"),
    ],
)
async def test_usage(run_router, flags, text):
    done = await run_router("autoscale", *flags)
    assert done.returncode == 2
    assert text in done.stderr


async def test_a_store_that_is_never_there(run_router, tmp_path):
    done = await run_router("autoscale", "--all", "--store", f"embedded:{tmp_path}/n", "--store-start-timeout-s", "0.5")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
