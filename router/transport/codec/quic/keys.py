"""Packet protection: keys from a traffic secret, header masks, opening and sealing (RFC 9001 §5).

One AES-ECB context serves every header of a key: a context a packet would cost ten times as much. Imports nothing
but its neighbours.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import ECB

from router.transport.codec.quic.aead import (
    AES_128_GCM_SHA256,
    AES_256_GCM_SHA384,
    CHACHA20_POLY1305_SHA256,
    REFUSALS,
    aead,
)
from router.transport.codec.quic.packet import FIRST_BYTE

if TYPE_CHECKING:
    from collections.abc import Callable

TAG_BYTES: Final = 16
SAMPLE_BYTES: Final = 16

_INITIAL_SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")  # RFC 9001 §5.2
_KEY_BYTES: Final = {AES_128_GCM_SHA256: 16, AES_256_GCM_SHA384: 32, CHACHA20_POLY1305_SHA256: 32}
_ZEROS: Final = bytes(5)


def expand_label(hash_name: str, secret: bytes, label: bytes, size: int) -> bytes:
    """Return HKDF-Expand-Label of TLS 1.3 without context; `size` is at most the hash's."""
    info = size.to_bytes(2, "big") + bytes((6 + len(label),)) + b"tls13 " + label + b"\0"
    return hmac.digest(secret, info + b"\x01", hash_name)[:size]


class PacketKey:
    """One direction's key of one epoch, or of one key phase. `mask_key` is shared by the phases of an epoch."""

    __slots__ = (
        "_ecb",
        "_mask_key",
        "_open",
        "_seal",
        "hash_name",
        "secret",
        "suite",
    )

    def __init__(self, suite: int, secret: bytes, masks: PacketKey | None = None) -> None:
        """Derive from a traffic secret. `masks`: the key of the phase before, whose header key stays."""
        self.suite = suite
        self.secret = secret
        self.hash_name = "sha384" if suite == AES_256_GCM_SHA384 else "sha256"
        size = _KEY_BYTES[suite]
        key = expand_label(self.hash_name, secret, b"quic key", size)
        iv = expand_label(self.hash_name, secret, b"quic iv", 12)
        cipher = aead(suite, key, iv)
        self._open: Callable[[int, bytes, bytes], bytes] = cipher.decrypt
        self._seal: Callable[[int, bytes, bytes], bytes] = cipher.encrypt
        self._ecb: Any = None
        self._mask_key: bytes
        if masks is not None:
            self._mask_key = masks._mask_key  # noqa: SLF001 - another of the same class
            self._ecb = masks._ecb  # noqa: SLF001
            return
        self._mask_key = expand_label(self.hash_name, secret, b"quic hp", size)
        if suite != CHACHA20_POLY1305_SHA256:
            # RFC 9001 §5.4.3 wants one block of AES, not a mode.
            self._ecb = Cipher(AES(self._mask_key), ECB()).encryptor()  # noqa: S305

    def mask(self, sample: bytes) -> bytes:
        """Return the mask for a header, at least five bytes, from 16 bytes of its packet."""
        if self._ecb is not None:
            found: bytes = self._ecb.update(sample)
            return found
        masked: bytes = Cipher(ChaCha20(self._mask_key, sample), None).encryptor().update(_ZEROS)
        return masked

    def masks(self, samples: bytes) -> bytes:
        """Return masks for many headers, 16 bytes each, from as many samples; empty if the cipher cannot."""
        if self._ecb is None:
            return b""
        found: bytes = self._ecb.update(samples)
        return found

    def open(self, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """Return the payload, None if it does not authenticate."""
        try:
            return self._open(number, sealed, header)
        except REFUSALS:
            return None

    def seal(self, number: int, header: bytes, payload: bytes) -> bytes:
        """Return the payload encrypted, with its tag behind it."""
        return self._seal(number, payload, header)

    def seal_packet(self, number: int, header: bytes, payload: bytes, number_bytes: int, bits: int) -> bytes:
        """Return a packet: the header without its number, which is put behind it, and the payload sealed.

        `bits` are those of the first byte that are masked.
        """
        truncated = (number & ((1 << (8 * number_bytes)) - 1)).to_bytes(number_bytes, "big")
        sealed = self.seal(number, header + truncated, payload)
        at = 4 - number_bytes
        mask = self.mask(sealed[at : at + SAMPLE_BYTES])
        masked = int.from_bytes(truncated, "big") ^ int.from_bytes(mask[1 : 1 + number_bytes], "big")
        first = FIRST_BYTE[header[0] ^ (mask[0] & bits)]
        return b"".join((first, header[1:], masked.to_bytes(number_bytes, "big"), sealed))

    def next_phase(self) -> PacketKey:
        """Return the key that a key update leads to (RFC 9001 §6.1)."""
        size = 48 if self.suite == AES_256_GCM_SHA384 else 32
        return PacketKey(self.suite, expand_label(self.hash_name, self.secret, b"quic ku", size), self)


def initial_keys(original_id: bytes, *, is_server: bool) -> tuple[PacketKey, PacketKey]:
    """Return our sending and our receiving key of Initial packets; anybody on the path can make them."""
    secret = hmac.digest(_INITIAL_SALT, original_id, "sha256")
    client = PacketKey(AES_128_GCM_SHA256, expand_label("sha256", secret, b"client in", 32))
    server = PacketKey(AES_128_GCM_SHA256, expand_label("sha256", secret, b"server in", 32))
    return (server, client) if is_server else (client, server)
