"""The processes of one measurement, rows to fill a store with, and traffic that notices everything.

Replicas of the filled tables have addresses of this machine (127/8) that nobody listens on, and are not checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Self

import httpx

from loadtest.cpu import cpu_ns, process_tree
from router.config.client import COMMIT_TIME, StoreClient
from router.config.setup import initialise
from router.config.target import parse_target
from router.telemetry import HistogramSnapshot
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUCKET = re.compile(r'^(\w+)_bucket\{(?:.*,)?le="([^"]+)".*\} (\S+)$', re.MULTILINE)
REPLICA = (
    "EndpointId", "ReplicaId", "NodeId", "RegionId", "Zone", "Address", "Port", "Weight", "State", "Generation",
    "UpdatedAt",
)  # fmt: skip
NO_CHECKS = '{"kind":"none"}'


class Process:
    """One `python -m …` of ours that prints a JSON line when it is ready."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self.ready: dict[str, Any] = {}
        self.ready_s = 0.0

    async def __aenter__(self) -> Self:
        began_s = perf_counter()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        self.ready = json.loads(line)
        self.ready_s = perf_counter() - began_s
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end(signal.SIGINT)

    async def end(self, number: int) -> None:
        """Signal it and wait."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds of it and its children."""
        return sum(cpu_ns(process_tree(self.pid)).values()) / 1e9


def store(folder: Path, *options: str) -> Process:
    """Make an embedded store in `folder`."""
    where = f"unix:{folder}/s.sock"
    return Process("router", "store", "--data", str(folder), "--listen", where, "--json", *options)


def target(folder: Path) -> str:
    """Return how to name the store in `folder`."""
    return f"embedded:{folder}/s.sock"


class Router(Process):
    """A router on the store in `folder`."""

    def __init__(self, folder: Path, state: Path, *options: str, upstream: str = "") -> None:
        super().__init__(
            "router", "serve", "--store", upstream or target(folder), "--state-dir", str(state),
            "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain-settle-s", "0", "--json", *options,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where it serves."""
        return str(self.ready["listen"][0])

    async def admin(self, path: str) -> httpx.Response:
        """Ask the admin listener."""
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            return await client.get(f"{self.ready['admin']}{path}")

    async def config(self) -> dict[str, Any]:
        """Return the state of its config agent."""
        found: dict[str, Any] = (await self.admin("/server_info")).json()["config"]
        return found

    async def histogram(self, name: str) -> HistogramSnapshot:
        """Return a histogram, summed over workers."""
        text = (await self.admin("/metrics")).text
        by_bound: dict[float, float] = {}
        for found, bound, count in _BUCKET.findall(text):
            if found == name:
                at = float("inf") if bound == "+Inf" else float(bound)
                by_bound[at] = by_bound.get(at, 0.0) + float(count)
        snapshot = HistogramSnapshot()
        before = 0.0
        for i, (_, count) in enumerate(sorted(by_bound.items())):
            snapshot.counts[i] = int(count - before)
            before = count
        return snapshot

    async def until(self, rows: int, within_s: float = 60.0) -> float:
        """Wait until it follows a store of so many replicas; return how long that took."""
        began_s = monotonic()
        while monotonic() < began_s + within_s:
            with contextlib.suppress(httpx.TransportError):
                config = await self.config()
                if config["connected"] and config["rows"]["Replicas"] >= rows:
                    return monotonic() - began_s
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the router did not have {rows} replicas within {within_s:g} s")

    def workers_rss_mib(self) -> float:
        """Memory of the largest worker."""
        sizes = [0.0]
        for pid in process_tree(self.pid):
            with contextlib.suppress(OSError):
                if "router.worker" in Path(f"/proc/{pid}/cmdline").read_text():
                    fields = Path(f"/proc/{pid}/statm").read_text().split()
                    sizes.append(int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return max(sizes)


async def connect(folder: Path) -> StoreClient:
    """Make the schema and open a client."""
    found = parse_target(target(folder))
    await asyncio.to_thread(initialise, found)
    client = StoreClient(found)
    await client.open_session()
    return client


def replica_row(i: int, per_endpoint: int, state: str = "READY") -> list[Any]:
    """Return row `i` of a filled table."""
    return [
        f"e{i // per_endpoint:05d}", f"replica-{i:07d}", f"node-{i // 8}", "here", "a",
        f"127.{64 + (i >> 16 & 63)}.{i >> 8 & 255}.{i & 255}", 8_000 + i % 1_000, 1.0, state, 1, COMMIT_TIME,
    ]  # fmt: skip


async def fill(client: StoreClient, replicas: int, per_endpoint: int) -> None:
    """Write endpoints with a host each, and their replicas."""
    for block in _blocks(-(-replicas // per_endpoint), 400):
        names = [f"e{i:05d}" for i in block]
        hosts = [f"{name}.localhost" for name in names]
        await client.write([
            ("insert", "Endpoints", ("EndpointId", "Environment", "Health", "State", "UpdatedAt"),
             [[name, "main", NO_CHECKS, "ACTIVE", COMMIT_TIME] for name in names]),
            ("insert", "RouteSets", ("RouteSetId", "UpdatedAt"), [[host, COMMIT_TIME] for host in hosts]),
            ("insert", "Routes", ("RouteSetId", "RouteId", "Priority", "Action", "UpdatedAt"),
             [[h, "/", 0, json.dumps({"endpoint": n}), COMMIT_TIME] for h, n in zip(hosts, names, strict=True)]),
            ("insert", "Hosts", ("Host", "RouteSetId", "UpdatedAt"), [[host, host, COMMIT_TIME] for host in hosts]),
        ])  # fmt: skip
    for block in _blocks(replicas, 1_500):
        await client.write([("insert", "Replicas", REPLICA, [replica_row(i, per_endpoint) for i in block])])


def _blocks(count: int, size: int) -> Iterator[range]:
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


class Traffic:
    """Requests at a fixed rate on keep-alive connections; every answer that is not 200 is a failure."""

    def __init__(self, url: str, host: str, rate: float, connections: int = 8) -> None:
        self._url = url
        self._host = host
        self._gap_s = 1.0 / rate
        self._limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self.latencies_s: list[float] = []
        self.failures: list[str] = []
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        """Send for so long."""
        async with httpx.AsyncClient(limits=self._limits, timeout=10, trust_env=False) as client:
            began_s = monotonic()
            sent = 0
            while monotonic() < began_s + seconds:
                due_s = began_s + sent * self._gap_s
                await asyncio.sleep(max(0.0, due_s - monotonic()))
                task = spawn(self._one(client, due_s), "request")
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                sent += 1
            if self._running:
                await asyncio.wait(self._running)

    async def _one(self, client: httpx.AsyncClient, due_s: float) -> None:
        try:
            answer = await client.get(f"{self._url}/v1/models", headers={"host": self._host})
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code} {answer.headers.get('x-router-error', '')}")
        except httpx.HTTPError as failure:
            self.failures.append(type(failure).__name__)
        self.latencies_s.append(monotonic() - due_s)
