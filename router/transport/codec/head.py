"""Heads and trailers of HTTP/2 and HTTP/3: from decoded fields to the router's own form (RFC 9113 §8, RFC 9114 §4).

The two have the same fields and the same rules for them. A request that breaks one is malformed and resets its
stream; what is only not served (CONNECT, another `:protocol`) or too large is answered with a status instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Source
from router.grpc_fields import read_grpc_status
from router.http import NO_NAMES, SESSION_COOKIE, RequestHead, RequestShape, ResponseHead, ResponseShape
from router.transport.codec import grammar
from router.transport.codec.fields import (
    AUTHORITY,
    AUTHORIZATION,
    CONTENT_TYPE,
    COOKIE,
    DROP,
    EXPECT,
    FAULT,
    GRPC_STATUS,
    HOST,
    KNOWN,
    LENGTH,
    METHOD,
    PATH,
    PLAIN,
    PROTOCOL,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    SCHEME,
    STATUS,
    TE,
    WEBSOCKET_VERSION,
)

if TYPE_CHECKING:
    from router.http import Field, Headers
    from router.transport.codec.fields import FieldJudge

WEBTRANSPORT: Final = b"webtransport"
_SCHEMES: Final = (b"http", b"https")
_PSEUDO: Final = (METHOD, SCHEME, PATH, AUTHORITY, PROTOCOL)


def bad_request(detail: str, kind: Kind = Kind.BAD_REQUEST) -> ProxyError:
    """Return the error for a client's malformed message."""
    return ProxyError(kind, Source.DOWNSTREAM, detail=detail)


def bad_response(detail: str) -> ProxyError:
    """Return the error for a replica's malformed message."""
    return ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM, detail=detail)


def read_request(
    fields: Headers, version: bytes, never: frozenset[bytes] = NO_NAMES, *, takes_sessions: bool = False
) -> RequestHead | ProxyError:
    """Return the head that these fields make; `never` are the names that no table may keep.

    `takes_sessions`: WebTransport is served.
    """
    if len(fields) > grammar.MAX_FIELDS:
        return bad_request(f"more than {grammar.MAX_FIELDS} fields", Kind.HEAD_TOO_LARGE)
    shape = RequestShape(b"", b"", b"")
    shape.version = version
    shape.takes_trailers = True
    shape.never_indexed = never
    head = RequestHead(shape)
    pseudo: dict[int, bytes] = {}
    host: bytes | None = None
    version = b""
    cookies: list[bytes] = []
    forwarded = shape.fields
    memo, judge = REQUEST_FIELDS.memo, REQUEST_FIELDS.judge
    for field in fields:
        mark = memo.get(field, -1)
        if mark < 0:
            mark = judge(field)
        if mark == PLAIN:
            forwarded.append(field)
            continue
        value = field[1]
        if mark in _PSEUDO:
            if mark in pseudo:
                return bad_request("a pseudo-field is repeated")
            pseudo[mark] = value
        elif mark == CONTENT_TYPE:
            forwarded.append(field)
            shape.is_grpc = _is_grpc(value)
        elif mark == LENGTH:
            if head.length is not None or not value.isdigit() or len(value) > grammar.MAX_LENGTH_DIGITS:
                return bad_request("content-length is not one number")
            head.length = int(value)
        elif mark == KNOWN:
            shape.known = _with_known(shape.known, field)
        elif mark == TE:
            # RFC 9113 §8.2.2: nothing but "trailers".
            if value.lower() != b"trailers":
                return bad_request("te is not trailers")
            shape.sends_te = True
        elif mark == HOST:
            if host is not None:
                return bad_request("more than one host")
            host = value.lower()
        elif mark == COOKIE:
            cookies.append(value)
        elif mark == AUTHORIZATION:
            if shape.authorization:
                return bad_request("more than one authorization")
            shape.authorization = value
            forwarded.append(field)
        elif mark == EXPECT:
            forwarded.append(field)
            shape.expects_continue = True
        elif mark == WEBSOCKET_VERSION:
            version = value
        elif mark != DROP:
            return bad_request("a field is malformed or belongs to a connection")
    for name, _ in fields[: len(pseudo)]:
        if not name.startswith(b":"):
            return bad_request("a pseudo-field stands behind another field")
    if cookies:
        # RFC 9113 §8.2.3: one field again, since it may leave as HTTP/1.1.
        kept, token = grammar.split_cookie(b"; ".join(cookies))
        if kept:
            forwarded.append((b"cookie", kept))
        if token:
            shape.known = {**shape.known, SESSION_COOKIE: token}
    return _apply_pseudo(head, pseudo, host, version, takes_sessions)


def _apply_pseudo(
    head: RequestHead, pseudo: dict[int, bytes], host: bytes | None, version: bytes, takes_sessions: bool
) -> RequestHead | ProxyError:
    shape = head.shape
    method = pseudo.get(METHOD, b"")
    if grammar.METHOD.fullmatch(method) is None:
        return bad_request("no method")
    authority = pseudo.get(AUTHORITY)
    if authority is not None:
        authority = authority.lower()
        # RFC 9113 §8.3.1: two names for one target are an attack on whoever reads only one.
        if not authority or (host is not None and host != authority):
            return bad_request("the authority is empty, or host names another one")
        host = authority
    # RFC 9113 §8.3.1: one of the two must be there.
    if not host or host.startswith(b":") or grammar.AUTHORITY.fullmatch(host) is None:
        return bad_request("the authority is missing or malformed")
    protocol = pseudo.get(PROTOCOL)
    if method == b"CONNECT" and protocol is None:
        # RFC 9113 §8.5: a tunnel to anywhere, which a router of replicas is not.
        return bad_request("CONNECT is not served", Kind.NOT_IMPLEMENTED)
    path = pseudo.get(PATH, b"")
    if pseudo.get(SCHEME, b"").lower() not in _SCHEMES:
        return bad_request("the scheme is neither http nor https")
    if grammar.PATH.fullmatch(path) is None and not (path == b"*" and method == b"OPTIONS"):
        return bad_request("the path is malformed")
    shape.method = method
    shape.path = path
    shape.authority = host
    if protocol is None:
        return head
    if method != b"CONNECT" or authority is None:
        return bad_request("a protocol without CONNECT or without an authority")
    is_session = takes_sessions and protocol.lower() == WEBTRANSPORT
    if not is_session and protocol.lower() != b"websocket":
        return bad_request("only the websocket protocol is served", Kind.NOT_IMPLEMENTED)
    if version != b"13" and not is_session:
        return bad_request("sec-websocket-version is not 13", Kind.UPGRADE_UNSUPPORTED)
    if head.length is not None:
        return bad_request("a tunnel has no length")
    shape.upgrade = WEBTRANSPORT if is_session else b"websocket"
    shape.success_is_tunnel = True  # RFC 8441 §5, RFC 9220
    return head


def read_response(fields: Headers, never: frozenset[bytes] = NO_NAMES) -> ResponseHead | ProxyError:
    """Return the head that a replica's fields make."""
    if len(fields) > grammar.MAX_FIELDS:
        return bad_response(f"more than {grammar.MAX_FIELDS} fields")
    shape = ResponseShape(0)
    shape.never_indexed = never
    head = ResponseHead(shape)
    forwarded = shape.fields
    memo, judge = RESPONSE_FIELDS.memo, RESPONSE_FIELDS.judge
    for field in fields:
        mark = memo.get(field, -1)
        if mark < 0:
            mark = judge(field)
        if mark == PLAIN:
            forwarded.append(field)
            continue
        value = field[1]
        if mark == STATUS:
            if shape.status or len(value) != 3 or not value.isdigit() or value < b"100":
                return bad_response("the status is malformed or repeated")
            shape.status = int(value)
        elif mark == CONTENT_TYPE:
            forwarded.append(field)
            shape.is_event_stream = value[:17].lower() == b"text/event-stream"
        elif mark == GRPC_STATUS:
            forwarded.append(field)
            shape.grpc_status = read_grpc_status(value)
        elif mark == LENGTH:
            if head.length is not None or not value.isdigit() or len(value) > grammar.MAX_LENGTH_DIGITS:
                return bad_response("content-length is not one number")
            head.length = int(value)
        elif mark == KNOWN:
            shape.known = _with_known(shape.known, field)
        elif mark != DROP:
            return bad_response("a field is malformed or belongs to a connection")
    # RFC 9113 §8.6: 101 does not exist here.
    if not shape.status or shape.status == 101 or fields[0][0] != b":status":
        return bad_response("no status, or 101, or one behind another field")
    if shape.is_event_stream and any(name == b"content-encoding" for name, _ in forwarded):
        shape.is_event_stream = False  # nothing of ours can be put into a compressed stream
    return head


def read_trailers(fields: Headers, judge: FieldJudge) -> Headers | None:
    """Return the fields that may stand behind a body, by its role; None if one is malformed (RFC 9113 §8.1)."""
    if len(fields) > grammar.MAX_FIELDS:
        return None
    trailers: Headers = []
    memo = judge.memo
    for field in fields:
        mark = memo.get(field, -1)
        if mark < 0:
            mark = judge.judge(field)
        if mark == PLAIN:
            trailers.append(field)
        elif mark == FAULT:
            return None
    return trailers


def _is_grpc(content_type: bytes) -> bool:
    """Whether this is gRPC proper; gRPC-Web has its trailers in the body and is plain HTTP to us."""
    return content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")


def _with_known(known: dict[bytes, bytes], field: Field) -> dict[bytes, bytes]:
    name, value = field
    if name in known:
        value = known[name] + b", " + value
    return {**known, name: value}
