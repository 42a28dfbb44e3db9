"""From a prompt to a request of the scheduler, and why it may be refused: the same for HTTP and gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from inference_backend.scheduler import Request, Scheduler
from inference_backend.text import text_start

if TYPE_CHECKING:
    from inference_backend.settings import Settings

QUEUE_FULL = "The request queue is full."


def make_request(
    settings: Settings, rid: str, prompt: bytes, max_tokens: int | None, salt: str = ""
) -> Request:
    """Decide what the answer will be: where in the ring of text it begins, and how long it gets."""
    seed = settings.seed
    start = text_start(prompt, seed)
    salted = crc32(salt.encode()) if salt else 0
    if max_tokens is not None:
        return Request(rid, prompt, max_tokens, start=start, salt=salted)
    # The model stops by itself, after a length that the prompt decides.
    length = 1 + crc32(prompt, seed + 1) % (2 * settings.mean_output_tokens)
    return Request(rid, prompt, length, start=start, finish="stop", salt=salted)


def too_long(settings: Settings, scheduler: Scheduler, request: Request) -> str:
    """Why the request does not fit, empty if it does; an answer that stops by itself is made to fit."""
    limit = settings.profile.context_tokens
    if request.prompt_tokens >= limit:
        return (
            f"The input ({request.prompt_tokens} tokens) is longer than the model's context length "
            f"({limit} tokens)."
        )
    if request.finish == "stop":
        request.max_tokens = min(request.max_tokens, limit - request.prompt_tokens)
    total = request.prompt_tokens + request.max_tokens
    if total > limit or not scheduler.fits(request):
        return (
            f"Requested token count exceeds the model's maximum context length of {limit} tokens. "
            f"You requested a total of {total} tokens: {request.prompt_tokens} tokens from the input "
            f"messages and {request.max_tokens} tokens for the completion."
        )
    return ""
