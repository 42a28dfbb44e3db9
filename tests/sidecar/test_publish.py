"""The row is what was wanted last, however the store behaves."""

import asyncio
import logging

import pytest
from sidekit import Diary, FakeRegistry, in_virtual_time, now

from router.sidecar.ports import State
from router.sidecar.publish import Publisher


def make(**options):
    registry = FakeRegistry(Diary())
    return registry, Publisher(registry, **options)


@in_virtual_time
async def test_what_is_wanted_is_written_in_order():
    registry, publisher = make()
    publisher.want(State.READY)  # nothing is registered yet
    assert await publisher.settled(1) and registry.calls == 0
    publisher.register(3)
    assert await publisher.settled(1) and registry.row == (3, "STARTING") and not publisher.was_ready
    publisher.want(State.READY)
    assert await publisher.settled(1) and registry.row == (3, "READY") and publisher.was_ready
    publisher.want(State.READY)
    assert await publisher.settled(1) and registry.calls == 2
    assert await publisher.remove(1) and registry.row is None
    assert registry.diary.words() == ["store register 3", "store READY", "store remove"]


@in_virtual_time
async def test_only_the_latest_wish_is_written():
    registry, publisher = make()
    registry.away = True
    publisher.register(1)
    for state in (State.READY, State.DRAINING, State.READY, State.DOWN):
        publisher.want(state)
        await asyncio.sleep(3)
    publisher.register(2)
    publisher.want(State.READY)
    await asyncio.sleep(1)
    assert publisher.is_behind and publisher.failures > 5
    registry.away = False
    assert await publisher.settled(8)
    assert registry.diary.words() == ["store register 2", "store READY"]
    await publisher.close()


@in_virtual_time
async def test_a_store_that_is_away_is_asked_ever_less_often_but_at_once_for_a_new_wish():
    registry, publisher = make()
    registry.away = True
    publisher.register(1)
    await asyncio.sleep(60)
    assert registry.calls < 30
    before = registry.calls
    publisher.want(State.READY)
    await asyncio.sleep(0.01)
    assert registry.calls == before + 1
    await publisher.close()


@in_virtual_time
async def test_a_failed_write_that_landed_is_written_over():
    """READY is on the row; DRAINING fails but lands; READY is wanted again and must be written again."""
    registry, publisher = make()
    publisher.register(1)
    publisher.want(State.READY)
    assert await publisher.settled(1)
    registry.away = registry.lands = True
    publisher.want(State.DRAINING)
    await asyncio.sleep(0.01)
    assert registry.row == (1, "DRAINING")
    registry.away = False
    publisher.want(State.READY)
    assert await publisher.settled(1) and registry.row == (1, "READY")
    await publisher.close()


@in_virtual_time
async def test_a_store_that_hangs_is_away():
    registry, publisher = make(attempt_s=5)
    registry.hangs = True
    publisher.register(1)
    assert not await publisher.settled(4) and publisher.failures == 0
    registry.hangs = False
    assert await publisher.settled(2) and publisher.failures == 1
    await publisher.close()


@in_virtual_time
async def test_an_unknown_fault_of_the_store_is_logged_and_tried_again(caplog):
    registry, publisher = make()
    good, registry.register = registry.register, None  # a TypeError, as a bug would raise
    with caplog.at_level(logging.ERROR):
        publisher._registry = _Broken()
        publisher.register(1)
        await asyncio.sleep(1)
        assert publisher.failures > 1
        registry.register = good
        publisher._registry = registry
        assert await publisher.settled(8)
    assert "could not be written" in caplog.text
    await publisher.close()


class _Broken:
    async def register(self, generation):
        raise KeyError(generation)


@in_virtual_time
async def test_again_writes_it_all_anew():
    registry, publisher = make()
    publisher.again()
    publisher.register(7)
    publisher.want(State.READY)
    assert await publisher.settled(1)
    registry.row = None  # the reaper took it
    publisher.again()
    assert await publisher.settled(1) and registry.row == (7, "READY")
    await publisher.close()


@pytest.mark.parametrize("hangs", [False, True])
@in_virtual_time
async def test_removal_is_bounded_when_the_store_is_away(hangs):
    registry, publisher = make()
    publisher.register(1)
    publisher.want(State.READY)
    assert await publisher.settled(1)
    registry.away, registry.hangs = True, hangs
    begun_s = now()
    assert not await publisher.remove(2)
    assert 2 <= now() - begun_s <= 4.01


@in_virtual_time
async def test_a_row_that_cannot_be_removed_says_down():
    registry, publisher = make()
    publisher.register(1)
    assert await publisher.settled(1)
    publisher._registry = registry

    async def fails():
        registry.away = True
        try:
            await FakeRegistry._write(registry, registry.row, "remove")
        finally:
            registry.away = False

    registry.remove = fails
    assert not await publisher.remove(1)
    assert registry.row == (1, "DOWN")


@in_virtual_time
async def test_a_removed_row_does_not_come_back():
    """The lease loop of the node may still run while the sidecar ends."""
    registry, publisher = make()
    publisher.register(1)
    assert await publisher.settled(1) and await publisher.remove(1)
    publisher.again()
    publisher.want(State.READY)
    publisher.register(2)
    await asyncio.sleep(1)
    assert registry.row is None and registry.diary.words()[-1] == "store remove"


@in_virtual_time
async def test_a_row_that_was_never_tried_is_not_removed():
    registry, publisher = make()
    assert await publisher.remove(1) and registry.calls == 0
