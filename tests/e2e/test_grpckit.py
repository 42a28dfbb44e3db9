"""The gRPC service of these tests, asked directly: what the tests of the router rest on."""

import asyncio
import hashlib
import json
import sys
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from grpckit import aio_stubs, seen, sync_stubs  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.parametrize("flavour", ["aio", "sync"])]


async def test_the_four_kinds(start_grpc, flavour):
    service = await start_grpc(flavour)
    async with aio_stubs(service.port) as kit:
        assert await kit.unary(b"hello") == b"hello"
        assert [m async for m in kit.server_stream(b"n", metadata=(("kit-count", "2"),))] == [b"n 0", b"n 1"]
        answer = json.loads(await kit.client_stream(iter([b"a", b"bc"])))
        assert answer == {"messages": 2, "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
        assert [m async for m in kit.bidi(iter([b"x", b"y"]))] == [b"x", b"y"]


async def test_metadata_and_status(start_grpc, flavour):
    service = await start_grpc(flavour)
    async with aio_stubs(service.port) as kit:
        call = kit.unary(
            b"x",
            metadata=(
                ("kit-initial-a", "1"), ("kit-initial-b-bin", b"\0\xff"), ("kit-trailing-c-bin", b"\1"),
                ("kit-status", "5"), ("kit-message-bin", "nö".encode()), ("kit-id", "m"),
            ),
        )  # fmt: skip
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND and failure.value.details() == "nö"
        assert ("c-bin", b"\1") in tuple(failure.value.trailing_metadata())
        initial = tuple(await call.initial_metadata())
        assert ("a", "1") in initial and ("b-bin", b"\0\xff") in initial
    record = await seen(service.port, "m", "failed")
    assert ["kit-trailing-c-bin", "01"] in record["metadata"] and record["remaining_s"] is None


async def test_a_cancelled_call_is_seen(start_grpc, flavour):
    service = await start_grpc(flavour)
    with sync_stubs(service.port) as kit:
        call = kit.server_stream(b"n", metadata=(("kit-id", "c"), ("kit-hang", "1")), timeout=30)
        assert await asyncio.to_thread(next, call) == b"n 0"
        call.cancel()
    record = await seen(service.port, "c", "cancelled")
    assert 20 < record["remaining_s"] < 30.5  # clocks differ a bit
