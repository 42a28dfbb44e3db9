"""Timestamps: integers of microseconds since 1970 for commits, text for values, and the clock that issues them.

A TIMESTAMP value is kept as RFC 3339 text in UTC without its "Z" and without trailing zeros of the fraction
("2026-01-02T03:04:05.5"): in that form the order of texts is the order of times, down to nanoseconds, and the
wire's form is one "Z" away.

Invariant of `CommitClock`: every timestamp it issues is greater than all it promised before, `safe` promises that
no commit at or below it is still to come, and both hold across restarts and clocks that step back.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import TYPE_CHECKING, Final

from router.config.embedded.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Callable

US_PER_S: Final = 1_000_000
FOREVER: Final = 1 << 62  # the end of a row version that is still live
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US = dt.timedelta(microseconds=1)
_FORM = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[Tt ](\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d{0,9}))?)?"
    r"(?:([Zz])| ?([+-]\d{1,2})(?::?(\d{2}))?)?",
    re.ASCII,
)


def text_of_us(us: int) -> str:
    """Return the value text of a commit timestamp."""
    moment = _EPOCH + dt.timedelta(microseconds=us)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    if len(text) < 19:  # strftime does not pad years below 1000
        text = text.rjust(19, "0")
    micro = moment.microsecond
    return f"{text}.{micro:06d}".rstrip("0") if micro else text


def wire_of_us(us: int) -> str:
    """Return a commit timestamp as RFC 3339 with six digits, the form of change records and messages."""
    return (_EPOCH + dt.timedelta(microseconds=us)).isoformat(timespec="microseconds")[:26] + "Z"


def ns_of_text(text: str) -> int:
    """Return nanoseconds since 1970 of a value text."""
    whole = dt.datetime.fromisoformat(text[:19] + "+00:00")
    fraction = text[20:]
    return (whole - _EPOCH) // _US * 1000 + (int(fraction.ljust(9, "0")) if fraction else 0)


def text_of_ns(ns: int) -> str:
    """Return the value text of nanoseconds since 1970. ValueError outside of the years 1 to 9999."""
    seconds, nano = divmod(ns, 1_000_000_000)
    try:
        whole = text_of_us(seconds * US_PER_S)
    except OverflowError as error:
        raise ValueError("timestamp out of range") from error
    return f"{whole}.{nano:09d}".rstrip("0") if nano else whole


def parse(text: str) -> str:
    """Return the value text of a timestamp as SQL and the wire write it. ValueError if it is none.

    UTC is assumed where no offset stands; Spanner's default, America/Los_Angeles, would need a zone database, so
    callers refuse a literal without an offset before it comes here.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(f"not a timestamp: {text[:64]!r}")
    year, month, day, hour, minute, second, fraction, _, offset_h, offset_m = form.groups()
    at = dt.datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=dt.UTC
    )
    if offset_h is not None:
        shift = dt.timedelta(hours=int(offset_h), minutes=int(offset_h[0] + (offset_m or "0")))
        if abs(shift) > dt.timedelta(hours=14):
            raise ValueError(f"not an offset from UTC: {text[:64]!r}")
        try:
            at -= shift
        except OverflowError as error:
            raise ValueError(f"timestamp out of range: {text[:64]!r}") from error
    whole = at.isoformat()[:19]
    digits = (fraction or "").rstrip("0")
    return f"{whole}.{digits}" if digits else whole


def has_offset(text: str) -> bool:
    """Tell whether a timestamp says where on earth its clock stands."""
    form = _FORM.fullmatch(text)
    return form is not None and (form[8] is not None or form[9] is not None)


def parse_date(text: str) -> str:
    """Return YYYY-MM-DD. ValueError if it is none."""
    form = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})", text, re.ASCII)
    if form is None:
        raise ValueError(f"not a date: {text[:64]!r}")
    return dt.date(int(form[1]), int(form[2]), int(form[3])).isoformat()


def us_of_wire(text: str) -> int:
    """Return microseconds of a timestamp on the wire, cut to them. INVALID_ARGUMENT if it is none."""
    try:
        return ns_of_text(parse(text)) // 1000
    except ValueError as error:
        raise invalid(str(error)) from error


class CommitClock:
    """Issues commit and safe timestamps for one database.

    Nothing is issued above a bound that was stored before; after a crash the clock goes on from the bound, so it
    may run at most `RESERVE_US` ahead of the wall clock then. `store(bound)` must be durable when it returns, to
    the degree that commits are.
    """

    RESERVE_US: Final = 500_000

    def __init__(
        self, stored_us: int, store: Callable[[int], None], wall_us: Callable[[], int] | None = None
    ) -> None:
        self._last = stored_us
        self._bound = stored_us
        self._store = store
        self._wall_us = wall_us or (lambda: time.time_ns() // 1000)

    def next(self) -> int:
        """Return a commit timestamp: greater than every one that `next` or `safe` returned."""
        return self._issue(max(self._wall_us(), self._last + 1))

    def safe(self) -> int:
        """Return a timestamp that is now history: every later commit gets a greater one."""
        return self._issue(max(self._wall_us(), self._last))

    def last(self) -> int:
        """Return the greatest timestamp issued."""
        return self._last

    def raise_to(self, us: int) -> None:
        """Issue nothing at or below `us` from now on."""
        if us > self._last:
            self._issue(us)

    def settle(self) -> None:
        """Before a clean stop: store the last timestamp itself, so that the next start need not run ahead."""
        self._store(self._last)
        self._bound = self._last

    def _issue(self, us: int) -> int:
        if us > self._bound:
            self._bound = us + self.RESERVE_US
            self._store(self._bound)
        self._last = us
        return us
