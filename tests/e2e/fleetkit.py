"""Two regions, a router in each, one store; one call in each protocol, and what came of it in the same words for all."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc
import grpc.aio
import httpx
from storekit import StoreProcess
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from inference_backend.launch import ReplicaProcess
from router.config.token_admin import create_token

PROTOCOLS = ("http1", "http2", "grpc", "websocket")
STATUS = {
    "unauthenticated": (401, grpc.StatusCode.UNAUTHENTICATED),
    "forbidden": (403, grpc.StatusCode.PERMISSION_DENIED),
    "rate_limited": (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "no_replica": (503, grpc.StatusCode.UNAVAILABLE),
    "at_capacity": (503, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "no_route": (404, grpc.StatusCode.UNIMPLEMENTED),
    "head_too_large": (431, grpc.StatusCode.RESOURCE_EXHAUSTED),
}
_names = itertools.count()


class Answer(NamedTuple):
    """`error` is the x-router-error, empty where the replica answered well; `fields` are all of the answer's."""

    error: str
    replica: str
    fields: dict[str, str]


async def call(protocol, router, host, headers=None):
    """Make one call to `host`; what a protocol says of an error must be what semantics say."""
    headers = dict(headers or {})
    if protocol == "grpc":
        return await _grpc(router, host, headers)
    if protocol == "websocket":
        return await _websocket(router, host, headers)
    async with httpx.AsyncClient(
        http1=protocol == "http1", http2=protocol == "http2", trust_env=False, timeout=20
    ) as client:
        answer = await client.post(f"{router.url}/_sim/echo", content=b"x", headers={**headers, "host": host})
        return _judged(answer.status_code, 0, dict(answer.headers))


async def _websocket(router, host, headers):
    try:
        async with connect(
            f"ws://{host}/echo", host="127.0.0.1", port=router.port, additional_headers=headers, proxy=None,
            close_timeout=5,
        ) as socket:  # fmt: skip
            await socket.send("hello")
            assert await socket.recv() == "hello"
            return Answer("", socket.response.headers["x-router-replica"], dict(socket.response.headers))
    except InvalidStatus as refused:
        return _judged(refused.response.status_code, 0, dict(refused.response.headers.raw_items()))


async def _grpc(router, host, headers):
    options = (("grpc.default_authority", host), ("grpc.enable_retries", 0))
    metadata = tuple((name.lower(), value) for name, value in headers.items())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router.port}", options=options) as channel:
        made = channel.unary_unary("/kit.Kit/Unary")(b"x", metadata=metadata, timeout=20)
        try:
            await made
        except grpc.aio.AioRpcError as refused:
            fields = dict(refused.trailing_metadata() or ()) | dict(refused.initial_metadata() or ())
            return _judged(200, 1, fields, refused.code())
        return Answer("", dict(await made.initial_metadata())["x-router-replica"], {})


def _judged(status, column, fields, code=None):
    fields = {name.lower(): value for name, value in fields.items()}
    error = fields.get("x-router-error", "")
    if error:
        assert STATUS[error][column] == (code if column else status), (error, status, code)
        assert fields["x-router-upstream-reached"] == "no"
        if status in (429, 503):
            assert int(fields["retry-after"]) >= 1
        return Answer(error, "", fields)
    assert (status, column) in ((200, 0), (101, 0)), (status, fields, code)
    return Answer("", fields["x-router-replica"], fields)


class Fleet:
    """The store, a router in `eu` and one in `us`, and for each protocol a server that any replica may be."""

    def __init__(self, store, eu, us, servers):
        self.store = store
        self.eu, self.us = eu, us
        self.routers = (eu, us)
        self._servers = servers

    def server(self, protocol):
        """Address, port and scheme of the server that speaks it."""
        url = urlsplit(self._servers[protocol])
        return {"address": url.hostname, "port": url.port}, "h2c" if protocol == "grpc" else "http"

    async def endpoint(self, protocol, regions=("",), policy=None, environment="main", unauthenticated=False):
        """Make an endpoint of a name of its own with a replica in each of `regions`; return the name."""
        name = f"e{next(_names)}"
        host = f"{name}.example"
        place, scheme = self.server(protocol)
        async with self.store.writer() as writer:
            await writer.put_endpoint(
                name, create=True, hosts=(host,), environment=environment, unauthenticated=unauthenticated,
                policy=json.dumps(policy or {}), health='{"kind": "none"}',
            )  # fmt: skip
            for i, region in enumerate(regions):
                await writer.put_replica(
                    name, f"{name}-{region or 'r'}{i}", create=True, region=region,
                    capabilities=json.dumps({"scheme": scheme}), **place,
                )  # fmt: skip
        for router in self.routers:
            await self.has(router, name, len(regions))
        return name

    async def has(self, router, name, replicas):
        deadline = monotonic() + 10
        while True:
            found = (await router.ask(f"/debug/route?host={name}.example&path=/")).json()
            if found.get("route") and len(found["candidates"]) == replicas:
                return
            assert monotonic() < deadline, found
            await asyncio.sleep(0.01)

    async def token(self, environment="main", scopes=(), rate=None, not_after=None):
        """Make a token; return the headers that show it."""
        async with self.store.writer() as writer:
            made = await create_token(writer, "test", environment, scopes, not_after, rate)
        credential = {"modal-key": made["key"], "modal-secret": made["secret"]}
        return made, credential

    async def until(self, protocol, router, name, headers, error):
        """Call until the answer is `error`: tables arrive some milliseconds after their commit."""
        deadline = monotonic() + 10
        while True:
            answer = await call(protocol, router, f"{name}.example", headers)
            if answer.error == error:
                return answer
            assert monotonic() < deadline, answer
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet_of(start_router):
    """A `Fleet`; `start_router` is the fixture that ends what it starts."""
    from grpckit import GrpcProcess

    grpc_server = GrpcProcess("aio")
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        store = StoreProcess(folder)
        try:
            await store.start()
            await asyncio.to_thread(grpc_server.start)
            async with ReplicaProcess.simulate(time_scale=0) as engine, ReplicaProcess.policy() as policy:
                flags = ("--store", store.setting, "--drain-settle-s", 0)
                eu = await start_router(*flags, "--state-dir", Path(folder) / "eu", "--region", "eu", workers=2)
                us = await start_router(*flags, "--state-dir", Path(folder) / "us", "--region", "us")
                servers = {
                    "http1": engine.url, "http2": engine.url, "grpc": grpc_server.url,
                    "websocket": policy.url.replace("ws://", "http://"),
                }  # fmt: skip
                yield Fleet(store, eu, us, servers)
        finally:
            await asyncio.to_thread(grpc_server.stop)
            await asyncio.to_thread(store.end)
