"""How one request ends: its state, the answer where no replica gives one, its record. The base of `exchange`.

Invariant: `_finish` runs exactly once, on cancel too; it releases the lease and writes the record. After it nothing
is sent and nothing heard. Imports no asyncio and no protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.counters import bucket
from router.engine_manners import abort
from router.errors import WIRE, Kind, ProxyError, Retry
from router.http import NO_GRPC_STATUS
from router.local_reply import error_event, grpc_reply, grpc_trailers, local_reply
from router.outcomes import answer_outcome, failure_outcome, move_outcome
from router.routing.balancer import PickContext
from router.stream import HOLD_NO_UPSTREAM, PendingStream, RequestReceiver, ResponseReceiver

if TYPE_CHECKING:
    from router.body_head import BodyHead
    from router.core import Core, Peer
    from router.exchange_session import SessionVisit
    from router.http import Headers, RequestHead
    from router.routing.credentials import Credential
    from router.routing.load import Lease, Replica
    from router.routing.prefix import Prompt
    from router.routing.table import Endpoint
    from router.stream import DownstreamStream, UpstreamStream

TUNNEL_END_S: Final = 30.0  # for a replica to end a tunnel whose client has ended it
REFUSAL_WAIT_S: Final = 2.0  # for a refused request's small body, before the answer is given without it
MAX_DISCARD_BYTES: Final = 65_536  # of that body, read so that the connection can be kept

REACHED_NO: Final = b"no"
REACHED_MAYBE: Final = b"maybe"
REACHED_YES: Final = b"yes"
_SILENT: Final = (Kind.CLIENT_GONE, Kind.CLIENT_STALLED)  # nobody is there to be answered


class ExchangeEnding(PickContext, RequestReceiver, ResponseReceiver):
    """What is known of one request and its response, and every way in which they end."""

    __slots__ = (
        "_body_due_s",
        "_body_head",
        "_connected_s",
        "_core",
        "_counters",
        "_credential",
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
        "_is_counted",
        "_is_event_stream",
        "_is_held",
        "_last_event",
        "_last_event_s",
        "_lease",
        "_look_again_s",
        "_max_body_bytes",
        "_opened_s",
        "_overhead_s",
        "_peer",
        "_pending",
        "_pin",
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
        "_trailers",
        "_ttfb_s",
        "_tunnel_ends",
        "_upstream",
        "_visit",
        "_wait_until_s",
        "_waited_s",
        "affinity",
        "prompt",
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
        self._visit: SessionVisit | None = None
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
        self._reached = REACHED_NO
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
        self._credential: Credential | None = None
        self._is_counted = False  # in what the endpoint has in flight
        self._body_head: BodyHead | None = None  # while the endpoint depends on it
        self._body_due_s = 0.0
        self._trailers: Headers | None = None  # until somebody takes them
        self._is_held = False  # the client's side, until somebody takes the body
        self._wait_until_s = 0.0  # for a cold start
        self._look_again_s = 0.0
        self._waited_s = 0.0
        self._pin = b""
        self.affinity = b""
        self.prompt: Prompt | None = None
        self.tried: tuple[Replica, ...] = ()
        self.watch_tick = -1

    def next_deadline(self) -> float | None:
        """The first of total deadline and first byte, or when to look for a replica again; None once finished."""
        if self._finished:
            return None
        total, first = self._deadline_s, self._first_byte_deadline_s or self._look_again_s
        return (min(total, first) if total and first else total or first) or None

    def handle_deadline(self, now: float) -> None:
        """Act on a time that has passed; part of the deadline wheel's contract."""
        raise NotImplementedError

    def _refuse(self, error: ProxyError) -> None:
        """Answer without a replica. A short body is read first, so that the connection can be kept."""
        head = self._head
        assert head is not None
        self._uncount()  # what is refused is no load, however slowly its body comes
        length = head.length
        if (
            self._head_ends
            or self._replay_ended
            or self._trailers is not None
            or length is None
            or length > MAX_DISCARD_BYTES
            or self._received_bytes
            or head.shape.expects_continue
        ):
            self._fail(error)
            return
        self._refusal = error
        self._look_again_s = 0.0
        self._deadline_s = self._core.clock.now + REFUSAL_WAIT_S
        self._core.wheel.watch(self)
        self._is_held = False
        self._downstream.release(HOLD_NO_UPSTREAM)

    def _count_wait(self, change: int) -> None:
        """Count who waits: a start of a session is in flight nowhere, any other is on the endpoint."""
        if self._visit is None:
            self._counters.waiting += change
        else:
            self._counters.starting += change

    def _uncount(self) -> None:
        """Leave what the endpoint has in flight, once."""
        endpoint = self._endpoint
        if self._is_counted and endpoint is not None:
            self._is_counted = False
            self._counters.in_flight -= 1
            if endpoint.load.is_shared:
                endpoint.load.publish()

    def _discard(self, end: bool) -> None:
        assert self._refusal is not None
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
        durations.counts[bucket(duration_s)] += 1
        durations.sum_s += duration_s
        endpoint = self._endpoint
        if endpoint is not None:
            if self._is_counted:  # `_uncount`, written out
                self._is_counted = False
                counters.in_flight -= 1
                if endpoint.load.is_shared:
                    endpoint.load.publish()
            if self._wait_until_s:
                self._count_wait(-1)
            if self._visit is not None and self._visit.session is not None:
                core.table.sessions.leave(self._visit.session)
            if self._ttfb_s:
                first_bytes, overheads = counters.first_byte, counters.overhead
                first_bytes.counts[bucket(self._ttfb_s)] += 1
                first_bytes.sum_s += self._ttfb_s
                overheads.counts[bucket(self._overhead_s)] += 1
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
        self._body_head = None
        self._trailers = None
        self._credential = None
        self._endpoint = None
        self.prompt = None
        self.tried = ()
        self._last_event = b""
