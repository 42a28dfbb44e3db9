"""The measurements, each a coroutine that returns rows of (what, figure, goal, reached)."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from inference_backend.launch import ReplicaProcess
from loadtest.percentiles import distribution
from loadtest.store.rig import REPLICA, Process, Router, Traffic, connect, fill, replica_row, store, target
from router.config.client import COMMIT_TIME, StoreClient
from router.config.tail import HEARTBEAT_MS
from router.config.target import parse_target
from router.config.wire import Child, DataRecord
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import build
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

PER_ENDPOINT = 100


class Row(NamedTuple):
    """One figure. `goal` is a text; `reached` None where there is none."""

    what: str
    figure: str
    goal: str = ""
    reached: bool | None = None


def _at_most(what: str, value: float, limit: float, unit: str) -> Row:
    return Row(what, f"{value:.3g} {unit}", f"<= {limit:g} {unit}", value <= limit)


async def delay(folder: Path, state: Path, commits: int = 400) -> list[Row]:
    """From a commit to the table being in force in each of two workers."""
    async with store(folder):
        client = await connect(folder)
        await fill(client, 100, PER_ENDPOINT)
        async with Router(folder, state, "--workers", "2") as router:
            await router.until(100)
            for i in range(commits):
                row = replica_row(i % 100, PER_ENDPOINT, "DRAINING" if i // 100 % 2 == 0 else "READY")
                await client.write([("update", "Replicas", REPLICA, [row])])
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.0)
            seen = await router.histogram("router_config_delay_seconds")
        await client.close()
    missing = 2 * commits - sum(seen.counts)
    return [
        _at_most("commit to table, p50 (bucket's upper bound)", seen.quantile(0.5) * 1e3, 10, "ms"),
        _at_most("commit to table, p99 (bucket's upper bound)", seen.quantile(0.99) * 1e3, 50, "ms"),
        Row("commits that did not arrive", str(missing), "0", missing == 0),
    ]


async def bootstrap(folder: Path, state: Path, replicas: int = 100_000) -> list[Row]:
    """A large table: read from the store, started from the checkpoint, what it costs a worker."""
    rows = []
    async with store(folder):
        client = await connect(folder)
        began_s = time.perf_counter()
        await fill(client, replicas, PER_ENDPOINT)
        rows.append(Row(f"{replicas} replicas written", f"{time.perf_counter() - began_s:.1f} s"))
        empty = state / "empty"
        async with Router(folder, empty) as router:
            took_s = await router.until(replicas)
            await asyncio.sleep(2.0)
            lag = await router.histogram("router_loop_lag_seconds")
            rows += [
                _at_most("bootstrap, from ready to following", took_s, 5, "s"),
                _at_most("worker's loop stalled (bucket's upper bound)", lag.quantile(1.0) * 1e3, 10, "ms"),
                Row("worker's memory", f"{router.workers_rss_mib():.0f} MiB"),
            ]
        async with Router(folder, empty) as router:
            took_s = router.ready_s
            rows.append(Row("start with a checkpoint, from exec to accepting", f"{took_s:.2f} s"))
            await router.until(replicas)
        await client.close()
    async with Process(
        "router", "serve", "--replica", "http://127.0.0.1:1", "--health", "none", "--listen", "127.0.0.1:0",
        "--admin", "127.0.0.1:0", "--json", "--drain-settle-s", "0",
    ) as plain:  # fmt: skip
        rows.append(Row("start with one static replica, for comparison", f"{plain.ready_s:.2f} s"))
        rows.append(_at_most("so the checkpoint of the large table adds", took_s - plain.ready_s, 1, "s"))
    return rows


async def lookup(_folder: Path, _state: Path) -> list[Row]:
    """The cost of finding an endpoint, by the size of the table."""

    def cost_ns(replicas: int) -> float:
        endpoints = []
        routes = []
        for e in range(-(-replicas // PER_ENDPOINT)):
            count = min(PER_ENDPOINT, replicas - e * PER_ENDPOINT)
            members = tuple(ReplicaSpec(f"r{i}", f"http://127.0.0.1:{1 + i}") for i in range(count))
            endpoints.append(EndpointSpec(f"e{e}", members))
            routes.append(RouteSpec(f"e{e}.localhost", "/", f"e{e}"))
        table = build(TableSpec(1, tuple(endpoints), tuple(routes)), 0.0)
        hosts = [f"e{e * 7919 % len(endpoints)}.localhost".encode() for e in range(1_000)]
        best = float("inf")
        for _ in range(20):
            began_ns = time.perf_counter_ns()
            for host in hosts:
                table.route(host, b"/v1/chat/completions")
            best = min(best, (time.perf_counter_ns() - began_ns) / len(hosts))
        return best

    small, large = cost_ns(10), cost_ns(100_000)
    return [
        Row("look-up among 10 replicas", f"{small:.0f} ns"),
        Row("look-up among 100,000 replicas", f"{large:.0f} ns", "about the same", large < 3 * small + 200),
    ]


async def _serving(client: StoreClient, engine: str) -> None:
    """Add an endpoint `live` with one real replica."""
    port = engine.rpartition(":")[2]
    await client.write([
        ("insert", "Endpoints", ("EndpointId", "Environment", "State", "UpdatedAt"),
         [["live", "main", "ACTIVE", COMMIT_TIME]]),
        ("insert", "RouteSets", ("RouteSetId", "UpdatedAt"), [["live", COMMIT_TIME]]),
        ("insert", "Routes", ("RouteSetId", "RouteId", "Priority", "Action", "UpdatedAt"),
         [["live", "/", 0, '{"endpoint":"live"}', COMMIT_TIME]]),
        ("insert", "Hosts", ("Host", "RouteSetId", "UpdatedAt"), [["live.localhost", "live", COMMIT_TIME]]),
        ("insert", "Replicas", REPLICA,
         [["live", "r", "", "here", "a", "127.0.0.1", port, 1.0, "READY", 1, COMMIT_TIME]]),
    ])  # fmt: skip


async def outage(folder: Path, state: Path, seconds: float = 60.0, rate: float = 100.0) -> list[Row]:
    """The store is killed for a minute, under traffic."""
    async with ReplicaProcess.simulate(time_scale=0) as engine:
        process = store(folder)
        await process.__aenter__()
        client = await connect(folder)
        await fill(client, 200, PER_ENDPOINT)
        await _serving(client, engine.url)
        async with Router(folder, state) as router:
            await router.until(201)
            traffic = Traffic(router.url, "live.localhost", rate)
            running = spawn(traffic.run(seconds + 6), "traffic")
            await asyncio.sleep(2)
            await process.end(signal.SIGKILL)
            before = await router.config()
            supervisor = _supervisor_cpu_s(router)
            await asyncio.sleep(seconds)
            cpu_s = _supervisor_cpu_s(router) - supervisor
            during = await router.config()
            async with store(folder):
                recovered_s = await router.until(201)
                await running
        await client.close()
    attempts = (during["attempts"] - before["attempts"]) / seconds
    failed = len(traffic.failures)
    return [
        _at_most("attempts while the store is away", attempts, 5, "/s"),
        _at_most("CPU of the supervisor meanwhile", 100 * cpu_s / seconds, 2, "%"),
        Row(f"failed of {len(traffic.latencies_s)} requests", str(failed), "0", failed == 0),
        Row("following again after the store came back", f"{recovered_s:.1f} s"),
    ]


def _supervisor_cpu_s(router: Router) -> float:
    from loadtest.cpu import cpu_ns  # noqa: PLC0415

    return cpu_ns([router.pid])[router.pid] / 1e9


async def churn(folder: Path, state: Path, seconds: float = 15.0, changes: float = 400.0) -> list[Row]:
    """Traffic while rows change hundreds of times a second, beside the same traffic in quiet."""
    async with ReplicaProcess.simulate(time_scale=0) as engine, store(folder):
        client = await connect(folder)
        await fill(client, 1_000, PER_ENDPOINT)
        await _serving(client, engine.url)
        async with Router(folder, state) as router:
            await router.until(1_001)
            quiet = Traffic(router.url, "live.localhost", 200)
            await quiet.run(seconds / 2)
            busy = Traffic(router.url, "live.localhost", 200)
            running = spawn(busy.run(seconds), "traffic")
            began_s = time.monotonic()
            done = 0
            while time.monotonic() < began_s + seconds:
                row = replica_row(done % 1_000, PER_ENDPOINT, "DRAINING" if done // 1_000 % 2 == 0 else "READY")
                await client.write([("update", "Replicas", REPLICA, [row])])
                done += 1
                await asyncio.sleep(max(0.0, began_s + done / changes - time.monotonic()))
            await running
            lag = await router.histogram("router_loop_lag_seconds")
            seen = await router.histogram("router_config_delay_seconds")
        await client.close()
    calm, stirred = distribution(quiet.latencies_s), distribution(busy.latencies_s)
    assert calm is not None
    assert stirred is not None
    failed = len(busy.failures)
    return [
        Row("changes", f"{done / seconds:.0f} /s"),
        Row(f"failed of {len(busy.latencies_s)} requests", str(failed), "0", failed == 0),
        Row("p50 in quiet, under churn", f"{calm.p50_us / 1e3:.2f}, {stirred.p50_us / 1e3:.2f} ms", "no step"),
        Row("p99 in quiet, under churn", f"{calm.p99_us / 1e3:.2f}, {stirred.p99_us / 1e3:.2f} ms", "no step"),
        Row("worker's loop stalled (bucket's upper bound)", f"{lag.quantile(0.999) * 1e3:.3g} ms at 99.9 %"),
        Row("commit to table, p99 (bucket's upper bound)", f"{seen.quantile(0.99) * 1e3:.3g} ms"),
    ]


async def relay(folder: Path, _state: Path, readers: int = 300, commits: int = 40) -> list[Row]:
    """Many readers behind one relay: from the upstream's commit to each of them."""
    edge = folder / "relay"
    async with store(folder):
        client = await connect(folder)
        await fill(client, 100, PER_ENDPOINT)
        async with Process("router", "store", "--data", str(edge), "--listen", f"unix:{edge}/s.sock", "--json",
                           "--follow", target(folder)) as relaying:  # fmt: skip
            await asyncio.sleep(2.0)
            clients = [StoreClient(parse_target(f"relay:{edge}/s.sock")) for _ in range(max(1, readers // 50))]
            for one in clients:
                await one.open_session()
            start_us = int(time.time() * 1e6)
            (token,) = [
                record.token
                async for records in clients[0].changes(await _now_us(clients[0]), None, HEARTBEAT_MS)
                for record in records
                if isinstance(record, Child)
            ]
            latencies_s: list[float] = []

            async def read(one: StoreClient, from_us: int) -> None:
                async for records in one.changes(from_us, token, 10_000):
                    now_s = time.time()
                    commits_us = [record.commit_us for record in records if isinstance(record, DataRecord)]
                    latencies_s.extend(now_s - at_us / 1e6 for at_us in commits_us if at_us > start_us)

            from_us = await _now_us(clients[0])
            tasks = [spawn(read(clients[i % len(clients)], from_us), "reader") for i in range(readers)]
            await asyncio.sleep(3.0)
            cpu_s = relaying.cpu_s()
            for i in range(commits):
                row = replica_row(i, PER_ENDPOINT, "DRAINING")
                await client.write([("update", "Replicas", REPLICA, [row])])
                await asyncio.sleep(0.25)
            await asyncio.sleep(1.0)
            cpu_s = relaying.cpu_s() - cpu_s
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in clients:
                await one.close()
        await client.close()
    seen = distribution(latencies_s)
    assert seen is not None
    missing = readers * commits - len(latencies_s)
    return [
        _at_most(f"upstream's commit to {readers} readers, p50", seen.p50_us / 1e3, 25, "ms"),
        Row("p99", f"{seen.p99_us / 1e3:.1f} ms"),
        Row("records that did not arrive", str(missing), "0", missing == 0),
        Row("CPU of the relay for one record to one reader", f"{cpu_s / max(1, len(latencies_s)) * 1e6:.0f} us"),
    ]


async def _now_us(client: StoreClient) -> int:
    at = await client.read_time()
    return int(at.seconds) * 1_000_000 + int(at.nanos) // 1_000


MEASURES: dict[str, Callable[[Path, Path], Coroutine[None, None, list[Row]]]] = {
    "delay": delay, "bootstrap": bootstrap, "lookup": lookup, "outage": outage, "churn": churn, "relay": relay,
}  # fmt: skip
