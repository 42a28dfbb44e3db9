"""Every transition of the table, a crash and a stop in each state, and the order of the end. All in virtual time."""

import asyncio

import pytest
from sidekit import Diary, FakeEngine, FakeRegistry, FakeRelay, FakeWatch, in_virtual_time, now

from router.sidecar.life import Graces, SidecarLife
from router.sidecar.ports import State
from router.sidecar.readiness import Reading
from router.transport.tasks import spawn

GRACES = Graces(store_s=2, settle_s=0.5, exit_s=30, engine_s=20)


class Rig:
    def __init__(self):
        self.diary = Diary()
        self.registry = FakeRegistry(self.diary)
        self.relay = FakeRelay(self.diary)
        self.engine = FakeEngine(self.diary)
        self.watches = []
        self.life = SidecarLife(self.registry, self.relay, self.engine, self._watch, graces=GRACES)
        self.task = None

    def _watch(self, on_change):
        self.watches.append(FakeWatch(on_change))
        return self.watches[-1]

    def run(self):
        self.task = spawn(self.life.run(), "life")
        return self

    async def say(self, *readings):
        for reading in readings:
            await asyncio.sleep(0.1)
            self.watches[-1].say(reading)
        await asyncio.sleep(0.1)

    async def reach(self, name):
        """Bring it to a state of the table."""
        await asyncio.sleep(0.1)
        if name != "STARTING":
            await self.say(Reading.READY)
        if name == "DRAINING":
            await self.say(Reading.DRAINING)
        if name == "FAILING":
            await self.say(Reading.FAILING)
        if name == "DOWN":
            self.engine.crash()
            await asyncio.sleep(0.1)
        assert self.registry.row == (1, {"FAILING": "STARTING"}.get(name, name))

    async def stop(self):
        self.life.stop()
        return await self.task


@in_virtual_time
async def test_a_whole_life():
    rig = Rig().run()
    await rig.reach("READY")
    assert rig.life.status().state is State.READY and rig.life.status().generation == 1
    assert not rig.life.status().is_store_behind
    rig.relay.flying, rig.relay.finish_s = 3, 5
    stopped_s = now()
    assert await rig.stop() == 0
    assert rig.diary.words() == [
        "relay open",
        "engine start 1",
        "store register 1",
        "store READY",
        "store DRAINING",
        "relay drain 30",
        "relay close",
        "engine stop 20",
        "store remove",
        "relay close",
    ]
    assert rig.diary.at("relay drain", 30) - rig.diary.at("store", "DRAINING") == pytest.approx(0.5, abs=0.01)
    assert now() - stopped_s == pytest.approx(0.5 + 5 + 0.1, abs=0.02)
    assert rig.life.status().state is State.DOWN and rig.life.status().restarts == 0


@in_virtual_time
async def test_what_the_engine_says_is_on_the_row_at_once():
    rig = Rig().run()
    await rig.reach("STARTING")
    for reading, state in [
        (Reading.READY, "READY"),
        (Reading.DRAINING, "DRAINING"),
        (Reading.READY, "READY"),
        (Reading.FAILING, "STARTING"),
        (Reading.READY, "READY"),
    ]:
        rig.watches[-1].say(reading)
        await asyncio.sleep(0.01)
        assert rig.registry.row == (1, state)
    assert await rig.stop() == 0


@pytest.mark.parametrize("state", ["STARTING", "READY", "DRAINING", "FAILING"])
@in_virtual_time
async def test_a_crash_in_each_state(state):
    rig = Rig().run()
    await rig.reach(state)
    crashed_s = now()
    rig.engine.crash()
    await asyncio.sleep(0.01)
    assert rig.registry.row == (1, "DOWN") and rig.life.status().state is State.DOWN
    assert rig.diary.at("store", "DOWN") - crashed_s < 0.01
    await asyncio.sleep(0.6)  # a back-off of 0.5
    assert rig.registry.row == (2, "STARTING") and len(rig.watches) == 2
    await rig.say(Reading.READY)
    assert rig.registry.row == (2, "READY") and rig.life.status().restarts == 1
    assert await rig.stop() == 0
    assert rig.diary.words().count("relay open") == 1  # it stayed open


@pytest.mark.parametrize("state", ["READY", "DRAINING", "FAILING"])
@in_virtual_time
async def test_a_port_that_refuses_in_each_state(state):
    """The process may still be there: what is left of it is ended before the next one starts."""
    rig = Rig().run()
    await rig.reach(state)
    rig.engine.stop_takes_s = 3
    await rig.say(Reading.DEAD)
    assert rig.registry.row == (1, "DOWN")
    assert rig.diary.words()[-2:] == ["engine stop 20", "store DOWN"]
    await asyncio.sleep(4)
    assert rig.registry.row == (2, "STARTING")
    assert await rig.stop() == 0


@in_virtual_time
async def test_a_restart_storm_backs_off():
    rig = Rig()
    rig.engine.waits = [0.5, 1, 2, 4, 8, 16, 30]
    rig.run()
    starts = []
    for _ in range(8):
        while len(rig.watches) == len(starts):
            await asyncio.sleep(0.01)
        starts.append(now())
        rig.engine.crash()
    gaps = [round(b - a, 1) for a, b in zip(starts, starts[1:])]
    assert gaps == [0.5, 1, 2, 4, 8, 16, 30] and rig.life.status().generation == 8
    assert await rig.stop() == 0


@pytest.mark.parametrize("state", ["STARTING", "READY", "DRAINING", "FAILING", "DOWN"])
@in_virtual_time
async def test_a_stop_in_each_state(state):
    rig = Rig()
    rig.engine.waits = [10]
    rig.run()
    await rig.reach(state)
    stopped_s = now()
    assert await rig.stop() == 0
    assert rig.registry.row is None
    words = rig.diary.words()
    assert words.index("relay drain 30") < words.index("store remove")
    assert ("engine stop 20" in words) is (state != "DOWN")
    settled = rig.diary.at("relay drain", 30) - stopped_s > 0.49
    assert settled is (state != "STARTING"), "nobody has to forget a replica that never was ready"


@in_virtual_time
async def test_a_stop_before_anything_began():
    rig = Rig()
    rig.life.stop()
    assert await rig.run().task == 0
    assert rig.diary.words() == ["relay open", "relay close"]


@in_virtual_time
async def test_a_stop_while_the_engine_is_being_started():
    rig = Rig()
    rig.engine.start_takes_s = 5
    rig.run()
    await asyncio.sleep(1)
    assert await rig.stop() == 0
    assert now() < 1.1 and "engine start 1" not in rig.diary.words() and rig.registry.calls == 0


@in_virtual_time
async def test_requests_that_outlast_the_grace_are_cut():
    rig = Rig().run()
    await rig.reach("READY")
    rig.relay.flying = 3
    stopped_s = now()
    assert await rig.stop() == 4
    assert now() - stopped_s == pytest.approx(30.6, abs=0.05)


@in_virtual_time
async def test_a_second_stop_waits_for_nothing():
    rig = Rig().run()
    await rig.reach("READY")
    rig.relay.flying = 3
    rig.engine.stop_takes_s = 60
    rig.life.stop()
    await asyncio.sleep(5)
    stopped_s = now()
    assert await rig.stop() == 4
    assert now() - stopped_s < 0.1
    assert rig.diary.words()[-7:] == [
        "relay drain 30", "relay drain 0", "relay close", "engine stop 20", "engine stop 0", "store remove", "relay close",
    ]  # fmt: skip


@in_virtual_time
async def test_an_engine_that_ignores_sigterm_is_killed_and_nothing_was_cut():
    rig = Rig().run()
    await rig.reach("READY")
    rig.engine.stop_takes_s = 999
    stopped_s = now()
    assert await rig.stop() == 0
    assert now() - stopped_s == pytest.approx(20.5, abs=0.05)


@in_virtual_time
async def test_an_engine_that_dies_while_requests_finish_cut_them():
    rig = Rig().run()
    await rig.reach("READY")
    rig.relay.flying, rig.relay.finish_s = 2, 8
    rig.life.stop()
    await asyncio.sleep(3)
    rig.engine.crash()
    rig.relay.finish_s = 0
    assert await rig.task == 4
    assert "engine start 2" not in rig.diary.words()


@in_virtual_time
async def test_with_the_store_away_it_serves_and_ends_all_the_same():
    rig = Rig()
    rig.registry.away = True
    rig.run()
    await asyncio.sleep(5)
    await rig.say(Reading.READY)
    status = rig.life.status()
    assert status.state is State.READY and status.is_store_behind and status.store_failures > 3
    stopped_s = now()
    assert await rig.stop() == 0
    # 2 s for DRAINING, 0.1 for the engine, 2 for the removal and 2 for DOWN
    assert now() - stopped_s == pytest.approx(6.1, abs=0.2)


@in_virtual_time
async def test_a_store_that_comes_back_gets_the_latest_state_only():
    rig = Rig()
    rig.registry.away = True
    rig.run()
    await asyncio.sleep(1)
    await rig.say(Reading.READY, Reading.DRAINING, Reading.READY)
    rig.engine.crash()
    await asyncio.sleep(1)
    await rig.say(Reading.READY)
    rig.registry.away = False
    await asyncio.sleep(8)  # the longest wait, with its jitter
    stored = [word for word in rig.diary.words() if word.startswith("store")]
    assert stored == ["store register 2", "store READY"]
    assert await rig.stop() == 0


@in_virtual_time
async def test_the_row_is_written_anew_after_the_lease_was_lost():
    rig = Rig().run()
    await rig.reach("READY")
    rig.registry.row = (1, "DOWN")  # the reaper's doing
    rig.life.lease_restored()
    await asyncio.sleep(0.01)
    assert rig.registry.row == (1, "READY")
    assert await rig.stop() == 0


@in_virtual_time
async def test_a_relay_that_cannot_listen_ends_it_before_anything_else():
    rig = Rig()
    rig.relay.fails = OSError("address in use")
    with pytest.raises(OSError, match="in use"):
        await rig.life.run()
    assert rig.diary.words() == ["relay close"]


@in_virtual_time
async def test_an_engine_that_never_ran_is_fatal_and_one_that_did_is_tried_again(caplog):
    rig = Rig()
    rig.engine.start_fails = FileNotFoundError("no such command")
    assert await rig.run().task == 1 and rig.registry.calls == 0

    rig = Rig().run()
    await rig.reach("READY")
    rig.engine.start_fails = BlockingIOError("no process left")
    rig.engine.crash()
    await asyncio.sleep(3)
    assert rig.registry.row == (1, "DOWN") and rig.engine.generation > 3
    rig.engine.start_fails = None
    await asyncio.sleep(0.6)
    assert rig.registry.row == (rig.engine.generation, "STARTING")
    assert await rig.stop() == 0
    assert "crashed" not in caplog.text


@in_virtual_time
async def test_a_cancelled_life_leaves_nothing():
    rig = Rig().run()
    await rig.reach("READY")
    rig.task.cancel()
    await asyncio.wait([rig.task])
    assert rig.diary.words()[-2:] == ["relay close", "engine stop 0"]
