"""The next table is made of the one in force and a patch: whole or not at all, and at the patch's own cost."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routekit import T0, occupy

from router.routing.load import BOARD_CELLS, OUTCOME_OK, LoadBoard
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, RouteSpec, TablePatch
from router.routing.stage import Stage


def replica(name, address="http://10.0.0.1:80", **more):
    return ReplicaSpec(name, address, **more)


def change(name, *upsert, remove=(), spec=None):
    return EndpointPatch(name, spec, tuple(upsert), tuple(remove))


def new(name, *upsert, **settings):
    return change(name, *upsert, spec=EndpointSpec(name, **settings))


def staged(*names, version=1, board=None):
    """A stage whose table has these endpoints with replicas a, b and c each, and a route to the first."""
    stage = Stage(board)
    numbers = iter(range(3 * len(names)))
    made = [new(name, *(replica(r, slot=next(numbers)) for r in "abc")) for name in names]
    stage.add(TablePatch(version, tuple(made), routes=(RouteSpec("*", "/", names[0]),)), T0)
    return stage


def ids(table, name="e"):
    return [one.id for one in table.endpoints[name].replicas]


def test_a_patch_in_parts_is_invisible_until_its_last():
    stage = staged("e", "f")
    before = stage.table
    shown = (ids(before), ids(before, "f"), [r.weight for r in before.endpoints["e"].replicas], before.routes.specs)
    parts = [
        TablePatch(2, (change("e", replica("d"), remove=("a",)),), more=True),
        TablePatch(2, (change("e", replica("b", weight=9.0, state="DOWN")), new("g", replica("x"))), more=True),
        TablePatch(2, (), gone=("f",), routes=(RouteSpec("*", "/", "g"),), more=True),
    ]
    for part in parts:
        assert stage.add(part, T0) is None
        assert stage.table is before
        assert (ids(before), ids(before, "f"), [r.weight for r in before.endpoints["e"].replicas], before.routes.specs) == shown
        assert [r.state for r in before.endpoints["e"].replicas] == ["READY"] * 3
        assert all(r.owner is before.endpoints["e"] for r in before.endpoints["e"].replicas)
    step = stage.add(TablePatch(2, (change("e", replica("d", weight=2.0)),)), T0)
    assert stage.table is step.table
    assert ids(step.table) == ["b", "c", "d"]
    assert set(step.table.endpoints) == {"e", "g"}
    assert {r.id: r.weight for r in step.table.endpoints["e"].replicas} == {"b": 9.0, "c": 1.0, "d": 2.0}
    assert step.table.version == 2
    assert {endpoint.name for endpoint in step.made} == {"e", "g"}
    assert sorted(r.id for r in step.departed) == ["a", "a", "b", "c"]


REFUSED = {
    "a change of what is not there": TablePatch(2, (change("nobody", replica("x")),)),
    "a route to what is not there": TablePatch(2, (new("g"),), routes=(RouteSpec("*", "/", "nobody"),)),
    "a route to what leaves": TablePatch(2, (change("f", replica("x", weight=7.0)),), gone=("e",)),
    "an address that is none": TablePatch(2, (change("e", replica("b", weight=5.0), replica("x", "nonsense")),)),
    "after good changes": TablePatch(2, (change("e", replica("b", state="DOWN"), remove=("a",)), change("nobody"))),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_refused_patch_changes_nothing(name, parts):
    patch = REFUSED[name]
    stage = staged("e", "f")
    before = stage.table
    endpoints = dict(before.endpoints)
    lease = occupy(before.endpoints["e"].replicas[0], 1)[0]
    if parts == 2:
        assert stage.add(TablePatch(2, (change("e", replica("early"), remove=("c",)),), more=True), T0) is None
    with pytest.raises(ValueError):
        stage.add(patch, T0)
    assert stage.table is before
    assert before.endpoints == endpoints
    assert ids(before) == ["a", "b", "c"]
    assert [(r.state, r.weight) for r in before.endpoints["e"].replicas] == [("READY", 1.0)] * 3
    assert all(not r.has_left and r.owner is before.endpoints["e"] for r in before.endpoints["e"].replicas)
    assert not before.endpoints["e"].is_replaced
    lease.release(OUTCOME_OK, T0)
    step = stage.add(TablePatch(3, (change("e", replica("d")),)), T0)  # the parts before it are forgotten
    assert ids(step.table) == ["a", "b", "c", "d"]
    assert step.departed == []


def test_endpoints_that_are_not_named_are_shared():
    stage = staged("e", "f", "g")
    before = stage.table
    after = stage.add(TablePatch(2, (change("f", replica("d")),)), T0).table
    assert after.endpoints["e"] is before.endpoints["e"]
    assert after.endpoints["g"] is before.endpoints["g"]
    assert after.endpoints["f"] is not before.endpoints["f"]
    assert after.routes is before.routes
    assert before.endpoints["f"].is_replaced
    assert not before.endpoints["e"].is_replaced
    assert list(before.endpoints) == ["e", "f", "g"]


def test_replicas_that_stay_are_the_same_objects():
    stage = staged("e")
    before = {r.id: r for r in stage.table.endpoints["e"].replicas}
    after = stage.add(TablePatch(2, (change("e", replica("b", state="DRAINING"), replica("d"), remove=("a",)),)), T0).table
    now = {r.id: r for r in after.endpoints["e"].replicas}
    assert now["b"] is before["b"]
    assert now["c"] is before["c"]
    assert now["b"].state == "DRAINING"
    assert all(r.owner is after.endpoints["e"] for r in now.values())
    assert before["a"].has_left
    assert before["a"].owner is None


def test_new_settings_of_an_endpoint_keep_its_replicas_and_counters():
    stage = staged("e")
    before = stage.table.endpoints["e"]
    step = stage.add(TablePatch(2, (change("e", spec=EndpointSpec("e", retries=9)),)), T0)
    after = step.table.endpoints["e"]
    assert after.max_retries == 9
    assert after.replicas == before.replicas
    assert after.counters is before.counters
    assert step.departed == []


def test_another_address_is_another_replica_and_the_old_one_departs():
    stage = staged("e")
    old = stage.table.endpoints["e"].replicas[0]
    lease = occupy(old, 1)[0]
    step = stage.add(TablePatch(2, (change("e", replica("a", "http://10.0.0.9:80")),)), T0)
    now = {r.id: r for r in step.table.endpoints["e"].replicas}["a"]
    assert now is not old
    assert (now.in_flight, old.in_flight) == (0, 1)
    assert step.departed == [old]
    lease.release(OUTCOME_OK, T0)


def test_a_replica_that_is_removed_and_added_again_in_one_patch_is_a_new_one():
    stage = staged("e")
    old = stage.table.endpoints["e"].replicas[0]
    step = stage.add(TablePatch(2, (change("e", replica("a", slot=77), remove=("a",)),)), T0)
    now = {r.id: r for r in step.table.endpoints["e"].replicas}["a"]
    assert now is not old
    assert step.departed == [old]


def test_an_endpoint_that_leaves_and_comes_back_in_later_parts_is_a_new_one():
    stage = staged("e", "f")
    old = stage.table.endpoints["f"]
    assert stage.add(TablePatch(2, gone=("f",), more=True), T0) is None
    step = stage.add(TablePatch(2, (new("f", replica("z")),)), T0)
    assert ids(step.table, "f") == ["z"]
    assert step.table.endpoints["f"].counters is not old.counters
    assert sorted(r.id for r in step.departed) == ["a", "b", "c"]


def test_all_that_leaves_departs_and_gives_its_cell_up():
    board = LoadBoard(memoryview(bytearray(2 * BOARD_CELLS * 8)), 0, 2, BOARD_CELLS)
    other = LoadBoard(board._cells.obj and memoryview(board._cells.obj), 1, 2, BOARD_CELLS)
    stage = staged("e", "f", board=board)
    leases = [occupy(r, 2) for r in stage.table.endpoints["f"].replicas]
    slots = [r.slot for r in stage.table.endpoints["f"].replicas]
    assert [other.others(slot) for slot in slots] == [2, 2, 2]
    step = stage.add(TablePatch(2, gone=("f",)), T0)
    assert {r.id for r in step.departed} == {"a", "b", "c"}
    assert [other.others(slot) for slot in slots] == [0, 0, 0]
    for lease in leases:
        lease[0].release(OUTCOME_OK, T0)  # a cell that another may have by now
    assert [other.others(slot) for slot in slots] == [0, 0, 0]


def test_a_request_under_way_picks_from_the_newer_endpoint():
    stage = staged("e")
    old = stage.table.endpoints["e"]
    after = stage.add(TablePatch(2, (change("e", remove=("a", "b")),)), T0).table
    assert old.picker is after.endpoints["e"].picker
    stage.add(TablePatch(3, gone=("e",), routes=()), T0)
    assert after.endpoints["e"].picker is not old.picker or not after.endpoints["e"].picker.replicas


def test_removing_what_is_not_there_is_no_error():
    stage = staged("e")
    step = stage.add(TablePatch(2, (change("e", remove=("nobody",)),), gone=("nobody",)), T0)
    assert ids(step.table) == ["a", "b", "c"]
    assert step.departed == []


def test_the_version_alone_may_change():
    stage = staged("e")
    before = stage.table
    step = stage.add(TablePatch(2), T0)
    assert step.table.version == 2
    assert step.table.endpoints is before.endpoints
    assert step.made == step.departed == []


def test_routes_stay_unless_they_are_named():
    stage = staged("e", "f")
    after = stage.add(TablePatch(2, routes=(RouteSpec("h", "/", "f"),)), T0).table
    assert after.route(b"h", b"/").name == "f"
    assert after.route(b"other", b"/") is None


def calls_of(work):
    """How many Python calls `work` makes."""
    count = 0

    def count_calls(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(count_calls)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", ["one replica", "an endpoint more", "an endpoint less"])
def test_a_patch_costs_what_it_changes_whatever_the_size_of_the_table(kind):
    patch = {
        "one replica": TablePatch(2, (change("e5", replica("a", weight=2.0)),)),
        "an endpoint more": TablePatch(2, (new("x", replica("a")),)),
        "an endpoint less": TablePatch(2, gone=("e5",)),
    }[kind]
    costs = []
    for size in (10, 1_000):
        stage = staged(*(f"e{i}" for i in range(size)))
        costs.append(calls_of(lambda stage=stage: stage.add(patch, T0)))
    assert costs[1] <= costs[0] + 5


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "remove", "move", "weigh"])), max_size=12), st.data())
@settings(max_examples=150, deadline=None)
def test_one_patch_in_any_parts_is_one_step(edits, data):
    stage, other = staged("e"), staged("e")
    changes = []
    for name, kind in edits:
        if kind == "remove":
            changes.append(change("e", remove=(name,)))
        else:
            address = "http://10.0.0.7:80" if kind == "move" else "http://10.0.0.1:80"
            changes.append(change("e", replica(name, address, weight=3.0 if kind == "weigh" else 1.0)))
    whole = stage.add(TablePatch(2, tuple(changes)), T0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(changes)), max_size=3)))
    for begin, end in zip([0, *cuts], [*cuts, len(changes)], strict=True):
        last = end == len(changes) and begin == ([0, *cuts])[-1]
        step = other.add(TablePatch(2, tuple(changes[begin:end]), more=not last), T0)
        if last:
            break
    assert [(r.id, r.address, r.weight) for r in whole.table.endpoints["e"].replicas] == [
        (r.id, r.address, r.weight) for r in step.table.endpoints["e"].replicas
    ] if changes else True
    assert sorted(r.id for r in whole.departed) == sorted(r.id for r in step.departed)
    assert len({id(r) for r in whole.departed}) == len(whole.departed)


def test_what_is_left_of_a_patch_of_which_a_part_failed_is_dropped():
    stage = staged("e")
    with pytest.raises(ValueError, match="not there"):
        stage.add(TablePatch(2, (change("nobody", replica("x")),), more=True), T0)
    assert stage.add(TablePatch(2, (change("e", remove=("a",)),), more=True), T0) is None
    assert stage.add(TablePatch(2, (change("e", remove=("b",)),)), T0) is None
    assert (stage.table.version, len(ids(stage.table, "e"))) == (1, 3)
    assert stage.add(TablePatch(3, (change("e", remove=("b",)),)), T0).table.version == 3
    assert len(ids(stage.table, "e")) == 2
