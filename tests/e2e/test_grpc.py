"""gRPC through the running router, by grpcio's two clients, to services that are grpcio's too."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

sys.path.insert(0, str(Path(__file__).parent))

from grpckit import SERVICE, GrpcProcess, aio_stubs, seen, sync_stubs  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")
Code = grpc.StatusCode
LARGE = 4 << 20  # grpcio's own limit for a message, without the five bytes before it
FLAVOURS = ["aio", "sync"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services():
    """One service of each flavour, for every test that does not harm it."""
    started = {}
    try:
        for flavour in FLAVOURS:
            started[flavour] = await asyncio.to_thread(GrpcProcess(flavour).start)
        yield started
    finally:
        for process in started.values():
            await asyncio.to_thread(process.stop)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routers(keep_router, services):
    """A router before each service."""
    return {flavour: await keep_router(replicas=[service.url]) for flavour, service in services.items()}


@pytest.fixture(params=FLAVOURS)
def flavour(request):
    return request.param


@pytest.fixture
def service(services, flavour):
    return services[flavour]


@pytest_asyncio.fixture(loop_scope="session")
async def router(routers, flavour):
    """The router before `service`; nothing may be left in flight on it."""
    yield routers[flavour]
    await routers[flavour].settled()


@pytest_asyncio.fixture(loop_scope="session")
async def kit(router):
    """Stubs on a connection of their own to the router."""
    async with aio_stubs(router.port) as stubs:
        yield stubs


@pytest.fixture
def call_id():
    return uuid4().hex


def of(metadata):
    """Metadata as a dict; the last of a name."""
    return dict(tuple(metadata or ()))


async def failed(call):
    """The error that a call ended with, of a unary answer or of a stream."""
    with pytest.raises(grpc.RpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


# -- the four kinds


async def test_the_four_kinds(kit):
    assert await kit.unary(b"hello") == b"hello"
    assert await kit.unary(b"") == b""
    assert [m async for m in kit.server_stream(b"n", metadata=(("kit-count", "4"),))] == [b"n %d" % i for i in range(4)]
    assert [m async for m in kit.server_stream(b"n", metadata=(("kit-count", "0"),))] == []
    parts = [b"part %d" % i for i in range(5)]
    answer = json.loads(await kit.client_stream(iter(parts)))
    assert answer == {"messages": 5, "bytes": 30, "sha256": hashlib.sha256(b"".join(parts)).hexdigest()}
    assert json.loads(await kit.client_stream(iter([])))["messages"] == 0
    assert [m async for m in kit.bidi(iter(parts))] == parts


async def test_the_four_kinds_by_the_synchronous_client(router):
    def run():
        with sync_stubs(router.port) as kit:
            assert kit.unary(b"hello", timeout=10) == b"hello"
            assert list(kit.server_stream(b"n", timeout=10)) == [b"n 0", b"n 1", b"n 2"]
            assert json.loads(kit.client_stream(iter([b"a", b"b"]), timeout=10))["messages"] == 2
            assert list(kit.bidi(iter([b"x", b"y"]), timeout=10)) == [b"x", b"y"]

    await asyncio.to_thread(run)


async def test_a_conversation_is_not_held_back(kit):
    """Each message of a bidirectional stream arrives before the next is sent."""
    call = kit.bidi()
    for number in range(20):
        await call.write(b"%d" % number)
        async with asyncio.timeout(5):
            assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK


async def test_the_head_comes_before_the_first_message(kit):
    call = kit.server_stream(b"n", metadata=(("kit-initial-early", "yes"), ("kit-sleep-ms", "10000")))
    async with asyncio.timeout(5):
        assert of(await call.initial_metadata())["early"] == "yes"
    call.cancel()


# -- metadata and status


async def test_metadata_both_ways(kit, service, call_id):
    binary = bytes(range(256))
    call = kit.unary(b"x", metadata=(
        ("kit-id", call_id), ("custom", "a value"), ("custom-bin", binary), ("twice", "1"), ("twice", "2"),
        ("kit-initial-text", "t"), ("kit-initial-raw-bin", binary),
        ("kit-trailing-text", "u"), ("kit-trailing-raw-bin", binary),
    ))  # fmt: skip
    assert await call == b"x"
    initial, trailing = of(await call.initial_metadata()), of(await call.trailing_metadata())
    assert (initial["text"], initial["raw-bin"]) == ("t", binary)
    assert (trailing["text"], trailing["raw-bin"]) == ("u", binary)
    assert initial["x-request-id"] and initial["x-router-replica"]
    record = await seen(service.port, call_id, "ok")
    got = [(name, value) for name, value in record["metadata"] if name in {"custom", "custom-bin", "twice"}]
    assert got == [("custom", "a value"), ("custom-bin", binary.hex()), ("twice", "1"), ("twice", "2")]
    assert of(record["metadata"])["x-request-id"] == initial["x-request-id"]
    assert not [name for name, _ in record["metadata"] if name in {"connection", "transfer-encoding", "host"}]


async def test_a_request_id_is_kept(kit, service, call_id):
    call = kit.unary(b"x", metadata=(("x-request-id", "mine"), ("kit-id", call_id)))
    await call
    assert of(await call.initial_metadata())["x-request-id"] == "mine"
    assert of((await seen(service.port, call_id))["metadata"])["x-request-id"] == "mine"


@pytest.mark.parametrize("number", range(1, 17))
async def test_a_status_is_untouched(kit, number):
    message = f"Grüße & 100 % of code {number}"
    failure = await failed(
        kit.unary(b"x", metadata=(("kit-status", str(number)), ("kit-message-bin", message.encode())))
    )
    assert failure.code().value[0] == number
    assert failure.details() == message
    assert "x-router-error" not in of(failure.trailing_metadata())


async def test_a_trailers_only_reply(kit):
    """Nothing but a status: the trailing metadata are there, and no head of their own came before."""
    for call in (
        kit.unary(b"x", metadata=(("kit-status", "5"), ("kit-trailing-a-bin", b"\0\1"))),
        kit.server_stream(b"x", metadata=(("kit-status", "5"), ("kit-trailing-a-bin", b"\0\1"))),
    ):
        failure = await failed(call)
        assert failure.code() is Code.NOT_FOUND
        assert of(failure.trailing_metadata())["a-bin"] == b"\0\1"


async def test_a_status_after_messages(kit):
    call = kit.server_stream(b"n", metadata=(("kit-status", "10"), ("kit-message", "stop"), ("kit-after", "2")))
    got = []
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for message in call:
            got.append(message)  # noqa: PERF401 - the loop ends in an error
    assert got == [b"n 0", b"n 1"]
    assert failure.value.code() is Code.ABORTED and failure.value.details() == "stop"


async def test_a_status_while_the_client_still_sends(router):
    """The answer comes first; the rest of the upload is not wanted.

    By the synchronous client: `grpc.aio` reports its own failed write now and then, without a proxy as well.
    """

    def run():
        def endless():
            while True:
                yield bytes(10_000)

        with sync_stubs(router.port) as kit:
            metadata = (("kit-status", "9"), ("kit-after", "3"))
            with pytest.raises(grpc.RpcError) as failure:
                list(kit.bidi(endless(), metadata=metadata, timeout=10))
        assert failure.value.code() is Code.FAILED_PRECONDITION

    await asyncio.to_thread(run)


# -- deadlines and cancellation


async def test_a_deadline_is_forwarded(kit, service, call_id):
    await kit.unary(b"x", metadata=(("kit-id", call_id),), timeout=30)
    remaining = (await seen(service.port, call_id, "ok"))["remaining_s"]
    assert 20 < remaining < 30.5  # clocks differ a bit
    await kit.unary(b"x", metadata=(("kit-id", "none" + call_id),))
    assert (await seen(service.port, "none" + call_id, "ok"))["remaining_s"] is None


async def test_a_deadline_ends_the_call_on_both_sides(kit, service, call_id):
    began = monotonic()
    failure = await failed(kit.unary(b"x", metadata=(("kit-id", call_id), ("kit-sleep-ms", "60000")), timeout=0.5))
    assert failure.code() is Code.DEADLINE_EXCEEDED
    assert 0.4 < monotonic() - began < 5
    assert (await seen(service.port, call_id, "cancelled"))["remaining_s"] < 0.6  # not more was forwarded; clocks differ a bit


async def test_a_deadline_in_mid_stream(kit, service, call_id):
    call = kit.server_stream(b"n", metadata=(("kit-id", call_id), ("kit-hang", "1")), timeout=0.7)
    got = []
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for message in call:
            got.append(message)  # noqa: PERF401 - the loop ends in an error
    assert len(got) == 3 and failure.value.code() is Code.DEADLINE_EXCEEDED
    await seen(service.port, call_id, "cancelled")


@pytest.mark.parametrize("kind", ["unary", "client_stream", "server_stream", "bidi"])
async def test_a_client_that_cancels_is_heard(kit, service, call_id, kind):
    metadata = (("kit-id", call_id), ("kit-sleep-ms", "60000"), ("kit-initial-a", "b"))
    argument = b"x" if kind in {"unary", "server_stream"} else None
    call = getattr(kit, kind)(*([argument] if argument else []), metadata=metadata)
    if argument is None:
        await call.write(b"x")
    await seen(service.port, call_id, "open")
    call.cancel()
    await seen(service.port, call_id, "cancelled")


async def test_a_client_that_goes_away_cancels_every_call(router, service):
    ids = [uuid4().hex for _ in range(5)]
    async with AsyncExitStack() as stack:
        kit = await stack.enter_async_context(aio_stubs(router.port))
        calls = [kit.server_stream(b"n", metadata=(("kit-id", i), ("kit-hang", "1"))) for i in ids]
        for call in calls:
            await call.read()
    for i in ids:
        await seen(service.port, i, "cancelled")


async def test_a_service_that_cancels(kit):
    failure = await failed(kit.server_stream(b"n", metadata=(("kit-status", "1"), ("kit-after", "1"))))
    assert failure.code() is Code.CANCELLED


# -- size and number


async def test_large_messages_both_ways(kit):
    message = bytes(range(256)) * (LARGE // 256)
    assert await kit.unary(message) == message
    assert [m async for m in kit.bidi(iter([message, message]))] == [message, message]
    answer = json.loads(await kit.client_stream(iter([message] * 4)))
    assert answer["bytes"] == 4 * LARGE
    count = 0
    async for answer in kit.server_stream(b"", metadata=(("kit-count", "4"), ("kit-size", str(LARGE)))):
        assert len(answer) == LARGE
        count += 1
    assert count == 4


async def test_a_hundred_streams_on_one_connection(kit):
    """All open at once: none ends before all have begun."""
    metadata = (("kit-count", "3"), ("kit-hang", "1"))
    calls = [kit.server_stream(b"%d" % i, metadata=metadata) for i in range(100)]
    async with asyncio.timeout(20):
        for i, call in enumerate(calls):
            assert [await call.read() for _ in range(3)] == [b"%d %d" % (i, n) for n in range(3)]
    for call in calls:
        call.cancel()


async def test_a_thousand_calls_in_a_row(kit):
    for start in range(0, 1_000, 50):
        answers = await asyncio.gather(*(kit.unary(b"%d" % i) for i in range(start, start + 50)))
        assert answers == [b"%d" % i for i in range(start, start + 50)]


async def test_a_slow_reader_stops_the_service(kit, service, call_id):
    """Flow control goes through: a reader that reads nothing holds the sender, and gets everything later."""
    count, size = 64, 1 << 20
    metadata = (("kit-id", call_id), ("kit-count", str(count)), ("kit-size", str(size)))
    call = kit.server_stream(b"", metadata=metadata)
    assert len(await call.read()) == size
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert (await seen(service.port, call_id))["state"] == "open"
    left = 0
    while (message := await call.read()) is not grpc.aio.EOF:
        assert len(message) == size
        left += 1
    assert left == count - 1
    await seen(service.port, call_id, "ok")


# -- services beside it


async def test_health(router):
    async with aio_stubs(router.port) as kit:
        stub = health_pb2_grpc.HealthStub(kit.channel)
        for name, status in (("", "SERVING"), (SERVICE, "SERVING"), ("kit.Down", "NOT_SERVING")):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        failure = await failed(stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5))
        assert failure.code() is Code.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection(router):
    def ask():
        with sync_stubs(router.port) as kit:
            known = ProtoReflectionDescriptorDatabase(kit.channel)
            assert {SERVICE, "grpc.health.v1.Health"} <= set(known.get_services())
            assert known.FindFileContainingSymbol("grpc.health.v1.Health").package == "grpc.health.v1"

    await asyncio.to_thread(ask)


async def test_an_unknown_method_is_the_services_answer(kit):
    failure = await failed(kit.channel.unary_unary("/kit.Kit/Nothing")(b"x"))
    assert failure.code() is Code.UNIMPLEMENTED
    assert "x-router-error" not in of(failure.trailing_metadata())


# -- what the router says itself


def says(failure, code, reached, error=None):
    """It is a trailers-only reply of the router, with its words."""
    trailing = of(failure.trailing_metadata())
    assert failure.code() is code, failure
    assert trailing["x-router-upstream-reached"] == reached
    assert trailing["x-router-error"] if error is None else trailing["x-router-error"] == error
    assert failure.details()


async def test_no_endpoint(start_router, services):
    toml = f"""
[[endpoint]]
name = "only"
hosts = ["only.example"]
replica = [{{ address = "{services["aio"].url}" }}]
"""
    router = await start_router(toml=toml)
    async with aio_stubs(router.port) as kit:
        says(await failed(kit.unary(b"x")), Code.UNIMPLEMENTED, "no")
        says(await failed(kit.server_stream(b"x")), Code.UNIMPLEMENTED, "no")
    async with aio_stubs(router.port, ("grpc.default_authority", "only.example")) as kit:
        assert await kit.unary(b"x") == b"x"


async def test_routes_by_service(start_router, services):
    toml = f"""
[[endpoint]]
name = "kit"
path_prefixes = ["/kit.Kit/"]
replica = [{{ address = "{services["aio"].url}" }}]
[[endpoint]]
name = "health"
path_prefixes = ["/grpc.health.v1.Health/"]
replica = [{{ address = "{services["sync"].url}" }}]
"""
    router = await start_router(toml=toml)
    async with aio_stubs(router.port) as kit:
        assert await kit.unary(b"x") == b"x"
        assert (await health_pb2_grpc.HealthStub(kit.channel).Check(health_pb2.HealthCheckRequest())).status
        says(await failed(kit.channel.unary_unary("/other.Service/Method")(b"x")), Code.UNIMPLEMENTED, "no")


async def test_no_ready_replica(start_router, services):
    toml = f"""
[[endpoint]]
name = "kit"
replica = [{{ address = "{services["aio"].url}", state = "DRAINING" }}]
"""
    router = await start_router(toml=toml)
    async with aio_stubs(router.port) as kit:
        # The last writes nothing: `grpc.aio` reports a write that met the end of its stream instead of the status.
        for call in (kit.unary(b"x"), kit.server_stream(b"x"), kit.client_stream(iter([b"x"])), kit.bidi()):
            says(await failed(call), Code.UNAVAILABLE, "no")


async def test_a_replica_that_is_not_there(start_router, closed_port):
    router = await start_router(replicas=[closed_port.replace("http://", "h2c://")])
    async with aio_stubs(router.port) as kit:
        says(await failed(kit.unary(b"x", timeout=10)), Code.UNAVAILABLE, "no")
    await router.settled()


async def test_at_capacity(start_router, services):
    toml = f"""
[[endpoint]]
name = "kit"
limits = {{ max_concurrency = 1 }}
replica = [{{ address = "{services["aio"].url}" }}]
"""
    router = await start_router(toml=toml)
    async with aio_stubs(router.port) as kit:
        first = kit.server_stream(b"n", metadata=(("kit-hang", "1"),))
        await first.read()
        says(await failed(kit.unary(b"x")), Code.RESOURCE_EXHAUSTED, "no")
        first.cancel()


async def test_a_missing_token(start_router, services):
    router = await start_router("--auth-token", "secret", replicas=[services["aio"].url])
    async with aio_stubs(router.port) as kit:
        says(await failed(kit.unary(b"x")), Code.UNAUTHENTICATED, "no")
        assert await kit.unary(b"x", metadata=(("authorization", "Bearer secret"),)) == b"x"


# -- replicas that die, and ends


async def test_a_replica_killed_in_mid_stream(start_router, start_grpc):
    service = await start_grpc()
    router = await start_router(replicas=[service.url])
    async with aio_stubs(router.port) as kit:
        calls = [kit.server_stream(b"n", metadata=(("kit-hang", "1"),)) for _ in range(3)]
        for call in calls:
            assert await call.read() == b"n 0"
        service.kill()
        for call in calls:
            async with asyncio.timeout(10):
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    while await call.read() is not grpc.aio.EOF:
                        pass
                    raise AssertionError(f"a silent end: {await call.code()}")
            assert failure.value.code() is Code.UNAVAILABLE
            assert of(failure.value.trailing_metadata())["x-router-error"]
    await router.settled()


async def test_a_replica_killed_before_it_answered(start_router, start_grpc, call_id):
    service = await start_grpc()
    router = await start_router(replicas=[service.url])
    async with aio_stubs(router.port) as kit:
        call = kit.unary(b"x", metadata=(("kit-id", call_id), ("kit-sleep-ms", "60000")))
        await seen(service.port, call_id, "open")
        service.kill()
        failure = await failed(call)
    assert failure.code() is Code.UNAVAILABLE
    assert of(failure.trailing_metadata())["x-router-upstream-reached"] in {"maybe", "yes"}
    await router.settled()


async def test_the_other_replica_takes_over(start_router, start_grpc):
    one, other = await start_grpc(), await start_grpc()
    router = await start_router(replicas=[one.url, other.url])
    async with aio_stubs(router.port) as kit:
        used = set()
        for _ in range(40):
            call = kit.unary(b"x")
            await call
            used.add(of(await call.initial_metadata())["x-router-replica"])
        assert len(used) == 2  # calls of one connection are spread, not the connection
        one.kill()
        for _ in range(40):
            assert await kit.unary(b"x", timeout=10) == b"x"
    await router.settled()


async def test_a_drain_lets_calls_finish(start_router, start_grpc):
    service = await start_grpc()
    router = await start_router("--drain-settle-s", "0", replicas=[service.url])
    async with aio_stubs(router.port) as kit:
        metadata = (("kit-count", "20"), ("kit-interval-ms", "50"))
        call = kit.server_stream(b"n", metadata=metadata)
        assert await call.read() == b"n 0"
        router.send_signal(signal.SIGTERM)
        got = 1
        while await call.read() is not grpc.aio.EOF:
            got += 1
        assert got == 20 and await call.code() is Code.OK
    assert await router.wait() == 0


# -- the services this is for


async def test_sglang_through_the_router(start_router, start_engine, journal_of):
    from inference_backend.rpc import proto, sglang

    engine = await start_engine(profile="tiny", time_scale=1, grpc_port=0)
    router = await start_router(replicas=[engine.grpc_url])
    async with aio_stubs(router.port) as kit:
        stub = proto.stub_of(sglang.SERVICE, kit.channel)
        request = sglang.pb.GenerateRequest(stream=True)
        request.tokenized.input_ids.extend(range(16))
        request.sampling_params.max_new_tokens = 20
        *chunks, last = [message async for message in stub.Generate(request)]
        assert len(chunks) == 20 and last.complete.finish_reason == "length"
        request.sampling_params.max_new_tokens = 5_000
        call = stub.Generate(request, metadata=(("x-request-id", "cancelled"),))
        await call.read()
        call.cancel()
        record = await journal_of(engine, "cancelled")
        assert record["state"] == "aborted" and record["tokens"] < 5_000


async def test_a_robot_through_the_router(start_router):
    from inference_backend.launch import ReplicaProcess
    from inference_backend.rpc import lerobot, proto

    async with ReplicaProcess.lerobot() as replica:
        router = await start_router(replicas=[replica.url])
        async with aio_stubs(router.port) as kit:
            stub, pb = proto.stub_of(lerobot.SERVICE, kit.channel), lerobot.pb
            await stub.Ready(pb.Empty())
            for _ in range(3):
                pieces = [pb.Observation(transfer_state=pb.TRANSFER_BEGIN, data=bytes(2 << 20)),
                          pb.Observation(transfer_state=pb.TRANSFER_END, data=b"end")]  # fmt: skip
                await stub.SendObservations(iter(pieces))
                assert (await stub.GetActions(pb.Empty(), timeout=5)).data
