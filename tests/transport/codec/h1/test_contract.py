"""What every codec owes its shell and its receiver; both roles of HTTP/1.1 pass the same suite.

A side gives: a bench, how to begin a message, its body in two framings, and what its receiver got.
"""

import pytest
from h1kit import FAILED, ClientBench, ServerBench, request

from router.stream import CLOSE_ABORT, CLOSE_NO, HOLD_NO_UPSTREAM, HOLD_PEER_FULL


class ServerSide:
    """Receives requests."""

    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    broken = b"GET /\r\n\r\n"

    def __init__(self):
        self.bench = ServerBench()

    @property
    def receiver(self):
        return self.bench.requests[-1] if self.bench.requests else None

    def open(self):
        self.bench.feed(self.head + b"Content-Length: 5\r\n\r\n")
        return self.bench.request


class ClientSide:
    """Receives responses."""

    head = b"HTTP/1.1 200 OK\r\n"
    broken = b"HTTP/9\r\n\r\n"

    def __init__(self):
        self.bench = ClientBench()
        self.receiver = self.bench.start(request())
        self.bench.taken()

    def open(self):
        self.bench.feed(self.head + b"Content-Length: 5\r\n\r\n")
        return self.receiver


@pytest.fixture(params=[ServerSide, ClientSide])
def side(request):
    return request.param()


FRAMINGS = {
    "length": b"Content-Length: 11\r\n\r\nhello world",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "odd chunks": b'transfer-encoding: Chunked\r\n\r\n0b;a="b;c" ;d\r\nhello world\r\n000\r\n\r\n',
}


class TestBytesIn:
    @pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
    def test_a_body_is_delivered_once_and_whole(self, side, framing, cut):
        side.bench.feed(side.head + framing, cut)
        assert (side.receiver.body, side.receiver.ended) == (b"hello world", True)
        assert side.receiver.error is None
        assert side.bench.codec.close == CLOSE_NO

    @pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
    def test_nothing_is_missed_by_holding_after_every_piece(self, side, framing, cut):
        held = []

        def hold(receiver, what):
            if what == "data":
                receiver.hold(HOLD_PEER_FULL)
                held.append(receiver)

        side.bench.on_event = hold
        if isinstance(side, ClientSide):
            side.receiver.on_event = hold
        side.bench.feed(side.head + framing, cut)
        while held:
            held.pop().release(HOLD_PEER_FULL)
            side.bench.pump()
        assert (side.receiver.body, side.receiver.ended) == (b"hello world", True)

    def test_a_broken_head_ends_the_connection(self, side, cut):
        side.bench.feed(side.broken, cut)
        assert side.bench.codec.close != CLOSE_NO
        assert side.receiver is None or side.receiver.error is not None

    def test_a_head_that_never_ends_is_refused(self, side):
        side.bench.feed(
            side.head + b"X: " + b"y" * 70_000,
            lambda data: [data[i : i + 4_000] for i in range(0, len(data), 4_000)],
        )
        assert side.bench.codec.close != CLOSE_NO

    @pytest.mark.parametrize(
        "body", [b"zz\r\n", b"5\r\nhelloXX", b"-1\r\n", b"0x5\r\nhello\r\n", b"5\nhello\n", b"1;\n\r\nx"]
    )
    def test_a_broken_chunk_is_never_an_end(self, side, body, cut):
        side.bench.feed(side.head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n", cut)
        assert side.receiver.error is not None
        assert not side.receiver.ended


class TestHolding:
    def test_no_data_until_every_reason_is_released(self, side, cut):
        receiver = side.open()
        receiver.hold(HOLD_NO_UPSTREAM)
        receiver.hold(HOLD_PEER_FULL)
        side.bench.feed(b"hello", cut)
        receiver.bench.codec.release(HOLD_NO_UPSTREAM)
        side.bench.pump()
        assert receiver.body == b""
        receiver.release(HOLD_NO_UPSTREAM | HOLD_PEER_FULL)
        side.bench.pump()
        assert (receiver.body, receiver.ended) == (b"hello", True)

    def test_only_a_full_peer_stops_reading(self, side):
        receiver = side.open()
        receiver.hold(HOLD_NO_UPSTREAM)
        assert side.bench.codec.wants_read
        receiver.hold(HOLD_PEER_FULL)
        assert not side.bench.codec.wants_read
        assert side.bench.shell.is_touched
        receiver.release(HOLD_NO_UPSTREAM | HOLD_PEER_FULL)
        assert side.bench.codec.wants_read

    def test_a_release_without_a_hold_is_harmless(self, side):
        receiver = side.open()
        side.bench.codec.release(HOLD_PEER_FULL)
        side.bench.feed(b"hello")
        assert receiver.body == b"hello"

    def test_a_lost_transport_is_told_through_a_hold(self, side):
        receiver = side.open()
        receiver.hold(HOLD_PEER_FULL)
        side.bench.lost()
        assert receiver.error is not None


class TestEnds:
    def test_a_reset_stream_hears_nothing_more(self, side, cut):
        receiver = side.open()
        side.bench.codec.reset(FAILED)
        side.bench.flush()
        side.bench.feed(b"hello", cut)
        side.bench.full(True)
        side.bench.full(False)
        side.bench.lost()
        assert receiver.body == b""
        assert receiver.error is None
        assert not receiver.paused
        assert side.bench.codec.close == CLOSE_ABORT

    def test_a_lost_transport_is_told_once(self, side):
        receiver = side.open()
        side.bench.lost()
        first = receiver.error
        side.bench.lost()
        side.bench.eof()
        assert receiver.error is first

    def test_an_end_in_a_body_is_never_whole(self, side, cut):
        receiver = side.open()
        side.bench.feed(b"hell", cut)
        side.bench.eof()
        assert not receiver.ended
        assert receiver.error is not None


class TestTime:
    def test_there_is_always_a_deadline(self, side):
        assert side.bench.codec.next_deadline() is not None
        side.open()
        assert side.bench.codec.next_deadline() > side.bench.now

    def test_output_is_handed_over_once(self, side):
        if isinstance(side, ServerSide):
            side.open()
            side.bench.feed(b"hello")
            side.bench.answer()
        else:
            side.bench.feed(side.head + b"Content-Length: 0\r\n\r\n")
            side.bench.start()
        assert side.bench.taken()
        side.bench.flush()
        assert side.bench.out == b""
