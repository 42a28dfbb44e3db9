"""The request that a robot asks its replica with: HELLO, and what a WebTransport session was asked for before it.

What HELLO leaves out is the CONNECT's. A page writes HELLO as it likes, but not the CONNECT's fields: what browsers
keep pages from saying (Fetch's forbidden names) is therefore believed of the CONNECT alone, where it came from a
browser. A HELLO for another authority gets no credentials that were meant for the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.http import Headers
    from router.transport.codec.robot.control import Hello
    from router.transport.codec.webtransport.host import Asked

_ORIGIN: Final = b"origin"
_FORBIDDEN: Final = frozenset((_ORIGIN, b"referer", b"cookie", b"host", b"via"))
_FORBIDDEN_PREFIXES: Final = (b"sec-", b"proxy-")


def make_request(hello: Hello, asked: Asked | None) -> tuple[bytes, bytes, Headers]:
    """Return authority, path and fields. Without `asked` HELLO names the authority."""
    said = [(name.lower().encode(), value.encode()) for name, value in hello.headers]
    authority, path = (hello.authority or "").encode(), hello.path.encode()
    if asked is None:
        return authority, path or b"/", said
    if any(name == _ORIGIN for name, _ in asked.fields):
        said = [field for field in said if not _is_forbidden(field[0])]
    names = {name for name, _ in said}
    is_same = not authority or authority.lower() == asked.authority
    kept = [field for field in asked.fields if field[0] == _ORIGIN or (is_same and field[0] not in names)]
    return authority or asked.authority, path or asked.path, kept + said


def _is_forbidden(name: bytes) -> bool:
    return name in _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES)
