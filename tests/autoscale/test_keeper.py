"""The loop: orders beside it, the duty, a store that goes away, endpoints that are deleted. Launchers are fakes."""

import asyncio
import json

import pytest
from configkit import poll, put_endpoint, put_meta, put_replica

from router.autoscale import keeper as module
from router.autoscale.keeper import Keeper, NeverConnectedError, NotOnDutyError, Options
from router.autoscale.launcher import LaunchError
from router.config.duty import AUTOSCALER, read_duty
from router.config.errors import StoreError
from router.config.schema import MIGRATIONS
from router.config.target import Target
from router.transport.tasks import spawn


class FakeLauncher:
    """Processes that exist by being in a set; `gate` holds orders back, `broken` makes them fail."""

    def __init__(self):
        self.alive = {}
        self.started = []
        self.stopped = []
        self.adopted = 0
        self.closed = None
        self.gate = None
        self.broken = ""
        self.about_to = set()
        self.looks = 0

    def adopt(self):
        self.adopted += 1

    def endpoints(self):
        self.looks += 1
        return {endpoint for endpoint, replicas in self.alive.items() if replicas}

    def running(self, endpoint):
        return self.alive.get(endpoint, set()) | {replica for owner, replica in self.about_to if owner == endpoint}

    async def start(self, order):
        self.about_to.add((order.endpoint, order.replica))
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.broken:
                raise LaunchError(self.broken)
            self.alive.setdefault(order.endpoint, set()).add(order.replica)
            self.started.append(order)
        finally:
            self.about_to.discard((order.endpoint, order.replica))

    async def stop(self, order):
        if self.broken:
            raise LaunchError(self.broken)
        self.stopped.append(order)
        self.alive.get(order.endpoint, set()).discard(order.replica)

    async def close(self, *, stop):
        self.closed = stop


def scaled(name="e", state="ACTIVE", **scaling):
    values = {"target_concurrency": 4, "scaledown_window_s": 0, **scaling}
    return put_endpoint(name, policy={"scaling": values}, state=state)


class Run:
    """A keeper that runs, and what it told."""

    def __init__(self, target, launcher, **options):
        self.launcher = launcher
        self.told = []
        self.keeper = Keeper(target, None, launcher, Options(**options), self._tell)
        self.task = None

    def _tell(self, event, **values):
        self.told.append((event, values))

    def events(self, event):
        return [values for told, values in self.told if told == event]

    def start(self):
        self.task = spawn(self.keeper.run(), "keeper")
        return self

    async def end(self, *, stop=False):
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            self.task = None
            await self.keeper.close(stop=stop)


@pytest.fixture
async def run(monkeypatch):
    """`run(store, launcher=None, **options)`: not started."""
    for name, value in (("PERIOD_S", 0.02), ("STAND_BY_S", 0.02), ("DUTY_PERIOD_S", 0.1)):
        monkeypatch.setattr(module, name, value)
    made = []

    def make(store, launcher=..., **options):
        made.append(Run(store.target, FakeLauncher() if launcher is ... else launcher, **options))
        return made[-1]

    yield make
    for each in made:
        await each.end()


async def duty(store):
    async with store.writer() as writer:
        rows = await writer.query("SELECT V FROM Meta WHERE K = @k", {"k": AUTOSCALER})
    return read_duty(rows[0][0]) if rows else None


async def test_a_slow_launch_delays_nobody_and_counts_as_pending(store, run):
    await store.write(scaled(min_replicas=1), scaled("f", min_replicas=1))
    one = run(store)
    one.launcher.gate = asyncio.Event()
    one.start()
    await poll(lambda: len(one.events("start")) == 2)
    turns = one.keeper.lines["e"]
    await poll(lambda: one.keeper.lines["e"] is not turns)
    assert one.keeper.lines["e"].pending == 1
    assert len(one.events("start")) == 2
    one.launcher.gate.set()
    await poll(lambda: len(one.launcher.started) == 2)
    (order,) = [order for order in one.launcher.started if order.endpoint == "e"]
    assert order.desired == 1
    await store.write(put_replica("e", order.replica))
    await poll(lambda: one.events("ready"))


async def test_a_launch_that_fails_is_tried_again_later_and_not_in_a_storm(store, run):
    await store.write(scaled(min_replicas=5))
    one = run(store)
    one.launcher.broken = "no room"
    one.start()
    await poll(lambda: one.events("not started"))
    first = len(one.events("start"))
    assert first == 5
    await poll(lambda: len(one.events("start")) > first, 10)
    assert len(one.events("start")) == first + 1  # one at a time, a second later
    assert {values["error"] for values in one.events("not started")} == {"no room"}
    one.launcher.broken = ""
    await poll(lambda: one.launcher.started, 10)


async def test_no_more_are_on_their_way_than_allowed_over_all_endpoints(store, run):
    await store.write(scaled(min_replicas=3), scaled("f", min_replicas=3))
    one = run(store, parallel_launches=4).start()
    await poll(lambda: len(one.launcher.started) == 4)
    turns = one.keeper.lines["f"]
    await poll(lambda: one.keeper.lines["f"] is not turns)
    assert len(one.events("start")) == 4
    await store.write(*(put_replica(order.endpoint, order.replica) for order in one.launcher.started))
    await poll(lambda: len(one.launcher.started) == 6)


async def test_a_lost_replicas_row_is_removed_and_it_is_replaced(store, run):
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    name = one.launcher.started[0].replica
    await store.write(put_replica("e", name))
    await poll(lambda: one.events("ready"))
    one.launcher.alive["e"].clear()
    await poll(lambda: len(one.launcher.started) == 2, 10)
    assert one.events("lost") == [{"endpoint": "e", "replica": name}]
    async with store.writer() as writer:
        assert await writer.replicas("e") == []


async def test_one_works_at_a_time_and_the_next_takes_over_at_once_after_a_clean_end(store, run):
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    other = run(store).start()
    await poll(lambda: other.events("standing by"))
    assert (other.launcher.adopted, other.launcher.started, other.keeper.lines) == (0, [], {})
    assert (await duty(store)).owner == one.keeper._name
    await one.end()
    assert one.launcher.closed is False
    await poll(lambda: other.launcher.started)
    assert other.launcher.adopted == 1
    with pytest.raises(NotOnDutyError):
        await run(store).keeper.once()
    await other.end()
    assert await duty(store) is None


async def test_a_duty_that_was_taken_away_is_noticed(store, run):
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    until = json.dumps({"owner": "other", "until": "2999-01-01T00:00:00Z"})
    await store.write(put_meta(AUTOSCALER, until), scaled(min_replicas=3))
    await poll(lambda: one.events("standing by"))
    await one.end(stop=True)
    assert (await duty(store)).owner == "other"
    assert (one.launcher.stopped, one.launcher.closed) == ([], False)  # its replicas are another's now


async def test_nothing_is_started_on_a_lease_that_has_run_out(store, run):
    """As when a look at the store takes longer than the lease: another may have taken over meanwhile."""
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    one.keeper._renew_at_s, one.keeper._duty_until_s = float("inf"), 0.0
    await store.write(scaled(min_replicas=3))
    await poll(lambda: one.keeper.lines["e"].decision.desired == 3)
    turns = one.keeper.lines["e"]
    await poll(lambda: one.keeper.lines["e"] is not turns)
    assert len(one.events("start")) == 1
    one.keeper._renew_at_s = 0.0
    await poll(lambda: len(one.launcher.started) == 3)


async def test_nothing_is_done_while_the_store_is_away_and_all_goes_on_when_it_is_back(store, run):
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    name = one.launcher.started[0].replica
    await store.write(put_replica("e", name))
    await poll(lambda: one.events("ready"))
    await store.stop()
    await poll(lambda: one.events("store"))
    await store.start(init=False)
    await store.write(scaled(min_replicas=2))
    await poll(lambda: len(one.launcher.started) == 2, 15)
    assert one.launcher.stopped == []
    assert [values["error"] == "" for values in one.events("store")] == [False, True]


async def test_replicas_of_a_deleted_endpoint_are_stopped_but_not_if_none_is_left(store, run, monkeypatch):
    monkeypatch.setattr(module, "FORSAKEN_S", 0.1)
    await store.write(scaled(min_replicas=1), scaled("f"))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    await store.write(("delete", "Endpoints", ("e",)), ("delete", "Endpoints", ("f",)))
    await poll(lambda: not one.keeper.lines)
    looks = one.launcher.looks  # a store without any endpoint has lost something
    await poll(lambda: one.launcher.looks > looks + 20)
    assert one.launcher.stopped == []
    await store.write(scaled("f"))
    await poll(lambda: one.launcher.stopped)
    assert [order.endpoint for order in one.launcher.stopped] == ["e"]


async def test_a_paused_endpoint_is_left_as_it_is(store, run):
    await store.write(scaled(min_replicas=1))
    one = run(store).start()
    await poll(lambda: one.launcher.started)
    await store.write(scaled(state="PAUSED", min_replicas=3))
    await poll(lambda: one.events("skipped"))
    assert one.events("skipped") == [{"endpoint": "e", "reason": "it is paused"}]
    assert (len(one.launcher.started), one.launcher.stopped) == (1, [])


async def test_at_the_end_replicas_are_stopped_if_that_is_wanted(store, run):
    await store.write(scaled(min_replicas=2))
    one = run(store).start()
    await poll(lambda: len(one.launcher.started) == 2)
    await one.end(stop=True)
    assert len(one.launcher.stopped) == 2
    assert one.launcher.closed is True


async def test_an_order_under_way_at_the_end_gets_a_moment(store, run, monkeypatch):
    await store.write(scaled(min_replicas=1))
    one = run(store)
    one.launcher.gate = asyncio.Event()
    one.start()
    await poll(lambda: one.events("start"))
    asyncio.get_running_loop().call_later(0.1, one.launcher.gate.set)
    await one.end()
    assert len(one.launcher.started) == 1
    monkeypatch.setattr(module, "ORDERS_S", 0.1)
    other = run(store)
    other.launcher.gate = asyncio.Event()
    other.start()
    await poll(lambda: other.events("start"))
    await other.end()
    assert other.launcher.started == []


async def test_a_dry_run_says_what_it_would_do_beside_one_that_works(store, run):
    await store.write(scaled(min_replicas=2))
    one = run(store, None).start()
    await poll(lambda: one.events("desired"))
    assert one.events("desired")[0]["replicas"] == 2
    assert one.events("start") == []
    assert await duty(store) is None


async def test_a_store_that_must_be_mended_first_and_one_that_is_never_there(make_store, run, tmp_path):
    old = await make_store(migrations=MIGRATIONS[:1])
    with pytest.raises(StoreError, match="router store init"):
        await run(old).keeper.run()

    class Nowhere:
        target = Target("embedded", f"unix:{tmp_path}/n")

    with pytest.raises(NeverConnectedError):
        await run(Nowhere, start_limit_s=0.2).keeper.run()
