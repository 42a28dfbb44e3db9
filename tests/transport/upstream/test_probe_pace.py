"""How many checks are started and are under way, whose come first, and what becomes of those nobody wants."""

import asyncio
from time import monotonic

import pytest

from router.routing.image import TableImage
from router.routing.spec import EndpointPatch, EndpointSpec, HealthSpec, ReplicaSpec, TablePatch
from router.transport.upstream import probe
from router.transport.upstream.probe import HealthMonitor

QUICK = HealthSpec(kind="tcp", interval_s=0.02, timeout_s=5.0, unhealthy_after=1)
SLOW = HealthSpec(kind="tcp", interval_s=600.0, timeout_s=5.0, unhealthy_after=1)


async def poll(condition, within_s=5.0):
    deadline = monotonic() + within_s
    while not condition():
        assert monotonic() < deadline
        await asyncio.sleep(0.001)


class Rig:
    """A monitor whose checks a test answers: `asked` in order, each with the future of its outcome."""

    def __init__(self, monkeypatch, **options):
        self.changes = []
        self.asked = []
        self.outcomes = {}  # address to the complaint that is given at once
        self.held = set()  # addresses whose checks wait
        self.running = 0
        self.most = 0
        self._gates = {}
        monkeypatch.setattr(probe, "check", self._check)
        self.monitor = HealthMonitor(lambda *change: self.changes.append(change), **options)
        self.image = TableImage()

    async def _check(self, address, spec, tls, attached):
        self.asked.append((address, monotonic()))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while address in self.held:
                await self._gates.setdefault(address, asyncio.Event()).wait()
            return self.outcomes.get(address, "")
        finally:
            self.running -= 1

    def release(self, *addresses):
        for address in addresses or list(self.held):
            self.held.discard(address)
            if address in self._gates:
                self._gates.pop(address).set()

    def put(self, *changes, gone=()):
        self.monitor.follow(self.image.apply(TablePatch(0, tuple(changes), tuple(gone))), self.image)

    def addresses(self):
        return [address for address, _ in self.asked]


@pytest.fixture
async def make_rig(monkeypatch):
    rigs = []

    def make(**options):
        rig = Rig(monkeypatch, **options)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.monitor.close()
        rig.release()
        await asyncio.sleep(0)


def url(name):
    return f"http://{name}:80"


def new(name, *replicas, health=SLOW):
    return EndpointPatch(name, EndpointSpec(name, health=health), tuple(ReplicaSpec(r, url(r)) for r in replicas))


def more(name, *replicas, remove=()):
    return EndpointPatch(name, None, tuple(ReplicaSpec(r, url(r)) for r in replicas), tuple(remove))


async def test_checks_are_started_at_a_bounded_rate(make_rig):
    rig = make_rig(max_checks_per_s=200.0, max_parallel=1_000)
    rig.put(new("e", *(f"r{i}" for i in range(500))))
    await asyncio.sleep(0.5)
    times = [at for _, at in rig.asked]
    assert 20 <= len(times) <= 0.55 * 200 + 3
    assert len({*rig.addresses()}) == len(times)  # nobody twice before everybody once


async def test_so_many_and_no_more_are_under_way(make_rig):
    rig = make_rig(max_checks_per_s=1e6, max_parallel=7)
    names = [f"r{i}" for i in range(40)]
    rig.held = {url(name) for name in names}
    rig.put(new("e", *names))
    await poll(lambda: rig.running == 7)
    await asyncio.sleep(0.05)
    assert (rig.running, len(rig.asked)) == (7, 7)
    rig.release(*rig.addresses()[:3])
    await poll(lambda: len(rig.asked) == 10)
    assert rig.most == 7
    rig.release()
    await poll(lambda: len(rig.asked) == 40)
    assert rig.most == 7


async def test_new_replicas_come_before_those_that_are_due_again(make_rig):
    rig = make_rig(max_checks_per_s=100.0)
    rig.put(new("e", *(f"r{i}" for i in range(5)), health=QUICK))
    await poll(lambda: len(rig.asked) >= 10)
    rig.put(more("e", "new1", "new2"))
    before = len(rig.asked)
    await poll(lambda: len(rig.asked) >= before + 3)
    assert {url("new1"), url("new2")} <= set(rig.addresses()[before : before + 3])


async def test_everybody_has_a_turn_when_there_are_more_than_the_rate_allows(make_rig):
    rig = make_rig(max_checks_per_s=400.0)
    names = [f"r{i}" for i in range(20)]
    rig.put(new("e", *names, health=HealthSpec(kind="tcp", interval_s=0.001, unhealthy_after=1)))
    await poll(lambda: len(rig.asked) >= 200)
    counts = [rig.addresses()[:200].count(url(name)) for name in names]
    assert min(counts) >= 5


async def test_a_check_of_a_replica_that_left_meanwhile_says_nothing(make_rig):
    rig = make_rig()
    rig.outcomes[url("a")] = "refused"
    rig.held = {url("a")}
    rig.put(new("e", "a", "b", health=QUICK))
    await poll(lambda: url("a") in rig.addresses())
    rig.put(more("e", remove=("a",)))
    rig.release()
    await poll(lambda: rig.addresses().count(url("b")) >= 3)
    assert rig.changes == []
    assert ("e", "a") not in rig.monitor.verdicts
    assert rig.addresses().count(url("a")) == 1


async def test_a_check_of_the_address_before_says_nothing_of_the_one_after(make_rig):
    rig = make_rig()
    rig.outcomes[url("old")] = "refused"
    rig.held = {url("old")}
    rig.put(EndpointPatch("e", EndpointSpec("e", health=QUICK), (ReplicaSpec("a", url("old")),)))
    await poll(lambda: rig.asked)
    rig.put(EndpointPatch("e", None, (ReplicaSpec("a", url("new")),)))
    rig.release()
    await poll(lambda: rig.addresses().count(url("new")) >= 3)
    assert rig.changes == []
    assert rig.monitor.verdicts["e", "a"].is_healthy
    assert rig.monitor.unhealthy() == []


async def test_an_unhealthy_replica_that_moves_begins_anew(make_rig):
    rig = make_rig()
    rig.outcomes[url("old")] = "refused"
    rig.put(EndpointPatch("e", EndpointSpec("e", health=QUICK), (ReplicaSpec("a", url("old")),)))
    await poll(lambda: rig.changes == [("e", "a", False)])
    rig.put(EndpointPatch("e", None, (ReplicaSpec("a", url("new")),)))
    assert rig.monitor.unhealthy() == []
    await poll(lambda: url("new") in rig.addresses())
    assert rig.changes == [("e", "a", False)]


async def test_weight_and_state_leave_a_check_as_it_is(make_rig):
    rig = make_rig()
    rig.put(new("e", "a"))
    await poll(lambda: rig.monitor.verdicts["e", "a"].checked_s is not None)
    verdict = rig.monitor.verdicts["e", "a"]
    rig.put(EndpointPatch("e", None, (ReplicaSpec("a", url("a"), 2.0, "DRAINING"),)))
    await asyncio.sleep(0.02)
    assert rig.monitor.verdicts["e", "a"] is verdict
    assert len(rig.asked) == 1


async def test_other_settings_are_checked_by_at_once_and_keep_the_verdict(make_rig):
    rig = make_rig()
    rig.outcomes[url("a")] = "refused"
    rig.put(new("e", "a"))
    await poll(lambda: rig.changes == [("e", "a", False)])
    rig.put(EndpointPatch("e", EndpointSpec("e", health=HealthSpec(kind="tcp", interval_s=500.0, unhealthy_after=2))))
    await poll(lambda: len(rig.asked) == 2)
    assert rig.monitor.unhealthy() == [("e", "a")]
    assert len(rig.changes) == 1


async def test_without_checks_everybody_is_healthy_again(make_rig):
    rig = make_rig()
    rig.outcomes[url("a")] = "refused"
    rig.put(new("e", "a", health=QUICK))
    await poll(lambda: rig.changes)
    rig.put(EndpointPatch("e", EndpointSpec("e", health=HealthSpec(kind="none"))))
    assert rig.changes[-1] == ("e", "a", True)
    assert rig.monitor.unhealthy() == []
    asked = len(rig.asked)
    await asyncio.sleep(0.1)
    assert len(rig.asked) <= asked + 1


async def test_an_endpoint_that_leaves_is_forgotten_whole(make_rig):
    rig = make_rig()
    rig.outcomes |= {url("a"): "refused", url("b"): "refused"}
    rig.put(new("e", "a", "b"), new("f", "c"))
    await poll(lambda: len(rig.changes) == 2)
    rig.put(gone=("e",))
    assert set(rig.monitor.verdicts) == {("f", "c")}
    assert rig.monitor.unhealthy() == []
    rig.put(new("e", "a"))
    await poll(lambda: len(rig.changes) == 3)  # checked at once, by its first check alone
    assert rig.monitor.unhealthy() == [("e", "a")]


async def test_what_is_not_wanted_any_more_is_not_kept(make_rig):
    """Days of churn with long intervals must not pile up checks that nobody will run."""
    rig = make_rig(max_checks_per_s=1e6)
    rig.put(new("e"))
    for i in range(50):
        rig.put(more("e", *(f"r{i}-{j}" for j in range(20)), remove=tuple(rig.image.replicas["e"])))
        await poll(lambda i=i: rig.running == 0 and not rig.monitor._first)
    assert len(rig.monitor.verdicts) == 20
    assert len(rig.monitor._again) <= 200


async def test_a_removed_replica_takes_no_place_in_the_queue(make_rig):
    rig = make_rig(max_checks_per_s=1e6, max_parallel=1)
    rig.held = {url("first")}
    rig.put(new("e", "first"))
    await poll(lambda: rig.running == 1)
    rig.put(more("e", *(f"r{i}" for i in range(20))))
    rig.put(more("e", "kept", remove=tuple(f"r{i}" for i in range(20))))
    rig.release()
    await poll(lambda: url("kept") in rig.addresses())
    # One may have waited for the place already.
    assert len(rig.asked) <= 3


async def test_a_check_that_fails_with_a_bug_does_not_stop_the_others(make_rig, monkeypatch):
    rig = make_rig()

    async def check(address, spec, tls, attached):
        rig.asked.append((address, monotonic()))
        if address == url("a"):
            raise ZeroDivisionError
        return ""

    monkeypatch.setattr(probe, "check", check)
    rig.put(new("e", "a", "b", health=QUICK))
    await poll(lambda: rig.addresses().count(url("b")) >= 3)
    await poll(lambda: rig.addresses().count(url("a")) >= 2)


async def test_close_ends_everything(make_rig):
    rig = make_rig(max_parallel=4)
    rig.held = {url(f"r{i}") for i in range(10)}
    rig.put(new("e", *(f"r{i}" for i in range(10))))
    await poll(lambda: rig.running == 4)
    rig.monitor.close()
    await poll(lambda: rig.running == 0)
    asked = len(rig.asked)
    await asyncio.sleep(0.02)
    assert len(rig.asked) == asked
