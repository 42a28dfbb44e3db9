"""THE CORE: one request from its head to its finish, whatever the protocols on either side.

    client's codec --request_*--> Exchange --send_*--> replica's codec
    client's codec <--send_*----- Exchange <--response_*-- replica's codec

Way of a request: gate -> table.route -> picker.pick -> pool.open -> relay both ways -> finish. No queue:
it is answered at once where no replica can take it. The only retry is of a request that provably never
reached a replica: connect refused, or a pooled connection of which the peer acknowledged no byte.

Invariant: `_finish` runs exactly once, on cancel too; it releases the lease and writes the record. After
it nothing is sent and nothing heard. Imports no asyncio and no protocol.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from router.core import OVERLOADED
from router.counters import BOUNDS_S
from router.deadlines import NEVER
from router.engine_manners import FirstEventGuard, abort
from router.errors import WIRE, Kind, ProxyError, Retry, Source
from router.grpc_fields import read_grpc_status
from router.http import NO_FIELDS, NO_GRPC_STATUS, ResponseHead
from router.local_reply import error_event, grpc_reply, grpc_trailers, local_reply
from router.outcomes import answer_outcome, failure_outcome, move_outcome
from router.request_fields import accepted_id, asked_timeout_s, forward_timeouts
from router.routing.load import OUTCOME_CANCELLED, Lease
from router.stream import HOLD_NO_UPSTREAM, HOLD_PEER_FULL, PendingStream, RequestReceiver, ResponseReceiver

if TYPE_CHECKING:
    from router.core import Core, Peer
    from router.http import Field, Headers, RequestHead
    from router.routing.load import Replica
    from router.routing.table import Endpoint
    from router.stream import DownstreamStream, UpstreamStream

MAX_REPLAY_BYTES: Final = 65_536  # of a request's body, kept while it might have to be sent again
REPLAY_PIECE_BYTES: Final = 4_096
REFUSAL_WAIT_S: Final = 2.0  # for that body, before the answer is given without it
MAX_DISCARD_BYTES: Final = 65_536  # of a refused request's body, read so that the connection can be kept

_REACHED_NO: Final = b"no"
_REACHED_MAYBE: Final = b"maybe"
_REACHED_YES: Final = b"yes"
_UNBUFFERED: Final[Field] = (b"x-accel-buffering", b"no")
_SILENT: Final = (Kind.CLIENT_GONE, Kind.CLIENT_STALLED)  # nobody is there to be answered

class Exchange(RequestReceiver, ResponseReceiver):
    """One request and its response. Implements `RequestReceiver` and `ResponseReceiver`."""

    __slots__ = (
        "_connected_s",
        "_core",
        "_counters",
        "_deadline_s",
        "_downstream",
        "_endpoint",
        "_finished",
        "_first_byte_deadline_s",
        "_first_byte_s",
        "_grpc_status",
        "_has_length",
        "_head",
        "_head_ends",
        "_is_event_stream",
        "_last_event",
        "_last_event_s",
        "_lease",
        "_max_body_bytes",
        "_opened_s",
        "_overhead_s",
        "_peer",
        "_pending",
        "_reached",
        "_received_bytes",
        "_refusal",
        "_replay",
        "_replay_ended",
        "_request_id",
        "_response_paused",
        "_retries",
        "_rid",
        "_sent_bytes",
        "_sent_s",
        "_started_s",
        "_status",
        "_timeouts_at",
        "_ttfb_s",
        "_tunnel_ends",
        "_upstream",
        "tried",
        "watch_tick",
    )

    def __init__(self, core: Core, downstream: DownstreamStream, peer: Peer) -> None:
        self._core = core
        self._downstream = downstream
        self._peer = peer
        self._upstream: UpstreamStream | None = None
        self._pending: PendingStream | None = None
        self._lease: Lease | None = None
        self._endpoint: Endpoint | None = None
        self._counters = core.unrouted
        self._head: RequestHead | None = None
        self._request_id = b""
        self._started_s = core.clock.now
        self._opened_s = 0.0
        self._connected_s = 0.0
        self._sent_s = 0.0
        self._overhead_s = 0.0
        self._ttfb_s = 0.0
        self._deadline_s = 0.0
        self._first_byte_deadline_s = 0.0
        self._first_byte_s = 0.0
        self._status = 0
        self._grpc_status = NO_GRPC_STATUS
        self._received_bytes = 0
        self._sent_bytes = 0
        self._max_body_bytes = 0
        self._retries = 0
        self._reached = _REACHED_NO
        self._replay: list[bytes] | None = None
        self._replay_ended = False
        self._head_ends = False
        self._is_event_stream = False
        self._last_event = b""
        self._last_event_s = 0.0
        self._refusal: ProxyError | None = None
        self._response_paused = False
        self._finished = False
        self._rid = b""  # by which an engine that is told of it can be told to stop
        self._tunnel_ends = 0
        self._timeouts_at = 0  # where in the head's added fields what is left of the time is told
        self._has_length = False  # the answer declared one
        self.tried: tuple[Replica, ...] = ()
        self.watch_tick = -1

    # -- from the client ------------------------------------------------------------------------------

    def request_head(self, head: RequestHead, end: bool) -> None:
        """Decide, from the table as it is now, and send the head on."""
        core = self._core
        self._head = head
        self._head_ends = end
        core.in_flight += 1
        shape = head.shape
        known = shape.known
        self._request_id = request_id = (
            core.make_id() if known is NO_FIELDS else accepted_id(known) or core.make_id()
        )
        host = shape.authority
        if core.trusted_hops and known is not NO_FIELDS:
            self._peer = self._peer.behind(known, core.trusted_hops)
            host = known.get(b"x-forwarded-host", host)
        endpoint = core.table.route(shape.authority, shape.path)
        refusal = OVERLOADED if core.shed_share and core.sheds() else core.gate.check(head, self._peer)
        if refusal is not None or endpoint is None:
            # A table without any endpoint is one that has not come yet: try again, rather than never.
            missing = Kind.NO_ROUTE if core.table.endpoints else Kind.NO_REPLICA
            self._refuse(refusal or ProxyError(missing, Source.ROUTER))
            return
        self._endpoint = endpoint
        self._counters = counters = endpoint.counters
        counters.in_flight += 1
        limit = endpoint.limits.max_body_bytes
        if limit and shape.upgrade is None:
            self._max_body_bytes = limit
            if head.length is not None and head.length > limit:
                detail = f"the limit is {limit} bytes"
                self._refuse(ProxyError(Kind.BODY_TOO_LARGE, Source.DOWNSTREAM, detail=detail))
                return
        timeouts = endpoint.timeouts
        self._downstream.limit_idle(timeouts.idle_s)
        if timeouts.total_s:
            self._deadline_s = self._started_s + timeouts.total_s
        forwarded_for = self._peer.forwarded_for
        if known is not NO_FIELDS:
            refusal = self._take_timeouts(known)
            if refusal is not None:
                self._refuse(refusal)
                return
            before = known.get(b"x-forwarded-for")
            if before:
                forwarded_for = (b"x-forwarded-for", before + b", " + forwarded_for[1])
        # What a client says of its own host and scheme is not believed, unless it is a proxy that we trust;
        # its chain of addresses is kept.
        head.added += (
            (b"x-request-id", request_id),
            forwarded_for,
            (b"x-forwarded-host", host),
            self._peer.forwarded_proto,
        )
        if endpoint.mends_sglang and shape.method == b"POST":
            self._rid = core.make_id()
            head.added.append((b"x-override-rid", self._rid))
        if self._deadline_s:
            self._timeouts_at = len(head.added)
            core.wheel.watch(self)
        self._open(fresh=False)

    def request_data(self, data: bytes, end: bool) -> None:
        """Relay body bytes; keep them while the request might have to be repeated."""
        self._received_bytes = received = self._received_bytes + len(data)
        upstream = self._upstream
        if self._max_body_bytes and received > self._max_body_bytes and self._refusal is None:
            self._fail(ProxyError(Kind.BODY_TOO_LARGE, Source.DOWNSTREAM))
            return
        if upstream is None:
            self._discard(len(data), end)
            return
        replay = self._replay
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
            elif self._first_byte_s and not self._status:
                self._await_first_byte(self._core.clock.now)

    def request_trailers(self, trailers: Headers) -> None:
        """Relay the trailers; a request that has them is not repeated."""
        self._replay = None
        if self._upstream is not None:
            self._upstream.send_trailers(trailers)
            if self._first_byte_s and not self._status:
                self._await_first_byte(self._core.clock.now)
        else:
            self._discard(0, True)

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

    # -- the replica ----------------------------------------------------------------------------------

    def _open(self, *, fresh: bool) -> None:
        """Pick a replica and get a stream to it, at once from the pool or pending."""
        endpoint = self._endpoint
        assert endpoint is not None
        core = self._core
        now = core.clock.now
        lease = endpoint.picker.pick(self, now)
        if isinstance(lease, Kind):
            self._refuse(ProxyError(lease, Source.ROUTER))
            return
        self._lease = lease
        receiver: ResponseReceiver = FirstEventGuard(self) if endpoint.mends_sglang else self
        stream = core.pool.open(lease.replica, receiver, endpoint.dial, fresh=fresh)
        if isinstance(stream, ProxyError):
            self.upstream_failed(stream)
            return
        if isinstance(stream, PendingStream):
            self._pending = stream
            self._opened_s = now
            if not self._head_ends:
                self._downstream.hold(HOLD_NO_UPSTREAM)
            return
        self._send(stream)

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
        self._reached = _REACHED_MAYBE
        if self._timeouts_at:  # what is left now, behind a connect or another replica's try
            del head.added[self._timeouts_at :]
            forward_timeouts(head, head.shape.known, self._deadline_s - self._core.clock.now)
        stream.send_head(head, self._head_ends)
        replay = self._replay
        if replay:
            for i, data in enumerate(replay, 1):
                stream.send_data(data, self._replay_ended and i == len(replay))
        if not stream.may_be_untouched:
            self._replay = None
        elif replay is None:
            self._replay = []
        endpoint = self._endpoint
        assert endpoint is not None
        self._sent_s = now = self._core.clock.read()
        self._overhead_s = now - self._started_s - self._connected_s
        self._first_byte_s = endpoint.timeouts.first_byte_s
        if self._first_byte_s and (self._head_ends or self._replay_ended or head.shape.upgrade is not None):
            self._await_first_byte(now)
        if not self._head_ends:
            if head.shape.upgrade is not None:
                # RFC 6455 §4.1: nothing of the tunnel may pass before the replica answered 101.
                self._downstream.hold(HOLD_NO_UPSTREAM)
            elif self._opened_s or self._retries:
                self._downstream.release(HOLD_NO_UPSTREAM)

    def _retry(self, error: ProxyError) -> bool:
        """Start over where the request provably reached nobody; False if it may not be repeated."""
        endpoint, lease, upstream, core = self._endpoint, self._lease, self._upstream, self._core
        if endpoint is None or lease is None or self._status:
            return False
        newer = core.table.endpoints.get(endpoint.name)
        if newer is not None:  # the one in force when the request came may be many versions old by now
            self._endpoint = endpoint = newer
        untouched = error.retry is Retry.SAFE
        if error.retry is Retry.IF_REUSED and upstream is not None and upstream.may_be_untouched:
            untouched = upstream.is_untouched()
        if not untouched:
            return False
        self._reached = _REACHED_NO
        if self._retries >= endpoint.max_retries or not core.may_retry():
            return False
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
        if not self._head_ends:
            self._downstream.hold(HOLD_NO_UPSTREAM)
        self._open(fresh=True)
        return True

    # -- from the replica -----------------------------------------------------------------------------

    def response_informational(self, head: ResponseHead) -> None:
        """Pass a 1xx on."""
        self._reached = _REACHED_YES
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
        self._reached = _REACHED_YES
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
        if self._connected_s:
            timing = b"router;dur=%.3f, connect;dur=%.3f, upstream;dur=%.3f" % (
                router_s * 1e3, self._connected_s * 1e3, upstream_s * 1e3,
            )  # fmt: skip
        else:
            timing = b'router;dur=%.3f, connect;dur=0;desc="reused", upstream;dur=%.3f' % (
                router_s * 1e3, upstream_s * 1e3,
            )  # fmt: skip
        if shape.known is not NO_FIELDS and b"server-timing" in shape.known:
            timing = shape.known[b"server-timing"] + b", " + timing
        headers.append((b"server-timing", timing))
        if request.shape.upgrade is not None:
            if request.shape.success_is_tunnel and 200 <= status < 300 and not shape.accepts_tunnel:
                # A page, say, which the client would read as frames of the tunnel.
                detail = "it answered a handshake with success and did not switch"
                self._fail(ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM, detail=detail))
                return
            self._status = 101 if shape.accepts_tunnel else status
            self._deadline_s = 0.0  # of the handshake; a tunnel lives as long as something moves
            self._downstream.send_head(head, end)
            if shape.accepts_tunnel:  # refused, what the client sends is held until it is dropped: it is no body
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
        self._reached = _REACHED_NO
        self._fail(error)

    def pause_request(self) -> None:
        """Stop the client: the replica takes no more."""
        self._downstream.hold(HOLD_PEER_FULL)

    def resume_request(self) -> None:
        """Let the client go on."""
        self._downstream.release(HOLD_PEER_FULL)

    # -- deadlines ------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The first of total deadline and first byte; None once finished."""
        if self._finished:
            return None
        total, first = self._deadline_s, self._first_byte_deadline_s
        return (min(total, first) if total and first else total or first) or None

    def _await_first_byte(self, now: float) -> None:
        """Give the replica its time, now that it has the whole request: an upload takes what its client takes."""
        self._first_byte_deadline_s = now + self._first_byte_s
        self._core.wheel.watch(self)

    def _take_timeouts(self, known: dict[bytes, bytes]) -> ProxyError | None:
        """Apply what the client asks for: the smallest limit wins."""
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

    def handle_deadline(self, now: float) -> None:
        """End the request whose time is up."""
        first = self._first_byte_deadline_s
        if self._refusal is not None:
            self._fail(self._refusal)
        elif first and first <= now:
            self._fail(ProxyError(Kind.FIRST_BYTE_TIMEOUT, Source.UPSTREAM))
        else:
            self._fail(ProxyError(Kind.DEADLINE, Source.ROUTER))

    # -- ends -----------------------------------------------------------------------------------------

    def _refuse(self, error: ProxyError) -> None:
        """Answer without a replica. A short body is read first, so that the connection can be kept."""
        head = self._head
        assert head is not None
        length = head.length
        if (
            self._head_ends
            or length is None
            or length > MAX_DISCARD_BYTES
            or self._received_bytes
            or head.shape.expects_continue
        ):
            self._fail(error)
            return
        self._refusal = error
        self._deadline_s = self._core.clock.now + REFUSAL_WAIT_S
        self._core.wheel.watch(self)
        self._downstream.release(HOLD_NO_UPSTREAM)

    def _discard(self, size: int, end: bool) -> None:
        assert self._refusal is not None, "data came although the request was held"
        if end:
            self._fail(self._refusal)

    def _fail(self, error: ProxyError) -> None:
        """Cancel the replica's side, tell the client as its protocol can, and finish."""
        pending, upstream = self._pending, self._upstream
        if pending is not None:
            pending.cancel()
        if upstream is not None:
            upstream.reset(error)
            endpoint, lease = self._endpoint, self._lease
            # It may generate on: for nobody, whether the client left or the time is up. Not if it refused.
            if self._rid and not self._status and error.kind is not Kind.AT_CAPACITY:
                assert endpoint is not None
                assert lease is not None
                abort(self._core, lease.replica, endpoint.dial, self._rid)
        if error.kind not in _SILENT:
            self._answer(error)
        elif upstream is not None:
            self._counters.aborts += 1
        self._finish(error)

    def _answer(self, error: ProxyError) -> None:
        downstream = self._downstream
        request = self._head
        assert request is not None
        if request.shape.is_grpc:
            self._answer_grpc(error)
            return
        if not self._status:
            self._status = WIRE[error.kind].status
            head, body = local_reply(error, self._reached, self._request_id)
            downstream.send_head(head, False)
            downstream.send_data(body, True)
            return
        if self._is_event_stream:
            downstream.send_data(error_event(error, self._last_event), False)
        downstream.reset(error)

    def _answer_grpc(self, error: ProxyError) -> None:
        """Say it as a status: in trailers alone, or behind what the replica sent so far."""
        self._grpc_status = WIRE[error.kind].grpc
        if self._status and self._has_length:
            self._downstream.reset(error)  # not gRPC's framing: an end would be taken for the whole
            return
        if self._status:
            self._downstream.send_trailers(grpc_trailers(error, self._reached))
            return
        self._status = 200
        self._downstream.send_head(grpc_reply(error, self._reached, self._request_id), True)

    def _end_tunnel(self) -> None:
        """Half-closed once: wait for the other half. Twice: done."""
        self._tunnel_ends += 1
        if self._tunnel_ends == 2:
            self._finish(None)

    def _release(self, outcome: int) -> None:
        lease = self._lease
        if lease is not None:
            self._lease = None
            lease.release(outcome, self._core.clock.now)

    def _finish(self, error: ProxyError | None) -> None:
        assert not self._finished, "an exchange finishes exactly once"
        self._finished = True
        core = self._core
        lease, status, counters = self._lease, self._status, self._counters
        replica_key = lease.replica.key if lease is not None else b""
        flag = code = b""
        if error is None:
            self._release(answer_outcome(status, self._grpc_status))
        else:
            self._release(move_outcome(error.kind) if error.retry is Retry.SAFE else failure_outcome(error.kind))
            if error.kind in _SILENT:
                status = WIRE[error.kind].status
            flag, code = WIRE[error.kind].flag.encode(), error.kind.value.encode()
            counters.codes[error.kind.value] = counters.codes.get(error.kind.value, 0) + 1
        core.in_flight -= 1
        if self._retries:
            core.retrying -= 1
        now = core.clock.now
        duration_s = now - self._started_s
        counters.requests += 1
        counters.statuses[status] = counters.statuses.get(status, 0) + 1
        grpc_status = self._grpc_status
        if grpc_status >= 0:
            counters.grpc_statuses[grpc_status] = counters.grpc_statuses.get(grpc_status, 0) + 1
        counters.bytes_received += self._received_bytes
        counters.bytes_sent += self._sent_bytes
        durations = counters.duration  # written out: a call costs as much as the work in it
        durations.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        durations.sum_s += duration_s
        endpoint = self._endpoint
        if endpoint is not None:
            counters.in_flight -= 1
            if self._ttfb_s:
                first_bytes, overheads = counters.first_byte, counters.overhead
                first_bytes.counts[bisect_left(BOUNDS_S, self._ttfb_s)] += 1
                first_bytes.sum_s += self._ttfb_s
                overheads.counts[bisect_left(BOUNDS_S, self._overhead_s)] += 1
                overheads.sum_s += self._overhead_s
        if core.access_log is not None:
            head = self._head
            assert head is not None
            shape = head.shape
            core.access_log(
                (
                    now,
                    self._request_id,
                    shape.method,
                    shape.authority,
                    shape.path,
                    shape.version,
                    status,
                    flag,
                    code,
                    endpoint.key if endpoint is not None else b"",
                    replica_key,
                    self._received_bytes,
                    self._sent_bytes,
                    duration_s,
                    self._overhead_s,
                    self._ttfb_s,
                    self._peer.address,
                    self._retries,
                    self._reached,
                    grpc_status,
                )
            )
        # The wheel may keep this object for a turn: it must not keep what it was about.
        self._upstream = None
        self._pending = None
        self._replay = None
        self._head = None
        self._last_event = b""
