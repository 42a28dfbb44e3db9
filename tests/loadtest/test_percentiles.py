import pytest

from loadtest.percentiles import distribution, percentile, ratio, spread


@pytest.mark.parametrize(
    ("ordered", "fraction", "value"),
    [
        ([7.0], 0.99, 7.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([0.0, 10.0], 0.99, 9.9),
        ([1.0, 2.0, 3.0], 0, 1.0),
        ([1.0, 2.0, 3.0], 1, 3.0),
    ],
)
def test_percentile_is_linear_between_neighbours(ordered, fraction, value):
    assert percentile(ordered, fraction) == pytest.approx(value)


def test_percentile_refuses_what_has_none():
    with pytest.raises(ValueError, match="empty"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile([1.0], 50)


def test_distribution_turns_seconds_into_microseconds():
    found = distribution([0.003, 0.001, 0.002])
    assert found is not None
    assert (found.count, round(found.p50_us), round(found.max_us)) == (3, 2000, 3000)
    assert distribution([]) is None


def test_ratio_needs_two_positive_figures():
    assert ratio(3.0, 4.0) == 0.75
    for ours, theirs in ((None, 1.0), (1.0, None), (-1.0, 2.0), (1.0, 0.0)):
        assert ratio(ours, theirs) is None


def test_spread_leaves_out_rounds_without_a_figure():
    found = spread([0.5, None, 0.7, 0.6])
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == (0.6, 0.5, 0.7, 3)
    assert spread([None]) is None
