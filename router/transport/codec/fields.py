"""What a field means in HTTP/2 and HTTP/3, by role, with a memo of those judged (RFC 9113 §8.2, §8.3, RFC 9114 §4).

HTTP/1.1 has a judge of its own: there a line is cut and its case ignored, here connection fields and capital
letters make the message malformed.
"""

from __future__ import annotations

from typing import Final

from router.http import FORBIDDEN_TRAILERS, KNOWN_REQUEST, KNOWN_RESPONSE, Field
from router.transport.codec.grammar import LOWER_NAME, NOT_REMEMBERED, VALUE

MEMO_FIELDS: Final = 4_096
MEMO_FIELD_BYTES: Final = 256

PLAIN: Final = 0  # forwarded as it is
KNOWN: Final = 1  # handed over by name: the router reads or rewrites it
DROP: Final = 2
METHOD: Final = 3
SCHEME: Final = 4
PATH: Final = 5
AUTHORITY: Final = 6
PROTOCOL: Final = 7
STATUS: Final = 8
HOST: Final = 9
LENGTH: Final = 10
TE: Final = 11
COOKIE: Final = 12
EXPECT: Final = 13
AUTHORIZATION: Final = 14
CONTENT_TYPE: Final = 15
WEBSOCKET_VERSION: Final = 16
GRPC_STATUS: Final = 17
FAULT: Final = 18  # makes the message malformed

# About one connection, which they say in other ways (RFC 9113 §8.2.2).
_CONNECTION = dict.fromkeys(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"), FAULT
)
REQUEST_MARKS: dict[bytes, int] = (
    dict.fromkeys(KNOWN_REQUEST, KNOWN)
    | _CONNECTION
    | {
        b":method": METHOD,
        b":scheme": SCHEME,
        b":path": PATH,
        b":authority": AUTHORITY,
        b":protocol": PROTOCOL,
        b"host": HOST,
        b"content-length": LENGTH,
        b"te": TE,
        b"trailer": DROP,
        b"http2-settings": DROP,
        b"cookie": COOKIE,
        b"expect": EXPECT,
        b"authorization": AUTHORIZATION,
        b"content-type": CONTENT_TYPE,
        b"sec-websocket-key": KNOWN,  # RFC 8441 has none; Envoy passes on what HTTP/1.1 said
        b"sec-websocket-version": WEBSOCKET_VERSION,
    }
)
RESPONSE_MARKS: dict[bytes, int] = (
    dict.fromkeys(KNOWN_RESPONSE, KNOWN)
    | _CONNECTION
    | {
        b":status": STATUS,
        b"content-length": LENGTH,
        b"content-type": CONTENT_TYPE,
        b"grpc-status": GRPC_STATUS,
        b"te": DROP,
        b"trailer": DROP,
        b"sec-websocket-accept": DROP,
    }
)
# A client's trailers must not say what belongs into a head: credentials, who forwarded it, its framing. A replica's
# must not frame, nor speak for the router; anything else is the application's: gRPC's status and metadata.
REQUEST_TRAILER_MARKS: dict[bytes, int] = dict.fromkeys(FORBIDDEN_TRAILERS, DROP) | _CONNECTION
RESPONSE_TRAILER_MARKS: dict[bytes, int] = (
    dict.fromkeys([name for name in KNOWN_RESPONSE if name.startswith(b"x-router-")], DROP)
    | dict.fromkeys((b"host", b"content-length", b"te", b"trailer"), DROP)
    | _CONNECTION
)

Entry = tuple[int, Field]

# Never to be put in a table on the way (RFC 7541 §7.1.3, RFC 9204 §7.1.3), whatever the sender thought.
SECRET_NAMES: Final = frozenset(
    (b"authorization", b"cookie", b"modal-key", b"modal-secret", b"proxy-authorization", b"set-cookie",
     b"x-router-key", b"x-router-secret")
)  # fmt: skip


class FieldJudge:
    """Judges fields for one role, by its table of marks."""

    __slots__ = ("_marks", "memo")

    def __init__(self, marks: dict[bytes, int]) -> None:
        self._marks = marks
        self.memo: dict[Field, int] = {}

    def judge(self, field: Field) -> int:
        """Return the mark of a field that is not in the memo."""
        name, value = field
        mark = self._marks.get(name, PLAIN)
        # Every pseudo-field that exists is in the table; the colon is no letter of a name.
        if (not name.startswith(b":") or mark == PLAIN) and LOWER_NAME.fullmatch(name) is None:
            return FAULT
        if VALUE.fullmatch(value) is None:
            return FAULT
        if len(name) + len(value) <= MEMO_FIELD_BYTES and name not in NOT_REMEMBERED:
            if len(self.memo) >= MEMO_FIELDS:
                self.memo.clear()
            self.memo[field] = mark
        return mark


REQUEST_FIELDS: Final = FieldJudge(REQUEST_MARKS)
RESPONSE_FIELDS: Final = FieldJudge(RESPONSE_MARKS)
REQUEST_TRAILERS: Final = FieldJudge(REQUEST_TRAILER_MARKS)
RESPONSE_TRAILERS: Final = FieldJudge(RESPONSE_TRAILER_MARKS)
