"""Request bodies of the three dialects, decoded and judged as SGLang's Python front end does.

Each decoder takes a body and returns a Call, or a Refusal whose status and message go to the client. Fields
that would change nothing here (temperature, tools, stop, …) are accepted and ignored; an unknown model name
is echoed.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from inference_backend.text import pack_ids

_IMAGE_TOKENS = 256  # what one image costs, whatever its size
_GENERATE_DEFAULT = 128
_COMPLETION_DEFAULT = 16


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered with an error."""

    status: int
    message: str
    kind: str = "BadRequestError"


BAD_SHAPE = "Bad Request"  # SGLang's words for what its validation refuses, before the endpoint sees it
CRASH = Refusal(500, "Internal Server Error")  # what raises inside SGLang instead of being refused


def _bad_shape(error: Exception) -> Refusal:
    return Refusal(400, f"1 validation error: {error}", BAD_SHAPE)


@dataclass(slots=True)
class Call:
    """A request that can be run."""

    prompt: bytes
    max_tokens: int | None  # None: until the model would stop by itself
    stream: bool
    rid: str | None = None
    model: str = "default"
    salt: str = ""
    include_usage: bool = False
    continuous_usage: bool = False


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _OpenAi(msgspec.Struct, kw_only=True):
    model: str = "default"
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: int | None = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    rid: str | None = None
    cache_salt: str | None = None
    extra_key: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Chat(_OpenAi, kw_only=True):
    messages: list[_Message]


class _Completion(_OpenAi, kw_only=True):
    prompt: str | list[Any]


class _Sampling(msgspec.Struct):
    max_new_tokens: int | None = _GENERATE_DEFAULT
    n: int = 1


class _Generate(msgspec.Struct):
    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    sampling_params: _Sampling | None = None
    stream: bool = False
    rid: str | None = None
    extra_key: str | None = None


_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETION = msgspec.json.Decoder(_Completion)
_GENERATE = msgspec.json.Decoder(_Generate)
_SEVERAL = Refusal(400, "the simulated engine runs one sequence per request")


def chat(body: bytes) -> Call | Refusal:
    """POST /v1/chat/completions, rendered with a ChatML template."""
    if body.lstrip()[:1] == b"[":
        return CRASH
    try:
        parsed = _CHAT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _bad_shape(error)
    if not parsed.messages:
        return Refusal(400, "Messages cannot be empty.")
    parts: list[bytes] = []
    for message in parsed.messages:
        parts.append(b"<|im_start|>%b\n" % message.role.encode())
        _render(message.content, parts)
        parts.append(b"<|im_end|>\n")
    parts.append(b"<|im_start|>assistant\n")
    return _openai_call(parsed, b"".join(parts), None)


def completion(body: bytes) -> Call | Refusal:
    """POST /v1/completions."""
    try:
        parsed = _COMPLETION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _bad_shape(error)
    prompt = _one_prompt(parsed.prompt)
    return prompt if isinstance(prompt, Refusal) else _openai_call(parsed, prompt, _COMPLETION_DEFAULT)


def generate(body: bytes) -> Call | Refusal:
    """POST /generate."""
    try:
        parsed = _GENERATE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _bad_shape(error)
    source = parsed.text if parsed.text is not None else parsed.input_ids
    if source is None:
        return Refusal(400, "Either text, input_ids or input_embeds should be provided.")
    prompt = _one_prompt(source)
    if isinstance(prompt, Refusal):
        return prompt
    sampling = parsed.sampling_params or _Sampling()
    if sampling.n != 1:
        return _SEVERAL
    if sampling.max_new_tokens is not None and sampling.max_new_tokens < 1:
        return Refusal(400, "max_new_tokens must be at least 1")
    return Call(prompt, sampling.max_new_tokens, parsed.stream, parsed.rid, salt=parsed.extra_key or "")


def _openai_call(parsed: _OpenAi, prompt: bytes, default_tokens: int | None) -> Call | Refusal:
    if parsed.n not in (None, 1):
        return _SEVERAL
    limit = parsed.max_completion_tokens if parsed.max_completion_tokens is not None else parsed.max_tokens
    if limit is not None and limit < 1:
        return Refusal(400, "max_tokens must be at least 1")
    stream = parsed.stream_options or _StreamOptions()
    return Call(
        prompt,
        default_tokens if limit is None else limit,
        parsed.stream,
        parsed.rid,
        parsed.model,
        (parsed.cache_salt or "") + (parsed.extra_key or ""),
        stream.include_usage,
        stream.continuous_usage_stats,
    )


def _one_prompt(source: str | list[Any]) -> bytes | Refusal:
    """Take a text, a list of token ids, or a list of exactly one of these."""
    if isinstance(source, list) and len(source) == 1 and not isinstance(source[0], int):
        source = source[0]
    if isinstance(source, str):
        return source.encode() or b"\n"
    if isinstance(source, list) and source and all(isinstance(token, int) for token in source):
        return pack_ids(source)
    return _SEVERAL


def _render(content: str | list[dict[str, Any]] | None, parts: list[bytes]) -> None:
    if isinstance(content, str):
        parts.append(content.encode())
    elif content:
        for item in content:
            text = item.get("text")
            if isinstance(text, str):
                parts.append(text.encode())
            else:  # an image by its digest, so that the same image is the same prefix
                parts.append(sha256(msgspec.json.encode(item)).digest() * (_IMAGE_TOKENS // 8))
