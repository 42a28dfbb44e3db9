"""The tail over a client that is a script: order of events, restarts, hand-overs and the 250 ms cap."""

import asyncio
from time import monotonic

import pytest
from configkit import poll, record

from router.config import tail as module
from router.config.client import RpcError, Status
from router.config.pace import Pace
from router.config.reduce import Transactions, Watermark
from router.config.tail import LostPlaceError, Tail
from router.config.wire import Child, Heartbeat, WireError


def failure(code, details="of a test"):
    from grpc.aio import Metadata

    return RpcError(code, Metadata(), Metadata(), details)


HANG = object()


class FakeClient:
    """Each reading of a partition plays the next of its scripts: lists of records, exceptions, HANG; then it hangs."""

    def __init__(self, **scripts):
        self.scripts = {token: list(plays) for token, plays in scripts.items()}
        self.reads = []
        self.open = 0

    async def changes(self, start_us, token, heartbeat_ms):
        self.reads.append((token, start_us))
        plays = self.scripts.get(token, [])
        play = plays.pop(0) if plays else [HANG]
        self.open += 1
        try:
            for step in play:
                if step is HANG:
                    await asyncio.get_running_loop().create_future()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.open -= 1


class Quick(Pace):
    """No waiting."""

    async def wait(self):
        self.attempts += 1
        await asyncio.sleep(0)


class Rig:
    def __init__(self, client, positions=None, pace=None):
        self.client = client
        self.watermark = Watermark(0, positions or {"a": 10})
        self.transactions = Transactions()
        self.taken = []
        self.troubles = []
        self.progress = 0
        self.pace = pace or Quick()
        self.tail = Tail(
            client, self.pace, self.watermark, self.transactions, self._take, self.troubles.append, on_progress=self._on
        )
        self.task = asyncio.ensure_future(self.tail.run())

    def _take(self, records):
        self.taken.append(records)

    def _on(self):
        self.progress += 1

    def read(self):
        return self.watermark.read(self.transactions.oldest_us())


@pytest.fixture
async def rig():
    rigs = []

    def make(client, positions=None, pace=None):
        found = Rig(client, positions, pace)
        rigs.append(found)
        return found

    yield make
    for one in rigs:
        one.task.cancel()
        await asyncio.wait([one.task])
        assert one.client.open == 0, "a stream was left open"


def row(name="e", at=20, **more):
    return record("Endpoints", ((name,), ("main", None, None, "ACTIVE")), at=at, **more)


async def test_records_and_heartbeats_move_the_place(rig):
    one = rig(FakeClient(a=[[[row(at=20)], [Heartbeat(30)], [row(at=40), row("f", at=41)], HANG]]))
    await poll(lambda: one.progress == 3)
    assert one.taken == [[row(at=20)], [row(at=40)], [row("f", at=41)]]
    assert one.read() == 40  # another record of 41 may follow
    assert one.watermark.positions["a"] == 41
    assert one.client.reads == [("a", 10)]


@pytest.mark.parametrize(
    "broken",
    [*(failure(code) for code in sorted(module.PASSING, key=str)), WireError("bad")],
    ids=lambda found: found.code().name if isinstance(found, RpcError) else "wire",
)
async def test_what_passes_is_read_on_from_its_place(rig, broken):
    one = rig(FakeClient(a=[[[row(at=20)], broken], [[row(at=20), row("f", at=25)], HANG]]))
    await poll(lambda: one.read() == 24)
    assert one.client.reads == [("a", 10), ("a", 20)]  # inclusively
    assert one.tail.restarts == 1
    assert one.pace.attempts == 1
    assert one.troubles[0] == ""
    assert any(one.troubles)
    assert one.troubles[-1] == ""


@pytest.mark.parametrize("code", [code for code in Status if code not in module.PASSING and code is not Status.OK], ids=str)
async def test_what_does_not_pass_ends_the_tail(rig, code):
    one = rig(FakeClient(a=[[[row(at=20)], failure(code)]], b=[[HANG]]), {"a": 10, "b": 10})
    with pytest.raises(LostPlaceError, match=code.name):
        await asyncio.wait_for(asyncio.shield(one.task), 5)


async def test_an_end_without_children_is_an_error(rig):
    one = rig(FakeClient(a=[[[Heartbeat(20)]], [], [[Heartbeat(30)], HANG]]))
    await poll(lambda: one.read() == 30)
    assert one.client.reads == [("a", 10), ("a", 20), ("a", 20)]
    assert any("without naming" in trouble for trouble in one.troubles)


async def test_silence_is_noticed_and_the_stream_closed(rig, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    one = rig(FakeClient(a=[[[Heartbeat(20)], HANG], [[Heartbeat(30)], HANG]]))
    began = monotonic()
    await poll(lambda: one.read() == 30)
    assert monotonic() - began >= 0.05
    assert any("said nothing" in trouble for trouble in one.troubles)


async def test_children_begin_at_once_and_their_parent_is_done(rig):
    one = rig(FakeClient(a=[[[row(at=20)], [Child(25, "left"), Child(25, "right")]]], left=[[[Heartbeat(40)], HANG]]))
    await poll(lambda: one.watermark.positions.get("left") == 40)
    assert set(one.watermark.positions) == {"left", "right"}
    assert sorted(one.client.reads) == [("a", 10), ("left", 25), ("right", 25)]
    assert one.read() == 25


async def test_children_that_were_named_before_a_break_are_named_again(rig):
    one = rig(FakeClient(a=[[[Child(25, "left")], failure(Status.UNAVAILABLE)], [[Child(25, "left")], [Child(25, "right")]]]))
    await poll(lambda: set(one.watermark.positions) == {"left", "right"})
    assert [token for token, _ in one.client.reads].count("left") == 1


async def test_a_merge_that_both_parents_name_is_read_once(rig):
    one = rig(
        FakeClient(a=[[[Child(30, "c")]]], b=[[0.05, [row(at=29)], [Child(30, "c")]]], c=[[[Heartbeat(60)], HANG]]),
        {"a": 10, "b": 10},
    )
    await poll(lambda: one.watermark.positions.get("c") == 60)
    assert one.read() <= 29 or "b" not in one.watermark.positions
    await poll(lambda: set(one.watermark.positions) == {"c"})
    assert [token for token, _ in one.client.reads].count("c") == 1
    assert one.read() == 60
    assert len(one.taken) == 1


async def test_a_child_that_ended_before_the_second_parent_is_not_read_again(rig):
    one = rig(
        FakeClient(a=[[[Child(30, "c")]]], b=[[0.1, [Child(30, "c")]]], c=[[[Child(40, "d")]]], d=[[[Heartbeat(60)], HANG]]),
        {"a": 10, "b": 10},
    )
    await poll(lambda: set(one.watermark.positions) == {"d"})
    assert sorted(token for token, _ in one.client.reads) == ["a", "b", "c", "d"]


async def test_nobody_left_is_a_lost_place(rig):
    one = rig(FakeClient(a=[[[Child(30, "a")]]]))
    with pytest.raises(LostPlaceError):
        await asyncio.wait_for(asyncio.shield(one.task), 5)


async def test_a_transaction_of_two_partitions_comes_whole(rig):
    left, right = row("e", at=20, records=2, transaction="t"), row("f", at=20, records=2, transaction="t")
    one = rig(FakeClient(a=[[[left], [Heartbeat(50)], HANG]], b=[[0.05, [right], [Heartbeat(50)], HANG]]), {"a": 10, "b": 10})
    await poll(lambda: one.watermark.positions["a"] == 50)
    assert one.taken == []
    assert one.read() <= 19
    await poll(lambda: one.taken)
    assert one.taken == [[left, right]]
    await poll(lambda: one.read() == 50)


async def test_a_break_in_the_middle_of_a_transaction(rig):
    left, right = row("e", at=20, records=2, transaction="t"), row("f", at=20, records=2, transaction="t")
    one = rig(FakeClient(a=[[[left], failure(Status.UNAVAILABLE)], [[left, right], HANG]]))
    await poll(lambda: one.taken)
    assert one.taken == [[left, right]]
    assert one.client.reads == [("a", 10), ("a", 20)]


async def test_what_stays_away_is_let_go_after_a_quarter_of_a_second(rig):
    left, other = row("e", at=20, records=2, transaction="t"), row("g", at=30, records=2, transaction="u")
    one = rig(FakeClient(a=[[[left], 0.1, [other], [Heartbeat(90)], HANG]]))
    began = monotonic()
    await poll(lambda: len(one.taken) == 1)
    assert 0.2 < monotonic() - began < 1.0
    assert one.taken == [[left]]
    await poll(lambda: len(one.taken) == 2)
    assert one.taken[1] == [other]
    assert one.read() == 90


async def test_what_take_refuses_ends_the_tail_with_it_and_the_place_stays(rig):
    class Refusal(Exception):
        pass

    one = rig(FakeClient(a=[[0.01, [row(at=20)], [Heartbeat(90)], HANG]]))

    def refuse(records):
        raise Refusal

    one.tail._take = refuse
    with pytest.raises(Refusal):
        await asyncio.wait_for(asyncio.shield(one.task), 5)
    assert one.watermark.positions == {"a": 10}


async def test_what_take_refuses_of_an_overdue_transaction_ends_the_tail_as_well(rig):
    """It is let go by a timer: the refusal must not end in the loop's log with the change lost."""

    class Refusal(Exception):
        pass

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    one = rig(FakeClient(a=[[0.01, [row(at=20, records=2)], HANG]]))

    def refuse(records):
        raise Refusal

    one.tail._take = refuse
    with pytest.raises(Refusal):
        await asyncio.wait_for(asyncio.shield(one.task), 2)


async def test_a_success_lets_the_pace_start_over(rig):
    pace = Pace()
    pace._delay_s = 0.4
    one = rig(FakeClient(a=[[[Heartbeat(20)], [Heartbeat(30)], HANG]]), pace=pace)
    await poll(lambda: one.read() == 30)
    assert one.troubles[-1] == ""


async def test_cancelled_it_leaves_no_stream_open(rig):
    one = rig(FakeClient(), {token: 10 for token in "abcdef"})
    await poll(lambda: one.client.open == 6)
    one.task.cancel()
    await asyncio.wait([one.task])
    assert one.client.open == 0
