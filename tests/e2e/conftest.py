"""Fixtures: the real daemon as a child process, replicas behind it, and what a test may ask of both.

Every async test of this folder runs on the session's loop, because replicas that many tests share live there.
A daemon is ended by its process id, and its workers by theirs, whatever became of the test; a traceback on its
stderr fails the test that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
from certkit import Authority
from childkit import first_line

from inference_backend.launch import ReplicaProcess

START_S = 30.0
STOP_S = 10.0


async def poll(condition, within_s=10.0):
    """Ask a condition, sync or async, until it is truthy, and return what it returned."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {within_s} s"
        await asyncio.sleep(0.01)


def child_env(extra=None):
    """The environment without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "SIM_"))}
    return kept | (extra or {})


def is_gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Router:
    """One daemon: where it listens, its records, its state, its end."""

    def __init__(self, folder, client):
        self.folder = Path(folder)
        self.log_path = self.folder / "access.log"
        self.toml_path = self.folder / "router.toml"
        self._stderr_path = self.folder / "stderr"
        self._client = client
        self.process = None
        self.listen = []
        self.admin = ""

    async def start(self, command, arguments, env):
        """Start the process and read its ready line."""
        with self._stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", command, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=child_env(env),
            )  # fmt: skip
        line = await asyncio.to_thread(first_line, self.process)
        try:
            ready = json.loads(line)
        except ValueError:
            raise AssertionError(f"no ready line but {line!r}; stderr:\n{self.stderr()}") from None
        assert ready["event"] == "ready"
        self.ready = ready
        self.listen = ready["listen"] if isinstance(ready["listen"], list) else [ready["listen"]]
        self.admin = ready["admin"]
        return self

    @property
    def url(self):
        return self.listen[0]

    @property
    def port(self):
        return httpx.URL(self.url).port

    @property
    def pid(self):
        return self.process.pid

    def stderr(self):
        return self._stderr_path.read_text(errors="replace")

    # -- the admin listener ----------------------------------------------------------------------------

    async def ask(self, path, method="GET", **more):
        """Ask the admin listener, on a connection of its own."""
        headers = {"connection": "close", **more.pop("headers", {})}
        return await self._client.request(method, self.admin + path, headers=headers, **more)

    async def rows(self):
        """The replicas of /clusters, of all endpoints."""
        found = (await self.ask("/clusters?format=json")).json()
        return [row for endpoint in found["endpoints"] for row in endpoint["replicas"]]

    async def row(self, replica):
        """The one replica of this id, or behind this URL."""
        wanted = replica.partition("://")[2] or replica
        (found,) = [row for row in await self.rows() if row["id"] == wanted]
        return found

    async def workers(self):
        return (await self.ask("/server_info")).json()["workers"]

    async def worker_pid(self):
        (worker,) = await self.workers()
        return worker["pid"]

    async def settled(self):
        """Nothing is in flight on any replica: no lease leaked."""

        async def idle():
            return all(row["in_flight"] == 0 for row in await self.rows())

        await poll(idle)

    # -- the access log --------------------------------------------------------------------------------

    def records(self, path=None):
        """Every whole line of the access log."""
        path = path or self.log_path
        if not path.exists():
            return []
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    async def record(self, request_id):
        """The one record of this request, once it is written."""

        def found():
            return [record for record in self.records() if record["request_id"] == request_id]

        records = await poll(found)
        assert len(records) == 1, records
        return records[0]

    # -- the end ---------------------------------------------------------------------------------------

    def send_signal(self, number):
        self.process.send_signal(number)

    async def wait(self, within_s=STOP_S):
        """The exit code, once it has ended."""
        return await asyncio.to_thread(self.process.wait, within_s)

    async def stop(self):
        await asyncio.to_thread(self.end)

    def end(self):
        """End it if it runs; its workers must be gone with it, and nothing of it may have crashed."""
        if self.process is None or self.process.stdout.closed:
            return
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        _, left = psutil.wait_procs(children, timeout=STOP_S)
        left = [child for child in left if not is_gone(child.pid)]
        for child in left:
            child.kill()
        assert not left, f"left behind: {left}"
        assert "Traceback" not in self.stderr(), self.stderr()


@asynccontextmanager
async def router_factory(tmp_path_factory, client):
    """Start routers; all of them are stopped at the end."""
    routers = []

    async def start(*arguments, replicas=(), toml=None, workers=1, env=None, command="serve", plain=False):
        router = Router(tmp_path_factory.mktemp("router"), client)
        routers.append(router)
        flags = ["--json", "--admin", "127.0.0.1:0"]
        if not plain:  # else a file of the test's own says it
            flags += ["--listen", "127.0.0.1:0", "--workers", workers]
        flags += ["--access-log", router.log_path]
        for replica in replicas:
            flags += ["--replica", replica.replace("ws://", "http://")]
        if toml is not None:
            router.toml_path.write_text(toml)
            flags += ["--config", router.toml_path]
        return await router.start(command, [*flags, *arguments], env)

    try:
        yield start
    finally:
        failures = []
        for router in routers:
            try:
                await router.stop()
            except AssertionError as failure:  # the others must be stopped as well
                failures.append(str(failure))
        assert not failures, "\n".join(failures)


@asynccontextmanager
async def replica_factory(kind):
    """Start engines or policy servers; all of them are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(**options):
            return await stack.enter_async_context(kind(**options))

        yield start


@pytest.fixture(scope="session")
def until():
    """Bounded polling: `await until(condition, within_s)`."""
    return poll


@pytest.fixture(scope="session")
def gone():
    return is_gone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client():
    """A client that follows no environment; connections are kept alive."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=30, trust_env=False, limits=limits) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def start_router(tmp_path_factory, client):
    """`await start_router(*flags, replicas=[url, …], toml=None, workers=1, env=None)`; ends with the test."""
    async with router_factory(tmp_path_factory, client) as start:
        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keep_router(tmp_path_factory, client):
    """As `start_router`; ends with the module."""
    async with router_factory(tmp_path_factory, client) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def start_engine():
    async with replica_factory(ReplicaProcess.simulate) as start:
        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keep_engine():
    async with replica_factory(ReplicaProcess.simulate) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def start_policy():
    async with replica_factory(ReplicaProcess.policy) as start:
        yield start


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine():
    """An engine with steps of 7 ms, as the real one's, for every test that does not harm it."""
    async with ReplicaProcess.simulate(time_scale=1, history=5_000) as replica:
        yield replica


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def policy():
    """A policy server for every test that does not harm it."""
    async with ReplicaProcess.policy() as replica:
        yield replica


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with an authority (ca.pem), its certificate for localhost (local.pem, .key) and a client's."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", "127.0.0.1").write(folder, "local")
    authority.client().write(folder, "client")
    return folder


@pytest.fixture(scope="session")
def journal_of(client):
    """`await journal_of(engine, request_id)`: the engine's closed record of one request."""

    async def find(engine, request_id, within_s=10.0):
        async def closed():
            found = (await client.get(f"{engine.url}/_sim/requests")).json()["recent"]
            return next((r for r in found if r["headers"].get("x-request-id") == request_id), None)

        return await poll(closed, within_s)

    return find


@pytest.fixture
def run_router():
    """`await run_router(*arguments, env=None)`: run to the end; a completed process with text."""

    async def run(*arguments, env=None, within_s=START_S):
        return await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "router", *map(str, arguments)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=child_env(env), timeout=within_s,
        )  # fmt: skip

    return run


@pytest_asyncio.fixture(loop_scope="session")
async def start_server():
    """`await start_server(serve)`: a raw TCP server in this loop, `serve(reader, writer)`; returns its URL."""
    servers = []
    writers = set()

    async def start(serve, **options):
        async def handle(reader, writer):
            writers.add(writer)
            try:
                await serve(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
                writers.discard(writer)

        server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for writer in list(writers):
        writer.transport.abort()
    await poll(lambda: not writers)


@pytest.fixture
def closed_port():
    """A URL at which nothing listens: the port is bound and never listened on."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def raise_file_limit():
    """Allow as many open files as the system does; children started from now on inherit it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def raise_to(wanted):
        soft, hard = before
        if hard != resource.RLIM_INFINITY and hard < wanted:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
                return wanted
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return max(allowed, soft)

    yield raise_to
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest_asyncio.fixture(loop_scope="session")
async def start_grpc():
    """`await start_grpc("aio" | "sync")`: the service of grpckit in a process of its own, with `.url`, `.port`, `.kill()`."""
    sys.path.insert(0, str(Path(__file__).parent))
    from grpckit import GrpcProcess  # grpcio is of an extra that only some tests need

    started = []

    async def start(flavour="aio"):
        started.append(GrpcProcess(flavour))
        return await asyncio.to_thread(started[-1].start)

    yield start
    for process in started:
        await asyncio.to_thread(process.stop)
