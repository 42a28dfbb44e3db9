"""How one request begins: who asks, for which endpoint, and what of its body must be known to tell.

    head -> shed? -> table.route -> gate -> (model or prompt: the beginning of the body)
         -> (a token that leads back: earlier sessions end) -> limits -> `_open`

The part of `exchange` before a replica is looked for. What is decided from is the table as it is at that moment:
a request that waited, for its body or for a cold start, is looked at anew before it goes on. Imports no asyncio and
no protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.body_head import MAX_HEAD_BYTES, BodyHead, find_model
from router.body_head import WAIT_S as BODY_HEAD_WAIT_S
from router.by_model import (
    NOT_FOUND,
    UNKNOWN_CLIENT,
    find_serving,
    is_model_list,
    is_stranger,
    model_list,
    model_of_query,
)
from router.core import OVERLOADED
from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Source
from router.exchange_session import ExchangeSession
from router.http import NO_FIELDS, ResponseHead, ResponseShape
from router.local_reply import json_reply
from router.request_fields import accepted_id, affinity_key, asked_timeout_s, is_json
from router.routing.credentials import Credential
from router.routing.prefix import MAX_PROMPT_BYTES, Prompt
from router.routing.resumption import resume

if TYPE_CHECKING:
    from router.continuity import Continuity
    from router.http import RequestHead
    from router.routing.table import Endpoint

FIRST_LOOK_S: Final = 0.05  # most bodies come with their head: those leave nothing behind in the deadline wheel
TAKEOVER_S: Final = 0.05
"""For other workers to end the earlier session of a client that comes again; a millisecond is what they need."""
_GONE: Final = ProxyError(Kind.NO_ROUTE, Source.ROUTER, detail="the endpoint left while the request waited")
_NO_PIN: Final = ProxyError(
    Kind.FORBIDDEN, Source.DOWNSTREAM, detail="x-router-replica is for tokens with the scope `pin`"
)


class ExchangeEntry(ExchangeSession):
    """The way of a request from its head to the look for a replica."""

    __slots__ = ()

    def request_head(self, head: RequestHead, end: bool) -> None:
        """Decide, from the table as it is now, and send the head on."""
        core = self._core
        self._head = head
        self._head_ends = end
        core.in_flight += 1
        shape = head.shape
        known = shape.known
        self._request_id = core.make_id() if known is NO_FIELDS else accepted_id(known) or core.make_id()
        if core.trusted_hops and known is not NO_FIELDS:
            self._peer = self._peer.behind(known, core.trusted_hops)
        table = core.table
        endpoint = table.route(shape.authority, shape.path)
        if core.shed_share and core.sheds():
            self._refuse(OVERLOADED)
            return
        if endpoint is not None and endpoint.may_have_sessions:
            named = self._endpoint_of_token() if endpoint.by_model else endpoint
            if named is not None:
                self._begin_session(named, None)
                return
        credential = core.gate.check(head, endpoint, table.credentials, core.clock.now)
        if not isinstance(credential, Credential):
            self._refuse(credential)
            return
        self._credential = credential
        if endpoint is None:
            # A table without any endpoint is one that has not come yet: try again, rather than never.
            self._refuse(ProxyError(Kind.NO_ROUTE if table.endpoints else Kind.NO_REPLICA, Source.ROUTER))
        elif endpoint.by_model:
            self._ask_for_model(head, end)
        else:
            self._enter(endpoint)

    # -- which endpoint: by the model ------------------------------------------------------------------

    def _ask_for_model(self, head: RequestHead, end: bool) -> None:
        """Read as much of the body as may name a model, on a host that several endpoints share."""
        core, credential, shape = self._core, self._credential, head.shape
        assert credential is not None
        refusal = UNKNOWN_CLIENT if is_stranger(core.table, credential) else None
        if refusal is None and shape.known is not NO_FIELDS:
            refusal = self._take_asked(shape.known)
        if refusal is not None:
            self._refuse(refusal)
        elif is_model_list(shape):
            body = model_list(core.table, credential, shape.path)
            if body is None:
                self._refuse(NOT_FOUND)
                return
            self._status = 200
            self._downstream.send_head(json_reply(200, len(body), self._request_id), False)
            self._downstream.send_data(body, True)
            self._finish(None)
        elif end or shape.upgrade is not None:
            self._enter_by_model(model_of_query(shape.path))
        else:
            self._wait_for_body(MAX_HEAD_BYTES)

    def _enter_by_model(self, model: str | None) -> None:
        """Go on with the endpoint that serves a model, if this client may know of it."""
        core, credential, head = self._core, self._credential, self._head
        assert credential is not None
        assert head is not None
        endpoint = find_serving(core.table, credential, model)
        if isinstance(endpoint, ProxyError):
            self._refuse(endpoint)
            return
        admitted = core.gate.admit(credential, endpoint, core.clock.now)
        if isinstance(admitted, ProxyError):
            self._refuse(admitted)
        elif self._pin and not admitted.can_pin:
            self._refuse(_NO_PIN)
        elif endpoint.sessions is not None:
            self._begin_session(endpoint, admitted)
        else:
            self._credential = admitted
            self._enter(endpoint)

    # -- within which limits ---------------------------------------------------------------------------

    def _enter(self, endpoint: Endpoint) -> None:
        """Take part in an endpoint's load, and look for a replica."""
        head = self._head
        assert head is not None
        if head.continuity is not None and head.continuity.shown and self._come_again(endpoint, head.continuity):
            return
        if not self._take_part(endpoint):
            return
        if endpoint.prefixes is None or not self._ask_for_prompt(endpoint, head):
            self._open(fresh=False)

    def _come_again(self, endpoint: Endpoint, continuity: Continuity) -> bool:
        """Take over from earlier sessions of the same client, before any limit is asked; True to wait for that.

        Here they end at once. Elsewhere that takes a moment, in which the replica may look full: whoever came again
        waits for it, others never do.
        """
        core, credential = self._core, self._credential
        assert credential is not None
        if not resume(continuity, core.table.sessions, endpoint, credential, core.clock.now):
            return False
        self._endpoint, self._counters = endpoint, endpoint.counters
        if not core.takeovers.take_over(continuity, self._taken_over):
            return False
        self._hold_body()
        self._look_again_s = core.clock.now + TAKEOVER_S
        core.wheel.watch(self)
        return True

    def _taken_over(self) -> None:
        """Go on, unless the time was up before, or nobody waits for it any more."""
        is_waiting = self._look_again_s and not self._is_counted and not self._finished
        if is_waiting and self._look_anew():
            self._look_again()

    def _take_part(self, endpoint: Endpoint) -> bool:
        """Take part in an endpoint's load within its limits; False if the request is refused."""
        core, head = self._core, self._head
        assert head is not None
        shape = head.shape
        known = shape.known
        self._endpoint = endpoint
        self._counters = counters = endpoint.counters
        limit = endpoint.endpoint_concurrency
        if limit and endpoint.load.total() >= limit:
            self._refuse(ProxyError(Kind.AT_CAPACITY, Source.ROUTER))
            return False
        self._is_counted = True
        counters.in_flight += 1
        if endpoint.load.is_shared:
            endpoint.load.publish()
        limit = endpoint.max_body_bytes
        if limit and shape.upgrade is None:
            self._max_body_bytes = limit
            if (head.length or 0) > limit or self._received_bytes > limit:
                detail = f"the limit is {limit} bytes"
                self._refuse(ProxyError(Kind.BODY_TOO_LARGE, Source.DOWNSTREAM, detail=detail))
                return False
        self._downstream.limit_idle(endpoint.idle_s)
        if endpoint.total_s:
            self._deadline_s = self._started_s + endpoint.total_s
        forwarded_for = self._peer.forwarded_for
        host = shape.authority
        if known is not NO_FIELDS:
            refusal = self._take_asked(known)
            if refusal is not None:
                self._refuse(refusal)
                return False
            if core.trusted_hops:
                host = known.get(b"x-forwarded-host", host)
            before = known.get(b"x-forwarded-for")
            if before:
                forwarded_for = (b"x-forwarded-for", before + b", " + forwarded_for[1])
        # What a client says of its own host and scheme is not believed, unless it is a proxy that we trust;
        # its chain of addresses is kept.
        head.added = [
            (b"x-request-id", self._request_id),
            forwarded_for,
            (b"x-forwarded-host", host),
            self._peer.forwarded_proto,
        ]
        if endpoint.mends_sglang and shape.method == b"POST":
            self._rid = core.make_id()
            head.added.append((b"x-override-rid", self._rid))
        if self._deadline_s:
            self._timeouts_at = len(head.added)
            core.wheel.watch(self)
        return True

    def _take_asked(self, known: dict[bytes, bytes]) -> ProxyError | None:
        """Apply what the client asks for: a replica by name or by key; a time, of which the smallest wins."""
        key = affinity_key(known)
        if isinstance(key, ProxyError):
            return key
        self.affinity = key
        if self._visit is None:
            self._pin = known.get(b"x-router-replica", b"")  # the gate has seen to who may
        asked_s = asked_timeout_s(known)
        if isinstance(asked_s, ProxyError):
            return asked_s
        if asked_s == NEVER:
            return None
        if not self._deadline_s or self._started_s + asked_s < self._deadline_s:
            self._deadline_s = self._started_s + asked_s
        if self._deadline_s <= self._core.clock.now:
            return ProxyError(Kind.DEADLINE, Source.DOWNSTREAM)
        return None

    # -- what the body says ----------------------------------------------------------------------------

    def _ask_for_prompt(self, endpoint: Endpoint, head: RequestHead) -> bool:
        """Read the beginning of a body that may be a prompt; False where there is nothing to wait for."""
        shape = head.shape
        if shape.method != b"POST" or self._head_ends or self.affinity or self._pin:
            return False
        if len(endpoint.picker.eligible) < 2 or not is_json(shape):  # nothing to choose, or nothing to choose by
            return False
        if self._replay is not None:  # it has said already which model it is for
            self.prompt = Prompt(b"".join(self._replay), endpoint.salt)
            return False
        self._wait_for_body(MAX_PROMPT_BYTES)
        return True

    def _wait_for_body(self, limit: int) -> None:
        """Let the client send the beginning of its body, in bounded time."""
        head, core = self._head, self._core
        assert head is not None
        if head.shape.expects_continue:  # nobody else is there yet to ask for the body
            self._downstream.send_informational(ResponseHead(ResponseShape(100)))
            head.shape = head.shape.without_expect()
        self._body_head = BodyHead(limit)
        self._body_due_s = core.clock.now + BODY_HEAD_WAIT_S
        self._look_again_s = core.clock.now + FIRST_LOOK_S
        core.wheel.watch(self)

    def _take_body_head(self, data: bytes, end: bool) -> None:
        """Collect what may decide where the request goes."""
        body_head = self._body_head
        assert body_head is not None
        body_head.add(data, end)
        if body_head.is_whole:
            self._decide_by_body(body_head)
        elif self._endpoint is None and body_head.may_name_model(len(data)):
            model = find_model(body_head)
            if model is not None:
                self._stop_waiting_for_body(body_head)
                self._enter_by_model(model)

    def _decide_by_body(self, body_head: BodyHead) -> None:
        """Go on with what is known of the body."""
        self._stop_waiting_for_body(body_head)
        if self._endpoint is None:
            self._enter_by_model(find_model(body_head))
        elif not self._look_anew():
            pass
        elif self._visit is not None and self._visit.is_call:
            self._call()
        else:
            self.prompt = Prompt(body_head.text(), self._endpoint.salt)
            self._open(fresh=False)

    def _stop_waiting_for_body(self, body_head: BodyHead) -> None:
        """Keep what came, to be sent behind the head."""
        self._body_head = None
        self._look_again_s = 0.0
        taken = body_head.taken()
        self._replay = [taken] if taken or body_head.has_ended else []
        self._replay_ended = body_head.has_ended

    def _handle_late_body(self, now: float) -> None:
        """Look whether the body has been waited for long enough."""
        body_head = self._body_head
        assert body_head is not None
        if now < self._body_due_s:
            self._look_again_s = self._body_due_s
            self._core.wheel.watch(self)
        elif self._endpoint is None or self._visit is not None:
            self._fail(ProxyError(Kind.REQUEST_TIMEOUT, Source.DOWNSTREAM))
        else:  # a prompt that comes slowly: it goes where any other does
            self._decide_by_body(body_head)

    # -- behind a wait ---------------------------------------------------------------------------------

    def _look_anew(self) -> bool:
        """Go on with the endpoint of the table in force, where this request may still go; else refuse it.

        The one that it began with may be many versions old by now, or its name may be somebody else's.
        """
        endpoint, credential, core = self._endpoint, self._credential, self._core
        assert endpoint is not None
        assert credential is not None
        newer = core.table.endpoints.get(endpoint.name)
        if newer is None or newer.counters is not self._counters:
            self._refuse(_GONE)
            return False
        admitted = core.gate.admit(credential, newer, core.clock.now)
        if isinstance(admitted, ProxyError):
            self._refuse(admitted)
            return False
        self._endpoint = newer
        return True

    def _look_again(self) -> None:
        """Go on behind a wait; see `exchange`."""
        raise NotImplementedError

    def _open(self, *, fresh: bool) -> None:
        """Pick a replica and get a stream to it; see `exchange`."""
        raise NotImplementedError
