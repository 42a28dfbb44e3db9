"""The gate: who may call what, how often, and what of a credential is forwarded."""

import hashlib

import pytest

from router.edge.admission import AdmissionGate
from router.errors import Kind, ProxyError
from router.http import NO_FIELDS, RequestHead, RequestShape
from router.routing.credentials import ANYBODY, Credentials, RateBoard, operator
from router.routing.regions import Geography
from router.routing.spec import EndpointSpec, TokenSpec
from router.routing.table import Endpoint, make_model_host
from router.walltime import WallTime

T0 = 100.0
KEY, SECRET = b"wk-0123", b"ws-abc_def"
BOTH = KEY + b"." + SECRET


def digest(text):
    return hashlib.sha256(text).digest()


def endpoint(**spec):
    return Endpoint(EndpointSpec("e", **spec), (), Geography())


OPEN, GUARDED = endpoint(), endpoint(needs_token=True)
OTHER = endpoint(needs_token=True, environment="other")


def gate(*own):
    return AdmissionGate(own, RateBoard(memoryview(bytearray(64))), WallTime())


def tokens(**spec):
    known = Credentials()
    known.put(TokenSpec(digest(BOTH), "wk-0123", **spec))
    return known


def head(authorization=b"", key=None, **known):
    shape = RequestShape(b"GET", b"/", b"a")
    shape.authorization = authorization
    shape.fields = [(b"accept", b"*/*")] + ([(b"authorization", authorization)] if authorization else [])
    found = {name.replace("_", "-").encode(): value for name, value in known.items()}
    if key is not None:
        found[b"x-router-key"] = key
    shape.known = found or NO_FIELDS
    return RequestHead(shape)


def kind(verdict):
    return verdict.kind if isinstance(verdict, ProxyError) else None


def test_without_tokens_it_is_open():
    given = head(b"Bearer anything")
    assert gate().check(given, OPEN, Credentials(), T0) is ANYBODY
    assert (b"authorization", b"Bearer anything") in given.shape.fields, "the engine's own is forwarded"


@pytest.mark.parametrize("authorization", [b"Bearer one", b"bearer one", b"BEARER  one ", b"Bearer two"])
def test_a_right_token_is_taken_and_not_forwarded(authorization):
    given = head(authorization)
    shared = given.shape
    assert gate("one", "two").check(given, OPEN, Credentials(), T0).is_operator
    assert given.shape.fields == [(b"accept", b"*/*")]
    assert (b"authorization", authorization) in shared.fields, "the shape that requests share is not changed"


@pytest.mark.parametrize(
    "given",
    [
        head(), head(b"Bearer"), head(b"Bearer "), head(b"Bearer three"), head(b"one"), head(b"Basic one"), head(b"Bearer one two"),
        head(b"Bearer ONE"), head(key=b""), head(key=b"three"), head(key=b"one, one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", [OPEN, GUARDED, None])
def test_anything_else_is_unauthenticated(given, where):
    before = list(given.shape.fields)
    verdict = gate("one", "two").check(given, where, Credentials(), T0)
    assert kind(verdict) is Kind.UNAUTHENTICATED
    assert given.shape.fields == before


def test_the_own_header_leaves_authorization_to_the_engine():
    given = head(b"Bearer engine", key=b"one")
    assert gate("one").check(given, OPEN, Credentials(), T0).is_operator
    assert (b"authorization", b"Bearer engine") in given.shape.fields


def test_no_token_is_kept_in_the_clear():
    made = gate("s3cret")
    assert "s3cret" not in repr([getattr(made, name) for name in AdmissionGate.__slots__])


WAYS = {
    "modal": lambda: head(modal_key=KEY, modal_secret=SECRET),
    "neutral": lambda: head(x_router_key=KEY, x_router_secret=SECRET),
    "mixed": lambda: head(modal_key=KEY, x_router_secret=SECRET),
    "bearer": lambda: head(b"Bearer " + BOTH),
    "bearer, any case": lambda: head(b"bEaReR   " + BOTH + b" "),
    "beside an engine's": lambda: head(b"Bearer sk-engine", modal_key=KEY, modal_secret=SECRET),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_form_of_a_token_opens_its_environment_and_is_taken_out(way):
    given = WAYS[way]()
    found = gate().check(given, GUARDED, tokens(), T0)
    assert (found.key, found.environment) == (KEY, "main")
    assert SECRET not in b"".join(value for _, value in given.shape.fields)
    if "engine" in way:
        assert (b"authorization", b"Bearer sk-engine") in given.shape.fields
    assert kind(gate().check(WAYS[way](), OTHER, tokens(), T0)) is Kind.FORBIDDEN
    assert gate("other-own").check(WAYS[way](), GUARDED, tokens(), T0).key == KEY


WRONG = {
    "nothing": head(),
    "an engine's": head(b"Bearer sk-engine"),
    "half": head(modal_key=KEY),
    "the other half": head(modal_secret=SECRET),
    "wrong secret": head(modal_key=KEY, modal_secret=SECRET + b"x"),
    "short secret": head(modal_key=KEY, modal_secret=SECRET[:-1]),
    "swapped": head(modal_key=SECRET, modal_secret=KEY),
    "twice": head(modal_key=KEY + b", " + KEY, modal_secret=SECRET),
    "wrong bearer": head(b"Bearer " + BOTH + b"x"),
    "not utf-8": head(modal_key=b"\xff\xfe", modal_secret=b"\x80"),
    "huge": head(modal_key=KEY, modal_secret=b"x" * 60_000),
    "moved dot": head(modal_key=b"wk", modal_secret=b"-0123.ws-abc_def"),
    "basic": head(b"Basic " + BOTH),
}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
def test_a_wrong_or_missing_token_is_401_where_one_is_asked_for_and_nothing_where_none_is(given):
    assert kind(gate().check(given, GUARDED, tokens(), T0)) is Kind.UNAUTHENTICATED
    assert gate().check(given, OPEN, tokens(), T0) is ANYBODY


def test_a_token_is_stripped_even_where_none_is_asked_for():
    given = head(b"Bearer " + BOTH)
    gate().check(given, OPEN, Credentials(), T0)
    assert given.shape.fields == [(b"accept", b"*/*")]


def test_a_wrong_key_is_not_made_good_by_a_right_bearer():
    assert kind(gate("one").check(head(b"Bearer one", key=b"wrong"), OPEN, Credentials(), T0)) is Kind.UNAUTHENTICATED


BESIDE = {
    "ours beside ours": (head(b"Bearer wk-a.ws-a", modal_key=KEY, modal_secret=SECRET), ()),
    "the operator's beside ours": (head(b"Bearer op", modal_key=KEY, modal_secret=SECRET), ("op",)),
    "the operator's twice": (head(b"Bearer op", key=b"op"), ("op",)),
    "ours beside a wrong one": (head(b"Bearer " + BOTH, key=b"x"), ("op",)),
}


@pytest.mark.parametrize(("given", "own"), BESIDE.values(), ids=BESIDE)
def test_no_credential_of_ours_is_forwarded_beside_another(given, own):
    gate(*own).check(given, OPEN, tokens(), T0)
    assert given.shape.fields == [(b"accept", b"*/*")]


def test_who_waits_is_not_let_in_by_a_token_that_is_revoked_or_changed_meanwhile():
    made, known = gate(), tokens()
    found = made.check(WAYS["modal"](), make_model_host(), known, T0)
    assert made.admit(found, GUARDED, T0) is found
    known.put(TokenSpec(digest(BOTH), "wk-0123", scopes=("endpoint:other",)))
    assert kind(made.admit(found, GUARDED, T0)) is Kind.UNAUTHENTICATED


def test_a_revoked_token_is_refused_by_the_very_next_request():
    known = tokens()
    assert gate().check(WAYS["modal"](), GUARDED, known, T0).key == KEY
    known.revoke(digest(BOTH))
    assert kind(gate().check(WAYS["modal"](), GUARDED, known, T0)) is Kind.UNAUTHENTICATED


def test_expiry_is_by_the_time_of_day():
    wall = WallTime()
    made = AdmissionGate((), RateBoard(memoryview(bytearray(8))), wall)
    ends_s = wall.at(T0) + 5.0
    known = tokens(not_after_us=int(ends_s * 1e6))
    assert made.check(WAYS["modal"](), GUARDED, known, T0).key == KEY
    assert kind(made.check(WAYS["modal"](), GUARDED, known, T0 + 5.001)) is Kind.UNAUTHENTICATED


def test_scopes_limit_a_token_to_endpoints():
    assert gate().check(WAYS["modal"](), GUARDED, tokens(scopes=("endpoint:f", "endpoint:e")), T0).key == KEY
    assert kind(gate().check(WAYS["modal"](), GUARDED, tokens(scopes=("endpoint:f",)), T0)) is Kind.FORBIDDEN
    assert gate().check(WAYS["modal"](), GUARDED, tokens(scopes=("pin",)), T0).can_pin


def test_the_rate_limit_lets_a_burst_through_and_then_the_rate():
    made, known = gate(), tokens(rate_per_s=10.0, burst=3, slot=1)

    def ask(now):
        return made.check(WAYS["modal"](), GUARDED, known, now)

    assert [kind(ask(T0)) for _ in range(5)] == [None] * 3 + [Kind.RATE_LIMITED] * 2
    assert ask(T0).retry_after_s == 1
    assert kind(ask(T0 + 0.1)) is None
    assert kind(ask(T0 + 0.11)) is Kind.RATE_LIMITED
    allowed = sum(kind(ask(T0 + 1.0 + i / 100)) is None for i in range(1_000))
    assert 100 <= allowed <= 104


def test_a_rate_limit_holds_for_all_workers_together():
    shared, known = memoryview(bytearray(8)), tokens(rate_per_s=1.0, burst=4, slot=0)
    gates = [AdmissionGate((), RateBoard(shared), WallTime()) for _ in range(2)]
    verdicts = [gates[i % 2].check(WAYS["modal"](), GUARDED, known, T0) for i in range(10)]
    assert sum(kind(verdict) is None for verdict in verdicts) == 4


def test_a_cell_that_another_token_left_far_ahead_locks_nobody_out():
    cells = memoryview(bytearray(8))
    cells.cast("q")[0] = int(9e18)
    made = AdmissionGate((), RateBoard(cells), WallTime())
    assert made.check(WAYS["modal"](), GUARDED, tokens(rate_per_s=1.0, slot=0), T0).key == KEY


PIN = {"x_router_replica": b"r1"}


def test_only_trusted_callers_name_the_replica():
    with_token = head(modal_key=KEY, modal_secret=SECRET, **PIN)
    assert kind(gate().check(head(**PIN), OPEN, Credentials(), T0)) is Kind.FORBIDDEN
    assert kind(gate().check(with_token, GUARDED, tokens(), T0)) is Kind.FORBIDDEN
    assert gate().check(with_token, GUARDED, tokens(scopes=("pin",)), T0).can_pin
    assert gate().check(with_token, OPEN, tokens(scopes=("pin",)), T0).can_pin
    assert kind(gate().check(with_token, endpoint(environment="x"), tokens(scopes=("pin",)), T0)) is Kind.FORBIDDEN
    assert gate("one").check(head(key=b"one", **PIN), OPEN, Credentials(), T0).is_operator


def test_where_there_is_no_route_only_the_daemons_own_tokens_are_asked_for():
    wrong = head(b"Bearer " + BOTH + b"x")
    assert gate().check(wrong, None, tokens(), T0) is ANYBODY
    assert kind(gate("one").check(wrong, None, tokens(), T0)) is Kind.UNAUTHENTICATED
    assert gate("one").check(head(key=b"one"), None, tokens(), T0).is_operator


def test_where_the_model_is_to_say_who_it_is_for_the_endpoint_decides_later():
    made, host = gate(), make_model_host()
    found = made.check(WAYS["modal"](), host, tokens(), T0)
    assert found.environment == "main"
    assert made.admit(found, GUARDED, T0) is found
    assert kind(made.admit(found, OTHER, T0)) is Kind.FORBIDDEN
    expired = tokens(not_after_us=1)
    assert kind(made.check(WAYS["modal"](), host, expired, T0)) is Kind.UNAUTHENTICATED
    limited = tokens(rate_per_s=1.0, burst=2, slot=0)
    verdicts = [made.check(WAYS["modal"](), host, limited, T0) for _ in range(4)]
    assert [kind(verdict) for verdict in verdicts] == [None, None, Kind.RATE_LIMITED, Kind.RATE_LIMITED]
    assert made.admit(verdicts[0], GUARDED, T0) is verdicts[0], "it was counted already"
    assert kind(made.check(head(b"Bearer " + BOTH + b"x"), host, tokens(), T0)) is Kind.UNAUTHENTICATED
    anybody = made.check(head(), host, tokens(), T0)
    assert anybody is ANYBODY
    assert kind(made.admit(anybody, GUARDED, T0)) is Kind.UNAUTHENTICATED
    assert made.admit(anybody, OPEN, T0) is ANYBODY


class TestSessions:
    """Whose request of a session it is: of who shows a credential, else of who started it."""

    def check(self, guard, given, endpoint=GUARDED, known=None, minter=b""):
        return guard.check_session(given, endpoint, tokens() if known is None else known, minter, T0)

    def test_who_started_it_stands_for_who_shows_nothing(self):
        known = tokens()
        minter = known.find(BOTH).mark
        assert minter
        assert self.check(gate(), head(), known=known, minter=minter) is known.find(BOTH)
        assert kind(self.check(gate(), head())) is Kind.UNAUTHENTICATED
        assert self.check(gate(), head(), OPEN) is ANYBODY

    def test_an_operator_too_as_long_as_the_token_is_one(self):
        minter = operator(digest(b"one")).mark
        assert self.check(gate("two", "one"), head(), minter=minter).is_operator
        assert kind(self.check(gate("two"), head(), minter=minter)) is Kind.UNAUTHENTICATED
        assert gate("one").check(head(b"Bearer one"), OPEN, Credentials(), T0).mark == minter

    def test_revoked_expired_limited_and_of_another_environment(self):
        known = tokens()
        minter = known.find(BOTH).mark
        known.revoke(digest(BOTH))
        assert kind(self.check(gate(), head(), known=known, minter=minter)) is Kind.UNAUTHENTICATED
        assert kind(self.check(gate(), head(), OPEN, known, minter)) is None, "nobody is asked for anything there"
        known = tokens(not_after_us=1)
        assert kind(self.check(gate(), head(), known=known, minter=known.find(BOTH).mark)) is Kind.UNAUTHENTICATED
        known = tokens()
        assert kind(self.check(gate(), head(), OTHER, known, known.find(BOTH).mark)) is Kind.FORBIDDEN
        known, guard = tokens(rate_per_s=1.0, slot=0), gate()
        minter = known.find(BOTH).mark
        assert kind(self.check(guard, head(), known=known, minter=minter)) is None
        assert kind(self.check(guard, head(), known=known, minter=minter)) is Kind.RATE_LIMITED

    def test_what_is_shown_counts_and_is_not_forwarded(self):
        known = tokens()
        minter = known.find(BOTH).mark
        given = head(b"Bearer " + BOTH)
        assert self.check(gate(), given, known=known, minter=b"x" * 16) is known.find(BOTH)
        assert (b"authorization", b"Bearer " + BOTH) not in given.shape.fields
        wrong = head(modal_key=KEY, modal_secret=b"ws-wrong")
        assert kind(self.check(gate(), wrong, known=known, minter=minter)) is Kind.UNAUTHENTICATED

    def test_a_token_that_changed_is_the_same_minter(self):
        known = tokens()
        minter = known.find(BOTH).mark
        known.put(TokenSpec(digest(BOTH), "wk-0123", scopes=("endpoint:e",)))
        assert self.check(gate(), head(), known=known, minter=minter) is known.find(BOTH)
