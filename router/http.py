"""Message heads as every protocol sees them: no version, no framing, no hop-by-hop fields.

A head has two parts. Its *shape* is all that a client tends to send again and again: method, path, fields.
Codecs memoise shapes by the bytes they came in, so a shape is shared between requests and never changed;
encoders keep on it what they made of it. Per message there are only the body's `length` and the fields the
router `added`. Names are lower-case bytes, values bytes without surrounding white space. Imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.continuity import Continuity

Field = tuple[bytes, bytes]
Headers = list[Field]

# Fields about one connection, not about the message (RFC 9110 §7.6.1): never forwarded.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
# Request fields that the router consumes or rewrites: they are taken out of the forwarded ones.
KNOWN_REQUEST: Final = frozenset(
    (
        b"grpc-timeout",
        b"modal-authorization",
        b"modal-key",
        b"modal-routing-affinity-key",
        b"modal-secret",
        b"modal-session-id",
        b"modal-session-idle-timeout",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
        b"x-request-timeout-ms",
        b"x-router-key",
        b"x-router-replica",
        b"x-router-replies",
        b"x-router-secret",
        b"x-router-session",
        b"x-router-session-idle-timeout",
        b"x-routing-key",
        b"x-session-id",
        b"x-smg-routing-key",
    )
)
# Response fields that the router sets itself; one the replica sent is replaced or merged.
KNOWN_RESPONSE: Final = frozenset(
    (b"server-timing", b"x-request-id", b"x-router-error", b"x-router-replica", b"x-router-upstream-reached")
)
# Fields that a trailer section must not carry (RFC 9110 §6.5.1: framing, routing,
# authentication; and what the router itself says in a head).
FORBIDDEN_TRAILERS: Final = HOP_BY_HOP | KNOWN_REQUEST | KNOWN_RESPONSE | frozenset(
    (b"content-length", b"host", b"authorization", b"proxy-authorization", b"content-encoding", b"content-type",
     b"content-range", b"cache-control", b"expect", b"max-forwards", b"range", b"set-cookie", b"cookie")
)  # fmt: skip

SESSION_COOKIE: Final = b"__Host-router-session"
"""The cookie that holds a session token. Codecs keep it under this name in `known`: no replica gets to see it."""

NO_FIELDS: Final[dict[bytes, bytes]] = {}
"""Shared by every shape without known fields. Never written to."""

NO_NAMES: Final[frozenset[bytes]] = frozenset()
NO_GRPC_STATUS: Final = -1

# Methods for which a body has no meaning, so that a missing one needs no `content-length: 0`.
BODILESS_METHODS: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"))


class RequestShape:
    """The part of a request head that is shared between requests.

    `authority` is lower-case host[:port]; `path` the origin-form target with its query; `fields` are
    forwarded as they are; `known` holds by name the fields that are not; `authorization` is a forwarded
    field too, named because the gate reads it; `upgrade` the protocol of an extended CONNECT (RFC 8441:
    `websocket`) or None. `sends_te`: it said `te: trailers`, which is passed on; `takes_trailers`: the client
    can be sent some; `success_is_tunnel`: it takes any 2xx for a tunnel that is open. `never_indexed` are names
    that the client wants in no table (RFC 7541 §6.2.3);
    `h1_lines` and `h2_block` are what the protocols made of all this, empty until they did.
    """

    __slots__ = (
        "_stripped",
        "authority",
        "authorization",
        "expects_continue",
        "fields",
        "h1_lines",
        "h2_block",
        "is_grpc",
        "known",
        "method",
        "never_indexed",
        "path",
        "scheme",
        "sends_te",
        "shown_session",
        "success_is_tunnel",
        "takes_trailers",
        "upgrade",
        "version",
    )

    def __init__(self, method: bytes, path: bytes, authority: bytes) -> None:
        self.method = method
        self.path = path
        self.authority = authority
        self.fields: Headers = []
        self.known = NO_FIELDS
        self.authorization = b""
        self.upgrade: bytes | None = None
        self.scheme = b"http"
        self.version = b"HTTP/1.1"
        self.sends_te = False
        self.takes_trailers = False
        self.success_is_tunnel = False
        self.is_grpc = False
        self.expects_continue = False
        self.never_indexed = NO_NAMES
        self.h1_lines = b""
        self.h2_block = b""
        self._stripped: RequestShape | None = None
        self.shown_session: ShownSession | None = None  # made for the first that asks

    def without_authorization(self) -> RequestShape:
        """Return this shape with the credential taken out; made once, as often as the shape is seen."""
        if self._stripped is None:
            self._stripped = self._without(b"authorization")
        return self._stripped

    def without_expect(self) -> RequestShape:
        """Return this shape for a replica that is not asked to continue: the router has answered that."""
        copy = self._without(b"expect")
        copy.authorization = self.authorization
        copy.expects_continue = False
        return copy

    def _without(self, name: bytes) -> RequestShape:
        return self.changed([field for field in self.fields if field[0] != name], self.path)

    def changed(self, fields: Headers, path: bytes) -> RequestShape:
        """Return this shape with other fields and another path; what it says of an Authorization is left out."""
        copy = RequestShape(self.method, path, self.authority)
        copy.fields = fields
        copy.known = self.known
        copy.upgrade = self.upgrade
        copy.scheme = self.scheme
        copy.version = self.version
        copy.sends_te = self.sends_te
        copy.takes_trailers = self.takes_trailers
        copy.success_is_tunnel = self.success_is_tunnel
        copy.is_grpc = self.is_grpc
        copy.never_indexed = self.never_indexed
        copy.expects_continue = self.expects_continue
        return copy


class ShownSession:
    """What a request shows of a sticky session: a token, empty for none, and the request without it.

    `is_query`, `is_cookie`: where it stood; `path` is without query; `shape` is None where nothing is taken out.
    """

    __slots__ = ("is_cookie", "is_query", "path", "shape", "token")

    def __init__(
        self, token: bytes, path: bytes, shape: RequestShape | None, *, is_query: bool, is_cookie: bool
    ) -> None:
        self.is_cookie = is_cookie
        self.token = token
        self.path = path
        self.shape = shape
        self.is_query = is_query


class RequestHead:
    """One request up to its body; `length` is the body's declared size in bytes, None when unknown.

    `continuity`: the session that it belongs to, for protocols whose sessions outlive connections.
    """

    __slots__ = ("added", "continuity", "length", "shape")

    def __init__(self, shape: RequestShape, length: int | None = None) -> None:
        self.shape = shape
        self.length = length
        self.added: Headers = []
        self.continuity: Continuity | None = None


class ResponseShape:
    """The part of a response head that is shared between responses.

    `is_event_stream`: its content type is text/event-stream; `accepts_tunnel`: it answers an extended
    CONNECT, with status 200 as RFC 8441 has it, and bytes of the tunnel follow; `has_lanes`: those are no
    WebSocket's but messages that name their lanes (`codec.framing`), and datagrams beside them if it
    `takes_datagrams`; `grpc_status`: of a response
    that is all trailers, else `NO_GRPC_STATUS`; `h3_block` as `h2_block`; the rest as for requests.
    """

    __slots__ = (
        "accepts_tunnel",
        "fields",
        "grpc_status",
        "h1_lines",
        "h2_block",
        "h3_block",
        "has_lanes",
        "is_event_stream",
        "known",
        "never_indexed",
        "status",
        "takes_datagrams",
    )

    def __init__(self, status: int) -> None:
        self.status = status
        self.fields: Headers = []
        self.known = NO_FIELDS
        self.takes_datagrams = False
        self.is_event_stream = False
        self.accepts_tunnel = False
        self.has_lanes = False
        self.grpc_status = NO_GRPC_STATUS
        self.never_indexed = NO_NAMES
        self.h1_lines = b""
        self.h2_block = b""
        self.h3_block = b""


class ResponseHead:
    """One response up to its body; `length` as for requests."""

    __slots__ = ("added", "length", "shape")

    def __init__(self, shape: ResponseShape, length: int | None = None) -> None:
        self.shape = shape
        self.length = length
        self.added: Headers = []
