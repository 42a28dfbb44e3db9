"""A newer table takes over what the older one knew: objects, counters, ejections, slots."""

import pytest
from routekit import T0, build, occupy, pick, specs, swap

from router.deadlines import TICK_S, DeadlineWheel
from router.routing.image import TableImage
from router.routing.load import BOARD_CELLS, BOARD_SLOTS, ENDPOINT_SLOTS, OUTCOME_FAILED, OUTCOME_OK, LoadBoard
from router.routing.spec import EndpointSpec, OutlierSpec, ReplicaSpec, TableSpec
from router.routing.stage import Stage


def replicas(table):
    return {replica.id: replica for replica in table.endpoints["e"].replicas}


def test_the_same_replica_is_the_same_object():
    first = build(3)
    second = build(2, before=first)
    assert replicas(second) == {key: replicas(first)[key] for key in ("r0", "r1")}
    assert all(replica.owner is second.endpoints["e"] for replica in replicas(second).values())
    assert second.endpoints["e"].counters is first.endpoints["e"].counters


def test_what_was_in_flight_and_measured_stays():
    first = build(2)
    replica = first.endpoints["e"].replicas[0]
    lease = occupy(replica, 1)[0]
    replica.observe_latency(0.5, T0)
    second = build(2, before=first, now=T0 + 1)
    same = second.endpoints["e"].replicas[0]
    assert (same.in_flight, same.latency_s) == (1, 0.5)
    lease.release(OUTCOME_OK, T0 + 2)
    assert same.in_flight == 0


def test_another_address_is_another_replica():
    first = build(1)
    second = build([ReplicaSpec("r0", "http://10.0.0.99:80")], before=first)
    assert replicas(second)["r0"] is not replicas(first)["r0"]
    assert replicas(second)["r0"].in_flight == 0


def test_another_endpoint_is_another_pool():
    first = build(1)
    spec = TableSpec(2, (EndpointSpec("f", specs(1)),))
    second = swap(first, spec)
    assert second.endpoints["f"].replicas[0] is not replicas(first)["r0"]
    assert second.endpoints["f"].counters is not first.endpoints["e"].counters


def test_state_and_weight_are_the_newer_tables():
    first = build(2)
    second = build([ReplicaSpec("r0", "http://10.0.0.1:80", 3.0, "DRAINING"), specs(2)[1]], before=first)
    changed = replicas(second)["r0"]
    assert changed is replicas(first)["r0"]
    assert (changed.weight, changed.state) == (3.0, "DRAINING")
    assert {pick(second.endpoints["e"]).replica.id for _ in range(20)} == {"r1"}


def test_health_and_ejection_outlive_a_swap():
    first = build(4)
    one, two, *_ = first.endpoints["e"].replicas
    first.endpoints["e"].set_health(one, is_healthy=False, now=T0)
    for _ in range(5):
        first.endpoints["e"].note(two, OUTCOME_FAILED, T0)
    second = build(4, before=first, now=T0 + 1)
    assert {replica.id for replica in second.endpoints["e"].picker.eligible} == {"r2", "r3"}


def test_a_lease_of_the_older_table_is_judged_by_the_newer():
    first = build(4)
    leases = occupy(first.endpoints["e"].replicas[0], 5)
    second = build(4, before=first)
    for lease in leases:
        lease.release(OUTCOME_FAILED, T0)
    assert len(second.endpoints["e"].picker.eligible) == 3


class Worker:
    """What `Worker.patch` does with endpoints and the wheel."""

    def __init__(self, **endpoint):
        self.now = T0
        self.wheel = DeadlineWheel(T0)
        self.endpoint = endpoint
        self.table = build(4, **endpoint)
        self._adopt()

    def swap(self, count=4, **endpoint):
        self.table = build(count, before=self.table, now=self.now, **(endpoint or self.endpoint))
        self._adopt()

    def _adopt(self):
        for one in self.table.endpoints.values():
            one.watch_again = self.wheel.watch
            self.wheel.watch(one)

    def run(self, for_s):
        until = self.now + for_s
        while self.now < until:
            self.now += TICK_S
            self.wheel.turn(self.now)

    @property
    def one(self):
        return self.table.endpoints["e"]

    def eject(self):
        for _ in range(self.one.outlier.consecutive_failures):
            self.one.note(self.one.replicas[0], OUTCOME_FAILED, self.now)


def test_an_ejection_ends_on_time():
    worker = Worker()
    worker.eject()
    assert len(worker.one.picker.eligible) == 3
    worker.run(4.9)
    assert len(worker.one.picker.eligible) == 3
    worker.run(0.2)
    assert len(worker.one.picker.eligible) == 4


@pytest.mark.parametrize("base_s", [5.0, 60.0])
def test_an_ejection_ends_on_time_across_a_swap(base_s):
    worker = Worker(outlier=OutlierSpec(base_ejection_s=base_s))
    worker.eject()
    worker.run(1.0)
    worker.swap()
    assert len(worker.one.picker.eligible) == 3
    worker.run(base_s + 30.0)
    assert len(worker.one.picker.eligible) == 4


def test_a_replaced_endpoint_leaves_the_wheel():
    worker = Worker()
    for _ in range(20):
        worker.run(1.0)
        worker.swap()
    worker.run(60.0)
    assert sum(map(len, worker.wheel._slots)) == 0


def test_a_slow_start_goes_on_across_a_swap():
    worker = Worker(slow_start_s=10.0)
    worker.swap(5, slow_start_s=10.0)
    new = worker.one.replicas[4]
    assert new.weight == pytest.approx(0.1)
    worker.run(5.0)
    worker.swap(5, slow_start_s=10.0)
    assert new.weight == pytest.approx(0.5, abs=0.15)
    worker.run(6.0)
    assert new.weight == 1.0


def test_the_newer_slow_start_counts():
    worker = Worker(slow_start_s=100.0)
    worker.swap(5, slow_start_s=100.0)
    worker.run(1.0)
    worker.swap(5, slow_start_s=0.0)
    new = worker.one.replicas[4]
    assert new.weight == 1.0
    worker.run(15.0)
    assert new.weight == 1.0


class TestSlots:
    def test_a_replica_moves_to_another_cell_with_its_count(self):
        cells = bytearray(2 * 8 * 8)
        ours, theirs = (LoadBoard(memoryview(cells), worker, 2, 8) for worker in (0, 1))
        first = build(1, board=ours)
        leases = occupy(first.endpoints["e"].replicas[0], 3)
        assert theirs.others(0) == 3
        build([ReplicaSpec("r0", "http://10.0.0.1:80", slot=5)], before=first, board=ours)
        assert (theirs.others(0), theirs.others(5)) == (0, 3)
        for lease in leases:
            lease.release(OUTCOME_OK, T0)
        assert theirs.others(5) == 0

    def test_a_replica_that_left_does_not_write_over_its_successor(self):
        """Cells of replicas that left are free from the next patch on; requests on them last longer."""
        cells = bytearray(2 * BOARD_CELLS * 8)
        ours, theirs = (LoadBoard(memoryview(cells), worker, 2, BOARD_CELLS) for worker in (0, 1))
        image, stage = TableImage(), Stage(ours)

        def follow(*names):
            replicas = tuple(ReplicaSpec(name, f"http://{name}:1") for name in names)
            patch = image.diff(TableSpec(1, (EndpointSpec("e", replicas),)))
            return stage.add(image.apply(patch), T0).table

        table = follow("old", "stays")
        long_lease = occupy(table.endpoints["e"].replicas[0], 1)[0]
        table = follow("stays")
        table = follow("stays", "new")
        new = table.endpoints["e"].replicas[1]
        assert new.slot == 0, "the cell is used again"
        occupy(new, 4)
        long_lease.release(OUTCOME_OK, T0)
        assert theirs.others(new.slot) == 4


def test_the_board_is_large_enough_for_its_slots():
    assert BOARD_SLOTS + ENDPOINT_SLOTS == BOARD_CELLS
