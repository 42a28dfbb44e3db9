"""The times that a response tells: what `%.3f` of the milliseconds would be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.server_timing import in_ms, server_timing


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0, b"0.000"),
        (-1e-12, b"0.000"),  # what is left of a subtraction
        (4e-7, b"0.000"),
        (6e-7, b"0.001"),
        (0.000_042, b"0.042"),
        (0.012_3454, b"12.345"),
        (0.999_999, b"999.999"),
        (0.999_999_9, b"1000.000"),  # beyond the tables, by rounding
        (1.0, b"1000.000"),
        (1_234.5678, b"1234567.800"),
        (-0.5, b"-500.000"),
    ],
)
def test_milliseconds_have_three_places(seconds, written):
    assert in_ms(seconds) == written


@given(st.floats(0.0, 10.0))
def test_it_is_the_nearest_microsecond(seconds):
    assert abs(float(in_ms(seconds)) - seconds * 1e3) <= 0.000_500_1


def test_a_connection_that_was_there_is_said_to_be():
    assert server_timing(0.000_1, 0.0, 0.25) == b'router;dur=0.100, connect;dur=0;desc="reused", upstream;dur=250.000'


def test_a_connect_is_told_apart():
    assert server_timing(0.000_1, 0.002, 0.25) == b"router;dur=0.100, connect;dur=2.000, upstream;dur=250.000"
