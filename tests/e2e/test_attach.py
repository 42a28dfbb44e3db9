"""Replicas that dial the router (`router sidecar --attach`): served alike in every protocol, through restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import grpc.aio
import httpx
import pytest
import pytest_asyncio
import websockets
import websockets.asyncio.server
from certkit import Authority

sys.path.insert(0, str(Path(__file__).parent))

from attachkit import AttachedSidecar  # noqa: E402
from loadkit import lineage  # noqa: E402

from router.client import RobotError, RobotSession  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(60)]


def flags(files, *more):
    pair = ("--tls-cert", files / "local.pem", "--tls-key", files / "local.key")
    return ("--listen-quic", "127.0.0.1:0", *pair, "--health", "none", "--may-attach", "gpu-7=t", *more)


def quic_of(router):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return url.removeprefix("quic://")


@pytest_asyncio.fixture(loop_scope="session")
async def start_sidecar(files):
    started = []
    with tempfile.TemporaryDirectory() as folder:

        async def start(upstream, *routers, flags=(), **more):
            where = [quic_of(r) for r in routers]
            found = AttachedSidecar(Path(folder), upstream, where, *flags, ca=files / "ca.pem", **more)
            started.append(found)
            return await found.start()

        yield start
        for sidecar in started:
            await sidecar.end()


ATTACHED = "http://gpu-7.attached.alt:80"


async def served(client, url, until):
    async def answers():
        with contextlib.suppress(httpx.TransportError):  # of a worker that was killed
            return (await client.get(f"{url}/_sim/bytes?n=10")).status_code == 200

    await until(answers)


async def test_http(start_router, start_sidecar, engine, client, until, files):
    router = await start_router(*flags(files), replicas=[ATTACHED])
    before = await client.get(f"{router.url}/health")
    assert (before.status_code, before.headers["x-router-error"]) == (503, "connect_failed")
    await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    body = os.urandom(3_000_000)
    taken = (await client.post(f"{router.url}/_sim/sink", content=body)).json()
    assert (taken["length"], taken["sha256"]) == (len(body), sha256(body).hexdigest())
    messages = [{"role": "user", "content": "hello"}]
    asked = {"model": "sim", "max_tokens": 5, "stream": True, "messages": messages}
    async with client.stream("POST", f"{router.url}/v1/chat/completions", json=asked) as streamed:
        lines = [line async for line in streamed.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert sum(line.startswith("data: {") for line in lines) >= 5
    many = await asyncio.gather(*(client.get(f"{router.url}/_sim/bytes?n=70000") for _ in range(60)))
    assert {(one.status_code, len(one.content)) for one in many} == {(200, 70_000)}
    await router.settled()


@pytest.mark.slow
async def test_two_workers_and_their_health_checks(start_router, start_sidecar, engine, client, until, files):
    more = ("--workers", "2", "--health", "http", "--health-path", "/health", "--health-interval-s", "0.2")
    router = await start_router(*flags(files, *more), replicas=[ATTACHED])
    refused = await client.get(f"{router.url}/health")
    assert refused.status_code == 503
    sidecar = await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    for _ in range(12):  # each on a connection of its own: both workers are met
        async with httpx.AsyncClient() as fresh:
            assert (await fresh.get(f"{router.url}/_sim/bytes?n=10")).status_code == 200
    await sidecar.end()

    async def is_out():
        return (await client.get(f"{router.url}/health")).status_code == 503

    await until(is_out)


async def test_websocket(start_router, start_sidecar, client, until, files):
    async def serve(connection):
        await connection.send("hello")
        async for message in connection:
            await connection.send(message)

    async with websockets.asyncio.server.serve(serve, "127.0.0.1", 0, max_size=None) as server:
        upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        router = await start_router(*flags(files), replicas=[ATTACHED])
        await start_sidecar(upstream, router)
        where = router.url.replace("http", "ws") + "/policy"

        async def opens():
            try:
                async with websockets.connect(where) as tried:
                    return await tried.recv() == "hello"
            except websockets.InvalidStatus:
                return False

        await until(opens)
        async with websockets.connect(where, max_size=None) as robot:
            assert await robot.recv() == "hello"
            for size in (1, 70_000, 2_000_000):
                data = os.urandom(size)
                await robot.send(data)
                assert await robot.recv() == data


async def test_grpc(start_router, start_sidecar, until, files):
    async def echo(request, context):  # noqa: ARG001 - grpcio gives it
        return request

    handler = grpc.method_handlers_generic_handler("t.T", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        router = await start_router(*flags(files), replicas=["h2c://gpu-7.attached.alt:80"])
        await start_sidecar(f"h2c://127.0.0.1:{port}", router)
        async with grpc.aio.insecure_channel(router.url.removeprefix("http://")) as channel:
            call = channel.unary_unary("/t.T/Echo")

            async def answers():
                try:
                    return await call(b"hello") == b"hello"
                except grpc.aio.AioRpcError as refusal:
                    return refusal.code() is not grpc.StatusCode.UNAVAILABLE

            await until(answers)
            data = os.urandom(1_000_000)
            assert await call(data) == data
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"token": "wrong"}, "the token is not known"),
        ({"name": "gpu-8"}, "the token is not known"),
    ],
)
async def test_who_may_not(start_router, start_sidecar, engine, client, until, files, more, says):
    router = await start_router(*flags(files), replicas=[ATTACHED])
    sidecar = await start_sidecar(engine.url, router, **more)

    async def is_told():
        return says in sidecar.stderr()

    await until(is_told)
    assert (await client.get(f"{router.url}/health")).status_code == 503


@pytest.mark.slow
async def test_a_router_that_asks_for_certificates(start_router, start_sidecar, engine, client, until, files):
    router = await start_router(*flags(files, "--tls-client-ca", files / "ca.pem"), replicas=[ATTACHED])
    without = await start_sidecar(engine.url, router)
    await until(lambda: "not attached" in without.stderr())
    await without.end()
    shown = ("--attach-cert", files / "local.pem", "--attach-key", files / "local.key")
    await start_sidecar(engine.url, router, flags=shown)
    await served(client, router.url, until)


async def test_a_router_that_cannot_prove_itself_is_told_no_token(start_router, start_sidecar, engine, until, files):
    other = Authority().sign("localhost", "127.0.0.1")
    folder = files / "other"
    folder.mkdir(exist_ok=True)
    other.write(folder, "local")
    router = await start_router(*flags(folder), replicas=[ATTACHED])
    sidecar = await start_sidecar(engine.url, router)

    async def is_told():
        return "not attached" in sidecar.stderr()

    await until(is_told)
    assert "attached from" not in router.stderr()


@pytest.mark.slow
async def test_it_comes_back_to_a_router_that_was_killed(start_router, start_sidecar, engine, client, until, files):
    router = await start_router(*flags(files), replicas=[ATTACHED])
    await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    os.kill(await router.worker_pid(), signal.SIGKILL)
    await served(client, router.url, until)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
async def test_the_same_name_again_takes_over(start_router, start_sidecar, engine, client, until, files, workers):
    """Whichever worker the second one comes to."""
    router = await start_router(*flags(files, "--workers", str(workers)), replicas=[ATTACHED])
    first = await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    await start_sidecar(engine.url, router)

    async def is_replaced():
        return "attached anew" in first.stderr()

    await until(is_replaced)
    await first.end()
    await served(client, router.url, until)


@pytest_asyncio.fixture(loop_scope="session")
async def policy():
    """A policy server: speaks first, then answers each message with its length."""
    opened, taken = [], []

    async def serve(connection):
        opened.append(connection)
        await connection.send(b"metadata")
        async for message in connection:
            taken.append(message)
            await connection.send(b"%d" % len(message))

    async with websockets.asyncio.server.serve(serve, "127.0.0.1", 0, max_size=None, compression=None) as server:
        server.opened, server.taken = opened, taken
        yield server


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_robots_lanes_go_on_to_it(start_router, start_sidecar, policy, until, files, workers):
    upstream = f"http://127.0.0.1:{policy.sockets[0].getsockname()[1]}"
    router = await start_router(*flags(files, "--workers", workers), replicas=[ATTACHED])
    sidecar = await start_sidecar(upstream, router)
    await until(lambda: "attached to" in sidecar.stderr())
    for replies in ("state", "command"):
        async with RobotSession(
            f"quic://{quic_of(router)}/policy?a=b", ca=files / "ca.pem", websocket_url="", token="router's", replies=replies,
            headers=[("x-mine", "1")],
        ) as robot:  # fmt: skip
            first = await robot.recv(5)
            assert (first.data, first.lane) == (b"metadata", "command")
            for size in (1, 0, 600_000):
                robot.send(bytes(size))
                reply = await robot.recv(5)
                assert (reply.data, reply.lane) == (b"%d" % size, replies)
            for size in range(1, 200):
                robot.send(bytes(size), lane="command")
            if replies == "command":
                assert [(await robot.recv(5)).data for _ in range(1, 200)] == [b"%d" % size for size in range(1, 200)]
            robot.send("wörter", lane="command")
            await until(lambda: policy.taken[-1] == "wörter")
            request = policy.opened[-1].request
            assert request.path == "/policy?a=b"
            names = {name.lower() for name in request.headers}
            assert not {"x-router-key", "x-router-replies", "sec-websocket-protocol"} & names
            assert {"x-mine", "x-request-id"} <= names
    assert await counted(router, "router_robot_lanes_opened_total") == 2
    assert await counted(router, "router_robot_lanes_failed_total") == 0
    await router.settled()
    assert [row["in_flight"] for row in await router.rows()] == [0]
    await until(lambda: all(connection.state.name == "CLOSED" for connection in policy.opened))


async def counted(router, name):
    text = (await router.ask("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_a_robot_finds_the_replica_itself(start_router, start_sidecar, policy, until, files):
    upstream = f"http://127.0.0.1:{policy.sockets[0].getsockname()[1]}"
    router = await start_router(*flags(files, "--workers", "2"), replicas=[ATTACHED])
    await start_sidecar(upstream, router)
    epochs = []
    async with RobotSession(
        f"quic://{quic_of(router)}/policy", ca=files / "ca.pem", websocket_url="", direct=True, token="router's",
        on_epoch=lambda epoch, replica: epochs.append(epoch),
    ) as robot:  # fmt: skip
        assert not robot.link.is_direct
        assert (await robot.recv(5)).data == b"metadata"
        await until(lambda: robot.link.is_direct)
        assert (await robot.recv(5)).data == b"metadata"
        assert (robot.epoch, epochs) == (2, [2])
        assert not {"authorization", "x-router-key"} & {name.lower() for name in policy.opened[-1].request.headers}
        for size in (1, 300_000):
            robot.send(bytes(size))
            assert (await robot.recv(5)).data == b"%d" % size
        await router.settled()  # nothing of it goes through the router any more
        rows = await router.rows()
        assert rows[0]["in_flight"] == 0
        assert robot.link.connections == 2
        robot.send(b"done", lane="command")
        assert (await robot.recv(5)).data == b"4"


async def test_who_comes_directly_without_a_ticket(start_router, start_sidecar, policy, until, files):
    upstream = f"http://127.0.0.1:{policy.sockets[0].getsockname()[1]}"
    router = await start_router(*flags(files), replicas=[ATTACHED])
    sidecar = await start_sidecar(upstream, router)
    (where,) = [url.removeprefix("quic://") for url in sidecar.listen if url.startswith("quic://")]
    where = where.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - it is what the sidecar says
    session = RobotSession(f"quic://{where}/", verify=False, websocket_url="", token="guessed")
    with pytest.raises(RobotError) as refused:
        await session.connect()
    assert refused.value.status == 401
    assert not policy.opened


class Held(asyncio.DatagramProtocol):
    """Between a sidecar and its router: the router's answers wait until they are let through."""

    def __init__(self, router):
        self.router = router
        self.held = []
        self.is_open = False

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        if address != self.router:
            self.sidecar = address
            self.transport.sendto(data, self.router)
        elif self.is_open:
            self.transport.sendto(data, self.sidecar)
        else:
            self.held.append(data)

    def let_through(self):
        self.is_open = True
        for data in self.held:
            self.transport.sendto(data, self.sidecar)


async def test_one_that_is_told_to_stop_while_it_dials_does_not_wait_for_it(
    start_router, start_server, client, until, files, tmp_path
):
    under_way, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/slow" in head:
            under_way.set()
            await may_answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    router = await start_router(*flags(files), replicas=[ATTACHED])
    host, port = quic_of(router).split(":")
    transport, held = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Held((host, int(port))), local_addr=("127.0.0.1", 0)
    )
    where = "{}:{}".format(*transport.get_extra_info("sockname"))
    sidecar = AttachedSidecar(tmp_path, await start_server(answer), [where], ca=files / "ca.pem")
    try:
        await sidecar.start()
        await until(lambda: held.held)
        (url,) = [url for url in sidecar.listen if url.startswith("http")]

        asked = asyncio.ensure_future(client.get(f"{url}/slow"))  # it keeps the worker until the handshake is over
        await under_way.wait()
        sidecar.process.send_signal(signal.SIGTERM)
        await until(lambda: "told to stop" in sidecar.stderr())
        await asyncio.sleep(0.2)  # its worker has heard of it
        held.let_through()
        await asyncio.sleep(0.2)
        may_answer.set()
        assert (await asked).text == "ok"
        assert await asyncio.to_thread(sidecar.process.wait, 5) == 0
    finally:
        await sidecar.end()
        transport.close()


@pytest.mark.slow
async def test_an_upgrade_loses_no_request_to_it(start_router, start_sidecar, engine, client, until, gone, files):
    router = await start_router(*flags(files, "--drain-settle-s", "0", "--drain-deadline-s", "20"), replicas=[ATTACHED], workers=2)
    sidecar = await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    answers, is_over = [], False

    async def ask():
        async with httpx.AsyncClient() as one:
            while not is_over:
                answers.append((await one.get(f"{router.url}/_sim/bytes?n=10")).status_code)

    async with lineage(router, until, gone) as line:
        asking = [asyncio.ensure_future(ask()) for _ in range(4)]
        await line.upgrade()
        await line.settled(15)  # it does not wait for the replica's connection
        count = len(answers)
        await until(lambda: len(answers) > count + 50)
        is_over = True
        await asyncio.gather(*asking)
        assert set(answers) == {200}
        assert "is leaving" in sidecar.stderr()


@pytest.mark.slow
async def test_a_router_that_ends_does_not_wait_for_it(start_router, start_sidecar, engine, client, until, files):
    router = await start_router(*flags(files, "--drain-settle-s", "0", "--drain-deadline-s", "20"), replicas=[ATTACHED], workers=2)
    await start_sidecar(engine.url, router)
    await served(client, router.url, until)
    before = set(Path(tempfile.gettempdir()).glob("router-*"))
    os.kill(router.pid, signal.SIGTERM)
    assert await router.wait(10) == 0
    assert len(before - set(Path(tempfile.gettempdir()).glob("router-*"))) >= 1  # its folder of sockets
