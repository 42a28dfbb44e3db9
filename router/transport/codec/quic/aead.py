"""Sealing and opening by packet number (RFC 9001 §5.3), by the faster of two libraries.

`qh3` (AWS-LC) takes half a microsecond a packet where `cryptography` (OpenSSL) takes 1.2, most of it for a context
that is made anew each time. qh3 declares its ciphers private, so they are asked for an example first, and whatever
is amiss means `cryptography`. Imports nothing of ours.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

if TYPE_CHECKING:
    from collections.abc import Callable

AES_128_GCM_SHA256: Final = 0x1301
AES_256_GCM_SHA384: Final = 0x1302
CHACHA20_POLY1305_SHA256: Final = 0x1303

_MAX_TAIL: Final = (1 << 32) - 1

# RFC 9001 A.5: the one example of a packet of short header.
_EXAMPLE_KEY: Final = bytes.fromhex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8")
_EXAMPLE_IV: Final = bytes.fromhex("e0459b3474bdd0e44a41c144")
_EXAMPLE_HEADER: Final = bytes.fromhex("4200bff4")
_EXAMPLE_NUMBER: Final = 654_360_564
_EXAMPLE_SEALED: Final = bytes.fromhex("655e5cd55c41f69080575d7999c25a5bfb")


class OpenSslAead:
    """One key of `cryptography`'s, for those who have nothing faster: `encrypt` and `decrypt` by packet number."""

    __slots__ = ("_decrypt", "_encrypt", "_iv", "_iv_head", "_iv_tail")

    def __init__(self, suite: int, key: bytes, iv: bytes) -> None:
        self._iv = int.from_bytes(iv, "big")
        self._iv_head = iv[:8]
        self._iv_tail = int.from_bytes(iv[8:], "big")
        aead: Any = ChaCha20Poly1305(key) if suite == CHACHA20_POLY1305_SHA256 else AESGCM(key)
        self._encrypt: Callable[[bytes, bytes, bytes], bytes] = aead.encrypt
        self._decrypt: Callable[[bytes, bytes, bytes], bytes] = aead.decrypt

    def _nonce(self, number: int) -> bytes:
        """Return the nonce of a packet; numbers of up to 32 bits without arithmetic on 96."""
        if number <= _MAX_TAIL:
            return self._iv_head + (self._iv_tail ^ number).to_bytes(4, "big")
        return (self._iv ^ number).to_bytes(12, "big")

    def encrypt(self, number: int, payload: bytes, header: bytes) -> bytes:
        """Return the payload encrypted, with its tag behind it."""
        return self._encrypt(self._nonce(number), payload, header)

    def decrypt(self, number: int, sealed: bytes, header: bytes) -> bytes:
        """Return the payload. Raises: one of `REFUSALS`, if it does not authenticate."""
        return self._decrypt(self._nonce(number), sealed, header)


def fast_ciphers(name: str = "qh3._hazmat") -> Any:
    """Return qh3's module of ciphers; None where it is missing or does not do what we know of it."""
    try:
        module: Any = importlib.import_module(name)
        refused: type[Exception] = module.CryptoError
        key = module.AeadChaCha20Poly1305(_EXAMPLE_KEY, _EXAMPLE_IV)
        if key.encrypt(_EXAMPLE_NUMBER, b"\x01", _EXAMPLE_HEADER) != _EXAMPLE_SEALED:
            return None
        for suite, size, cipher in (
            (AES_128_GCM_SHA256, 16, module.AeadAes128Gcm),
            (AES_256_GCM_SHA384, 32, module.AeadAes256Gcm),
            (CHACHA20_POLY1305_SHA256, 32, module.AeadChaCha20Poly1305),
        ):
            theirs = cipher(_EXAMPLE_KEY[:size], _EXAMPLE_IV)
            ours = OpenSslAead(suite, _EXAMPLE_KEY[:size], _EXAMPLE_IV)
            sealed = theirs.encrypt(_MAX_TAIL + 1, b"\x01", _EXAMPLE_HEADER)
            if sealed != ours.encrypt(_MAX_TAIL + 1, b"\x01", _EXAMPLE_HEADER):
                return None
            if theirs.decrypt(_MAX_TAIL + 1, sealed, _EXAMPLE_HEADER) != b"\x01":
                return None
            try:
                theirs.decrypt(_MAX_TAIL, sealed, _EXAMPLE_HEADER)
            except refused:
                continue
            return None
    except Exception:  # a private module: whatever changed in it must not stop the router
        return None
    return module


_module: Final = fast_ciphers()

REFUSALS: Final[tuple[type[Exception], ...]] = (
    (InvalidTag, ValueError) if _module is None else (InvalidTag, ValueError, _module.CryptoError)
)
"""What `decrypt` raises for what does not authenticate, or is too short to."""
IS_FAST: Final = _module is not None
"""Whether qh3's are used."""


def aead(suite: int, key: bytes, iv: bytes) -> Any:
    """Return one key with `encrypt(number, payload, header)` and `decrypt(number, sealed, header)`."""
    if _module is None:
        return OpenSslAead(suite, key, iv)
    if suite == CHACHA20_POLY1305_SHA256:
        return _module.AeadChaCha20Poly1305(key, iv)
    return _module.AeadAes256Gcm(key, iv) if suite == AES_256_GCM_SHA384 else _module.AeadAes128Gcm(key, iv)
