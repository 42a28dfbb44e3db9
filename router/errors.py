"""What can go wrong with one request, as a value, and what it looks like on every wire.

A peer's fault is never raised: codecs, pools and pickers return or hand over a `ProxyError`. The one
total table `WIRE` says for each kind what HTTP, gRPC, HTTP/2, HTTP/3 and WebSocket clients see and which
flag the access log carries; a test asserts that no kind is missing. Imports nothing of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Source(IntEnum):
    """Whose fault it is."""

    DOWNSTREAM = 0
    UPSTREAM = 1
    ROUTER = 2


class Retry(IntEnum):
    """Whether the request may be sent to another replica.

    SAFE means that it provably never reached one; IF_REUSED that it did not if the connection was a
    pooled one of which the peer acknowledged no byte of this request.
    """

    NEVER = 0
    SAFE = 1
    IF_REUSED = 2


class Kind(Enum):
    """Every way a request can fail; the value is the `x-router-error` code."""

    NO_ROUTE = "no_route"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_MISSING = "model_missing"
    NO_REPLICA = "no_replica"
    AT_CAPACITY = "at_capacity"
    RATE_LIMITED = "rate_limited"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    UPSTREAM_CLOSED = "upstream_closed"
    UPSTREAM_RESET = "upstream_reset"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    DEADLINE = "deadline"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
    REQUEST_TIMEOUT = "request_timeout"
    BAD_REQUEST = "bad_request"
    NOT_IMPLEMENTED = "not_implemented"
    VERSION_UNSUPPORTED = "version_unsupported"
    UPGRADE_UNSUPPORTED = "upgrade_unsupported"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_TOO_LARGE = "body_too_large"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    SESSION_REQUIRED = "session_required"
    SESSION_INVALID = "session_invalid"
    SESSION_GONE = "session_gone"
    SESSION_UNAVAILABLE = "session_unavailable"
    DRAINING = "draining"
    OVERLOADED = "overloaded"
    EARLY_DATA = "early_data"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Wire:
    """One row of the table.

    `status` HTTP, `grpc` status number, `h2` and `h3` error codes for a reset, `close_code` of a
    WebSocket, `flag` of the access log (Envoy's letters), `retry_after_s` 0 for no such header.
    """

    status: int
    grpc: int
    h2: int
    h3: int
    close_code: int
    flag: str
    retry_after_s: int = 0


# gRPC status numbers, RFC 9113 §7 and RFC 9114 §8.1 codes, RFC 6455 §7.4 close codes.
_CANCELLED, _INVALID, _DEADLINE, _NOT_FOUND, _DENIED, _EXHAUSTED, _UNIMPLEMENTED = 1, 3, 4, 5, 7, 8, 12
_PRECONDITION, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = 9, 13, 14, 16
_H2_PROTOCOL, _H2_INTERNAL, _H2_REFUSED, _H2_CANCEL, _H2_CALM = 1, 2, 7, 8, 11
_H3_GENERAL, _H3_INTERNAL, _H3_EXCESSIVE, _H3_REJECTED, _H3_CANCELLED = 0x101, 0x102, 0x107, 0x10B, 0x10C

WIRE: dict[Kind, Wire] = {
    Kind.NO_ROUTE: Wire(404, _UNIMPLEMENTED, _H2_REFUSED, _H3_REJECTED, 1011, "NR"),
    Kind.MODEL_NOT_FOUND: Wire(404, _NOT_FOUND, _H2_REFUSED, _H3_REJECTED, 1008, "NR"),
    Kind.MODEL_MISSING: Wire(400, _INVALID, _H2_REFUSED, _H3_REJECTED, 1008, "NR"),
    Kind.NO_REPLICA: Wire(503, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1013, "UH", 1),
    Kind.AT_CAPACITY: Wire(503, _EXHAUSTED, _H2_REFUSED, _H3_REJECTED, 1013, "UO", 1),
    Kind.RATE_LIMITED: Wire(429, _EXHAUSTED, _H2_REFUSED, _H3_REJECTED, 1013, "RL", 1),
    Kind.CONNECT_FAILED: Wire(503, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1014, "UF", 1),
    Kind.CONNECT_TIMEOUT: Wire(503, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1014, "UF", 1),
    Kind.UPSTREAM_CLOSED: Wire(502, _UNAVAILABLE, _H2_INTERNAL, _H3_INTERNAL, 1011, "UC"),
    Kind.UPSTREAM_RESET: Wire(502, _UNAVAILABLE, _H2_INTERNAL, _H3_INTERNAL, 1011, "UR"),
    Kind.UPSTREAM_PROTOCOL: Wire(502, _INTERNAL, _H2_INTERNAL, _H3_INTERNAL, 1011, "UPE"),
    Kind.FIRST_BYTE_TIMEOUT: Wire(504, _DEADLINE, _H2_CANCEL, _H3_CANCELLED, 1011, "UT"),
    Kind.IDLE_TIMEOUT: Wire(504, _DEADLINE, _H2_CANCEL, _H3_CANCELLED, 1011, "SI"),
    Kind.DEADLINE: Wire(504, _DEADLINE, _H2_CANCEL, _H3_CANCELLED, 1011, "DT"),
    Kind.CLIENT_GONE: Wire(499, _CANCELLED, _H2_CANCEL, _H3_CANCELLED, 1001, "DC"),
    Kind.CLIENT_STALLED: Wire(408, _CANCELLED, _H2_CANCEL, _H3_CANCELLED, 1008, "DC"),
    Kind.REQUEST_TIMEOUT: Wire(408, _DEADLINE, _H2_CANCEL, _H3_CANCELLED, 1002, "DPE"),
    Kind.BAD_REQUEST: Wire(400, _INTERNAL, _H2_PROTOCOL, _H3_GENERAL, 1002, "DPE"),
    Kind.NOT_IMPLEMENTED: Wire(501, _UNIMPLEMENTED, _H2_PROTOCOL, _H3_GENERAL, 1002, "DPE"),
    Kind.VERSION_UNSUPPORTED: Wire(505, _INTERNAL, _H2_PROTOCOL, _H3_GENERAL, 1002, "DPE"),
    Kind.UPGRADE_UNSUPPORTED: Wire(426, _INTERNAL, _H2_PROTOCOL, _H3_GENERAL, 1002, "DPE"),
    Kind.HEAD_TOO_LARGE: Wire(431, _EXHAUSTED, _H2_CALM, _H3_EXCESSIVE, 1009, "DPE"),
    Kind.BODY_TOO_LARGE: Wire(413, _EXHAUSTED, _H2_CANCEL, _H3_EXCESSIVE, 1009, "DPE"),
    Kind.UNAUTHENTICATED: Wire(401, _UNAUTHENTICATED, _H2_REFUSED, _H3_REJECTED, 1008, "UAEX"),
    Kind.FORBIDDEN: Wire(403, _DENIED, _H2_REFUSED, _H3_REJECTED, 1008, "UAEX"),
    Kind.METHOD_NOT_ALLOWED: Wire(405, _UNIMPLEMENTED, _H2_REFUSED, _H3_REJECTED, 1008, "DPE"),
    Kind.SESSION_REQUIRED: Wire(401, _UNAUTHENTICATED, _H2_REFUSED, _H3_REJECTED, 1008, "UAEX"),
    Kind.SESSION_INVALID: Wire(401, _UNAUTHENTICATED, _H2_REFUSED, _H3_REJECTED, 1008, "UAEX"),
    Kind.SESSION_GONE: Wire(410, _PRECONDITION, _H2_REFUSED, _H3_REJECTED, 1008, "SG"),
    Kind.SESSION_UNAVAILABLE: Wire(503, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1013, "SU", 1),
    Kind.DRAINING: Wire(503, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1012, "LR", 1),
    Kind.OVERLOADED: Wire(503, _EXHAUSTED, _H2_REFUSED, _H3_REJECTED, 1013, "OM", 1),
    Kind.EARLY_DATA: Wire(425, _UNAVAILABLE, _H2_REFUSED, _H3_REJECTED, 1013, "LR"),
    Kind.INTERNAL: Wire(500, _INTERNAL, _H2_INTERNAL, _H3_INTERNAL, 1011, "IE"),
}


@dataclass(frozen=True, slots=True)
class ProxyError:
    """One failure. `detail` is our own text, safe to show to a client and never an upstream's.

    `retry_after_s` is told instead of its kind's, where it is known better.
    """

    kind: Kind
    source: Source
    retry: Retry = Retry.NEVER
    detail: str = ""
    retry_after_s: int = 0

    @property
    def wire(self) -> Wire:
        """How this kind looks on each wire."""
        return WIRE[self.kind]
