"""Sticky sessions in the way of a request: who gets in, where to, what it waits for, and what it leaves behind."""

import json

import pytest
from exchangekit import CLOSED, GONE, REFUSED, STALE, Bench, response

from router.body_head import MAX_HEAD_BYTES, WAIT_S
from router.demand import count_demand
from router.errors import Kind, ProxyError, Source
from router.http import SESSION_COOKIE
from router.routing.credentials import Credential
from router.routing.session_token import SessionClaim, SessionKeys
from router.routing.sessions import COMMIT_S
from router.routing.spec import (
    EndpointPatch,
    EndpointSpec,
    HoldSpec,
    ReplicaSpec,
    RouteSpec,
    SessionEntry,
    StickySpec,
    TokenSpec,
)

KEY = bytes(32)
START, TERMINATE = b"/_router/sessions/start", b"/v1/_router/sessions/terminate"
STICKY = StickySpec(idle_timeout_s=60, max_idle_timeout_s=100, max_per_replica=2, start_wait_s=5.0, max_waiting=2)


def bench(sticky=STICKY, **options):
    made = Bench(sessions=sticky, **options)
    made.change(session_keys=(KEY,))
    made.core.table.sessions.known_to_s = made.now - 1.0
    return made


def token(made, **changes):
    values = {"id": "s1", "endpoint": "e", "environment": "main", "replica": "r1", "idle_s": 60}
    values |= {"issued_s": int(made.now), "minter": b"m"} | changes
    return SessionKeys((KEY,)).sign(SessionClaim(**values))


def shown(made, **changes):
    return {b"x-router-session": token(made, **changes)}


def code(made):
    return made.records[0][6], made.flags[1]


def uses(made):
    return [(session.id, busy) for session, busy in made.core.table.sessions.take_touched()]


class TestRequests:
    def test_it_goes_to_the_sessions_replica_and_counts_as_use_until_its_end(self):
        made = bench(replicas=3)
        up = made.warm()
        made.head(end=True, known=shown(made))
        assert made.pool.opened[0][0].id == "r1"
        assert made.gate.minter == b"m"
        assert uses(made) == [("s1", True)]
        assert not any(name == b"x-router-session" for name, _ in up.head.added + up.head.shape.fields)
        made.exchange.response_head(response(204), True)
        assert code(made) == (204, "")
        assert uses(made) == [("s1", False)]

    @pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
    def test_without_a_token_nobody_gets_in(self, method):
        made = bench()
        made.head(method=method, end=True)
        assert code(made) == (401, "session_required")
        assert made.down.head.shape.status == 401
        assert made.pool.opened == []
        assert uses(made) == []
        assert made.endpoint.counters.requests == 0, "no demand"

    @pytest.mark.parametrize(("changes", "error"), [
        ({"endpoint": "f"}, (403, "forbidden")),
        ({"environment": "other"}, (403, "forbidden")),
        ({"replica": "gone"}, (410, "session_gone")),
        ({"issued_s": 1}, (410, "session_gone")),
    ])  # fmt: skip
    def test_tokens_that_do_not_fit(self, changes, error):
        made = bench()
        made.head(end=True, known=shown(made, **changes))
        assert code(made) == error
        assert uses(made) == [], "what is refused is no use"
        assert made.endpoint.counters.in_flight == 0

    def test_a_token_of_nobodys(self):
        made = bench()
        made.head(end=True, known={b"x-router-session": b"rs1.e30.e30"})
        assert code(made) == (401, "session_invalid")

    def test_who_may_not_call_may_not_by_a_session_either(self):
        made = bench()
        made.gate.refusals["e"] = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
        made.head(end=True, known=shown(made))
        assert code(made) == (401, "unauthenticated")

    def test_another_replica_is_never_tried(self):
        made = bench()
        made.head(end=True, known=shown(made))
        made.exchange.upstream_failed(REFUSED)
        assert code(made) == (503, "connect_failed")
        assert len(made.pool.opened) == 1

    def test_a_dead_pooled_connection_is_not_the_replicas_end(self):
        made = bench()
        made.warm()
        made.head(end=True, known=shown(made))
        made.exchange.response_reset(STALE)
        assert [replica.id for replica, _ in made.pool.opened] == ["r1", "r1"]
        made.connected()
        made.exchange.response_head(response(200), True)
        assert code(made) == (200, "")

    def test_a_pin_does_not_lead_away(self):
        made = bench()
        made.head(end=True, known=shown(made) | {b"x-router-replica": b"r0"})
        assert made.pool.opened[0][0].id == "r1"

    def test_a_replica_that_drains_is_served_on_and_one_that_is_down_is_not(self):
        for state, error in (("DRAINING", None), ("STARTING", "no_replica"), ("DOWN", "no_replica")):
            made = bench()
            address = made.endpoint.replicas[1].address
            made.change((EndpointPatch("e", None, (ReplicaSpec("r1", address, state=state),)),))
            made.head(end=True, known=shown(made))
            assert (code(made)[1] if made.records else None) == error

    def test_a_session_that_ended_while_its_token_is_young(self):
        made = bench()
        made.change(sessions=(SessionEntry("s1", "e", "r1", 60),))
        made.change(ended=("s1",))
        made.head(end=True, known=shown(made))
        assert code(made) == (410, "session_gone")

    def test_an_old_token_of_an_open_session_and_one_that_began_in_an_outage(self):
        made = bench()
        old = int(made.now - COMMIT_S - 5)
        made.change(sessions=(SessionEntry("s1", "e", "r1", 60),))
        made.head(end=True, known=shown(made, issued_s=old))
        assert made.pool.opened
        for known_to_s, error in ((made.now, "session_gone"), (old + 1.0, None)):
            made = bench()
            made.core.table.sessions.known_to_s = known_to_s
            made.head(end=True, known=shown(made, issued_s=old))
            assert (code(made)[1] if made.records else None) == error

    def test_a_tunnel_keeps_it_in_use(self):
        made = bench()
        up = made.warm()
        made.head(upgrade=b"websocket", known=shown(made))
        made.exchange.response_head(response(200, tunnel=True), False)
        made.exchange.response_data(b"x", False)
        assert up.error is None
        assert uses(made) == [("s1", True)]
        assert uses(made) == []
        made.exchange.request_reset(GONE)
        assert uses(made) == [("s1", False)]

    def test_two_requests_of_one_session(self):
        made = bench()
        sessions = made.core.table.sessions
        session = sessions.find(token(made), made.endpoint, made.now)
        sessions.enter(session)
        sessions.enter(session)
        sessions.leave(session)
        assert uses(made) == [("s1", True)]
        sessions.leave(session)
        assert uses(made) == [("s1", False)]

    def test_on_a_host_by_model_the_token_names_the_endpoint(self):
        made = bench(routes=(RouteSpec("*", "/", "", by_model=True),))
        made.head(length=9, known=shown(made))
        assert made.pool.opened[0][0].id == "r1", "no model is waited for"

    def test_on_a_host_by_model_without_one(self):
        made = bench(routes=(RouteSpec("*", "/", "", by_model=True),))
        body = json.dumps({"model": "e"}).encode()
        made.head(length=len(body), known={b"x-router-session": b"nobody's"})
        made.exchange.request_data(body, True)
        assert code(made) == (401, "session_invalid")

    def test_a_start_on_a_host_by_model_needs_the_model(self):
        made = bench(routes=(RouteSpec("*", "/", "", by_model=True),))
        body = json.dumps({"model": "e"}).encode()
        made.head(path=START, length=len(body), known={SESSION_COOKIE: token(made)})
        made.exchange.request_data(body, True)
        assert made.desk.asked[0][0] == ("e", "r0", 60)

    def test_a_cookie_of_another_endpoint_is_none(self):
        made = bench()
        made.head(end=True, known={SESSION_COOKIE: token(made, endpoint="f")})
        assert code(made) == (401, "session_required")

    def test_another_process_under_the_replicas_name_knows_nothing_of_it(self):
        made = bench()
        address = made.endpoint.replicas[1].address
        made.change((EndpointPatch("e", None, (ReplicaSpec("r1", address, generation=2),)),))
        made.head(end=True, known=shown(made))
        assert code(made) == (410, "session_gone")
        made = bench()
        made.change((EndpointPatch("e", None, (ReplicaSpec("r1", address, generation=2),)),))
        made.head(end=True, known=shown(made, generation=2))
        assert made.pool.opened

    def test_what_failed_behind_the_head_leaves_the_session(self):
        made = bench()
        made.warm()
        made.head(end=True, known=shown(made))
        made.exchange.response_head(response(200), False)
        made.exchange.response_reset(CLOSED)
        assert uses(made) == [("s1", False)]


class TestQuery:
    def redirected(self, path, **options):
        made = bench()
        made.head(method=b"GET", end=True, path=path + token(made), **options)
        return made

    def test_a_token_of_the_query_goes_into_a_cookie(self):
        made = self.redirected(b"/v1/x?a=1&session_token=")
        fields = dict(made.down.head.shape.fields)
        assert code(made) == (307, "")
        assert fields[b"location"] == b"/v1/x?a=1"
        assert fields[b"set-cookie"].startswith(b"__Host-router-session=rs1.")
        assert fields[b"set-cookie"].endswith(b"; Path=/; Secure; HttpOnly; SameSite=Lax")
        assert (fields[b"cache-control"], fields[b"referrer-policy"]) == (b"no-store", b"no-referrer")
        assert made.records[0][4] == b"/v1/x?a=1", "the log does not show it"
        assert made.pool.opened == []

    @pytest.mark.parametrize("path", [b"//evil.example/?session_token=", b"/\\evil.example/?session_token="])
    def test_never_to_another_host(self, path):
        assert code(self.redirected(path)) == (400, "bad_request")

    def test_a_tunnel_is_not_redirected(self):
        made = self.redirected(b"/v1/ws?session_token=", upgrade=b"websocket")
        assert made.pool.opened[0][0].id == "r1"

    def test_a_bad_token_is_not_put_into_a_cookie(self):
        made = bench()
        made.head(method=b"GET", end=True, path=b"/?session_token=evil")
        assert code(made) == (401, "session_invalid")

    def test_a_field_comes_first_and_the_query_is_still_taken_out(self):
        made = bench()
        up = made.warm()
        made.head(method=b"GET", end=True, path=b"/v1/x?session_token=bad&b=2", known=shown(made))
        assert up.head.shape.path == b"/v1/x?b=2"


class TestStart:
    def start(self, made, **options):
        made.head(path=START, end=options.pop("end", True), **options)
        return made

    def answered(self, made, session_id="new", refusal=None):
        _, answer = made.desk.asked.pop()
        answer(session_id, int(made.now), refusal)
        return made

    def test_the_supervisor_keeps_it_before_it_is_told(self):
        made = self.start(bench())
        ((asked, _),) = made.desk.asked
        assert asked == ("e", "r0", 60)
        assert made.down.head is None
        self.answered(made)
        found = json.loads(made.down.data)
        assert (found["session_id"], found["idle_timeout_s"]) == ("new", 60)
        assert code(made) == (200, "")
        assert dict(made.down.head.shape.fields)[b"x-router-replica"] == b"r0"
        session = made.core.table.sessions.find(found["token"].encode(), made.endpoint, made.now)
        assert (session.id, session.replica, session.idle_s) == ("new", b"r0", 60)
        assert made.pool.opened == []

    def test_the_token_names_who_it_was_given_to(self):
        made = bench()
        made.gate.credential = Credential(TokenSpec(b"d" * 32, "wk"))
        self.answered(self.start(made))
        claim = SessionKeys((KEY,)).read(json.loads(made.down.data)["token"].encode())
        assert claim.minter == made.gate.credential.mark

    @pytest.mark.parametrize(("text", "idle_s"), [(b"1", 1), (b"100", 100), (b"7", 7)])
    @pytest.mark.parametrize("name", [b"x-router-session-idle-timeout", b"modal-session-idle-timeout"])
    def test_an_idle_timeout_that_is_asked_for(self, name, text, idle_s):
        made = self.start(bench(), known={name: text})
        assert made.desk.asked[0][0][2] == idle_s

    @pytest.mark.parametrize("text", [b"0", b"101", b"-1", b"1.5", b"", b"9" * 10, b"5, 6", b"\xb2"])
    def test_one_that_is_none(self, text):
        made = self.start(bench(), known={b"x-router-session-idle-timeout": text})
        assert code(made) == (400, "bad_request")

    @pytest.mark.parametrize("path", [START, TERMINATE])
    def test_other_methods(self, path):
        made = bench()
        made.head(method=b"GET", path=path, end=True, known=shown(made))
        assert code(made) == (405, "method_not_allowed")
        assert dict(made.down.head.shape.fields)[b"allow"] == b"POST"

    def test_who_may_not_call_may_not_start(self):
        made = bench()
        made.gate.refusals["e"] = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
        assert code(self.start(made)) == (401, "unauthenticated")

    def test_the_replica_with_the_fewest_sessions_for_its_weight(self):
        made = bench()
        made.change(sessions=(SessionEntry("a", "e", "r0", 9),))
        assert self.start(made).desk.asked[0][0][1] == "r1"

    def test_it_waits_for_room_and_is_refused_in_the_end(self):
        made = bench(sticky=StickySpec(max_per_replica=1, start_wait_s=5.0))
        made.change(sessions=tuple(SessionEntry(f"a{i}", "e", f"r{i}", 9) for i in range(2)))
        self.start(made)
        assert made.desk.asked == []
        counters = made.endpoint.counters
        assert (counters.starting, counters.waiting, counters.in_flight) == (1, 0, 0), "others have their room"
        made.pass_time(4.0)
        made.change(ended=("a1",))
        made.pass_time(0.2)
        assert made.desk.asked[0][0][1] == "r1"
        self.answered(made, "", Kind.AT_CAPACITY)
        made.pass_time(2.0)
        _, answer = made.desk.asked[-1]
        answer("", 0, Kind.AT_CAPACITY)
        assert code(made) == (503, "at_capacity")
        assert (counters.starting, counters.waiting, counters.in_flight) == (0, 0, 0)

    def test_without_a_replica_it_waits_and_counts_as_demand(self):
        made = bench(replicas=0)
        self.start(made)
        assert count_demand(made.endpoint.counters).waiting == 1
        made.pass_time(6.0)
        assert code(made) == (503, "no_replica")
        assert made.endpoint.counters.codes == {"no_replica": 1}

    def test_no_more_wait_than_may(self):
        made = bench(sticky=StickySpec(max_waiting=1), replicas=0)
        made.endpoint.counters.starting = 1
        assert code(self.start(made)) == (503, "no_replica")

    def test_a_store_that_is_away_is_not_waited_for(self):
        made = self.start(bench())
        self.answered(made, "", Kind.SESSION_UNAVAILABLE)
        assert code(made) == (503, "session_unavailable")

    def test_without_a_key_there_is_none(self):
        made = Bench(sessions=StickySpec())
        assert code(self.start(made)) == (503, "session_unavailable")

    def test_a_key_that_is_taken_out_meanwhile(self):
        made = self.start(bench())
        made.change(session_keys=())
        self.answered(made)
        assert code(made) == (503, "session_unavailable")
        assert made.desk.asked[0][0] == "new", "it is ended"

    def test_who_left_meanwhile_leaves_no_session(self):
        made = self.start(bench())
        made.exchange.request_reset(GONE)
        self.answered(made)
        assert made.desk.asked[0][0] == "new", "it is ended"
        made.desk.asked[0][1]("new", int(made.now), None)
        made = self.start(bench())
        made.exchange.request_reset(GONE)
        self.answered(made, "", Kind.AT_CAPACITY)
        assert made.desk.asked == []

    def test_who_may_not_any_more_when_it_comes(self):
        made = self.start(bench())
        made.gate.refusals["e"] = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
        self.answered(made)
        assert code(made) == (401, "unauthenticated")
        assert made.desk.asked[0][0] == "new"

    def test_its_body_is_read_first(self):
        made = self.start(bench(), end=False, length=2)
        assert made.desk.asked == []
        made.exchange.request_data(b"{}", True)
        assert made.desk.asked[0][0] == ("e", "r0", 60)
        self.answered(made)
        assert code(made) == (200, "")

    def test_no_more_of_its_body_is_taken_while_the_supervisor_is_asked(self):
        for path, known in ((START, None), (TERMINATE, shown(bench()))):
            made = bench()
            made.head(path=path, known=known)
            made.exchange.request_data(b"x" * MAX_HEAD_BYTES, False)
            assert len(made.desk.asked) == 1
            assert made.down.holds, "the client is held"
            made.desk.asked[0][1]("new", int(made.now), None)
            assert code(made) == (200, "")

    def test_a_body_that_does_not_come(self):
        made = self.start(bench(), end=False, length=2)
        made.pass_time(WAIT_S + 1)
        assert code(made) == (408, "request_timeout")
        assert made.desk.asked == []

    def test_trailers_end_it_too(self):
        made = self.start(bench(), end=False)
        made.exchange.request_data(b"{", False)
        made.exchange.request_trailers([(b"a", b"b")])
        assert made.desk.asked

    def test_an_endpoint_that_is_not_sessioned_any_more(self):
        made = bench(replicas=0)
        self.start(made)
        made.change((EndpointPatch("e", EndpointSpec("e")),))
        made.pass_time(0.5)
        assert code(made) == (404, "no_route")

    def test_hold_of_the_endpoint_is_for_others(self):
        made = bench(replicas=0, hold=HoldSpec(60.0, only_tunnels=False), sticky=StickySpec(start_wait_s=0.0))
        assert code(self.start(made)) == (503, "no_replica")

    def test_a_stale_cookie_does_not_matter(self):
        made = self.start(bench(), known={SESSION_COOKIE: b"old"})
        assert made.desk.asked

    def test_not_on_other_endpoints(self):
        made = Bench()
        self.start(made)
        assert made.pool.opened


class TestTerminate:
    def test_it_is_told_when_it_is_over(self):
        made = bench()
        made.head(path=TERMINATE, end=True, known=shown(made))
        ((asked, answer),) = made.desk.asked
        assert asked == "s1"
        answer("s1", 0, None)
        assert code(made) == (200, "")
        assert json.loads(made.down.data) == {"session_id": "s1"}
        assert b"Max-Age=0" in dict(made.down.head.shape.fields)[b"set-cookie"]
        assert made.endpoint.counters.in_flight == 0

    def test_a_token_of_the_query_is_good_enough(self):
        made = bench()
        made.head(path=TERMINATE + b"?session_token=" + token(made), end=True)
        assert made.desk.asked[0][0] == "s1"

    def test_a_store_that_is_away(self):
        made = bench()
        made.head(path=TERMINATE, end=True, known=shown(made))
        made.desk.asked[0][1]("s1", 0, Kind.SESSION_UNAVAILABLE)
        assert code(made) == (503, "session_unavailable")

    def test_the_client_left(self):
        made = bench()
        made.head(path=TERMINATE, end=True, known=shown(made))
        made.exchange.request_reset(GONE)
        made.desk.asked[0][1]("s1", 0, None)
        assert made.finished()

    def test_without_a_token(self):
        made = bench()
        made.head(path=TERMINATE, end=True)
        assert code(made) == (401, "session_required")
