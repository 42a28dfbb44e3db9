"""Sticky sessions in the way of a request: its token before its replica, and the two calls of the router's own.

    head -> token -> who (or who started the session) -> the session's replica
    POST …/_router/sessions/start -> who -> a replica with room, or wait -> the supervisor keeps it -> token
    POST …/_router/sessions/terminate -> token -> who -> the supervisor ends it

The part of `exchange` for endpoints that are sessioned; no other pays for more than one look. A session is in use
from `_visit` on until `_finish`. Imports no asyncio and no protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.body_head import MAX_HEAD_BYTES
from router.errors import Kind, ProxyError, Source
from router.exchange_ending import ExchangeEnding
from router.http import NO_FIELDS
from router.routing.credentials import Credential
from router.routing.load import Replica
from router.routing.session_token import SessionClaim
from router.routing.sessions import Session
from router.session_fields import (
    START_PATH,
    TERMINATE_PATH,
    asked_idle_s,
    redirect_reply,
    shown_session,
    started_reply,
    terminated_reply,
)

if TYPE_CHECKING:
    from router.core import Desk
    from router.http import ResponseHead
    from router.routing.table import Endpoint

_METHOD: Final = ProxyError(Kind.METHOD_NOT_ALLOWED, Source.DOWNSTREAM)
_REQUIRED: Final = ProxyError(Kind.SESSION_REQUIRED, Source.DOWNSTREAM)
_LEFT: Final = ProxyError(Kind.SESSION_GONE, Source.ROUTER, detail="its replica has left")
_NO_STORE: Final = ProxyError(Kind.SESSION_UNAVAILABLE, Source.ROUTER)
_NOT_SESSIONED: Final = ProxyError(Kind.NO_ROUTE, Source.ROUTER, detail="the endpoint is not sessioned any more")


class SessionVisit:
    """What one request has to do with sessions: it starts one, ends one, or belongs to one."""

    __slots__ = ("idle_s", "is_call", "replica", "session")

    def __init__(self, session: Session | None, *, is_call: bool) -> None:
        self.session = session
        self.is_call = is_call  # answered by the router; without a session it is a start
        self.idle_s = 0
        self.replica: Replica | None = None


class ExchangeSession(ExchangeEnding):
    """Requests on sessioned endpoints."""

    __slots__ = ()

    def _endpoint_of_token(self) -> Endpoint | None:
        """Return the endpoint whose session a request on a host by model shows: no model has to be asked for."""
        core, head = self._core, self._head
        assert head is not None
        shown = shown_session(head.shape)
        if not shown.token or shown.path.endswith(START_PATH):
            return None
        session = core.table.sessions.verified(shown.token)
        endpoint = None if session is None else core.table.endpoints.get(session.endpoint)
        return None if endpoint is None or endpoint.sessions is None else endpoint

    def _begin_session(self, endpoint: Endpoint, admitted: Credential | None) -> None:
        """Go on with the session that the request shows. `admitted`: who it is, where that is known already."""
        core, head = self._core, self._head
        assert head is not None
        table, now = core.table, core.clock.now
        shown = shown_session(head.shape)
        if shown.shape is not None:
            head.shape = shown.shape
        shape = head.shape
        if shown.path.endswith(START_PATH):
            self._begin_start(endpoint, admitted)
            return
        is_terminate = shown.path.endswith(TERMINATE_PATH)
        if is_terminate and shape.method != b"POST":
            self._refuse(_METHOD)
            return
        if not shown.token:
            self._refuse(_REQUIRED)
            return
        session = table.sessions.find(shown.token, endpoint, now)
        if not isinstance(session, Session):
            # A browser sends what another endpoint of the host gave it along to all of them.
            is_others = shown.is_cookie and session.kind is Kind.FORBIDDEN
            self._refuse(_REQUIRED if is_others else session)
            return
        credential: Credential | ProxyError
        if admitted is not None:
            credential = admitted
        else:
            credential = core.gate.check_session(head, endpoint, table.credentials, session.minter, now)
        if not isinstance(credential, Credential):
            self._refuse(credential)
            return
        replica = endpoint.find(session.replica)
        if replica is None or replica.generation != session.generation:
            self._refuse(_LEFT)
            return
        self._credential = credential
        if shown.is_query and not is_terminate and shape.upgrade is None and not shape.is_grpc:
            self._redirect(endpoint, shown.token)
            return
        self._visit = SessionVisit(session, is_call=is_terminate)
        table.sessions.enter(session)
        if is_terminate:
            self._endpoint, self._counters = endpoint, endpoint.counters
            self._call_when_whole()
            return
        self._pin = session.replica
        self._enter(endpoint)

    def _begin_start(self, endpoint: Endpoint, admitted: Credential | None) -> None:
        core, head, sticky = self._core, self._head, endpoint.sessions
        assert head is not None
        assert sticky is not None
        if head.shape.method != b"POST":
            self._refuse(_METHOD)
            return
        credential: Credential | ProxyError
        if admitted is not None:
            credential = admitted
        else:
            credential = core.gate.check(head, endpoint, core.table.credentials, core.clock.now)
        if not isinstance(credential, Credential):
            self._refuse(credential)
            return
        known = head.shape.known
        idle_s = sticky.idle_timeout_s if known is NO_FIELDS else asked_idle_s(known, sticky)
        if isinstance(idle_s, ProxyError):
            self._refuse(idle_s)
            return
        self._credential = credential
        self._visit = visit = SessionVisit(None, is_call=True)
        visit.idle_s = idle_s
        self._endpoint, self._counters = endpoint, endpoint.counters
        refusal = None if known is NO_FIELDS else self._take_asked(known)
        if refusal is not None:
            self._refuse(refusal)
            return
        if self._deadline_s:
            self._core.wheel.watch(self)
        self._call_when_whole()

    def _redirect(self, endpoint: Endpoint, token: bytes) -> None:
        head = self._head
        assert head is not None
        self._endpoint, self._counters = endpoint, endpoint.counters
        reply = redirect_reply(token, head.shape, self._request_id)
        if isinstance(reply, ProxyError):
            self._refuse(reply)
        else:
            self._reply(reply, b"")

    def _call_when_whole(self) -> None:
        """Answer a call of the router's own once its body, of which nothing is wanted, is here."""
        if self._head_ends or self._replay_ended:
            self._call()
        else:
            self._wait_for_body(MAX_HEAD_BYTES)

    def _call(self) -> None:
        visit, endpoint = self._visit, self._endpoint
        assert visit is not None
        assert endpoint is not None
        if not self._replay_ended:
            self._hold_body()  # more than is read of any: it stays where it is
        if visit.session is None:
            self._look_for_room(endpoint, visit)
        else:
            self._desk().end(visit.session.id, self._session_ended)

    def _desk(self) -> Desk:
        desk = self._core.desk
        assert desk is not None, "the worker that has sessioned endpoints has a desk"
        return desk

    # -- a session begins ------------------------------------------------------------------------------

    def _look_for_room(self, endpoint: Endpoint, visit: SessionVisit) -> None:
        """Ask the supervisor for a session on the replica that suits best, or wait for one that has room."""
        core, sticky = self._core, endpoint.sessions
        sessions = core.table.sessions
        if sticky is None:
            self._refuse(_NOT_SESSIONED)
            return
        if not sessions.keys.keys:
            self._refuse(_NO_STORE)
            return
        replica = sessions.choose(endpoint.picker, endpoint.name, sticky.max_per_replica)
        if not isinstance(replica, Replica):
            self._wait_for_room(endpoint, ProxyError(replica, Source.ROUTER))
            return
        self._look_again_s = 0.0
        visit.replica = replica
        self._desk().start(endpoint.name, replica.id, visit.idle_s, self._session_started)

    def _wait_for_room(self, endpoint: Endpoint, refusal: ProxyError) -> None:
        if not self._wait(endpoint, self._core.clock.now):
            self._refuse(refusal)

    def _session_started(self, session_id: str, at_s: int, refusal: Kind | None) -> None:
        """Take the supervisor's answer, which may come when nobody waits for it any more."""
        core, visit, endpoint = self._core, self._visit, self._endpoint
        if self._finished or self._refusal is not None:
            if session_id:
                self._desk().end(session_id, _forget)
            return
        assert visit is not None
        assert endpoint is not None
        if refusal is Kind.SESSION_UNAVAILABLE:
            self._refuse(_NO_STORE)
            return
        if refusal is not None:
            self._wait_for_room(endpoint, ProxyError(refusal, Source.ROUTER))
            return
        if not core.table.sessions.keys.keys:  # taken out of the store meanwhile
            self._desk().end(session_id, _forget)
            self._refuse(_NO_STORE)
            return
        if not self._look_anew():
            self._desk().end(session_id, _forget)
            return
        now, sessions, credential, replica = core.clock.now, core.table.sessions, self._credential, visit.replica
        assert credential is not None
        assert replica is not None
        if self._wait_until_s:
            self._end_wait(now)
        claim = SessionClaim(
            session_id,
            endpoint.name,
            endpoint.environment,
            replica.id,
            visit.idle_s,
            at_s,
            credential.mark,
            replica.generation,
        )
        token = sessions.keys.sign(claim)
        self._reply(*started_reply(session_id, token, visit.idle_s, replica.key, self._request_id))

    # -- a session ends --------------------------------------------------------------------------------

    def _session_ended(self, session_id: str, _: int, refusal: Kind | None) -> None:
        if self._finished:
            return
        if refusal is not None:
            self._refuse(ProxyError(refusal, Source.ROUTER))
        else:
            self._reply(*terminated_reply(session_id, self._request_id))

    def _reply(self, head: ResponseHead, body: bytes) -> None:
        """Answer in the router's own name."""
        self._status = head.shape.status
        if body:
            self._downstream.send_head(head, False)
            self._downstream.send_data(body, True)
        else:
            self._downstream.send_head(head, True)
        self._finish(None)

    # -- what follows in the way of a request ------------------------------------------------------------

    def _take_asked(self, known: dict[bytes, bytes]) -> ProxyError | None:
        """Apply what the client asks for; see `exchange_entry`."""
        raise NotImplementedError

    def _hold_body(self) -> None:
        """Keep the client's body where it is; see `exchange`."""
        raise NotImplementedError

    def _enter(self, endpoint: Endpoint) -> None:
        """Go on to a replica of an endpoint; see `exchange_entry`."""
        raise NotImplementedError

    def _wait_for_body(self, limit: int) -> None:
        """Let the client send the beginning of its body; see `exchange_entry`."""
        raise NotImplementedError

    def _look_anew(self) -> bool:
        """Go on with the table in force; see `exchange_entry`."""
        raise NotImplementedError

    def _wait(self, endpoint: Endpoint, now: float) -> bool:
        """Wait for a replica; see `exchange`."""
        raise NotImplementedError

    def _end_wait(self, now: float) -> None:
        """Wait no longer; see `exchange`."""
        raise NotImplementedError


def _forget(session_id: str, at_s: int, refusal: Kind | None) -> None:
    """Nobody asks how it went: what stays will be idle, and end."""
