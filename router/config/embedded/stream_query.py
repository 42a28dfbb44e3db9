"""The query that reads a change stream: SELECT ChangeRecord FROM READ_s(start, end, token, heartbeat[, options]).

Arguments are positional or named (`start_timestamp => @start`), each a parameter or a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import timestamps
from router.config.embedded.errors import invalid, unsupported
from router.config.embedded.lexer import Token, syntax, tokenize
from router.config.embedded.values import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Final = ("start_timestamp", "end_timestamp", "partition_token", "heartbeat_milliseconds", "read_options")


class StreamQuery(NamedTuple):
    """Timestamps in microseconds; `token` None asks for the partitions."""

    stream: str
    start: int | None
    end: int | None
    token: str | None
    heartbeat_ms: int | None


def is_stream_query(sql: str) -> bool:
    """Tell quickly whether a statement can be one."""
    return "READ_" in sql.upper()


def parse(sql: str, params: Mapping[str, Any]) -> StreamQuery | None:
    """Return the query, or None if it is another one. INVALID_ARGUMENT where it is not well formed."""
    tokens = tokenize(sql)
    if len(tokens) < 6 or tokens[0].upper != "SELECT" or tokens[2].upper != "FROM":
        return None
    if not (
        tokens[3].kind in {"name", "quoted"}
        and str(tokens[3].value).upper().startswith("READ_")
        and tokens[4].text == "("
    ):
        return None
    if tokens[1].upper != "CHANGERECORD" and tokens[1].text not in {"*", "`ChangeRecord`"}:
        raise unsupported("a change stream query that selects anything but ChangeRecord")
    values = {name.lower(): value for name, value in params.items()}
    arguments: dict[str, Any] = {}
    at = 5
    while tokens[at].text != ")":
        name = _NAMES[len(arguments)] if len(arguments) < len(_NAMES) else None
        if tokens[at].kind == "name" and tokens[at + 1].text == "=>":
            name = tokens[at].value if tokens[at].value in _NAMES else None  # type: ignore[assignment]
            at += 2
        if name is None or name in arguments:
            raise invalid(f"No matching signature for table-valued function {tokens[3].text}")
        arguments[name], at = _argument(sql, tokens, at, values)
        if tokens[at].text == ",":
            at += 1
        elif tokens[at].text != ")":
            raise syntax(sql, tokens[at].at, f'Expected "," or ")" but got {tokens[at].text or "end of statement"}')
    rest = tokens[at + 1 :]
    if rest and rest[0].text == ";":
        rest = rest[1:]
    if rest[0].kind != "end":
        raise unsupported("a change stream query with further clauses")
    if missing := [name for name in _NAMES[:4] if name not in arguments]:
        raise invalid(f"No matching signature for table-valued function {tokens[3].text}: {missing[0]} is missing")
    if arguments.get("read_options") not in (None, []):
        raise invalid("read_options must be NULL or empty.")
    token = arguments["partition_token"]
    heartbeat = arguments["heartbeat_milliseconds"]
    if token is not None and not isinstance(token, str):
        raise invalid("partition_token must be a STRING.")
    try:
        heartbeat_ms = None if heartbeat is None else int(heartbeat)
    except (TypeError, ValueError):
        raise invalid("heartbeat_milliseconds must be an INT64.") from None
    return StreamQuery(
        str(tokens[3].value)[5:],
        _moment(arguments["start_timestamp"], "start_timestamp"),
        _moment(arguments["end_timestamp"], "end_timestamp"),
        token,
        heartbeat_ms,
    )


def _argument(sql: str, tokens: list[Token], at: int, params: Mapping[str, Any]) -> tuple[Any, int]:
    token = tokens[at]
    if token.kind == "param":
        if token.value not in params:
            raise invalid(f"Incomplete query parameters {token.text[1:].lower()}")
        return plain(params[str(token.value)]), at + 1
    if token.upper == "NULL":
        return None, at + 1
    if token.kind == "int":
        return int(token.text, 0), at + 1
    if token.kind == "string":
        return token.value, at + 1
    if token.upper == "TIMESTAMP" and tokens[at + 1].kind == "string":
        return tokens[at + 1].value, at + 2
    raise syntax(sql, token.at, f"Unexpected {token.text or 'end of statement'}")


def _moment(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid(f"{name} must be a TIMESTAMP.")
    if not timestamps.has_offset(value):
        raise unsupported("a timestamp without an offset from UTC")
    return timestamps.us_of_wire(value)
