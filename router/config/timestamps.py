"""Commit timestamps: RFC 3339 text on the wire, integer microseconds of the Unix epoch in here."""

from __future__ import annotations

import datetime as dt
from typing import Any

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def parse_timestamp(text: str) -> int:
    """Return microseconds; what is finer is cut. ValueError if it is not an RFC 3339 time in UTC."""
    # 2026-11-20T12:34:56.123456789Z: fromisoformat takes at most six digits of a fraction.
    if len(text) < 20 or text[10] != "T" or text[-1] != "Z":
        raise ValueError(f"{text!r} is not a timestamp in UTC")
    fraction = text[20:-1] if text[19] == "." else ""
    seconds = dt.datetime.fromisoformat(text[:19]).replace(tzinfo=dt.UTC)
    return (seconds - _EPOCH) // _MICROSECOND + int((fraction + "000000")[:6])


def format_timestamp(micros: int) -> str:
    """Return RFC 3339 text with six digits of a fraction."""
    return (_EPOCH + dt.timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_micros(message: Any) -> int:
    """Return microseconds of a protobuf Timestamp."""
    return int(message.seconds) * 1_000_000 + int(message.nanos) // 1_000
