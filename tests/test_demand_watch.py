"""Asking workers for demand: one asking at a time, the silent keep their last counts, the dead what they served."""

import asyncio

from router.control import Demanded
from router.demand import EndpointDemand
from router.demand_watch import DemandWatch
from router.routing.image import TableImage
from router.routing.spec import EndpointPatch, EndpointSpec, SessionEntry, TablePatch
from router.session_book import SessionBook


class FakeWorker:
    """Answers with what the test set, in the order in which it is asked."""

    def __init__(self, index, **counted):
        self.index = index
        self.pid = 10 + index
        self.state = "ready"
        self.counted = counted
        self.asking = self.most = 0
        self.is_silent = False

    async def ask_demand(self, limit_s):
        assert limit_s < 1
        self.asking += 1
        self.most = max(self.most, self.asking)
        await asyncio.sleep(0)
        self.asking -= 1
        if self.is_silent or self.state not in ("ready", "draining"):
            return None
        return Demanded(0, self.pid, dict(self.counted))


def image(*names):
    made = TableImage()
    made.apply(TablePatch(0, tuple(EndpointPatch(name, EndpointSpec(name)) for name in names)))
    return made


async def test_workers_are_added_up_and_endpoints_of_no_table_left_out():
    workers = [FakeWorker(0, e=EndpointDemand(1, 5, 1)), FakeWorker(1, e=EndpointDemand(2, 3), gone=EndpointDemand(1, 1))]
    assert await DemandWatch(workers, image("e"), SessionBook()).read() == {"e": EndpointDemand(3, 8, 1)}


async def test_a_silent_worker_keeps_its_last_counts_and_a_dead_one_what_it_served():
    worker = FakeWorker(0, e=EndpointDemand(4, 9, 2))
    watch = DemandWatch([worker], image("e"), SessionBook())
    await watch.read()
    worker.is_silent = True
    assert await watch.read() == {"e": EndpointDemand(4, 9, 2)}
    worker.state = "restarting"
    assert await watch.read() == {"e": EndpointDemand(0, 9, 2)}
    worker.pid, worker.state, worker.is_silent, worker.counted = 99, "ready", False, {"e": EndpointDemand(1, 1)}
    assert await watch.read() == {"e": EndpointDemand(1, 10, 2)}


async def test_askers_at_the_same_time_ask_one_after_another():
    worker = FakeWorker(0, e=EndpointDemand(1, 1))
    watch = DemandWatch([worker], image("e"), SessionBook())
    found = await asyncio.gather(*(watch.read() for _ in range(5)))
    assert found == [{"e": EndpointDemand(1, 1)}] * 5
    assert worker.most == 1


async def test_sessions_of_endpoints_of_the_table():
    sessions = SessionBook()
    sessions.add(SessionEntry("a", "e", "r", 60), 0.0)
    sessions.add(SessionEntry("b", "gone", "r", 60), 0.0)
    assert await DemandWatch([], image("e"), sessions).read() == {"e": EndpointDemand(sessions=1)}
