"""The outbox: everything touched is flushed, with one reading of the clock, until nothing is left."""

from router.clock import Clock
from router.transport.outbox import Outbox


class Touched:
    def __init__(self, outbox, *then):
        self.outbox = outbox
        self.then = list(then)
        self.flushed = []

    def flush(self, now):
        self.flushed.append(now)
        if self.then:
            self.outbox.touched.append(self.then.pop())


def test_all_of_them_at_the_ticks_time():
    clock = Clock(lambda: 7.0)
    outbox = Outbox(clock)
    shells = [Touched(outbox) for _ in range(3)]
    outbox.touched += shells
    outbox.flush()
    assert [shell.flushed for shell in shells] == [[7.0]] * 3
    assert not outbox.touched


def test_a_flush_that_touches_others_goes_on():
    outbox = Outbox(Clock(lambda: 7.0))
    last = Touched(outbox)
    middle = Touched(outbox, last)
    first = Touched(outbox, middle, middle)
    outbox.touched.append(first)
    outbox.flush()
    assert (len(first.flushed), len(middle.flushed), len(last.flushed)) == (1, 1, 1)


def test_nothing_touched():
    Outbox(Clock(lambda: 7.0)).flush()
