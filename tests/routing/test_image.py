"""The supervisor's table: patches applied in place, told in parts, and cells of the load board given once."""

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routekit import T0

from router.routing import image as module
from router.routing.image import PART_REPLICAS, SlotBook, TableImage, TooManyReplicasError, parts_of
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, RouteSpec, TablePatch, TableSpec
from router.routing.stage import Stage


def replica(name, address=1, **more):
    return ReplicaSpec(name, f"http://10.0.0.{address}:80", **more)


def patch(*changes, gone=(), routes=None):
    return TablePatch(0, tuple(changes), tuple(gone), routes)


def new(name, *upsert, **values):
    return EndpointPatch(name, EndpointSpec(name, **values), tuple(upsert))


def change(name, *upsert, remove=()):
    return EndpointPatch(name, None, tuple(upsert), tuple(remove))


def slots(image):
    return {(name, r.id): r.slot for name, known in image.replicas.items() for r in known.values()}


def told(stage):
    """The table of a stage as a spec, without cells."""
    endpoints = {
        name: (endpoint.spec, {(r.id, r.address, r.spec_weight, r.state) for r in endpoint.replicas})
        for name, endpoint in stage.table.endpoints.items()
    }
    return stage.table.version, endpoints, stage.table.routes.specs


def known(image):
    spec = image.spec()
    endpoints = {
        e.name: (image.endpoints[e.name], {(r.id, r.address, r.weight, r.state) for r in e.replicas}) for e in spec.endpoints
    }
    return spec.version, endpoints, spec.routes


# -- any table ---------------------------------------------------------------------------------------------

replicas = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.integers(1, 3), st.sampled_from([1.0, 2.5]), st.sampled_from(["READY", "DRAINING"])),
    max_size=6,
)
tables = st.dictionaries(st.sampled_from(["e", "f", "g"]), st.tuples(st.integers(0, 2), replicas), max_size=3)


def table_of(drawn):
    endpoints = tuple(
        EndpointSpec(name, tuple(replica(r, a, weight=w, state=s) for r, (a, w, s) in rows.items()), retries=retries)
        for name, (retries, rows) in drawn.items()
    )
    return TableSpec(0, endpoints, tuple(RouteSpec(f"{name}.x", "/", name) for name in sorted(drawn)))


@given(st.lists(tables, min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_stage_that_follows_and_one_that_starts_have_the_images_table(drawn, size):
    image, following = TableImage(), Stage()
    for one in drawn:
        wanted = table_of(one)
        numbered = image.apply(image.diff(wanted))
        assert numbered.version == image.version
        parts = list(parts_of(numbered, size))
        assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
        for part in parts:
            following.add(part, T0)
        starting = Stage()
        for part in image.parts():
            starting.add(part, T0)
        assert told(following) == told(starting) == known(image)
        assert {e.name for e in image.spec().endpoints} == set(one)
        assert image.diff(wanted) == TablePatch(0)  # nothing is left to do
        taken = list(slots(image).values())
        assert len(set(taken)) == len(taken), "two replicas share a cell"
        assert {(e.name, r.id): r.slot for e in starting.table.endpoints.values() for r in e.replicas} == slots(image)
        assert {(e.name, r.id): r.slot for e in following.table.endpoints.values() for r in e.replicas} == slots(image)


@given(st.lists(tables, min_size=2, max_size=10))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_cell_stays_with_its_replica_and_goes_to_no_other_in_the_patch_that_frees_it(drawn):
    image = TableImage()
    for one in drawn:
        before = {(name, r.id, r.address): r.slot for name, rows in image.replicas.items() for r in rows.values()}
        image.apply(image.diff(table_of(one)))
        after = {(name, r.id, r.address): r.slot for name, rows in image.replicas.items() for r in rows.values()}
        for key, slot in after.items():
            if key in before:
                assert slot == before[key]
            else:
                assert slot not in before.values(), "a worker may still count the old replica there"
    assert len(image._slots) == sum(map(len, image.replicas.values()))


def test_cells_are_used_again_so_that_churn_does_not_use_them_up():
    image = TableImage()
    image.apply(patch(new("e", *(replica(f"r{i}") for i in range(10)))))
    for turn in range(50):
        image.apply(patch(change("e", *(replica(f"t{turn}-{i}") for i in range(10)),
                                 remove=tuple(image.replicas["e"]))))  # fmt: skip
    assert max(slots(image).values()) < 20


def test_a_replica_that_is_removed_and_added_in_one_patch_has_another_cell():
    image = TableImage()
    image.apply(patch(new("e", replica("a"))))
    before = slots(image)["e", "a"]
    image.apply(patch(change("e", replica("a"), remove=("a",))))
    assert slots(image)["e", "a"] != before


def test_weight_and_state_do_not_move_a_replica():
    image = TableImage()
    image.apply(patch(new("e", replica("a"), replica("b"))))
    before = slots(image)
    image.apply(patch(change("e", replica("a", weight=5.0, state="DOWN"))))
    assert slots(image) == before
    assert image.replicas["e"]["a"].weight == 5.0


# -- refusals ----------------------------------------------------------------------------------------------

REFUSED = {
    "changes what is not there": patch(change("nobody", replica("x"))),
    "changes what leaves": patch(change("e", replica("x")), gone=("e",)),
    "routes to what is not there": patch(routes=(RouteSpec("*", "/", "nobody"),)),
    "leaves a route to nothing": patch(new("g"), gone=("e",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_patch_changes_nothing(name):
    image = TableImage()
    image.apply(patch(new("e", replica("a")), new("f"), routes=(RouteSpec("*", "/", "e"),)))
    before = (image.version, image.spec(), slots(image), len(image._slots))
    with pytest.raises(ValueError):
        image.apply(REFUSED[name])
    assert (image.version, image.spec(), slots(image), len(image._slots)) == before
    image.apply(patch(change("e", replica("b"))))
    assert image.version == before[0] + 1


def test_more_replicas_than_cells_are_refused_whole(monkeypatch):
    monkeypatch.setattr(module, "BOARD_SLOTS", 4)
    image = TableImage()
    image.apply(patch(new("e", *(replica(f"r{i}") for i in range(3)))))
    before = image.spec()
    with pytest.raises(TooManyReplicasError):
        image.apply(patch(change("e", replica("x"), replica("y"))))
    assert image.spec() is before
    image.apply(patch(change("e", replica("x"))))
    image.apply(patch(change("e", remove=("x",))))
    image.apply(patch(change("e", replica("y"))))
    assert max(slots(image).values()) < 4


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), max_size=4), max_size=25))
@settings(max_examples=150, deadline=None)
def test_no_cell_lies_beyond_the_board(edits):
    """Whatever is accepted fits: also where addresses change, so that a replica holds two cells for a moment."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "BOARD_SLOTS", 6)
        image = TableImage()
        image.apply(patch(new("e")))
        for edit in edits:
            wanted = dict(edit)
            try:
                image.apply(patch(change(
                    "e", *(replica(name, address) for name, address in wanted.items() if address),
                    remove=tuple(name for name, address in wanted.items() if not address),
                )))  # fmt: skip
            except TooManyReplicasError:
                continue
            assert max(slots(image).values(), default=0) < 6


# -- parts -------------------------------------------------------------------------------------------------


def test_parts_are_small_and_the_last_one_says_so():
    image = TableImage()
    image.apply(patch(
        new("big", *(replica(f"r{i}") for i in range(1_000))), *(new(f"e{i}", replica("a")) for i in range(700)),
        routes=(RouteSpec("*", "/", "big"),),
    ))  # fmt: skip
    parts = list(image.parts())
    assert all(sum(len(c.upsert) for c in part.endpoints) <= PART_REPLICAS for part in parts)
    assert all(len(part.endpoints) <= PART_REPLICAS + 1 for part in parts)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert {part.version for part in parts} == {image.version}
    assert all(part.routes is None and not part.gone for part in parts[:-1])
    assert parts[-1].routes == image.routes


def test_an_empty_table_is_one_part():
    (part,) = TableImage().parts()
    assert part == TablePatch(0, routes=(), regions=(), session_keys=())
    (part,) = parts_of(TablePatch(4))
    assert part == TablePatch(4)


def test_what_a_patch_says_beside_endpoints_comes_with_its_last_part_alone():
    whole = TablePatch(
        7, (change("e", *(replica(f"r{i}") for i in range(10)), remove=("x", "y")),), ("g",), (), committed_us=99
    )
    parts = list(parts_of(whole, 3))
    assert len(parts) == 4
    assert [part.committed_us for part in parts] == [0, 0, 0, 99]
    assert [part.gone for part in parts] == [(), (), (), ("g",)]
    assert [c.remove for part in parts for c in part.endpoints] == [("x", "y"), (), (), ()]
    assert sum(len(c.upsert) for part in parts for c in part.endpoints) == 10


def test_a_table_is_made_into_a_spec_once_a_version():
    image = TableImage()
    image.apply(patch(new("e", replica("a"))))
    first = image.spec()
    assert image.spec() is first
    image.apply(patch(change("e", replica("b"))))
    assert image.spec() is not first


def test_a_diff_knows_what_it_need_not_say():
    image = TableImage()
    table = TableSpec(0, (EndpointSpec("e", (replica("a"),)), EndpointSpec("f")), (RouteSpec("*", "/", "e"),))
    image.apply(image.diff(table))
    assert image.diff(TableSpec(9, table.endpoints[::-1], table.routes)) == TablePatch(0)
    less = image.diff(TableSpec(9, (EndpointSpec("e", (replica("b"),)),), table.routes))
    assert (less.gone, less.routes) == (("f",), None)
    assert less.endpoints == (EndpointPatch("e", None, (replica("b"),), ("a",)),)


# -- cost --------------------------------------------------------------------------------------------------


def calls_of(work):
    count = 0

    def count_calls(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_calls)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_patch_costs_what_it_changes_whatever_the_size_of_the_table():
    costs = []
    for size in (10, 2_000):
        image = TableImage()
        image.apply(patch(*(new(f"e{i}", replica("a"), replica("b")) for i in range(size))))
        one = patch(change("e5", replica("c"), remove=("a",)))
        costs.append(calls_of(lambda image=image, one=one: list(parts_of(image.apply(one)))))
    assert costs[1] <= costs[0]


def test_the_book_of_cells_knows_nobody_it_was_not_told_of():
    book = SlotBook()
    book.leave(("e", "a", "http://a:1"))
    assert len(book) == 0
    assert book.take(("e", "a")) == book.take(("e", "a"))
    assert book.take(("f", "a")) != book.take(("e", "a"))
    assert len(book) == 2
