"""Whole heads of HTTP/1.1, parsed and written.

Parsing is strict by RFC 9112: bare line feeds, folded lines, space before a colon, control characters,
duplicate or signed lengths, length beside transfer-encoding and unknown transfer codings are all refused.
What the parser accepts is rebuilt field by field, so the wire that leaves has one reading only.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Source
from router.http import (
    BODILESS_METHODS,
    NO_FIELDS,
    SESSION_COOKIE,
    RequestHead,
    RequestShape,
    ResponseHead,
    ResponseShape,
)
from router.transport.codec.grammar import AUTHORITY, MAX_FIELDS, MAX_LENGTH_DIGITS, split_cookie, split_list
from router.transport.codec.h1.fields import (
    AUTHORIZATION,
    CODING,
    CONNECTION,
    CONTENT_TYPE,
    DROP,
    HOST,
    KNOWN,
    LENGTH,
    PLAIN,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    UPGRADE,
    WEBSOCKET_ACCEPT,
    write_lines,
)
from router.transport.codec.h1.memo import ShapeMemo

if TYPE_CHECKING:
    from router.http import Field, Headers

MAX_HEAD_BYTES: Final = 65_536

# Facts of the message that only HTTP/1.1 itself needs, as bits.
CHUNKED: Final = 1
KEEP_ALIVE: Final = 2
HTTP_10: Final = 4
UPGRADE_FIELD: Final = 8  # `Upgrade: websocket`
UPGRADE_OPTION: Final = 16  # `Connection: upgrade`

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}) ([\x21-\x22\x24-\x7e]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]+)(.*)", re.IGNORECASE)
_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64 (RFC 6455 §4.1)

ParsedRequest = tuple[RequestHead, int, bytes]
ParsedResponse = tuple[ResponseHead, int, bytes]

_requests: Final[ShapeMemo[tuple[RequestShape, int]]] = ShapeMemo()
_responses: Final[ShapeMemo[tuple[ResponseShape, int]]] = ShapeMemo()


def bad_request(detail: str, kind: Kind = Kind.BAD_REQUEST) -> ProxyError:
    """Return the error for a client's malformed message."""
    return ProxyError(kind, Source.DOWNSTREAM, detail=detail)


def bad_response(detail: str) -> ProxyError:
    """Return the error for a replica's malformed message."""
    return ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM, detail=detail)


def parse_request(raw: bytes) -> ParsedRequest | ProxyError:
    """Parse a request head without its final blank line.

    Returns the head, the bits above, and the key of a WebSocket handshake (`b""` otherwise).
    """
    key, length, stored = _requests.look_up(raw)
    if stored is not None:
        shape, bits = stored
        return RequestHead(shape, length), bits, b""
    parsed = _parse_request_lines(raw.split(b"\r\n"))
    if not isinstance(parsed, ProxyError) and not parsed[2] and parsed[0].length == length:
        _requests.store(key, (parsed[0].shape, parsed[1]))
    return parsed


def _parse_request_lines(lines: list[bytes]) -> ParsedRequest | ProxyError:
    start = _read_request_line(lines[0])
    if isinstance(start, ProxyError):
        return start
    if len(lines) > MAX_FIELDS + 1:
        return bad_request(f"more than {MAX_FIELDS} fields", Kind.HEAD_TOO_LARGE)
    method, path, target_authority, bits = start
    shape = RequestShape(method, path, target_authority)
    head = RequestHead(shape)
    host: bytes | None = None
    rare: Headers = []
    read, seen = REQUEST_FIELDS.read, REQUEST_FIELDS.memo.get
    for line in lines[1:]:
        entry = seen(line) or read(line)
        if entry is None:
            return bad_request("a header line is not a field")
        mark, field = entry
        if mark == PLAIN:
            shape.fields.append(field)
        elif mark == HOST:
            if host is not None:
                return bad_request("more than one host")
            host = field[1]
        elif mark == LENGTH:
            value = field[1]
            if head.length is not None or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
                return bad_request("content-length is not one number")
            head.length = int(value)
        elif mark == KNOWN:
            shape.known = _with_known(shape.known, field)
        elif mark == AUTHORIZATION:
            if shape.authorization:
                return bad_request("more than one authorization")
            shape.authorization = field[1]
            shape.fields.append(field)
        elif mark != DROP:
            rare.append(field)
    if host is None and not bits & HTTP_10:
        return bad_request("no host")
    shape.authority = target_authority or host or b""
    if bits & HTTP_10:
        shape.version = b"HTTP/1.0"
    return _read_rare(head, bits, rare) if rare else (head, bits, b"")


def parse_response(raw: bytes) -> ParsedResponse | ProxyError:
    """Parse a response head without its final blank line.

    Returns the head, the bits above, and the accept value of a WebSocket handshake (`b""` otherwise).
    """
    key, length, stored = _responses.look_up(raw)
    if stored is not None:
        shape, bits = stored
        return ResponseHead(shape, length), bits, b""
    parsed = _parse_response_lines(raw.split(b"\r\n"))
    if not isinstance(parsed, ProxyError) and not parsed[2] and parsed[0].length == length:
        _responses.store(key, (parsed[0].shape, parsed[1]))
    return parsed


def _parse_response_lines(lines: list[bytes]) -> ParsedResponse | ProxyError:
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        return bad_response("the status line is malformed")
    if len(lines) > MAX_FIELDS + 1:
        return bad_response(f"more than {MAX_FIELDS} fields")
    bits = KEEP_ALIVE if match[1] != b"0" else HTTP_10
    shape = ResponseShape(int(match[2]))
    head = ResponseHead(shape)
    accept = b""
    options: list[bytes] = []
    read, seen = RESPONSE_FIELDS.read, RESPONSE_FIELDS.memo.get
    for line in lines[1:]:
        entry = seen(line) or read(line)
        if entry is None:
            return bad_response("a header line is not a field")
        mark, field = entry
        if mark == PLAIN:
            shape.fields.append(field)
        elif mark == LENGTH:
            value = field[1]
            if head.length is not None or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
                return bad_response("content-length is not one number")
            head.length = int(value)
        elif mark == CONTENT_TYPE:
            shape.fields.append(field)
            shape.is_event_stream = field[1][:17].lower() == b"text/event-stream"
        elif mark == CODING:
            if bits & (CHUNKED | HTTP_10) or field[1].lower() != b"chunked":
                return bad_response("transfer-encoding is not chunked once")
            bits |= CHUNKED
        elif mark == CONNECTION:
            options += split_list(field[1])
        elif mark == KNOWN:
            shape.known = _with_known(shape.known, field)
        elif mark == WEBSOCKET_ACCEPT:
            if accept:
                return bad_response("more than one sec-websocket-accept")
            accept = field[1]
        elif mark == UPGRADE and field[1].lower() == b"websocket":
            bits |= UPGRADE_FIELD
    if shape.is_event_stream and any(name == b"content-encoding" for name, _ in shape.fields):
        shape.is_event_stream = False  # nothing of ours can be put into a compressed stream
    if bits & CHUNKED and head.length is not None:
        return bad_response("content-length beside transfer-encoding")
    if options:
        bits, shape.fields, shape.known = _apply_connection(options, bits, shape.fields, shape.known)
    return head, bits, accept


def write_request(head: RequestHead, end: bool, authority: bytes, websocket_key: bytes) -> bytes:
    """Return the head on the wire. `authority` stands in where the client named no host."""
    shape = head.shape
    parts = [shape.h1_lines or _write_request_shape(shape, authority)]
    if head.length is not None:
        parts.append(b"content-length: %d\r\n" % head.length)
    elif websocket_key:
        parts.append(b"sec-websocket-key: " + websocket_key + b"\r\n")
    elif not end:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif shape.method not in BODILESS_METHODS:
        parts.append(b"content-length: 0\r\n")
    parts += write_lines(head.added)
    parts.append(b"\r\n")
    return b"".join(parts)


def write_response(head: ResponseHead, framing: bytes, status: int = 0) -> bytes:
    """Return the head on the wire; `framing` are whole lines of length, coding and connection, or empty.

    `status` replaces the head's own: 101 for an accepted tunnel.
    """
    shape = head.shape
    parts = [shape.h1_lines if shape.h1_lines and not status else _write_response_shape(shape, status), framing]
    parts += write_lines(head.added)
    parts.append(b"\r\n")
    return b"".join(parts)


def _write_request_shape(shape: RequestShape, authority: bytes) -> bytes:
    lines = [
        b"%b %b HTTP/1.1\r\n" % (b"GET" if shape.upgrade else shape.method, shape.path),
        b"host: %b\r\n" % (shape.authority or authority),
    ]
    if shape.upgrade:
        lines.append(b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n")
    elif shape.sends_te:
        lines.append(b"connection: te\r\nte: trailers\r\n")
    lines += write_lines(shape.fields)
    wire = b"".join(lines)
    if shape.authority:  # else the lines name the replica, and another one may be next
        shape.h1_lines = wire
    return wire


def _write_response_shape(shape: ResponseShape, status: int) -> bytes:
    code = status or shape.status
    lines = [_STATUS_LINES.get(code) or b"HTTP/1.1 %d \r\n" % code]
    lines += write_lines(shape.fields)
    wire = b"".join(lines)
    if not status:
        shape.h1_lines = wire
    return wire


_CONNECTION_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade", b"te"))
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


def _read_request_line(line: bytes) -> tuple[bytes, bytes, bytes, int] | ProxyError:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        return bad_request("the request line is malformed")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        return bad_request("only HTTP/1.0 and HTTP/1.1 are spoken here", Kind.VERSION_UNSUPPORTED)
    bits = KEEP_ALIVE if minor == b"1" else HTTP_10
    authority = b""
    if method == b"CONNECT":
        return bad_request("CONNECT is not served", Kind.NOT_IMPLEMENTED)
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            # RFC 9112 §3.2.2: the authority of an absolute target replaces Host.
            authority, target = absolute[2].lower(), absolute[3]
            if authority.startswith(b":") or AUTHORITY.fullmatch(authority) is None:
                return bad_request("the target's authority is malformed")
            if not target and method == b"OPTIONS":
                target = b"*"  # RFC 9112 §3.2.4
            elif not target.startswith(b"/"):
                target = b"/" + target
        elif target != b"*" or method != b"OPTIONS":
            return bad_request("the target is neither a path nor a URL")
    return method, target, authority, bits


def _with_known(known: dict[bytes, bytes], field: Field) -> dict[bytes, bytes]:
    name, value = field
    if name in known:
        value = known[name] + b", " + value
    return {**known, name: value}


def _apply_connection(
    options: list[bytes], bits: int, fields: Headers, known: dict[bytes, bytes]
) -> tuple[int, Headers, dict[bytes, bytes]]:
    """Apply Connection: whether the connection stays, and which fields it claims (RFC 9110 §7.6.1)."""
    claimed = set(options) - _CONNECTION_OPTIONS
    if b"keep-alive" in options:
        bits |= KEEP_ALIVE
    if b"upgrade" in options:
        bits |= UPGRADE_OPTION
    if b"close" in options:
        bits &= ~KEEP_ALIVE
    if claimed:
        fields = [field for field in fields if field[0] not in claimed]
        known = {name: value for name, value in known.items() if name not in claimed}
    return bits, fields, known or NO_FIELDS


def _read_rare(head: RequestHead, bits: int, rare: Headers) -> ParsedRequest | ProxyError:
    """Apply the fields that most requests do not have: coding, connection, upgrade, te, expect, cookies."""
    shape = head.shape
    options: list[bytes] = []
    upgrade: list[bytes] = []
    key: bytes | None = None
    version = b""
    for name, value in rare:
        if name == b"transfer-encoding":
            # RFC 9112 §6.1: a length beside it, HTTP/1.0 or an unknown coding make the framing doubtful.
            if head.length is not None or bits & (HTTP_10 | CHUNKED):
                return bad_request("transfer-encoding beside another framing")
            codings = split_list(value)
            if codings != [b"chunked"]:
                known_last = codings[-1:] == [b"chunked"] and codings.count(b"chunked") == 1
                kind = Kind.NOT_IMPLEMENTED if known_last else Kind.BAD_REQUEST
                return bad_request("transfer-encoding is not chunked alone", kind)
            bits |= CHUNKED
        elif name == b"connection":
            options += split_list(value)
        elif name == b"upgrade":
            upgrade += split_list(value)
        elif name == b"te":
            shape.sends_te = shape.takes_trailers = b"trailers" in split_list(value)
        elif name == b"expect":
            if not bits & HTTP_10:
                shape.fields.append((name, value))
                shape.expects_continue = True
        elif name == b"sec-websocket-key":
            if key is not None:
                return bad_request("more than one sec-websocket-key")
            key = value
        elif name == b"sec-websocket-version":
            version = value
        elif name == b"cookie":
            kept, token = split_cookie(value)
            if kept:
                shape.fields.append((name, kept))
            if token and SESSION_COOKIE not in shape.known:
                shape.known = {**shape.known, SESSION_COOKIE: token}
    if options:
        bits, shape.fields, shape.known = _apply_connection(options, bits, shape.fields, shape.known)
    if b"websocket" in upgrade and bits & UPGRADE_OPTION and not bits & HTTP_10:
        return _read_handshake(head, bits, key, version)
    # Any other upgrade is an offer that a server may decline by ignoring it (RFC 9110 §7.8).
    return head, bits, b""


def _read_handshake(head: RequestHead, bits: int, key: bytes | None, version: bytes) -> ParsedRequest | ProxyError:
    """Check a WebSocket handshake (RFC 6455 §4.2.1) and turn it into the canonical extended CONNECT."""
    shape = head.shape
    if shape.method != b"GET" or head.length or bits & CHUNKED:
        return bad_request("a WebSocket handshake is a GET without a body")
    if version != b"13":
        return bad_request("sec-websocket-version is not 13", Kind.UPGRADE_UNSUPPORTED)
    if key is None or _WEBSOCKET_KEY.fullmatch(key) is None:
        return bad_request("sec-websocket-key is not 16 bytes in base64")
    shape.method = b"CONNECT"
    shape.upgrade = b"websocket"
    head.length = None
    return head, bits, key
