"""Open sessions by id: whoever comes again ends the earlier ones, in whichever worker; nothing is left of those over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.continuity import Continuity
from router.takeover_calls import TakeoverCalls
from router.takeover_desk import MAX_ASKED, TakeoverDesk
from router.takeovers import MAX_BESIDE, Takeovers


class Worker:
    """A worker with its end of the control channel, over which messages go when the test says so."""

    def __init__(self, cluster, index):
        self.cluster = cluster
        self.index = index
        self.takeovers = Takeovers()
        self.desk = TakeoverDesk(lambda message: cluster.up.append((index, message)), self.takeovers)
        self.takeovers.elsewhere = self.desk

    def send(self, message):
        self.cluster.down.append((self.index, message))

    def begin(self, session="s", attempt=""):
        return Session(self.takeovers, session, attempt)


class Session:
    """A session that was welcome, or one that comes again by `come`."""

    def __init__(self, takeovers, session="s", attempt="", *, comes=False):
        self.ended = 0
        self.gone_on = 0
        self.left = False
        self.continuity = Continuity(b"", attempt, self.end)
        self.continuity.id = session
        self.waits = False
        if comes:
            self.waits = takeovers.take_over(self.continuity, self.go_on)
        takeovers.enter(self.continuity)

    def end(self):
        self.ended += 1
        self.continuity.over()

    def leave(self):
        self.left = True
        self.continuity.over()

    def go_on(self):
        self.gone_on += 1


class Cluster:
    def __init__(self, workers):
        self.up, self.down = [], []
        self.workers = [Worker(self, index) for index in range(workers)]
        self.calls = TakeoverCalls(self.workers)

    def carry(self):
        while self.up or self.down:
            while self.up:
                self.calls.handle(*self.up.pop(0))
            while self.down:
                index, message = self.down.pop(0)
                self.workers[index].desk.take(message)

    def hear(self, worker):
        """Have the supervisor take a worker's next message, whatever others have said before."""
        for found in [found for found in self.up if found[0] == worker][:1]:
            self.up.remove(found)
            self.calls.handle(*found)

    def come(self, worker, session="s", attempt=""):
        return Session(self.workers[worker].takeovers, session, attempt, comes=True)

    @property
    def is_empty(self):
        return not self.calls._where and not any(one.takeovers._open or one.desk._asked for one in self.workers)


class TestInOneWorker:
    def test_who_comes_again_ends_the_earlier(self):
        takeovers = Takeovers()
        earlier, other = Session(takeovers), Session(takeovers, "other")
        again = Session(takeovers, comes=True)
        assert (earlier.ended, other.ended, again.ended) == (1, 0, 0)
        assert not again.waits, "there is nobody to be told"
        assert Session(takeovers, comes=True).ended == 0
        assert again.ended == 1

    def test_one_that_is_over_is_forgotten(self):
        takeovers = Takeovers()
        earlier = Session(takeovers)
        earlier.continuity.over()
        earlier.continuity.over()
        assert not takeovers._open
        Session(takeovers, comes=True)
        assert earlier.ended == 0

    def test_one_that_is_over_is_not_kept_any_more(self):
        takeovers = Takeovers()
        earlier = Session(takeovers)
        earlier.continuity.over()
        takeovers.enter(earlier.continuity)
        assert not takeovers._open

    def test_one_that_nobody_can_end_is_not_kept(self):
        takeovers = Takeovers()
        takeovers.enter(Continuity())
        assert not takeovers._open

    def test_one_attempt_has_several_at_once(self):
        takeovers = Takeovers()
        old = Session(takeovers)
        tried = [Session(takeovers, attempt="a", comes=True) for _ in range(3)]
        assert old.ended == 1
        assert [one.ended for one in tried] == [0, 0, 0]
        tried[2].continuity.over()
        next_time = Session(takeovers, attempt="b", comes=True)
        assert [one.ended for one in tried] == [1, 1, 0]
        assert next_time.ended == 0

    def test_but_not_without_end(self):
        takeovers = Takeovers()
        tried = [Session(takeovers, attempt="a", comes=True) for _ in range(MAX_BESIDE + 3)]
        assert [one.ended for one in tried] == [1] * 3 + [0] * MAX_BESIDE
        assert len(takeovers._open["s"]) == MAX_BESIDE

    @pytest.mark.parametrize(("late", "ends"), [
        ("me.1", 0), ("me.9", 0), ("me.10", 0), ("me.11", 1), ("you.1", 1), ("me", 1), ("me.", 1), ("me.-1", 1), (".1", 1), ("", 1),
    ])  # fmt: skip
    def test_what_was_given_up_ends_no_later_attempt(self, late, ends):
        takeovers = Takeovers()
        now = Session(takeovers, attempt="me.10", comes=True)
        Session(takeovers, attempt=late, comes=True)
        assert now.ended == ends

    def test_nor_without_end(self):
        takeovers = Takeovers()
        tried = [Session(takeovers, attempt=f"me.{20 - k}", comes=True) for k in range(MAX_BESIDE + 3)]
        assert sum(one.ended for one in tried) == 3

    def test_none_is_an_attempt_of_its_own(self):
        takeovers = Takeovers()
        first = Session(takeovers, comes=True)
        Session(takeovers, comes=True)
        assert first.ended == 1


class TestAmongWorkers:
    def test_the_one_that_has_it_ends_it(self):
        cluster = Cluster(3)
        earlier, other = cluster.workers[1].begin(), cluster.workers[2].begin("other")
        cluster.carry()
        again = cluster.come(0)
        assert again.waits
        assert (earlier.ended, again.gone_on) == (0, 0)
        cluster.carry()
        assert (earlier.ended, other.ended, again.ended, again.gone_on) == (1, 0, 0, 1)

    def test_nobody_else_is_asked(self):
        cluster = Cluster(8)
        again = cluster.come(3)
        cluster.calls.handle(*cluster.up.pop())
        assert [index for index, _ in cluster.down] == [3]
        cluster.carry()
        assert again.gone_on == 1

    def test_it_goes_from_worker_to_worker(self):
        cluster = Cluster(2)
        sessions = [cluster.workers[0].begin()]
        for turn in range(6):
            sessions.append(cluster.come((turn + 1) % 2))
            cluster.carry()
            assert [one.ended for one in sessions] == [1] * (turn + 1) + [0]
        sessions[-1].continuity.over()
        cluster.carry()
        assert cluster.is_empty

    def test_one_attempt_at_two_workers(self):
        cluster = Cluster(2)
        old = cluster.workers[0].begin()
        cluster.carry()
        one, two = cluster.come(0, attempt="a"), cluster.come(1, attempt="a")
        cluster.carry()
        assert (old.ended, one.ended, two.ended, one.gone_on, two.gone_on) == (1, 0, 0, 1, 1)
        two.continuity.over()
        cluster.carry()
        cluster.come(1, attempt="b")
        cluster.carry()
        assert one.ended == 1, "it is still known"

    def test_two_at_the_same_time_leave_one_at_most(self):
        cluster = Cluster(2)
        one, two = cluster.come(0), cluster.come(1)
        cluster.carry()
        assert one.ended + two.ended == 1
        assert (two if one.ended else one).gone_on == 1

    def test_two_that_cross_do_not_end_each_other(self):
        cluster = Cluster(2)
        earlier = cluster.workers[0].begin()
        cluster.carry()
        first = cluster.come(1)
        cluster.calls.handle(*cluster.up.pop())  # the order to end what worker 0 has is on its way
        second = cluster.come(0)
        cluster.carry()
        assert (earlier.ended, first.ended, second.ended, second.gone_on) == (1, 1, 0, 1)

    def test_one_that_is_heard_of_late_ends_as_well(self):
        cluster = Cluster(2)
        earlier = cluster.workers[0].begin()
        again = cluster.come(1)
        cluster.hear(1)  # a supervisor that stood still hears of both at once, in any order
        cluster.carry()
        assert (earlier.ended, again.ended, again.gone_on) == (1, 0, 1)

    def test_all_that_have_it_are_waited_for(self):
        cluster = Cluster(4)
        tried = [cluster.come(worker, attempt="a") for worker in (1, 2, 3)]
        cluster.carry()
        again = cluster.come(0, attempt="b")
        cluster.calls.handle(*cluster.up.pop())
        for ended in range(1, 4):
            index, message = cluster.down.pop(0)
            cluster.workers[index].desk.take(message)
            while cluster.up:
                cluster.calls.handle(*cluster.up.pop(0))
            answered = [found for found in cluster.down if found[0] == 0]
            for index, message in answered:
                cluster.down.remove((index, message))
                cluster.workers[index].desk.take(message)
            assert (sum(one.ended for one in tried), again.gone_on) == (ended, ended == 3)

    def test_a_process_that_took_a_place_numbers_anew(self):
        cluster = Cluster(2)
        for number in range(5):
            cluster.come(0, f"s{number}")
        cluster.carry()
        cluster.calls.drop_worker(0)
        cluster.workers[0] = cluster.calls._workers[0] = Worker(cluster, 0)
        earlier = cluster.workers[0].begin()
        cluster.carry()
        first = cluster.come(1)
        cluster.calls.handle(*cluster.up.pop())
        second = cluster.come(0)
        cluster.carry()
        assert (earlier.ended, first.ended, second.ended) == (1, 1, 0)

    def test_a_worker_that_died_has_none(self):
        cluster = Cluster(2)
        cluster.workers[1].begin()
        cluster.carry()
        cluster.calls.drop_worker(1)
        again = cluster.come(0)
        cluster.calls.handle(*cluster.up.pop())
        assert [index for index, _ in cluster.down] == [0]
        cluster.carry()
        assert again.gone_on == 1

    def test_who_is_never_answered_is_given_up(self):
        cluster = Cluster(2)
        for number in range(MAX_ASKED + 5):
            cluster.come(0, f"s{number}")
        assert len(cluster.workers[0].desk._asked) == MAX_ASKED


@given(st.lists(st.tuples(st.sampled_from(["begin", "come", "over", "carry", "step"]), st.integers(0, 2), st.integers(0, 1)), max_size=40))
def test_in_the_end_one_is_left_and_known(steps):
    cluster = Cluster(3)
    sessions = []
    for what, worker, number in steps:
        if what == "come":
            sessions.append(cluster.come(worker, f"s{number}"))
        elif what == "begin" and not any(one.continuity.id == f"s{number}" for one in sessions):
            sessions.append(cluster.workers[worker].begin(f"s{number}"))
        elif what == "over" and sessions:
            sessions[number % len(sessions)].leave()
        elif what == "step":
            cluster.hear(worker)
        elif what == "carry":
            cluster.carry()
    cluster.carry()
    for name in ("s0", "s1"):
        mine = [one for one in sessions if one.continuity.id == name]
        open_ = [one for one in mine if one.continuity.end is not None]
        assert len(open_) <= 1
        assert len(open_) == 1 or not mine or any(one.left for one in mine), "they ended each other"
        assert cluster.calls._where.get(name, 0).bit_count() == len(open_)
    for one in sessions:
        one.continuity.over()
    cluster.carry()
    assert cluster.is_empty
