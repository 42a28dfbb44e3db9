"""THE CORE: one request from its head to its finish, whatever the protocols on either side.

    client's codec --request_*--> Exchange --send_*--> replica's codec
    client's codec <--send_*----- Exchange <--response_*-- replica's codec

Way of a request: gate -> table.route -> picker.pick -> pool.open -> relay both ways -> finish. No queue:
it is answered at once where no replica can take it. The only retry is of a request that provably never
reached a replica: connect refused, or a pooled connection of which the peer acknowledged no byte.

What is known of a request and how it ends is in `exchange_ending`. Imports no asyncio and no protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.engine_manners import FirstEventGuard
from router.errors import Kind, ProxyError, Retry, Source
from router.exchange_ending import REACHED_MAYBE, REACHED_NO, REACHED_YES, TUNNEL_END_S
from router.exchange_entry import ExchangeEntry
from router.grpc_fields import read_grpc_status
from router.http import NO_FIELDS, ResponseHead
from router.outcomes import move_outcome
from router.request_fields import forward_timeouts
from router.routing.balancer import take_pinned
from router.routing.load import OUTCOME_CANCELLED, Lease
from router.routing.resumption import go_on
from router.server_timing import server_timing
from router.stream import HOLD_NO_UPSTREAM, HOLD_PEER_FULL, PendingStream, ResponseReceiver, UpstreamStream

if TYPE_CHECKING:
    from router.http import Field, Headers
    from router.routing.table import Endpoint

MAX_REPLAY_BYTES: Final = 65_536  # of a request's body, kept while it might have to be sent again
REPLAY_PIECE_BYTES: Final = 4_096
LOOK_AGAIN_S: Final = 0.1  # while a request waits for a cold start

_UNBUFFERED: Final[Field] = (b"x-accel-buffering", b"no")


class Exchange(ExchangeEntry):
    """One request and its response. Implements `RequestReceiver` and `ResponseReceiver`."""

    __slots__ = ()

    # -- from the client ------------------------------------------------------------------------------

    def request_data(self, data: bytes, end: bool) -> None:
        """Relay body bytes; keep them while the request might have to be repeated."""
        self._received_bytes = received = self._received_bytes + len(data)
        upstream = self._upstream
        if self._max_body_bytes and received > self._max_body_bytes and self._refusal is None:
            self._fail(ProxyError(Kind.BODY_TOO_LARGE, Source.DOWNSTREAM))
            return
        if self._body_head is not None:
            self._take_body_head(data, end)
            return
        replay = self._replay
        if upstream is None:
            if self._refusal is not None:
                self._discard(end)
            else:  # read together with what a codec was held behind
                assert replay is not None
                replay.append(data)
                self._replay_ended = end
            return
        if replay is not None:
            if received <= MAX_REPLAY_BYTES:
                if replay and len(replay[-1]) + len(data) <= REPLAY_PIECE_BYTES:
                    replay[-1] += data  # tiny frames, each an object, would take twenty times their size
                else:
                    replay.append(data)
                self._replay_ended = end
            else:
                self._replay = None
        upstream.send_data(data, end)
        if end:
            if self._status == 101:
                self._end_tunnel()
                if not self._finished:  # nobody waits for the replica any more
                    self._deadline_s = self._core.clock.now + TUNNEL_END_S
                    self._core.wheel.watch(self)
            elif self._first_byte_s and not self._status:
                self._await_first_byte(self._core.clock.now)

    def request_trailers(self, trailers: Headers) -> None:
        """Relay the trailers; a request of which they were sent is not repeated."""
        if self._upstream is not None:
            self._replay = None
            self._upstream.send_trailers(trailers)
            if self._first_byte_s and not self._status:
                self._await_first_byte(self._core.clock.now)
        elif self._refusal is not None:
            self._discard(True)
        else:
            self._trailers = trailers
            body_head = self._body_head
            if body_head is not None:
                self._decide_by_body(body_head)

    def request_reset(self, error: ProxyError) -> None:
        """End: the client is gone, broke the protocol, or nothing moved for too long."""
        if not self._finished:
            self._fail(error)

    def pause_response(self) -> None:
        """Stop the replica: the client takes no more."""
        self._response_paused = True
        if self._upstream is not None:
            self._upstream.hold(HOLD_PEER_FULL)

    def resume_response(self) -> None:
        """Let the replica go on."""
        self._response_paused = False
        if self._upstream is not None:
            self._upstream.release(HOLD_PEER_FULL)

    def replica_host(self) -> str:
        """Say who serves it."""
        return self._lease.replica.host if self._lease is not None else ""

    def request_datagram(self, data: bytes) -> bool:
        """Pass it on, if the replica is there and takes such."""
        return self._upstream is not None and self._upstream.send_datagram(data)

    # -- the replica ----------------------------------------------------------------------------------

    def _open(self, *, fresh: bool) -> None:
        """Pick a replica and get a stream to it, at once from the pool or pending."""
        endpoint, head = self._endpoint, self._head
        assert endpoint is not None
        assert head is not None
        core = self._core
        now = core.clock.now
        continuity = head.continuity
        if self._pin:
            lease = take_pinned(endpoint, self._pin, now)
        elif continuity is None or not continuity.replica:
            lease = endpoint.picker.pick(self, now)
        else:  # who served its session before, if that may be
            preferred = endpoint.picker.pick_preferred(endpoint.find(continuity.replica), self, now)
            lease = preferred or endpoint.picker.pick(self, now)
        if not isinstance(lease, Lease):
            # Who waits already goes on waiting while those that came before fill the first replica.
            if (lease is not Kind.NO_REPLICA and not self._wait_until_s) or not self._wait(endpoint, now):
                self._refuse(ProxyError(lease, Source.ROUTER))
            return
        if self._wait_until_s:
            self._end_wait(now)
        self._lease = lease
        receiver: ResponseReceiver = FirstEventGuard(self) if endpoint.mends_sglang else self
        stream = core.pool.open(lease.replica, receiver, endpoint.dial, head, fresh=fresh)
        if isinstance(stream, UpstreamStream):
            self._send(stream)
        elif isinstance(stream, PendingStream):
            self._pending = stream
            self._opened_s = now
            self._hold_body()
        else:
            self.upstream_failed(stream)

    def _hold_body(self) -> None:
        """Keep the client's body where it is until somebody takes it."""
        if not self._head_ends and not self._is_held:
            self._is_held = True
            self._downstream.hold(HOLD_NO_UPSTREAM)

    def _wait(self, endpoint: Endpoint, now: float) -> bool:
        """Wait for a cold start, where the endpoint lets this request; False if it is to be refused."""
        head, counters = self._head, self._counters
        assert head is not None
        if self._visit is None:
            hold = endpoint.hold
        elif self._visit.is_call:
            hold = endpoint.session_hold
        else:
            return False  # a session's replica is the one it is
        if not hold.wait_s or self._retries or (hold.only_tunnels and head.shape.upgrade is None):
            return False
        if not self._wait_until_s:
            if (counters.waiting if self._visit is None else counters.starting) >= hold.max_waiting:
                return False
            self._count_wait(1)
            self._wait_until_s = now + hold.wait_s
            self._hold_body()
        elif now >= self._wait_until_s:
            self._end_wait(now)
            return False
        self._look_again_s = min(now + LOOK_AGAIN_S, self._wait_until_s)
        self._core.wheel.watch(self)
        return True

    def _look_again(self) -> None:
        if self._visit is not None and self._visit.is_call:
            self._call()
        elif self._is_counted:
            self._open(fresh=False)
        else:  # it waited for an earlier session of its client to end
            now = self._core.clock.now
            self._look_again_s = 0.0
            self._waited_s = now - self._started_s
            assert self._endpoint is not None
            self._enter(self._endpoint)

    def _end_wait(self, now: float) -> None:
        self._count_wait(-1)
        self._wait_until_s = self._look_again_s = 0.0
        self._waited_s = now - self._started_s

    def upstream_ready(self, stream: UpstreamStream) -> None:
        """Go on with the stream that a pending open led to."""
        self._pending = None
        self._connected_s = self._core.clock.now - self._opened_s
        self._send(stream)

    def upstream_failed(self, error: ProxyError) -> None:
        """Try another replica, or answer: nothing was sent."""
        self._pending = None
        if not self._retry(error):
            self._fail(error)

    def _send(self, stream: UpstreamStream) -> None:
        head = self._head
        assert head is not None
        self._upstream = stream
        if self._response_paused:
            stream.hold(HOLD_PEER_FULL)
        self._reached = REACHED_MAYBE
        if self._timeouts_at:  # what is left now, behind a connect or another replica's try
            del head.added[self._timeouts_at :]
            forward_timeouts(head, head.shape.known, self._deadline_s - self._core.clock.now)
        stream.send_head(head, self._head_ends)
        replay = self._replay
        if replay:
            for i, data in enumerate(replay, 1):
                stream.send_data(data, self._replay_ended and i == len(replay))
        if self._trailers is not None:
            stream.send_trailers(self._trailers)
            self._replay_ended = True
            self._replay = None
        elif not stream.may_be_untouched:
            self._replay = None
        elif replay is None:
            self._replay = []
        endpoint = self._endpoint
        assert endpoint is not None
        self._sent_s = now = self._core.clock.read()
        self._overhead_s = now - self._started_s - self._connected_s - self._waited_s
        self._first_byte_s = endpoint.first_byte_s
        if self._first_byte_s and (self._head_ends or self._replay_ended or head.shape.upgrade is not None):
            self._await_first_byte(now)
        if not self._head_ends:
            if head.shape.upgrade is not None:
                # RFC 6455 §4.1: nothing of the tunnel may pass before the replica answered 101.
                self._hold_body()
            elif self._is_held:
                self._is_held = False
                self._downstream.release(HOLD_NO_UPSTREAM)

    def _retry(self, error: ProxyError) -> bool:
        """Start over where the request provably reached nobody; False if it may not be repeated."""
        endpoint, lease, upstream, core = self._endpoint, self._lease, self._upstream, self._core
        if endpoint is None or lease is None or self._status:
            return False
        newer = core.table.endpoints.get(endpoint.name)
        if newer is None or newer.counters is not self._counters:
            return False  # it is gone, or the name is another's
        self._endpoint = endpoint = newer  # the one in force when the request came may be many versions old
        untouched = error.retry is Retry.SAFE
        if error.retry is Retry.IF_REUSED and upstream is not None and upstream.may_be_untouched:
            untouched = upstream.is_untouched()
        if not untouched:
            return False
        self._reached = REACHED_NO
        if self._retries >= endpoint.max_retries or not core.may_retry():
            return False
        if self._pin and upstream is None:
            return False  # nobody else will do, and this one could not be reached
        if upstream is not None and self._replay is None:
            return False  # more of the body went out than is kept
        if error.retry is Retry.SAFE:
            self.tried += (lease.replica,)
            if all(replica in self.tried for replica in endpoint.picker.eligible):
                if error.kind is not Kind.UPSTREAM_CLOSED and upstream is None:
                    return False
                self.tried = ()  # a GOAWAY or a refused stream is of one connection: the replica may take another
        self._release(move_outcome(error.kind) if error.retry is Retry.SAFE else OUTCOME_CANCELLED)
        self._upstream = None
        self._first_byte_deadline_s = 0.0
        if not self._retries:
            core.retrying += 1
        self._retries += 1
        self._counters.retries += 1
        self._downstream.release(HOLD_PEER_FULL)  # of the connection that is gone
        self._hold_body()
        self._open(fresh=True)
        return True

    # -- from the replica -----------------------------------------------------------------------------

    def response_informational(self, head: ResponseHead) -> None:
        """Pass a 1xx on."""
        self._reached = REACHED_YES
        self._replay = None
        self._downstream.send_informational(head)

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """Pass the final head on, with what the router adds.

        A response that ends before its request abandons the rest of the upload; the codecs see to that.
        """
        core = self._core
        received_s = core.clock.now
        request = self._head
        lease = self._lease
        assert request is not None
        assert lease is not None
        self._reached = REACHED_YES
        self._replay = None
        self._first_byte_deadline_s = 0.0
        lease.first_byte(received_s)
        shape = head.shape
        status = shape.status
        self._ttfb_s = upstream_s = received_s - self._sent_s
        headers = head.added
        headers.append((b"x-request-id", self._request_id))
        headers.append((b"x-router-replica", lease.replica.key))
        if shape.is_event_stream:
            self._is_event_stream = head.length is None
            self._last_event_s = received_s
            headers.append(_UNBUFFERED)
        self._overhead_s = router_s = self._overhead_s + core.clock.read() - received_s
        timing = server_timing(router_s, self._connected_s, upstream_s)
        if shape.known is not NO_FIELDS and b"server-timing" in shape.known:
            timing = shape.known[b"server-timing"] + b", " + timing
        headers.append((b"server-timing", timing))
        if self._peer.alt_svc is not None:
            headers.append(self._peer.alt_svc)
        if request.shape.upgrade is not None:
            if request.shape.success_is_tunnel and 200 <= status < 300 and not shape.accepts_tunnel:
                # A page, say, which the client would read as frames of the tunnel.
                detail = "it answered a handshake with success and did not switch"
                self._fail(ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM, detail=detail))
                return
            self._status = 101 if shape.accepts_tunnel else status
            self._deadline_s = 0.0  # of the handshake; a tunnel lives as long as something moves
            if request.continuity is not None and shape.accepts_tunnel:
                endpoint, credential = self._endpoint, self._credential
                assert endpoint is not None
                assert credential is not None
                if go_on(request.continuity, core.table.sessions, endpoint, lease.replica.id, credential):
                    core.takeovers.enter(request.continuity)
            self._downstream.send_head(head, end)
            if shape.accepts_tunnel:  # refused, what the client sends is held until it is dropped: it is no body
                self._is_held = False
                self._downstream.release(HOLD_NO_UPSTREAM)
        else:
            self._status = status
            self._has_length = head.length is not None
            self._grpc_status = shape.grpc_status
            self._downstream.send_head(head, end)
        if end:
            self._finish(None)

    def response_data(self, data: bytes, end: bool) -> None:
        """Relay body bytes."""
        self._sent_bytes += len(data)
        if self._is_event_stream:
            now = self._core.clock.now
            self._counters.event_gap.observe_gap(now - self._last_event_s)
            self._last_event_s = now
            self._last_event = data
        self._downstream.send_data(data, end)
        if end:
            if self._status == 101:
                self._end_tunnel()
            else:
                self._finish(None)

    def response_trailers(self, trailers: Headers) -> None:
        """Relay the trailers if the client said that it takes them (RFC 9110 §6.5.1)."""
        request = self._head
        assert request is not None
        if request.shape.is_grpc:
            for name, value in trailers:
                if name == b"grpc-status":
                    self._grpc_status = read_grpc_status(value)
        if request.shape.takes_trailers:
            self._downstream.send_trailers(trailers)
        else:
            self._counters.dropped_trailers += 1
            self._downstream.send_data(b"", True)
        self._finish(None)

    def response_reset(self, error: ProxyError) -> None:
        """Retry if nothing of the request was taken; else the client learns that the replica failed."""
        if not self._retry(error):
            self._upstream = None
            self._fail(error)

    def response_refused(self, error: ProxyError) -> None:
        """Answer in the replica's stead: it said in its first event that it did nothing with the request."""
        self._reached = REACHED_NO
        self._fail(error)

    def pause_request(self) -> None:
        """Stop the client: the replica takes no more."""
        self._downstream.hold(HOLD_PEER_FULL)

    def resume_request(self) -> None:
        """Let the client go on."""
        self._downstream.release(HOLD_PEER_FULL)

    # -- deadlines ------------------------------------------------------------------------------------

    def _await_first_byte(self, now: float) -> None:
        """Give the replica its time, now that it has the whole request: an upload takes what its client takes."""
        self._first_byte_deadline_s = now + self._first_byte_s
        self._core.wheel.watch(self)

    def handle_deadline(self, now: float) -> None:
        """End the request whose time is up."""
        first = self._first_byte_deadline_s
        if self._refusal is not None:
            self._fail(self._refusal)
        elif first and first <= now:
            self._fail(ProxyError(Kind.FIRST_BYTE_TIMEOUT, Source.UPSTREAM))
        elif self._body_head is not None and not 0.0 < self._deadline_s <= now:
            self._handle_late_body(now)
        elif self._look_again_s and not 0.0 < self._deadline_s <= now:
            if self._look_anew():
                self._look_again()
        else:
            self._fail(ProxyError(Kind.DEADLINE, Source.ROUTER))
