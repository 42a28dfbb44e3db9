"""Packet protection beside the examples of RFC 9001, and beside the cipher used without our short cuts."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from router.transport.codec.quic.keys import (
    AES_128_GCM_SHA256,
    AES_256_GCM_SHA384,
    CHACHA20_POLY1305_SHA256,
    PacketKey,
    expand_label,
)


def test_chacha20_of_appendix_a5():
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    key = PacketKey(CHACHA20_POLY1305_SHA256, secret)
    header = bytes.fromhex("4200bff4")
    sealed = key.seal(654_360_564, header, b"\x01")
    assert sealed.hex() == "655e5cd55c41f69080575d7999c25a5bfb"
    assert key.mask(sealed[1:17])[:5].hex() == "aefefe7d03"
    assert key.open(654_360_564, header, sealed) == b"\x01"
    assert key.masks(sealed[1:17] * 3) == b"", "each makes its own"


@pytest.mark.parametrize(("suite", "hash_name", "size"), [
    (AES_128_GCM_SHA256, "sha256", 16), (AES_256_GCM_SHA384, "sha384", 32),
])  # fmt: skip
@pytest.mark.parametrize("number", [0, 1, 255, (1 << 32) - 1, 1 << 32, (1 << 62) - 1])
def test_the_nonce_of_every_number(suite, hash_name, size, number):
    secret = bytes(range(32)) + bytes(16) * (size > 16)
    iv = expand_label(hash_name, secret, b"quic iv", 12)
    nonce = bytes(a ^ b for a, b in zip(iv, number.to_bytes(12, "big"), strict=True))
    expected = AESGCM(expand_label(hash_name, secret, b"quic key", size)).encrypt(nonce, b"payload", b"head")
    key = PacketKey(suite, secret)
    assert key.seal(number, b"head", b"payload") == expected
    assert key.open(number, b"head", expected) == b"payload"
    assert key.open(number ^ 1, b"head", expected) is None


@pytest.mark.parametrize("suite", [AES_128_GCM_SHA256, AES_256_GCM_SHA384])
def test_masks_together_are_those_alone(suite):
    key = PacketKey(suite, bytes(48))
    samples = [bytes((k,)) * 16 for k in range(40)]
    together = key.masks(b"".join(samples))
    assert [together[at : at + 16] for at in range(0, 640, 16)] == [key.mask(one) for one in samples]
    assert key.next_phase().masks(samples[1]) == key.mask(samples[1]), "the header's key outlives its phase"
