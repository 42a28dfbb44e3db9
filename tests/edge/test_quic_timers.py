"""Many deadlines on one timer: none early, none forgotten, the loop's timer rarely touched, memory bounded."""

import asyncio
import random

import pytest
from udpkit import until

from router.clock import Clock
from router.edge.quic_timers import MAX_STALE, QuicTimers, Timed
from router.transport.outbox import Outbox


class Item(Timed):
    def __init__(self, timers, clock, again=()):
        super().__init__()
        self.timers, self.clock = timers, clock
        self.deadline_s = None
        self.called = []
        self.again = list(again)

    def timer_deadline(self):
        return self.deadline_s

    def timer_due(self, now):
        self.called.append((self.deadline_s, now))
        self.deadline_s = now + self.again.pop(0) if self.again else None

    def set(self, in_s):
        self.deadline_s = self.clock.read() + in_s
        self.timers.watch(self)


@pytest.fixture
async def timers():
    clock = Clock()
    made = QuicTimers(clock, Outbox(clock))
    yield made
    made.close()


@pytest.fixture
def items(timers):
    return lambda count=1, **more: [Item(timers, timers._clock, **more) for _ in range(count)]


async def test_each_in_its_time_and_never_early():
    clock = Clock()
    timers = QuicTimers(clock, Outbox(clock))
    items = [Item(timers, clock) for _ in range(200)]
    for item in items:
        item.set(random.random() * 0.1)
    await until(lambda: all(item.called for item in items))
    for item in items:
        ((asked, now),) = item.called
        assert asked <= now < asked + 0.1
    assert timers._entries == []
    timers.close()


async def test_what_moves_later_does_not_touch_the_loop(timers, items):
    (item,) = items()
    item.set(0.05)
    assert timers.arms == 1
    for _ in range(1_000):
        item.set(0.06)
    assert timers.arms == 1 and len(timers._entries) == 1
    await until(lambda: item.called)
    assert item.called[0][1] >= item.called[0][0], "asked again when its first turn came"


async def test_what_moves_earlier_does(timers, items):
    slow, quick = items(2)
    slow.set(30.0)
    quick.set(0.02)
    assert timers.arms == 2
    await until(lambda: quick.called)
    assert not slow.called
    slow.set(0.01)
    await until(lambda: slow.called)


async def test_a_deadline_that_leads_to_another(timers, items):
    (item,) = items(again=[0.01, 0.01])
    item.set(0.01)
    await until(lambda: len(item.called) == 3)


async def test_one_that_is_always_due_leaves_turns_to_others(timers, items):
    busy, other = items(1, again=[-1.0] * 100_000)[0], items()[0]
    busy.set(0.0)
    other.set(0.02)
    await until(lambda: other.called)
    assert 1 < len(busy.called) < 100


async def test_forgotten_is_not_called(timers, items):
    gone, there = items(2)
    gone.set(0.01)
    there.set(0.02)
    timers.forget(gone)
    timers.forget(gone)
    await until(lambda: there.called)
    assert not gone.called


async def test_stale_entries_are_swept(timers, items):
    items = items(10)
    for round_ in range(1_000):
        for item in items:
            item.set(1_000.0 - round_)  # ever earlier
        assert len(timers._entries) <= 2 * len(items) + MAX_STALE + 1
    items[0].set(0.01)
    await until(lambda: items[0].called)


async def test_a_bug_in_one_stops_no_other(timers, items, caplog):
    bad, good = items(2)
    loop = asyncio.get_running_loop()
    failures = []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    def fail(now):
        bad.deadline_s = None
        raise RuntimeError("as the test wants")

    bad.timer_due = fail
    bad.set(0.01)
    good.set(0.03)
    await until(lambda: good.called)
    assert failures


async def test_what_is_touched_is_flushed():
    clock = Clock()
    outbox = Outbox(clock)
    timers = QuicTimers(clock, outbox)
    flushed = []

    class Touched:
        def flush(self, now):
            flushed.append(now)

    item = Item(timers, clock)
    item.timer_due, due = (lambda now: (outbox.touched.append(Touched()), due(now))), item.timer_due
    item.set(0.005)
    await until(lambda: flushed)
    timers.close()
