"""What a client asks of the router itself in fields of its request: its id, its time, its routing key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Source
from router.grpc_fields import grpc_timeout_s, write_grpc_timeout

if TYPE_CHECKING:
    from router.http import RequestHead, RequestShape

MAX_TIMEOUT_DIGITS = 9
MAX_KEY_BYTES: Final = 1_024
AFFINITY_FIELDS: Final = (
    b"modal-routing-affinity-key",
    b"modal-session-id",
    b"x-smg-routing-key",
    b"x-session-id",
    b"x-routing-key",
)
"""Modal's, SGLang's and neutral names; the first that is there wins."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")


def accepted_id(known: dict[bytes, bytes]) -> bytes:
    """Return the client's request id if it is short and plain, else nothing: it goes into logs as it is."""
    request_id = known.get(b"x-request-id", b"")
    return request_id if _REQUEST_ID.fullmatch(request_id) else b""


def affinity_key(known: dict[bytes, bytes]) -> bytes | ProxyError:
    """Return the key that requests which belong together share; empty without one."""
    for name in AFFINITY_FIELDS:
        key = known.get(name)
        if key:
            if len(key) > MAX_KEY_BYTES:
                detail = f"{name.decode()} is longer than {MAX_KEY_BYTES} bytes"
                return ProxyError(Kind.HEAD_TOO_LARGE, Source.DOWNSTREAM, detail=detail)
            return key
    return b""


def is_json(shape: RequestShape) -> bool:
    """Whether the body is said to be JSON."""
    for name, value in shape.fields:
        if name == b"content-type":
            return value[:16].lower() == b"application/json"
    return False


def asked_timeout_s(known: dict[bytes, bytes]) -> float | ProxyError:
    """Return the smaller of `grpc-timeout` and `x-request-timeout-ms` in seconds, NEVER without either."""
    asked_s = NEVER
    grpc_timeout = known.get(b"grpc-timeout")
    if grpc_timeout is not None:
        asked_s = grpc_timeout_s(grpc_timeout)
        if asked_s < 0.0:
            return ProxyError(Kind.BAD_REQUEST, Source.DOWNSTREAM, detail="grpc-timeout is not a time")
    timeout = known.get(b"x-request-timeout-ms")
    if timeout is not None:
        if not timeout.isdigit() or len(timeout) > MAX_TIMEOUT_DIGITS:
            return ProxyError(Kind.BAD_REQUEST, Source.DOWNSTREAM, detail="x-request-timeout-ms is not a number")
        asked_s = min(asked_s, int(timeout) / 1e3)
    return asked_s


def forward_timeouts(head: RequestHead, known: dict[bytes, bytes], left_s: float) -> None:
    """Tell the replica what is left, in the fields that the client used. Seconds; no less than the unit."""
    if b"grpc-timeout" in known:
        head.added.append((b"grpc-timeout", write_grpc_timeout(left_s)))
    if b"x-request-timeout-ms" in known:
        head.added.append((b"x-request-timeout-ms", b"%d" % max(1, int(left_s * 1e3))))
