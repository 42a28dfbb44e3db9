"""GoogleSQL tokens, for DDL and queries: positions are kept, so that an error says where."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from router.config.embedded.errors import StoreError, invalid, unsupported
from router.config.embedded.limits import MAX_SQL_CHARS

TokenKind = Literal["name", "quoted", "string", "bytes", "int", "float", "param", "punct", "end"]

_TOKEN = re.compile(
    r"""(?P<space>(?:\s+|--[^\n]*(?:\n|$)|\#[^\n]*(?:\n|$)|/\*.*?\*/)+)
    |(?P<text>(?:[rR]?[bB]|[bB]?[rR])?(?:'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"
        |'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
    |(?P<quoted>`(?:[^`\\\n]|\\.)+`)
    |(?P<float>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    |(?P<int>0[xX][0-9a-fA-F]+|\d+)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<param>@[A-Za-z_]\w*)
    |(?P<punct><=|>=|<>|!=|\|\||=>|<<|>>|[-+*/(),;.=<>@{}\[\]?&|^~:%])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|x([0-9a-fA-F]{2})|X([0-9a-fA-F]{2})|([0-7]{3})"
    r"|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.|\n))"
)
_PLAIN = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

# Words that are no name without backquotes.
_WORDS = """
ALL AND ANY ARRAY AS ASC ASSERT_ROWS_MODIFIED AT BETWEEN BY CASE CAST COLLATE CONTAINS CREATE CROSS CUBE CURRENT
DEFAULT DEFINE DESC DISTINCT ELSE END ENUM ESCAPE EXCEPT EXCLUDE EXISTS EXTRACT FALSE FETCH FOLLOWING FOR FROM FULL
GROUP GROUPING GROUPS HASH HAVING IF IGNORE IN INNER INTERSECT INTERVAL INTO IS JOIN LATERAL LEFT LIKE LIMIT LOOKUP
MERGE NATURAL NEW NO NOT NULL NULLS OF ON OR ORDER OUTER OVER PARTITION PRECEDING PROTO RANGE RECURSIVE RESPECT
RIGHT ROLLUP ROWS SELECT SET SOME STRUCT TABLESAMPLE THEN TO TREAT TRUE UNBOUNDED UNION UNNEST USING WHEN WHERE
WINDOW WITH WITHIN
"""
RESERVED: Final = frozenset(_WORDS.split())


class Token(NamedTuple):
    """`text` as written, keywords matched by `upper`; `value` of a literal or an identifier without its quotes."""

    kind: TokenKind
    text: str
    upper: str
    value: str | bytes
    at: int


def tokenize(sql: str) -> list[Token]:
    """Return the tokens and one of kind "end". INVALID_ARGUMENT for what is no token."""
    if len(sql) > MAX_SQL_CHARS:
        raise invalid(f"Query string length of {len(sql)} exceeds maximum allowed length of {MAX_SQL_CHARS}")
    tokens: list[Token] = []
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            what = "Unclosed string literal" if sql[at] in "'\"`" else f"Illegal input character {sql[at]!r}"
            raise syntax(sql, at, what)
        kind, text = match.lastgroup, match[0]
        if kind == "text":
            tokens.append(_literal(sql, text, at))
        elif kind == "quoted":
            tokens.append(Token("quoted", text, "", text[1:-1].replace("\\`", "`"), at))
        elif kind == "name":
            tokens.append(Token("name", text, text.upper(), text, at))
        elif kind == "param":
            tokens.append(Token("param", text, "", text[1:].lower(), at))
        elif kind == "int":
            tokens.append(Token("int", text, text, text, at))
        elif kind == "float":
            tokens.append(Token("float", text, text, text, at))
        elif kind == "punct":
            tokens.append(Token("punct", text, text, text, at))
        at = match.end()
    tokens.append(Token("end", "", "", "", len(sql)))
    return tokens


def syntax(sql: str, at: int, what: str) -> StoreError:
    """Return the error of a statement that is not well formed at a position."""
    line = sql.count("\n", 0, at) + 1
    column = at - (sql.rfind("\n", 0, at) + 1) + 1
    return invalid(f"Syntax error: {what} [at {line}:{column}]")


def _literal(sql: str, text: str, at: int) -> Token:
    prefix = re.match(r"[rRbB]*", text)
    letters = prefix[0].lower() if prefix else ""
    body = text[len(letters) :]
    quote = 3 if body[:3] in {"'''", '"""'} else 1
    body = body[quote:-quote]
    is_bytes = "b" in letters
    if is_bytes and not body.isascii():
        raise unsupported("a bytes literal with characters outside of ASCII")
    if "r" not in letters and "\\" in body:
        body = _unescape(sql, body, at, is_bytes=is_bytes)
    if not is_bytes:
        return Token("string", text, "", body, at)
    return Token("bytes", text, "", body.encode("latin-1"), at)


def _unescape(sql: str, body: str, at: int, *, is_bytes: bool) -> str:
    def one(match: re.Match[str]) -> str:
        simple, hex1, hex2, octal, short, long, other = match.groups()
        if simple is not None:
            return _PLAIN.get(simple, simple)
        if hex1 or hex2 or octal:
            code = int(octal, 8) if octal else int(hex1 or hex2, 16)
            if code > 255 or (code > 127 and not is_bytes):
                raise syntax(sql, at, f"Illegal escape sequence {match[0]}")
            return chr(code)
        if other is not None or is_bytes:
            raise syntax(sql, at, f"Illegal escape sequence {match[0]}")
        code = int(short or long, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise syntax(sql, at, f"Illegal escape sequence {match[0]}")
        return chr(code)

    return _ESCAPE.sub(one, body)
