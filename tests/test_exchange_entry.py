"""How a request finds its endpoint and its replica: by model, by key, by name, after a wait; and what is counted."""

import json
import sys

import pytest
from exchangekit import Bench, response

from router.body_head import MAX_HEAD_BYTES, WAIT_S
from router.errors import Kind, ProxyError, Retry, Source
from router.exchange import LOOK_AGAIN_S
from router.request_fields import AFFINITY_FIELDS, MAX_KEY_BYTES
from router.routing.credentials import Credential, operator
from router.routing.spec import EndpointSpec, HoldSpec, LimitSpec, ReplicaSpec, RouteSpec, TokenSpec
from router.stream import HOLD_NO_UPSTREAM

JSON = [(b"content-type", b"application/json")]
BY_MODEL = (RouteSpec("*", "/", "", by_model=True),)


def code(bench):
    return bench.records[0][6], bench.flags[1]


def model_bench(**endpoint):
    others = (
        EndpointSpec("f", (ReplicaSpec("f0", "http://10.1.0.1:80"),), models=("org/f",)),
        EndpointSpec("hidden", (ReplicaSpec("h0", "http://10.2.0.1:80"),), environment="other", models=("org/h",)),
    )
    return Bench(more=others, routes=BY_MODEL, **endpoint)


class TestByModel:
    @pytest.mark.parametrize(("model", "replica"), [("org/f", "f0"), ("f", "f0")])
    def test_the_body_names_the_endpoint_and_is_sent_behind_the_head(self, model, replica):
        bench = model_bench()
        up = bench.warm()
        body = json.dumps({"model": model}).encode()
        bench.head(length=len(body))
        assert bench.pool.opened == []
        bench.exchange.request_data(body[:5], False)
        assert bench.pool.opened == []
        bench.exchange.request_data(body[5:], True)
        assert bench.pool.opened[0][0].id == replica
        assert (up.data, up.ended) == (body, True)
        bench.exchange.response_head(response(204), True)
        assert code(bench) == (204, "")
        assert bench.records[0][9] == b"f"

    def test_the_rest_of_a_long_body_streams_on(self):
        bench = model_bench()
        up = bench.warm()
        first = b'{"model":"f","p":"' + b"x" * MAX_HEAD_BYTES
        bench.head()
        bench.exchange.request_data(first, False)
        assert up.data == first
        bench.exchange.request_data(b'y"}', True)
        assert (up.data, up.ended) == (first + b'y"}', True)

    def test_while_the_replica_is_connected_the_rest_is_held_and_a_retry_has_the_whole(self):
        bench = model_bench()
        bench.head()
        bench.exchange.request_data(b'{"model":"e"', False)
        bench.exchange.request_data(b',"p":"' + b"x" * MAX_HEAD_BYTES, False)
        assert bench.down.holds == HOLD_NO_UPSTREAM
        bench.exchange.upstream_failed(ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE))
        up = bench.connected()
        assert bench.down.holds == 0
        assert up.data.startswith(b'{"model":"e","p":"x')
        assert not up.ended

    @pytest.mark.parametrize(("body", "error"), [
        (b'{"model":"nobody"}', (404, "model_not_found")), (b'{"model":"org/h"}', (404, "model_not_found")),
        (b"{}", (400, "model_missing")), (b"not json", (400, "model_missing")), (b"", (400, "model_missing")),
    ])  # fmt: skip
    def test_what_names_nobody_of_ours(self, body, error):
        bench = model_bench()
        bench.head()
        bench.exchange.request_data(body, True)
        assert code(bench) == error
        assert json.loads(bench.down.data)["error"]["code"] == error[1]
        assert bench.pool.opened == []

    def test_ten_megabytes_deep_it_is_not_looked_for(self):
        bench = model_bench()
        bench.head(length=10_000_020)
        bench.exchange.request_data(b'{"p":"' + b"x" * MAX_HEAD_BYTES, False)
        assert code(bench) == (400, "model_missing")
        assert bench.exchange._replay is None

    def test_a_body_that_does_not_come_is_waited_for_in_bounded_time(self):
        bench = model_bench()
        bench.head(length=100)
        bench.exchange.request_data(b'{"mo', False)
        bench.pass_time(WAIT_S - 0.1)
        assert not bench.finished()
        bench.pass_time(0.2)
        assert code(bench) == (408, "request_timeout")

    def test_a_client_that_leaves_meanwhile(self):
        bench = model_bench()
        bench.head(length=100)
        bench.exchange.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
        assert bench.finished()
        assert bench.core.in_flight == 0

    @pytest.mark.parametrize("is_warm", [True, False])
    @pytest.mark.parametrize("size", [10, MAX_HEAD_BYTES])
    def test_trailers_end_the_body_and_are_sent_on(self, is_warm, size):
        """A codec that was held by the data still hands over the trailers that were read with it."""
        bench = model_bench()
        up = bench.warm() if is_warm else None
        body = b'{"p":"' + b"x" * size + b'","model":"f"}'
        bench.head()
        bench.exchange.request_data(body[:8], False)
        bench.exchange.request_data(body[8:], False)
        if size > 10:  # so far in that it is not looked for
            assert code(bench) == (400, "model_missing")
            return
        bench.exchange.request_trailers([(b"x", b"y")])
        up = up or bench.connected()
        assert (up.data, up.trailers) == (body, [(b"x", b"y")])

    def test_a_model_that_is_known_is_not_waited_with(self):
        bench = model_bench()
        up = bench.warm()
        bench.head()
        bench.exchange.request_data(b'{"mod', False)
        bench.exchange.request_data(b'el":"f","messages":[', False)
        assert up.data == b'{"model":"f","messages":['
        bench.exchange.request_data(b"]}", True)
        assert (up.data, up.ended) == (b'{"model":"f","messages":[]}', True)

    def test_the_clients_time_runs_while_the_body_is_awaited(self):
        bench = model_bench()
        bench.head(length=100, known={b"x-request-timeout-ms": b"500"})
        bench.pass_time(0.6)
        assert code(bench) == (504, "deadline")

    def test_what_is_wrong_with_the_head_is_said_before_the_body(self):
        bench = model_bench()
        bench.head(known={b"x-request-timeout-ms": b"soon"})
        assert code(bench) == (400, "bad_request")

    def test_an_empty_body_is_answered_at_once(self):
        bench = model_bench()
        bench.head(length=0)
        bench.exchange.request_data(b"", True)
        assert code(bench) == (400, "model_missing")

    def test_tiny_frames_do_not_take_twenty_times_their_size(self):
        bench = model_bench()
        bench.head()
        for _ in range(5_000):
            bench.exchange.request_data(b"  ", False)
        assert sys.getsizeof(bench.exchange._body_head._bytes) < 16_384

    def test_nothing_is_kept_of_a_body_behind_the_end(self):
        bench = model_bench()
        bench.head()
        bench.exchange.request_data(b'{"x":"' + b"y" * 60_000, False)
        bench.exchange.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
        assert bench.exchange._body_head is None
        assert bench.exchange._replay is None

    def test_a_tunnel_names_it_in_its_query(self):
        bench = model_bench()
        bench.head(b"CONNECT", upgrade=b"websocket", path=b"/v1/realtime?a=b&model=org%2Ff")
        assert bench.pool.opened[0][0].id == "f0"

    def test_who_asks_to_continue_is_told_to(self):
        bench = model_bench()
        bench.head(length=13, expects_continue=True)
        assert bench.down.informational == [100]

    def test_the_models_are_listed_from_the_table(self):
        bench = model_bench()
        bench.head(b"GET", end=True, path=b"/v1/models?x=1")
        listed = json.loads(bench.down.data)
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["e", "f", "org/f"]
        assert bench.records[0][6] == 200
        assert bench.pool.opened == []

    def test_one_model_is_shown_by_its_name(self):
        bench = model_bench()
        bench.head(b"GET", end=True, path=b"/v1/models/org%2Ff")
        assert json.loads(bench.down.data)["id"] == "org/f"
        other = model_bench()
        other.head(b"GET", end=True, path=b"/v1/models/org/h")
        assert code(other) == (404, "model_not_found")

    def test_a_model_that_two_serve_goes_to_the_first_that_the_token_may_call(self):
        both = (
            EndpointSpec("a", (ReplicaSpec("a0", "http://10.1.0.1:80"),), models=("m",), needs_token=True),
            EndpointSpec("b", (ReplicaSpec("b0", "http://10.1.0.2:80"),), models=("m",), needs_token=True),
        )
        for scopes, home in (((), "a0"), (("endpoint:b",), "b0")):
            bench = Bench(more=both, routes=BY_MODEL)
            bench.gate.credential = Credential(TokenSpec(b"d", "wk-1", scopes=scopes))
            bench.head()
            bench.exchange.request_data(b'{"model":"m"}', True)
            assert bench.pool.opened[0][0].id == home

    def test_the_operator_reaches_every_environment(self):
        bench = model_bench()
        bench.gate.credential = operator(b"d" * 32)
        bench.head()
        bench.exchange.request_data(b'{"model":"org/h"}', True)
        assert bench.pool.opened[0][0].id == "h0"

    def test_a_stranger_is_refused_before_the_body(self):
        bench = Bench(more=(), routes=BY_MODEL, needs_token=True)
        bench.table.credentials.put(TokenSpec(b"d", "wk-1"))
        bench.head()
        assert code(bench) == (401, "unauthenticated")

    def test_an_endpoint_that_refuses_the_client_is_not_counted_as_its_demand(self):
        bench = model_bench()
        bench.gate.refusals["f"] = ProxyError(Kind.FORBIDDEN, Source.DOWNSTREAM)
        bench.head()
        bench.exchange.request_data(b'{"model":"f"}', True)
        assert code(bench) == (403, "forbidden")
        assert bench.table.endpoints["f"].counters.requests == 0


class TestHold:
    def test_without_it_nothing_ready_is_503_at_once(self):
        bench = Bench(replicas=0)
        bench.head(end=True)
        assert code(bench) == (503, "no_replica")
        assert bench.endpoint.counters.codes == {"no_replica": 1}

    def test_a_request_waits_for_a_cold_start_and_its_body_with_it(self):
        bench = Bench(hold=HoldSpec(wait_s=5.0, only_tunnels=False))
        for replica in bench.endpoint.replicas:
            bench.endpoint.set_health(replica, is_healthy=False, now=bench.now)
        bench.head(length=5)
        assert bench.down.holds == HOLD_NO_UPSTREAM
        assert bench.endpoint.counters.waiting == 1
        bench.pass_time(2.0)
        assert not bench.finished()
        bench.endpoint.set_health(bench.endpoint.replicas[0], is_healthy=True, now=bench.now)
        bench.pass_time(2 * LOOK_AGAIN_S)
        assert bench.endpoint.counters.waiting == 0
        up = bench.connected()
        assert bench.down.holds == 0
        bench.exchange.request_data(b"hello", True)
        bench.exchange.response_head(response(204), True)
        assert up.data == b"hello"
        assert bench.endpoint.counters.overhead.sum_s < 0.1, "the wait is not what the router added"

    def test_only_tunnels_by_default(self):
        bench = Bench(replicas=0, hold=HoldSpec(wait_s=5.0))
        bench.head(end=True)
        assert code(bench) == (503, "no_replica")
        tunnel = Bench(replicas=0, hold=HoldSpec(wait_s=5.0))
        tunnel.head(b"CONNECT", upgrade=b"websocket")
        assert not tunnel.finished()
        tunnel.pass_time(4.9)
        assert not tunnel.finished()
        tunnel.pass_time(0.2)
        assert code(tunnel) == (503, "no_replica")
        assert tunnel.endpoint.counters.waiting == 0

    def test_no_more_than_so_many_wait(self):
        bench = Bench(replicas=0, hold=HoldSpec(wait_s=5.0, max_waiting=2, only_tunnels=False))
        bench.endpoint.counters.waiting = 2
        bench.head(end=True)
        assert code(bench) == (503, "no_replica")
        assert bench.endpoint.counters.waiting == 2

    @pytest.mark.parametrize("how", ["client", "deadline"])
    def test_the_wait_ends_with_the_client_or_its_time(self, how):
        bench = Bench(replicas=0, hold=HoldSpec(wait_s=60.0, only_tunnels=False))
        bench.head(end=True, known={b"x-request-timeout-ms": b"1500"})
        if how == "client":
            bench.exchange.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
            assert bench.flags[0] == "DC"
        else:
            bench.pass_time(1.6)
            assert code(bench) == (504, "deadline")
        assert bench.endpoint.counters.waiting == 0

    def test_who_waits_goes_on_waiting_while_others_fill_the_first_replica(self):
        bench = Bench(replicas=1, hold=HoldSpec(wait_s=5.0, only_tunnels=False), limits=LimitSpec(max_concurrency=1))
        replica = bench.endpoint.replicas[0]
        bench.endpoint.set_health(replica, is_healthy=False, now=bench.now)
        bench.head(end=True)
        replica.in_flight = 1
        bench.endpoint.set_health(replica, is_healthy=True, now=bench.now)
        bench.pass_time(2.0)
        assert not bench.finished()
        replica.in_flight = 0
        bench.pass_time(2 * LOOK_AGAIN_S)
        assert bench.connected().head is not None
        assert bench.endpoint.counters.waiting == 0

    def test_who_waits_for_an_endpoint_that_leaves_does_not_go_to_its_namesake(self):
        bench = Bench(replicas=0, hold=HoldSpec(wait_s=5.0, only_tunnels=False))
        bench.head(end=True)
        stranger = Bench(replicas=1, environment="other", needs_token=True)
        bench.core.table = stranger.table
        bench.pass_time(2 * LOOK_AGAIN_S)
        assert code(bench) == (404, "no_route")
        assert bench.endpoint.counters.waiting == 0

    def test_who_waits_is_asked_again_who_they_are(self):
        bench = Bench(replicas=0, hold=HoldSpec(wait_s=5.0, only_tunnels=False))
        bench.head(end=True)
        bench.gate.refusals["e"] = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
        bench.pass_time(2 * LOOK_AGAIN_S)
        assert code(bench) == (401, "unauthenticated")

    def test_at_capacity_does_not_wait(self):
        bench = Bench(replicas=1, hold=HoldSpec(wait_s=5.0, only_tunnels=False), limits=LimitSpec(max_concurrency=1))
        bench.endpoint.replicas[0].in_flight = 1
        bench.head(end=True)
        assert code(bench) == (503, "at_capacity")


class TestKeys:
    @pytest.mark.parametrize("name", AFFINITY_FIELDS)
    def test_every_name_of_a_routing_key_works(self, name):
        chosen = {Bench(replicas=8).pick_of({name: b"agent-7"}) for _ in range(20)}
        assert len(chosen) == 1

    def test_the_first_name_wins(self):
        both = {b"x-session-id": b"b", b"modal-session-id": b"a"}
        assert Bench(replicas=8).pick_of(both) == Bench(replicas=8).pick_of({b"modal-session-id": b"a"})

    def test_a_key_too_long_is_refused_by_name(self):
        bench = Bench()
        bench.head(end=True, known={b"x-routing-key": b"k" * (MAX_KEY_BYTES + 1)})
        assert code(bench) == (431, "head_too_large")
        assert "x-routing-key" in json.loads(bench.down.data)["error"]["message"]


class TestPin:
    def test_the_named_replica_healthy_or_not(self):
        bench = Bench(replicas=3)
        bench.endpoint.set_health(bench.endpoint.replicas[2], is_healthy=False, now=bench.now)
        assert bench.pick_of({b"x-router-replica": b"r2"}) == "r2"

    @pytest.mark.parametrize("name", [b"nobody", b"r1"])
    def test_one_that_is_not_up_is_503(self, name):
        bench = Bench(replicas=2)
        bench.endpoint.replicas[1].state = "DOWN"
        bench.head(end=True, known={b"x-router-replica": name})
        assert code(bench) == (503, "no_replica")

    def test_it_does_not_move(self):
        bench = Bench(replicas=3)
        bench.head(end=True, known={b"x-router-replica": b"r1"})
        bench.exchange.upstream_failed(ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE))
        assert code(bench) == (503, "connect_failed")

    def test_a_full_one_is_at_capacity(self):
        bench = Bench(replicas=2, limits=LimitSpec(max_concurrency=1))
        bench.endpoint.replicas[1].in_flight = 1
        bench.head(end=True, known={b"x-router-replica": b"r1"})
        assert code(bench) == (503, "at_capacity")


def test_an_endpoint_takes_so_many_and_no_more():
    bench = Bench(limits=LimitSpec(endpoint_concurrency=2))
    bench.endpoint.counters.in_flight = 2
    bench.head(end=True)
    assert code(bench) == (503, "at_capacity")
    assert bench.endpoint.counters.in_flight == 2


def test_who_is_refused_for_want_of_room_takes_none():
    """Its body may come slowly, and those that are refused meanwhile must not keep the endpoint shut."""
    bench = Bench(limits=LimitSpec(endpoint_concurrency=2))
    bench.endpoint.counters.in_flight = 2
    bench.head(length=10)
    assert not bench.finished(), "its small body is read first"
    assert bench.endpoint.counters.in_flight == 2
    bench.exchange.request_data(b"0123456789", True)
    assert code(bench) == (503, "at_capacity")
    assert bench.endpoint.counters.in_flight == 2


class TestPrompts:
    def bench(self):
        return Bench(replicas=3, policy="prefix_affinity", prefixes=True)

    def test_the_beginning_of_the_body_is_waited_for_and_sent_on(self):
        bench = self.bench()
        up = bench.warm()
        bench.head(fields=JSON)
        bench.exchange.request_data(b"{" + b"x" * 1_000, False)
        assert bench.pool.opened == []
        bench.exchange.request_data(b"y" * 40_000, False)
        assert up.data == b"{" + b"x" * 1_000 + b"y" * 40_000
        bench.exchange.request_data(b"}", True)
        assert up.ended

    def test_one_that_comes_slowly_goes_where_any_other_does(self):
        bench = self.bench()
        bench.head(fields=JSON)
        bench.exchange.request_data(b"{", False)
        bench.pass_time(WAIT_S + 0.1)
        up = bench.connected()
        assert (up.data, up.ended) == (b"{", False)

    def test_it_picks_from_the_table_in_force_by_then(self):
        bench = self.bench()
        bench.head(fields=JSON)
        bench.exchange.request_data(b"{", False)
        for left in (2, 1):  # two versions on
            bench.patch(replicas=left)
        bench.exchange.request_data(b"}", True)
        (replica, _), = bench.pool.opened
        assert replica.id == "r0"
        assert not replica.has_left

    def test_nobody_waits_where_there_is_nothing_to_choose(self):
        empty = Bench(replicas=0, policy="prefix_affinity", prefixes=True)
        empty.head(fields=JSON)
        assert code(empty) == (503, "no_replica")
        one = Bench(replicas=1, policy="prefix_affinity", prefixes=True)
        one.head(fields=JSON)
        assert len(one.pool.opened) == 1
        text = self.bench()
        text.head(fields=[(b"content-type", b"application/octet-stream")])
        assert len(text.pool.opened) == 1

    def test_who_was_told_to_continue_is_not_asked_to_twice(self):
        bench = self.bench()
        up = bench.warm()
        bench.head(fields=[*JSON, (b"expect", b"100-continue")], expects_continue=True)
        assert bench.down.informational == [100]
        bench.exchange.request_data(b"{}", True)
        assert not up.head.shape.expects_continue
        assert b"expect" not in dict(up.head.shape.fields)

    @pytest.mark.parametrize("known", [{b"x-routing-key": b"k"}, None])
    def test_who_has_no_prompt_is_not_waited_for(self, known):
        bench = self.bench()
        bench.head(method=b"POST" if known else b"GET", known=known, length=5, fields=JSON)
        assert len(bench.pool.opened) == 1


def test_who_is_refused_at_the_gate_is_no_demand_of_the_endpoint():
    bench = Bench(replicas=0)
    bench.gate.refusals["e"] = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
    bench.head(end=True)
    assert code(bench) == (401, "unauthenticated")
    assert (bench.endpoint.counters.requests, bench.endpoint.counters.codes) == (0, {})
