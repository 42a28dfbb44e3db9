"""The three endpoints that generate: from a request's head to the end of its answer.

Order: record, fault before the head, body, admission, then the stream or the whole answer. aiohttp cancels
the handler when the connection is lost; that is how a client that goes away is noticed, and all that follows
is `driver.abort`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import HttpVersion11, web

from inference_backend import bodies, faults, frames
from inference_backend.bodies import Call, Refusal
from inference_backend.intake import QUEUE_FULL, make_request, too_long
from inference_backend.owners import Streaming, Waiting
from inference_backend.replies import JSON_HEADERS, before_head, crashed, cut_body, json_bytes
from inference_backend.scheduler import DONE, Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inference_backend.driver import Driver
    from inference_backend.journal import Journal, Record
    from inference_backend.settings import Settings

_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "vary": "Origin", "server": "uvicorn"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one endpoint reads, answers and refuses."""

    decode: Callable[[bytes], Call | Refusal]
    answer: type[frames.ChatAnswer | frames.GenerateAnswer]
    error: Callable[[Refusal], bytes]
    full_frame: Callable[[str, str], bytes]  # by request id and message: the queue is full
    refuses_in_stream: bool  # a prompt that is too long is answered with 200 and an error frame


def _generate_error(refusal: Refusal) -> bytes:
    if refusal.kind == bodies.BAD_SHAPE:
        return _openai_error(refusal)
    return frames.encode({"error": {"message": refusal.message}})


def _openai_error(refusal: Refusal) -> bytes:
    return frames.error_body(refusal.status, refusal.message, refusal.kind)


CHAT = Dialect(
    bodies.chat, frames.ChatAnswer, _openai_error, frames.openai_full_frame, refuses_in_stream=False
)
COMPLETION = Dialect(
    bodies.completion,
    frames.CompletionAnswer,
    _openai_error,
    frames.openai_full_frame,
    refuses_in_stream=False,
)
GENERATE = Dialect(
    bodies.generate,
    frames.GenerateAnswer,
    _generate_error,
    frames.generate_full_frame,
    refuses_in_stream=True,
)


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed every check, on its way to the scheduler."""

    http: web.Request
    record: Record
    dialect: Dialect
    plan: faults.Plan | None
    request: Request
    answer: frames.Answer


class Completions:
    """Handlers of the generating endpoints."""

    __slots__ = ("_driver", "_journal", "_loop", "_settings")

    def __init__(
        self, settings: Settings, driver: Driver, journal: Journal, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._journal = journal
        self._loop = loop

    def handler(self, dialect: Dialect) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Make the aiohttp handler of one endpoint."""

        async def handle(http: web.Request) -> web.StreamResponse:
            record = self._journal.begin(http)
            self._journal.in_flight += 1
            try:
                return await self._serve(http, record, dialect)
            finally:  # a request that runs on is closed by its owner, at the step that frees its slot
                self._journal.in_flight -= 1
                if record.request is None or record.request.phase == DONE:
                    self._journal.end(record, "failed" if record.request is None else "aborted")

        return handle

    async def _serve(self, http: web.Request, record: Record, dialect: Dialect) -> web.StreamResponse:
        plan: faults.Plan | None = None
        header = http.headers.get(faults.HEADER)
        if header is not None:
            parsed = faults.parse(header)
            if isinstance(parsed, str):
                return json_bytes(400, frames.error_body(400, parsed))
            plan = parsed
            reply = await before_head(http, plan)
            if reply is not None:
                return reply
        body = await http.read()
        if not http.content_type.endswith("json"):
            unsupported = "Unsupported Media Type: Only 'application/json' is allowed"
            return json_bytes(400, dialect.error(Refusal(400, unsupported, bodies.BAD_SHAPE)))
        call = dialect.decode(body)
        if call is bodies.CRASH:
            return await crashed(http)
        if isinstance(call, Refusal):
            return json_bytes(call.status, dialect.error(call))
        if self._settings.header_overrides:
            call.rid = http.headers.get("x-override-rid", call.rid)
        record.rid = call.rid or uuid4().hex
        request = make_request(self._settings, record.rid, call.prompt, call.max_tokens, call.salt)
        message = too_long(self._settings, self._driver.scheduler, request)
        if message:
            if call.stream and dialect.refuses_in_stream:
                frame = frames.generate_error_frame(400, message, "invalid_request_error")
                return await _refused_stream(http, frame)
            return json_bytes(400, dialect.error(Refusal(400, message)))
        options = frames.Options(
            call.model,
            int(time.time()),
            call.include_usage,
            call.continuous_usage,
            self._settings.cache_report,
        )
        job = _Job(http, record, dialect, plan, request, dialect.answer(request, options))
        return await (self._stream(job) if call.stream else self._whole(job))

    async def _stream(self, job: _Job) -> web.StreamResponse:
        http, record, request, plan = job.http, job.record, job.request, job.plan
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(http)  # the head leaves at once, long before the first token
        transport = http.transport
        if transport is None:
            raise asyncio.CancelledError
        owner = Streaming(self._journal, record, job.answer, transport, plan)
        owner.chunked = http.version >= HttpVersion11
        if plan is not None and plan.in_body and plan.after == 0:
            owner.misbehave([])
        if not self._driver.submit(request, owner):
            await response.write_eof(job.dialect.full_frame(record.rid, QUEUE_FULL) + frames.DONE_FRAME)
            return response
        record.request = request
        record.state = "running"
        try:
            await owner.done
        except asyncio.CancelledError:
            self._driver.abort(request)
            raise
        await response.write_eof()
        return response

    async def _whole(self, job: _Job) -> web.StreamResponse:
        record, request, plan = job.record, job.request, job.plan
        owner = Waiting(self._journal, record)
        if not self._driver.submit(request, owner):
            return json_bytes(503, _openai_error(Refusal(503, QUEUE_FULL, "503")))
        record.request = request
        record.state = "running"
        try:
            finish = await owner.done
        except asyncio.CancelledError:
            if self._settings.unary_abort_s:
                self._loop.call_later(self._settings.unary_abort_s, self._driver.abort, request)
            else:
                self._driver.abort(request)
            raise
        body = job.answer.whole(finish)
        if plan is not None and plan.in_body:
            if plan.in_body == "die":
                self._journal.end(record, "failed")
            return await cut_body(job.http, body, plan)
        self._journal.end(record, "aborted" if finish == "abort" else "finished")
        return web.Response(body=body, headers=JSON_HEADERS)


async def _refused_stream(http: web.Request, frame: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    await response.prepare(http)
    await response.write_eof(frame + frames.DONE_FRAME)
    return response
