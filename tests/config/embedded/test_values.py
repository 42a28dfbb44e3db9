"""Values, keys, timestamps: the three forms of a value, and an order of bytes that is Spanner's order."""

import json
import math

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from router.config.embedded import keys, timestamps, values
from router.config.embedded.catalog import KeyPart
from router.config.embedded.datatypes import SCALARS, Type, array_of
from router.config.embedded.errors import StoreError
from router.config.embedded.messages import PartialResultSet

INTS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.integers(-62_135_596_800_000_000_000, 253_402_300_799_999_999_999), st.integers(-62_135_596_800_000_000_000, 253_402_300_799_999_999_999))
def test_text_of_timestamps_sorts_as_the_times(a, b):
    x, y = timestamps.text_of_ns(a), timestamps.text_of_ns(b)
    assert (x < y) == (a < b)
    assert timestamps.ns_of_text(x) == a
    assert timestamps.parse(x + "Z") == x


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05"),
        ("2026-01-02T03:04:05.120Z", "2026-01-02T03:04:05.12"),
        ("2026-01-02 03:04:05+02:00", "2026-01-02T01:04:05"),
        ("2026-1-2 3:4:5.000000001-0330", "2026-01-02T06:34:05.000000001"),
        ("2026-01-02", "2026-01-02T00:00:00"),
    ],
)
def test_timestamps_as_they_are_written(written, kept):
    assert timestamps.parse(written) == kept


@pytest.mark.parametrize("text", ["", "x", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "0000-01-01T00:00:00Z", "2026-01-01T00:00:00+99:00", "2026-01-01T00:00:00Z\n", "٢026-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"])
def test_no_timestamps(text):
    with pytest.raises(ValueError):
        timestamps.parse(text)


class Stored:
    def __init__(self):
        self.value = 0

    def __call__(self, bound):
        assert bound >= self.value
        self.value = bound


@given(st.lists(st.tuples(st.sampled_from(["next", "safe", "crash", "stop"]), st.integers(-10_000_000, 10_000_000)), max_size=40))
def test_the_clock_never_goes_back_whatever_the_wall_does(steps):
    wall, stored, last = 10**15, Stored(), 0
    make = lambda: timestamps.CommitClock(stored.value, stored, lambda: wall)  # noqa: E731
    clock = make()
    for what, shift in steps:
        wall += shift
        if what == "next":
            issued = clock.next()
            assert issued > last
            last = issued
        elif what == "safe":
            issued = clock.safe()
            assert issued >= last
            last = issued
        else:
            if what == "stop":
                stored.value = clock.last()  # settle may lower the bound to what was issued
            clock = make()
    assert clock.next() > last


PARTS = {"INT64": INTS, "STRING": TEXTS, "BYTES": st.binary(max_size=8), "BOOL": st.integers(0, 1), "FLOAT64": st.floats(allow_nan=False)}


@given(st.data())
def test_keys_sort_as_their_values(data):
    kinds = data.draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3))
    parts = [KeyPart(f"c{at}", SCALARS[kind], data.draw(st.booleans())) for at, kind in enumerate(kinds)]
    one, two = ([data.draw(st.none() | PARTS[kind]) for kind in kinds] for _ in range(2))

    def before(x, y):
        for part, a, b in zip(parts, x, y, strict=True):
            if a == b:
                continue
            less = a is None or (b is not None and (a < b))
            return less is not part.descending
        return False

    a, b = keys.encode(parts, one), keys.encode(parts, two)
    assert (a < b) == before(one, two)
    for length in range(len(parts)):
        prefix = keys.encode(parts[:length], one[:length])
        assert prefix <= a < keys.end_of(prefix) <= keys.LAST


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3)), max_size=6), st.binary(max_size=3))
def test_merged_ranges_hold_the_same_keys_once(ranges, key):
    merged = keys.merged(ranges)
    assert keys.overlaps(merged, key) == keys.overlaps(ranges, key)
    assert all(a[1] < b[0] for a, b in zip(merged, merged[1:], strict=False))


def wire(value):
    message = struct_pb2.ListValue()
    message.extend([value])
    return message.values[0]


@pytest.mark.parametrize(
    ("type_", "sent", "kept"),
    [
        (SCALARS["INT64"], "-9223372036854775808", -(1 << 63)),
        (SCALARS["BOOL"], True, 1),
        (SCALARS["FLOAT64"], 1.5, 1.5),
        (SCALARS["FLOAT64"], "NaN", "NaN"),
        (SCALARS["FLOAT64"], "-Infinity", -math.inf),
        (SCALARS["STRING"], "a\0é", "a\0é"),
        (SCALARS["BYTES"], "AP8=", b"\0\xff"),
        (SCALARS["TIMESTAMP"], "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.5"),
        (SCALARS["DATE"], "2026-02-28", "2026-02-28"),
        (SCALARS["JSON"], '{"b": 1, "a": [1.50, null], "b": 2}', '{"a":[1.5,null],"b":1}'),
        (array_of(SCALARS["INT64"]), ["1", None], '["1",null]'),
        (array_of(SCALARS["FLOAT64"]), [1.0, "Infinity"], '[1.0,"Infinity"]'),
        (array_of(SCALARS["TIMESTAMP"]), ["2026-01-01T00:00:00Z"], '["2026-01-01T00:00:00Z"]'),
        (array_of(Type("BYTES", None, 2)), ["AP8="], '["AP8="]'),
    ],
)
def test_a_value_comes_back_as_it_was_sent(type_, sent, kept):
    plain = values.plain(wire(sent))
    assert values.decoder(type_)(plain) == kept
    back = PartialResultSet.FromString(values.encoder(type_)(kept)).values[0]
    if type_.kind != "JSON":
        assert values.plain(back) == sent
    json.dumps(values.in_record(type_, kept))
    assert values.plain(PartialResultSet.FromString(values.encoder(type_)(None)).values[0]) is None


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("INT64", 1.0), ("INT64", "1.0"), ("INT64", "9223372036854775808"), ("INT64", "1_0"), ("INT64", " 1"), ("INT64", "٣"),
        ("BOOL", "true"), ("FLOAT64", "1.5"), ("FLOAT64", "inf"), ("STRING", 1.0), ("BYTES", "a"), ("BYTES", "é"),
        ("TIMESTAMP", "2026-01-01T00:00:00"), ("TIMESTAMP", "soon"), ("DATE", "2026-02-30"), ("DATE", "2026-02-03T00:00:00Z"),
        ("JSON", "{"), ("JSON", "NaN"), ("JSON", "[1e999]"), ("JSON", '"\\ud800"'), ("JSON", "[" * 81 + "]" * 81), ("JSON", "[" * 100_000),
    ],
)  # fmt: skip
def test_a_value_that_its_type_cannot_hold_is_refused(kind, sent):
    with pytest.raises(StoreError) as refused:
        values.decoder(SCALARS[kind])(sent)
    assert refused.value.code == "FAILED_PRECONDITION"


def test_lengths_count_characters_and_bytes():
    values.check_length(Type("STRING", None, 2), "éé", "c")
    with pytest.raises(StoreError):
        values.check_length(Type("BYTES", None, 2), b"abc", "c")
