"""The exchange between fake streams: playbooks for each rule, and a randomised model of its invariants."""

import hypothesis.strategies as st
import pytest
from exchangekit import (
    CLOSED,
    GOES_AWAY,
    GONE,
    REFUSED,
    STALE,
    STREAM_REFUSED,
    Bench,
    FakeStream,
    response,
)
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.core import Peer
from router.errors import Kind, ProxyError, Retry, Source
from router.exchange import MAX_REPLAY_BYTES, Exchange
from router.exchange_ending import TUNNEL_END_S
from router.http import RequestHead, RequestShape
from router.routing.spec import LimitSpec, TimeoutSpec
from router.stream import HOLD_NO_UPSTREAM, HOLD_PEER_FULL


def test_a_request_on_a_warm_connection():
    bench = Bench()
    up = bench.warm()
    bench.head(length=5)
    bench.exchange.request_data(b"hello", True)
    assert up.data == b"hello"
    assert up.ended
    added = dict(up.head.added)
    assert added[b"x-forwarded-for"] == b"192.0.2.1"
    assert added[b"x-forwarded-host"] == b"example.com"
    assert added[b"x-forwarded-proto"] == b"http"
    assert added[b"x-request-id"].startswith(b"p-")
    bench.exchange.response_head(response(200, 2), False)
    bench.exchange.response_data(b"ok", True)
    assert bench.down.data == b"ok"
    assert dict(bench.down.head.added)[b"x-request-id"] == added[b"x-request-id"]
    assert b'desc="reused"' in dict(bench.down.head.added)[b"server-timing"]
    assert bench.finished()
    assert bench.in_flight() == 0
    assert bench.core.in_flight == 0


def test_data_is_held_until_a_replica_is_connected():
    bench = Bench()
    bench.head(length=5)
    assert bench.down.holds == HOLD_NO_UPSTREAM
    up = bench.connected()
    assert bench.down.holds == 0
    assert up.head is not None


def test_a_tunnel_is_held_until_the_replica_switched():
    bench = Bench()
    up = bench.warm()
    bench.head(b"CONNECT", upgrade=b"websocket")
    assert bench.down.holds == HOLD_NO_UPSTREAM
    bench.exchange.response_head(response(200, tunnel=True), False)
    assert bench.down.holds == 0
    bench.exchange.request_data(b"a", True)
    assert not bench.finished()
    bench.exchange.response_data(b"b", True)
    assert (up.data, bench.down.data) == (b"a", b"b")
    assert bench.finished()
    assert bench.records[0][6] == 101


def test_a_replica_that_does_not_end_a_tunnel_keeps_nothing_for_long():
    bench = Bench()
    bench.warm()
    bench.head(b"CONNECT", upgrade=b"websocket")
    bench.exchange.response_head(response(200, tunnel=True), False)
    bench.exchange.request_data(b"close frame", True)
    bench.pass_time(TUNNEL_END_S - 0.1)
    assert not bench.finished()
    bench.pass_time(0.2)
    assert bench.finished()
    assert bench.in_flight() == 0


def test_a_refused_tunnel_stays_shut():
    """What the client sends behind its handshake would be a request of its making to the replica."""
    bench = Bench()
    up = bench.warm()
    bench.head(b"CONNECT", upgrade=b"websocket")
    bench.exchange.response_head(response(403, 4), False)
    assert bench.down.holds & HOLD_NO_UPSTREAM
    bench.exchange.response_data(b"nope", True)
    assert bench.finished() and not up.data and bench.down.ended


@pytest.mark.parametrize("error", [STALE, STREAM_REFUSED, GOES_AWAY])
def test_a_tunnel_that_reached_nobody_is_tried_again(error):
    bench = Bench()
    bench.warm()
    bench.head(b"CONNECT", upgrade=b"websocket")
    bench.exchange.response_reset(error)
    up = bench.connected()
    assert up.head is not None and bench.down.holds == HOLD_NO_UPSTREAM
    bench.exchange.response_head(response(200, tunnel=True), False)
    assert bench.down.holds == 0


@pytest.mark.parametrize("error", [STREAM_REFUSED, GOES_AWAY])
def test_what_one_connection_refused_another_to_the_same_replica_may_take(error):
    bench = Bench(replicas=1)
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_reset(error)
    assert bench.connected().head is not None
    bench.exchange.response_head(response(204), True)
    assert bench.finished() and bench.records[0][17] == 1


def test_a_replica_that_refuses_streams_is_full_and_not_broken():
    bench = Bench(replicas=1, retries=0)
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_reset(STREAM_REFUSED)
    assert bench.flags == ("UR", "upstream_reset", b"no")
    assert bench.endpoint.replicas[0].failures == 0


def test_a_refused_connection_moves_to_another_replica():
    bench = Bench()
    bench.head(end=True)
    first = bench.pool.opened[0][0]
    bench.exchange.upstream_failed(REFUSED)
    second = bench.pool.opened[1][0]
    assert second is not first
    assert first.failures == 1
    bench.connected()
    bench.exchange.response_head(response(204), True)
    assert bench.finished()
    assert bench.records[0][17] == 1
    assert bench.core.retrying == 0


def test_when_every_replica_refused_the_client_learns_it_at_once():
    bench = Bench()
    bench.head(end=True)
    bench.exchange.upstream_failed(REFUSED)
    bench.exchange.upstream_failed(REFUSED)
    assert bench.down.head.shape.status == 503
    assert bench.flags == ("UF", "connect_failed", b"no")
    assert bench.in_flight() == 0


def test_a_stale_connection_is_replaced_and_the_body_sent_again():
    bench = Bench()
    stale = bench.warm()
    bench.head(length=10)
    bench.exchange.request_data(b"hello", False)
    bench.exchange.response_reset(STALE)
    assert stale.error is None
    up = bench.connected()
    assert up.data == b"hello"
    bench.exchange.request_data(b"world", True)
    assert up.data == b"helloworld"
    assert up.ended
    assert all(replica.failures == 0 for replica in bench.endpoint.replicas)


def test_a_connection_that_took_bytes_is_not_repeated():
    bench = Bench()
    bench.warm(untouched=False)
    bench.head(length=5)
    bench.exchange.request_data(b"hello", True)
    bench.exchange.response_reset(STALE)
    assert bench.down.head.shape.status == 502
    assert bench.flags == ("UC", "upstream_closed", b"maybe")


def test_a_body_beyond_what_is_kept_is_not_repeated():
    bench = Bench()
    bench.warm()
    bench.head(length=MAX_REPLAY_BYTES + 2)
    bench.exchange.request_data(b"x" * (MAX_REPLAY_BYTES + 1), False)
    bench.exchange.response_reset(STALE)
    assert bench.down.head.shape.status == 502


def test_a_fresh_connection_that_dies_is_not_repeated():
    bench = Bench()
    bench.head(end=True)
    bench.connected()
    bench.exchange.response_reset(STALE)
    assert bench.down.head.shape.status == 502


def test_a_client_that_goes_away_cancels_the_replica():
    bench = Bench()
    up = bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(), False)
    bench.exchange.request_reset(GONE)
    assert up.error is GONE
    assert bench.flags == ("DC", "client_gone", b"yes")
    assert bench.endpoint.counters.aborts == 1
    assert bench.in_flight() == 0


def test_a_client_that_goes_away_cancels_a_connect():
    bench = Bench()
    bench.head(end=True)
    pending = bench.pool.opened[0][1]
    bench.exchange.request_reset(GONE)
    assert pending.cancelled
    assert bench.in_flight() == 0


def test_a_replica_that_dies_mid_stream_is_an_error_event_and_an_abort():
    bench = Bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(event_stream=True), False)
    bench.exchange.response_data(b"data: 1\n\n", False)
    bench.exchange.response_reset(CLOSED)
    assert bench.down.data.startswith(b"data: 1\n\nevent: error\ndata: {")
    assert bench.down.error is CLOSED
    assert not bench.down.ended
    assert bench.flags[0] == "UC"


def test_a_replica_that_dies_mid_body_is_an_abort():
    bench = Bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(length=10), False)
    bench.exchange.response_data(b"12345", False)
    bench.exchange.response_reset(CLOSED)
    assert bench.down.error is CLOSED
    assert bench.down.data == b"12345"


def test_full_is_applied_to_a_stream_bound_later():
    bench = Bench()
    bench.head(end=True)
    bench.exchange.pause_response()
    assert bench.connected().holds == HOLD_PEER_FULL


def test_no_route_and_no_replica():
    bench = Bench(replicas=0)
    bench.head(end=True)
    assert bench.down.head.shape.status == 503
    assert bench.flags == ("UH", "no_replica", b"no")


def test_a_short_refused_body_is_read_before_the_answer():
    bench = Bench(replicas=0)
    bench.head(length=5)
    assert bench.down.head is None
    bench.exchange.request_data(b"hello", True)
    assert bench.down.head.shape.status == 503


def test_a_refused_body_that_does_not_come_is_not_waited_for():
    bench = Bench(replicas=0)
    bench.head(length=5)
    assert bench.down.head is None
    bench.now = bench.clock.now = 102.0
    assert bench.exchange.next_deadline() == 102.0
    bench.exchange.handle_deadline(102.0)
    assert bench.down.head.shape.status == 503
    assert bench.finished()


def test_a_retry_forgets_that_the_dead_connection_was_full():
    bench = Bench()
    bench.warm()
    bench.head(length=10)
    bench.exchange.request_data(b"hello", False)
    bench.exchange.pause_request()
    assert bench.down.holds & HOLD_PEER_FULL
    bench.exchange.response_reset(STALE)
    bench.connected()
    assert bench.down.holds == 0


def test_a_finished_exchange_keeps_nothing_of_its_request():
    bench = Bench(timeouts=TimeoutSpec(total_s=60.0))
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(204), True)
    assert bench.exchange._head is None
    assert bench.exchange.next_deadline() is None


def test_body_limits():
    bench = Bench(limits=LimitSpec(max_body_bytes=4))
    up = bench.warm()
    bench.head()
    bench.exchange.request_data(b"12345", False)
    assert bench.down.head.shape.status == 413
    assert up.error is not None


def test_capacity():
    bench = Bench(replicas=1, limits=LimitSpec(max_concurrency=1))
    bench.head(end=True)
    other = FakeStream()
    exchange = Exchange(bench.core, other, Peer(b"192.0.2.1"))
    exchange.request_head(RequestHead(RequestShape(b"GET", b"/", b"")), True)
    assert other.head.shape.status == 503
    assert dict(other.head.shape.fields)[b"x-router-error"] == b"at_capacity"


def test_deadlines():
    bench = Bench(timeouts=TimeoutSpec(total_s=5.0, first_byte_s=2.0))
    up = bench.warm()
    bench.head(end=True)
    assert bench.exchange.next_deadline() == 102.0
    bench.exchange.response_head(response(), False)
    assert bench.exchange.next_deadline() == 105.0
    bench.now = bench.clock.now = 105.0
    bench.exchange.handle_deadline(105.0)
    assert bench.flags[0] == "DT"
    assert up.error is not None
    assert bench.exchange.next_deadline() is None


@pytest.mark.parametrize("end", ["data", "trailers"])
def test_the_first_byte_is_awaited_once_the_replica_has_the_request(end):
    """A slow upload is the client's doing, and no failure of the replica."""
    bench = Bench(timeouts=TimeoutSpec(first_byte_s=2.0))
    bench.warm()
    bench.head(length=None if end == "trailers" else 5)
    assert bench.exchange.next_deadline() is None
    bench.now = bench.clock.now = 110.0
    if end == "data":
        bench.exchange.request_data(b"hello", True)
    else:
        bench.exchange.request_trailers([(b"a", b"b")])
    assert bench.exchange.next_deadline() == 112.0
    bench.exchange.handle_deadline(112.0)
    assert bench.flags[:2] == ("UT", "first_byte_timeout")


def test_the_next_replica_has_its_own_time_for_the_first_byte():
    bench = Bench(timeouts=TimeoutSpec(first_byte_s=2.0))
    bench.warm()
    bench.head(length=5)
    bench.exchange.request_data(b"hello", True)
    bench.now = bench.clock.now = 101.5
    bench.exchange.response_reset(GOES_AWAY)
    assert bench.exchange.next_deadline() is None, "while it connects"
    bench.now = bench.clock.now = 103.0
    bench.connected()
    assert bench.exchange.next_deadline() == 105.0


def test_a_retried_request_tells_what_is_left_by_then():
    bench = Bench()
    first = bench.warm()
    known = {b"x-request-timeout-ms": b"2000", b"grpc-timeout": b"2S"}
    bench.head(end=True, known=known)
    assert dict(first.head.added)[b"x-request-timeout-ms"] == b"2000"
    bench.now = bench.clock.now = 101.5
    bench.exchange.response_reset(GOES_AWAY)
    added = bench.connected().head.added
    assert [value for name, value in added if name == b"x-request-timeout-ms"] == [b"500"]
    assert [value for name, value in added if name == b"grpc-timeout"] == [b"500000u"]
    assert len(added) == len({name for name, _ in added})


def test_a_request_timeout_of_the_client_is_a_deadline_and_what_remains_is_forwarded():
    bench = Bench(timeouts=TimeoutSpec(total_s=5.0))
    up = bench.warm()
    bench.head(end=True, known={b"x-request-timeout-ms": b"1500"})
    assert bench.exchange.next_deadline() == 101.5
    assert dict(up.head.added)[b"x-request-timeout-ms"] == b"1500"


def test_trailers_only_for_those_who_want_them():
    bench = Bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(), False)
    bench.exchange.response_trailers([(b"a", b"b")])
    assert bench.down.trailers is None
    assert bench.down.ended
    assert bench.endpoint.counters.dropped_trailers == 1


@pytest.mark.parametrize("status", [429, 503])
def test_backpressure_is_not_a_failure(status):
    bench = Bench(replicas=1)
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(status), True)
    replica = bench.endpoint.replicas[0]
    assert (replica.failures, replica.backpressured) == (0, 1)
    assert replica.load(100.0) > 1.0


class ExchangeModel(RuleBasedStateMachine):
    """Any order of events the codecs and the pool may produce; what must hold after each."""

    @initialize(warm=st.booleans(), untouched=st.booleans(), end=st.booleans())
    def begin(self, warm, untouched, end):
        self.bench = Bench()
        self.up = None
        self.sent = b""
        self.client_done = end
        self.answered = False
        self.answer = b""
        self.response_done = False
        self.full = False
        if warm:
            self.up = self.bench.warm(untouched=untouched)
        self.bench.head(end=end)
        if not warm:
            self.up = None

    def live(self):
        return hasattr(self, "bench") and not self.bench.finished()

    def pending(self):
        return self.live() and self.up is None

    def bound(self):
        return self.live() and self.up is not None

    @precondition(lambda self: self.pending())
    @rule()
    def connect(self):
        self.up = self.bench.connected()

    @precondition(lambda self: self.pending())
    @rule()
    def refuse(self):
        self.bench.exchange.upstream_failed(REFUSED)

    @precondition(lambda self: self.bound() and not self.client_done and not self.bench.down.holds & HOLD_NO_UPSTREAM)
    @rule(data=st.binary(min_size=1, max_size=20), end=st.booleans())
    def client_data(self, data, end):
        self.sent += data
        self.client_done = end
        self.bench.exchange.request_data(data, end)

    @precondition(lambda self: self.bound() and not self.answered)
    @rule(end=st.booleans())
    def replica_head(self, end):
        self.answered = True
        self.response_done = end
        self.bench.exchange.response_head(response(), end)

    @precondition(lambda self: self.bound() and self.answered and not self.response_done)
    @rule(data=st.binary(min_size=1, max_size=20), end=st.booleans())
    def replica_data(self, data, end):
        self.answer += data
        self.response_done = end
        self.bench.exchange.response_data(data, end)

    @precondition(lambda self: self.bound() and not self.response_done)
    @rule(error=st.sampled_from([CLOSED, STALE]))
    def replica_dies(self, error):
        dead = self.up
        self.up = None
        self.bench.exchange.response_reset(error)
        assert dead.error is None, "a dead stream is not reset"

    @precondition(lambda self: self.live())
    @rule(full=st.booleans())
    def client_full(self, full):
        self.full = full
        (self.bench.exchange.pause_response if full else self.bench.exchange.resume_response)()

    @precondition(lambda self: self.bound())
    @rule(full=st.booleans())
    def replica_full(self, full):
        (self.bench.exchange.pause_request if full else self.bench.exchange.resume_request)()

    @precondition(lambda self: self.live())
    @rule()
    def client_leaves(self):
        self.bench.exchange.request_reset(GONE)

    @precondition(lambda self: hasattr(self, "bench") and self.bench.finished())
    @rule()
    def rest(self):
        assert self.bench.exchange.next_deadline() is None

    @invariant()
    def holds_and_leases_are_right(self):
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        if bench.finished():
            assert bench.in_flight() == 0, "a lease leaked"
            assert bench.core.in_flight == 0
            assert bench.core.retrying == 0
            if self.response_done:
                assert bench.down.ended
                assert bench.down.data == self.answer
            elif self.answered:
                assert not bench.down.ended, "a broken response was ended as if it were whole"
        else:
            assert bench.in_flight() == 1
            if self.up is not None:
                assert bool(self.up.holds & HOLD_PEER_FULL) == self.full, "a pause was lost"
                if not self.answered:
                    assert self.up.data == self.sent, "the request was not sent whole and once"


TestExchangeModel = ExchangeModel.TestCase
TestExchangeModel.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


FORGED = {
    b"x-forwarded-for": b"6.6.6.6, 198.51.100.7, 203.0.113.1",
    b"x-forwarded-proto": b"HTTPS",
    b"x-forwarded-host": b"shop.example",
}


@pytest.mark.parametrize(
    ("hops", "client", "proto", "host"),
    [
        (0, b"192.0.2.1", b"http", b"example.com"),
        (1, b"203.0.113.1", b"https", b"shop.example"),
        (2, b"198.51.100.7", b"https", b"shop.example"),
        (4, b"192.0.2.1", b"https", b"shop.example"),
    ],
)
def test_what_proxies_say_is_believed_as_far_as_they_are_trusted(hops, client, proto, host):
    bench = Bench()
    bench.core.trusted_hops = hops
    up = bench.warm()
    bench.head(end=True, known=FORGED)
    added = dict(up.head.added)
    assert added[b"x-forwarded-for"] == FORGED[b"x-forwarded-for"] + b", 192.0.2.1", "the chain is kept whole"
    assert (added[b"x-forwarded-proto"], added[b"x-forwarded-host"]) == (proto, host)
    bench.exchange.response_head(response(200, 0), True)
    assert bench.records[0][16] == client


def test_trusted_hops_without_a_word_of_theirs():
    bench = Bench()
    bench.core.trusted_hops = 1
    bench.exchange = Exchange(bench.core, bench.down, Peer(b"192.0.2.1", b"https"))
    up = bench.warm()
    bench.head(end=True, known={b"x-forwarded-proto": b"gopher", b"x-request-id": b"r"})
    added = dict(up.head.added)
    assert added[b"x-forwarded-for"] == b"192.0.2.1"
    assert (added[b"x-forwarded-proto"], added[b"x-forwarded-host"]) == (b"https", b"example.com")


# -- gRPC ------------------------------------------------------------------------------------------------


def grpc_bench(**endpoint):
    bench = Bench(**endpoint)

    def head(known=None, end=False):
        shape = RequestShape(b"POST", b"/s.S/M", b"example.com")
        shape.is_grpc = shape.takes_trailers = True
        if known:
            shape.known = known
        bench.exchange.request_head(RequestHead(shape), end)

    bench.head = head
    return bench


def test_a_grpc_call_is_told_in_trailers_alone():
    bench = grpc_bench(replicas=0)
    bench.head(end=True)
    fields = dict(bench.down.head.shape.fields)
    assert bench.down.head.shape.status == 200 and bench.down.ended and not bench.down.data
    assert (fields[b"content-type"], fields[b"grpc-status"]) == (b"application/grpc", b"14")
    assert fields[b"grpc-message"].startswith(b"The endpoint has no ready replica")
    assert (fields[b"x-router-error"], fields[b"x-router-upstream-reached"]) == (b"no_replica", b"no")
    assert bench.records[0][6] == 200 and bench.records[0][19] == 14


def test_a_grpc_call_whose_replica_dies_ends_with_a_status():
    bench = grpc_bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(200), False)
    bench.exchange.response_data(b"message", False)
    bench.exchange.response_reset(CLOSED)
    assert dict(bench.down.trailers)[b"grpc-status"] == b"14" and bench.down.error is None
    assert bench.records[0][19] == 14 and bench.flags[1] == "upstream_closed"
    assert bench.endpoint.counters.grpc_statuses == {14: 1}


def test_a_grpc_call_whose_answer_has_a_length_is_not_ended_short_of_it():
    bench = grpc_bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(200, 100), False)
    bench.exchange.response_data(b"half of a page", False)
    bench.exchange.response_reset(CLOSED)
    assert bench.down.trailers is None and bench.down.error is CLOSED


@pytest.mark.parametrize(
    ("timeout", "left"),
    [(b"5S", b"4999999u"), (b"1H", b"3599999m"), (b"250m", b"249999u"), (b"99999999H", b"99999999H"), (b"100H", b"359999S"), (b"3000000n", b"2999u")],
)
def test_a_grpc_timeout_is_a_deadline_and_what_remains_is_forwarded(timeout, left):
    bench = grpc_bench()
    up = bench.warm()
    bench.exchange._started_s -= 0.000_001
    bench.head({b"grpc-timeout": timeout}, end=True)
    sent = dict(up.head.added)[b"grpc-timeout"]
    assert abs(int(sent[:-1]) - int(left[:-1])) <= 1 and sent[-1:] == left[-1:]


@pytest.mark.parametrize("timeout", [b"5", b"S", b"-1S", b"123456789S", b"5s", b"5S, 6S", b"\xb2S"])
def test_a_grpc_timeout_that_is_none(timeout):
    bench = grpc_bench()
    bench.head({b"grpc-timeout": timeout}, end=True)
    assert dict(bench.down.head.shape.fields)[b"grpc-status"] == b"13"


def test_the_smallest_of_all_limits_of_time_wins():
    bench = grpc_bench(timeouts=TimeoutSpec(total_s=60.0))
    bench.warm()
    bench.head({b"grpc-timeout": b"10S", b"x-request-timeout-ms": b"2000"}, end=True)
    assert bench.exchange.next_deadline() == 102.0
    bench.exchange.handle_deadline(102.0)
    assert dict(bench.down.head.shape.fields)[b"grpc-status"] == b"4"


@pytest.mark.parametrize(("status", "backpressured"), [(b"0", 0), (b"8", 1), (b"14", 1), (b"13", 0), (b"x", 0)])
def test_a_grpc_status_counts_for_the_replicas_standing(status, backpressured):
    bench = grpc_bench()
    bench.warm()
    bench.head(end=True)
    bench.exchange.response_head(response(200), False)
    bench.exchange.response_trailers([(b"grpc-status", status), (b"x-bin", b"AAE")])
    assert bench.down.trailers == [(b"grpc-status", status), (b"x-bin", b"AAE")]
    assert sum(replica.backpressured for replica in bench.endpoint.replicas) == backpressured
    assert sum(replica.failures for replica in bench.endpoint.replicas) == 0


# -- what only HTTP/2 can say ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "backpressured", "failures"),
    [
        (ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, Retry.SAFE), 1, 0),  # REFUSED_STREAM
        (ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, Retry.SAFE), 0, 0),  # GOAWAY
    ],
)
def test_a_stream_that_reached_nobody_moves_with_its_body(error, backpressured, failures):
    bench = Bench()
    bench.warm()
    bench.head(length=10)
    bench.exchange.request_data(b"hello", False)
    bench.exchange.response_reset(error)
    up = bench.connected()
    assert up.data == b"hello"
    assert sum(replica.backpressured for replica in bench.endpoint.replicas) == backpressured
    assert sum(replica.failures for replica in bench.endpoint.replicas) == failures


def test_a_retry_that_finds_a_stream_at_once_lets_the_client_go_on():
    """A shared connection is there without waiting, and the client was held for the retry."""
    bench = Bench()
    bench.warm()
    bench.head(length=10)
    bench.exchange.request_data(b"hello", False)
    second = FakeStream(reused=True)
    bench.pool.open = lambda replica, receiver, dial, head, *, fresh: second
    bench.exchange.response_reset(ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, Retry.SAFE))
    assert second.data == b"hello" and bench.down.holds == 0
    bench.exchange.request_data(b"world", True)
    assert second.data == b"helloworld" and second.ended


def test_a_pool_that_is_full_is_no_failure():
    bench = Bench(replicas=1)
    full = ProxyError(Kind.AT_CAPACITY, Source.ROUTER, Retry.SAFE)
    bench.pool.open = lambda replica, receiver, dial, head, *, fresh: full
    bench.head(end=True)
    assert bench.down.head.shape.status == 503 and bench.flags == ("UO", "at_capacity", b"no")
    assert bench.in_flight() == 0
