"""Application codes among HTTP/3's: the examples of draft-ietf-webtrans-http3 §4.3, and there and back."""

import hypothesis.strategies as st
from hypothesis import given

from router.transport.codec.webtransport.codes import MAX_CODE, from_http3, to_http3


def test_the_ends_of_the_range():
    assert to_http3(0) == 0x52E4A40FA8DB
    assert to_http3(MAX_CODE) == 0x52E5AC983162
    assert from_http3(0x52E4A40FA8DA) == -1 and from_http3(0x52E5AC983163) == -1


@given(st.integers(0, MAX_CODE))
def test_there_and_back(code):
    found = to_http3(code)
    assert (found - 0x21) % 0x1F, "it is grease"
    assert from_http3(found) == code


def test_grease_is_no_code():
    first = next(code for code in range(0x52E4A40FA8DB, 0x52E4A40FA8DB + 40) if (code - 0x21) % 0x1F == 0)
    assert from_http3(first) == -1
    assert from_http3(first + 1) == from_http3(first - 1) + 1
