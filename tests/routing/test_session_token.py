"""Session tokens: what was signed comes back, whatever else is refused, and a change of keys ends nothing at once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.routing.session_token import MAX_TOKEN_BYTES, SessionClaim, SessionKeys

CLAIM = SessionClaim("s" * 22, "team/robot", "main", "10.0.0.1:30000", 600, 1_790_000_000, b"\x00\xff" * 8)
KEYS = SessionKeys((b"k" * 32,))
TOKEN = KEYS.sign(CLAIM)


def test_there_and_back():
    assert KEYS.read(TOKEN) == CLAIM
    assert TOKEN.startswith(b"rs1.")
    assert set(TOKEN) <= set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."), "fits a cookie"


@given(st.text(max_size=64), st.text(max_size=128), st.integers(0, 2**40), st.binary(max_size=16))
def test_any_claim(name, replica, seconds, minter):
    claim = SessionClaim("id", name, name, replica, seconds, seconds, minter)
    token = KEYS.sign(claim)
    assert KEYS.read(token) == (claim if len(token) <= MAX_TOKEN_BYTES else None)


def test_every_bit_counts():
    for at in range(len(TOKEN)):
        for bit in range(8):
            changed = bytearray(TOKEN)
            changed[at] ^= 1 << bit
            assert KEYS.read(bytes(changed)) is None, (at, bit)


def test_every_length_but_its_own():
    assert all(KEYS.read(TOKEN[:size]) is None for size in range(len(TOKEN)))
    for more in (b"A", b"=", b".", b" ", b"\0"):
        assert KEYS.read(TOKEN + more) is None
        assert KEYS.read(more + TOKEN) is None


@given(st.binary(max_size=MAX_TOKEN_BYTES + 10))
def test_garbage(data):
    assert KEYS.read(data) is None
    assert KEYS.read(b"rs1." + data) is None


def test_parts_of_two_tokens():
    other = KEYS.sign(msgspec.structs.replace(CLAIM, replica="10.0.0.2:30000"))
    mixed = TOKEN.rpartition(b".")[0] + b"." + other.rpartition(b".")[2]
    assert KEYS.read(other) is not None
    assert KEYS.read(mixed) is None


def test_another_key_is_another_fleet():
    assert SessionKeys((b"o" * 32,)).read(TOKEN) is None
    assert SessionKeys().read(TOKEN) is None
    with pytest.raises(LookupError):
        SessionKeys().sign(CLAIM)


def test_a_new_key_signs_and_the_old_one_still_verifies():
    rotated = SessionKeys((b"n" * 32, b"k" * 32))
    assert rotated.read(TOKEN) == CLAIM
    assert rotated.sign(CLAIM) != TOKEN
    assert KEYS.read(rotated.sign(CLAIM)) is None


def test_a_claim_of_another_version_of_ours():
    signed = KEYS.sign(CLAIM)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(CLAIM))[0] == CLAIM.id
    assert KEYS.read(b"rs2" + signed[3:]) is None
