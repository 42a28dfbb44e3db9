"""Replies every group of routes needs: JSON, and the faults that act on any answer."""

from __future__ import annotations

import asyncio
from typing import Any, Never

from aiohttp import web

from inference_backend import faults
from inference_backend.frames import encode, error_body

PLAIN_HEADERS = {"server": "uvicorn", "vary": "Origin"}  # SGLang answers cross-origin requests, on every path
JSON_HEADERS = {"content-type": "application/json", **PLAIN_HEADERS}


def json_bytes(status: int, body: bytes) -> web.Response:
    """Reply with a JSON body that is encoded already."""
    return web.Response(status=status, body=body, headers=JSON_HEADERS)


def json_reply(value: Any, status: int = 200) -> web.Response:
    """Reply with any value msgspec can encode."""
    return json_bytes(status, encode(value))


class _Untyped(web.Response):
    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self._headers.popall("content-type", None)  # aiohttp puts octet-stream where there is none


def bare(status: int = 200, text: str = "") -> web.Response:
    """Reply without a content type, as SGLang's own `Response(status_code=…)` does."""
    return _Untyped(status=status, body=text.encode(), headers=PLAIN_HEADERS)


async def crashed(http: web.Request) -> web.StreamResponse:
    """Reply as uvicorn does when the application raised: 500, and the connection is cut without announcement."""
    body = b"Internal Server Error"
    reply = web.StreamResponse(
        status=500, headers={"content-type": "text/plain; charset=utf-8", "server": "uvicorn"}
    )
    reply.content_length = len(body)
    await reply.prepare(http)
    await reply.write_eof(body)
    if http.transport is not None:
        http.transport.close()
    return reply


async def before_head(http: web.Request, plan: faults.Plan) -> web.Response | None:
    """Let the plan act before a head is sent: a reply, None to go on, or the end of the connection."""
    if plan.delay_s:
        await asyncio.sleep(plan.delay_s)
    match plan.before_head:
        case None:
            return None
        case "status":
            message = f"status {plan.status} by {faults.HEADER}"
            reply = json_bytes(plan.status, error_body(plan.status, message, "SimulatedFault"))
            if plan.retry_after is not None:
                reply.headers["retry-after"] = str(plan.retry_after)
            return reply
        case "kill":
            faults.kill()
        case "reset-before-head" | "close-before-head":
            await http.read()  # the kernel answers unread bytes with RST, whatever was meant
            if http.transport is not None:
                faults.cut(http.transport, with_reset=plan.before_head == "reset-before-head")
    return await until_gone()


async def cut_body(http: web.Request, body: bytes, plan: faults.Plan) -> web.StreamResponse:
    """Send the head of a whole answer and half of its body (or none), then do what the plan says."""
    response = web.StreamResponse(headers=JSON_HEADERS)
    response.content_length = len(body)
    await response.prepare(http)
    if plan.after:
        await response.write(body[: len(body) // 2])
    if plan.in_body == "kill":
        await asyncio.sleep(0.005)  # lets the half reach the socket
        faults.kill()
    if plan.in_body == "die" and http.transport is not None:
        faults.cut(http.transport, with_reset=plan.with_reset)
    return await until_gone()


async def until_gone() -> Never:
    """Wait for aiohttp to cancel the handler, as it does when the connection is lost."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError
