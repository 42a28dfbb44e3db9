"""H3Server on our own engine, with aioquic as the client: real packets, TLS and loss, over a link in memory."""

import heapq
import itertools
import random
import ssl

import pytest
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamReset
from bearer import CONNECT, GET, POST, H3Receiver
from h1kit import FAILED, response

from router.errors import Kind, ProxyError, Source
from router.stream import HOLD_PEER_FULL
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h3 import frames
from router.transport.codec.h3.server import H3Server
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.quic.handshake import Tickets
from router.transport.codec.quic.server import ServerConnection
from tests.certkit import Authority
from tests.transport.codec.quic.rig import CLIENT, SERVER, End, OneIdentity

_pair = Authority().sign("robot.test")


class Pair:
    """aioquic's connection and ours, and virtual time."""

    def __init__(self, loss=0.0, seed=1, tickets=None, ticket=None, on_event=None, connect=True, **limits):
        self.now = 1_000.0
        self.loss = loss
        self.random = random.Random(seed)
        self.requests = []
        self.refused = []
        self.floods = 0
        self.on_event = on_event
        self.limits = ServerLimits(**limits)
        self.config = QuicConfig(is_server=True, alpn=["h3"])
        self.config.identities = OneIdentity(_pair)
        self.config.tickets = tickets or Tickets()
        self.owner = End(self._make)
        self.server = None
        self.codec = None
        self.tickets = []
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE, server_name="robot.test",
            session_ticket=ticket,
        )  # fmt: skip
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=self.tickets.append)
        self.h3 = H3Connection(self.quic)
        self.events = []
        self.quic_events = []
        self.queue = []
        self.count = itertools.count()
        self.quic.connect(SERVER, self.now)
        if connect:
            assert self.run(lambda: self.codec is not None and self.codec.saw_settings and self.h3.received_settings)

    def _make(self, bearer):
        def on_request(stream):
            receiver = H3Receiver(self)
            receiver.stream = stream
            receiver.on_event = self.on_event
            self.requests.append(receiver)
            return receiver

        def on_flood():
            self.floods += 1

        self.codec = H3Server(bearer, on_request, self.refused.append, on_flood, self.limits, self.now)
        return self.codec

    def _push(self, data, to_server):
        if self.random.random() >= self.loss:
            heapq.heappush(self.queue, (self.now + 0.005, next(self.count), to_server, data))

    def _send(self):
        for data, _ in self.quic.datagrams_to_send(self.now):
            self._push(data, True)
        if self.server is not None:
            for burst in self.server.datagrams_to_send(self.now):
                for piece in burst.pieces:
                    self._push(piece, False)
            self.server.deliver_drained()

    def _deliver(self, to_server, data):
        if not to_server:
            self.quic.receive_datagram(data, SERVER, self.now)
            self._read_events()
            return
        if self.server is None:
            first = data[6 : 6 + data[5]]
            self.server = ServerConnection(self.config, self.owner, self.now, CLIENT, None, first, first, False)
        self.server.receive(data, 0, CLIENT, None, self.now)

    def _read_events(self):
        event = self.quic.next_event()
        while event is not None:
            self.quic_events.append(event)
            self.events += self.h3.handle_event(event)
            event = self.quic.next_event()

    def _deadlines(self):
        yield self.quic, self.quic.get_timer()
        if self.server is not None:
            yield self.server, self.server.next_deadline()
            if self.codec is not None and not self.server.is_over:
                yield self.codec, self.codec.next_deadline()

    def run(self, until, limit_s=20.0):
        """Go on until that holds; False if it does not within so long."""
        end_s = self.now + limit_s
        while self.now < end_s:
            self._send()
            if until():
                return True
            times = [at for _, at in self._deadlines() if at is not None and at < 1e11]
            if self.queue:
                times.append(self.queue[0][0])
            if not times or min(times) > end_s:
                self.now = end_s
                return until()
            self.now = max(self.now, min(times))
            while self.queue and self.queue[0][0] <= self.now:
                _, _, to_server, data = heapq.heappop(self.queue)
                self._deliver(to_server, data)
            for one, at in list(self._deadlines()):
                if at is not None and at <= self.now:
                    (one.handle_timer if one is self.quic else one.handle_deadline)(self.now)
            self._read_events()
        return until()

    def pass_time(self, seconds):
        self.run(lambda: False, seconds)

    def send(self, fields, *bodies, end=True):
        stream_id = self.quic.get_next_available_stream_id()
        as_bytes = [(n.encode(), v.encode()) for n, v in fields]
        self.h3.send_headers(stream_id, as_bytes, end_stream=end and not bodies)
        for i, body in enumerate(bodies, 1):
            self.h3.send_data(stream_id, body, end_stream=end and i == len(bodies))
        return stream_id

    def receiver(self, index=-1):
        assert self.run(lambda: self.requests)
        return self.requests[index]

    def heads(self, stream_id):
        return [dict(e.headers) for e in self.events if isinstance(e, HeadersReceived) and e.stream_id == stream_id]

    def body(self, stream_id):
        return b"".join(e.data for e in self.events if isinstance(e, DataReceived) and e.stream_id == stream_id)

    def ended(self, stream_id):
        return any(getattr(e, "stream_ended", False) for e in self.events if e.stream_id == stream_id)

    def answer(self, receiver, status=200, body=b"ok", **head):
        receiver.stream.send_head(response(status, len(body), **head), not body)
        if body:
            receiver.stream.send_data(body, True)

    def terminated(self):
        return [e.error_code for e in self.quic_events if isinstance(e, ConnectionTerminated)]


def answer_at_end(receiver, what):
    if what == "end" or (what == "head" and receiver.ended):
        receiver.bench.answer(receiver, body=receiver.body or b"ok")


LOSSES = pytest.mark.parametrize("loss", [0.0, 0.05])


@LOSSES
def test_requests_and_answers(loss):
    pair = Pair(loss, on_event=answer_at_end)
    ids = [pair.send(POST, b"x" * size) for size in (1, 1_000, 20_000)] + [pair.send(GET)]
    assert pair.run(lambda: all(pair.ended(i) for i in ids))
    assert [len(pair.body(i)) for i in ids] == [1, 1_000, 20_000, 2]
    assert pair.run(lambda: not pair.codec.streams), "all of them are gone"
    assert pair.requests[0].head.shape.version == b"HTTP/3"


@LOSSES
def test_a_megabyte_each_way(loss):
    pair = Pair(loss, on_event=answer_at_end)
    stream_id = pair.send([*POST, ("content-length", "3000000")], *[bytes((i,)) * 100_000 for i in range(30)])
    assert pair.run(lambda: pair.ended(stream_id), 300.0)
    assert pair.body(stream_id) == b"".join(bytes((i,)) * 100_000 for i in range(30))


def test_a_held_upload_stops_the_client():
    """Nothing is credited, so the client stops at the stream's window; the connection has room for others."""
    held = []

    def hold(receiver, what):
        if what == "head" and not held:
            held.append(receiver)
            receiver.hold(HOLD_PEER_FULL)
        elif receiver not in held:
            answer_at_end(receiver, what)

    pair = Pair(on_event=hold)
    stream_id = pair.send(POST, b"x" * 3_000_000)
    pair.pass_time(2.0)
    assert held[0].body == b""
    assert pair.server.streams.received_bytes <= (1 << 20) + 10_000
    other = pair.send(POST, b"y" * 1_000)
    assert pair.run(lambda: pair.ended(other))
    held[0].release(HOLD_PEER_FULL)
    assert pair.run(lambda: held[0].ended, 100.0)
    assert len(held[0].body) == 3_000_000
    pair.answer(held[0])
    assert pair.run(lambda: pair.ended(stream_id))


def test_what_was_held_to_the_end_is_given_back_to_the_connection():
    """Held with its FIN, then delivered: many times the connection's window goes through."""
    held = []

    def hold(receiver, what):
        if what == "head":
            receiver.hold(HOLD_PEER_FULL)
            held.append(receiver)
        else:
            answer_at_end(receiver, what)

    pair = Pair(on_event=hold)
    for i in range(30):
        stream_id = pair.send(POST, b"x" * 900_000)
        assert pair.run(lambda i=i: len(held) == i + 1)
        pair.pass_time(0.3)
        held[i].release(HOLD_PEER_FULL)
        assert pair.run(lambda stream_id=stream_id: pair.ended(stream_id), 60.0), i


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_dropped_while_held_is_given_back(answers):
    held = []

    def hold(receiver, what):
        if what == "head":
            receiver.hold(HOLD_PEER_FULL)
            held.append(receiver)

    pair = Pair(on_event=hold)
    for i in range(30):
        pair.send(POST, b"x" * 900_000)
        assert pair.run(lambda i=i: len(held) == i + 1), i
        pair.pass_time(0.3)
        if answers:
            pair.answer(held[i])
        else:
            held[i].stream.reset(FAILED)
        pair.pass_time(0.1)
    assert not pair.terminated()


def test_a_client_that_cancels():
    pair = Pair()
    stream_id = pair.send(POST, b"x", end=False)
    receiver = pair.receiver()
    pair.quic.reset_stream(stream_id, frames.REQUEST_CANCELLED)
    pair.quic.stop_stream(stream_id, frames.REQUEST_CANCELLED)
    assert pair.run(lambda: receiver.error is not None)
    assert receiver.error.kind is Kind.CLIENT_GONE
    assert pair.run(lambda: not pair.codec.streams)


def test_a_client_that_wants_no_answer():
    pair = Pair()
    stream_id = pair.send(GET)
    receiver = pair.receiver()
    pair.quic.stop_stream(stream_id, frames.REQUEST_CANCELLED)
    assert pair.run(lambda: receiver.error is not None)
    assert pair.run(lambda: not pair.codec.streams)


def test_a_response_that_fails():
    pair = Pair()
    stream_id = pair.send(GET)
    stream = pair.receiver().stream
    stream.send_head(response(200), False)
    stream.send_data(b"half", False)
    assert pair.run(lambda: pair.body(stream_id))
    stream.reset(FAILED)
    assert pair.run(lambda: any(isinstance(e, StreamReset) and e.error_code == 0x102 for e in pair.quic_events))


def test_an_early_answer():
    pair = Pair()
    stream_id = pair.send(POST, b"x" * 10_000, end=False)
    pair.answer(pair.receiver(), 413)
    assert pair.run(lambda: pair.ended(stream_id))
    assert pair.heads(stream_id)[0][b":status"] == b"413"
    assert pair.run(lambda: not pair.codec.streams), "aioquic answers STOP_SENDING with RESET_STREAM"


def test_a_slow_reader_holds_the_replica():
    """aioquic gives credit as it reads, so its window is what a large answer fills before the first of it arrives."""
    pair = Pair()
    stream_id = pair.send(GET)
    receiver = pair.receiver()
    receiver.stream.send_head(response(200), False)
    paused = []
    receiver.pause_response = lambda: paused.append("pause")
    receiver.resume_response = lambda: paused.append("resume")
    for _ in range(3):
        receiver.stream.send_data(b"x" * 1_000_000, False)
        pair._send()
    assert paused == ["pause"]
    assert pair.run(lambda: paused == ["pause", "resume"], 60.0)
    receiver.stream.send_data(b"", True)
    assert pair.run(lambda: pair.ended(stream_id), 60.0)
    assert len(pair.body(stream_id)) == 3_000_000


def test_a_websocket():
    pair = Pair()
    stream_id = pair.send(CONNECT, end=False)
    receiver = pair.receiver()
    receiver.stream.send_head(response(200, tunnel=True), False)
    pair.h3.send_data(stream_id, b"\x81\x80abcd", end_stream=False)
    assert pair.run(lambda: receiver.body == b"\x81\x80abcd")
    receiver.stream.reset(ProxyError(Kind.DRAINING, Source.ROUTER))
    assert pair.run(lambda: pair.ended(stream_id))
    assert pair.body(stream_id) == b"\x88\x0a\x03\xf4draining"


@LOSSES
def test_drain(loss):
    pair = Pair(loss)
    first = pair.send(GET)
    pair.receiver()
    pair.codec.drain()
    second = pair.send(GET)
    assert pair.run(lambda: len(pair.requests) == 2)
    pair.pass_time(2.0)
    for receiver in pair.requests:
        pair.answer(receiver, body=b"x" * 50_000)
    assert pair.run(pair.terminated)
    assert pair.terminated() == [frames.NO_ERROR]
    assert len(pair.body(first)) == len(pair.body(second)) == 50_000


def test_cut_says_why():
    pair = Pair()
    stream_id = pair.send(CONNECT, end=False)
    receiver = pair.receiver()
    receiver.stream.send_head(response(200, tunnel=True), False)
    receiver.on_event = lambda receiver, what: what == "reset" and receiver.stream.reset(receiver.error)
    assert pair.run(lambda: pair.heads(stream_id))
    pair.codec.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
    assert pair.run(pair.terminated)
    assert pair.body(stream_id) == b"\x88\x0a\x03\xf4draining" and pair.terminated() == [frames.NO_ERROR]


def test_a_fault_ends_the_connection_with_its_code():
    pair = Pair()
    stream_id = pair.quic.get_next_available_stream_id()
    pair.quic.send_stream_data(stream_id, b"\0\x01x")
    assert pair.run(pair.terminated)
    assert pair.terminated() == [frames.FRAME_UNEXPECTED]


@pytest.mark.parametrize("which", ["_local_control_stream_id", "_local_encoder_stream_id", "_local_decoder_stream_id"])
def test_a_critical_stream_that_is_reset(which):
    pair = Pair()
    pair.send(GET)
    pair.receiver()
    pair.quic.reset_stream(getattr(pair.h3, which), frames.NO_ERROR)
    assert pair.run(pair.terminated)
    assert pair.terminated() == [frames.CLOSED_CRITICAL_STREAM]


def test_a_lost_client_is_told_to_the_exchange():
    pair = Pair()
    pair.send(POST, b"x", end=False)
    receiver = pair.receiver()
    pair.quic.close(frames.NO_ERROR)
    assert pair.run(lambda: receiver.error is not None)
    assert receiver.error.kind is Kind.CLIENT_GONE and not pair.codec.active


def test_early_data():
    """A second connection asks in its first flight; what is not safe to repeat is turned away, later it is not."""
    tickets = Tickets()
    first = Pair(tickets=tickets)
    assert first.run(lambda: first.tickets)
    pair = Pair(tickets=tickets, ticket=first.tickets[0], connect=False, on_event=answer_at_end)
    get, post = pair.send(GET), pair.send(POST, b"x")
    assert pair.run(lambda: pair.ended(get) and pair.ended(post))
    assert pair.quic.tls.early_data_accepted
    assert pair.heads(get)[0][b":status"] == b"200" and pair.heads(post)[0][b":status"] == b"425"
    assert pair.requests[0].head.added == [(b"early-data", b"1")]
    again = pair.send(POST, b"x")
    assert pair.run(lambda: pair.ended(again))
    assert pair.heads(again)[0][b":status"] == b"200" and pair.requests[1].head.added == []


def test_many_requests_leave_nothing_behind():
    """More than the limit of streams at a time, one after another."""
    pair = Pair(on_event=answer_at_end)
    for _ in range(600):
        stream_id = pair.send(GET)
        assert pair.run(lambda stream_id=stream_id: pair.ended(stream_id))
    assert pair.run(lambda: not pair.codec.streams)
    assert len(pair.server.streams.flows) < 10
