"""H3Server with aioquic's H3Connection as its client, which nobody here wrote: no network, streams are handed over."""

import contextlib

import hypothesis.strategies as st
import pytest
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.events import StreamDataReceived
from bearer import CONNECT, GET, POST, ServerBench
from h1kit import response
from hypothesis import given, settings

from router.stream import HOLD_PEER_FULL
from router.transport.codec.h3 import frames


class Configuration:
    is_client = True


class Quic:
    """What H3Connection asks of its QUIC connection."""

    _quic_logger = None
    configuration = Configuration()

    def __init__(self):
        self.queued = []
        self.next = {False: 0, True: 2}
        self.closed = None

    def get_next_available_stream_id(self, is_unidirectional=False):
        found = self.next[is_unidirectional]
        self.next[is_unidirectional] += 4
        return found

    def send_stream_data(self, stream_id, data, end_stream=False):
        self.queued.append((stream_id, data, end_stream))

    def close(self, error_code, reason_phrase=""):
        self.closed = (error_code, reason_phrase)


class Client:
    """aioquic at one end, a bench at the other."""

    def __init__(self, cut=None, **options):
        self.bench = ServerBench(greet=False, **options)
        self.quic = Quic()
        self.cut = cut or (lambda data: [data] if data else [])
        self.bench.codec.connected()
        self.h3 = H3Connection(self.quic)
        self.read = {}
        self.fins = set()
        self.events = []
        self.exchange()

    def open(self):
        return self.quic.get_next_available_stream_id()

    def send(self, stream_id, fields, *bodies, trailers=None):
        as_bytes = [(n.encode(), v.encode()) for n, v in fields]
        self.h3.send_headers(stream_id, as_bytes, end_stream=not bodies and trailers is None)
        for i, body in enumerate(bodies, 1):
            self.h3.send_data(stream_id, body, end_stream=i == len(bodies) and trailers is None)
        if trailers is not None:
            self.h3.send_headers(stream_id, trailers, end_stream=True)

    def exchange(self):
        """Everything queued goes over, both ways."""
        queued, self.quic.queued = self.quic.queued, []
        for stream_id, data, end in queued:
            if data or end:
                self.bench.feed(stream_id, data, end=end, cut=self.cut)
        self.bench.flush()
        for stream_id, flow in self.bench.bearer.flows.items():
            data = flow.sent[self.read.get(stream_id, 0) :]
            end = flow.fin and stream_id not in self.fins and not stream_id & 2
            if data or end:
                self.read[stream_id] = len(flow.sent)
                if end:
                    self.fins.add(stream_id)
                event = StreamDataReceived(data=data, end_stream=end, stream_id=stream_id)
                self.events += self.h3.handle_event(event)
        assert self.quic.closed is None, self.quic.closed
        assert self.bench.is_open, self.bench.bearer.closed

    def heads(self, stream_id):
        return [e.headers for e in self.events if isinstance(e, HeadersReceived) and e.stream_id == stream_id]

    def body(self, stream_id):
        return b"".join(e.data for e in self.events if isinstance(e, DataReceived) and e.stream_id == stream_id)

    def ended(self, stream_id):
        return any(e.stream_ended for e in self.events if e.stream_id == stream_id)


def test_settings(cut):
    client = Client(cut)
    received = client.h3.received_settings
    assert received == {frames.MAX_FIELD_SECTION_SIZE: 65_536, frames.ENABLE_CONNECT_PROTOCOL: 1}
    assert client.bench.codec.saw_settings


def test_a_request_and_its_answer(cut):
    client = Client(cut)
    stream_id = client.open()
    client.send(stream_id, [*POST, ("x-long", "v" * 300), ("content-length", "10")], b"hello", b"world")
    client.exchange()
    request = client.bench.request
    assert request.body == b"helloworld" and request.ended
    assert request.head.shape.fields == [(b"x-long", b"v" * 300)] and request.head.length == 10
    client.bench.answer(fields=[(b"content-type", b"application/json"), (b"x-a", b"b")])
    client.exchange()
    assert client.heads(stream_id) == [
        [(b":status", b"200"), (b"content-type", b"application/json"), (b"x-a", b"b"), (b"content-length", b"2")]
    ]
    assert client.body(stream_id) == b"ok" and client.ended(stream_id)


def test_many_at_a_time(cut):
    client = Client(cut)
    ids = [client.open() for _ in range(20)]
    for stream_id in ids:
        client.send(stream_id, [*POST, ("x-n", str(stream_id))], b"%d" % stream_id)
    client.exchange()
    for receiver in reversed(client.bench.requests):
        client.bench.answer(receiver, body=receiver.body * 1_000)
    client.exchange()
    assert [client.body(stream_id) for stream_id in ids] == [b"%d" % i * 1_000 for i in ids]
    assert not client.bench.codec.streams and client.bench.all_credited()


def test_grpc(cut):
    """Trailers both ways, and an interim answer."""
    client = Client(cut)
    stream_id = client.open()
    fields = [*POST, ("content-type", "application/grpc"), ("te", "trailers")]
    client.send(stream_id, fields, b"\0\0\0\0\1a", trailers=[(b"x-checksum", b"7")])
    client.exchange()
    request = client.bench.request
    assert request.head.shape.is_grpc and request.trailers == [(b"x-checksum", b"7")]
    request.stream.send_informational(response(103, fields=[(b"link", b"</a>")]))
    request.stream.send_head(response(200, fields=[(b"content-type", b"application/grpc")]), False)
    for _ in range(3):
        request.stream.send_data(b"\0\0\0\0\1b", False)
        client.exchange()
    request.stream.send_trailers([(b"grpc-status", b"0"), (b"grpc-message", b"")])
    client.exchange()
    assert [dict(head).get(b":status") for head in client.heads(stream_id)] == [b"103", b"200", None]
    assert client.heads(stream_id)[-1] == [(b"grpc-status", b"0"), (b"grpc-message", b"")]
    assert client.body(stream_id) == b"\0\0\0\0\1b" * 3 and client.ended(stream_id)


def test_a_call_that_is_refused_with_trailers_alone():
    client = Client()
    stream_id = client.open()
    client.send(stream_id, [*POST, ("content-type", "application/grpc"), ("te", "trailers")], b"x")
    client.exchange()
    client.bench.answer(body=b"", fields=[(b"content-type", b"application/grpc"), (b"grpc-status", b"14")])
    client.exchange()
    assert dict(client.heads(stream_id)[0])[b"grpc-status"] == b"14" and client.ended(stream_id)


def test_websocket(cut):
    client = Client(cut)
    stream_id = client.open()
    as_bytes = [(n.encode(), v.encode()) for n, v in CONNECT]
    client.h3.send_headers(stream_id, as_bytes)
    client.exchange()
    stream = client.bench.request.stream
    stream.send_head(response(200, tunnel=True), False)
    client.h3.send_data(stream_id, b"\x81\x80abcd", end_stream=False)
    client.exchange()
    assert client.bench.request.body == b"\x81\x80abcd"
    stream.send_data(b"\x81\x02hi", False)
    stream.send_data(b"\x88\x00", True)
    client.exchange()
    assert client.body(stream_id) == b"\x81\x02hi\x88\x00" and client.ended(stream_id)
    client.h3.send_data(stream_id, b"", end_stream=True)
    client.exchange()
    assert client.bench.request.ended and not client.bench.codec.streams


def test_a_large_upload_and_download_through_holds():
    client = Client(hold=HOLD_PEER_FULL)
    stream_id = client.open()
    client.send(stream_id, POST, *[b"x" * 10_000] * 50)
    client.exchange()
    request = client.bench.request
    assert request.body == b""
    request.release(HOLD_PEER_FULL)
    client.exchange()
    assert len(request.body) == 500_000 and request.ended
    client.bench.answer(body=b"y" * 700_000)
    client.exchange()
    assert client.body(stream_id) == b"y" * 700_000 and client.bench.all_credited()


def test_a_head_that_is_too_large_is_answered():
    client = Client()
    stream_id = client.open()
    client.send(stream_id, [*GET, *((f"x-{i}", "v" * 60) for i in range(200))])
    client.exchange()
    assert dict(client.heads(stream_id)[0])[b":status"] == b"431" and client.ended(stream_id)


def test_goaway_is_understood():
    client = Client()
    stream_id = client.open()
    client.send(stream_id, GET)
    client.exchange()
    client.bench.codec.drain()
    client.exchange()
    client.bench.expire()
    client.exchange()
    client.bench.answer()
    assert client.bench.close_code == frames.NO_ERROR


fields_ = st.lists(
    st.tuples(
        st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(lambda name: "x-" + name),
        st.text("abc ~!=;,/\"'0123456789", max_size=80).map(str.strip),
    ),
    max_size=20,
)


@given(fields_, st.lists(st.binary(max_size=5_000), max_size=4), st.integers(1, 400), st.lists(st.binary(), max_size=3))
@settings(deadline=None, max_examples=60)
def test_any_request_and_any_answer(fields, bodies, size, answers):
    client = Client(lambda data: [data[i : i + size] for i in range(0, len(data), size)])
    for _ in range(2):
        stream_id = client.open()
        client.send(stream_id, [*POST, *fields], *bodies)
        client.exchange()
        request = client.bench.request
        assert request.head.shape.fields == [(n.encode(), v.encode()) for n, v in fields]
        assert request.body == b"".join(bodies) and request.ended
        request.stream.send_head(response(200, fields=request.head.shape.fields), False)
        for answer in filter(None, answers):
            request.stream.send_data(answer, False)
        request.stream.send_data(b"", True)
        client.exchange()
        assert client.heads(stream_id)[0][1:] == request.head.shape.fields
        assert client.body(stream_id) == b"".join(answers) and client.ended(stream_id)
    assert client.bench.all_credited()


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"\0\x01x", b"\x01\x05\0\0\xd1\xd7\xc1", b"\x04\0", b"\x07\x01\0", b"\x21\x03abc", b"\0\0", b"\x01\x02\0\0",
         b"\x01\x0c\0\0\xd1\xd7\xc1\x50\x01a\x51\x01b", b"\x0d\x01\x08", b"\0", b"\x02", b"\x03\x44"]
    ),
)  # fmt: skip
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.sampled_from([0, 2, 4, 6, 8, 10, 14]), PIECES, st.booleans()),
        st.tuples(st.sampled_from(["reset", "stop"]), st.sampled_from([0, 3, 4, 8]), st.just(b""), st.just(False)),
        st.tuples(st.sampled_from(["answer", "hold", "release", "fail"]), st.integers(0, 3), st.just(b""), st.just(False)),
        st.tuples(st.sampled_from(["drain", "cut", "time", "lost"]), st.integers(0, 100), st.just(b""), st.just(False)),
    ),
    max_size=30,
)


@given(ACTIONS)
@settings(deadline=None, max_examples=400)
def test_whatever_a_client_does(actions):
    """Nothing is raised; the receivers' order holds (the kit asserts it); whoever is lost is told; credit is exact."""
    bench = ServerBench(greet=False)
    bench.codec.connected()
    for what, number, piece, end in actions:
        if not bench.is_open:
            break
        with contextlib.suppress(IndexError):
            apply(bench, what, number, piece, end)
    bench.flush()
    if not bench.is_open:
        for receiver in bench.requests:
            assert receiver.error is not None or receiver.stream.sent_end
        assert not bench.codec.active
        assert bench.codec.next_deadline() is None
    else:
        assert bench.codec.active == sum(not stream.is_over for stream in bench.codec.streams.values())


def apply(bench, what, number, piece, end):
    flow = bench.bearer.flows.get(number)
    if what == "feed":
        if flow is None or not flow.received_end:
            bench.feed(number, piece, end=end)
    elif what == "reset":
        if flow is not None and not flow.received_end:
            bench.reset(number)
    elif what == "stop":
        if flow is not None and flow.can_send():
            bench.stop(number)
    elif what == "answer":
        bench.answer(bench.requests[number])
    elif what == "fail":
        bench.requests[number].stream.reset(response_failed())
        bench.flush()
    elif what in ("hold", "release"):
        getattr(bench.requests[number], what)(HOLD_PEER_FULL)
        bench.flush()
    elif what == "drain":
        bench.codec.drain()
        bench.flush()
    elif what == "cut":
        bench.codec.cut(response_failed())
        bench.flush()
    elif what == "time":
        bench.bearer.now += number
        deadline = bench.codec.next_deadline()
        if deadline is not None and deadline <= bench.now:
            bench.codec.handle_deadline(bench.now)
        bench.flush()
    else:
        bench.lost()


def response_failed():
    from h1kit import FAILED

    return FAILED


@pytest.mark.parametrize("code", [frames.REQUEST_CANCELLED, frames.NO_ERROR])
def test_a_client_that_cancels(code):
    client = Client()
    stream_id = client.open()
    client.send(stream_id, POST, b"x", trailers=None)
    client.exchange()
    client.bench.stop(stream_id, code)
    assert client.bench.request.error is not None
    stream_id = client.open()
    client.send(stream_id, GET)
    client.exchange()
    client.bench.answer()
    client.exchange()
    assert client.body(stream_id) == b"ok"
