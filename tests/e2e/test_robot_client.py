"""`RobotSession` through the daemon: real processes, real sockets, replicas by the `websockets` library."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from certkit import Authority
from websockets.asyncio.server import serve

sys.path.insert(0, str(Path(__file__).parent))

from test_robot import Policy, metric, quic_flags  # noqa: E402

from router.client import BlockingRobotSession, RobotError, RobotSession

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


def url_of(router, path="/"):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return f"quic://127.0.0.1:{httpx.URL(url).port}{path}"


def plain_websocket(router):
    (url,) = [url for url in router.listen if url.startswith("http://")]
    return url.replace("http://", "ws://") + "/"


def session(router, files, **options):
    usual = {"ca": files / "ca.pem", "server_name": "localhost", "websocket_url": ""}
    return RobotSession(url_of(router), **{**usual, **options})


async def test_messages_both_ways(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            first = await robot.recv(5)
            assert (first.data, first.lane, first.epoch, first.is_text) == (b"metadata a", "command", 1, False)
            image = bytes(600_000)
            assert robot.send(image)
            reply = await robot.recv(5)
            assert (reply.data, reply.lane, reply.sequence) == (b"a " + image, "state", 1)
            assert robot.send("text", "command")
            reply = await robot.recv(5)
            assert (reply.data, reply.lane, reply.is_text) == (b"text", "command", True)
            for number in range(20):
                assert robot.send(b"%d" % number, "command")
            assert robot.send(b"warm", "telemetry")
            await until(lambda: len(policy.got) == 22)
            link = robot.link
            assert link.transport == "quic"
            assert link.connections == 1
        assert [message for message in policy.got if message[:1].isdigit()] == [b"%d" % number for number in range(20)]
        assert await metric(router, "router_robot_sessions_open") == 0
        with pytest.raises(RobotError, match="closed"):
            robot.send(b"x")


async def test_a_timeout_takes_nothing_away(start_router, files):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files, replies="command") as robot:
            assert (await robot.recv(5)).data == b"metadata a"
            for number in range(50):
                assert robot.send(b"%d" % number, "command")
            got = []
            while len(got) < 50:
                message = await robot.recv(0.0001)
                if message is not None:
                    got.append(message.data)
            assert got == [b"a %d" % number for number in range(50)]


async def test_measures_the_link(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files, ping_every_s=0.05) as robot:
            await until(lambda: robot.link.pings_answered >= 10)
            link = robot.link
            assert 0 < link.rtt_min_s <= link.rtt_s < 0.1
            assert link.loss == 0.0


async def test_who_is_not_allowed_hears_so_at_once(start_router, files):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files, "--auth-token", "s3cret"), replicas=[policy.url])
        began_s = time.monotonic()
        with pytest.raises(RobotError) as failure:
            await session(router, files).connect()
        assert (failure.value.code, failure.value.status, failure.value.is_final) == (1008, 401, True)
        assert time.monotonic() - began_s < 5
        async with session(router, files, token="s3cret") as robot:
            assert (await robot.recv(5)).data == b"metadata a"
        with pytest.raises(RobotError) as failure:
            await session(router, files, transport="websocket", websocket_url=plain_websocket(router)).connect()
        assert failure.value.status == 401


async def test_a_certificate_of_somebody_else_is_final(start_router, files):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        other = Authority()
        with pytest.raises(RobotError, match="TLS") as failure:
            await session(router, files, ca=other.cert).connect()
        assert failure.value.code == 1015
        async with session(router, files, ca=None, verify=False) as robot:
            assert await robot.recv(5)


async def test_no_replica_is_waited_for(start_router, files, closed_port):
    router = await start_router(*quic_flags(files), replicas=[closed_port])
    with pytest.raises(RobotError, match="no session within 1") as failure:
        await session(router, files, connect_timeout_s=1.0).connect()
    assert failure.value.status == 503


async def test_nobody_there_is_said_so():
    with Hole() as hole:
        robot = RobotSession(f"quic://127.0.0.1:{hole.port}/", websocket_url="", connect_timeout_s=0.7)
        with pytest.raises(RobotError, match="nobody answers"):
            await robot.connect()


async def test_another_replica_is_an_epoch(start_router, files, until):
    async with Policy("a") as a, Policy("b") as b:
        router = await start_router(*quic_flags(files), replicas=[a.url, b.url])
        told = []
        async with session(router, files, on_epoch=lambda epoch, replica: told.append((epoch, replica))) as robot:
            first = await robot.recv(5)
            serving, other = (a, b) if a.sockets else (b, a)
            await serving.leave(1012)
            second = await robot.recv(5)
            assert (first.epoch, second.epoch) == (1, 2)
            assert second.data == b"metadata " + other.name
            assert [epoch for epoch, _ in told] == [2]
            assert told[0][1] in other.url
            assert robot.link.connections == 1


async def test_the_replicas_last_word_ends_the_session(start_router, files):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            await policy.leave(1000)
            with pytest.raises(RobotError) as failure:
                await robot.recv(5)
            assert failure.value.code == 1000


async def test_reconnects_to_a_new_router_and_repeats_what_never_left(start_router, files, until):
    async with Policy("a") as policy:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        flags = quic_flags(files)
        flags = ("--listen-quic", f"127.0.0.1:{port}", *flags[2:])
        router = await start_router(*flags, replicas=[policy.url])
        async with session(router, files, silence_s=1.0) as robot:
            await robot.recv(5)
            await router.stop()
            await until(lambda: not robot.is_connected)
            assert robot.send(b"first", "command")
            assert robot.send(b"old")
            assert robot.send(b"new")
            assert not robot.send(b"t", "telemetry")
            await start_router(*flags, replicas=[policy.url])
            await until(lambda: len(policy.got) == 2, 15)
            assert sorted(policy.got) == [b"first", b"new"]
            assert robot.link.connections == 2
            assert robot.epoch == 2
            assert robot.link.telemetry_dropped == 1


async def test_a_resumed_session_sends_its_state_early(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            await until(lambda: robot._carrier.endpoint.connection.is_confirmed)
            robot._carrier.endpoint.connection.abort(0, "as the test wants")
            robot._carrier.endpoint.touch()
            assert robot.send(b"early")
            await until(lambda: robot.link.connections == 2)
            assert robot._carrier.ticket is not None
            assert robot._carrier.endpoint.connection.handshake.is_early_accepted
            await until(lambda: policy.got == [b"early"])
            await asyncio.sleep(0.05)
            assert policy.got == [b"early"]


async def test_another_socket_loses_no_command(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            await until(lambda: robot._carrier.endpoint.connection.is_confirmed)
            for number in range(200):
                assert robot.send(b"%d" % number, "command")
                if number % 50 == 20:
                    robot.rebind()
                await asyncio.sleep(0.001)
            await until(lambda: len(policy.got) == 200)
            assert policy.got == [b"%d" % number for number in range(200)]
            assert robot.link.moves == 4
            assert robot.link.connections == 1
        assert await metric(router, "router_quic_migrations_total") >= 1


class Hole:
    """A UDP port that swallows everything."""

    def __enter__(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        return self

    def __exit__(self, *_):
        self.sock.close()


async def test_where_udp_is_blocked_it_is_a_websocket(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        with Hole() as hole:
            began_s = time.monotonic()
            robot = RobotSession(f"quic://127.0.0.1:{hole.port}/", websocket_url=plain_websocket(router))
            async with robot:
                assert time.monotonic() - began_s < 2.0
                assert robot.link.transport == "websocket"
                first = await robot.recv(5)
                assert (first.data, first.lane) == (b"metadata a", "command")
                assert robot.send(b"state")
                reply = await robot.recv(5)
                assert (reply.data, reply.lane) == (b"a state", "state")
                assert robot.send("words", "command")
                assert (await robot.recv(5)).is_text
                assert not robot.send(b"t", "telemetry")
                assert robot.link.telemetry_dropped == 1
                assert not robot.send(b"late", deadline_s=0.0)
                await until(lambda: robot.link.pings_answered >= 1)
                for number in range(20):
                    assert robot.send(b"%d" % number, "command")
                await until(lambda: len(policy.got) == 22)
            assert policy.got[2:] == [b"%d" % number for number in range(20)]
            await until(lambda: not policy.sockets)


async def test_a_websocket_that_is_lost_is_opened_again(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        options = {"transport": "websocket", "websocket_url": plain_websocket(router)}
        async with session(router, files, **options) as robot:
            await robot.recv(5)
            await policy.leave(1012)
            second = await robot.recv(10)
            assert (second.data, second.epoch) == (b"metadata a", 2)
            assert robot.link.connections == 2


async def test_late_messages_are_not_delivered(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            await until(lambda: robot.link.pings_answered >= 5)
            assert not robot.send(b"late", deadline_s=0.0)
            assert robot.send(b"in time", deadline_s=1.0)
            assert (await robot.recv(5)).data == b"a in time"
            assert policy.got == [b"in time"]
            assert robot.link.late == 1


async def test_the_blocking_session(start_router, files):
    """From threads: one waits for messages all the time, another sends meanwhile."""
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])

        def drive():
            got = []
            with BlockingRobotSession(
                url_of(router), ca=files / "ca.pem", websocket_url="", replies="command"
            ) as robot:
                reader = threading.Thread(target=lambda: got.extend(robot.recv(10).data for _ in range(101)))
                reader.start()
                slowest_s = 0.0
                for number in range(100):
                    began_s = time.monotonic()
                    assert robot.send(b"%d" % number, "command")
                    slowest_s = max(slowest_s, time.monotonic() - began_s)
                reader.join(10)
                assert robot.recv(0.01) is None
                assert robot.link.transport == "quic"
                assert robot.is_connected
            assert got == [b"metadata a", *[b"a %d" % number for number in range(100)]]
            assert slowest_s < 1.0
            with pytest.raises(RobotError, match="closed"):
                robot.recv(0.1)
            robot.close()
            assert not any(thread.name == "robot session" for thread in threading.enumerate())

        await asyncio.to_thread(drive)


async def test_the_blocking_session_says_why_it_cannot_be():
    hole = Hole()

    def drive():
        robot = BlockingRobotSession(f"quic://127.0.0.1:{hole.port}/", websocket_url="", connect_timeout_s=0.3)
        with pytest.raises(RobotError, match="nobody answers"):
            robot.connect()
        with pytest.raises(ValueError, match="quic://"):
            BlockingRobotSession("http://here")

    with hole:
        await asyncio.to_thread(drive)
    assert not any(thread.name == "robot session" for thread in threading.enumerate())


class Nat(asyncio.DatagramProtocol):
    """A relay before the router that can forget who it knows: those are not answered any more."""

    def __init__(self, port):
        self._router = ("127.0.0.1", port)
        self._ways = {}
        self._forgotten = set()
        self.seen = set()

    async def start(self):
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    def forget(self):
        self._forgotten |= set(self._ways)

    def datagram_received(self, data, address):
        self.seen.add(address)
        if address in self._forgotten:
            return
        way = self._ways.get(address)
        if way is None:
            way = self._ways[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            way.setblocking(False)
            way.connect(self._router)
            asyncio.get_running_loop().add_reader(way, self._back, way, address)
        way.send(data)

    def _back(self, way, address):
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = way.recv(65_535)
                if address not in self._forgotten:
                    self._transport.sendto(data, address)

    def stop(self):
        for way in self._ways.values():
            asyncio.get_running_loop().remove_reader(way)
            way.close()
        self._transport.close()


async def test_a_nat_that_forgets_is_answered_by_another_socket(start_router, files, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        nat = await Nat(httpx.URL(url_of(router).replace("quic", "http", 1)).port).start()
        try:
            robot = RobotSession(
                f"quic://127.0.0.1:{nat.port}/", ca=files / "ca.pem", server_name="localhost", websocket_url="", silence_s=8.0
            )
            async with robot:
                await robot.recv(5)
                await until(lambda: robot._carrier.endpoint.connection.is_confirmed)
                nat.forget()
                for number in range(50):
                    assert robot.send(b"%d" % number, "command")
                await until(lambda: len(policy.got) == 50, 6)
                assert policy.got == [b"%d" % number for number in range(50)]
                assert robot.link.moves >= 1
                assert robot.link.connections == 1
                assert len(nat.seen) >= 2
        finally:
            nat.stop()


async def test_a_change_of_the_network_is_followed(start_router, files, until, monkeypatch):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            monkeypatch.setattr("router.client.quic_carrier.find_local_host", lambda *_: "192.0.2.1")
            await until(lambda: robot.link.moves >= 1, 3)
            monkeypatch.undo()
            robot.send(b"x")
            assert (await robot.recv(5)).data == b"a x"
            assert robot.link.connections == 1


async def test_a_bug_in_the_protocol_costs_one_connection(start_router, files, until, monkeypatch, caplog):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)

            def fail(*_):
                raise ArithmeticError("as the test wants")

            monkeypatch.setattr("router.transport.codec.robot.client.RobotClient._read_state", fail)
            robot.send(b"x")
            await until(lambda: robot.link.connections == 2)
            monkeypatch.undo()
            assert "as the test wants" in caplog.text
            assert (await robot.recv(5)).data == b"metadata a"


async def test_replies_that_nobody_takes_pause_the_replica_and_all_come(start_router, files, until):
    """40 MB on the command lane: the high mark is passed often, and told when it is fallen below."""
    sent = []

    async def pour(connection):
        for number in range(400):
            await connection.send(b"%03d" % number + bytes(100_000))
            sent.append(number)
        await connection.wait_closed()

    async with serve(pour, "127.0.0.1", 0, compression=None, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        router = await start_router(*quic_flags(files), replicas=[f"http://127.0.0.1:{port}"])
        async with session(router, files, replies="command") as robot:
            stopped_at = -1
            while stopped_at != len(sent) or not sent:
                stopped_at = len(sent)
                await asyncio.sleep(0.3)
            assert stopped_at < 200
            got = [int((await robot.recv(5)).data[:3]) for _ in range(400)]
            assert got == list(range(400))


async def test_cancelling_what_waits_leaves_nothing_behind(start_router, files):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        async with session(router, files) as robot:
            await robot.recv(5)
            waiting = asyncio.ensure_future(robot.recv())
            await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            robot.send(b"x")
            assert (await robot.recv(5)).data == b"a x"


async def test_a_policy_over_http(start_router, start_server, files):
    """As OpenVLA's or GR00T's servers: an observation is a POST, the actions are its answer."""
    asked = []

    async def act(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
                body = await reader.readexactly(length)
                asked.append((head.split(b" ")[:2], body[:5], b"x-api-key: k" in head))
                answer = b"actions for %b" % body[:5]
                status = b"503 Service Unavailable" if body == b"stuck" and len(asked) < 3 else b"200 OK"
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))
        except asyncio.IncompleteReadError:
            writer.close()

    router = await start_router(*quic_flags(files, "--auth-token", "s3cret"), replicas=[await start_server(act)])
    options = {"upstream": "post", "headers": [("x-api-key", "k")], "replies": "command"}
    async with session(router, files, token="s3cret", **options) as robot:
        for size in (5, 300_000):
            assert robot.send(b"%05d" % size + bytes(size - 5))
            assert (await robot.recv(5)).data == b"actions for " + (b"%05d" % size)[:5]
        assert asked == [([b"POST", b"/"], b"00005", True), ([b"POST", b"/"], b"300000"[:5], True)]
        asked.clear()
        assert robot.send(b"stuck", "command")  # lost with its replica; the robot hears of an epoch and asks again
        async with asyncio.timeout(5):
            while robot.epoch < 2:
                await asyncio.sleep(0.02)
        assert robot.send(b"again", "command")
        assert (await robot.recv(5)).data == b"actions for again"
    with pytest.raises(RobotError) as failure:
        async with session(router, files, token="wrong", **options) as robot:
            robot.send(b"12345")
            await robot.recv(5)
    assert failure.value.status == 401
