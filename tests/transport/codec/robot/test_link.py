"""What a session measures: round trips, jitter, loss, gaps."""

import pytest

from router.transport.codec.robot.control import Pong
from router.transport.codec.robot.link import IDLE_S, LOSS_WINDOW, LOST_AFTER_S, LinkMeter


def answer(meter, ping, took_s, now):
    at_us = ping.t + int(took_s * 5e5)
    return meter.hear(Pong(ping.n, ping.t, at_us, at_us), now)


def exchange(meter, now, took_s):
    assert answer(meter, meter.ask(now, may_be_lost=True), took_s, now + took_s)


def test_round_trips_and_jitter():
    meter = LinkMeter()
    for number in range(200):
        exchange(meter, 10.0 + number, 0.050 if number % 2 else 0.060)
    assert meter.rtt_s == pytest.approx(0.055, abs=0.003)
    assert meter.min_s == pytest.approx(0.050, abs=2e-6)
    assert meter.jitter_s == pytest.approx(0.010, abs=0.001)
    assert meter.loss == 0.0


def test_loss_is_of_the_last_hundred():
    meter = LinkMeter()
    now = 10.0
    for number in range(4 * LOSS_WINDOW):
        ping = meter.ask(now, may_be_lost=True)
        if number % 4:
            answer(meter, ping, 0.01, now + 0.01)
        now += LOST_AFTER_S + 0.1
        meter.expire(now)
    assert meter.loss == 0.25
    assert meter.lost == LOSS_WINDOW
    for _ in range(LOSS_WINDOW):
        exchange(meter, now, 0.01)
        now += 1.0
    assert meter.loss == 0.0
    assert meter.lost == LOSS_WINDOW


def test_a_slow_link_loses_nothing():
    """Where a round trip takes longer than a second, four of them are waited for."""
    meter = LinkMeter()
    exchange(meter, 10.0, 0.9)
    ping = meter.ask(20.0, may_be_lost=True)
    meter.expire(23.0)
    assert answer(meter, ping, 3.0, 23.0)
    assert meter.loss == 0.0


def test_what_is_repeated_until_it_arrives_tells_of_no_loss():
    meter = LinkMeter()
    meter.ask(10.0, may_be_lost=False)
    meter.expire(20.0)
    assert meter.loss == 0.0
    assert meter.lost == 0


def test_answers_to_nothing_are_not_counted():
    meter = LinkMeter()
    assert not meter.hear(Pong(7, 1, 1, 1), 10.0)
    ping = meter.ask(10.0, may_be_lost=True)
    assert not meter.hear(Pong(ping.n, ping.t + 1, 1, 1), 10.1)
    assert not answer(meter, ping, 0.1, 10.1)  # the wrong answer has used it up
    assert meter.answered == 0


def test_what_could_not_be_sent_is_not_lost():
    meter = LinkMeter()
    meter.forget(meter.ask(10.0, may_be_lost=True))
    meter.expire(20.0)
    assert meter.lost == 0


def test_gaps_between_replies():
    meter = LinkMeter()
    for now in (1.0, 1.1, 1.2, 1.9, 2.0):
        meter.sent(now - 0.05)
        meter.reply(now)
    assert meter.largest_gap_s == pytest.approx(0.7)
    assert sum(meter.gaps.counts) == 4
    assert meter.report().gap_us == pytest.approx(700_000, abs=2)
    assert meter.report().gap_us == 0
    meter.reply(2.1)
    assert meter.report().gap_us == pytest.approx(100_000, abs=2)


def test_a_robot_that_rests_has_no_gap():
    meter = LinkMeter()
    meter.sent(1.0)
    meter.reply(1.1)
    meter.reply(1.1 + IDLE_S + 5.0)  # said without being asked
    meter.sent(20.0)
    meter.reply(20.2)
    assert meter.largest_gap_s == pytest.approx(0.2)


def test_the_time_between_two_connections_is_a_gap():
    before, after, total = LinkMeter(), LinkMeter(), LinkMeter()
    exchange(before, 5.0, 0.02)
    before.late = 2
    before.sent(9.9)
    before.reply(10.0)
    before.sent(10.1)
    after.follow(before)
    after.reply(13.0)
    after.stale = 1
    total.add(before)
    total.add(after)
    assert total.largest_gap_s == pytest.approx(3.0)
    assert (total.late, total.stale, total.replies, total.answered) == (2, 1, 2, 1)
    assert total.rtt_s == pytest.approx(0.02)
    assert after.report().late == 0
