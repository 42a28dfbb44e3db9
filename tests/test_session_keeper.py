"""Sessions of a static table: room, idleness over several workers, ends, and what an upgrade hands on."""

import asyncio
import time

import pytest

from router.errors import Kind
from router.routing.image import TableImage
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, SessionEntry, StickySpec, TablePatch
from router.session_book import SessionBook, SessionUse
from router.session_keeper import Begun, LocalSessions


def use(session_id, *, busy, idle_s=60):
    return SessionUse(session_id, "e", "r", idle_s, busy)


class TestBook:
    def test_idle_is_counted_from_the_end_of_the_last_request_in_any_worker(self):
        book = SessionBook()
        book.add(SessionEntry("a", "e", "r", 60), 0.0)
        assert book.idle(59.9) == []
        book.take(0, [use("a", busy=True)], 59.9)
        book.take(1, [use("a", busy=True)], 60.0)
        book.take(0, [use("a", busy=False)], 100.0)
        assert book.idle(1e6) == [], "the other worker still has one"
        assert book.busy() == ["a"]
        book.take(1, [use("a", busy=False)], 200.0)
        assert book.idle(259.9) == []
        assert book.idle(260.0) == ["a"]
        assert book.idle(260.0, 1.0) == []

    def test_a_worker_that_dies_has_nothing_under_way(self):
        book = SessionBook()
        book.take(0, [use("a", busy=True)], 0.0)
        book.drop_worker(0, 100.0)
        assert book.idle(159.0) == []
        assert book.idle(160.0) == ["a"]

    def test_what_a_predecessor_still_has_is_not_idle(self):
        book = SessionBook()
        book.add(SessionEntry("a", "e", "r", 60), 0.0)
        book.set_elsewhere(["a", "unknown"], 10.0)
        assert book.idle(1e6) == []
        book.set_elsewhere([], 500.0)
        assert book.idle(559.0) == []
        assert book.idle(560.0) == ["a"]

    def test_counts(self):
        book = SessionBook()
        book.take(0, [use("a", busy=True), use("b", busy=False)], 0.0)
        assert book.counts() == {"e": 2}


class Kept:
    def __init__(self, **sticky):
        self.image = TableImage()
        spec = EndpointSpec("e", sessions=StickySpec(**sticky))
        replicas = (ReplicaSpec("r", "http://h:1"), ReplicaSpec("d", "http://h:2", state="DRAINING"))
        self.image.apply(TablePatch(0, (EndpointPatch("e", spec, replicas), EndpointPatch("plain", EndpointSpec("plain")))))
        self.patches = []
        self.keeper = LocalSessions(self.image, self.publish)
        self.publish(self.keeper.first_patch())

    def publish(self, patch):
        self.patches.append(self.image.apply(patch))


async def until(condition, seconds=5.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)


@pytest.fixture
async def keep():
    made = []

    def make(**sticky):
        made.append(Kept(**sticky))
        return made[-1]

    yield make
    for kept in made:
        await kept.keeper.close()


async def test_room_and_what_has_none(keep):
    kept = keep(max_per_replica=2)
    assert len(kept.image.session_keys[0]) == 32
    ids = {(await kept.keeper.start("e", "r", 60)).id for _ in range(2)}
    assert set(kept.image.sessions) == ids
    assert await kept.keeper.start("e", "r", 60) is Kind.AT_CAPACITY
    for endpoint, replica in (("e", "d"), ("e", "nobody"), ("plain", "r"), ("nowhere", "r")):
        assert await kept.keeper.start(endpoint, replica, 60) is Kind.NO_REPLICA
    assert await kept.keeper.end(next(iter(ids))) is None
    assert isinstance(await kept.keeper.start("e", "r", 60), Begun)
    status = kept.keeper.status()
    assert (status["open"], status["started"], status["ended"]) == ({"e": 2}, {"e": 3}, [["e", "terminated", 1]])


async def test_who_is_idle_ends_and_who_is_busy_does_not(keep):
    kept = keep()
    idle, _ = await kept.keeper.start("e", "r", 1)
    busy, _ = await kept.keeper.start("e", "r", 1)
    kept.keeper.take(0, [use(busy, busy=True, idle_s=1)])
    kept.keeper.run()
    await until(lambda: idle not in kept.image.sessions)
    assert busy in kept.image.sessions
    assert {shown["session"]: shown["busy"] for shown in kept.keeper.shown("e")} == {busy: True}
    kept.keeper.take(0, [use(busy, busy=False, idle_s=1)])
    await until(lambda: not kept.image.sessions)
    assert kept.keeper.ended == {("e", "idle"): 2}


async def test_the_end_of_a_request_of_a_session_that_is_over_brings_nothing_back(keep):
    kept = keep()
    session_id, _ = await kept.keeper.start("e", "r", 60)
    kept.keeper.take(0, [use(session_id, busy=True)])
    await kept.keeper.end(session_id)
    kept.keeper.take(0, [use(session_id, busy=False)])
    kept.keeper.take(0, [use(session_id, busy=True)])
    assert kept.image.sessions == {}
    assert kept.keeper.book.used == {}


async def test_a_successor_takes_over_what_there_is_and_what_still_happens(keep):
    kept = keep()
    first, _ = await kept.keeper.start("e", "r", 60)
    over, _ = await kept.keeper.start("e", "r", 60)
    await kept.keeper.end(over)
    image = TableImage()
    successor = LocalSessions(image, image.apply)
    entries = tuple(kept.image.sessions.values())
    image.apply(successor.first_patch(kept.image.session_keys, entries, kept.image.ended_sessions))
    assert image.session_keys == kept.image.session_keys
    assert set(image.sessions) == {first}
    assert image.ended_sessions == (over,), "their tokens may still be young"
    later, _ = await kept.keeper.start("e", "r", 60)
    kept.keeper.take(0, [use(later, busy=True)])
    await kept.keeper.end(first)
    for _ in range(2):  # it is told again and again
        successor.follow_predecessor(
            list(kept.image.sessions.values()), list(kept.image.ended_sessions), kept.keeper.book.busy()
        )
        assert set(image.sessions) == {later}
    assert successor.book.busy() == [later]
    await successor.end(later)
    successor.follow_predecessor(list(kept.image.sessions.values()), [], [])
    assert image.sessions == {}, "what ended here does not come back from there"


async def test_a_predecessor_ends_nothing_for_idleness(keep):
    kept = keep()
    session_id, _ = await kept.keeper.start("e", "r", 1)
    kept.keeper.run()
    kept.keeper.retire()
    await asyncio.sleep(1.5)
    assert session_id in kept.image.sessions
