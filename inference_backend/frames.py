"""The answers of SGLang's Python front end: SSE frames and whole bodies of its three dialects.

One frame per engine step; under speculation it carries the whole burst. A frame's fixed parts are made once
per request: a step costs one slice of text and one join. Generated text needs no JSON escape (see `text`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from inference_backend.text import generated_ids, generated_text

if TYPE_CHECKING:
    from inference_backend.scheduler import Request

DONE_FRAME = b"data: [DONE]\n\n"
WEIGHT_VERSION = "default"
_MATCHED_EOS = 151_645  # Qwen3's <|im_end|>
encode = msgspec.json.encode


class Options(msgspec.Struct, frozen=True):
    """What of the request decides the shape of its answer."""

    model: str
    created: int
    include_usage: bool = False
    continuous_usage: bool = False
    cache_report: bool = True


def usage_json(request: Request, options: Options) -> bytes:
    """Encode the `usage` object as it stands now."""
    details = b'{"cached_tokens":%d}' % request.cached_tokens if options.cache_report else b"null"
    return (
        b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%b,'
        b'"reasoning_tokens":0,"completion_tokens_details":null}'
    ) % (request.prompt_tokens, request.prompt_tokens + request.generated, request.generated, details)


class ChatAnswer:
    """`/v1/chat/completions`."""

    __slots__ = ("_head", "_options", "_prefix", "_request", "_sent", "_suffix")
    _OBJECT: ClassVar[bytes] = b"chat.completion.chunk"
    _BEFORE_TEXT: ClassVar[bytes] = b'"choices":[{"index":0,"delta":{"reasoning_content":null,"content":"'
    _AFTER_TEXT: ClassVar[bytes] = b'"},"logprobs":null,"finish_reason":null,"matched_stop":null}]'
    _ROLE: ClassVar[bytes] = (
        b'"choices":[{"index":0,"delta":{"reasoning_content":null,"role":"assistant","content":""},"logprobs":null,'
        b'"finish_reason":null,"matched_stop":null}]}\n\n'
    )
    _FINAL: ClassVar[bytes] = (
        b'"choices":[{"index":0,"delta":{"reasoning_content":null},"logprobs":null,"finish_reason":"%b",'
        b'"matched_stop":%b}]'
    )
    _WHOLE: ClassVar[bytes] = (
        b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b","reasoning_content":null},'
        b'"logprobs":null,"finish_reason":"%b","matched_stop":%b}]'
    )

    def __init__(self, request: Request, options: Options) -> None:
        self._request = request
        self._options = options
        self._sent = 0
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,' % (
            encode(request.rid),
            self._OBJECT,
            options.created,
            encode(options.model),
        )
        self._prefix = self._head + self._BEFORE_TEXT
        self._suffix = self._AFTER_TEXT + b"}\n\n"

    def step(self, frames: list[bytes]) -> None:
        """Append the frames that bring the client up to what is generated."""
        request = self._request
        sent = self._sent
        if not sent and self._ROLE:
            frames.append(self._head + self._ROLE)
        self._sent = request.generated
        if request.generated == sent:
            return
        text = generated_text(request.start, sent, request.generated - sent)
        if self._options.continuous_usage:
            usage = usage_json(request, self._options)
            frames.append(b'%b%b%b,"usage":%b}\n\n' % (self._prefix, text, self._AFTER_TEXT, usage))
        else:
            frames.append(self._prefix + text + self._suffix)

    def end(self, frames: list[bytes], finish: str) -> None:
        """Append what the last step brought and the frames after it."""
        self.step(frames)
        final = self._FINAL % (finish.encode(), _matched(finish))
        frames.append(b"%b%b}\n\n" % (self._head, final))
        self._close(frames, usage_json(self._request, self._options))

    def _close(self, frames: list[bytes], usage: bytes) -> None:
        if self._options.include_usage:
            frames.append(b'%b"choices":[],"usage":%b}\n\n' % (self._head, usage))
        frames.append(DONE_FRAME)

    def whole(self, finish: str) -> bytes:
        """Encode the body of an answer that is not streamed."""
        request = self._request
        options = self._options
        text = generated_text(request.start, 0, request.generated)
        return (
            b'{"id":%b,"object":"%b","created":%d,"model":%b,%b,"usage":%b,"metadata":{"weight_version":"%b",'
            b'"weight_versions":[{"version":"%b","start":0,"end":%d}]}}'
            % (
                encode(request.rid),
                self._OBJECT.removesuffix(b".chunk"),
                options.created,
                encode(options.model),
                self._WHOLE % (text, finish.encode(), _matched(finish)),
                usage_json(request, options),
                WEIGHT_VERSION.encode(),
                WEIGHT_VERSION.encode(),
                request.generated,
            )
        )


class CompletionAnswer(ChatAnswer):
    """`/v1/completions`: the text beside the index, a usage of null in each frame, the end in the last of them."""

    __slots__ = ()
    _OBJECT = b"text_completion"
    _BEFORE_TEXT = b'"choices":[{"index":0,"text":"'
    _AFTER_TEXT = b'","logprobs":null,"finish_reason":null,"matched_stop":null}]'
    _ROLE = b""
    _FINAL = b'"choices":[{"index":0,"text":"%b","logprobs":null,"finish_reason":"%b","matched_stop":%b}]'
    _WHOLE = b'"choices":[{"index":0,"text":"%b","logprobs":null,"finish_reason":"%b","matched_stop":%b}]'

    def __init__(self, request: Request, options: Options) -> None:
        super().__init__(request, options)
        self._suffix = self._AFTER_TEXT + b',"usage":null}\n\n'

    def end(self, frames: list[bytes], finish: str) -> None:
        """Append the text of the last step with the reason, and the frames after it."""
        request = self._request
        usage = usage_json(request, self._options)
        text = generated_text(request.start, self._sent, request.generated - self._sent)
        self._sent = request.generated
        final = self._FINAL % (text, finish.encode(), _matched(finish))
        shown = usage if self._options.continuous_usage else b"null"
        frames.append(b'%b%b,"usage":%b}\n\n' % (self._head, final, shown))
        self._close(frames, usage.replace(b',"completion_tokens_details":null', b""))


class GenerateAnswer:
    """`/generate`: each frame repeats everything so far."""

    __slots__ = ("_request",)

    def __init__(self, request: Request, options: Options) -> None:
        self._request = request

    def step(self, frames: list[bytes]) -> None:
        """Append a cumulative frame."""
        frames.append(b"data: %b\n\n" % self._body(None))

    def end(self, frames: list[bytes], finish: str) -> None:
        """Append the frame of the last step, which has the finish reason."""
        frames.append(b"data: %b\n\n" % self._body(finish))
        frames.append(DONE_FRAME)

    def whole(self, finish: str) -> bytes:
        """Encode the body of an answer that is not streamed."""
        return self._body(finish)

    def _body(self, finish: str | None) -> bytes:
        request = self._request
        meta: dict[str, Any] = {
            "id": request.rid,
            "finish_reason": _finish_object(finish, request.generated),
            "prompt_tokens": request.prompt_tokens,
            "weight_version": WEIGHT_VERSION,
            "num_retractions": request.retracted,
            "reasoning_tokens": 0,
            "completion_tokens": request.generated,
            "cached_tokens": request.cached_tokens,
            "cached_tokens_details": {"device": request.cached_tokens, "host": 0},
            "dp_rank": None,
            "queue_time": max(request.admitted_at - request.arrived_at, 0.0),
        }
        if finish is not None:
            meta["first_token_latency"] = max(request.first_token_at - request.arrived_at, 0.0)
        return encode(
            {
                "text": generated_text(request.start, 0, request.generated).decode(),
                "output_ids": generated_ids(request.start, 0, request.generated),
                "meta_info": meta,
            }
        )


Answer = ChatAnswer | GenerateAnswer


def error_body(status: int, message: str, kind: str = "BadRequestError") -> bytes:
    """Encode the error object of the OpenAI endpoints."""
    return encode({"object": "error", "message": message, "type": kind, "param": None, "code": status})


def openai_full_frame(_rid: str, message: str) -> bytes:
    """Encode the only frame of a stream that found the queue full, spaced as Python's json does."""
    error = {"object": "error", "message": message, "type": "SERVICE_UNAVAILABLE", "param": None, "code": 503}
    return f"data: {json.dumps({'error': error})}\n\n".encode()


def generate_full_frame(rid: str, message: str) -> bytes:
    """Encode the same for `/generate`: an answer that was aborted before its first token."""
    meta = {
        "id": rid,
        "finish_reason": {"type": "abort", "status_code": 503, "message": message},
        "weight_version": WEIGHT_VERSION,
        "weight_versions": [{"version": WEIGHT_VERSION, "start": 0, "end": 0}],
        "completion_tokens": 0,
    }
    return b"data: %b\n\n" % encode({"text": "", "output_ids": [], "meta_info": meta})


def generate_error_frame(status: int, message: str, kind: str) -> bytes:
    """Encode the first frame of a refused `/generate` stream."""
    error = {"message": message, "type": kind, "code": status, "retryable": status == 503}
    return b"data: %b\n\n" % encode({"error": error})


def _matched(finish: str) -> bytes:
    return b"%d" % _MATCHED_EOS if finish == "stop" else b"null"


def _finish_object(finish: str | None, length: int) -> dict[str, Any] | None:
    if finish is None:
        return None
    if finish == "stop":
        return {"type": "stop", "matched": _MATCHED_EOS}
    if finish == "length":
        return {"type": "length", "length": length}
    return {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
