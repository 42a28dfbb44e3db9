"""A day in virtual time: what the autoscaler's policy promises, whatever the weather."""

import math

import pytest
from click.testing import CliRunner

from loadtest.autoscale_day import NIGHT, Day, main, simulate
from router.routing.spec import ScalingSpec

TARGET, TOLERANCE, DOWN_S = 8.0, 0.1, 300.0


def scaling(**values):
    return ScalingSpec(TARGET, **({"max_replicas": 60, "scaledown_window_s": DOWN_S} | values))


@pytest.fixture(scope="module", params=[(1, 0.0), (7, 0.0), (42, 20.0)], ids=str)
def day(request):
    seed, up_s = request.param
    made = Day(scaling(scaleup_window_s=up_s), seed)
    return made, simulate(made)


def short_of(out, wanted, span):
    """The seconds in which there was less than a need that had lasted for all of `span`, beyond the tolerance."""
    need = [math.ceil(count / (TARGET * (1 + TOLERANCE)) - 1e-9) for count in wanted]
    return [now for now in range(span, len(need)) if out.ready[now] < min(need[now - span : now + 1])]


def test_what_lasts_longer_than_a_cold_start_and_the_window_is_met(day):
    """What is refused is seen only in part: the pool may need to grow two times more to have room for it."""
    made, out = day
    span = int(made.cold_start_s + made.scaling.scaleup_window_s) + 3
    assert short_of(out, out.in_flight, span) == []
    assert short_of(out, out.wanting, 3 * span) == []
    assert len(short_of(out, out.wanting, 5)) > 100  # it does find what is short


def test_nothing_flaps(day):
    """After a step up nothing goes down for a whole window."""
    _, out = day
    last_up = -math.inf
    for now in range(1, len(out.desired)):
        if out.desired[now] > out.desired[now - 1]:
            last_up = now
        elif out.desired[now] < out.desired[now - 1]:
            assert now - last_up >= DOWN_S - 1
    assert 10 < out.changes < 400


def test_nobody_is_there_at_night_and_the_first_in_the_morning_finds_one_soon(day):
    made, out = day
    asleep = range(int(NIGHT[0] * 3_600 + DOWN_S + 120), int(NIGHT[1] * 3_600))
    assert not any(out.current[now] for now in asleep)
    dawn = int(NIGHT[1] * 3_600)
    first = next(now for now in range(dawn, len(out.wanting)) if out.wanting[now])
    served = next(now for now in range(first, len(out.ready)) if out.ready[now])
    assert served - first <= made.cold_start_s + 3


def test_what_it_costs(day):
    made, out = day
    assert out.refused < 0.03 * out.arrived
    assert out.ideal_hours < out.replica_hours < 1.8 * out.ideal_hours
    assert max(out.desired) <= made.scaling.max_replicas


def test_a_buffer_costs_hours_and_saves_refusals():
    plain, buffered = (simulate(Day(scaling(buffer_replicas=n), 3)) for n in (0, 2))
    assert buffered.refused < plain.refused
    assert buffered.short_s < plain.short_s
    assert buffered.replica_hours > plain.replica_hours


def test_a_maximum_holds_and_refuses():
    out = simulate(Day(scaling(max_replicas=4), 1))
    assert max(out.current) == 4
    assert out.refused > 1_000


def test_the_same_seed_is_the_same_day():
    assert simulate(Day(scaling(), 5)) == simulate(Day(scaling(), 5))


def test_the_command_draws_and_tells(tmp_path):
    picture = tmp_path / "day.png"
    done = CliRunner().invoke(main, ["--output", str(picture), "--peak-per-s", "2"])
    assert done.exit_code == 0, done.output
    assert "replica-hours" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
