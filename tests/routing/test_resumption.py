"""Resume tokens: what holds leads back, whatever else is shown changes nothing."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.continuity import RENEW_S, RESUME_S, Continuity
from router.routing.credentials import ANYBODY, Credential
from router.routing.resumption import FUTURE_S, ResumeClaim, go_on, resume
from router.routing.session_token import MAX_TOKEN_BYTES, SessionClaim, SessionKeys
from router.routing.sessions import SessionIndex
from router.routing.spec import EndpointSpec, TokenSpec
from router.routing.table import Endpoint, Geography

KEY = b"k" * 32
NOW = 100.0
SOMEBODY = Credential(TokenSpec(b"d" * 32, "key", "main"))


class FixedTime:
    def at(self, now):
        return 1_790_000_000.0 + now


def index(*keys):
    made = SessionIndex(FixedTime())
    made.set_keys(keys)
    return made


def endpoint(name="arm", environment="main"):
    return Endpoint(EndpointSpec(name, (), environment=environment), (), Geography())


def token(sessions=None, *, credential=SOMEBODY, epoch=3, at=NOW, **where):
    """What a client is given on an endpoint, by replica r1."""
    continuity = Continuity()
    go_on(continuity, sessions or index(KEY), endpoint(**where), "r1", credential)
    return continuity.id, continuity.token(epoch, at)


def look(shown, sessions=None, *, credential=SOMEBODY, at=NOW, **where):
    continuity = Continuity(shown)
    resume(continuity, sessions or index(KEY), endpoint(**where), credential, at)
    return continuity


def is_new(continuity):
    return not continuity.is_resumed and continuity.base == 0 and continuity.replica == b"" and len(continuity.id) == 16


def test_there_and_back():
    session, shown = token()
    found = look(shown)
    assert found.is_resumed
    assert (found.id, found.base, found.replica) == (session, 3, b"r1")
    go_on(found, index(KEY), endpoint(), "r2", SOMEBODY)
    assert found.replica == b"", "whoever serves next is another"


def test_nothing_shown_is_a_new_session():
    found = look(b"")
    assert is_new(found)
    assert not found.was_shown
    assert look(b"").id != found.id


@pytest.mark.parametrize(
    "where",
    [{"name": "leg"}, {"environment": "other"}, {"credential": ANYBODY}, {"credential": Credential(TokenSpec(b"e" * 32, "key", "main"))}],
    ids=["endpoint", "environment", "nobody", "another credential"],
)
def test_is_of_one_endpoint_and_one_credential(where):
    _, shown = token()
    found = look(shown, **where)
    assert is_new(found)
    assert found.was_shown
    assert look(shown, **where).replica == b""


def test_of_nobody_is_good_for_nobody():
    _, shown = token(credential=ANYBODY)
    assert look(shown, credential=ANYBODY).is_resumed
    assert is_new(look(shown))


def test_holds_for_a_time():
    _, shown = token()
    assert look(shown, at=NOW + RESUME_S - 1.0).is_resumed
    assert is_new(look(shown, at=NOW + RESUME_S))
    assert look(shown, at=NOW - FUTURE_S).is_resumed, "another router's clock"
    assert is_new(look(shown, at=NOW - FUTURE_S - 2.0))


def test_keys():
    _, shown = token()
    assert is_new(look(shown, index(b"o" * 32)))
    assert is_new(look(shown, index()))
    assert look(shown, index(b"n" * 32, KEY)).is_resumed, "a key that was changed"
    assert token(index())[1] == b"", "nobody can sign"


def test_every_bit_counts():
    _, shown = token()
    for at in range(len(shown)):
        changed = bytearray(shown)
        changed[at] ^= 1
        assert is_new(look(bytes(changed))), at
    assert all(is_new(look(shown[:size])) for size in range(len(shown)))
    assert is_new(look(shown + b"A"))


@given(st.binary(max_size=MAX_TOKEN_BYTES + 10))
def test_garbage(data):
    assert is_new(look(data))
    assert is_new(look(b"rr1." + data))


def test_signed_by_us_but_no_claim():
    keys = SessionKeys((KEY,))
    for body in (b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode(["i", "arm", "main", "r", "x", 1])):
        assert is_new(look(keys.seal(b"rr1.", body)))


def test_a_session_token_is_none_and_none_is_a_session_token():
    keys = SessionKeys((KEY,))
    assert is_new(look(keys.sign(SessionClaim("i", "arm", "main", "r1", 60, 1_790_000_000, SOMEBODY.mark))))
    _, shown = token()
    assert keys.read(shown) is None
    claim = ResumeClaim("i", "arm", "main", "r1", 1, 1_790_000_200, SOMEBODY.mark)
    body = msgspec.msgpack.encode(claim)
    assert look(keys.seal(b"rr1.", body)).is_resumed
    assert is_new(look(keys.seal(b"rs1.", body)))


def test_is_renewed_in_time():
    sessions = index(KEY)
    continuity = Continuity()
    assert continuity.renewed(1, NOW) == b"", "nobody has said how to sign"
    go_on(continuity, sessions, endpoint(), "r1", SOMEBODY)
    first = continuity.token(1, NOW)
    assert continuity.renewed(1, NOW + RENEW_S - 1.0) == b""
    second = continuity.renewed(1, NOW + RENEW_S)
    assert second not in (b"", first)
    assert continuity.renewed(1, NOW + RENEW_S + 1.0) == b""
    assert is_new(look(first, at=NOW + RESUME_S))
    assert look(second, at=NOW + RESUME_S).id == continuity.id
    sessions.set_keys((b"n" * 32,))
    third = continuity.renewed(1, NOW + 2 * RENEW_S)
    assert look(third, sessions, at=NOW + RESUME_S).is_resumed, "by the keys in force"
