"""What every version of HTTP asks of methods, targets, authorities and values (RFC 9110 §4, §5, RFC 3986)."""

from __future__ import annotations

import re
from typing import Final

from router.http import SESSION_COOKIE

MAX_FIELDS: Final = 128
MAX_LENGTH_DIGITS: Final = 18  # of a content-length: below 2**63

METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
PATH = re.compile(rb"/[\x21-\x22\x24-\x7e]*")  # origin-form with its query; no fragment
# uri-host [":" port], RFC 3986 §3.2: a registered name or an address, in brackets for IPv6. May be empty.
AUTHORITY = re.compile(
    rb"(?:[0-9a-z\-._~%!$&'()*+,;=]*|\[[0-9a-f:.]+\])(?::[0-9]{0,5})?", re.IGNORECASE
)
# No control character but tab, which excludes CR, LF and NUL; no white space at either end (RFC 9110 §5.5).
VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?", re.DOTALL)
LOWER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")

# Secret or never the same twice: remembering such fields would hold secrets or wash a memo out.
NOT_REMEMBERED: Final = frozenset(
    (
        b"authorization",
        b"cookie",
        b"content-length",
        b"date",
        b"etag",
        b"grpc-timeout",
        b"idempotency-key",
        b"modal-authorization",
        b"modal-secret",
        b"proxy-authorization",
        b"sec-websocket-accept",
        b"sec-websocket-key",
        b"server-timing",
        b"set-cookie",
        b"traceparent",
        b"x-request-id",
        b"x-router-key",
        b"x-router-secret",
        b"x-router-session",
    )
)


def split_list(value: bytes) -> list[bytes]:
    """Split a comma-separated field value into lower-case elements, empty ones dropped (RFC 9110 §5.6.1)."""
    return [element for part in value.lower().split(b",") if (element := part.strip(b" \t"))]


def split_cookie(value: bytes) -> tuple[bytes, bytes]:
    """Return the value of a `cookie` field without the router's own, and the first of those (RFC 6265 §4.2.1)."""
    if SESSION_COOKIE not in value:
        return value, b""
    token = b""
    kept: list[bytes] = []
    for pair in value.split(b";"):
        name, _, text = pair.strip().partition(b"=")
        if name.rstrip() == SESSION_COOKIE:
            token = token or text.strip()
        elif pair.strip():
            kept.append(pair.strip())
    return b"; ".join(kept), token
