"""Asking engines for their load: what an answer counts, and what is no answer."""

import asyncio
import json

import pytest

from router.routing.image import TableImage
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, TablePatch
from router.transport.upstream import engine_loads as module
from router.transport.upstream.engine_loads import TOKENS_A_REQUEST, EngineLoadPoller, score

pytestmark = pytest.mark.asyncio


def said(*ranks):
    return json.dumps({"timestamp": "x", "loads": [{"dp_rank": i, **rank} for i, rank in enumerate(ranks)]}).encode()


@pytest.mark.parametrize(("body", "load"), [
    (said({}), 0.0),
    (said({"num_running_reqs": 3, "num_waiting_reqs": 2}), 5.0),
    (said({"num_running_reqs": 1}, {"num_running_reqs": 2, "num_waiting_uncached_tokens": 3 * TOKENS_A_REQUEST}), 6.0),
    (said({"num_running_reqs": 10, "token_usage": 0.9}), 10.0),
    (said({"num_running_reqs": 10, "token_usage": 1.0}), 20.0),
    (said({"num_running_reqs": -5}), 0.0),
])  # fmt: skip
async def test_score(body, load):
    assert score(body) == pytest.approx(load)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"loads":[]}', b'{"loads":[{"num_running_reqs":"x"}]}', b"[1]", b"\xff", b'{"loads":' + b"[" * 10_000, said({"num_running_reqs": 10**400}), said({"num_waiting_reqs": 2**60})])
async def test_no_answer(body):
    with pytest.raises((ValueError, RecursionError)):
        score(body)


class Engine:
    """Answers /v1/loads as it is told."""

    def __init__(self):
        self.body = said({"num_running_reqs": 4})
        self.status = "200 OK"
        self.asked = []
        self.hang = False
        self.open = 0

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader, writer):
        self.open += 1
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b" ")[1].decode())
        if not self.hang:
            writer.write(f"HTTP/1.1 {self.status}\r\nconnection: close\r\n\r\n".encode() + self.body)
        else:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        self.open -= 1


async def test_every_engine_of_such_an_endpoint_is_asked_and_nobody_else(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    monkeypatch.setattr(module, "LIMIT_S", 0.3)
    engines = [await Engine().start() for _ in range(4)]
    engines[1].body = b"no json"
    engines[2].hang = True
    image, told = TableImage(), []
    poller = EngineLoadPoller(image, lambda endpoint, loads: told.append((endpoint, loads)))
    poller.follow()
    replicas = tuple(ReplicaSpec(f"r{i}", engine.url) for i, engine in enumerate(engines[:3]))
    other = (ReplicaSpec("other", engines[3].url),)
    image.apply(TablePatch(0, (EndpointPatch("e", EndpointSpec("e", policy="engine_load"), replicas), EndpointPatch("f", EndpointSpec("f"), other))))
    poller.follow()
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
        assert told[0] == ("e", {"r0": 4.0})
        engines[0].body = said({"num_waiting_reqs": 1})
        while told[-1] != ("e", {"r0": 1.0}):
            await asyncio.sleep(0.01)
        engines[0].status = "503 Service Unavailable"
        while len(engines[0].asked) < 5:
            await asyncio.sleep(0.01)
    poller.close()
    async with asyncio.timeout(10):
        while any(engine.open for engine in engines):
            await asyncio.sleep(0.01)
    assert set(engines[0].asked) == {"/v1/loads?include=core"}
    assert engines[3].asked == []
    for engine in engines:
        engine.server.close()
