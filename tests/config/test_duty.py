"""Duties: one has it, by the store's clock, until its lease runs out or it is given up."""

import pytest
from configkit import put_meta

from router.config.duty import AUTOSCALER, REAPER, leave_duty, read_duty, take_duty
from router.config.timestamps import format_timestamp


async def take(store, owner, key=AUTOSCALER, length_s=12.0, **options):
    async with store.writer() as writer:
        return await writer.transact(lambda t: take_duty(t, key, owner, length_s, **options))


async def leave(store, owner, key=AUTOSCALER):
    async with store.writer() as writer:
        await writer.transact(lambda t: leave_duty(t, key, owner))


async def test_one_has_it_until_it_is_given_up(store):
    assert await take(store, "a") == (True, True)
    assert await take(store, "a") == (True, True)
    assert await take(store, "b") == (False, False)
    await leave(store, "b")
    assert await take(store, "b") == (False, False)
    await leave(store, "a")
    await leave(store, "a")
    assert await take(store, "b") == (True, True)


async def test_duties_do_not_meet(store):
    assert await take(store, "a", REAPER) == (True, True)
    assert await take(store, "b", AUTOSCALER) == (True, True)


async def test_a_lease_that_ran_out_is_anybodys(store):
    past = format_timestamp(store.database.safe() - 1_000)
    await store.write(put_meta(AUTOSCALER, {"owner": "a", "until": past}))
    assert await take(store, "b") == (True, True)
    assert await take(store, "a") == (False, False)


async def test_after_a_gap_it_waits_as_long_as_it_is_told(store):
    soon = format_timestamp(store.database.safe() + 2_000_000)  # extended ten seconds ago
    await store.write(put_meta(AUTOSCALER, {"owner": "a", "until": soon}))
    assert await take(store, "a", steady_s=4.0, patience_s=30.0) == (True, False)
    assert await take(store, "a", steady_s=4.0, patience_s=30.0) == (True, False)  # until the patience is over


@pytest.mark.parametrize("text", [None, "", "{", "[]", "1", "{}", '{"owner": "x"}', '{"owner": "x", "until": 5}'])
def test_what_cannot_be_read_is_nobodys(text):
    assert read_duty(text) is None
