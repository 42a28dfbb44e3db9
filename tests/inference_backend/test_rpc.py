"""The gRPC services, by grpcio's clients."""

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import grpc.aio
import httpx
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from inference_backend.launch import ReplicaProcess
from inference_backend.rpc import lerobot, proto, sglang

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROTOS = ("sglang_scheduler.proto", "lerobot.proto")


@pytest.mark.parametrize("name", PROTOS)
async def test_protoc_reads_the_same(name, tmp_path):
    pytest.importorskip("grpc_tools")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(proto.__file__).parent}"]
    subprocess.run([*command, f"--descriptor_set_out={out}", name], check=True)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert file == proto.parse(name)


async def test_the_original_understands_our_messages():
    original = pytest.importorskip("smg_grpc_proto.generated.sglang_scheduler_pb2")
    ours = sglang.pb.GenerateRequest(request_id="r", stream=True)
    ours.tokenized.input_ids.extend([1, 2])
    ours.sampling_params.max_new_tokens = 3
    theirs = original.GenerateRequest.FromString(ours.SerializeToString())
    assert list(theirs.tokenized.input_ids) == [1, 2] and theirs.sampling_params.max_new_tokens == 3


async def test_what_the_reader_does_not_know_is_named(monkeypatch, tmp_path):
    (tmp_path / "odd.proto").write_text('syntax = "proto3";\nmessage A {\n  map<string, int32> b = 1;\n}\n')
    monkeypatch.setattr("inference_backend.rpc.proto.resources.files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="line 3"):
        proto.parse("odd.proto")


def channel_to(url):
    return grpc.aio.insecure_channel(url.removeprefix("h2c://"), options=[("grpc.enable_http_proxy", 0)])


@pytest.fixture(scope="module")
def request_of():
    def make(tokens=8, *, stream=True, ids=(1, 2, 3, 4), rid=""):
        made = sglang.pb.GenerateRequest(request_id=rid, stream=stream)
        made.tokenized.input_ids.extend(ids)
        made.sampling_params.max_new_tokens = tokens
        return made

    return make


async def test_generate(request_of):
    async with ReplicaProcess.simulate(time_scale=0, grpc_port=0) as replica:
        assert replica.url.startswith("http://") and replica.grpc_url.startswith("h2c://")
        async with channel_to(replica.grpc_url) as channel:
            stub = proto.stub_of(sglang.SERVICE, channel)
            messages = [message async for message in stub.Generate(request_of(8, rid="a"))]
            *chunks, last = messages
            assert [chunk.chunk.completion_tokens for chunk in chunks] == list(range(1, 9))
            assert (last.complete.finish_reason, last.complete.completion_tokens) == ("length", 8)
            streamed = [token for chunk in chunks for token in chunk.chunk.token_ids]
            assert streamed == list(last.complete.output_ids) and len(streamed) == 8
            (whole,) = [message async for message in stub.Generate(request_of(8, stream=False))]
            assert list(whole.complete.output_ids) == streamed
            assert (await stub.HealthCheck(sglang.pb.HealthCheckRequest())).healthy
            info = await stub.GetModelInfo(sglang.pb.GetModelInfoRequest())
            assert info.is_generation and info.served_model_name
            assert (await stub.GetServerInfo(sglang.pb.GetServerInfoRequest())).server_type == "grpc"
            (load,) = (await stub.GetLoads(sglang.pb.GetLoadsRequest())).loads
            assert load.max_total_num_tokens > 0 and load.num_running_reqs == 0
            for wrong in (request_of(ids=()), request_of(10_000_000)):
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    async for _ in stub.Generate(wrong):
                        pass
                assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        async with httpx.AsyncClient(base_url=replica.url) as client:
            found = (await client.get("/_sim/requests")).json()["recent"]
        assert [record["state"] for record in found] == ["finished", "finished", "failed", "failed"]
        assert found[0]["path"] == f"/{sglang.SERVICE}/Generate" and "user-agent" in found[0]["headers"]
        assert replica.stderr() == ""


async def test_cancel_and_abort(request_of, record_of, eventually):
    async with ReplicaProcess.simulate(profile="tiny", time_scale=1, grpc_port=0) as replica:
        async with channel_to(replica.grpc_url) as channel:
            stub = proto.stub_of(sglang.SERVICE, channel)
            call = stub.Generate(request_of(2_000, rid="gone"))
            assert (await anext(aiter(call))).chunk.completion_tokens == 1
            call.cancel()
            record = await eventually(lambda: record_of(replica.url, "gone"))
            assert record["state"] == "aborted"
            call = aiter(stub.Generate(request_of(2_000, rid="stopped")))
            await anext(call)
            assert (await stub.Abort(sglang.pb.AbortRequest(request_id="stopped"))).success
            last = [message async for message in call][-1]
            assert last.complete.finish_reason == "abort"
            assert not (await stub.Abort(sglang.pb.AbortRequest(request_id="stopped"))).success
        assert replica.stderr() == ""


async def test_a_full_queue_is_a_status(request_of):
    options = {"profile": "tiny", "time_scale": 1, "max_running": 1, "max_queued": 1, "grpc_port": 0}
    async with ReplicaProcess.simulate(**options) as replica, channel_to(replica.grpc_url) as channel:
        stub = proto.stub_of(sglang.SERVICE, channel)
        calls = [stub.Generate(request_of(2_000))]
        await calls[0].read()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            # One waits until the first is over, the other finds no place to wait.
            calls += [stub.Generate(request_of(1)), stub.Generate(request_of(1))]
            await asyncio.gather(calls[-1].read(), calls[-2].read())
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


async def test_health_and_reflection_and_drain(eventually):
    async with ReplicaProcess.simulate(time_scale=0, grpc_port=0, startup_s=0.2, linger_s=5) as replica:
        async with channel_to(replica.grpc_url) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def status(name=sglang.SERVICE):
                return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            assert await status() == not_serving

            async def serves():
                return await status() == health_pb2.HealthCheckResponse.SERVING

            await eventually(serves)
            with grpc.insecure_channel(replica.grpc_url.removeprefix("h2c://")) as plain:
                known = ProtoReflectionDescriptorDatabase(plain)
                assert set(known.get_services()) >= {sglang.SERVICE, "grpc.health.v1.Health"}
                file = known.FindFileContainingSymbol(sglang.SERVICE)
                assert file == proto.parse("sglang_scheduler.proto")
                assert known.FindFileContainingSymbol("grpc.health.v1.Health").package == "grpc.health.v1"
            replica.send_signal(15)

            async def drains():
                return await status("") == not_serving

            await eventually(drains)
        assert await replica.kill() is not None


async def test_a_robot():
    async with ReplicaProcess.lerobot(action_horizon=2, action_dim=3, wait_s=0.05) as replica:
        async with channel_to(replica.url) as channel:
            stub, pb = proto.stub_of(lerobot.SERVICE, channel), lerobot.pb
            await stub.Ready(pb.Empty())
            await stub.SendPolicyInstructions(pb.PolicySetup(data=b"\x80\x04N."))
            assert (await stub.GetActions(pb.Empty())).data == b""

            def pieces(*parts):
                states = [pb.TRANSFER_BEGIN] + [pb.TRANSFER_MIDDLE] * (len(parts) - 2) + [pb.TRANSFER_END]
                states = states[-len(parts) :]
                return iter([
                    pb.Observation(transfer_state=state, data=part) for state, part in zip(states, parts)
                ])  # fmt: skip

            large = bytes(1 << 20)
            for parts in ([b"old"], [large, large, b"new"]):
                await stub.SendObservations(pieces(*parts))
            actions = pickle.loads((await stub.GetActions(pb.Empty())).data)
            assert len(actions) == 2 and len(actions[0]["action"]) == 3
            assert actions[0]["action"][0] == crc32(large + large + b"new")
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.SendObservations(iter([pb.Observation(data=b"x")]))


async def test_a_taken_port_ends_it(unused_tcp_port_factory):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "inference_backend", "lerobot", "--port", port],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    assert done.returncode != 0 and "cannot listen for gRPC" in done.stderr


async def test_without_grpcio_it_says_what_to_install():
    code = (
        "import sys; sys.modules['grpc_reflection'] = None\n"
        "from inference_backend.__main__ import main\n"
        "main(['simulate', '--grpc-port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "replica-router[grpc]" in done.stderr


async def test_without_the_option_there_is_no_grpc():
    async with ReplicaProcess.simulate(time_scale=0) as replica:
        assert replica.grpc_url == ""
