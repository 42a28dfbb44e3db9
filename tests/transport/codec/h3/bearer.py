"""A QUIC connection without packets, and H3Server on it: what the peer does is called, what we do is kept.

`FakeBearer` keeps the contract of `quic/seam.py`: streams open in order, data comes in order and with credit, what
is queued leaves at a flush as far as the peer's windows let it, a stream is gone when both directions are over and
all of it was taken.
"""

import pylsqpack
from h1kit import T0, Receiver, response

from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h3 import frames
from router.transport.codec.h3.server import H3Server
from router.transport.codec.quic.limits import HIGH_BYTES as HIGH
from router.transport.codec.quic.limits import LOW_BYTES as LOW
from router.transport.codec.quic.limits import STREAM_WINDOW as WINDOW
from router.transport.codec.quic.seam import Bearer, Flow
from router.transport.codec.quic.varint import varint

GET = [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]
CONNECT = [
    (":method", "CONNECT"), (":scheme", "https"), (":path", "/ws"), (":authority", "a"), (":protocol", "websocket"),
    ("sec-websocket-version", "13"),
]  # fmt: skip


def frame(kind, payload=b"", length=None):
    """A frame with whatever is wrong about it."""
    return varint(kind) + varint(len(payload) if length is None else length) + payload


def section(fields):
    """A field section as pylsqpack makes it, Huffman and all, without a dynamic table."""
    encoder = pylsqpack.Encoder()
    encoder.apply_settings(0, 0)
    as_bytes = [tuple(x.encode() if isinstance(x, str) else x for x in field) for field in fields]
    _, block = encoder.encode(0, as_bytes)
    return block


def headers(fields):
    return frame(frames.HEADERS, section(fields))


def data(payload):
    return frame(frames.DATA, payload)


def settings(*pairs):
    return frame(frames.SETTINGS, b"".join(varint(name) + varint(value) for name, value in pairs))


def parse(stream):
    """What a stream of ours holds, as (type, payload)."""
    found, at = [], 0
    while at < len(stream):
        kind = frames.read_varint(stream, at)
        at += frames.varint_bytes(stream[at])
        size = frames.read_varint(stream, at)
        at += frames.varint_bytes(stream[at])
        assert at + size <= len(stream), "a frame that is not whole"
        found.append((kind, stream[at : at + size]))
        at += size
    return found


class FakeFlow(Flow):
    def __init__(self, bearer, stream_id):
        self.bearer = bearer
        self.id = stream_id
        self.user = None
        self.unsent_bytes = 0
        self.queued = b""
        self.sent = b""  # taken by the peer
        self.ends = self.fin = False
        self.window = None  # None: no end to it
        self.was_high = False
        self.reset_code = None
        self.stop_code = None
        self.credited = 0
        self.received = 0
        self.received_end = False  # FIN or reset by the peer
        self.is_gone = False
        self.writes = 0

    def send(self, data, end):
        assert not self.bearer.closed, "sent on a connection that is closed"
        if not self.can_send():
            return
        assert not self.ends, "sent behind the end"
        self.writes += 1
        self.queued += data
        self.unsent_bytes += len(data)
        self.was_high = self.was_high or self.unsent_bytes > HIGH
        self.ends = end
        self.bearer.is_touched = True

    def reset(self, code):
        if self.reset_code is None and not self.fin:
            self.reset_code = code
            self.queued = b""
            self.unsent_bytes = 0
            self.bearer.is_touched = True

    def stop(self, code):
        if self.stop_code is None and not self.received_end:
            self.stop_code = code
            self.bearer.is_touched = True

    def credit(self, size):
        self.credited += size
        assert self.credited <= self.received, "credit for more than was received"

    def can_send(self):
        return self.reset_code is None


class FakeBearer(Bearer):
    def __init__(self):
        self.now = T0
        self.is_server = True
        self.is_early = False
        self.alpn = "h3"
        self.is_touched = False
        self.watches = 0
        self.flows = {}
        self.closed = None
        self.may_open = 3
        self.opened = 0
        self.datagrams = []
        self.datagram_bytes = 1_200
        self.app = None

    def open_stream(self, *, unidirectional):
        assert unidirectional
        if self.opened >= self.may_open:
            return None
        flow = self.flows[4 * self.opened + 3] = FakeFlow(self, 4 * self.opened + 3)
        flow.received_end = True
        self.opened += 1
        return flow

    def send_datagram(self, data):
        if len(data) > self.datagram_bytes:
            return False
        self.datagrams.append(data)
        return True

    def max_datagram_bytes(self):
        return self.datagram_bytes

    def close(self, code, reason=b""):
        assert self.closed is None, "closed twice"
        self.closed = (code, reason)

    def touch(self):
        self.is_touched = True

    def watch(self):
        self.watches += 1

    def unsent_bytes(self):
        return sum(flow.unsent_bytes for flow in self.flows.values())


class H3Receiver(Receiver):
    """A receiver that holds its own stream."""

    stream = None

    def hold(self, why):
        self.held |= why
        self.stream.hold(why)

    def release(self, why):
        self.held &= ~why
        self.stream.release(why)


class ServerBench:
    """A client's bytes go in; `requests` are what exchanges would see."""

    def __init__(self, on_event=None, hold=0, greet=True, host=None, **limits):
        self.requests = []
        self.refused = []
        self.floods = 0
        self.on_event = on_event
        self.hold_all = hold
        self.limits = ServerLimits(**limits)
        self.bearer = FakeBearer()
        self.codec = H3Server(
            self.bearer, self._on_request, self.refused.append, self._on_flood, self.limits, self.bearer.now, host
        )
        self.bearer.app = self.codec
        if greet:
            self.codec.connected()
            self.feed(2, varint(frames.CONTROL_STREAM) + settings(*([] if host is None else [(0x33, 1)])))

    def _on_flood(self):
        self.floods += 1

    def _on_request(self, stream):
        receiver = H3Receiver(self)
        receiver.stream = stream
        receiver.on_event = self.on_event
        self.requests.append(receiver)
        if self.hold_all:
            receiver.hold(self.hold_all)
        return receiver

    @property
    def request(self):
        return self.requests[-1]

    @property
    def now(self):
        return self.bearer.now

    @property
    def is_open(self):
        return self.bearer.closed is None

    @property
    def close_code(self):
        return None if self.bearer.closed is None else self.bearer.closed[0]

    # -- the peer -------------------------------------------------------------------------------------

    def flow(self, stream_id):
        return self.bearer.flows[stream_id]

    def open(self, stream_id):
        flow = self.bearer.flows.get(stream_id)
        if flow is None:
            flow = self.bearer.flows[stream_id] = FakeFlow(self.bearer, stream_id)
            if stream_id & 2:
                flow.fin = True  # we have no side of it
            self.codec.stream_opened(flow)
        return flow

    def feed(self, stream_id, data=b"", end=False, cut=lambda data: [data] if data else [], lone_fin=False):
        """Bytes on one stream, in pieces, each a tick of its own."""
        flow = self.open(stream_id)
        pieces = cut(data)
        if end and (lone_fin or not pieces):
            pieces.append(b"")
        for i, piece in enumerate(pieces):
            if flow.stop_code is not None or self.bearer.closed:
                break  # the engine drops it
            flow.received += len(piece)
            assert flow.received - flow.credited <= WINDOW, "the peer may not send that much"
            last = end and i == len(pieces) - 1
            flow.received_end = flow.received_end or last
            self.codec.stream_data(flow, piece, last)
            self.flush()
        return flow

    def reset(self, stream_id, code=frames.REQUEST_CANCELLED):
        flow = self.open(stream_id)
        flow.received_end = True
        self.codec.stream_reset(flow, code)
        self.flush()

    def stop(self, stream_id, code=frames.REQUEST_CANCELLED):
        flow = self.open(stream_id)
        flow.reset(code)
        self.codec.stream_stopped(flow, code)
        self.flush()

    def lost(self):
        self.codec.connection_lost(0, "", True)
        self.bearer.closed = (0, b"")

    # -- the engine -----------------------------------------------------------------------------------

    def flush(self):
        """Send what the windows allow, until nothing more is asked for."""
        for _ in range(1_000):
            self.bearer.is_touched = False
            if self.bearer.closed:
                return
            self.codec.before_send(self.now)
            for flow in list(self.bearer.flows.values()):
                self._send(flow)
            if not self.bearer.is_touched:
                return
        raise AssertionError("the flush does not end")

    def _send(self, flow):
        size = len(flow.queued) if flow.window is None else min(len(flow.queued), flow.window)
        flow.sent += flow.queued[:size]
        flow.queued = flow.queued[size:]
        flow.unsent_bytes = len(flow.queued)
        if flow.window is not None:
            flow.window -= size
        if flow.was_high and flow.unsent_bytes <= LOW:
            flow.was_high = False
            self.codec.stream_drained(flow)
        flow.fin = flow.fin or (flow.ends and not flow.queued)
        if (flow.fin or flow.reset_code is not None) and flow.received_end and not flow.is_gone:
            flow.is_gone = True
            if not self.bearer.closed:
                self.codec.stream_gone(flow)

    def allow(self, stream_id, size):
        """Open the peer's window."""
        self.flow(stream_id).window += size
        self.flush()

    # -- what came out --------------------------------------------------------------------------------

    def frames(self, stream_id):
        return parse(self.flow(stream_id).sent)

    def heads(self, stream_id):
        decoder = pylsqpack.Decoder(0, 0)
        return [
            [(n.decode(), v.decode()) for n, v in decoder.feed_header(stream_id, payload)[1]]
            for kind, payload in self.frames(stream_id)
            if kind == frames.HEADERS
        ]

    def status(self, stream_id):
        return dict(self.heads(stream_id)[-1]).get(":status")

    def body(self, stream_id):
        return b"".join(payload for kind, payload in self.frames(stream_id) if kind == frames.DATA)

    def goaways(self):
        stream = self.flow(3).sent
        assert stream[:1] == b"\0"
        return [frames.read_varint(payload, 0) for kind, payload in parse(stream[1:]) if kind == frames.GOAWAY]

    def answer(self, receiver=None, status=200, body=b"ok", **head):
        stream = (receiver or self.request).stream
        stream.send_head(response(status, len(body), **head), not body)
        if body:
            stream.send_data(body, True)
        self.flush()

    def expire(self):
        """Let the next deadline pass that does anything; return how long that took."""
        started = self.now
        for _ in range(100):
            deadline = self.codec.next_deadline()
            if deadline is None or deadline > started + 1e6:
                raise AssertionError("there is no deadline")
            self.bearer.now = max(deadline, self.now)
            before = self._state()
            self.codec.handle_deadline(self.now)
            self.flush()
            if self._state() != before:
                return self.now - started
        raise AssertionError("deadlines without an effect")

    def _state(self):
        flows = self.bearer.flows.values()
        return (
            self.bearer.closed,
            [(f.reset_code, f.stop_code, len(f.sent)) for f in flows],
            [r.error for r in self.requests],
        )

    def all_credited(self):
        return all(flow.credited == flow.received for flow in self.bearer.flows.values())
