"""Resume tokens: with whom a client's session was, so that it finds back after its connection was lost.

    rr1.<claim: msgpack, base64url>.<HMAC-SHA256 over all before it, base64url>

Signed with the keys of session tokens, so every router of a fleet can read them, and nothing is kept anywhere. The
replica they name is a wish among those that may be picked anyway: a token opens nothing, and one that does not hold
is ignored. It is good for one endpoint, and who shows the credential that it was given to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from router.continuity import RESUME_S

if TYPE_CHECKING:
    from router.continuity import Continuity
    from router.routing.credentials import Credential
    from router.routing.sessions import SessionIndex
    from router.routing.table import Endpoint

_PREFIX: Final = b"rr1."
FUTURE_S: Final = 60.0
"""By which the clocks of two routers may differ: what ends later than any of ours would is none of ours."""


class ResumeClaim(msgspec.Struct, frozen=True, array_like=True):
    """What a token says. `minter` marks the credential it was given to, empty for nobody's."""

    id: str
    endpoint: str
    environment: str
    replica: str
    epoch: int
    expires_s: int
    """Unix time."""
    minter: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ResumeClaim] = msgspec.msgpack.Decoder(ResumeClaim)


def resume(
    continuity: Continuity, sessions: SessionIndex, endpoint: Endpoint, credential: Credential, now: float
) -> bool:
    """Look at the token that is shown, once: if it holds the session is the one before, and prefers its replica.

    Then sessions of that id that are still open are to end: see `takeovers`.
    """
    shown, continuity.shown = continuity.shown, b""
    if not shown:
        return False
    body = sessions.keys.unseal(_PREFIX, shown)
    if body is None:
        return False
    try:
        claim = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):  # of another version of ours
        return False
    left_s = claim.expires_s - sessions.unix_s(now)
    is_here = claim.endpoint == endpoint.name and claim.environment == endpoint.environment
    if not is_here or claim.minter != credential.mark or not 0.0 < left_s <= RESUME_S + FUTURE_S:
        return False
    continuity.is_resumed = True
    continuity.id = claim.id
    continuity.base = claim.epoch
    continuity.replica = claim.replica.encode()
    return True


def go_on(
    continuity: Continuity, sessions: SessionIndex, endpoint: Endpoint, replica: str, credential: Credential
) -> bool:
    """Let the client be given tokens for the replica that serves it now; False if nobody can sign any."""
    name, environment, minter = endpoint.name, endpoint.environment, credential.mark

    def sign(session: str, epoch: int, now: float) -> bytes:
        expires_s = int(sessions.unix_s(now) + RESUME_S)
        claim = ResumeClaim(session, name, environment, replica, epoch, expires_s, minter)
        return sessions.keys.seal(_PREFIX, _encoder.encode(claim)) if sessions.keys.keys else b""

    continuity.sign = sign
    continuity.replica = b""
    return bool(sessions.keys.keys)
