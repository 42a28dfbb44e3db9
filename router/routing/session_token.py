"""Session tokens: what a client shows to get back to its replica, readable by every router of the fleet.

    rs1.<claim: msgpack, base64url>.<HMAC-SHA256 over all before it, base64url>

Nothing is looked up to read one: who has the key knows endpoint and replica. The claim is signed, not hidden: it
holds no secret. Keys come with the table, from `Meta` of the store: the first one signs, all of them verify, so
that a key can be changed without ending a session. A token that is not byte for byte what `sign` made is refused.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import Final

import msgspec

MAX_TOKEN_BYTES: Final = 2_048
MIN_KEY_BYTES: Final = 16
_PREFIX: Final = b"rs1."


class SessionClaim(msgspec.Struct, frozen=True, array_like=True):
    """What a token says. `minter` marks the credential it was given to (`Credential.mark`), empty for nobody's.

    `generation` is the replica's: another process under the same name knows nothing of the session.
    """

    id: str
    endpoint: str
    environment: str
    replica: str
    idle_s: int
    issued_s: int
    """Unix time, by the store's clock where there is one."""
    minter: bytes = b""
    generation: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[SessionClaim] = msgspec.msgpack.Decoder(SessionClaim)


class SessionKeys:
    """The keys of a fleet. Without any nothing is signed and nothing read."""

    __slots__ = ("keys",)

    def __init__(self, keys: tuple[bytes, ...] = ()) -> None:
        self.keys = keys

    def sign(self, claim: SessionClaim) -> bytes:
        """Return the token; LookupError where there is no key."""
        return self.seal(_PREFIX, _encoder.encode(claim))

    def read(self, token: bytes) -> SessionClaim | None:
        """Return what a token of ours says, None for any other."""
        body = self.unseal(_PREFIX, token)
        if body is None:
            return None
        try:
            return _decoder.decode(body)
        except msgspec.DecodeError:  # of another version of ours
            return None

    def seal(self, prefix: bytes, body: bytes) -> bytes:
        """Return a signed text of the kind that `prefix` names; LookupError where there is no key."""
        signed = prefix + _text(body)
        return signed + b"." + _text(_mac(self.keys[0], signed))

    def unseal(self, prefix: bytes, token: bytes) -> bytes | None:
        """Return what was sealed, None for what was not, or under another prefix."""
        signed, _, shown = token.rpartition(b".")
        if len(token) > MAX_TOKEN_BYTES or not signed.startswith(prefix):
            return None
        # Both are compared as texts: base64 has several for the same bytes, and a token has one.
        if not any([compare_digest(_text(_mac(key, signed)), shown) for key in self.keys]):  # noqa: C419
            return None
        try:
            return urlsafe_b64decode(signed[len(prefix) :] + b"===")
        except binascii.Error:  # of another version of ours
            return None


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac_digest(key, b"router session\0" + signed, sha256)


def _text(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
