"""The router's own answers: a `ProxyError` as a response that OpenAI clients understand.

Every such answer says `x-router-error`, so that a proxy's 503 is never taken for a replica's, and
`x-router-upstream-reached: no|maybe|yes`, so that a client knows whether a POST may be repeated.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from router.errors import WIRE, Kind, ProxyError
from router.http import Headers, ResponseHead, ResponseShape

if TYPE_CHECKING:
    from router.errors import Wire

_MESSAGES: dict[Kind, str] = {
    Kind.NO_ROUTE: "No endpoint is routed for this host and path.",
    Kind.MODEL_NOT_FOUND: "No endpoint of this environment serves the model.",
    Kind.MODEL_MISSING: "This host routes by the model that the body names, and it names none.",
    Kind.NO_REPLICA: "The endpoint has no ready replica; retry after the given time.",
    Kind.AT_CAPACITY: "Every replica of the endpoint is at its concurrency limit; retry after the given time.",
    Kind.RATE_LIMITED: "The rate limit is reached; retry after the given time.",
    Kind.CONNECT_FAILED: "The replica refused the connection.",
    Kind.CONNECT_TIMEOUT: "The replica did not accept the connection in time.",
    Kind.UPSTREAM_CLOSED: "The replica closed the connection before its response was complete.",
    Kind.UPSTREAM_RESET: "The replica reset the connection before its response was complete.",
    Kind.UPSTREAM_PROTOCOL: "The replica's response broke the protocol.",
    Kind.FIRST_BYTE_TIMEOUT: "The replica did not begin its response in time.",
    Kind.IDLE_TIMEOUT: "Nothing moved on this request for too long.",
    Kind.DEADLINE: "The request's deadline passed.",
    Kind.CLIENT_GONE: "The client went away.",
    Kind.CLIENT_STALLED: "The client stopped reading.",
    Kind.REQUEST_TIMEOUT: "The request did not arrive in time.",
    Kind.BAD_REQUEST: "The request is malformed.",
    Kind.NOT_IMPLEMENTED: "This is not served here.",
    Kind.VERSION_UNSUPPORTED: "This version of HTTP is not served here.",
    Kind.UPGRADE_UNSUPPORTED: "Only WebSocket version 13 can be upgraded to here.",
    Kind.HEAD_TOO_LARGE: "The request head is larger than the limit.",
    Kind.BODY_TOO_LARGE: "The request body is larger than the limit.",
    Kind.UNAUTHENTICATED: "A valid credential is required.",
    Kind.FORBIDDEN: "This credential does not give access here.",
    Kind.METHOD_NOT_ALLOWED: "This path takes POST only.",
    Kind.SESSION_REQUIRED: (
        "This endpoint is sessioned: POST /_router/sessions/start, and send the token as x-router-session."
    ),
    Kind.SESSION_INVALID: "The session token is none of this fleet; start a session.",
    Kind.SESSION_GONE: "The session has ended; start another.",
    Kind.SESSION_UNAVAILABLE: "The store that keeps sessions does not answer; retry after the given time.",
    Kind.DRAINING: "This router is shutting down; repeat the request.",
    Kind.OVERLOADED: "This router is overloaded; retry after the given time.",
    Kind.EARLY_DATA: "This request must not be sent as early data.",
    Kind.INTERNAL: "The router failed; this is a bug.",
}


def _message(error: ProxyError) -> str:
    message = _MESSAGES[error.kind]
    return f"{message[:-1]}: {error.detail}." if error.detail else message


_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def error_type(status: int) -> str:
    """Return the `type` of an OpenAI error body for an HTTP status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(error: ProxyError) -> bytes:
    """Return the JSON body `{"error": {"type", "code", "message", "param"}}`."""
    message = _message(error)
    return msgspec.json.encode(
        {
            "error": {
                "type": error_type(WIRE[error.kind].status),
                "code": error.kind.value,
                "message": message,
                "param": None,
            }
        }
    )


def error_event(error: ProxyError, last: bytes) -> bytes:
    r"""Return a server-sent `error` event; `last` is what was sent before.

    A half-sent event is ended first, with a blank line, so that this one is an event of its own.
    """
    lead = b"" if not last or last.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
    return lead + b"event: error\ndata: " + error_body(error) + b"\n\n"


def grpc_reply(error: ProxyError, reached: bytes, request_id: bytes) -> ResponseHead:
    """Return the answer for `error` to a gRPC call: a head that is all trailers."""
    shape = ResponseShape(200)
    shape.fields = [(b"content-type", b"application/grpc"), *grpc_trailers(error, reached)]
    if request_id:
        shape.fields.append((b"x-request-id", request_id))
    return ResponseHead(shape)


def grpc_trailers(error: ProxyError, reached: bytes) -> Headers:
    """Return what ends a gRPC call that failed here."""
    return [
        (b"grpc-status", b"%d" % WIRE[error.kind].grpc),
        # Percent-encoded but for printable ASCII, says gRPC's description of its use of HTTP/2.
        (b"grpc-message", quote(_message(error), safe=_PRINTABLE).encode()),
        (b"x-router-error", error.kind.value.encode()),
        (b"x-router-upstream-reached", reached),
    ]


def bare_reply(status: int, length: int, request_id: bytes) -> ResponseHead:
    """Return the head of an answer of the router's own that is no error."""
    shape = ResponseShape(status)
    shape.fields = [
        (b"date", formatdate(time.time(), usegmt=True).encode()),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id),
    ]
    return ResponseHead(shape, length)


def json_reply(status: int, length: int, request_id: bytes) -> ResponseHead:
    """Return the head of such an answer with a body."""
    head = bare_reply(status, length, request_id)
    head.shape.fields.append((b"content-type", b"application/json"))
    return head


def local_reply(error: ProxyError, reached: bytes, request_id: bytes) -> tuple[ResponseHead, bytes]:
    """Return the head and body of the HTTP answer for `error`; `reached` is no, maybe or yes."""
    wire: Wire = WIRE[error.kind]
    body = error_body(error)
    shape = ResponseShape(wire.status)
    headers: Headers = [
        (b"date", formatdate(time.time(), usegmt=True).encode()),
        (b"content-type", b"application/json"),
        (b"x-router-error", error.kind.value.encode()),
        (b"x-router-upstream-reached", reached),
    ]
    if request_id:
        headers.append((b"x-request-id", request_id))
    retry_after_s = error.retry_after_s or wire.retry_after_s
    if retry_after_s:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    if wire.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.kind is Kind.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    if error.kind is Kind.UPGRADE_UNSUPPORTED:
        headers.append((b"sec-websocket-version", b"13"))
    shape.fields = headers
    return ResponseHead(shape, len(body)), body
