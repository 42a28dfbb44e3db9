"""How a request shows its session: four places in their order, and nothing of it left for the replica."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Kind, ProxyError
from router.http import RequestShape
from router.routing.spec import StickySpec
from router.session_fields import COOKIE, asked_idle_s, redirect_reply, shown_session


def shape(path=b"/v1/x", fields=(), **known):
    made = RequestShape(b"GET", path, b"h")
    made.fields = list(fields)
    made.known = {name.replace("_", "-").encode(): value for name, value in known.items()}
    made.authorization = b"Bearer engine"
    return made


def cookie(text):
    return (b"cookie", text)


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
    (shape(b"/?session_token=Q", [cookie(COOKIE + b"=C")]), b"C"),
    (shape(b"/?session_token=Q"), b"Q"),
    (shape(b"/?session_token=Q%2e%41"), b"Q.A"),
    (shape(b"/?session_token=&session_token=Q"), b"Q"),
    (shape(b"/?session_token=A&session_token=B"), b"A"),
    (shape(b"/?xsession_token=Q"), b""),
    (shape(b"/session_token=Q"), b""),
    (shape(b"/", [cookie(COOKIE + b"=")]), b""),
    (shape(b"/", [cookie(b"x" + COOKIE + b"=C")]), b""),
    (shape(b"/", [cookie(b"a=1"), cookie(COOKIE + b"=C")]), b"C"),
])  # fmt: skip
def test_which_token(given, token):
    assert shown_session(given).token == token


@pytest.mark.parametrize(("before", "after"), [
    (b"/v1/x", b"/v1/x"), (b"/v1/x?a=1", b"/v1/x?a=1"), (b"/v1/x?session_token=Q", b"/v1/x"),
    (b"/v1/x?a=1&session_token=Q&b=2", b"/v1/x?a=1&b=2"), (b"/?session_token=Q&session_token=R&c", b"/?c"),
    (b"/?a=session_token=Q", b"/?a=session_token=Q"), (b"/?a&&b&session_token=Q", b"/?a&&b"),
])  # fmt: skip
def test_the_path_without_it(before, after):
    assert shown_session(shape(before)).shape.path == after


@pytest.mark.parametrize(("before", "after"), [
    ([cookie(COOKIE + b"=C")], []),
    ([cookie(b"a=1; " + COOKIE + b"=C; b=2")], [cookie(b"a=1; b=2")]),
    ([cookie(b"a=1"), cookie(COOKIE + b"=C"), cookie(b"b=2")], [cookie(b"a=1"), cookie(b"b=2")]),
    ([cookie(b"a=1;" + COOKIE + b"=C;" + COOKIE + b"=D")], [cookie(b"a=1")]),
    ([cookie(b"a=" + COOKIE), (b"x", b"y")], [cookie(b"a=" + COOKIE), (b"x", b"y")]),
])  # fmt: skip
def test_the_cookies_without_it(before, after):
    assert shown_session(shape(b"/", before)).shape.fields == after


def test_what_shows_nothing_is_passed_on_as_the_object_it_is():
    given = shape(b"/a?b", [cookie(b"a=1")], x_router_session=b"U")
    assert shown_session(given).shape is given
    assert shown_session(given) is shown_session(given), "worked out once"


def test_an_engines_authorization_stays():
    changed = shown_session(shape(b"/?session_token=Q")).shape
    assert changed.authorization == b"Bearer engine"


@given(st.binary(max_size=60))
def test_any_query_and_cookie(data):
    found = shown_session(shape(b"/?" + data, [cookie(data)]))
    assert COOKIE + b"=" not in b"".join(v for _, v in found.shape.fields).replace(b" ", b"") or b";" not in data


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
