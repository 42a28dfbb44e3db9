"""HTTP/2 against peers that nobody here wrote: the h2 library on either side, httpx, curl, nghttp and h2load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
from hashlib import sha256

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import psutil
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1 << 20


class H2Peer:
    """One connection of the h2 library, client or server, over asyncio's streams."""

    def __init__(self, reader, writer, *, client_side):
        config = h2.config.H2Configuration(client_side=client_side, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.reader, self.writer = reader, writer
        self.events = []
        self.ended = False

    async def flush(self):
        with contextlib.suppress(ConnectionError):
            self.writer.write(self.h2.data_to_send())
            await self.writer.drain()

    async def read(self):
        """Read once; return what happened."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = await self.reader.read(65_536)
        if not data:
            self.ended = True
            return []
        found = self.h2.receive_data(data)
        for event in found:
            if isinstance(event, h2.events.DataReceived):
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        await self.flush()
        self.events += found
        return found

    async def until(self, kind, stream=None):
        """The first event of this kind, of this stream."""
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                        return event
                assert not self.ended, self.events
                await self.read()


@pytest_asyncio.fixture(loop_scope="session")
async def dial():
    """`await dial(router)`: an h2 client on a connection of its own."""
    peers = []

    async def dial(router):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        peer = H2Peer(reader, writer, client_side=True)
        peers.append(peer)
        peer.h2.initiate_connection()
        await peer.flush()
        await peer.until(h2.events.RemoteSettingsChanged)
        return peer

    yield dial
    for peer in peers:
        peer.writer.close()


def head(method="GET", path="/_sim/echo", *more):
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.example"), *more]


@pytest_asyncio.fixture(loop_scope="session")
async def h2_replica(start_server):
    """`await h2_replica(on_event, **settings)`: an h2 server whose events a function answers; its h2c URL."""

    async def start(on_event, **values):
        async def serve(reader, writer):
            peer = H2Peer(reader, writer, client_side=False)
            for name, value in values.items():  # in the first SETTINGS, and in force from there on
                peer.h2.local_settings[getattr(h2.settings.SettingCodes, name)] = value
            peer.h2.local_settings.acknowledge()
            peer.h2.initiate_connection()
            await peer.flush()
            while not peer.ended:
                for event in await peer.read():
                    on_event(peer, event)
                await peer.flush()

        return (await start_server(serve)).replace("http://", "h2c://")

    return start


def answer_ok(peer, event):
    if isinstance(event, h2.events.StreamEnded):
        peer.h2.send_headers(event.stream_id, [(":status", "200")])
        peer.h2.send_data(event.stream_id, b"ok", end_stream=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine):
    return await keep_router(replicas=[engine.url])


def over_http2(url):
    """By prior knowledge: httpx speaks nothing else then."""
    return httpx.AsyncClient(base_url=url, http1=False, http2=True, trust_env=False, timeout=30)


# -- clients -------------------------------------------------------------------------------------------


async def test_httpx(router, until):
    async with over_http2(router.url) as http:
        for body in (b"", b"x" * 1_000, b"y" * 5 * MIB):
            response = await http.post("/_sim/echo?q=1", content=body, headers={"x-own": "Value", "cookie": "a=1; b=2"})
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
            seen = response.json()
            fields = {name.lower(): value for name, value in seen["headers"]}
            assert (seen["length"], seen["sha256"]) == (len(body), sha256(body).hexdigest())
            assert fields["x-own"] == "Value" and fields["cookie"] == "a=1; b=2" and fields["host"]
            record = await router.record(response.headers["x-request-id"])
            assert record["protocol"] == "HTTP/2" and record["status"] == 200
        answers = await asyncio.gather(*(http.get("/_sim/bytes?n=100000") for _ in range(100)))
        assert {len(answer.content) for answer in answers} == {100_000}


async def test_100_mib_both_ways_through_a_bounded_memory(router):
    worker = psutil.Process(await router.worker_pid())
    async with over_http2(router.url) as http:
        await http.post("/_sim/sink", content=b"x")
        before = worker.memory_info().rss
        peak = before

        async def pieces():
            nonlocal peak
            for _ in range(100):
                peak = max(peak, worker.memory_info().rss)
                yield bytes(MIB)

        response = await http.post("/_sim/sink", content=pieces())
        assert response.json()["length"] == 100 * MIB
        got = 0
        async with http.stream("GET", f"/_sim/bytes?n={100 * MIB}") as response:
            async for piece in response.aiter_raw():
                got += len(piece)
                peak = max(peak, worker.memory_info().rss)
        assert got == 100 * MIB
    assert peak - before < 24 * MIB


async def test_a_stream_of_events(router):
    call = {"model": "sim", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "x"}]}
    async with over_http2(router.url) as http, http.stream("POST", "/v1/chat/completions", json=call) as response:
        pieces = [piece async for piece in response.aiter_raw()]
    assert response.http_version == "HTTP/2" and len(pieces) > 4
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("program", ["curl", "nghttp", "h2load"])
async def test_programs(router, program, tmp_path):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    body = tmp_path / "body"
    body.write_bytes(b"z" * 300_000)
    commands = {
        "curl": [path, "-q", "-sS", "--noproxy", "*", "--http2-prior-knowledge", "-T", body, "-w", "%{http_version}",
                 router.url + "/_sim/sink"],
        "nghttp": [path, "-v", "-d", body, router.url + "/_sim/sink"],
        "h2load": [path, "-n", "2000", "-c", "4", "-m", "20", router.url + "/_sim/bytes?n=1000"],
    }  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, commands[program], capture_output=True, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    if program == "h2load":
        assert "2000 succeeded, 0 failed, 0 errored" in done.stdout
    else:
        assert '"length":300000' in done.stdout.replace(" ", "")
    if program == "curl":
        assert done.stdout.endswith("2")


async def test_an_offer_of_h2c_is_not_taken_up(router):
    path = shutil.which("curl")
    if path is None:
        pytest.skip("curl is not installed")
    command = [path, "-q", "-sS", "--noproxy", "*", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}",
               router.url + "/_sim/echo"]  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, text=True)
    assert done.stdout == "1.1 200"


async def test_cancelling_one_stream_aborts_it_alone(router, dial, engine, client, until):
    peer = await dial(router)
    call = json.dumps({"model": "sim", "stream": True, "max_tokens": 4_000, "ignore_eos": True, "prompt": "x"}).encode()
    for stream in (1, 3):
        peer.h2.send_headers(stream, head("POST", "/v1/completions", ("content-type", "application/json"),
                                          ("x-request-id", f"cancel-{stream}")))  # fmt: skip
        peer.h2.send_data(stream, call, end_stream=True)
    await peer.flush()
    for stream in (1, 3):
        await peer.until(h2.events.DataReceived, stream)
    peer.h2.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
    await peer.flush()
    assert (await router.record("cancel-1"))["code"] == "client_gone"
    seen = len(peer.events)
    await peer.read()
    assert any(isinstance(e, h2.events.DataReceived) and e.stream_id == 3 for e in peer.events[seen:])
    peer.writer.close()
    assert (await router.record("cancel-3"))["code"] == "client_gone"
    await router.settled()


async def test_a_flood_costs_its_sender_alone(router, dial):
    """Rapid reset (CVE-2023-44487), beside a client that goes on."""
    attacker = await dial(router)
    async with over_http2(router.url) as http:

        async def go_on():
            return [(await http.get("/_sim/bytes?n=10")).status_code for _ in range(50)]

        going_on = asyncio.create_task(go_on())
        for i in range(2_000):
            stream = 2 * i + 1
            attacker.h2.send_headers(stream, head("POST", "/_sim/sink"))
            attacker.h2.reset_stream(stream)
        await attacker.flush()
        ended = await attacker.until(h2.events.ConnectionTerminated)
        assert ended.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        assert await going_on == [200] * 50
    assert "router_floods_total 1.0" in (await router.ask("/metrics")).text
    await router.settled()


async def test_websocket_over_http2(dial, keep_router, policy):
    router = await keep_router(replicas=[policy.url])
    peer = await dial(router)
    assert peer.h2.remote_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
    upgrade = [*head("CONNECT", "/echo"), ("sec-websocket-version", "13")]
    upgrade.insert(1, (":protocol", "websocket"))
    peer.h2.send_headers(1, upgrade)
    await peer.flush()
    response = await peer.until(h2.events.ResponseReceived, 1)
    assert dict(response.headers)[":status"] == "200"
    peer.h2.send_data(1, b"\x82\x85\0\0\0\0hello")
    await peer.flush()
    assert (await peer.until(h2.events.DataReceived, 1)).data == b"\x82\x05hello"
    peer.h2.send_data(1, b"\x88\x82\0\0\0\0\x03\xe8")
    await peer.flush()
    await peer.until(h2.events.StreamEnded, 1)
    peer.h2.end_stream(1)
    await peer.flush()
    await router.settled()


@pytest.mark.parametrize("status", [401, 404, 413, 503])
async def test_errors_of_ours(dial, start_router, start_server, status):
    flags = {401: ["--auth-token", "t"], 413: ["--max-body-bytes", "10"]}.get(status, [])
    if status == 404:
        toml = '[[endpoint]]\nname = "e"\nhosts = ["only.example"]\n[[endpoint.replica]]\naddress = "http://127.0.0.1:1"\n'
        router = await start_router(toml=toml)
    else:
        router = await start_router(*flags, replicas=["http://127.0.0.1:1"])
    peer = await dial(router)
    peer.h2.send_headers(1, head("POST", "/x", ("content-length", "100")))
    peer.h2.send_data(1, b"x" * 100, end_stream=True)
    await peer.flush()
    response = dict((await peer.until(h2.events.ResponseReceived, 1)).headers)
    assert response[":status"] == str(status)
    assert response["x-router-error"] and response["x-router-upstream-reached"] == "no"
    await peer.until(h2.events.StreamEnded, 1)


# -- replicas ------------------------------------------------------------------------------------------


async def test_many_calls_share_a_connection(start_router, h2_replica, client):
    connections = set()

    def serve(peer, event):
        connections.add(id(peer))
        answer_ok(peer, event)

    router = await start_router("--health", "none", replicas=[await h2_replica(serve)])
    answers = await asyncio.gather(*(client.get(router.url) for _ in range(50)))
    assert [(a.status_code, a.content) for a in answers] == [(200, b"ok")] * 50
    assert len(connections) == 1
    assert (await router.row("127.0.0.1:" + (await router.rows())[0]["id"].rpartition(":")[2]))["pooled"] == 1


async def test_a_limit_of_streams_opens_further_connections(start_router, h2_replica, client):
    waiting = []

    def serve(peer, event):
        if isinstance(event, h2.events.StreamEnded):
            waiting.append((peer, event))

    toml = (
        '[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nconnections = {{ ceiling = 3 }}\n'
        '[[endpoint.replica]]\naddress = "{}"\n'
    )
    replica = await h2_replica(serve, MAX_CONCURRENT_STREAMS=2)
    router = await start_router(toml=toml.format(replica))
    warm = asyncio.create_task(client.get(router.url))
    calls = []

    async def reached(count):
        async with asyncio.timeout(10):
            while len(waiting) < count:
                await asyncio.sleep(0)

    await reached(1)
    for i in range(5):
        calls.append(asyncio.create_task(client.get(router.url)))
        await reached(i + 2)
    assert len({id(peer) for peer, _ in waiting}) == 3
    refused = await client.get(router.url)
    assert refused.status_code == 503 and refused.headers["x-router-error"] == "at_capacity"
    for peer, event in waiting:
        answer_ok(peer, event)
        await peer.flush()
    assert [(await call).status_code for call in [warm, *calls]] == [200] * 6
    await router.settled()


@pytest.mark.parametrize("how", ["refused", "goaway"])
async def test_a_request_that_reached_nobody_moves(start_router, h2_replica, client, how):
    """REFUSED_STREAM and GOAWAY say so (RFC 9113 §8.7); the body goes with it."""
    bodies, turned_away = [], []

    def refuse(peer, event):
        if isinstance(event, h2.events.RequestReceived):
            turned_away.append(event.stream_id)
            if how == "refused":
                peer.h2.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                peer.h2.close_connection(last_stream_id=0)

    def serve(peer, event):
        if isinstance(event, h2.events.DataReceived):
            bodies.append(event.data)
        answer_ok(peer, event)

    router = await start_router("--health", "none", replicas=[await h2_replica(refuse), await h2_replica(serve)])
    for i in range(20):
        response = await client.post(router.url, content=b"body-%d" % i)
        assert (response.status_code, response.content) == (200, b"ok")
    assert turned_away
    assert bodies == [b"body-%d" % i for i in range(20)]
    await router.settled()


async def test_streams_below_a_goaway_finish(start_router, h2_replica, client):
    streams = []

    def serve(peer, event):
        if isinstance(event, h2.events.StreamEnded):
            streams.append(event.stream_id)
            if len(streams) == 1:
                peer.h2.close_connection(last_stream_id=event.stream_id)
                peer.writer.write(peer.h2.data_to_send())
                # The library takes the connection for closed; the stream goes on all the same.
                peer.writer.write(
                    bytes.fromhex("000001010400000001") + b"\x88" + bytes.fromhex("000002000100000001") + b"ok"
                )
            else:
                answer_ok(peer, event)

    router = await start_router("--health", "none", replicas=[await h2_replica(serve)])
    for _ in range(3):
        response = await client.get(router.url)
        assert (response.status_code, response.content) == (200, b"ok")
    await router.settled()


async def test_a_replica_that_dies_in_mid_stream(start_router, h2_replica, dial):
    def serve(peer, event):
        if isinstance(event, h2.events.StreamEnded):
            peer.h2.send_headers(event.stream_id, [(":status", "200")])
            peer.h2.send_data(event.stream_id, b"half")
            peer.writer.write(peer.h2.data_to_send())
            peer.writer.close()

    router = await start_router("--health", "none", replicas=[await h2_replica(serve)])
    peer = await dial(router)
    peer.h2.send_headers(1, head(), end_stream=True)
    await peer.flush()
    reset = await peer.until(h2.events.StreamReset, 1)
    assert reset.error_code == h2.errors.ErrorCodes.INTERNAL_ERROR
    await router.settled()


async def test_floor_of_connections(start_router, h2_replica, until):
    peers = []

    def serve(peer, event):
        if isinstance(event, h2.events.RemoteSettingsChanged):
            peers.append(peer)
        answer_ok(peer, event)

    toml = (
        '[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nconnections = {{ floor = 2 }}\n'
        '[[endpoint.replica]]\naddress = "{}"\n'
    )
    await start_router(toml=toml.format(await h2_replica(serve)))
    await until(lambda: len(peers) == 2)
    peers[0].writer.close()
    await until(lambda: len(peers) == 3)


# -- drain ---------------------------------------------------------------------------------------------


async def test_a_drain_fails_nothing(start_router, start_grpc):
    """Calls go on over one connection while the router is told to stop; what finds it gone says UNAVAILABLE."""
    kit = await start_grpc()
    router = await start_router("--drain-settle-s", "0", "--health", "none", replicas=[kit.url])
    codes = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router.port}") as channel:
        call = channel.unary_unary("/kit.Kit/Unary")

        async def go_on():
            while True:
                try:
                    await call(b"x", metadata=(("kit-sleep-ms", "5"),))
                    codes.append("OK")
                except grpc.aio.AioRpcError as error:
                    codes.append(error.details())
                    return

        going_on = [asyncio.create_task(go_on()) for _ in range(8)]
        while len(codes) < 50:
            await asyncio.sleep(0)
        router.send_signal(signal.SIGTERM)
        await asyncio.gather(*going_on)
    assert all("onnect" in code for code in codes if code != "OK"), set(codes)
    assert await router.wait() == 0


@pytest.mark.slow
async def test_an_idle_client_is_told(start_router, engine):
    """httpx, whose library takes a connection for closed as soon as it reads a GOAWAY."""
    router = await start_router("--drain-settle-s", "0", replicas=[engine.url])
    async with over_http2(router.url) as http:
        assert (await http.get("/_sim/bytes?n=10")).status_code == 200
        router.send_signal(signal.SIGTERM)
        assert await router.wait() == 0
        with pytest.raises(httpx.TransportError):
            await http.get("/_sim/bytes?n=10")
