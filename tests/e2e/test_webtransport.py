"""WebTransport through the daemon by aioquic's own H3Connection: robot lanes in sessions, a drain, what may not be."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import msgpack
import pytest
import pytest_asyncio
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset

sys.path.insert(0, str(Path(__file__).parent))

from quicclient import Http3  # noqa: E402
from robotpeer import HELLO, PING, REFUSED, WELCOME  # noqa: E402
from test_robot import Policy, metric, quic_flags  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
CLOSE, DRAIN = 0x2843, 0x78AE


def split(data, numbers):
    """Whole frames: `numbers` integers, of which the second or, of three, the first is a length, and a payload."""
    from aioquic.buffer import Buffer, BufferReadError

    found, at = [], 0
    while True:
        buffer = Buffer(data=data[at:])
        try:
            head = [buffer.pull_uint_var() for _ in range(numbers)]
            payload = buffer.pull_bytes(head[1] if numbers == 2 else head[0])
        except BufferReadError:
            return found
        found.append((head, payload))
        at += buffer.tell()


class Client(Http3):
    """`status`: heads of answers; `streams`: what sessions' streams brought, `finished` those that ended; `resets` by stream."""

    def __init__(self, port, ca):
        self.status = {}
        self.bodies = {}
        self.streams = {}
        self.datagrams = []
        self.resets = {}
        super().__init__(port, ca, max_datagram_frame_size=65_536)
        self.finished = set()

    async def connect(self, limit_s=10.0):
        self.http = H3Connection(self.quic, enable_webtransport=True)
        return await super().connect(limit_s)

    def session(self, path=b"/arm", fields=()):
        stream = self.quic.get_next_available_stream_id()
        head = [(b":method", b"CONNECT"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path), (b":protocol", b"webtransport")]
        self.http.send_headers(stream, [*head, *fields])
        self._flush()
        return stream

    def open(self, session, data=b"", *, one_way=False, end=False):
        stream = self.http.create_webtransport_stream(session, is_unidirectional=one_way)
        if not one_way:  # aioquic expects a preface in what we answer: it has only servers' streams in mind
            with self.http._get_or_create_stream(stream) as own:
                own.frame_type, own.session_id = FrameType.WEBTRANSPORT_STREAM, session
        self.write(stream, data, end=end)
        return stream

    def write(self, stream, data, *, end=False):
        self.quic.send_stream_data(stream, data, end)
        self._flush()

    def datagram(self, session, data):
        self.http.send_datagram(session, data)
        self._flush()

    def capsule(self, session, kind, payload=b"", *, end=False):
        self.http.send_data(session, encode_uint_var(kind) + encode_uint_var(len(payload)) + payload, end)
        self._flush()

    def capsules(self, session):
        return [(head[0], payload) for head, payload in split(self.bodies.get(session, b""), 2)]

    def _take(self, event):
        if isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
        elif isinstance(event, HandshakeCompleted):
            self.connected.set_result(None)
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived):
                self.status[found.stream_id] = dict(found.headers)
            elif isinstance(found, DataReceived):
                self.bodies[found.stream_id] = self.bodies.get(found.stream_id, b"") + found.data
                if found.stream_ended:
                    self.finished.add(found.stream_id)
            elif isinstance(found, WebTransportStreamDataReceived):
                self.streams[found.stream_id] = self.streams.get(found.stream_id, b"") + found.data
                if found.stream_ended:
                    self.finished.add(found.stream_id)
            elif isinstance(found, DatagramReceived):
                self.datagrams.append((found.stream_id, found.data))


class Robot:
    """One session's robot."""

    def __init__(self, client, until, **connect):
        self.client = client
        self.until = until
        self.id = client.session(**connect)
        self.sequence = 0

    async def begin(self, **hello):
        await self.until(lambda: self.client.status.get(self.id))
        packed = msgpack.packb(hello)
        self.control = self.client.open(self.id, bytes((HELLO,)) + encode_uint_var(len(packed)) + packed)
        self.command = self.client.open(self.id, b"C")
        return self

    def state(self, payload):
        self.sequence += 1
        header = b"S" + encode_uint_var(self.sequence) + b"\0"
        return self.client.open(self.id, header + payload, one_way=True, end=True)

    def order(self, payload):
        self.client.write(self.command, encode_uint_var(len(payload)) + b"\0\0" + payload)

    def told(self):
        return {head[0]: msgpack.unpackb(body) for head, body in split(self.client.streams.get(self.control, b""), 2)}

    def commands(self):
        return [payload for _, payload in split(self.client.streams.get(self.command, b""), 3)]

    def states(self):
        ours = {self.control, self.command}
        return [data[3:] for stream, data in self.client.streams.items() if stream not in ours and stream in self.client.finished]

    def closed(self):
        return next((int.from_bytes(payload[:4], "big") for kind, payload in self.client.capsules(self.id) if kind == CLOSE), None)


@pytest_asyncio.fixture(loop_scope="session")
async def open_client(files):
    made = []

    async def open_(router):
        (url,) = [url for url in router.listen if url.startswith("quic://")]
        made.append(Client(httpx.URL(url).port, files / "ca.pem"))
        return await made[-1].connect()

    yield open_
    for client in made:
        client.close()


async def test_lanes(start_router, files, open_client, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        client = await open_client(router)
        robot = await Robot(client, until, fields=[(b"x-request-id", b"robot-1")]).begin()
        await until(lambda: WELCOME in robot.told())
        await until(lambda: robot.commands() == [b"metadata a"])
        observation = bytes(600_000)
        robot.state(observation)
        await until(lambda: robot.states() == [b"a " + observation])
        robot.order(b"stop")
        await until(lambda: policy.got == [observation, b"stop"])
        client.datagram(robot.id, bytes((PING,)) + msgpack.packb({"n": 1, "t": 5}))
        await until(lambda: client.datagrams)
        assert client.datagrams[0][0] == robot.id and client.datagrams[0][1][0] == 3
        client.datagram(robot.id, b"T\x01hot")

        async def counted():
            return await metric(router, "router_robot_messages_total", lane="telemetry")

        await until(counted)
        assert await metric(router, "router_webtransport_sessions") == 1
        assert await metric(router, "router_robot_sessions_open") == 1
        client.capsule(robot.id, CLOSE, (1000).to_bytes(4, "big"), end=True)
        await until(lambda: policy.closed == [1000])
        record = await router.record("robot-1")
        assert (record["protocol"], record["path"], record["status"]) == ("ROBOT/1", "/arm", 101)
        await router.settled()
        assert await metric(router, "router_webtransport_sessions") == 0
        assert await metric(router, "router_robot_sessions_open") == 0
        assert client.terminated is None


async def test_requests_and_several_robots_share_a_connection(start_router, files, open_client, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        client = await open_client(router)
        robots = [await Robot(client, until).begin() for _ in range(3)]
        for robot in robots:
            await until(lambda robot=robot: robot.commands() == [b"metadata a"])
            robot.order(b"%d" % robot.id)
        await until(lambda: len(policy.got) == 3)
        client.quic.reset_stream(robots[0].id, 0x10C)
        client._flush()
        await until(lambda: policy.closed == [1001])
        robots[1].order(b"on")
        await until(lambda: b"on" in policy.got)
        assert client.terminated is None and await metric(router, "router_webtransport_sessions") == 2


async def test_a_page_takes_its_session_over(start_router, files, open_client, until):
    """In another session of the same connection, and over another connection whose page was closed without a word."""
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files, "--max-concurrency", "1"), replicas=[policy.url], workers=2)
        client = await open_client(router)
        robot = await Robot(client, until).begin()
        for epoch in range(1, 6):
            await until(lambda robot=robot: WELCOME in robot.told() or REFUSED in robot.told())
            welcome = robot.told()[WELCOME]
            assert welcome["epoch"] == epoch
            before = robot
            if epoch % 2 == 0:
                client.vanish()
                client = await open_client(router)
            robot = await Robot(client, until).begin(resume=welcome["token"])
            if epoch % 2:
                await until(lambda before=before: before.closed() == 1008)
        await until(lambda: WELCOME in robot.told())
        assert robot.told()[WELCOME]["session"] == welcome["session"]
        robot.order(b"on")
        await until(lambda: policy.got == [b"on"])
        assert client.terminated is None
        assert await metric(router, "router_robot_superseded_total") == 5


async def test_streams_may_come_before_the_connect(start_router, files, open_client, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        client = await open_client(router)
        session = client.quic.get_next_available_stream_id()
        client.quic._get_or_create_stream_for_send(session)  # it is taken; its bytes come last
        client.open(session, b"S\x01\0early", one_way=True, end=True)
        control = client.open(session, bytes((HELLO, 1)) + b"\x80")
        client.open(session, b"C")
        client.http.send_headers(session, [(b":method", b"CONNECT"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/"), (b":protocol", b"webtransport")])
        client._flush()
        await until(lambda: policy.got == [b"early"])
        assert client.streams[control][0] == WELCOME
        assert await metric(router, "router_webtransport_rejected_total") == 0


async def test_refusals_and_closes_carry_their_codes(start_router, files, open_client, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files, "--auth-token", "s3cret"), replicas=[policy.url])
        client = await open_client(router)
        robot = await Robot(client, until).begin()
        await until(lambda: robot.closed() == 1008)
        assert robot.told()[REFUSED]["status"] == 401
        robot = await Robot(client, until).begin(headers=[["authorization", "Bearer s3cret"]])
        await until(lambda: robot.commands())
        await policy.leave(4_001)
        await until(lambda: robot.closed() == 4_001)
        robot = await Robot(client, until, fields=[(b"authorization", b"Bearer s3cret")]).begin()
        await until(lambda: WELCOME in robot.told())
        assert client.terminated is None


@pytest.mark.slow
async def test_a_drain(start_router, files, open_client, until):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files, "--drain-settle-s", 0, "--drain-deadline-s", 3), replicas=[policy.url])
        client = await open_client(router)
        robot = await Robot(client, until).begin()
        await until(lambda: robot.commands())
        router.send_signal(signal.SIGTERM)
        await until(lambda: (DRAIN, b"") in client.capsules(robot.id))
        robot.order(b"on")
        await until(lambda: policy.got == [b"on"])
        await until(lambda: robot.closed() == 1012)
        assert await router.wait(20) in (0, 4)


async def test_what_a_session_cannot_be_ends_the_connection(start_router, files, open_client, until):
    router = await start_router(*quic_flags(files), replicas=["http://127.0.0.1:9"])
    for data, code in ((b"\x40\x54\x01x", 0x108), (b"\x40\x54\x03", 0x108)):
        client = await open_client(router)
        stream = client.quic.get_next_available_stream_id(is_unidirectional=True)
        client.write(stream, data)
        await until(lambda client=client: client.terminated)
        assert client.terminated.error_code == code
    client = await open_client(router)
    client.quic.send_datagram_frame(b"")
    client._flush()
    await until(lambda: client.terminated)
    assert client.terminated.error_code == 0x33
    assert "Traceback" not in router.stderr()
