"""How a request shows its session: four places in their order, and nothing of it left for the replica."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Kind, ProxyError
from router.http import SESSION_COOKIE, RequestShape
from router.routing.spec import StickySpec
from router.session_fields import asked_idle_s, redirect_reply, shown_session


def shape(path=b"/v1/x", fields=(), **known):
    made = RequestShape(b"GET", path, b"h")
    made.fields = list(fields)
    made.known = {name.replace("_", "-").encode(): value for name, value in known.items()}
    made.authorization = b"Bearer engine"
    return made


def kept(given, value):
    """As the codecs leave a cookie of ours."""
    given.known = given.known | {SESSION_COOKIE: value}
    return given


@pytest.mark.parametrize(("given", "token"), [
    (shape(), b""),
    (shape(modal_authorization=b"Bearer T"), b"T"),
    (shape(modal_authorization=b"bearer  T "), b"T"),
    (shape(modal_authorization=b"Basic T"), b""),
    (shape(modal_authorization=b"Bearer "), b""),
    (shape(modal_authorization=b"T", x_router_session=b"U"), b"U"),
    (shape(x_router_session=b"U"), b"U"),
    (shape(modal_authorization=b"Bearer T", x_router_session=b"U"), b"T"),
    (shape(b"/?session_token=Q", x_router_session=b"U"), b"U"),
    (kept(shape(b"/?session_token=Q"), b"C"), b"Q"),
    (kept(shape(x_router_session=b"U"), b"C"), b"U"),
    (kept(shape(), b"C"), b"C"),
    (shape(b"/?session_token=Q"), b"Q"),
    (shape(b"/?session_token=Q%2e%41"), b"Q.A"),
    (shape(b"/?session_token=&session_token=Q"), b"Q"),
    (shape(b"/?session_token=A&session_token=B"), b"A"),
    (shape(b"/?xsession_token=Q"), b""),
    (shape(b"/session_token=Q"), b""),
])  # fmt: skip
def test_which_token(given, token):
    assert shown_session(given).token == token


@pytest.mark.parametrize(("before", "after"), [
    (b"/v1/x?session_token=Q", b"/v1/x"), (b"/v1/x?a=1&session_token=Q&b=2", b"/v1/x?a=1&b=2"),
    (b"/?session_token=Q&session_token=R&c", b"/?c"), (b"/?a&&b&session_token=Q", b"/?a&&b"),
    (b"/?session_token=Q&", b"/"), (b"/?session_token", b"/?session_token"),
])  # fmt: skip
def test_the_path_without_it(before, after):
    changed = shown_session(shape(before)).shape
    assert (before if changed is None else changed.path) == after


@pytest.mark.parametrize("path", [b"/v1/x", b"/v1/x?a=1", b"/docs/session_token=a", b"/?a=session_token=Q", b"/?"])
def test_other_paths_stay_as_they_are(path):
    assert shown_session(shape(path)).shape is None


def test_it_is_worked_out_once_and_holds_no_cycle():
    given = shape(b"/a?b", x_router_session=b"U")
    found = shown_session(given)
    assert found.shape is None
    assert shown_session(given) is found


@pytest.mark.parametrize(("given", "where"), [
    (shape(b"/?session_token=Q"), "query"), (kept(shape(), b"C"), "cookie"), (shape(x_router_session=b"U"), ""),
    (shape(b"/?session_token=Q", x_router_session=b"U"), ""),
])  # fmt: skip
def test_where_it_stood(given, where):
    found = shown_session(given)
    assert (found.is_query, found.is_cookie) == (where == "query", where == "cookie")


def test_an_engines_authorization_stays():
    changed = shown_session(shape(b"/?session_token=Q")).shape
    assert changed.authorization == b"Bearer engine"


@given(st.binary(max_size=60))
def test_any_query(data):
    changed = shown_session(shape(b"/?" + data)).shape
    path = b"/?" + data if changed is None else changed.path
    assert not any(pair.startswith(b"session_token=") for pair in path.partition(b"?")[2].split(b"&"))


def test_replies_name_only_this_host():
    for path in (b"//evil", b"/\\evil", b"//"):
        reply = redirect_reply(b"T", shape(path), b"id")
        assert isinstance(reply, ProxyError)
        assert reply.kind is Kind.BAD_REQUEST
    assert dict(redirect_reply(b"T", shape(b"/a//b"), b"id").shape.fields)[b"location"] == b"/a//b"


def test_the_first_name_of_an_idle_timeout_counts():
    sticky = StickySpec(30, 60)
    assert asked_idle_s({}, sticky) == 30
    both = {b"modal-session-idle-timeout": b"5", b"x-router-session-idle-timeout": b"6"}
    assert asked_idle_s(both, sticky) == 6
    assert isinstance(asked_idle_s({b"modal-session-idle-timeout": b"61"}, sticky), ProxyError)
