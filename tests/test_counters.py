"""Which bucket a duration is counted in."""

from bisect import bisect_left

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.counters import BOUNDS_S, Histogram, bucket


@given(st.floats(allow_nan=False))
@example(0.0)
@example(-1e-9)
@example(float("inf"))
def test_it_is_the_first_whose_bound_is_not_below(seconds):
    assert bucket(seconds) == bisect_left(BOUNDS_S, seconds)


@pytest.mark.parametrize("index", range(len(BOUNDS_S)))
def test_a_bound_belongs_to_its_own_bucket(index):
    assert bucket(BOUNDS_S[index]) == index


def test_a_histogram_counts_beyond_the_last_bound():
    histogram = Histogram()
    histogram.observe(BOUNDS_S[-1] * 2)
    histogram.observe(BOUNDS_S[0])
    assert (histogram.counts[0], histogram.counts[-1], sum(histogram.counts)) == (1, 1, 2)
    assert histogram.sum_s == BOUNDS_S[-1] * 2 + BOUNDS_S[0]
