"""Both libraries of ciphers beside each other, and what becomes of one that is not what it was."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec.quic.aead import (
    AES_128_GCM_SHA256,
    AES_256_GCM_SHA384,
    CHACHA20_POLY1305_SHA256,
    REFUSALS,
    OpenSslAead,
    aead,
    fast_ciphers,
)
from router.transport.codec.quic.keys import PacketKey

SUITES = {AES_128_GCM_SHA256: 16, AES_256_GCM_SHA384: 32, CHACHA20_POLY1305_SHA256: 32}

fast_is_installed = pytest.mark.skipif(fast_ciphers() is None, reason="qh3 is not installed")


@fast_is_installed
@pytest.mark.parametrize("suite", SUITES)
@given(number=st.integers(0, (1 << 62) - 1), payload=st.binary(max_size=1500), header=st.binary(max_size=30))
def test_one_is_the_other(suite, number, payload, header):
    key, iv = bytes(range(SUITES[suite])), bytes(range(100, 112))
    fast, plain = aead(suite, key, iv), OpenSslAead(suite, key, iv)
    assert not isinstance(fast, OpenSslAead)
    sealed = plain.encrypt(number, payload, header)
    assert fast.encrypt(number, payload, header) == sealed
    assert fast.decrypt(number, sealed, header) == payload == plain.decrypt(number, sealed, header)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("made", [aead, OpenSslAead], ids=["chosen", "openssl"])
def test_what_does_not_authenticate_is_refused(suite, made):
    key = made(suite, bytes(SUITES[suite]), bytes(12))
    sealed = key.encrypt(7, b"payload", b"head")
    for number, body, header in (
        (8, sealed, b"head"), (7, sealed, b"hexd"), (7, sealed[:-1], b"head"), (7, sealed + b"x", b"head"),
        (7, sealed[:15], b"head"), (7, b"", b"head"), (7, b"x" + sealed[1:], b"head"),
    ):  # fmt: skip
        with pytest.raises(REFUSALS):
            key.decrypt(number, body, header)
    secret = PacketKey(suite, bytes(48))
    assert secret.open(1, b"head", sealed) is None


def _strange(**changed: object) -> SimpleNamespace:
    """What qh3's module would be if one thing of it were not as we know it."""
    known = fast_ciphers()
    names = ("AeadAes128Gcm", "AeadAes256Gcm", "AeadChaCha20Poly1305", "CryptoError")
    return SimpleNamespace(**({name: getattr(known, name) for name in names} | changed))


def _partly(name: str, refused: type[Exception], *, seals_to: int, opens_to: int) -> object:
    """One of qh3's ciphers that is what it was for smaller numbers of packets alone; 0: for none."""
    known = getattr(fast_ciphers(), name)

    class Cipher:
        def __init__(self, key: bytes, iv: bytes) -> None:
            self._cipher = known(key, iv)

        def encrypt(self, number: int, payload: bytes, header: bytes) -> bytes:
            return self._cipher.encrypt(number % seals_to, payload, header)

        def decrypt(self, number: int, sealed: bytes, header: bytes) -> bytes:
            if number >= opens_to:
                raise refused
            return self._cipher.decrypt(number, sealed, header)

    return Cipher


@fast_is_installed
@pytest.mark.parametrize("name", ["AeadAes128Gcm", "AeadAes256Gcm", "AeadChaCha20Poly1305"])
@pytest.mark.parametrize("part", ["seals", "opens"])
def test_a_cipher_that_does_half_of_it_is_left_alone(monkeypatch, name, part):
    known, whole = fast_ciphers(), 1 << 62
    seals_to, opens_to = (1 << 32, whole) if part == "seals" else (whole, 0)
    changed = _partly(name, known.CryptoError, seals_to=seals_to, opens_to=opens_to)
    monkeypatch.setitem(sys.modules, "strange_ciphers", _strange(**{name: changed}))
    assert fast_ciphers("strange_ciphers") is None


@fast_is_installed
@pytest.mark.parametrize(
    "changed",
    [
        {"CryptoError": KeyError},
        {"AeadAes128Gcm": None},
        {"AeadAes256Gcm": lambda key, iv: OpenSslAead(AES_256_GCM_SHA384, key, iv[::-1])},
        {"AeadChaCha20Poly1305": lambda key, iv: OpenSslAead(CHACHA20_POLY1305_SHA256, key[::-1], iv)},
    ],
    ids=["raises another error", "is gone", "another nonce", "another key"],
)
def test_a_library_that_changed_is_left_alone(monkeypatch, changed):
    monkeypatch.setitem(sys.modules, "strange_ciphers", _strange())
    assert fast_ciphers("strange_ciphers") is not None, "as it is, it is taken"
    monkeypatch.setitem(sys.modules, "strange_ciphers", _strange(**changed))
    assert fast_ciphers("strange_ciphers") is None


def test_without_the_library_there_is_openssl():
    assert fast_ciphers("no_such_library") is None
