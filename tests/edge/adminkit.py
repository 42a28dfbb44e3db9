"""A fake `AdminSource`, snapshots to feed it, and the admin listener around it on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from bisect import bisect_left

import httpx

from router.clock import Clock
from router.counters import BOUNDS_S, WorkerCounters
from router.deadlines import TICK_S, DeadlineWheel
from router.demand import EndpointDemand
from router.edge.admin import AdminListener
from router.edge.robot_views import merged_robots
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec, TokenSpec
from router.telemetry import EndpointSnapshot, HistogramSnapshot, ReplicaSnapshot, WorkerSnapshot
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.robot.shown import ShownRobot
from router.transport.outbox import Outbox
from router.transport.shell import Reactor

STARTED_EPOCH_S = time.time() - 60
TABLE = TableSpec(
    7,
    (
        EndpointSpec("llama", (ReplicaSpec("a:1", "http://a:1"), ReplicaSpec("b:1", "http://b:1", weight=2.0))),
        EndpointSpec("qwen", (ReplicaSpec("c:1", "http://c:1", state="DRAINING"),), policy="round_robin"),
    ),
    (RouteSpec("*", "/", "llama"), RouteSpec("qwen.example", "/", "qwen")),
    (TokenSpec(b"0123456789abcdef" * 2, "wk-1", "team-a"),),
)


def replica(endpoint="llama", name="a:1", **values):
    defaults = dict(
        endpoint=endpoint, id=name, address=f"http://{name}", state="READY", is_healthy=True, is_ready=True,
        is_ejected=False, weight=1.0, in_flight=0, requests=0, failures=0, backpressured=0, ejections=0,
        latency_s=0.0, pooled=0,
    )  # fmt: skip
    return ReplicaSnapshot(**(defaults | values))


def histogram(durations_s):
    found = HistogramSnapshot()
    for seconds in durations_s:
        found.counts[bisect_left(BOUNDS_S, seconds)] += 1
        found.sum_s += seconds
    return found


def endpoint(requests=0, *, statuses=None, duration_s=(), **values):
    statuses = statuses or ({200: requests} if requests else {})
    return EndpointSnapshot(requests=requests, statuses=statuses, duration=histogram(duration_s), **values)


def snapshot(worker=0, pid=100, *, endpoints=None, replicas=(), table_version=7, lag_s=(0.001,), **counters):
    endpoints = endpoints if endpoints is not None else {"llama": endpoint(), "": endpoint()}
    return WorkerSnapshot(
        worker=worker,
        pid=pid,
        table_version=table_version,
        draining=False,
        in_flight=sum(found.in_flight for found in endpoints.values()),
        counters={"connections_accepted": 0, "connections_open": 0, "upstream_open": 0} | counters,
        histograms={"loop_lag": histogram(lag_s), "gc_pause": histogram(())},
        endpoints=endpoints,
        replicas=list(replicas),
    )


def worker_state(index=0, pid=100, state="ready", restarts=0, stalled=False):
    return {"index": index, "pid": pid, "state": state, "restarts": restarts, "stalled": stalled}


def daemon_state(workers=None, *, reasons=(), draining=False):
    return {
        "ready": not reasons,
        "reasons": list(reasons),
        "workers": workers if workers is not None else [worker_state()],
        "started_epoch_s": STARTED_EPOCH_S,
        "version": "1.2.3",
        "draining": draining,
        "last_reload": {"ok": True, "error": None, "at_epoch_s": 1_700_000_000.0},
        "config_staleness_s": 0.0,
        "config": None,
        "sessions": {"open": {"llama": 2}, "in_use": 1, "started": {"llama": 5}, "ended": [["llama", "idle", 3]], "error": ""},
    }


def robot(session="s1", **values):
    defaults = dict(
        session=session, worker=0, client="192.0.2.1:5000", authority="arm.example", path="/arm", endpoint="llama", replica="a:1", epoch=1,
        upstream="websocket", transport="quic", age_s=12.0, badness_us=20_000, rtt_us=18_000, reported_rtt_us=20_000, reported_loss_ppm=0,
        reported_jitter_us=500, reported_gap_us=70_000, reported_late=0, reported_stale=0, reported_ago_s=0.4, gap_us=60_000, silent_us=10,
        gaps=[0] * 15, state_in=100, command_in=1, telemetry_in=0, state_out=99, command_out=2, stale_in=0, stale_out=0, late_in=0,
    )  # fmt: skip
    return ShownRobot(**(defaults | values))


class FakeSource:
    """Answers from attributes that a test sets; remembers what it was told."""

    def __init__(self):
        self.spec = TABLE
        self.no_upgrade = ""
        self.no_end = ""
        self.reasons = []
        self.workers = [worker_state()]
        self.taken = [
            snapshot(
                endpoints={
                    "llama": endpoint(3, in_flight=1, duration_s=(0.01,)),
                    "": endpoint(1, statuses={404: 1}),
                },
                replicas=[
                    replica(in_flight=2, requests=5, failures=1, latency_s=0.1, pooled=3),
                    replica(name="b:1", is_ejected=True),
                ],
            )
        ]
        self.unhealthy = {"b:1": "refused"}
        self.asked = 0
        self.robot_answers = []  # of workers
        self.robots_asked = []
        self.told = []
        self.hang = None  # an Event: `snapshots` waits for it
        self.was_cancelled = asyncio.Event()

    async def snapshots(self):
        self.asked += 1
        return self.taken

    async def demand(self):
        return {"llama": EndpointDemand(2, 9, 3, 0, 0)}

    def table(self):
        return self.spec

    def health(self):
        return [
            {
                "endpoint": e.name,
                "replica": r.id,
                "address": r.address,
                "is_healthy": r.id not in self.unhealthy,
                "reason": self.unhealthy.get(r.id, "200"),
                "checked_ago_s": 0.5,
            }
            for e in self.spec.endpoints
            for r in e.replicas
        ]

    def quarantine(self):
        return [{"table": "Replicas", "key": "e/r", "reason": "Port: none"}]

    def accept_held(self):
        self.told.append("accept")
        return 3

    def settings(self):
        return {"listen": ["127.0.0.1:8080"], "auth_token": "***"}

    def state(self):
        return daemon_state(self.workers, reasons=self.reasons)

    async def explain(self, asked):
        host, path = asked.host, asked.path
        if self.hang is not None:
            try:
                await self.hang.wait()
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise
        if host == "nobody":
            return {"error": "no worker answers"}
        if host == "bug":
            raise RuntimeError("a secret")
        return {"host": host, "path": path, "route": {"endpoint": "llama"}, "candidates": []}

    async def add_replica(self, url, endpoint, weight):
        if not url.startswith("http://"):
            raise ValueError(f"address {url!r} needs a scheme, as in http://127.0.0.1:30000")
        if weight == 7:
            raise ValueError("--replica: endpoint[0].replica[3].weight: Expected `float` <= 5.0")
        if endpoint == "none":
            raise ValueError("endpoint: there is none named 'none'")
        self.told.append(("add", url, endpoint, weight))
        return {"id": url.removeprefix("http://"), "endpoint": endpoint or "llama", "url": url}

    async def remove_replica(self, replica_id):
        if replica_id == "last":
            raise ValueError("id: it is the last one")
        self.told.append(("remove", replica_id))
        return any(r.id == replica_id for e in self.spec.endpoints for r in e.replicas)

    async def drain(self):
        self.told.append(("drain",))
        await asyncio.Event().wait()

    async def robots(self, limit, session):
        self.robots_asked.append((limit, session))
        return merged_robots(self.robot_answers, [], limit)

    def sessions(self, endpoint):
        shown = {"session": "s1", "endpoint": "llama", "replica": "a:1", "idle_timeout_s": 60, "busy": True, "idle_s": 0.0}
        return [shown] if endpoint in (None, "llama") else []

    async def end_session(self, session_id):
        self.told.append(("end", session_id))
        return self.no_end

    def upgrade(self):
        self.told.append(("upgrade",))
        return self.no_upgrade

    def set_ready(self, ready):
        self.told.append(("ready", ready))
        self.reasons = [] if ready else ["failed by the operator"]

    def set_log_level(self, level):
        self.told.append(("level", level))


class Served:
    """A running admin listener, its port, and clients of it."""

    def __init__(self, source, listener, where):
        self.source = source
        self.listener = listener
        self.where = where

    @property
    def url(self):
        return f"http://127.0.0.1:{self.where[1]}"

    def client(self, **options):
        return httpx.AsyncClient(base_url=self.url, trust_env=False, **options)

    async def raw(self, data, *, end=False):
        """Send bytes, return all that comes until the end."""
        reader, writer = await asyncio.open_connection(*self.where)
        writer.write(data)
        if end:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serve(source=None, *, token="", limits=None, path=None):
    """Serve `source` on a free TCP port, or on a Unix socket at `path`."""
    source = source or FakeSource()
    clock = Clock()
    outbox = Outbox(clock)
    wheel = DeadlineWheel(clock.now)
    listener = AdminListener(
        source, Reactor(clock, outbox, wheel, WorkerCounters()), limits or ServerLimits(), token
    )
    sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    sock.bind(str(path) if path else ("127.0.0.1", 0))
    where = sock.getsockname()
    await listener.listen([sock])
    loop = asyncio.get_running_loop()
    timer = None

    def tick():
        nonlocal timer
        wheel.turn(clock.read())
        outbox.flush()
        timer = loop.call_later(TICK_S, tick)

    tick()
    try:
        yield Served(source, listener, where)
    finally:
        timer.cancel()
        listener.close()
        for _ in range(3):
            await asyncio.sleep(0)  # transports say goodbye in the next turns of the loop
