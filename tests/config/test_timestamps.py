"""Commit timestamps: RFC 3339 text on the wire, microseconds in here."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from router.config.timestamps import format_timestamp, parse_timestamp, to_micros

FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999, as Spanner's


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T00:00:00.5Z", 500_000),
        ("1970-01-01T00:00:01.123456789Z", 1_123_456),
        ("1970-01-01T00:00:01.1234567Z", 1_123_456),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2026-11-20T12:34:56.000000Z", 1_795_178_096_000_000),
        ("9999-12-31T23:59:59.999999999Z", LAST),
        ("0001-01-01T00:00:00Z", FIRST),
    ],
)
def test_texts_are_microseconds_and_what_is_finer_is_cut(text, micros):
    assert parse_timestamp(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        "", "Z", "now", "2026-11-20", "2026-11-20T12:34:56", "2026-11-20 12:34:56Z", "2026-11-20T12:34:56+00:00",
        "2026-11-20T12:34:56+01:00Z", "2026-11-20T12:34+01:00Z", "2026-11-20T12:34:56,5Z", "2026-11-20T12:34:56 5Z",
        "2026-11-20T12:34:56.Z", "2026-11-20T12:34:56.-5Z", "2026-11-20T12:34:56.+5Z", "2026-11-20T12:34:56. 5Z",
        "2026-11-20T12:34:56.1_0Z", "2026-11-20T12:34:56.\u0663Z", "2026-11-20T12:34:56.12x456Z",
        "2026-13-20T12:34:56Z", "2026-11-31T12:34:56Z", "2026-11-20T24:34:56Z", "2026-11-20T12:60:56Z",
        "2026-11-20T12:34:5\u0663Z", "20261120T12:34:56.0Z", "2026-W47-5T12:34:56Z", "2026-11-20T12:34:56zZ",
        "\n2026-11-20T12:34:56Z", "2026-11-20T12:34:56Z\n", "spanner.commit_timestamp()",
    ],
)  # fmt: skip
def test_what_is_no_time_in_utc_is_refused(text):
    with pytest.raises(ValueError):
        parse_timestamp(text)


@given(st.integers(FIRST, LAST))
def test_text_and_back(micros):
    text = format_timestamp(micros)
    assert len(text) == 27
    assert parse_timestamp(text) == micros


@given(st.text(max_size=32))
def test_any_text_is_a_time_or_a_value_error(text):
    try:
        found = parse_timestamp(text)
    except ValueError:
        return
    assert isinstance(found, int)


@given(st.integers(FIRST, LAST))
def test_protobufs_have_seconds_and_nanoseconds(micros):
    seconds, rest = divmod(micros, 1_000_000)
    assert to_micros(Timestamp(seconds=seconds, nanos=rest * 1_000 + 999)) == micros
