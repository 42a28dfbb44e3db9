"""What is known of a session while it lasts, how all of it is added up, and how it is shown."""

import asyncio

import msgspec
import pytest

from router.counters import BOUNDS_S
from router.transport.codec.robot import wire
from router.transport.codec.robot.control import Link
from router.transport.codec.robot.counters import ROBOT_NUMBERS, RobotCounters
from router.transport.codec.robot.seen import GAP_BUCKETS, Seen
from router.transport.codec.robot.server import RobotServer
from router.transport.codec.robot.shown import (
    GAP_BOUNDS_US,
    LINK_MEASURES,
    MAX_NAME_CHARS,
    SHOWN_SLICE,
    SLICE,
    LinkMeasures,
    ShownRobot,
    badness_us,
    shown_robots,
)
from tests.transport.codec.robot.robotkit import Robot

PLACE = "192.0.2.7:5000"


def look(*arguments, pauses=None):
    """What is shown; each pause is a None in `pauses`."""
    pauses = [] if pauses is None else pauses

    async def pause():
        pauses.append(None)

    return asyncio.run(shown_robots(*arguments, pause))


class Registered(Robot):
    """A robot whose session is one of a worker's."""

    def _make_server(self, bearer):
        part = self.counters.begin(lambda: PLACE, "quic")
        self.session = RobotServer(bearer, self._on_request, self.refusals.append, part, self.now)
        return self.session

    def shown(self, session="", limit=10):
        return look(self.counters, 3, session, limit, self.now, lambda authority, path: f"{authority}{path}")


def seen_of(**said):
    seen = Seen()
    seen.open("s", 1, "r")
    if said:
        seen.hear(Link(**said), 1.0)
    return seen


def counters_of(*links):
    whole = RobotCounters()
    for number, link in enumerate(links):
        part = whole.begin(lambda: PLACE, "quic")
        part.seen.open(f"s{number}", 1, "r")
        part.seen.hear(Link(**link), 1.0)
    return whole


class TestRegistry:
    def test_a_session_is_shown_from_its_welcome_to_its_end(self):
        robot = Registered()
        robot.hello(path="/arm?key=secret")
        assert robot.shown() == (0, [])
        robot.welcome()
        robot.state(b"one")
        robot.order(b"go")
        robot.run(limit_s=2.5)
        robot.state(b"two")
        robot.say(wire.LINK, rtt_us=20_000, loss_ppm=10_000, jitter_us=1_500, gap_us=80_000, late=3, stale=5)
        robot.run(limit_s=0.5)
        robot.replica.binary(b"reply")
        robot.run(limit_s=0.5)
        count, (shown,) = robot.shown()
        ((_, welcome),) = [frame for frame in robot.heard if frame[0] == wire.WELCOME]
        assert count == 1
        assert (shown.session, shown.replica, shown.epoch) == (welcome.session, "r1", 1)
        assert (shown.worker, shown.client, shown.transport, shown.upstream) == (3, PLACE, "quic", "websocket")
        assert (shown.authority, shown.path) == ("robots.test", "/arm"), "a query may hold credentials"
        assert shown.endpoint == "b'robots.test'b'/arm?key=secret'"
        assert 2.9 < shown.age_s < 4.0
        assert (shown.state_in, shown.command_in, shown.command_out) == (2, 1, 1)
        assert (shown.reported_rtt_us, shown.reported_loss_ppm, shown.reported_jitter_us) == (20_000, 10_000, 1_500)
        assert (shown.reported_gap_us, shown.reported_late, shown.reported_stale) == (80_000, 3, 5)
        assert 0.9 < shown.reported_ago_s < 1.1
        assert sum(shown.gaps) == 1
        assert 2_400_000 < shown.gap_us < 2_600_000
        assert shown.gaps[sum(bound <= shown.gap_us for bound in GAP_BOUNDS_US)] == 1
        assert 900_000 < shown.silent_us < 1_100_000
        assert 0 <= shown.rtt_us < 100_000
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(shown), type=ShownRobot) == shown
        robot.say(wire.BYE)
        robot.run(limit_s=1)
        assert robot.shown() == (0, [])
        assert not robot.counters.parts

    def test_another_replica_is_another_epoch(self):
        robot = Registered().welcome()
        robot.replica.close(1012)
        assert robot.run(lambda: wire.EPOCH in robot.kinds())
        _, (shown,) = robot.shown()
        assert (shown.epoch, shown.replica) == (2, "r2")

    @pytest.mark.parametrize("how", ["hello never came", "refused", "fault", "cut off"])
    def test_whatever_ends_it_leaves_nothing(self, how):
        robot = Registered()
        if how == "hello never came":
            robot.connect()
        elif how == "refused":
            robot.hello(authority="")
        elif how == "fault":
            robot.welcome().hello()
        else:
            robot.welcome()
            robot.client.connection.close(wire.GOING)
        robot.run(limit_s=15)
        assert not robot.counters.parts
        assert robot.counters.numbers()["robot_sessions_open"] == 0
        assert robot.counters.numbers()["robot_sessions"] == (how in ("fault", "cut off"))

    def test_counts_are_the_same_before_and_after_the_end(self):
        robot = Registered().welcome()
        for _ in range(3):
            robot.state(b"x")
            robot.order(b"y")
            robot.run(limit_s=0.1)
        before = robot.counters.numbers()
        assert (before["robot_state_in"], before["robot_command_in"], before["robot_sessions"]) == (3, 3, 1)
        assert robot.counters.robot_state_in == 0, "the part has them"
        robot.say(wire.BYE)
        robot.run(limit_s=1)
        assert robot.counters.numbers() == before | {"robot_sessions_open": 0}
        assert robot.counters.robot_state_in == 3

    def test_a_part_settles_once(self):
        whole = RobotCounters()
        part = whole.begin(lambda: "", "quic")
        part.robot_state_in = 2
        assert part.settle() is part.settle() is whole
        assert whole.settle() is whole
        assert whole.numbers() == dict.fromkeys(ROBOT_NUMBERS, 0) | {"robot_state_in": 2}

    def test_what_robots_say_goes_into_one_histogram(self):
        whole = RobotCounters()
        parts = [whole.begin(lambda: "", "quic") for _ in range(2)]
        for part in parts:
            part.robot_rtt.observe(0.01)
        assert sum(whole.robot_rtt.counts) == 2


def test_how_it_is_asked():
    seen = Seen()
    seen.ask(b"h", b"/", "websocket", 1.0)
    seen.open("s", 1, "r1", has_lanes=True)
    assert seen.upstream == "lanes"
    seen.open("s", 2, "r2")
    assert seen.upstream == "websocket"
    seen.ask(b"h", b"/", "post", 1.0)
    seen.open("s", 1, "")
    assert seen.upstream == "post"


class TestGaps:
    def test_each_has_its_bucket(self):
        for gap_us, bucket in ((0, 0), (1_023, 0), (1_024, 1), (2_047, 1), (2_048, 2), ((1 << 23) - 1, 13), (1 << 23, 14), (1 << 40, 14)):
            seen = Seen()
            seen.arrive(5)
            assert seen.gaps == [0] * GAP_BUCKETS, "the first is no gap"
            seen.arrive(5 + gap_us)
            assert seen.gaps.index(1) == bucket

    def test_the_largest_is_of_late(self):
        seen = Seen()
        now_us = 1_000_000
        for gap_us in (0, 50_000, 900_000, 20_000):
            now_us += gap_us
            seen.arrive(now_us)
        assert seen.largest_gap_us(now_us) == 900_000
        for _ in range(110):
            now_us += 100_000
            seen.arrive(now_us)
        assert seen.largest_gap_us(now_us) == 900_000, "the window before counts, too"
        for _ in range(110):
            now_us += 100_000
            seen.arrive(now_us)
        assert seen.largest_gap_us(now_us) == 100_000
        assert seen.largest_gap_us(now_us + 60_000_000) == 0
        assert seen.silent_us(now_us + 7) == 7
        assert Seen().silent_us(now_us) == -1


class TestShown:
    def test_the_worst_come_first_and_the_rest_is_counted(self):
        whole = counters_of(*({"rtt_us": rtt * 1_000} for rtt in (5, 80, 20, 1, 40)))
        count, shown = look(whole, 0, "", 3, 1.0, lambda authority, path: "")
        assert count == 5
        assert [one.reported_rtt_us for one in shown] == [80_000, 40_000, 20_000]

    def test_one_is_found_by_its_id_however_good(self):
        whole = counters_of(*({"rtt_us": rtt} for rtt in (5, 80, 20)))
        count, shown = look(whole, 0, "s0", 2, 1.0, lambda authority, path: "")
        assert (count, [one.session for one in shown]) == (3, ["s0"])
        assert look(whole, 0, "s9", 2, 1.0, lambda authority, path: "")[1] == []

    def test_of_equals_the_oldest_and_none_that_waits(self):
        whole = counters_of(*({"rtt_us": 7} for _ in range(5)))
        whole.begin(lambda: PLACE, "quic").seen.hear(Link(rtt_us=9_000_000), 1.0)
        count, shown = look(whole, 0, "", 3, 1.0, lambda authority, path: "")
        assert (count, [one.session for one in shown]) == (5, ["s0", "s1", "s2"])
        assert look(whole, 0, "", 0, 1.0, lambda authority, path: "") == (5, [])

    def test_many_are_looked_at_in_slices(self):
        whole = counters_of(*({"rtt_us": rtt} for rtt in range(2 * SLICE + 1)))
        pauses = []
        count, shown = look(whole, 0, "", SLICE + 1, 1.0, lambda authority, path: "", pauses=pauses)
        assert (count, len(shown), len(pauses)) == (2 * SLICE + 1, SLICE + 1, 2 + (SLICE + 1) // SHOWN_SLICE)
        assert [one.reported_rtt_us for one in shown] == list(range(2 * SLICE, SLICE - 1, -1))

    def test_one_that_ends_meanwhile_is_not_shown(self):
        whole = counters_of(*({"rtt_us": rtt} for rtt in range(SLICE)))
        worst = whole.parts[SLICE]

        async def pause():
            worst.settle()

        none = lambda authority, path: ""  # noqa: E731
        _, shown = asyncio.run(shown_robots(whole, 0, "", 2, 1.0, none, pause))
        assert [one.session for one in shown] == [f"s{SLICE - 2}"]

    def test_jitter_and_loss_make_a_link_worse(self):
        plain = badness_us(seen_of(rtt_us=20_000))
        assert plain == 20_000
        assert badness_us(seen_of(rtt_us=20_000, jitter_us=1_000)) == 24_000
        assert badness_us(seen_of(rtt_us=20_000, loss_ppm=5_000)) == 30_000
        assert badness_us(seen_of(rtt_us=20_000, loss_ppm=10_000)) == badness_us(seen_of(rtt_us=20_000, loss_ppm=900_000)) == 40_000
        assert badness_us(seen_of()) == 0
        assert badness_us(seen_of(rtt_us=1 << 61, jitter_us=1 << 61, loss_ppm=1 << 61)) < 1 << 40, "whatever it says"

    def test_names_of_any_length_are_cut(self):
        whole = counters_of({"rtt_us": 1})
        (part,) = whole.parts.values()
        part.seen.ask(b"\xff" * 5_000, b"/" + b"p" * 5_000, "post", 0.5)
        part.seen.open("s0", 1, "r" * 5_000)
        ((shown,),) = look(whole, 0, "", 1, 1.0, lambda authority, path: "")[1:]
        assert len(shown.authority) == len(shown.replica) == MAX_NAME_CHARS
        assert len(shown.path) == 256


class TestMeasures:
    def test_are_histograms_over_sessions_and_the_worst(self):
        measures = LinkMeasures()
        for link in ({"rtt_us": 1_000}, {"rtt_us": 30_000, "loss_ppm": 20_000, "jitter_us": 400, "gap_us": 7_000}):
            measures.add(seen_of(**link))
        waiting = Seen()  # no replica yet
        waiting.hear(Link(rtt_us=9_000_000), 1.0)
        measures.add(waiting)
        silent = seen_of()
        silent.clock.rtt_us = 50_000
        measures.add(silent)
        found = measures.snapshots()
        assert set(found) == set(LINK_MEASURES)
        rtt = found["robot_link_rtt"]
        assert (sum(rtt.counts), rtt.worst) == (3, 0.05)
        assert rtt.counts[sum(bound < 0.03 for bound in BOUNDS_S)] == 2
        assert (sum(found["robot_link_loss"].counts), found["robot_link_loss"].worst) == (2, 0.02)
        assert (sum(found["robot_link_gap"].counts), found["robot_link_gap"].worst) == (1, 0.007)
        assert found["robot_link_jitter"].worst == 0.0004
