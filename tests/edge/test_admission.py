"""The gate: tokens, and what of them is forwarded."""

import pytest

from router.core import Peer
from router.edge.admission import AdmissionGate
from router.errors import Kind
from router.http import RequestHead, RequestShape

PEER = Peer(b"192.0.2.1")


def head(authorization=b"", key=None):
    shape = RequestShape(b"GET", b"/", b"a")
    shape.authorization = authorization
    shape.fields = [(b"accept", b"*/*")] + ([(b"authorization", authorization)] if authorization else [])
    if key is not None:
        shape.known = {b"x-router-key": key}
    return RequestHead(shape)


def test_without_tokens_it_is_open():
    gate = AdmissionGate()
    given = head(b"Bearer anything")
    assert gate.check(given, PEER) is None
    assert (b"authorization", b"Bearer anything") in given.shape.fields, "the engine's own is forwarded"


@pytest.mark.parametrize("authorization", [b"Bearer one", b"bearer one", b"BEARER  one ", b"Bearer two"])
def test_a_right_token_is_taken_and_not_forwarded(authorization):
    gate = AdmissionGate(["one", "two"])
    given = head(authorization)
    shared = given.shape
    assert gate.check(given, PEER) is None
    assert given.shape.fields == [(b"accept", b"*/*")]
    assert (b"authorization", authorization) in shared.fields, "the shape that requests share is not changed"


@pytest.mark.parametrize(
    "given",
    [
        head(), head(b"Bearer"), head(b"Bearer "), head(b"Bearer three"), head(b"one"), head(b"Basic one"), head(b"Bearer one two"),
        head(b"Bearer ONE"), head(key=b""), head(key=b"three"), head(key=b"one, one"), head(b"Bearer one", key=b"wrong"),
    ],
)  # fmt: skip
def test_anything_else_is_unauthenticated(given):
    before = list(given.shape.fields)
    error = AdmissionGate(["one", "two"]).check(given, PEER)
    assert error.kind is Kind.UNAUTHENTICATED
    assert given.shape.fields == before


def test_the_own_header_leaves_authorization_to_the_engine():
    gate = AdmissionGate(["one"])
    given = head(b"Bearer engine", key=b"one")
    assert gate.check(given, PEER) is None
    assert (b"authorization", b"Bearer engine") in given.shape.fields


def test_no_token_is_kept_in_the_clear():
    gate = AdmissionGate(["s3cret"])
    assert "s3cret" not in repr([getattr(gate, name) for name in AdmissionGate.__slots__])
