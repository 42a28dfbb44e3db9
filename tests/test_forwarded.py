"""x-forwarded-for read from the right, as far as the proxies before this one are trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.forwarded import MAX_HOPS, trusted_address


@pytest.mark.parametrize(
    ("chain", "hops", "address"),
    [
        (b"198.51.100.7", 1, b"198.51.100.7"),
        (b"10.9.9.9, 198.51.100.7", 1, b"198.51.100.7"),
        (b"10.9.9.9, 198.51.100.7, 203.0.113.1", 2, b"198.51.100.7"),
        (b"6.6.6.6,10.9.9.9,198.51.100.7,203.0.113.1", 3, b"10.9.9.9"),
        (b"2001:DB8::0:7", 1, b"2001:db8::7"),
        (b"\t 198.51.100.7 \t", 1, b"198.51.100.7"),
        (b"nonsense, 198.51.100.7", 1, b"198.51.100.7"),
    ],
)
def test_the_nth_from_the_right(chain, hops, address):
    assert trusted_address(chain, hops) == address


@pytest.mark.parametrize(
    ("chain", "hops"),
    [
        (b"", 1),
        (b"198.51.100.7", 2),
        (b"198.51.100.7, 203.0.113.1", 3),
        (b"198.51.100.7,", 1),
        (b"unknown", 1),
        (b"198.51.100.7:80", 1),
        (b"[2001:db8::1]", 1),
        (b"fe80::1%eth0", 1),
        (b"198.51.100.007", 1),
        (b'198.51.100.7","x":"', 1),
        (b"\xff\xfe", 1),
        (b"1" * 200, 1),
        (b" " * 60_000, 1),
        ("١٩٨.51.100.7".encode(), 1),
    ],
)
def test_what_says_nothing(chain, hops):
    assert trusted_address(chain, hops) == b""


@given(st.binary(max_size=400), st.integers(1, MAX_HOPS))
def test_whatever_a_client_writes_it_is_an_address_or_nothing(chain, hops):
    found = trusted_address(chain, hops)
    assert all(byte in b"0123456789abcdef.:" for byte in found)


@given(st.binary(max_size=200))
def test_what_a_client_writes_left_of_the_trusted_hops_changes_nothing(forged):
    assert trusted_address(forged + b", 198.51.100.7, 203.0.113.1", 2) == b"198.51.100.7"
