"""Field sections (RFC 9204) that need no dynamic table: we announce a capacity of 0, and use none of a peer's.

So a section stands for itself, whatever came before: it can be remembered by its bytes, is the same on every
connection, and no stream ever waits for another. Whatever refers to a dynamic table is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.http import NO_NAMES
from router.transport.codec import huffman
from router.transport.codec.fields import SECRET_NAMES
from router.transport.codec.h3.limits import MAX_LIST_BYTES

if TYPE_CHECKING:
    from router.http import Field, Headers

ENTRY_BYTES: Final = 32  # what a field counts beside its octets (RFC 9114 §4.2.2)
PREFIX: Final = b"\0\0"  # no insert is required, no base (RFC 9204 §4.5.1)
_MAX_INTEGER: Final = (1 << 62) - 1  # RFC 9204 §4.1.1

# RFC 9204 Appendix A.
STATIC: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b":authority", b""), (b":path", b"/"), (b"age", b"0"), (b"content-disposition", b""),
    (b"content-length", b"0"), (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"last-modified", b""), (b"link", b""), (b"location", b""), (b"referer", b""), (b"set-cookie", b""),
    (b":method", b"CONNECT"), (b":method", b"DELETE"), (b":method", b"GET"), (b":method", b"HEAD"),
    (b":method", b"OPTIONS"), (b":method", b"POST"), (b":method", b"PUT"), (b":scheme", b"http"),
    (b":scheme", b"https"), (b":status", b"103"), (b":status", b"200"), (b":status", b"304"), (b":status", b"404"),
    (b":status", b"503"), (b"accept", b"*/*"), (b"accept", b"application/dns-message"),
    (b"accept-encoding", b"gzip, deflate, br"), (b"accept-ranges", b"bytes"),
    (b"access-control-allow-headers", b"cache-control"), (b"access-control-allow-headers", b"content-type"),
    (b"access-control-allow-origin", b"*"), (b"cache-control", b"max-age=0"),
    (b"cache-control", b"max-age=2592000"),
    (b"cache-control", b"max-age=604800"), (b"cache-control", b"no-cache"), (b"cache-control", b"no-store"),
    (b"cache-control", b"public, max-age=31536000"), (b"content-encoding", b"br"), (b"content-encoding", b"gzip"),
    (b"content-type", b"application/dns-message"), (b"content-type", b"application/javascript"),
    (b"content-type", b"application/json"), (b"content-type", b"application/x-www-form-urlencoded"),
    (b"content-type", b"image/gif"), (b"content-type", b"image/jpeg"), (b"content-type", b"image/png"),
    (b"content-type", b"text/css"), (b"content-type", b"text/html; charset=utf-8"),
    (b"content-type", b"text/plain"), (b"content-type", b"text/plain;charset=utf-8"), (b"range", b"bytes=0-"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"strict-transport-security", b"max-age=31536000; includesubdomains"),
    (b"strict-transport-security", b"max-age=31536000; includesubdomains; preload"), (b"vary", b"accept-encoding"),
    (b"vary", b"origin"), (b"x-content-type-options", b"nosniff"), (b"x-xss-protection", b"1; mode=block"),
    (b":status", b"100"), (b":status", b"204"), (b":status", b"206"), (b":status", b"302"), (b":status", b"400"),
    (b":status", b"403"), (b":status", b"421"), (b":status", b"425"), (b":status", b"500"),
    (b"accept-language", b""), (b"access-control-allow-credentials", b"FALSE"),
    (b"access-control-allow-credentials", b"TRUE"), (b"access-control-allow-headers", b"*"),
    (b"access-control-allow-methods", b"get"), (b"access-control-allow-methods", b"get, post, options"),
    (b"access-control-allow-methods", b"options"), (b"access-control-expose-headers", b"content-length"),
    (b"access-control-request-headers", b"content-type"), (b"access-control-request-method", b"get"),
    (b"access-control-request-method", b"post"), (b"alt-svc", b"clear"), (b"authorization", b""),
    (b"content-security-policy", b"script-src 'none'; object-src 'none'; base-uri 'none'"), (b"early-data", b"1"),
    (b"expect-ct", b""), (b"forwarded", b""), (b"if-range", b""), (b"origin", b""), (b"purpose", b"prefetch"),
    (b"server", b""), (b"timing-allow-origin", b"*"), (b"upgrade-insecure-requests", b"1"), (b"user-agent", b""),
    (b"x-forwarded-for", b""), (b"x-frame-options", b"deny"), (b"x-frame-options", b"sameorigin"),
)  # fmt: skip
_STATIC_COUNT: Final = len(STATIC)
_DYNAMIC: Final = "a dynamic table is referred to"


class QpackDecoder:
    """Reads one section after another; keeps nothing between them but what it says of the last."""

    __slots__ = ("_pos", "error", "is_too_large", "never_indexed")

    def __init__(self) -> None:
        self._pos = 0
        self.error = ""
        # Of the section read last: whether its fields are more than `MAX_LIST_BYTES` (then the rest was not looked
        # at), and which names are not to be put in a table.
        self.is_too_large = False
        self.never_indexed = NO_NAMES

    def decode(self, block: bytes) -> Headers:
        """Return the fields of a whole section; look at `error` first."""
        fields: Headers = []
        self.error = ""
        self.is_too_large = False
        self.never_indexed = NO_NAMES
        pos = 2
        if block[:2] != PREFIX:
            if not self._read_prefix(block):
                return fields
            pos = self._pos
        listed = 0
        never: set[bytes] | None = None
        size = len(block)
        while pos < size:
            first = block[pos]
            if first >= 0x80:  # indexed, RFC 9204 §4.5.2
                index = first & 0x3F
                pos += 1
                if index == 0x3F:
                    index = self._integer(block, pos, 0x3F)
                    pos = self._pos
                if not first & 0x40 or index >= _STATIC_COUNT or self.error:
                    self._fail(_DYNAMIC if not first & 0x40 else "an index points to nothing")
                    return fields
                field = STATIC[index]
            else:
                name = self._name(block, pos, first)
                value = self._string(block, self._pos, 0x7F)
                if name is None or value is None:
                    return fields
                pos = self._pos
                field = (name, value)
                if first & (0x20 if first & 0x40 else 0x10):  # "N", RFC 9204 §7.1.3
                    if never is None:
                        never = set()
                    never.add(name)
            listed += len(field[0]) + len(field[1]) + ENTRY_BYTES
            if listed > MAX_LIST_BYTES:
                self.is_too_large = True
                break  # nothing of later sections depends on the rest
            fields.append(field)
        if never is not None:
            self.never_indexed = frozenset(never)
        return fields

    def _read_prefix(self, block: bytes) -> bool:
        """Read a prefix in another form than the usual (RFC 9204 §4.5.1); leave `_pos` behind it."""
        if len(block) < 2:
            self._fail("a section without its prefix")
            return False
        if block[0]:
            self._fail(_DYNAMIC)
            return False
        if block[1] & 0x80:  # a base below nothing, RFC 9204 §4.5.1.2
            self._fail("the base is negative")
            return False
        self._pos = 2
        if block[1] == 0x7F:
            self._integer(block, 2, 0x7F)
        return not self.error

    def _name(self, block: bytes, pos: int, first: int) -> bytes | None:
        """Return the name of a literal field line and leave `_pos` behind it (RFC 9204 §4.5.4 to §4.5.6)."""
        if first & 0x40:
            index = first & 0x0F
            self._pos = pos + 1
            if index == 0x0F:
                index = self._integer(block, pos + 1, 0x0F)
            if not first & 0x10 or index >= _STATIC_COUNT or self.error:
                self._fail(_DYNAMIC if not first & 0x10 else "an index points to nothing")
                return None
            return STATIC[index][0]
        if first & 0x20:
            return self._string(block, pos, 0x07)
        self._fail(_DYNAMIC)  # post-base
        return None

    def _string(self, block: bytes, pos: int, mask: int) -> bytes | None:
        """Return a string whose length has a prefix of `mask`, with the Huffman bit above it (RFC 9204 §4.1.2)."""
        if self.error:
            return None
        if pos >= len(block):
            self._fail("a section ends within a field")
            return None
        first = block[pos]
        length = first & mask
        pos += 1
        if length == mask:
            length = self._integer(block, pos, mask)
            pos = self._pos
        end = pos + length
        if end > len(block) or self.error:
            self._fail("a section ends within a string")
            return None
        self._pos = end
        if not first & (mask + 1):
            return block[pos:end]
        text = huffman.decode(block[pos:end])
        if text is None:
            self._fail("a string's Huffman code is broken")
        return text

    def _integer(self, block: bytes, pos: int, value: int) -> int:
        """Read what follows a full prefix (RFC 7541 §5.1) and leave `_pos` behind it."""
        shift = 0
        size = len(block)
        while pos < size:
            byte = block[pos]
            pos += 1
            if shift > 56:
                break
            value += (byte & 0x7F) << shift
            if byte < 0x80:
                self._pos = pos
                if value > _MAX_INTEGER:
                    break
                return value
            shift += 7
        self._fail("an integer is too large or not whole")
        self._pos = pos
        return 0

    def _fail(self, why: str) -> None:
        if not self.error:
            self.error = why


# -- sending ------------------------------------------------------------------------------------------


def _prefixed(pattern: int, mask: int, value: int) -> bytes:
    """Return an integer behind the bits of `pattern` (RFC 7541 §5.1)."""
    if value < mask:
        return bytes((pattern | value,))
    out = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_NAME_INDEX: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC)))}
_INDEXED: Final = {field: _prefixed(0xC0, 0x3F, index) for index, field in enumerate(STATIC)}
_LENGTHS: Final = tuple(bytes((size,)) for size in range(0x7F))
MEMO_NAMES: Final = 1_024
_names: Final[dict[bytes, bytes]] = {}  # a literal's first part, up to its value


def write_field(field: Field, never: frozenset[bytes] = NO_NAMES) -> bytes:
    """Return one field line: static, or literal; `never` are names no table may keep."""
    name, value = field
    if name in SECRET_NAMES or name in never:
        lead = _lead(name, never=True)
    else:
        indexed = _INDEXED.get(field)
        if indexed is not None:
            return indexed
        lead = _names.get(name) or _remember(name)
    size = len(value)
    return lead + (_LENGTHS[size] if size < 0x7F else _prefixed(0, 0x7F, size)) + value


def write_fields(fields: Headers, never: frozenset[bytes] = NO_NAMES) -> bytes:
    """Return a section without its prefix, or a part of one."""
    return b"".join([write_field(field, never) for field in fields])


def _remember(name: bytes) -> bytes:
    if len(_names) >= MEMO_NAMES:
        _names.clear()
    lead = _names[name] = _lead(name, never=False)
    return lead


def _lead(name: bytes, *, never: bool) -> bytes:
    index = _NAME_INDEX.get(name, -1)
    if index >= 0:
        return _prefixed(0x70 if never else 0x50, 0x0F, index)
    return _prefixed(0x30 if never else 0x20, 0x07, len(name)) + name
