"""One call through a router in each protocol, and what came of it in the same words for all of them."""

from __future__ import annotations

from typing import NamedTuple

import grpc
import grpc.aio
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

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
