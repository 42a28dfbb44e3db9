"""Telemetry of robots, from `router.client` to the operator's collector; and lanes to sidecars with two workers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgpack
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from childkit import first_line  # noqa: E402
from loadkit import lineage  # noqa: E402
from storekit import child_env  # noqa: E402

from router.client import RobotSession  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(60)]


@pytest_asyncio.fixture(loop_scope="session")
async def folder():
    with tempfile.TemporaryDirectory(prefix="r") as name:
        yield Path(name)


@pytest_asyncio.fixture(loop_scope="session")
async def start_sidecar(folder, policy):
    """`await start_sidecar(*flags)`: where one beside the policy is reached, as a replica of a router's file."""
    started = []

    async def start(*flags):
        with (folder / "sidecar.err").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "router", "sidecar", "--upstream", policy.url.replace("ws:", "http:"),
                 "--endpoint", "e", "--json", "--ready-path", "/healthz", "--store", "none", "--settle-s", "0",
                 *map(str, flags)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                env={**child_env(), "TMPDIR": str(folder)},
            )  # fmt: skip
        started.append(process)
        line = await asyncio.to_thread(first_line, process)
        assert line, (folder / "sidecar.err").read_text()
        said = json.loads(line)["listen"]
        (ca,) = folder.glob("router-sidecar-*/ca.pem")
        port = next(int(url.rpartition(":")[2]) for url in said if url.startswith("quic://"))
        return f"address = {json.dumps(said[0])}\nlanes = {{ port = {port}, certificate = {json.dumps(ca.read_text())} }}\n"

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        assert await asyncio.to_thread(process.wait, 10) == 0, (folder / "sidecar.err").read_text()
    assert "Traceback" not in (folder / "sidecar.err").read_text()


class Collector:
    """What an operator has: a datagram socket."""

    def __init__(self, family, where):
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind(where)
        self.sock.setblocking(False)
        self.got = []

    def read(self):
        while True:
            try:
                self.got.append(msgpack.unpackb(self.sock.recv(65_536)))
            except BlockingIOError:
                return self.got

    def of(self, session):
        return [one for one in self.read() if one["session"] == session]


@pytest.fixture
def udp_collector():
    collector = Collector(socket.AF_INET, ("127.0.0.1", 0))
    yield collector
    collector.sock.close()


def quic_flags(files, *more):
    return ("--listen-quic", "127.0.0.1:0", "--tls-cert", files / "local.pem", "--tls-key", files / "local.key", *more)


def file_of(replica):
    return f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\n[[endpoint.replica]]\n{replica}'


def session(router, files, **more):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return RobotSession(f"{url}/echo", ca=files / "ca.pem", websocket_url="", **more)


async def metric(router, name):
    text = (await router.ask("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_goes_on_by_lanes_and_from_the_sidecar_to_its_collector(start_router, start_sidecar, files, until, udp_collector):
    """With two workers, from a listener on 127.0.0.1 to a sidecar on ::1: no datagram takes a detour by a sibling."""
    port = udp_collector.sock.getsockname()[1]
    replica = await start_sidecar("--listen", "[::1]:0", "--listen-quic", "[::1]:0", "--robot-telemetry", f"udp://127.0.0.1:{port}")
    router = await start_router(*quic_flags(files), toml=file_of(replica), workers=2)
    async with AsyncExitStack() as stack:
        robots = [await stack.enter_async_context(session(router, files)) for _ in range(6)]
        for robot in robots:
            robot.send(bytes(100_000))
            assert (await robot.recv(5)).data == bytes(100_000)
            for number in range(20):
                assert robot.send(b"%d C" % number, "telemetry")
        for robot in robots:
            await until(lambda robot=robot: len(udp_collector.of(robot.session_id)) == 20)
        shown = {robot["session"] for robot in (await router.ask("/debug/robots")).json()["robots"]}
        assert shown == {one["session"] for one in udp_collector.got} == {robot.session_id for robot in robots}
        first = udp_collector.of(robots[0].session_id)
        assert [(one["sequence"], one["payload"]) for one in first] == [(n + 1, b"%d C" % n) for n in range(20)]
        assert first[0]["authority"].startswith("127.0.0.1:")
        assert abs(first[0]["received_unix_us"] / 1e6 - time.time()) < 60.0
        assert set(first[0]) == {"session", "authority", "sequence", "received_unix_us", "payload"}
    assert await metric(router, "router_robot_lanes_opened_total") == 6
    assert await metric(router, "router_quic_forwarded_total") == 0
    assert await metric(router, "router_robot_telemetry_relayed_total") == 120
    assert await metric(router, "router_robot_telemetry_dropped_total") == 0


async def test_ends_at_the_router_where_the_replica_has_no_lanes(start_router, files, policy, folder, until):
    """And a collector that went and came back gets it again: it is one that the kernel finds by its path."""
    path = str(folder / "collector")
    router = await start_router(*quic_flags(files, "--robot-telemetry", f"unix:{path}"), replicas=[policy.url])
    async with session(router, files) as robot:
        robot.send(b"x", "telemetry")

        async def dropped():
            return await metric(router, 'router_robot_telemetry_dropped_total{reason="collector"}')

        assert await until(dropped) == 1
        for round_ in range(2):
            collector = Collector(socket.AF_UNIX, path)
            try:
                robot.send(b"y", "telemetry")
                await until(collector.read)
                assert collector.got[0]["session"] == robot.session_id
                assert collector.got[0]["sequence"] == round_ + 2
            finally:
                collector.sock.close()
                Path(path).unlink()
        assert await metric(router, "router_robot_telemetry_collected_total") == 2
        robot.send(b"on")
        assert await robot.recv(5)


async def test_ends_at_the_router_where_the_sidecar_keeps_none(
    start_router, start_sidecar, files, until, udp_collector
):
    port = udp_collector.sock.getsockname()[1]
    replica = await start_sidecar("--listen-quic", "127.0.0.1:0")
    flags = quic_flags(files, "--robot-telemetry", f"udp://127.0.0.1:{port}")
    router = await start_router(*flags, toml=file_of(replica))
    async with session(router, files) as robot:
        robot.send(b"40 C", "telemetry")
        await until(udp_collector.read)
        assert udp_collector.got[0]["session"] == robot.session_id
        assert udp_collector.got[0]["payload"] == b"40 C"
        assert await metric(router, "router_robot_lanes_opened_total") == 1
        assert await metric(router, "router_robot_telemetry_collected_total") == 1


@pytest.mark.slow
async def test_lanes_go_on_in_the_process_that_an_upgrade_replaces(start_router, start_sidecar, files, until, gone):
    """Its successor reads the listening sockets and passes on what comes there; where lanes begin it reads itself."""
    replica = await start_sidecar("--listen-quic", "127.0.0.1:0")
    settle = ("--drain-settle-s", "0", "--drain-deadline-s", "20")
    router = await start_router(*quic_flags(files, *settle), toml=file_of(replica), workers=2)
    async with lineage(router, until, gone) as line:
        async with AsyncExitStack() as stack:
            robots = [await stack.enter_async_context(session(router, files)) for _ in range(4)]
            for is_upgraded in (False, True):
                if is_upgraded:
                    await line.upgrade()
                for robot in robots:
                    for _ in range(5):
                        robot.send(bytes(100_000))
                        assert (await robot.recv(5)).data == bytes(100_000)
            assert {(robot.link.epoch, robot.link.connections) for robot in robots} == {(1, 1)}
        await line.settled(15)
