"""How a request shows its sticky session, and what the router answers on the paths of its own.

In this order: `Modal-Authorization: Bearer TOKEN`, `x-router-session`, `session_token` of the query, a cookie: a
link is a newer word than what a browser kept. Wherever it stood, the replica does not get to see it. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec

from router.errors import Kind, ProxyError, Source
from router.http import SESSION_COOKIE, Field, ResponseHead, ShownSession
from router.local_reply import bare_reply, json_reply

if TYPE_CHECKING:
    from router.http import RequestShape
    from router.routing.spec import StickySpec

START_PATH: Final = b"/_router/sessions/start"
TERMINATE_PATH: Final = b"/_router/sessions/terminate"
_PARAMETER: Final = b"session_token="
_BEARER: Final = b"bearer "
_IDLE_FIELDS: Final = (b"x-router-session-idle-timeout", b"modal-session-idle-timeout")
_NOT_LOCAL: Final = ProxyError(
    Kind.BAD_REQUEST, Source.DOWNSTREAM, detail="a path that begins with two slashes cannot be redirected to"
)


def shown_session(shape: RequestShape) -> ShownSession:
    """Return what a request shows; worked out once for all that look alike."""
    found = shape.shown_session
    if found is None:
        found = shape.shown_session = _look(shape)
    return found


def _look(shape: RequestShape) -> ShownSession:
    known = shape.known
    token = b""
    said = known.get(b"modal-authorization", b"")
    if said[: len(_BEARER)].lower() == _BEARER:
        token = said[len(_BEARER) :].strip()
    token = token or known.get(b"x-router-session", b"")
    path, in_query = _without_parameter(shape.path)
    is_query = not token and bool(in_query)
    changed = None
    if path != shape.path:
        changed = shape.changed(shape.fields, path)
        changed.authorization = shape.authorization
    token = token or in_query
    is_cookie = not token
    token = token or known.get(SESSION_COOKIE, b"")
    return ShownSession(token, path.partition(b"?")[0], changed, is_query=is_query, is_cookie=is_cookie)


def _without_parameter(path: bytes) -> tuple[bytes, bytes]:
    """Return the path without our parameter, and its value."""
    bare, _, query = path.partition(b"?")
    pairs = query.split(b"&")
    others = [pair for pair in pairs if not pair.startswith(_PARAMETER)]
    if len(others) == len(pairs):
        return path, b""
    values = [unquote_to_bytes(pair[len(_PARAMETER) :]) for pair in pairs if pair.startswith(_PARAMETER)]
    rest = b"&".join(others)
    return (bare + b"?" + rest if rest else bare), next(filter(None, values), b"")


def asked_idle_s(known: dict[bytes, bytes], sticky: StickySpec) -> int | ProxyError:
    """Return for how long a new session may be idle."""
    for name in _IDLE_FIELDS:
        text = known.get(name)
        if text is None:
            continue
        if text.isdigit() and len(text) <= 9 and 1 <= int(text) <= sticky.max_idle_timeout_s:
            return int(text)
        detail = f"{name.decode()} is not a number of seconds from 1 to {sticky.max_idle_timeout_s}"
        return ProxyError(Kind.BAD_REQUEST, Source.DOWNSTREAM, detail=detail)
    return sticky.idle_timeout_s


def started_reply(
    session_id: str, token: bytes, idle_s: int, replica: bytes, request_id: bytes
) -> tuple[ResponseHead, bytes]:
    """Return the answer to a start."""
    body = msgspec.json.encode({"session_id": session_id, "token": token.decode(), "idle_timeout_s": idle_s})
    head = json_reply(200, len(body), request_id)
    head.shape.fields.append((b"x-router-replica", replica))
    return head, body


def terminated_reply(session_id: str, request_id: bytes) -> tuple[ResponseHead, bytes]:
    """Return the answer to a terminate; a browser forgets its cookie."""
    body = msgspec.json.encode({"session_id": session_id})
    head = json_reply(200, len(body), request_id)
    head.shape.fields.append(_cookie(b"", b"; Max-Age=0"))
    return head, body


def redirect_reply(token: bytes, shape: RequestShape, request_id: bytes) -> ResponseHead | ProxyError:
    """Return the answer to a token in a query: the same place with it in a cookie, so that no link shows it on."""
    path = shape.path
    if path[1:2] in (b"/", b"\\"):  # to a browser that is another host
        return _NOT_LOCAL
    head = bare_reply(307, 0, request_id)
    head.shape.fields += [(b"location", path), _cookie(token, b""), (b"referrer-policy", b"no-referrer")]
    return head


def _cookie(token: bytes, more: bytes) -> Field:
    return (b"set-cookie", SESSION_COOKIE + b"=" + token + b"; Path=/; Secure; HttpOnly; SameSite=Lax" + more)
