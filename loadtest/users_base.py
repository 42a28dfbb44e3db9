"""What the locust users share: the chat request they send, and how a figure reaches locust's statistics.

Imports nothing of the project.
"""

from __future__ import annotations

import json
import time
from typing import Any

CHAT_PATH = "/v1/chat/completions"
PROMPT = "What is the loopback interface of a machine for?"
ANSWER_S = 30.0  # longer than any answer of a replica that is not stuck


def chat_headers(options: Any) -> dict[str, str]:
    """Headers of a chat request: no compression, which would hide when a token arrived."""
    headers = {"accept-encoding": "identity", "content-type": "application/json"}
    if options.api_key:
        headers["authorization"] = f"Bearer {options.api_key}"
    return headers


def chat_body(options: Any, *, stream: bool) -> str:
    """JSON of a chat request."""
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": options.max_tokens,
        "stream": stream,
    }
    return json.dumps(body)


def fire(
    environment: Any,
    kind: str,
    name: str,
    since: float,
    size: int,
    failure: Exception | None,
    now: float | None = None,
) -> None:
    """Count one figure in the entry `kind name`: the time from `since` to `now`, seconds of `perf_counter`."""
    environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=((now or time.perf_counter()) - since) * 1e3,
        response_length=size,
        exception=failure,
        context={},
    )
