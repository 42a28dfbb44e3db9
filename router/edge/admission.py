"""The gate: who may call which endpoint. Decided from the table in microseconds.

A credential is taken in two halves, `modal-key` and `modal-secret` or `x-router-key` and `x-router-secret`, or as
`Authorization: Bearer wk-ID.ws-SECRET`. Beside the table's tokens there are those of `--auth-token`, which open
every endpoint: `Authorization: Bearer TOKEN`, or `x-router-key: TOKEN` so that an engine's own Authorization can
pass.

Only hashes are kept, found by hash or compared in constant time, and nothing is remembered of an earlier answer. A
credential of ours is never forwarded, asked for or not; an Authorization that is none of ours is the engine's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from math import ceil
from typing import TYPE_CHECKING, Final

from router.core import Gate
from router.errors import Kind, ProxyError, Source
from router.http import NO_FIELDS
from router.routing.credentials import ANYBODY, Credential, operator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.http import RequestHead
    from router.routing.credentials import Credentials, RateBoard
    from router.routing.table import Endpoint
    from router.walltime import WallTime

_MISSING: Final = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)
_EXPIRED: Final = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM, detail="the token has expired")
_OTHER_ENVIRONMENT: Final = ProxyError(Kind.FORBIDDEN, Source.DOWNSTREAM)
_NO_PIN: Final = ProxyError(
    Kind.FORBIDDEN, Source.DOWNSTREAM, detail="x-router-replica is for tokens with the scope `pin`"
)
_BEARER: Final = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)
_OURS: Final = re.compile(rb"wk-[\x21-\x2d\x2f-\x7e]{1,128}\.ws-[\x21-\x7e]{1,256}")
_MAX_TOKEN_BYTES: Final = 1_024


class AdmissionGate(Gate):
    """Checks each request's head against the table's tokens and the daemon's own."""

    __slots__ = ("_operators", "_rates", "_walltime")

    def __init__(self, tokens: Iterable[str], rates: RateBoard, walltime: WallTime) -> None:
        """With no `tokens` an endpoint that asks for none is open."""
        self._operators = tuple(operator(hashlib.sha256(token.encode()).digest()) for token in tokens)
        self._rates = rates
        self._walltime = walltime

    def check(
        self, head: RequestHead, endpoint: Endpoint | None, credentials: Credentials, now: float
    ) -> Credential | ProxyError:
        """Return whose request it is, or why it is refused; see `core.Gate`."""
        shape = head.shape
        known = shape.known
        if known is NO_FIELDS and not shape.authorization:
            found: Credential | ProxyError = ANYBODY
        else:
            found = self._identify(head, credentials)
        if endpoint is None and not self._operators:
            found = ANYBODY  # there is nothing to be let in to
        elif endpoint is None or endpoint.by_model:
            found = self._let_in(found, now)
        elif found is not ANYBODY or endpoint.needs_token or self._operators:
            found = self.admit(found, endpoint, now)
            if not isinstance(found, ProxyError) and found is not ANYBODY:
                wait_s = found.wait_s(self._rates, now)
                if wait_s > 0.0:
                    return _too_fast(wait_s)
        if known is not NO_FIELDS and b"x-router-replica" in known:
            return found if isinstance(found, ProxyError) or found.can_pin else _NO_PIN
        return found

    def check_session(
        self, head: RequestHead, endpoint: Endpoint, credentials: Credentials, minter: bytes, now: float
    ) -> Credential | ProxyError:
        """Return whose request of a session it is; see `core.Gate`."""
        found = self._identify(head, credentials)
        if found is ANYBODY and minter:
            found = self._operator_of(minter) or credentials.marked(minter) or _MISSING
        found = self.admit(found, endpoint, now)
        if isinstance(found, ProxyError) or found is ANYBODY:
            return found
        wait_s = found.wait_s(self._rates, now)
        return _too_fast(wait_s) if wait_s > 0.0 else found

    def admit(
        self, found: Credential | ProxyError, endpoint: Endpoint, now: float
    ) -> Credential | ProxyError:
        """Return who may call this endpoint, or why they may not; rates are for `check` to count."""
        if not endpoint.needs_token and not self._operators:
            is_known = not isinstance(found, ProxyError) and self._refusal(found, endpoint, now) is None
            return found if is_known else ANYBODY
        if isinstance(found, ProxyError) or found.is_operator:
            return found
        if found is ANYBODY:
            return _MISSING
        return self._refusal(found, endpoint, now) or found

    def _let_in(self, found: Credential | ProxyError, now: float) -> Credential | ProxyError:
        """Return who may ask where the endpoint is not known: the model is still to say it, or there is none."""
        if isinstance(found, ProxyError) or found.is_operator:
            return found
        if found is ANYBODY:
            return _MISSING if self._operators else found
        if self._has_expired(found, now):
            return _EXPIRED
        wait_s = found.wait_s(self._rates, now)
        return _too_fast(wait_s) if wait_s > 0.0 else found

    def _identify(self, head: RequestHead, credentials: Credentials) -> Credential | ProxyError:
        """Return whose credential the head shows, ANYBODY's if it shows none of ours; take it out of the head."""
        shape = head.shape
        known = shape.known
        match = _BEARER.fullmatch(shape.authorization) if shape.authorization else None
        token: bytes = b"" if match is None else match[1]
        own = self._own(token) if self._operators else None
        is_ours = own is not None or _OURS.fullmatch(token) is not None
        if is_ours:  # whatever else identifies the client: it is no engine's
            head.shape = shape.without_authorization()
        key = known.get(b"modal-key") or known.get(b"x-router-key")
        if key is not None:
            secret = known.get(b"modal-secret") or known.get(b"x-router-secret")
            if secret is None:
                return self._own(key) or _MISSING
            if len(key) + len(secret) > _MAX_TOKEN_BYTES:
                return _MISSING
            return credentials.find(key + b"." + secret) or _MISSING
        if own is not None:
            return own
        return (credentials.find(token) or _MISSING) if is_ours else ANYBODY

    def _refusal(self, credential: Credential, endpoint: Endpoint, now: float) -> ProxyError | None:
        if credential.is_revoked:
            return _MISSING
        if self._has_expired(credential, now):
            return _EXPIRED
        if credential.may_call(endpoint.name, endpoint.environment):
            return None
        return _OTHER_ENVIRONMENT

    def _has_expired(self, credential: Credential, now: float) -> bool:
        return 0.0 < credential.not_after_s <= self._walltime.at(now)

    def _own(self, token: bytes) -> Credential | None:
        """Return the operator whose token this is."""
        if not token or len(token) > _MAX_TOKEN_BYTES:
            return None
        digest = hashlib.sha256(token).digest()
        found = None
        for known in self._operators:  # no early exit: the time taken must not tell which token came close
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def _operator_of(self, mark: bytes) -> Credential | None:
        """Return the operator that a session was given to."""
        for known in self._operators:
            if known.mark == mark:
                return known
        return None


def _too_fast(wait_s: float) -> ProxyError:
    return ProxyError(Kind.RATE_LIMITED, Source.DOWNSTREAM, retry_after_s=ceil(wait_s))
