"""Heads of HTTP/3 on their way out: the router's own form made field sections (RFC 9114 §4.3).

What a shape makes is kept on it, prefix included; fields that differ follow. Reading is `codec/head.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h3 import frames
from router.transport.codec.h3.qpack import PREFIX, write_field, write_fields

if TYPE_CHECKING:
    from router.http import Headers, ResponseHead, ResponseShape

VERSION: Final = b"HTTP/3"


def write_response(head: ResponseHead) -> bytes:
    """Return the HEADERS frame of a response."""
    shape = head.shape
    parts = [shape.h3_block or _write_shape(shape)]
    # RFC 9110 §8.6: 1xx and 204 have none.
    if head.length is not None and shape.status >= 200 and shape.status != 204 and not shape.accepts_tunnel:
        parts.append(write_field((b"content-length", b"%d" % head.length)))
    parts += [write_field(field) for field in head.added]
    return frames.frame(frames.HEADERS, b"".join(parts))


def write_trailers(trailers: Headers) -> bytes:
    """Return the HEADERS frame of a trailer section."""
    return frames.frame(frames.HEADERS, PREFIX + write_fields(trailers))


def _write_shape(shape: ResponseShape) -> bytes:
    status = write_field((b":status", b"%d" % shape.status))
    block = shape.h3_block = PREFIX + status + write_fields(shape.fields, shape.never_indexed)
    return block
