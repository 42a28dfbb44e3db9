"""The deadline wheel with virtual time: late by two ticks at most, earlier on request, gone on None."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.deadlines import NEVER, SLOTS, TICK_S, TURN_S, DeadlineWheel

LATE_S = 2 * TICK_S + 1e-9


class Item:
    """Has a deadline; notes when it was told of it. `then` is the deadline after that."""

    def __init__(self, deadline, then=None):
        self.watch_tick = -1
        self.deadline = deadline
        self.then = then
        self.told = []
        self.asked = 0

    def next_deadline(self):
        self.asked += 1
        return self.deadline

    def handle_deadline(self, now):
        self.told.append(now)
        self.last_deadline = self.deadline
        self.deadline = self.then


class Rig:
    """A wheel turned every tick, as its owner does."""

    def __init__(self, now=100.0):
        self.now = now
        self.wheel = DeadlineWheel(now)

    def add(self, deadline, then=None):
        item = Item(deadline, then)
        self.wheel.watch(item)
        return item

    def run(self, until, step=TICK_S):
        while self.now < until:
            self.now += step
            self.wheel.turn(self.now)

    def entries(self):
        return sum(map(len, self.wheel._slots))


@pytest.mark.parametrize("start", [0.0, 100.0, 12_345.678, 9e8])
@pytest.mark.parametrize("after_s", [0.0, TICK_S / 2, TICK_S, 1.0, 1.0001, TURN_S - TICK_S, TURN_S, TURN_S + 0.01, 3 * TURN_S + 0.3])
def test_late_by_two_ticks_at_most_and_never_early(start, after_s):
    rig = Rig(start)
    item = rig.add(start + after_s)
    rig.run(start + after_s + 1.0)
    assert len(item.told) == 1
    assert 0.0 <= item.told[0] - (start + after_s) <= LATE_S + 1e-6


def test_a_deadline_that_passed_already():
    rig = Rig()
    item = rig.add(50.0)
    rig.run(rig.now + 3 * TICK_S)
    assert len(item.told) == 1


def test_activity_only_moves_a_stamp():
    rig = Rig()
    item = rig.add(101.0)
    for _ in range(400):
        rig.run(rig.now + 0.5)
        item.deadline = rig.now + 1.0
    assert item.told == []
    assert item.asked < 600, "it is asked about once a deadline, not once an activity"


def test_moved_earlier():
    rig = Rig()
    item = rig.add(120.0)
    item.deadline = 101.0
    rig.wheel.watch(item)
    rig.run(130.0)
    assert len(item.told) == 1
    assert item.told[0] - 101.0 <= LATE_S


def test_moved_earlier_and_back():
    rig = Rig()
    item = rig.add(120.0)
    for deadline in (101.0, 120.0, 101.0, 110.0):
        item.deadline = deadline
        rig.wheel.watch(item)
    rig.run(130.0)
    assert len(item.told) == 1
    assert 0 <= item.told[0] - 110.0 <= LATE_S


def test_none_leaves():
    rig = Rig()
    item = rig.add(101.0)
    item.deadline = None
    rig.run(102.0)
    assert item.told == []
    assert item.watch_tick == -1
    asked = item.asked
    rig.run(200.0)
    assert item.asked == asked
    assert rig.entries() == 0


def test_none_at_once_is_not_kept():
    rig = Rig()
    rig.add(None)
    assert rig.entries() == 0


def test_an_item_that_left_may_come_back():
    rig = Rig()
    item = rig.add(101.0)
    rig.run(102.0)
    assert item.watch_tick == -1
    item.deadline = 103.0
    rig.wheel.watch(item)
    rig.run(104.0)
    assert len(item.told) == 2


def test_asked_again_after_it_was_told():
    rig = Rig()
    item = rig.add(101.0, then=102.0)
    rig.run(101.5)
    item.then = None
    rig.run(103.0)
    assert len(item.told) == 2


def test_a_deadline_that_never_comes_costs_one_look_a_turn():
    rig = Rig()
    item = rig.add(NEVER)
    rig.run(100.0 + 10 * TURN_S)
    assert item.told == []
    assert item.asked <= 2 * 11 + 1  # asked for its deadline, and for its next slot


def test_a_handler_may_watch_itself_and_others():
    rig = Rig()
    other = Item(101.5)

    class Starter(Item):
        def handle_deadline(self, now):
            super().handle_deadline(now)
            self.deadline = 102.0 if len(self.told) == 1 else None
            rig.wheel.watch(self)
            rig.wheel.watch(other)

    item = Starter(101.0)
    rig.wheel.watch(item)
    rig.run(103.0)
    assert (len(item.told), len(other.told)) == (2, 1)


@pytest.mark.parametrize("stall_s", [1.0, TURN_S - TICK_S, TURN_S, TURN_S + 1.0, 100 * TURN_S])
def test_a_stall_tells_each_once(stall_s):
    rig = Rig()
    items = [rig.add(100.0 + i * 0.3) for i in range(200)]
    rig.now += stall_s
    rig.wheel.turn(rig.now)
    for item in items:
        assert len(item.told) == (1 if item.deadline is None else 0)
        if item.told:
            assert item.told[0] == rig.now
    due = [item for i, item in enumerate(items) if i * 0.3 < stall_s - 2 * TICK_S]
    assert all(item.told for item in due)
    rig.run(rig.now + 100.0)
    assert all(len(item.told) == 1 for item in items)


def test_a_turn_within_a_tick_does_nothing():
    rig = Rig()
    item = rig.add(101.0)
    for _ in range(1_000):
        rig.wheel.turn(rig.now)
    assert item.asked == 1


def test_watching_again_and_again_is_bounded():
    """An item whose deadline moves to and fro within a tick (a short keep-alive, a longer idle limit) stays small."""
    rig = Rig()
    item = Item(0.0)
    for _ in range(2_000):
        for after_s in (60.0, 5.0):
            item.deadline = rig.now + after_s
            rig.wheel.watch(item)
    assert rig.entries() <= SLOTS


class WheelModel(RuleBasedStateMachine):
    """Against a list that is looked through: what is told, and when."""

    @initialize(start=st.floats(0.0, 1e6))
    def begin(self, start):
        self.rig = Rig(start)
        self.items = []

    @rule(after_s=st.floats(-1.0, 3 * TURN_S))
    def add(self, after_s):
        item = self.rig.add(self.rig.now + after_s)
        item.since = self.rig.now
        self.items.append(item)

    @rule(which=st.integers(0, 20), by_s=st.floats(0.0, 40.0))
    def later(self, which, by_s):
        if self.items:
            item = self.items[which % len(self.items)]
            if item.deadline is not None:
                item.deadline += by_s

    @rule(which=st.integers(0, 20), after_s=st.floats(0.0, 30.0))
    def earlier(self, which, after_s):
        if self.items:
            item = self.items[which % len(self.items)]
            if item.deadline is not None:
                item.deadline = min(item.deadline, self.rig.now + after_s)
                item.since = self.rig.now
                self.rig.wheel.watch(item)

    @rule(which=st.integers(0, 20))
    def leave(self, which):
        if self.items:
            self.items[which % len(self.items)].deadline = None

    @rule(for_s=st.floats(0.0, 5.0))
    def run_for(self, for_s):
        self.rig.run(self.rig.now + for_s)

    @rule(for_s=st.floats(0.0, 3 * TURN_S))
    def stall(self, for_s):
        self.rig.now += for_s
        self.rig.wheel.turn(self.rig.now)

    @invariant()
    def nobody_is_overdue_or_early(self):
        if not hasattr(self, "rig"):
            return
        for item in self.items:
            assert len(item.told) <= 1
            assert all(now >= item.last_deadline for now in item.told), "early"
            if item.deadline is not None:
                assert max(item.deadline, item.since) > self.rig.now - LATE_S - 1e-6, "overdue"


TestWheelModel = WheelModel.TestCase
TestWheelModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_one_that_raises_costs_only_itself(caplog):
    class Item:
        def __init__(self, raises):
            self.watch_tick = -1
            self.raises = raises
            self.handled = 0

        def next_deadline(self):
            return 1_001.0 if not self.handled else None

        def handle_deadline(self, now):
            self.handled += 1
            if self.raises:
                raise RuntimeError("a bug")

    wheel = DeadlineWheel(1_000.0)
    items = [Item(False), Item(True), Item(False)]
    for item in items:
        wheel.watch(item)
    wheel.turn(1_002.0)
    assert [item.handled for item in items] == [1, 1, 1]
    assert "not handled" in caplog.text
