"""Compressed fields (RFC 7541): the decoder with its dynamic table, and literals to send.

What we send refers to no table but the static one: a block is then the same on every connection, so that it
can be made once for a shape, and no peer's table has to be followed. What a peer sends may use all of HPACK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.http import NO_NAMES
from router.transport.codec import huffman
from router.transport.codec.fields import SECRET_NAMES
from router.transport.codec.h2.limits import MAX_LIST_BYTES, MAX_TABLE_BYTES

if TYPE_CHECKING:
    from router.http import Field, Headers

ENTRY_BYTES: Final = 32  # what an entry counts beside its octets (RFC 7541 §4.1)
_MAX_INTEGER: Final = 1 << 24

# RFC 7541 Appendix A; index 0 is not used.
STATIC: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"", b""),
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"),
    (b":status", b"204"), (b":status", b"206"), (b":status", b"304"), (b":status", b"400"),
    (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""), (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""), (b"access-control-allow-origin", b""),
    (b"age", b""), (b"allow", b""), (b"authorization", b""), (b"cache-control", b""),
    (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""),
    (b"referer", b""), (b"refresh", b""), (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""),
    (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip
_STATIC_COUNT: Final = len(STATIC)


class HpackDecoder:
    """One direction of one connection. After an error the connection cannot be read on (RFC 9113 §4.3)."""

    __slots__ = ("_capacity", "_entries", "_pos", "_size", "changed", "error", "is_too_large", "never_indexed")

    def __init__(self) -> None:
        self._capacity = MAX_TABLE_BYTES
        self._entries: list[Field] = []  # the newest is last
        self._size = 0
        self._pos = 0
        self.error = ""
        # Of the block decoded last: whether it changed the table, whether its fields were more than
        # `MAX_LIST_BYTES` (then they are not all returned), and which names are not to be indexed.
        self.changed = False
        self.is_too_large = False
        self.never_indexed = NO_NAMES

    def decode(self, block: bytes) -> Headers:
        """Return the fields of a whole block; look at `error` first."""
        fields: Headers = []
        listed = 0
        never: set[bytes] | None = None
        self.changed = self.is_too_large = False
        self.never_indexed = NO_NAMES
        pos = 0
        size = len(block)
        while pos < size:
            first = block[pos]
            if first >= 0x80:  # indexed
                pos += 1
                index = first & 0x7F
                if index == 0x7F:
                    index = self._integer(block, pos, 0x7F)
                    pos = self._pos
                field = self._entry(index)
                if field is None:
                    return fields
            elif first & 0x40:  # literal, to be put in the table
                name = self._name(block, pos, first & 0x3F, 0x3F)
                value = self._string(block, self._pos)
                if name is None or value is None:
                    return fields
                pos = self._pos
                field = (name, value)
                self.changed = True
                self._add(field)
            elif first & 0x20:  # a new size of the table: only ahead of everything (RFC 7541 §4.2)
                capacity = self._integer(block, pos + 1, 0x1F) if first == 0x3F else first & 0x1F
                pos = self._pos if first == 0x3F else pos + 1
                if fields or capacity > MAX_TABLE_BYTES or self.error:
                    self.error = self.error or "a table size update is too large or out of place"
                    return fields
                self.changed = True
                self._capacity = capacity
                self._evict(0)
                continue
            else:  # literal, not to be put in ours; with 0x10 in nobody's
                name = self._name(block, pos, first & 0x0F, 0x0F)
                value = self._string(block, self._pos)
                if name is None or value is None:
                    return fields
                pos = self._pos
                field = (name, value)
                if first & 0x10 and not self.is_too_large:
                    if never is None:
                        never = set()
                    never.add(name)
            listed += len(field[0]) + len(field[1]) + ENTRY_BYTES
            if listed > MAX_LIST_BYTES:
                self.is_too_large = True  # read on all the same: the table must stay exact
            else:
                fields.append(field)
        if never is not None:
            self.never_indexed = frozenset(never)
        return fields

    def _entry(self, index: int) -> Field | None:
        if 0 < index < _STATIC_COUNT:
            return STATIC[index]
        at = len(self._entries) - (index - _STATIC_COUNT) - 1
        if index == 0 or at < 0 or self.error:
            self.error = self.error or "an index points to nothing"
            return None
        return self._entries[at]

    def _name(self, block: bytes, pos: int, index: int, mask: int) -> bytes | None:
        """Return a literal's name and leave `_pos` behind it."""
        pos += 1
        if not index:
            return self._string(block, pos)
        if index == mask:
            index = self._integer(block, pos, mask)
            pos = self._pos
        self._pos = pos
        field = self._entry(index)
        return None if field is None else field[0]

    def _string(self, block: bytes, pos: int) -> bytes | None:
        if self.error:
            return None
        if pos >= len(block):
            self.error = "a block ends within a field"
            return None
        first = block[pos]
        length = first & 0x7F
        pos += 1
        if length == 0x7F:
            length = self._integer(block, pos, 0x7F)
            pos = self._pos
        end = pos + length
        if end > len(block) or self.error:
            self.error = self.error or "a block ends within a string"
            return None
        self._pos = end
        if first < 0x80:
            return block[pos:end]
        text = huffman.decode(block[pos:end])
        if text is None:
            self.error = "a string's Huffman code is broken"
        return text

    def _integer(self, block: bytes, pos: int, value: int) -> int:
        """Read what follows a full prefix (RFC 7541 §5.1) and leave `_pos` behind it."""
        shift = 0
        size = len(block)
        while pos < size:
            byte = block[pos]
            pos += 1
            value += (byte & 0x7F) << shift
            if value > _MAX_INTEGER or shift > 28:
                break
            if byte < 0x80:
                self._pos = pos
                return value
            shift += 7
        self.error = "an integer is too large or not whole"
        self._pos = pos
        return 0

    def _add(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._evict(size)
        if size <= self._capacity:
            self._entries.append(field)
            self._size += size

    def _evict(self, room: int) -> None:
        """Take the oldest entries out until `room` more bytes fit, or none is left."""
        entries = self._entries
        gone = 0
        while gone < len(entries) and self._size + room > self._capacity:
            name, value = entries[gone]
            self._size -= len(name) + len(value) + ENTRY_BYTES
            gone += 1
        if gone:
            del entries[:gone]


# -- sending ------------------------------------------------------------------------------------------

_NAME_INDEX: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC))) if name}
_INDEXED: Final = {field: bytes((0x80 | index,)) for index, field in enumerate(STATIC) if field[1]}
MEMO_NAMES: Final = 1_024
_names: Final[dict[bytes, bytes]] = {}  # a literal's first part, up to its value


def write_field(field: Field, never: frozenset[bytes] = NO_NAMES) -> bytes:
    """Return one field as an index of the static table or a literal; `never` are names no table may keep."""
    name, value = field
    if name in SECRET_NAMES or name in never:
        lead = _lead(name, 0x10)
    else:
        indexed = _INDEXED.get(field)
        if indexed is not None:
            return indexed
        lead = _names.get(name) or _remember(name)
    size = len(value)
    return lead + (_LENGTHS[size] if size < 0x7F else _length(size)) + value


def write_fields(fields: Headers, never: frozenset[bytes] = NO_NAMES) -> bytes:
    """Return a block, or a part of one."""
    return b"".join([write_field(field, never) for field in fields])


def _remember(name: bytes) -> bytes:
    if len(_names) >= MEMO_NAMES:
        _names.clear()
    lead = _names[name] = _lead(name, 0x00)
    return lead


def _lead(name: bytes, pattern: int) -> bytes:
    index = _NAME_INDEX.get(name, 0)
    if not index:
        return bytes((pattern,)) + _length(len(name)) + name
    return bytes((pattern | index,)) if index < 0x0F else bytes((pattern | 0x0F, index - 0x0F))


def _length(size: int) -> bytes:
    """Return a string's length (RFC 7541 §5.2) without the Huffman bit."""
    if size < 0x7F:
        return bytes((size,))
    rest = size - 0x7F
    out = bytearray((0x7F,))
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_LENGTHS: Final = tuple(bytes((size,)) for size in range(0x7F))
