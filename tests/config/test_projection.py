"""From rows to the table: every kind of unusable row, what waits for what, and the shrink guard."""

import base64

import pytest
from configkit import Book, endpoint_row, fresh, host_row, replica_row, route_row, shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.config import projection as module
from router.config.projection import GUARD_FLOOR, MAX_REASONS
from router.config.rows import RowError, read_endpoint, read_replica, read_route
from router.routing.spec import EndpointSpec, RouteSpec, ScalingSpec

E = ("Endpoints", ("e",))
R = ("Replicas", ("e", "r"))


def with_endpoint(*writes):
    book = Book()
    book.put((*E, endpoint_row()), *writes)
    return book


def routed(prefix="/v1"):
    """Endpoints e and f, and a host that leads to e."""
    book = Book()
    book.put(
        (*E, endpoint_row()), ("Endpoints", ("f",), endpoint_row()), ("RouteSets", ("s",), ()),
        ("Routes", ("s", "p"), route_row("e", prefix)), ("Hosts", ("h.example",), host_row("s")),
    )  # fmt: skip
    return book


def filled(count, endpoint="e", shrink_guard=0.5):
    book = Book(shrink_guard)
    book.put(("Endpoints", (endpoint,), endpoint_row()))
    book.put(*(("Replicas", (endpoint, f"r{i}"), replica_row()) for i in range(count)))
    return book


# -- rows that are good ------------------------------------------------------------------------------------


def test_the_settings_of_an_endpoint_are_those_of_its_row():
    policy = {
        "policy": "least_inflight", "slow_start_s": 30, "retries": 0, "engine": "sglang",
        "timeouts": {"first_byte_s": 9}, "limits": {"max_concurrency": 3}, "outlier": {"consecutive_failures": 1},
        "scaling": {"target_concurrency": 0.5, "max_replicas": 7},
    }  # fmt: skip
    spec = read_endpoint("e", endpoint_row(policy, {"kind": "http", "path": "/up"}))
    assert (spec.name, spec.policy, spec.slow_start_s, spec.retries, spec.engine) == ("e", "least_inflight", 30.0, 0, "sglang")
    assert (spec.timeouts.first_byte_s, spec.limits.max_concurrency) == (9.0, 3)
    assert spec.scaling == ScalingSpec(target_concurrency=0.5, max_replicas=7)
    assert (spec.scaling.tolerance, spec.scaling.scaledown_window_s) == (0.1, 300.0)
    assert (spec.outlier.consecutive_failures, spec.health.kind, spec.health.path) == (1, "http", "/up")


def test_columns_that_are_null_are_the_defaults():
    assert read_endpoint("e", endpoint_row()) == EndpointSpec("e", needs_token=True)
    assert read_route((0, None, '{"endpoint": "e"}')) == (0, "/", "e")


@pytest.mark.parametrize(
    ("address", "port", "url"),
    [("10.1.2.3", "80", "http://10.1.2.3:80"), ("::1", "65535", "http://[::1]:65535"), ("h.example", 1, "http://h.example:1")],
)
def test_an_address_is_a_name_or_either_kind_of_ip(address, port, url):
    assert read_replica("r", replica_row(address, port)).address == url


@pytest.mark.parametrize("state", ["STARTING", "READY", "DRAINING", "DOWN"])
def test_every_state_of_a_replica_is_taken_over(state):
    assert read_replica("r", replica_row(state=state)).state == state


# -- rows that are not -------------------------------------------------------------------------------------

BAD_ENDPOINTS = {
    "json": (endpoint_row("{"), "Policy"),
    "json health": (endpoint_row(None, "[1"), "Health"),
    "not an object": (endpoint_row("[]"), "Policy"),
    "text": (endpoint_row('"p2c"'), "Policy"),
    "unknown policy": (endpoint_row({"policy": "best"}), "Policy.policy"),
    "unknown key": (endpoint_row({"polcy": "p2c"}), "Policy"),
    "negative": (endpoint_row({"slow_start_s": -1}), "Policy.slow_start_s"),
    "nested": (endpoint_row({"timeouts": {"connect_s": 0}}), "Policy.timeouts.connect_s"),
    "nested text": (endpoint_row({"outlier": {"panic_threshold": "1"}}), "Policy.outlier.panic_threshold"),
    "huge": (endpoint_row({"slow_start_s": 1e300}), "Policy.slow_start_s"),
    "infinite": (endpoint_row('{"slow_start_s": 1e999}'), "Policy"),
    "nan": (endpoint_row('{"slow_start_s": NaN}'), "Policy"),
    "retries": (endpoint_row({"retries": 1.5}), "Policy.retries"),
    "scaling without a target": (endpoint_row({"scaling": {}}), "Policy.scaling: Object missing required field `target"),
    "scaling target": (endpoint_row({"scaling": {"target_concurrency": 0}}), "Policy.scaling.target_concurrency"),
    "scaling bounds": (
        endpoint_row({"scaling": {"target_concurrency": 1, "min_replicas": 3, "max_replicas": 2}}),
        "Policy.scaling: max_replicas is below min_replicas",
    ),
    "scaling tolerance": (
        endpoint_row({"scaling": {"target_concurrency": 1, "tolerance": 1.5}}), "Policy.scaling.tolerance"
    ),
    "engine": (endpoint_row({"engine": "gpt"}), "Policy.engine"),
    "health kind": (endpoint_row(None, {"kind": "icmp"}), "Health.kind"),
    "health interval": (endpoint_row(None, {"interval_s": 0}), "Health.interval_s"),
    "state": (endpoint_row(state="ACTVE"), "State"),
    "no state": (endpoint_row(state=None), "State"),
    "deep": (endpoint_row('{"x":' * 20_000 + "1" + "}" * 20_000), "Policy"),
    "health path is two lines": (endpoint_row(None, {"path": "/ready\r\nx: y"}), "Health.path"),
    "health path is no path": (endpoint_row(None, {"path": "ready"}), "Health.path"),
}  # fmt: skip

BAD_REPLICAS = {
    "address": (replica_row("no host"), "Address"),
    "address is empty": (replica_row(""), "Address"),
    "address is null": (replica_row(None), "Address"),
    "address has a path": (replica_row("a/b"), "Address"),
    "address has a user": (replica_row("u@a"), "Address"),
    "address has a newline": (replica_row("a\nb"), "Address"),
    "address has a nul": (replica_row("a\0b"), "Address"),
    "address is too long": (replica_row("a" * 254), "Address"),
    "address is not ascii": (replica_row("höst"), "Address"),
    "port 0": (replica_row(port="0"), "port"),
    "port 70000": (replica_row(port="70000"), "port"),
    "port is a text": (replica_row(port="http"), "port"),
    "port is negative": (replica_row(port="-1"), "port"),
    "port is null": (replica_row(port=None), "port"),
    "port is endless": (replica_row(port="9" * 5_000), "Address"),
    "weight nan": (replica_row(weight="NaN"), "Weight"),
    "weight is nan": (replica_row(weight=float("nan")), "Weight"),
    "weight inf": (replica_row(weight=float("inf")), "Weight"),
    "weight 0": (replica_row(weight=0.0), "Weight"),
    "weight negative": (replica_row(weight=-1.0), "Weight"),
    "weight null": (replica_row(weight=None), "Weight"),
    "state": (replica_row(state="UP"), "State"),
    "state is null": (replica_row(state=None), "State"),
    "state is a list": (replica_row(state=["READY"]), "State"),
    "capabilities": (replica_row(capabilities="{"), "Capabilities"),
    "capabilities are a list": (replica_row(capabilities="[]"), "Capabilities"),
    "scheme": (replica_row(capabilities={"scheme": "gopher"}), "gopher"),
    "scheme is a number": (replica_row(capabilities={"scheme": 1}), "Capabilities.scheme"),
    "lanes without a port": (replica_row(capabilities={"lanes": {"certificate": "PEM"}}), "Capabilities.lanes"),
    "lanes' port": (replica_row(capabilities={"lanes": {"port": 70_000, "certificate": "PEM"}}), "Capabilities.lanes.port"),
    "lanes' certificate": (replica_row(capabilities={"lanes": {"port": 1, "certificate": 5}}), "Capabilities.lanes.certificate"),
}  # fmt: skip

BAD_ROUTES = {
    "no action": (route_row(action=None), "Action"),
    "no endpoint": (route_row(action={}), "Action"),
    "action is broken": (route_row(action="{"), "Action"),
    "action has more": (route_row(action={"endpoint": "e", "to": "f"}), "Action"),
    "match is broken": (route_row(match='{"path_prefix": '), "Match"),
    "match has more": (route_row(match={"method": "GET"}), "Match"),
    "prefix without a slash": (route_row(prefix="v1"), "Match.path_prefix"),
    "prefix with a blank": (route_row(prefix="/a b"), "Match.path_prefix"),
    "prefix with a newline": (route_row(prefix="/a\n"), "Match.path_prefix"),
    "priority is a text": (route_row(priority="first"), "Priority"),
    "priority is null": (route_row(priority=None), "Priority"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ENDPOINTS)
def test_a_bad_endpoint_is_quarantined_and_the_last_good_one_stays(name):
    row, field = BAD_ENDPOINTS[name]
    book = Book()
    book.put((*E, endpoint_row({"retries": 7})), (*R, replica_row()))
    before = book.table()
    book.put((*E, row))
    assert field in book.reasons()["Endpoints", "e"]
    assert book.table() == before
    book.put((*E, endpoint_row({"retries": 8})))
    assert not book.reasons()
    assert book.image.endpoints["e"].retries == 8
    assert book.replicas() == {"r"}


@pytest.mark.parametrize("name", BAD_ENDPOINTS)
def test_an_endpoint_that_is_bad_at_first_comes_with_its_replicas_once_it_is_mended(name):
    row, field = BAD_ENDPOINTS[name]
    book = Book()
    book.put((*E, row), (*R, replica_row()), ("Routes", ("s", "p"), route_row()), ("RouteSets", ("s",), ()), ("Hosts", ("*",), host_row("s")))
    assert field in book.reasons()["Endpoints", "e"]
    assert not book.image.endpoints
    assert not book.image.routes
    book.put((*E, endpoint_row()))
    assert not book.reasons()
    assert book.replicas() == {"r"}
    assert book.image.routes == (RouteSpec("*", "/", "e"),)


@pytest.mark.parametrize("name", BAD_REPLICAS)
def test_a_bad_replica_is_quarantined_and_the_last_good_one_stays(name):
    row, field = BAD_REPLICAS[name]
    book = with_endpoint((*R, replica_row()))
    before = book.table()
    assert book.put((*R, row)) is None
    assert field in book.reasons()["Replicas", "e/r"]
    assert book.table() == before
    book.put((*R, replica_row("10.0.0.9", state="DRAINING")))
    assert not book.reasons()
    assert book.image.replicas["e"]["r"].address == "http://10.0.0.9:30000"
    assert book.image.replicas["e"]["r"].state == "DRAINING"


@pytest.mark.parametrize("name", BAD_REPLICAS)
def test_a_replica_that_is_bad_at_first_stays_out_and_harms_no_other(name):
    row, field = BAD_REPLICAS[name]
    book = with_endpoint((*R, row), ("Replicas", ("e", "other"), replica_row()))
    assert field in book.reasons()["Replicas", "e/r"]
    assert book.replicas() == {"other"}
    book.put((*R, replica_row()))
    assert not book.reasons()
    assert book.replicas() == {"r", "other"}


@pytest.mark.parametrize("name", BAD_REPLICAS)
def test_a_bad_replica_that_is_deleted_leaves_the_quarantine_and_the_table(name):
    book = with_endpoint((*R, replica_row()))
    book.put((*R, BAD_REPLICAS[name][0]))
    book.put((*R, None))
    assert not book.reasons()
    assert book.replicas() == set()


@pytest.mark.parametrize("name", ["r\0", "r\n", "r r", "", "r" * 129, "ü", "r,s", 'r"'])
def test_a_replica_whose_name_cannot_be_used_is_quarantined(name):
    book = with_endpoint(("Replicas", ("e", name), replica_row()))
    assert "ReplicaId" in book.reasons()["Replicas", f"e/{name}"]
    assert not book.replicas()


@pytest.mark.parametrize("name", ["e\0", "e\n", "e e", "", "e" * 129, "ü", "e\r\nx: y"])
def test_an_endpoint_whose_name_cannot_be_used_is_quarantined(name):
    book = Book()
    book.put(("Endpoints", (name,), endpoint_row()))
    assert "EndpointId" in book.reasons()["Endpoints", name]
    assert not book.image.endpoints


@pytest.mark.parametrize("name", BAD_ROUTES)
def test_a_bad_route_is_quarantined_and_the_last_good_one_stays(name):
    row, field = BAD_ROUTES[name]
    book = routed()
    before = book.table()
    book.put(("Routes", ("s", "p"), row))
    assert field in book.reasons()["Routes", "s/p"]
    assert book.table() == before
    book.put(("Routes", ("s", "p"), route_row("f", "/v2", "5")))
    assert not book.reasons()
    assert book.image.routes == (RouteSpec("h.example", "/v2", "f", 5),)


@pytest.mark.parametrize("name", BAD_ROUTES)
def test_a_bad_route_that_is_deleted_is_gone(name):
    book = routed()
    book.put(("Routes", ("s", "p"), BAD_ROUTES[name][0]))
    book.put(("Routes", ("s", "p"), None))
    assert not book.reasons()
    assert book.image.routes == ()


@pytest.mark.parametrize("host", ["a b", "ho\0st", "h\n", "", "a/b", "*.*", "**", "h:99999999", "a,b", "ü.example"])
def test_a_host_that_is_none_is_quarantined_and_the_others_work(host):
    book = routed()
    book.put(("Hosts", (host,), host_row("s")))
    assert ("Hosts", host) in book.reasons()
    assert [route.host for route in book.image.routes] == ["h.example"]
    book.put(("Hosts", (host,), None))
    assert not book.reasons()


def test_a_host_of_a_route_set_that_is_not_there_waits_for_it():
    book = routed()
    book.put(("Hosts", ("other.example",), host_row("t")))
    assert "route set 't'" in book.reasons()["Hosts", "other.example"]
    book.put(("RouteSets", ("t",), ()), ("Routes", ("t", "p"), route_row("f")))
    assert not book.reasons()
    assert RouteSpec("other.example", "/", "f") in book.image.routes


def test_a_host_that_is_moved_to_a_route_set_that_is_not_there_keeps_its_routes():
    book = routed()
    before = book.table()
    book.put(("Hosts", ("h.example",), host_row("missing")))
    assert "route set 'missing'" in book.reasons()["Hosts", "h.example"]
    assert book.table() == before


def test_a_route_that_is_moved_to_an_endpoint_that_is_not_there_stays_where_it_was():
    book = routed()
    before = book.table()
    book.put(("Routes", ("s", "p"), route_row("missing")))
    assert "'missing'" in book.reasons()["Routes", "s/p"]
    assert book.table() == before


def test_a_route_to_an_endpoint_that_is_not_there_waits_for_it():
    book = routed()
    book.put(("Routes", ("s", "q"), route_row("g", "/g")))
    assert "'g'" in book.reasons()["Routes", "s/q"]
    assert [route.endpoint for route in book.image.routes] == ["e"]
    book.put(("Endpoints", ("g",), endpoint_row()))
    assert not book.reasons()
    assert {route.endpoint for route in book.image.routes} == {"e", "g"}


def test_routes_to_an_endpoint_that_leaves_leave_with_it_in_the_same_patch():
    book = routed()
    patch = book.put((*E, None))
    assert (patch.gone, patch.routes) == (("e",), ())
    assert "'e'" in book.reasons()["Routes", "s/p"]
    patch = book.put((*E, endpoint_row()))
    assert patch.routes == (RouteSpec("h.example", "/v1", "e"),)
    assert not book.reasons()


def test_a_route_set_that_is_deleted_takes_its_routes_along():
    book = routed()
    book.put(("RouteSets", ("s",), None), ("Routes", ("s", "p"), None))
    assert book.image.routes == ()
    book.put(("Hosts", ("h.example",), None))
    assert not book.reasons()


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "x", [], {}, ["x"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("column", range(9))
def test_no_value_of_a_column_ends_the_projection(column, value):
    row = list(replica_row())
    row[column] = value
    book = with_endpoint(("Replicas", ("e", "good"), replica_row()))
    book.put((*R, tuple(row)))
    assert ("r" in book.replicas()) != (("Replicas", "e/r") in book.reasons())
    assert "good" in book.replicas()


@given(row=st.tuples(*[st.one_of(st.none(), st.text(max_size=8), st.floats(), st.booleans(), st.lists(st.text(max_size=2), max_size=2))] * 9), name=st.text(max_size=6))
@settings(max_examples=150, deadline=None)
def test_whatever_a_replicas_row_holds_it_is_a_spec_or_a_reason(row, name):
    try:
        spec = read_replica(name, row)
    except RowError as reason:
        spec = str(reason)
    assert spec


# -- order -------------------------------------------------------------------------------------------------


def test_a_replica_before_its_endpoint_waits_for_it():
    book = Book()
    book.put((*R, replica_row()))
    assert "endpoint 'e'" in book.reasons()["Replicas", "e/r"]
    assert not book.image.endpoints
    patch = book.put((*E, endpoint_row()))
    assert [r.id for change in patch.endpoints for r in change.upsert] == ["r"]
    assert not book.reasons()


def test_a_replica_that_waits_may_be_deleted_or_changed_meanwhile():
    book = Book()
    book.put((*R, replica_row()), ("Replicas", ("e", "gone"), replica_row()))
    book.put(("Replicas", ("e", "gone"), None), (*R, replica_row("10.0.0.7")))
    book.put((*E, endpoint_row()))
    assert {r.address for r in book.image.replicas["e"].values()} == {"http://10.0.0.7:30000"}
    assert not book.reasons()


def test_an_endpoint_that_is_deleted_with_its_replicas_comes_back_with_the_new_ones_alone():
    book = with_endpoint((*R, replica_row()))
    patch = book.put((*R, None), (*E, None))
    assert patch.gone == ("e",)
    assert not book.image.endpoints
    assert book.projection.ready == 0
    assert not book.reasons()
    book.put((*E, endpoint_row()), ("Replicas", ("e", "new"), replica_row()))
    assert book.replicas() == {"new"}
    assert book.projection.ready == 1


def test_an_endpoint_whose_deletion_comes_before_that_of_its_replicas():
    book = with_endpoint((*R, replica_row()))
    book.put((*E, None))
    assert not book.image.endpoints
    book.put((*R, None))
    assert not book.reasons()
    book.put((*E, endpoint_row()))
    assert book.replicas() == set()
    assert book.projection.ready == 0


def test_replicas_that_outlive_their_endpoint_come_back_with_it():
    book = with_endpoint((*R, replica_row()))
    book.put((*E, None))
    book.put((*E, endpoint_row()))
    assert book.replicas() == {"r"}
    assert book.projection.ready == 1


def test_paused_is_out_of_the_table_and_not_a_complaint():
    book = routed()
    book.put((*R, replica_row()))
    patch = book.put((*E, endpoint_row(state="PAUSED")))
    assert patch.gone == ("e",)
    assert "e" not in book.image.endpoints
    assert book.projection.ready == 0
    assert ("Replicas", "e/r") not in book.reasons()
    book.put(("Replicas", ("e", "late"), replica_row()), (*R, replica_row("10.0.0.8")))
    assert not {key for key in book.reasons() if key[0] == "Replicas"}
    book.put((*E, endpoint_row()))
    assert book.replicas() == {"r", "late"}
    assert book.image.replicas["e"]["r"].address == "http://10.0.0.8:30000"
    assert [route.endpoint for route in book.image.routes] == ["e"]
    assert not book.reasons()


def test_a_replica_that_is_new_in_the_very_transaction_that_pauses_its_endpoint_is_not_forgotten():
    book = with_endpoint((*R, replica_row()))
    book.put((*E, endpoint_row(state="PAUSED")), ("Replicas", ("e", "new"), replica_row()))
    book.put((*E, endpoint_row()))
    assert book.replicas() == {"r", "new"}


def test_replicas_that_came_before_a_paused_endpoint_are_no_complaint_either():
    book = Book()
    book.put((*R, replica_row()))
    book.put((*E, endpoint_row(state="PAUSED")))
    assert not book.reasons()


def test_a_replica_that_was_bad_while_its_endpoint_was_paused_keeps_its_last_good_version():
    book = with_endpoint((*R, replica_row()))
    book.put((*R, replica_row(port="0")))
    book.put((*E, endpoint_row(state="PAUSED")))
    book.put((*E, endpoint_row()))
    assert book.replicas() == {"r"}

DIGEST = base64.b64encode(bytes(32)).decode()


def test_nothing_changed_is_no_patch():
    book = with_endpoint((*R, replica_row()))
    assert book.put((*R, replica_row(node="n2"))) is None
    assert book.put((*E, endpoint_row())) is None
    region, token = ("READY", 1.0, None), ("s:wk-1", "main", None, None, None, None)
    assert book.put(("Regions", ("eu",), region)) is not None
    assert book.put(("Regions", ("eu",), region)) is None
    assert book.put(("AuthTokens", (DIGEST,), token)) is not None
    assert book.put(("AuthTokens", (DIGEST,), token)) is None


def test_reasons_are_listed_up_to_a_bound():
    book = with_endpoint(*(("Replicas", ("e", f"r{i}"), replica_row(port="0")) for i in range(MAX_REASONS + 5)))
    assert len(book.projection.reasons()) == MAX_REASONS
    assert len(book.projection.quarantine) == MAX_REASONS + 5


def test_a_replica_too_many_waits_until_there_is_room(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPLICAS", 2)
    book = with_endpoint(*(("Replicas", ("e", f"r{i}"), replica_row()) for i in range(3)))
    (waiting,) = {"r0", "r1", "r2"} - book.replicas()
    assert "2 replicas" in book.reasons()["Replicas", f"e/{waiting}"]
    (leaves, _) = sorted(book.replicas())
    book.put(("Replicas", ("e", leaves), None))
    assert not book.reasons()
    assert waiting in book.replicas()


# -- the shrink guard --------------------------------------------------------------------------------------


def gone(*numbers):
    return [("Replicas", ("e", f"r{i}"), None) for i in numbers]


def down(*numbers):
    return [("Replicas", ("e", f"r{i}"), replica_row(state="DOWN")) for i in numbers]


@pytest.mark.parametrize("lose", [gone, down], ids=["deleted", "down"])
def test_losing_more_than_half_at_once_is_held(lose):
    book = filled(20)
    before = book.table()
    book.put(*lose(*range(11)))
    assert book.table() == before
    assert book.projection.held == 11
    assert book.projection.ready == 20


@pytest.mark.parametrize("lose", [gone, down], ids=["deleted", "down"])
def test_losing_half_is_not(lose):
    book = filled(20)
    book.put(*lose(*range(10)))
    assert book.projection.held == 0
    assert book.projection.ready == 10


@pytest.mark.parametrize("state", [None, "PAUSED"])
def test_an_endpoint_that_goes_with_more_than_half_is_held(state):
    book = filled(12)
    book.put(("Endpoints", ("f",), endpoint_row()), *(("Replicas", ("f", f"r{i}"), replica_row()) for i in range(8)))
    before = book.table()
    book.put((*E, None if state is None else endpoint_row(state=state)))
    assert book.table() == before
    assert book.projection.held
    assert book.accept() == 12
    assert set(book.image.endpoints) == {"f"}


def test_an_endpoint_that_is_deleted_with_its_replicas_counts_each_of_them_once():
    book = filled(8)
    book.put(("Endpoints", ("f",), endpoint_row()), *(("Replicas", ("f", f"r{i}"), replica_row()) for i in range(12)))
    book.put((*E, None), *gone(*range(8)))  # 8 of 20
    assert book.projection.held == 0
    assert set(book.image.endpoints) == {"f"}
    assert book.projection.ready == 12


def test_all_at_once_is_held_and_accepted():
    book = filled(GUARD_FLOOR)
    book.put((*E, None), *gone(*range(GUARD_FLOOR)))
    assert len(book.replicas()) == GUARD_FLOOR
    assert book.accept() == GUARD_FLOOR
    assert book.projection.held == 0
    assert not book.image.endpoints
    assert book.accept() == 0


def test_below_the_floor_nothing_is_held():
    book = filled(GUARD_FLOOR - 1)
    book.put(*gone(*range(GUARD_FLOOR - 1)))
    assert book.projection.held == 0
    assert book.replicas() == set()


def test_replicas_that_were_not_ready_do_not_count():
    book = filled(20)
    book.put(*(("Replicas", ("e", f"s{i}"), replica_row(state="STARTING")) for i in range(30)))
    book.put(*(("Replicas", ("e", f"s{i}"), None) for i in range(30)))
    assert book.projection.held == 0
    assert len(book.replicas()) == 20


def test_the_guard_may_be_off():
    book = filled(20, shrink_guard=0.0)
    book.put(*gone(*range(20)))
    assert book.projection.held == 0
    assert book.replicas() == set()


def test_what_is_held_stays_held_on_later_changes():
    book = filled(20)
    book.put(*down(*range(11)))
    book.put(*gone(0))
    book.put(("Replicas", ("e", "r1"), replica_row("10.0.0.9", state="DRAINING")))
    book.put(("Replicas", ("e", "r19"), replica_row("10.0.0.9")))  # another one, not held
    assert len(book.replicas()) == 20
    assert book.image.replicas["e"]["r1"].state == "READY"
    assert book.image.replicas["e"]["r19"].address == "http://10.0.0.9:30000"
    assert book.projection.held == 11
    assert book.accept() == 11
    assert book.image.replicas["e"]["r1"].state == "DRAINING"
    assert "r0" not in book.replicas()


def test_what_is_held_may_be_undone():
    book = filled(20)
    before = book.table()
    book.put(*gone(*range(20)))
    patches = len(book.patches)
    book.put(*(("Replicas", ("e", f"r{i}"), replica_row()) for i in range(20)))
    assert book.projection.held == 0
    assert book.table() == before
    assert len(book.patches) == patches
    assert book.accept() == 0


def test_a_held_endpoint_may_be_undone():
    book = filled(20)
    before = book.table()
    book.put((*E, endpoint_row(state="PAUSED")))
    assert book.table() == before
    book.put((*E, endpoint_row()))
    assert book.projection.held == 0
    assert book.table() == before


def test_a_held_endpoint_keeps_its_routes():
    book = filled(20)
    book.put(("RouteSets", ("s",), ()), ("Routes", ("s", "p"), route_row("e")), ("Hosts", ("*",), host_row("s")))
    book.put((*E, None), *gone(*range(20)))
    book.put(("Routes", ("s", "q"), route_row("e", "/q")))
    assert {route.path_prefix for route in book.image.routes} == {"/", "/q"}


def test_losses_one_after_the_other_are_not_one_loss():
    book = filled(20)
    for i in range(20):
        book.put(*gone(i))
    assert book.projection.held == 0
    assert book.replicas() == set()


def test_a_ready_row_that_becomes_unusable_is_no_loss():
    book = filled(20)
    book.put(*(("Replicas", ("e", f"r{i}"), replica_row(port="0")) for i in range(20)))
    assert book.projection.held == 0
    assert len(book.replicas()) == 20


def test_two_losses_that_are_held_do_not_empty_the_table_together():
    book = filled(20)
    book.put(*gone(*range(11)))
    book.put(*gone(*range(11, 20)))  # less than half of the 20, and all that the store still had
    assert book.projection.held >= 11
    assert len(book.replicas()) >= 11


# -- the same table whichever way --------------------------------------------------------------------------

NAMES = ("a", "b", "c")


@st.composite
def writes(draw):
    """A transaction of good rows alone, about few keys."""
    found = {}
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["Endpoints", "Replicas", "RouteSets", "Routes", "Hosts"]))
        name, other = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
        if kind == "Endpoints":
            key = (name,)
            row = endpoint_row({"retries": draw(st.integers(0, 2))}, state=draw(st.sampled_from(["ACTIVE", "ACTIVE", "PAUSED"])))
        elif kind == "Replicas":
            key = (name, other)
            row = replica_row(f"10.0.0.{draw(st.integers(1, 3))}", state=draw(st.sampled_from(["READY", "DOWN"])))
        elif kind == "RouteSets":
            key, row = (name,), ()
        elif kind == "Routes":
            key, row = (name, other), route_row(draw(st.sampled_from(NAMES)), f"/{other}")
        else:
            key, row = (f"{name}.example",), host_row(other)
        found[kind, key] = None if draw(st.integers(0, 3)) == 0 else row
    return [(kind, key, row) for (kind, key), row in found.items()]


@given(st.lists(writes(), min_size=1, max_size=25))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_patches_lead_to_the_table_that_the_rows_say(transactions):
    book = Book(shrink_guard=0.0)
    for transaction in transactions:
        book.put(*transaction)
    projection, image = fresh(book.book)
    waits = {key for key in projection.quarantine if key[0] in ("Routes", "Hosts")}
    if not waits:  # a route that waits may keep its last good version
        assert book.table() == shape(image)
    else:
        assert book.table()[0] == shape(image)[0]
    assert book.projection.ready == projection.ready


@given(st.lists(writes(), min_size=1, max_size=15))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_quarantine_is_that_of_the_rows_whatever_their_order(transactions):
    book = Book(shrink_guard=0.0)
    for transaction in transactions:
        book.put(*transaction)
    projection, _ = fresh(book.book)
    assert book.projection.quarantine == projection.quarantine


@given(st.lists(writes(), min_size=1, max_size=15), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_patch_names_only_what_changes(transactions, data):
    book = Book(shrink_guard=0.0)
    for transaction in transactions:
        before = {name: dict(replicas) for name, replicas in book.image.replicas.items()}
        patch = book.put(*transaction)
        for change in patch.endpoints if patch is not None else ():
            known = before.get(change.name, {})
            assert not set(change.remove) - set(known)
            assert not set(change.remove) & {r.id for r in change.upsert}
            assert all(
                (known[r.id].address, known[r.id].weight, known[r.id].state) != (r.address, r.weight, r.state)
                for r in change.upsert if r.id in known
            )  # fmt: skip


@pytest.mark.parametrize(("policy", "is_open"), [
    ('{"unauthenticated": false, "new_field": 1}', False), ('{"unauthenticated": true, "new_field": 1}', True),
    ('{"new_field": 1}', True), ("not json", True),
])  # fmt: skip
def test_a_row_that_cannot_be_used_still_takes_the_rights_away_that_it_names(policy, is_open):
    book = Book()
    book.put((*E, endpoint_row(policy='{"unauthenticated": true}')))
    book.put((*E, endpoint_row(policy=policy)))
    assert ("Endpoints", ("e",)) in book.projection.quarantine
    assert book.projection._endpoints["e"].needs_token is not is_open
    book.put((*E, endpoint_row(policy="not json", environment="other")))
    assert book.projection._endpoints["e"].environment == "other"


def test_a_token_that_cannot_be_read_has_no_rights():
    book = Book()
    book.put(("AuthTokens", (DIGEST,), ("s:wk-1", "main", None, None, None, None)))
    patch = book.put(("AuthTokens", (DIGEST,), ("s:wk-1", "main", ["unheard of"], None, None, None)))
    assert patch.revoked == (bytes(32),)
    assert "unheard of" in book.projection.quarantine["AuthTokens", (DIGEST,)]


def test_tokens_with_a_rate_beyond_their_cells_have_no_rights_and_stop_nothing(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPLICAS", 2)
    book = Book()
    keys = [base64.b64encode(bytes([i]) * 32).decode() for i in range(3)]
    rows = [("AuthTokens", (key,), ("s:wk-1", "main", None, '{"per_s": 1}', None, None)) for key in keys]
    patches = [book.put(row) for row in rows]
    assert [patch is not None for patch in patches] == [True, True, False]
    assert "rate limit" in book.projection.quarantine["AuthTokens", (keys[2],)]
    assert book.put(("AuthTokens", (keys[0],), None)).revoked == (bytes(32),)
