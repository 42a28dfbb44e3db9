"""Commit timestamps: RFC 3339 text on the wire, integer microseconds of the Unix epoch in here."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FORM = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
_MICROSECOND = dt.timedelta(microseconds=1)


def parse_timestamp(text: str) -> int:
    """Return microseconds; what is finer is cut. ValueError if it is not an RFC 3339 time in UTC."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a timestamp in UTC")
    # fromisoformat takes at most six digits of a fraction.
    seconds = dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC)
    return (seconds - _EPOCH) // _MICROSECOND + int(((found[2] or "") + "000000")[:6])


def format_timestamp(micros: int) -> str:
    """Return RFC 3339 text with six digits of a fraction."""
    at = (_EPOCH + dt.timedelta(microseconds=micros)).replace(tzinfo=None)
    return at.isoformat(timespec="microseconds") + "Z"


def to_micros(message: Any) -> int:
    """Return microseconds of a protobuf Timestamp."""
    return int(message.seconds) * 1_000_000 + int(message.nanos) // 1_000
