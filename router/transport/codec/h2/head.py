"""Heads of HTTP/2 on their way out: the router's own form made field blocks (RFC 9113 §8).

What a shape makes is kept on it. Reading is `codec/head.py`, which HTTP/3 shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h2.hpack import write_field, write_fields

if TYPE_CHECKING:
    from router.http import Field, Headers, RequestHead, RequestShape, ResponseHead, ResponseShape

VERSION: Final = b"HTTP/2"
_SCHEME_BLOCKS: Final = {b"http": write_field((b":scheme", b"http")), b"https": write_field((b":scheme", b"https"))}
_TE: Final[Field] = (b"te", b"trailers")


def write_request(head: RequestHead, scheme: bytes, authority: bytes) -> bytes:
    """Return the head's block. `authority` stands in where the client named no host."""
    shape = head.shape
    # Pseudo-fields come first, in any order; only the scheme is the replica's and not the shape's.
    parts = [_SCHEME_BLOCKS[scheme], shape.h2_block or _write_request_shape(shape, authority)]
    if head.length is not None:
        parts.append(write_field((b"content-length", b"%d" % head.length)))
    parts += [write_field(field) for field in head.added]
    return b"".join(parts)


def _write_request_shape(shape: RequestShape, authority: bytes) -> bytes:
    fields: Headers = [
        (b":method", shape.method),
        (b":path", shape.path),
        (b":authority", shape.authority or authority),
    ]
    if shape.upgrade is not None:
        fields[0] = (b":method", b"CONNECT")
        fields += [(b":protocol", shape.upgrade), (b"sec-websocket-version", b"13")]
    if shape.sends_te:
        fields.append(_TE)
    block = write_fields(fields + shape.fields, shape.never_indexed)
    if shape.authority:  # else it names the replica, and another one may be next
        shape.h2_block = block
    return block


def write_response(head: ResponseHead) -> bytes:
    """Return the head's block."""
    shape = head.shape
    parts = [shape.h2_block or _write_response_shape(shape)]
    # RFC 9110 §8.6: 1xx and 204 have none; nghttp2 resets a stream for it.
    if head.length is not None and shape.status >= 200 and shape.status != 204 and not shape.accepts_tunnel:
        parts.append(write_field((b"content-length", b"%d" % head.length)))
    parts += [write_field(field) for field in head.added]
    return b"".join(parts)


def _write_response_shape(shape: ResponseShape) -> bytes:
    status: Field = (b":status", b"%d" % shape.status)
    block = shape.h2_block = write_field(status) + write_fields(shape.fields, shape.never_indexed)
    return block
