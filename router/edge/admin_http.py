"""What a request and a reply of the admin listener are, and the shapes of replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from router.local_reply import error_type

if TYPE_CHECKING:
    from router.http import Headers

MAX_QUERY_FIELDS = 32

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"

# Nothing here may be cached, sniffed into a script, or shown in another site's frame.
FIXED_FIELDS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One whole request. `path` is without the query; names of `headers` are lower-case."""

    method: str
    path: str
    query: dict[str, str]
    authority: str
    authorization: bytes
    headers: dict[bytes, bytes]
    body: bytes
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole response."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_reply(value: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """Reply with JSON, indented: people read it with curl. What JSON does not know becomes text."""
    body = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"
    return Reply(status, body, JSON, headers)


def text_reply(text: str, status: int = 200) -> Reply:
    """Reply with plain text."""
    return Reply(status, text.encode(), TEXT)


def error_reply(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **more: Any,
) -> Reply:
    """Reply with the error body of OpenAI's API; `more` stands beside it."""
    error = {"type": error_type(status), "code": code, "message": message, "param": param}
    return json_reply({"error": error, **more}, status, ((b"x-router-error", code.encode()), *headers))


def parse_target(target: bytes) -> tuple[str, dict[str, str]] | None:
    """Split a request target into path and query fields; None when there are too many of them."""
    path, _, query = target.decode("latin-1").partition("?")
    try:
        return path, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        return None
