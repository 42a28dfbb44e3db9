"""Robot sessions through the daemon: a robot by aioquic, replicas by the `websockets` library, real processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import websockets
from websockets.asyncio.server import serve

sys.path.insert(0, str(Path(__file__).parent))

from robotpeer import BYE, EPOCH, LINK, REFUSED, WELCOME, RobotPeer, now_us  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


def quic_flags(files, *more):
    return ("--listen-quic", "127.0.0.1:0", "--tls-cert", files / "local.pem", "--tls-key", files / "local.key", "--health", "none", *more)


@pytest_asyncio.fixture(loop_scope="session")
async def open_robot(files):
    made = []

    async def open_(router, **options):
        (url,) = [url for url in router.listen if url.startswith("quic://")]
        made.append(RobotPeer(httpx.URL(url).port, files / "ca.pem"))
        return await made[-1].begin(**options)

    yield open_
    for robot in made:
        robot.close()


class Policy:
    """A replica: says its name first, then answers what it gets with its name before it."""

    def __init__(self, name):
        self.name = name.encode()
        self.got = []
        self.closed = []
        self.sockets = set()

    async def __aenter__(self):
        self._server = await serve(self._serve, "127.0.0.1", 0, compression=None, max_size=None)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, socket):
        self.sockets.add(socket)
        try:
            await socket.send(b"metadata " + self.name)
            async for message in socket:
                self.got.append(message)
                await socket.send(self.name + b" " + message if isinstance(message, bytes) else message)
        except websockets.ConnectionClosed:
            pass
        self.sockets.discard(socket)
        self.closed.append(socket.close_code)

    async def leave(self, code):
        for socket in list(self.sockets):
            await socket.close(code)


async def metric(router, name, **labels):
    """The sum of a metric's samples that carry these labels."""
    text = (await router.ask("/metrics")).text
    found = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((name + "{", name + " ")) and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]
    assert found, name
    return sum(found)


async def test_lanes(start_router, files, open_robot, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        robot = await open_robot(router, headers=[("x-request-id", "robot-1")])
        await until(lambda: robot.first(WELCOME))
        assert robot.first(WELCOME)["replica"] in policy.url
        await until(lambda: robot.commands == [b"metadata a"])
        observation = bytes(600_000)
        robot.state(observation)
        await until(lambda: robot.states)
        assert robot.states == [(1, b"a " + observation)]
        robot.command(b"stop")
        robot.command("grüß".encode(), flags=1)
        await until(lambda: robot.commands[1:] == ["grüß"])
        robot.telemetry(b"temperature 40")
        robot.say(LINK, rtt_us=2_000, jitter_us=100, gap_us=20_000, loss_ppm=0, late=0, stale=0)
        assert policy.got == [observation, b"stop", "grüß"]
        await until(lambda: robot.states[-1][1] == b"a stop")

        async def counted():
            return await metric(router, "router_robot_messages_total", lane="telemetry")

        await until(counted)
        assert await metric(router, "router_robot_sessions_open") == 1
        assert await metric(router, "router_robot_messages_total", lane="state", direction="up") == 1
        assert await metric(router, "router_robot_messages_total", lane="command", direction="up") == 2
        assert await metric(router, "router_robot_messages_total", lane="command", direction="down") == 2
        assert await metric(router, "router_robot_rtt_seconds_count") == 1
        robot.say(BYE)
        assert (await robot.gone()).error_code == 1000
        await until(lambda: policy.closed == [1000])
        record = await router.record("robot-1")
        assert (record["protocol"], record["status"]) == ("ROBOT/1", 101)
        await router.settled()
        assert await metric(router, "router_robot_sessions_open") == 0


async def test_what_is_late_is_not_delivered(start_router, files, open_robot, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        robot = await open_robot(router)
        await until(lambda: robot.commands)
        answered = len(robot.told)
        await until(lambda: len(robot.told) >= answered + 2)  # the router has asked for the time
        robot.state(b"late", deadline=now_us() - 1_000_000)
        robot.state(b"soon", deadline=now_us() + 5_000_000)
        await until(lambda: policy.got)
        assert policy.got == [b"soon"]
        assert await metric(router, "router_robot_dropped_total", direction="up", reason="late") == 1


async def test_a_replica_that_leaves_is_followed_by_another(start_router, files, open_robot, until):
    async with Policy("a") as a, Policy("b") as b:
        router = await start_router(*quic_flags(files), replicas=[a.url, b.url])
        robot = await open_robot(router)
        await until(lambda: robot.commands)
        for epoch in range(2, 4):
            (serving,) = [policy for policy in (a, b) if policy.sockets]
            await serving.leave(1001)
            await until(lambda: robot.told[-1][0] == EPOCH or robot.first(EPOCH))
            await until(lambda: [body for kind, body in robot.told if kind == EPOCH][-1]["epoch"] == epoch)  # noqa: B023
            await until(lambda: len(robot.commands) == epoch)  # noqa: B023
            sent = len(robot.states)
            robot.state(b"on")
            await until(lambda: len(robot.states) > sent)  # noqa: B023
        assert robot.terminated is None
        assert await metric(router, "router_robot_epochs_total") == 2


async def test_a_replica_that_dies_is_followed_by_another(start_router, files, open_robot, until, start_policy):
    router_replicas = [await start_policy(), await start_policy()]
    router = await start_router(*quic_flags(files), replicas=[one.url for one in router_replicas])
    robot = await open_robot(router, path="/echo")
    await until(lambda: robot.first(WELCOME))
    dead = next(one for one in router_replicas if robot.first(WELCOME)["replica"] in one.url)
    dead.send_signal(signal.SIGKILL)
    epoch = await until(lambda: robot.first(EPOCH))
    assert epoch["replica"] not in dead.url
    robot.state(b"on")
    await until(lambda: robot.commands == [b"on"])


async def test_a_replica_that_is_done_says_so_to_the_robot(start_router, files, open_robot, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        robot = await open_robot(router)
        await until(lambda: robot.commands)
        await policy.leave(1011)
        assert (await robot.gone()).error_code == 1011
        await router.settled()


async def test_refusals(start_router, files, open_robot, until):
    router = await start_router(*quic_flags(files, "--auth-token", "s3cret"), replicas=["http://127.0.0.1:9"])
    robot = await open_robot(router)
    assert (await robot.gone()).error_code == 1008
    assert robot.first(REFUSED)["status"] == 401
    robot = await open_robot(router, headers=[("Authorization", "Bearer s3cret")])
    assert (await robot.gone()).error_code == 1014
    assert robot.first(REFUSED)["code"] == "connect_failed"
    assert robot.first(REFUSED)["retry_after_s"] == 1
    assert await metric(router, "router_robot_refused_total") == 2


async def test_a_drain_lets_a_robot_work_until_its_deadline(start_router, files, open_robot, until):
    async with Policy("a") as policy:
        flags = ("--drain-settle-s", 0, "--drain-deadline-s", 2)
        router = await start_router(*quic_flags(files, *flags), replicas=[policy.url])
        robot = await open_robot(router)
        await until(lambda: robot.commands)
        router.process.send_signal(signal.SIGTERM)
        began_s = asyncio.get_running_loop().time()
        while robot.terminated is None:
            robot.state(b"on")
            await asyncio.wait([asyncio.ensure_future(robot.ended.wait())], timeout=0.05)
            assert asyncio.get_running_loop().time() < began_s + 20
        assert robot.terminated.error_code == 1012
        assert asyncio.get_running_loop().time() - began_s > 1.5
        assert len(policy.got) > 10
        await until(lambda: policy.closed == [1012])
