"""The policy server, against the stock openpi client and the websockets library."""

import asyncio
import zlib

import httpx
import numpy as np
import pytest
import websockets
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.client import connect

from inference_backend import ndarray
from inference_backend.launch import ReplicaProcess

# openpi-client opens its socket in a way that websockets 17.1 deprecates.
stock_client = pytest.mark.filterwarnings(
    "ignore:connect.. must be used as a context manager:DeprecationWarning"
)


def observation():
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    return {"images": {"left": image, "right": image}, "state": np.zeros(14), "prompt": "fold the towel"}


def talk(url, **options):
    """A conversation of the stock client, which blocks."""
    policy = WebsocketClientPolicy(url, **options)
    try:
        return policy.get_server_metadata(), [policy.infer(observation()) for _ in range(3)]
    finally:
        policy._ws.close()


@stock_client
async def test_the_stock_client_is_served():
    async with ReplicaProcess.policy(action_horizon=8, action_dim=7, delay_ms=20) as server:
        assert server.url.startswith("ws://")
        metadata, answers = await asyncio.to_thread(talk, server.url)
        async with httpx.AsyncClient(base_url=server.url.replace("ws", "http", 1)) as client:
            health = await client.get("/healthz")
            (seen,) = (await client.get("/_sim/connections")).json()["recent"]
        assert server.stderr() == ""
    assert (metadata["action_horizon"], metadata["action_dim"]) == (8, 7)
    crc = zlib.crc32(msgpack_numpy.packb(observation()))
    for answer in answers:
        assert answer["actions"].shape == (8, 7) and answer["actions"][0][0] == crc
        assert answer["policy_timing"]["infer_ms"] >= 20
    assert (
        "prev_total_ms" not in answers[0]["server_timing"]
        and answers[1]["server_timing"]["prev_total_ms"] > 20
    )
    assert (health.status_code, health.text.strip()) == (200, "OK")
    assert seen["messages"] == 3 and seen["close_code"] == 1000


@stock_client
async def test_an_api_key_is_required_when_set():
    async with ReplicaProcess.policy(api_key="secret") as server:
        metadata, _ = await asyncio.to_thread(talk, server.url, api_key="secret")
        assert metadata["action_horizon"] == 50
        with pytest.raises(websockets.InvalidStatus) as refused:
            await asyncio.to_thread(talk, server.url, api_key="wrong")
        assert refused.value.response.status_code == 401


BAD = [
    ("text", "TypeError"),
    (b"\xc1", "ValueError"),
    (ndarray.encode([1]), "TypeError"),
    (ndarray.encode({"a": ndarray.array_map(b"123", "<f4", (1,))}), "ValueError"),
]


async def test_policy_protocol_and_echo():
    async with ReplicaProcess.policy() as server:
        for message, error in BAD:
            async with connect(server.url, compression=None) as socket:
                assert isinstance(await socket.recv(), bytes)
                await socket.send(message)
                text = await socket.recv()
                assert isinstance(text, str) and "Traceback" in text and error in text
                with pytest.raises(websockets.ConnectionClosedError):
                    await socket.recv()
                assert socket.close_code == 1011
        async with connect(server.url) as socket:
            assert socket.protocol.extensions == []  # compression was offered and refused
            await (await socket.ping())
        async with connect(f"{server.url}/echo?x=1", max_size=None, subprotocols=["a", "b"]) as socket:
            assert socket.subprotocol == "a"
            big = bytes(3_000_000)
            for message in ("text", b"binary", "", b"", big):
                await socket.send(message)
                assert await socket.recv() == message
            assert await server.stop() == 0
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1001
