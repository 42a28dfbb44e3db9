"""SGLang's scheduler service over the simulated engine, beside its HTTP front end and with the same queue.

Shapes and manners are those of SGLang's gRPC mode: tokens in and out, a chunk per engine step, a last message
with the whole answer; refusals are statuses. The journal records a call like an HTTP request, so /_sim/requests
shows it. A call that is cancelled, by its client or a deadline, aborts its request at the next step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import grpc

from inference_backend.frames import WEIGHT_VERSION
from inference_backend.intake import QUEUE_FULL, make_request, too_long
from inference_backend.introspection import VERSION
from inference_backend.rpc import proto, server
from inference_backend.text import generated_ids, pack_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inference_backend.driver import Driver
    from inference_backend.journal import Journal, Record
    from inference_backend.lifecycle import Lifecycle
    from inference_backend.scheduler import Request
    from inference_backend.settings import Settings

SERVICE = "sglang.grpc.scheduler.SglangScheduler"
pb = proto.load("sglang_scheduler.proto")
_VOCABULARY = 151_936  # Qwen3's


class _Head(NamedTuple):
    """A call, as the journal wants it."""

    method: str
    raw_path: str
    headers: dict[str, str]


class _Tokens:
    """`driver.Owner` of one call: wakes it when there are more tokens or the answer is over."""

    __slots__ = ("_journal", "_record", "_wake", "finish", "is_stream", "steps")

    def __init__(self, journal: Journal, record: Record, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.finish: str | None = None
        self.steps: deque[int] = deque()  # tokens of each step that was not yet sent
        self._journal = journal
        self._record = record
        self._wake = asyncio.Event()

    def generated(self, tokens: int, finish: str | None) -> None:
        """See driver.Owner."""
        self.finish = finish
        if tokens and self.is_stream:
            self.steps.append(tokens)
        if finish is not None:
            self._journal.end(self._record, "aborted" if finish == "abort" else "finished")
        self._wake.set()

    async def more(self) -> None:
        """Wait for the next step."""
        await self._wake.wait()
        self._wake.clear()


class Scheduler:
    """The methods; messages are those of `pb`."""

    def __init__(self, settings: Settings, driver: Driver, journal: Journal, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._driver = driver
        self._journal = journal
        self._lifecycle = lifecycle
        self._started = time.monotonic()

    async def Generate(self, call: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: N802
        """Answer a prompt of token ids: a chunk per step if `stream`, then the whole answer."""
        record = self._journal.begin(_head("Generate", context))
        record.rid = call.request_id or uuid4().hex
        self._journal.in_flight += 1
        try:
            request = await self._admit(call, record, context)
            owner = _Tokens(self._journal, record, is_stream=call.stream)
            if not self._driver.submit(request, owner):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, QUEUE_FULL)
            record.request = request
            record.state = "running"
            # Not by CancelledError: a call that ends in the middle of a write gets none. Nothing if it is done.
            context.add_done_callback(lambda _: self._driver.abort(request))  # type: ignore[arg-type]
            async for message in _answer(request, owner):
                yield message
        finally:  # a request that runs on is closed by its owner, at the step that frees its slot
            self._journal.in_flight -= 1
            if record.request is None:
                self._journal.end(record, "failed")

    async def _admit(self, call: Any, record: Record, context: grpc.aio.ServicerContext[Any, Any]) -> Request:
        prompt = pack_ids(call.tokenized.input_ids) or call.tokenized.original_text.encode()
        sampling = call.sampling_params
        max_tokens = sampling.max_new_tokens if sampling.HasField("max_new_tokens") else None
        message = "" if prompt else "Tokenized input must be provided"
        if max_tokens == 0 or sampling.n > 1:
            message = "max_new_tokens of 0 and n above 1 are not simulated"
        request = make_request(self._settings, record.rid, prompt, max_tokens)
        message = message or too_long(self._settings, self._driver.scheduler, request)
        if message:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        return request

    async def HealthCheck(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Whether the engine is ready."""
        ready = self._lifecycle.is_ready
        return pb.HealthCheckResponse(healthy=ready, message="" if ready else "Server is not ready")

    async def Abort(self, call: Any, context: Any) -> Any:  # noqa: N802
        """End a request by its id."""
        found = [record for record in self._journal.open if record.rid == call.request_id]
        for record in found:
            if record.request is not None:
                self._driver.abort(record.request)
        message = f"Request {call.request_id} {'aborted' if found else 'not found'}"
        return pb.AbortResponse(success=bool(found), message=message)

    async def GetModelInfo(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Say what the model is."""
        name = self._settings.model_name
        return pb.GetModelInfoResponse(
            model_path=name,
            tokenizer_path=name,
            is_generation=True,
            weight_version=WEIGHT_VERSION,
            served_model_name=name,
            max_context_length=self._settings.profile.context_tokens,
            vocab_size=_VOCABULARY,
        )

    async def GetServerInfo(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Say what the server is."""
        return pb.GetServerInfoResponse(
            active_requests=len(self._journal.open),
            uptime_seconds=time.monotonic() - self._started,
            sglang_version=VERSION,
            server_type="grpc",
            max_total_num_tokens=self._driver.scheduler.kv.capacity,
        )

    async def GetLoads(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Show the load, as /v1/loads does."""
        loads = self._driver.scheduler.loads()
        shared = {field.name for field in pb.SchedulerLoad.DESCRIPTOR.fields} & loads.keys()
        total = loads["num_running_reqs"] + loads["num_waiting_reqs"]
        load = pb.SchedulerLoad(num_total_reqs=total, **{name: loads[name] for name in shared})
        now = datetime.now(UTC).isoformat()
        return pb.GetLoadsResponse(timestamp=now, version=VERSION, dp_rank_count=1, loads=[load])


async def _answer(request: Request, owner: _Tokens) -> AsyncIterator[Any]:
    sent = 0
    while owner.finish is None or owner.steps:
        if not owner.steps:
            await owner.more()
        while owner.steps:
            tokens = owner.steps.popleft()
            chunk = pb.GenerateStreamChunk(
                token_ids=generated_ids(request.start, sent, tokens),
                prompt_tokens=request.prompt_tokens,
                completion_tokens=sent + tokens,
                cached_tokens=request.cached_tokens,
            )
            sent += tokens
            yield pb.GenerateResponse(request_id=request.rid, chunk=chunk)
    complete = pb.GenerateComplete(
        output_ids=generated_ids(request.start, 0, request.generated),
        finish_reason=owner.finish,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.generated,
        cached_tokens=request.cached_tokens,
    )
    yield pb.GenerateResponse(request_id=request.rid, complete=complete)


def _head(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> _Head:
    metadata = context.invocation_metadata() or ()
    shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in metadata}
    return _Head("POST", f"/{SERVICE}/{method}", shown)


async def serve_scheduler(
    settings: Settings, driver: Driver, journal: Journal, lifecycle: Lifecycle
) -> server.Services:
    """Listen on `settings.grpc_port`; serving as soon as the engine is ready."""
    services = {SERVICE: Scheduler(settings, driver, journal, lifecycle)}
    assert settings.grpc_port is not None
    found = await server.start(services, settings.host, settings.grpc_port, serving=lifecycle.is_ready)
    if not lifecycle.is_ready:
        loop = asyncio.get_running_loop()
        starting: set[asyncio.Task[None]] = set()

        def became_ready() -> None:
            if lifecycle.is_ready:  # not if it drains by now
                task = loop.create_task(found.set_serving(serving=True))
                starting.add(task)
                task.add_done_callback(starting.discard)

        loop.call_later(settings.startup_s + 0.001, became_ready)
    return found
