"""One field line of HTTP/1.1, both ways, with a memo.

Clients repeat the same lines on every request, so a line already judged costs one dictionary look-up
instead of a regular expression. The memos are bounded and hold no line whose name says it is secret or
unique; `memo` holds whole heads, secrets too. Writing one costs less than looking it up would.
Grammar: RFC 9110 §5, RFC 9112 §5.
"""

from __future__ import annotations

import re
from typing import Final

from router.http import HOP_BY_HOP, KNOWN_REQUEST, KNOWN_RESPONSE, Field, Headers
from router.transport.codec.grammar import AUTHORITY, NOT_REMEMBERED

MEMO_LINES: Final = 4_096
MEMO_LINE_BYTES: Final = 256  # 4,096 x 256 B: at most a few MB a worker, whatever a client sends


# What a codec does with a field. Plain integers: an enum member costs 0.1 us to read on Python 3.11.
PLAIN: Final = 0  # forwarded as it is
KNOWN: Final = 1  # handed over by name: the router reads or rewrites it
DROP: Final = 2  # hop-by-hop without meaning here
HOST: Final = 3
LENGTH: Final = 4
CODING: Final = 5
CONNECTION: Final = 6
UPGRADE: Final = 7
TE: Final = 8
CONTENT_TYPE: Final = 9
WEBSOCKET_KEY: Final = 10
WEBSOCKET_VERSION: Final = 11
WEBSOCKET_ACCEPT: Final = 12
EXPECT: Final = 13
AUTHORIZATION: Final = 14
COOKIE: Final = 15

Entry = tuple[int, Field]

_FRAMING = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"te": TE,
}
REQUEST_MARKS: dict[bytes, int] = (
    dict.fromkeys(HOP_BY_HOP, DROP)
    | dict.fromkeys(KNOWN_REQUEST, KNOWN)
    | _FRAMING
    | {
        b"http2-settings": DROP,  # only of use to `Upgrade: h2c`, which is refused
        b"sec-websocket-key": WEBSOCKET_KEY,
        b"sec-websocket-version": WEBSOCKET_VERSION,
        b"expect": EXPECT,
        b"authorization": AUTHORIZATION,
        b"cookie": COOKIE,
    }
)
RESPONSE_MARKS: dict[bytes, int] = (
    dict.fromkeys(HOP_BY_HOP, DROP)
    | dict.fromkeys(KNOWN_RESPONSE, KNOWN)
    | _FRAMING
    | {
        b"host": PLAIN,
        b"te": DROP,
        b"content-type": CONTENT_TYPE,
        b"sec-websocket-accept": WEBSOCKET_ACCEPT,
    }
)

# field-name ":" OWS field-value OWS. The value has no control characters but tab, which excludes bare CR,
# bare LF and NUL; a name is a token, which excludes white space before the colon and obs-fold (RFC 9112
# §5.1, §5.2). Values are bounded by the head's cap, and the expression cannot backtrack over them.
_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*|)", re.DOTALL
)


class FieldReader:
    """Judges field lines for one role, by its table of marks."""

    __slots__ = ("_marks", "memo")

    def __init__(self, marks: dict[bytes, int]) -> None:
        self._marks = marks
        self.memo: dict[bytes, Entry] = {}

    def read(self, line: bytes) -> Entry | None:
        """Return (mark, (name, value)) for a line that is not in the memo; None if it is malformed."""
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        mark = self._marks.get(name, PLAIN)
        value = match[2].rstrip(b" \t")
        if mark == HOST:
            value = value.lower()
            if AUTHORITY.fullmatch(value) is None:
                return None
        entry = (mark, (name, value))
        if len(line) <= MEMO_LINE_BYTES and name not in NOT_REMEMBERED:
            if len(self.memo) >= MEMO_LINES:
                self.memo.clear()
            self.memo[line] = entry
        return entry


REQUEST_FIELDS: Final = FieldReader(REQUEST_MARKS)
RESPONSE_FIELDS: Final = FieldReader(RESPONSE_MARKS)


def write_lines(fields: Headers) -> list[bytes]:
    """Return each field's line with its CRLF. Neither part can hold a line break: parsers see to that."""
    return [b"%b: %b\r\n" % (name, value) for name, value in fields]
