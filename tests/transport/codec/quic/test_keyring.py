"""Ids that say whose they are, and the token that ends what nobody knows any more."""

import pytest

from router.transport.codec.quic.keyring import MARK_BYTES, Keyring

SECRET = bytes(range(32))


def test_an_id_names_worker_and_incarnation():
    ring = Keyring(SECRET)
    made = ring.make_id(7, 200)
    assert len(made) == 12 and made[:2] == bytes((7, 200))
    assert ring.is_ours(made)
    assert len({ring.make_id(7, 200) for _ in range(100)}) == 100


def test_every_process_with_the_secret_knows_it_and_no_other():
    made = Keyring(SECRET).make_id(0, 0)
    assert Keyring(SECRET).is_ours(made)
    others = [Keyring(bytes((i,)) * 32).make_id(0, 0) for i in range(200)]
    known = sum(Keyring(SECRET).is_ours(other) for other in others)
    assert known <= 2, "a mark of two bytes fits by chance once in 65,536"


def test_what_was_changed_is_not_ours():
    ring = Keyring(SECRET)
    made = ring.make_id(1, 2)
    wrong = [i for i in range(12) for bit in range(8) if ring.is_ours(_flip(made, i, bit))]
    assert len(wrong) <= 1 and MARK_BYTES == 2
    assert not ring.is_ours(made[:11]) and not ring.is_ours(made + b"x") and not ring.is_ours(b"")


def _flip(data, at, bit):
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def test_reset_tokens_follow_from_id_and_secret():
    ring = Keyring(SECRET)
    made = ring.make_id(0, 1)
    assert ring.reset_token(made) == Keyring(SECRET).reset_token(made)
    assert len(ring.reset_token(made)) == 16
    assert ring.reset_token(made) != ring.reset_token(ring.make_id(0, 1))
    assert ring.reset_token(made) != Keyring(bytes(32)).reset_token(made)


def test_keys_have_one_purpose_each():
    ring = Keyring(SECRET)
    assert len({ring.tokens, ring.tickets, SECRET}) == 3
    assert {len(ring.tokens), len(ring.tickets)} == {32}


def test_a_secret_of_another_length_is_refused():
    with pytest.raises(ValueError, match="length"):
        Keyring(b"short")
