"""H1Server: a WebSocket handshake, its refusal, and the tunnel behind it (RFC 6455)."""

import pytest
from h1kit import CUT, FAILED, GET, HANDSHAKE, ServerBench, response

from router.errors import Kind
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_LINGER, CLOSE_NO, HOLD_NO_UPSTREAM, HOLD_PEER_FULL

FRAME = b"\x81\x05hello"
CLOSE = b"\x88\x02\x03\xe8"


def open_tunnel(cut=None, **limits):
    bench = ServerBench(**limits)
    bench.feed(HANDSHAKE, *([cut] if cut else []))
    bench.codec.send_head(response(tunnel=True, fields=[(b"sec-websocket-protocol", b"x")]), False)
    bench.pump()
    bench.taken()
    return bench


def test_the_head_is_the_canonical_extended_connect(cut):
    bench = ServerBench()
    bench.feed(HANDSHAKE, cut)
    shape = bench.request.head.shape
    assert (shape.method, shape.upgrade, shape.path) == (b"CONNECT", b"websocket", b"/ws")
    assert not bench.request.ended
    assert not any(name.startswith(b"sec-websocket-key") for name, _ in shape.fields)


def test_accepted():
    bench = ServerBench()
    bench.feed(HANDSHAKE)
    bench.codec.send_head(response(tunnel=True), False)
    bench.pump()
    assert bench.out == (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # RFC 6455 §1.3
    )


def test_frames_sent_before_the_101_wait_for_it(cut):
    bench = ServerBench()
    bench.feed(HANDSHAKE + b"early", cut)
    assert bench.request.body == b""
    bench.codec.send_head(response(tunnel=True), False)
    bench.pump()
    assert bench.request.body == b"early"


def test_both_ways(cut):
    bench = open_tunnel(cut)
    bench.feed(b"\x00\x01\x02", cut)
    bench.codec.send_data(FRAME, False)
    bench.pump()
    assert (bench.request.body, bench.out) == (b"\x00\x01\x02", FRAME)
    assert bench.is_open


@pytest.mark.parametrize("status", [200, 403, 503])
def test_refused(status, cut):
    bench = ServerBench()
    bench.feed(HANDSHAKE + GET, cut)
    bench.answer(status, b"sorry!")
    assert bench.out.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in bench.out
    assert bench.out.endswith(b"\r\n\r\nsorry!")
    assert len(bench.requests) == 1, "what follows a refused handshake is no request"
    assert bench.codec.close in (CLOSE_FLUSH, CLOSE_LINGER)


def test_the_client_ends_first(cut):
    bench = open_tunnel()
    bench.feed(b"last", cut)
    assert bench.eof() is True
    assert bench.request.ended
    assert bench.codec.close == CLOSE_NO
    bench.codec.send_data(CLOSE, False)
    bench.codec.send_data(b"", True)
    bench.pump()
    assert bench.out == CLOSE
    assert bench.half_closed
    assert bench.codec.close == CLOSE_FLUSH


def test_the_replica_ends_first(cut):
    bench = open_tunnel()
    bench.codec.send_data(CLOSE, True)
    bench.pump()
    assert (bench.out, bench.half_closed, bench.codec.close) == (CLOSE, True, CLOSE_NO)
    bench.feed(b"bye", cut)
    assert bench.request.body == b"bye"
    bench.eof()
    assert bench.request.ended
    assert bench.codec.close == CLOSE_FLUSH


def test_after_both_ended_a_lost_transport_says_nothing():
    bench = open_tunnel()
    bench.codec.send_data(b"", True)
    bench.eof()
    bench.lost()
    assert bench.request.error is None


def test_an_end_without_a_close_frame_gets_one():
    bench = open_tunnel()
    bench.codec.send_data(FRAME, False)
    bench.codec.send_data(b"", True)
    bench.pump()
    assert bench.out.startswith(FRAME + b"\x88")
    assert bench.out[len(FRAME) + 2 :][:2] == (1011).to_bytes(2, "big")


@pytest.mark.parametrize(
    "sent", [FRAME[:1], FRAME[:4], CLOSE], ids=["in a header", "in a payload", "after a close"]
)
def test_but_not_within_a_frame_nor_after_a_close(sent):
    bench = open_tunnel()
    bench.codec.send_data(sent, False)
    bench.codec.send_data(b"", True)
    bench.pump()
    assert bench.out == sent


@pytest.mark.parametrize(
    ("sent", "error", "frame"),
    [
        (b"", FAILED, b"\x88\x11" + (1011).to_bytes(2, "big") + b"upstream_closed"),
        (FRAME, CUT, b"\x88\x0a" + (1012).to_bytes(2, "big") + b"draining"),
        (FRAME[:3], CUT, b""),
        (CLOSE, CUT, b""),
    ],
    ids=["at once", "between frames", "in a frame", "after a close"],
)
def test_a_reset_is_a_close_frame_where_one_may_stand(sent, error, frame):
    bench = open_tunnel()
    if sent:
        bench.codec.send_data(sent, False)
    bench.codec.reset(error)
    bench.pump()
    assert bench.out == sent + frame
    assert bench.codec.close == CLOSE_FLUSH


def test_a_lost_client():
    bench = open_tunnel()
    bench.lost()
    assert bench.request.error.kind is Kind.CLIENT_GONE


def test_hold_and_release(cut):
    bench = open_tunnel()
    bench.request.hold(HOLD_PEER_FULL)
    bench.pump()
    bench.feed(b"abc", cut)
    assert bench.request.body == b""
    bench.request.release(HOLD_PEER_FULL)
    bench.pump()
    assert bench.request.body == b"abc"


def test_an_end_behind_held_input_waits_with_it():
    """`Stream.hold`: no data reach the receiver until every reason is released; an end is data."""
    bench = open_tunnel()
    bench.request.hold(HOLD_NO_UPSTREAM)
    bench.feed(b"abc")
    bench.eof()
    assert not bench.request.ended
    bench.request.release(HOLD_NO_UPSTREAM)
    bench.pump()
    assert (bench.request.body, bench.request.ended) == (b"abc", True)


def test_a_tunnel_on_which_nothing_moves():
    bench = open_tunnel(idle_s=100.0)
    assert bench.expire() == pytest.approx(100.0)
    assert bench.request.error.kind is Kind.IDLE_TIMEOUT


def test_a_full_client():
    bench = open_tunnel()
    bench.full(True)
    assert bench.request.paused
    bench.expire()
    assert bench.request.error.kind is Kind.CLIENT_STALLED
    assert bench.codec.close == CLOSE_ABORT


def test_cut():
    bench = open_tunnel()
    bench.codec.cut(CUT)
    assert bench.request.error is CUT
