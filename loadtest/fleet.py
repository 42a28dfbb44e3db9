"""What fleet semantics cost, and how fast a revoked token is refused: one worker, one store, one run.

    python -m loadtest.fleet          # or: make bench-fleet
    python -m loadtest.fleet --rounds 9 --revocations 200

Figures:

* CPU of the worker per request: an endpoint that asks for nothing, in turns with one that has everything on (a
  token with a rate limit, regions with an order, a routing key, limits in flight on replica and endpoint) and with
  one that is sessioned, each request with one of 64 session tokens.
* From the request for a session to its token, the row in the store included.
* One look-up of a routing key among 10, 100 and 1,000 replicas of an endpoint, in this process, beside p2c's.
* From the commit that revokes a token to the first request that is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.cpu import cpu_ns, process_tree
from loadtest.percentiles import percentile, spread
from loadtest.store.rig import Process, store
from router.config.setup import initialise
from router.config.target import parse_target
from router.config.token_admin import change_token, create_token
from router.config.writer import Writer, open_writer
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import build

ANSWER_BODY = b'{"ok":true}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n" + ANSWER_BODY
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
CONNECTIONS = 8
SIZES = (10, 100, 1_000)
KEYS = 64
FULL = {
    "failover": ["us"], "limits": {"max_concurrency": 1_000, "endpoint_concurrency": 10_000},
    "affinity": {"load_factor": 1.25},
}  # fmt: skip


class Replica(asyncio.Protocol):
    """Answers each request with the same; a request is one read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Answer as many as have ended."""
        self._transport.write(ANSWER * max(1, data.count(BODY)))


class Client(asyncio.Protocol):
    """Asks again as soon as it is answered, until told to stop; counts what was not 200."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._turn = 0
        self.done = 0
        self.failed = 0
        self.is_over = False
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport: Any = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count, and ask again."""
        self.done += 1
        self.failed += not data.startswith(b"HTTP/1.1 200")
        if not self.is_over:
            self._ask()
        elif not self.stopped.done():
            self._transport.close()
            self.stopped.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count an end that nobody asked for."""
        if not self.stopped.done():
            self.failed += 1
            self.stopped.set_result(None)

    def _ask(self) -> None:
        self._turn = (self._turn + 1) % len(self._requests)
        self._transport.write(self._requests[self._turn])


class Fleet:
    """Store, router and replica of one run."""

    def __init__(self, router: Process, writer: Writer, replica_port: int) -> None:
        self.port = int(router.ready["listen"][0].rpartition(":")[2])
        self.worker = process_tree(router.pid)[1]
        self.writer = writer
        self._replica_port = replica_port

    async def endpoint(self, name: str, *, is_open: bool, policy: dict[str, Any]) -> None:
        """Make an endpoint with three replicas, two of them in the router's region."""
        await self.writer.put_endpoint(
            name, create=True, hosts=(f"{name}.example",), unauthenticated=is_open, policy=json.dumps(policy),
            health='{"kind":"none"}',
        )  # fmt: skip
        for i, region in enumerate(("eu", "eu", "us")):
            await self.writer.put_replica(
                name, f"{name}-{i}", create=True, region=region, address="127.0.0.1", port=self._replica_port
            )

    async def token(self, rate: str | None = None) -> tuple[str, str]:
        """Make a token; return its key, and its fields as they stand in a head."""
        made = await create_token(self.writer, "bench", "main", (), None, rate)
        return made["key"], f"modal-key: {made['key']}\r\nmodal-secret: {made['secret']}\r\n"

    async def status(self, request: bytes) -> int:
        """Ask once, on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])

    async def start(self, fields: str) -> str:
        """Start a session on the endpoint `sessioned`; return its token."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        line = "POST /_router/sessions/start HTTP/1.1\r\nhost: sessioned.example\r\n"
        asked = f"{line}{fields}content-length: 0\r\n\r\n"
        writer.write(asked.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: (\d+)", head)
        body = await reader.readexactly(int(length))
        writer.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(f"a session did not begin: {body.decode()}")
        return str(json.loads(body)["token"])

    async def until(self, request: bytes, status: int) -> None:
        """Wait until an answer has this status."""
        async with asyncio.timeout(20):
            while await self.status(request) != status:  # noqa: ASYNC110 - asked from outside
                await asyncio.sleep(0.005)

    async def load(self, requests: list[bytes], seconds: float) -> float:
        """Return the worker's CPU in microseconds a request."""
        loop = asyncio.get_running_loop()
        clients: list[Client] = []
        for _ in range(CONNECTIONS):
            _, client = await loop.create_connection(lambda: Client(requests), "127.0.0.1", self.port)
            clients.append(client)
        await asyncio.sleep(0.2)
        before, done = cpu_ns([self.worker])[self.worker], sum(client.done for client in clients)
        await asyncio.sleep(seconds)
        used = cpu_ns([self.worker])[self.worker] - before
        done = sum(client.done for client in clients) - done
        for client in clients:
            client.is_over = True
        await asyncio.gather(*(client.stopped for client in clients))
        failed = sum(client.failed for client in clients)
        if failed:
            raise click.ClickException(f"{failed} requests failed: the figures would be of something else")
        return used / done / 1e3


def request(host: str, fields: str = "") -> bytes:
    """Return one request as it stands on the wire."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}.example\r\ncontent-type: application/json\r\n"
        f"accept: */*\r\nuser-agent: bench\r\n{fields}content-length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


async def measure_cost(fleet: Fleet, rounds: int, progress: Progress) -> list[tuple[float, float, float]]:
    """Return (none, everything, with a session) in microseconds a request, for each round."""
    await fleet.endpoint("plain", is_open=True, policy={})
    await fleet.endpoint("full", is_open=False, policy=FULL)
    _, fields = await fleet.token('{"per_s": 1000000}')
    plain = [request("plain")]
    full = [request("full", f"{fields}x-routing-key: session-{i}\r\n") for i in range(KEYS)]
    await fleet.until(plain[0], 200)
    await fleet.until(full[0], 200)
    await fleet.endpoint("sessioned", is_open=False, policy={"sessions": {}})
    await fleet.until(request("sessioned"), 401)
    sessions = [request("sessioned", f"x-router-session: {await fleet.start(fields)}\r\n") for _ in range(KEYS)]
    found = []
    task = progress.add_task("CPU per request", total=rounds)
    for _ in range(rounds):
        found.append((await fleet.load(plain, 1.0), await fleet.load(full, 1.0), await fleet.load(sessions, 1.0)))
        progress.advance(task)
    return found


async def measure_starts(fleet: Fleet, count: int, progress: Progress) -> list[float]:
    """Return seconds from each request for a session to its token, ascending."""
    _, fields = await fleet.token()
    await fleet.until(request("full", fields), 200)
    found = []
    task = progress.add_task("sessions begun", total=count)
    for _ in range(count):
        began_s = perf_counter()
        await fleet.start(fields)
        found.append(perf_counter() - began_s)
        progress.advance(task)
    return sorted(found)


async def measure_revocation(fleet: Fleet, count: int, progress: Progress) -> list[float]:
    """Return seconds from each commit to the first refusal, ascending."""
    found = []
    task = progress.add_task("revoked tokens", total=count)
    for _ in range(count):
        key, fields = await fleet.token()
        asked = request("full", fields)
        await fleet.until(asked, 200)
        reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        await change_token(fleet.writer, key, delete=True)
        committed_s = perf_counter()
        while True:
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 401 " in head[:16]:
                break
            await reader.readexactly(len(ANSWER_BODY))
        found.append(perf_counter() - committed_s)
        writer.close()
        progress.advance(task)
    return sorted(found)


def measure_look_up(size: int) -> tuple[float, float]:
    """Return microseconds of one choice without and with a key, the best of some rounds."""
    replicas = tuple(ReplicaSpec(f"r{i}", f"http://10.0.{i // 250}.{i % 250 + 1}:80") for i in range(size))
    table = build(TableSpec(1, (EndpointSpec("e", replicas),), (RouteSpec("*", "/", "e"),)), 1.0)
    picker = table.endpoints["e"].picker
    keys = [b"session-%d" % i for i in range(2_000)]
    best = []
    for chosen in ([b""] * len(keys), keys):
        picker.choose(chosen[0], None, (), 1.0)
        rounds = []
        for _ in range(7):
            began = perf_counter_ns()
            for key in chosen:
                picker.choose(key, None, (), 1.0)
            rounds.append((perf_counter_ns() - began) / len(keys) / 1e3)
        best.append(min(rounds))
    return best[0], best[1]


async def run(rounds: int, revocations: int, console: Console) -> None:
    """Measure everything and print it."""
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", 0)
    replica_port = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="r") as name:
        folder = Path(name)
        setting = f"embedded:{folder}/s.sock"
        async with store(folder):
            await asyncio.to_thread(initialise, parse_target(setting))
            flags = ("--listen", "127.0.0.1:0", "--admin", "none", "--access-log", str(folder / "log"), "--json")
            where = ("--store", setting, "--state-dir", str(folder / "state"), "--region", "eu")
            async with (
                Process("router", "serve", *where, *flags) as router,
                open_writer(parse_target(setting)) as writer,
            ):
                fleet = Fleet(router, writer, replica_port)
                with Progress(console=Console(stderr=True)) as progress:
                    costs = await measure_cost(fleet, rounds, progress)
                    delays = await measure_revocation(fleet, revocations, progress)
                    starts = await measure_starts(fleet, revocations, progress)
    server.close()
    _show(console, costs, delays, starts)


def _show(
    console: Console, costs: list[tuple[float, float, float]], delays: list[float], starts: list[float]
) -> None:
    shown = Table("figure", "median", "range", "goal")
    for text, values, goal in (
        ("CPU/request, nothing asked for", [plain for plain, _, _ in costs], ""),
        ("CPU/request, full semantics", [full for _, full, _ in costs], ""),
        ("what they add", [full - plain for plain, full, _ in costs], "<= 10 us"),
        ("what a session adds", [sessioned - plain for plain, _, sessioned in costs], "<= 10 us"),
    ):
        seen = spread(values)
        assert seen is not None
        shown.add_row(text, f"{seen.median:.1f} us", f"{seen.low:.1f}-{seen.high:.1f}", goal)
    for size in SIZES:
        p2c, keyed = measure_look_up(size)
        shown.add_row(f"choice among {size:,}: p2c, by key", f"{p2c:.2f}, {keyed:.2f} us", "", "<= 5 us, flat")
    p50, p99 = percentile(delays, 0.5) * 1e3, percentile(delays, 0.99) * 1e3
    text = f"revoked to refused, {len(delays)} tokens"
    shown.add_row(text, f"p50 {p50:.1f} ms", f"p99 {p99:.1f} ms", "p99 <= 50 ms")
    p50, p99 = percentile(starts, 0.5) * 1e3, percentile(starts, 0.99) * 1e3
    shown.add_row(f"a session begun, {len(starts)} of them", f"p50 {p50:.1f} ms", f"p99 {p99:.1f} ms", "")
    console.print(shown)


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--revocations", default=100, show_default=True, type=click.IntRange(1))
def main(rounds: int, revocations: int) -> None:
    """Measure."""
    uvloop.run(run(rounds, revocations, Console()))


if __name__ == "__main__":
    main()
