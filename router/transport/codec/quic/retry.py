"""Proof of address before a handshake: Retry packets and the tokens of clients (RFC 9000 §8.1, RFC 9001 §5.8).

A token is sealed with a key that all workers have, and bound to what it is to prove without carrying it: a Retry's
to address, port and the id that the Retry chose, a later connection's to the address alone. Which of both it claims
to be stands in its first byte (§8.1.1 wants them told apart); anything else is another server's, and none to us.
Time is Unix seconds, an argument.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from router.transport.codec.quic.invariants import MAX_ID_BYTES, VERSION_1

RETRY_VALID_S: Final = 10.0
"""The client has to answer a Retry at once."""
TOKEN_VALID_S: Final = 86_400.0
CLOCK_S: Final = 5.0
"""What a token may be from the future: clocks of processes are read at different moments."""
MAX_TOKEN_BYTES: Final = 256
"""Ours are at most 58 bytes; more is not even tried."""

_OF_RETRY: Final = b"\x52"
_OF_CONNECTION: Final = b"\x4e"
_NONCE_BYTES: Final = 12
_TIME_BYTES: Final = 6  # milliseconds

# RFC 9001 §5.8, version 1: known to everybody, so that only who saw the client's Initial can make the tag.
_TAG_KEY: Final = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")
_TAG_NONCE: Final = bytes.fromhex("461599d35d632bf2239825bb")
_tags: Final = AESGCM(_TAG_KEY)


def make_retry(destination_id: bytes, source_id: bytes, original_id: bytes, token: bytes, noise: int) -> bytes:
    """Return a Retry packet to a client called `destination_id`, which sent its Initial to `original_id`."""
    packet = b"".join((
        bytes((0xF0 | (noise & 0x0F),)), VERSION_1.to_bytes(4, "big"),
        bytes((len(destination_id),)), destination_id,
        bytes((len(source_id),)), source_id,
        token,
    ))  # fmt: skip
    return packet + retry_tag(original_id, packet)


def retry_tag(original_id: bytes, packet: bytes) -> bytes:
    """Return the integrity tag of a Retry packet that is whole but for it."""
    return _tags.encrypt(_TAG_NONCE, b"", bytes((len(original_id),)) + original_id + packet)


class Tokens:
    """Seals and opens. `key` is 32 bytes; `host` and `port` are the client's, as the kernel told them."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def of_retry(self, host: str, port: int, retry_id: bytes, original_id: bytes, unix_s: float) -> bytes:
        """Return the token of a Retry packet; it keeps what the handshake needs of the first Initial."""
        return self._seal(_OF_RETRY, _where(host, port, retry_id), unix_s, original_id)

    def of_connection(self, host: str, unix_s: float) -> bytes:
        """Return a token with which a client may come back to any worker (NEW_TOKEN)."""
        return self._seal(_OF_CONNECTION, _where(host, 0, b""), unix_s, b"")

    def is_of_retry(self, token: bytes) -> bool:
        """Whether it claims to be one of a Retry packet: then it must be right (RFC 9000 §8.1.3)."""
        return token[:1] == _OF_RETRY

    def open_retry(self, token: bytes, host: str, port: int, retry_id: bytes, unix_s: float) -> bytes | None:
        """Return the id that the client's first Initial was sent to; None: expired, forged, or another's."""
        found = self._open(token, _OF_RETRY, _where(host, port, retry_id), unix_s, RETRY_VALID_S)
        return found if found is not None and len(found) <= MAX_ID_BYTES else None

    def is_known(self, token: bytes, host: str, unix_s: float) -> bool:
        """Whether a client at this address was given the token within a day."""
        return self._open(token, _OF_CONNECTION, _where(host, 0, b""), unix_s, TOKEN_VALID_S) is not None

    def _seal(self, kind: bytes, bound: bytes, unix_s: float, kept: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        body = int(unix_s * 1e3).to_bytes(_TIME_BYTES, "big") + kept
        return kind + nonce + self._aead.encrypt(nonce, body, kind + bound)

    def _open(self, token: bytes, kind: bytes, bound: bytes, unix_s: float, valid_s: float) -> bytes | None:
        if token[:1] != kind or len(token) > MAX_TOKEN_BYTES:
            return None
        try:
            body: bytes = self._aead.decrypt(token[1 : 1 + _NONCE_BYTES], token[1 + _NONCE_BYTES :], kind + bound)
        except (InvalidTag, ValueError):  # ValueError: too short for a nonce
            return None
        age_s = unix_s - int.from_bytes(body[:_TIME_BYTES], "big") / 1e3
        return body[_TIME_BYTES:] if -CLOCK_S <= age_s <= valid_s else None


def _where(host: str, port: int, chosen: bytes) -> bytes:
    return b"%b|%d|%b" % (host.encode(), port, chosen)
