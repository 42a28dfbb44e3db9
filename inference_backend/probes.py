"""Routes that no engine has, under /_sim: what a test of a proxy wants to know or to provoke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import TYPE_CHECKING

from aiohttp import web

from inference_backend import faults
from inference_backend.frames import encode, error_body
from inference_backend.replies import before_head, cut_body, json_bytes, json_reply
from inference_backend.scheduler import WAITING

if TYPE_CHECKING:
    from inference_backend.journal import Journal

_BLOCK = 64 * 1024
_PATTERN = bytes(range(256)) * (2 * _BLOCK // 256)  # byte i of a body is i & 255
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Probes:
    """Handlers of /_sim."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def routes(self) -> list[web.RouteDef]:
        """Every route of this module."""
        return [
            web.get("/_sim/requests", self.requests),
            web.route("*", "/_sim/echo", self._counted(self.echo)),
            web.route("*", "/_sim/echo/{tail:.*}", self._counted(self.echo)),
            web.get("/_sim/bytes", self._counted(self.send_bytes)),
            web.route("*", "/_sim/sink", self._counted(self.sink)),
        ]

    def _counted(self, handler: _Handler) -> _Handler:
        """Make a drain wait for the handler's answer."""

        async def counted(http: web.Request) -> web.StreamResponse:
            self._journal.in_flight += 1
            try:
                return await handler(http)
            finally:
                self._journal.in_flight -= 1

        return counted

    async def requests(self, http: web.Request) -> web.Response:
        """Open and recent requests; ?limit= bounds the recent ones."""
        journal = self._journal
        limit = int(http.query.get("limit", "1000"))
        waiting = [r for r in journal.open if r.request is None or r.request.phase == WAITING]
        return json_reply(
            {
                "now": time.monotonic(),
                "now_epoch": time.time(),
                "running": len(journal.open) - len(waiting),
                "queued": len(waiting),
                "open": [record.as_json() for record in journal.open],
                "recent": [record.as_json() for record in list(journal.recent)[-limit:]] if limit else [],
                "counters": {
                    "finished": journal.finished,
                    "aborted": journal.aborted,
                    "failed": journal.failed,
                },
            }
        )

    async def echo(self, http: web.Request) -> web.StreamResponse:
        """Describe what arrived, as JSON; obeys x-sim-fault."""
        plan: faults.Plan | None = None
        header = http.headers.get(faults.HEADER)
        if header is not None:
            parsed = faults.parse(header)
            if isinstance(parsed, str):
                return json_bytes(400, error_body(400, parsed))
            plan = parsed
            reply = await before_head(http, plan)
            if reply is not None:
                return reply
        body = await http.read()
        answer = encode(
            {
                "method": http.method,
                "path": http.raw_path,
                "version": f"{http.version.major}.{http.version.minor}",
                "headers": [
                    [name.decode("latin-1"), value.decode("latin-1")] for name, value in http.raw_headers
                ],
                "length": len(body),
                "sha256": sha256(body).hexdigest(),
                "trailers": None,  # aiohttp's parser drops them
            }
        )
        if plan is not None and plan.in_body:
            return await cut_body(http, answer, plan)
        return json_bytes(200, answer)

    async def send_bytes(self, http: web.Request) -> web.StreamResponse:
        """?n= bytes in ?chunk= pieces, ?length=1 for a content-length, ?delay_ms= between pieces."""
        size = int(http.query.get("n", "0"))
        chunk = min(max(int(http.query.get("chunk", str(_BLOCK))), 1), _BLOCK)
        delay_s = float(http.query.get("delay_ms", "0")) / 1e3
        response = web.StreamResponse(
            headers={"content-type": "application/octet-stream", "server": "uvicorn"}
        )
        if http.query.get("length") == "1":
            response.content_length = size
        await response.prepare(http)
        pattern = memoryview(_PATTERN)
        shown = 0 if http.method == "HEAD" else size  # aiohttp writes what it is given
        for at in range(0, shown, chunk):
            begin = at % 256
            await response.write(pattern[begin : begin + min(chunk, size - at)])
            if delay_s:
                await asyncio.sleep(delay_s)
        await response.write_eof()
        return response

    async def sink(self, http: web.Request) -> web.StreamResponse:
        """Read the body, ?delay_ms= after each 64 KiB, and answer its length and digest."""
        delay_s = float(http.query.get("delay_ms", "0")) / 1e3
        digest = sha256()
        length = 0
        owed = 0
        while piece := await http.content.read(_BLOCK):
            digest.update(piece)
            length += len(piece)
            owed += len(piece)
            if delay_s and owed >= _BLOCK:
                await asyncio.sleep(delay_s * (owed // _BLOCK))
                owed %= _BLOCK
        return json_reply({"length": length, "sha256": digest.hexdigest()})
