"""Which replicas to start and to stop: a fleet under virtual time, where rows and processes are what the test says."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.autoscale.fleet import BACK_OFF_S, DRAIN_PATIENCE_S, MAX_BACK_OFF_S, Fleet

TIMEOUT_S = 100.0


class World:
    """Rows and processes of one endpoint. `running` None: only the store tells."""

    def __init__(self, *, processes=True):
        self.fleet = Fleet(TIMEOUT_S)
        self.now = 0.0
        self.rows = {}
        self.held = set()
        self.running = set() if processes else None
        self.news = None

    def look(self, after_s=1.0):
        self.now += after_s
        self.news = self.fleet.observe(dict(self.rows), self.held, self.running, self.now)
        return self.news

    def start(self, desired, room=8):
        names = self.fleet.starts(desired, room, self.now)
        if self.running is not None:
            self.running.update(names)
        return names

    def stop(self, desired):
        return self.fleet.stops(desired, self.now)

    def ready(self, *names):
        self.rows |= dict.fromkeys(names, "READY")
        if self.running is not None:
            self.running.update(name for name in names if name.startswith("auto-"))
        self.look()

    @property
    def counts(self):
        return self.fleet.ready, self.fleet.pending(self.now), self.fleet.held(self.now)


@pytest.fixture(params=[True, False], ids=["processes", "commands"])
def world(request):
    return World(processes=request.param)


def test_what_is_missing_is_started_once(world):
    world.look()
    names = world.start(3)
    assert len(set(names)) == 3
    assert world.start(3) == []
    world.look()
    assert world.counts == (0, 3, 0)
    world.rows[names[0]] = "STARTING"
    world.look()
    assert world.counts == (0, 3, 0)
    world.rows |= dict.fromkeys(names, "READY")
    assert sorted(world.look().ready) == sorted(names)
    assert world.counts == (3, 0, 0)
    assert world.look().ready == []


def test_no_more_than_there_is_room_for(world):
    assert len(world.start(10, room=4)) == 4
    assert len(world.start(10, room=2)) == 2


def test_the_youngest_goes_first_one_at_a_time(world):
    world.ready("auto-1")
    world.ready("auto-2")
    world.ready("auto-3")
    assert world.stop(3) == []
    assert world.stop(1) == ["auto-3"]
    assert world.counts == (2, 0, 0)
    assert world.stop(1) == ["auto-2"]
    assert world.stop(1) == []


def test_one_with_sessions_never_goes_and_others_do_instead(world):
    world.held = {"auto-3", "auto-2"}
    for name in ("auto-1", "auto-2", "auto-3"):
        world.ready(name)
    assert world.counts == (3, 0, 2)
    assert world.stop(0) == ["auto-1"]
    assert world.stop(0) == []


def test_one_that_drains_goes_before_one_that_serves(world):
    for name in ("auto-1", "auto-2", "auto-3"):
        world.ready(name)
    world.rows["auto-1"] = "DRAINING"
    world.look()
    assert world.counts == (2, 1, 0)  # its engine may only pause
    assert world.stop(3) == []
    world.look(DRAIN_PATIENCE_S + 1)
    assert world.counts == (2, 0, 0)
    assert len(world.start(3)) == 1
    assert world.stop(2) == ["auto-1"]


def test_one_that_drains_and_comes_back_is_kept(world):
    world.ready("auto-1")
    world.rows["auto-1"] = "DRAINING"
    world.look(DRAIN_PATIENCE_S)
    world.rows["auto-1"] = "READY"
    world.look()
    assert world.counts == (1, 0, 0)


def test_nothing_that_serves_goes_while_fewer_than_desired_do(world):
    world.ready("auto-1", "auto-2")
    world.start(4)
    assert world.stop(2) == [name for name in world.fleet.members if world.fleet.members[name].told_s is not None]
    assert world.fleet.ready == 2


def test_one_that_serves_does_not_go_for_one_that_only_starts(world):
    world.ready("auto-1", "auto-2")
    world.rows["by-hand"] = "STARTING"
    world.look()
    assert world.counts == (2, 1, 0)
    assert world.stop(2) == []
    world.ready("by-hand")
    assert world.stop(2) in (["auto-1"], ["auto-2"])


def test_replicas_of_others_count_and_are_left_alone(world):
    world.ready("by-hand", "other")
    assert world.counts == (2, 0, 0)
    assert world.start(2) == []
    assert world.stop(0) == []
    world.rows["by-hand"] = "STARTING"
    world.look()
    assert world.counts == (1, 1, 0)
    world.look(TIMEOUT_S + 1)
    assert world.counts == (1, 0, 0)
    assert world.news.late == []
    del world.rows["other"]
    assert world.look().gone == ["other"]


def test_a_launch_that_is_late_is_stopped_and_tried_anew_with_back_off(world):
    world.look()
    (name,) = world.start(1)
    world.look(TIMEOUT_S)
    assert (world.news.late, world.counts) == ([], (0, 1, 0))
    assert world.look().late == [name]
    assert world.counts == (0, 0, 0)
    assert world.start(1) == []
    world.look(BACK_OFF_S)
    assert len(world.start(1)) == 1


def test_failures_make_one_try_at_a_time_ever_later_until_one_comes_up():
    world = World()
    world.look()
    waits = []
    names = world.start(5)
    assert len(names) == 5
    for _ in range(9):
        world.running.difference_update(names)
        assert sorted(world.look(0.1).lost) == sorted(names)
        began = world.now
        while not (names := world.start(5)):
            world.look(0.5)
        assert len(names) == 1
        world.look(0.1)
        assert world.start(5) == []
        waits.append(world.now - began)
    assert all(later > earlier - 1e-6 for earlier, later in pairwise(waits))
    assert waits[0] < 2 * BACK_OFF_S
    assert MAX_BACK_OFF_S <= waits[-1] < MAX_BACK_OFF_S + 1
    world.rows[names[0]] = "READY"
    world.look()
    assert len(world.start(5)) == 4


def test_a_process_that_dies_is_lost_though_its_row_says_ready():
    world = World()
    world.ready("auto-1", "auto-2")
    world.running.discard("auto-1")
    assert world.look().lost == ["auto-1"]
    assert world.counts == (1, 0, 0)
    assert world.look().lost == []
    assert world.counts == (1, 0, 0)  # the row is still there


def test_a_process_that_was_told_to_stop_is_not_lost():
    world = World()
    world.ready("auto-1")
    world.look(10)
    assert world.stop(0) == ["auto-1"]
    world.running.clear()
    assert world.look().lost == []
    assert world.news.gone == ["auto-1"]
    assert world.fleet.failures == 0


def test_what_an_earlier_run_started_is_taken_over():
    world = World()
    world.running = {"auto-1", "auto-2", "auto-3"}
    world.rows = {"auto-1": "READY", "auto-2": "DRAINING"}
    world.look()
    assert world.counts == (1, 1, 0)  # auto-2 was told to go, auto-3 has not registered yet
    assert world.start(2) == []
    world.look(DRAIN_PATIENCE_S + 1)
    assert world.stop(0) == ["auto-3"]
    assert world.stop(0) == ["auto-1"]
    assert world.stop(0) == []  # telling auto-2 again would hurry it


def test_a_replica_of_another_hosts_autoscaler_is_not_ours():
    world = World()
    world.rows = {"auto-1": "READY"}
    world.look()
    assert world.counts == (1, 0, 0)
    assert world.stop(0) == []


def test_a_stop_that_failed_is_ordered_again(world):
    world.ready("auto-1")
    assert world.stop(0) == ["auto-1"]
    world.fleet.not_stopped("auto-1")
    assert world.stop(0) == ["auto-1"]
    world.look(TIMEOUT_S + 1)  # it serves on as if nothing had been said
    assert world.stop(0) == ["auto-1"]


def test_a_start_that_failed_does_not_count(world):
    world.look()
    (name,) = world.start(1)
    if world.running is not None:
        world.running.clear()
    world.fleet.not_started(name, world.now)
    assert world.counts == (0, 0, 0)
    assert world.start(1) == []
    world.look(BACK_OFF_S)
    assert len(world.start(1)) == 1


def test_one_whose_engine_restarts_counts_until_it_is_late(world):
    world.ready("auto-1")
    world.rows["auto-1"] = "DOWN"
    world.look()
    assert world.counts == (0, 1, 0)
    world.rows["auto-1"] = "STARTING"
    world.look(TIMEOUT_S)
    assert world.counts == (0, 1, 0)
    assert world.look().late == ["auto-1"]


STEP = st.one_of(
    st.tuples(st.just("row"), st.integers(0, 5), st.sampled_from(["STARTING", "READY", "DRAINING", "DOWN", None])),
    st.tuples(st.just("die"), st.integers(0, 5), st.none()),
    st.tuples(st.just("held"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("want"), st.integers(0, 6), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 60), st.none()),
)


@given(st.lists(STEP, max_size=60), st.booleans())
def test_whatever_happens_sessions_stay_and_there_are_never_more_than_desired(steps, processes):
    world, desired, names = World(processes=processes), 0, []
    for kind, which, value in steps:
        name = names[which] if which < len(names) else f"by-hand-{which}"
        if kind == "row":
            if value is None:
                world.rows.pop(name, None)
            elif world.running is None or name in world.running or not name.startswith("auto-"):
                world.rows[name] = value
        elif kind == "die" and world.running is not None:
            world.running.discard(name)
        elif kind == "held":
            (world.held.add if value else world.held.discard)(name)
        elif kind == "want":
            desired = which
        world.look(float(which) if kind == "wait" else 1.0)
        before = world.fleet.ready
        started = world.start(desired)
        names = (names + started)[-6:]
        ready, pending, _ = world.counts
        assert not started or ready + pending <= desired
        for victim in world.stop(desired):
            assert victim.startswith("auto-")
            assert victim not in world.held
            assert world.fleet.ready >= min(before, desired)
