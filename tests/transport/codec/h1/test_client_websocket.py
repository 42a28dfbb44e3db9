"""H1Client: the handshake with a replica and the tunnel behind it (RFC 6455 §4.1)."""

import pytest
from h1kit import FAILED, ClientBench, request

from router.errors import Kind
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_NO, HOLD_PEER_FULL
from router.transport.codec.websocket import accept_value

LINES = {
    "status": b"HTTP/1.1 101 Switching Protocols",
    "connection": b"Connection: Upgrade",
    "upgrade": b"Upgrade: websocket",
}


def begun():
    bench = ClientBench()
    receiver = bench.start(request(b"CONNECT", b"/ws", upgrade=b"websocket"), end=False)
    key = bench.out.split(b"sec-websocket-key: ")[1].split(b"\r\n")[0]
    return bench, receiver, accept_value(key)


def test_the_request():
    bench, _, _ = begun()
    assert bench.out.startswith(
        b"GET /ws HTTP/1.1\r\nhost: a.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    )
    assert b"transfer-encoding" not in bench.out


def test_keys_are_fresh():
    assert begun()[2] != begun()[2]


def test_accepted(cut):
    bench, receiver, accept = begun()
    bench.feed(
        b"\r\n".join((*LINES.values(), b"Sec-WebSocket-Accept: " + accept, b"X-A: b", b"", b"\x81\x01x")), cut
    )
    shape = receiver.head.shape
    assert (shape.status, shape.accepts_tunnel, shape.fields) == (200, True, [(b"x-a", b"b")])
    assert receiver.body == b"\x81\x01x"


@pytest.mark.parametrize("without", ["connection", "upgrade", "accept"])
def test_a_broken_101(without, cut):
    bench, receiver, accept = begun()
    lines = [line for name, line in LINES.items() if name != without]
    if without != "accept":
        lines.append(b"Sec-WebSocket-Accept: " + accept)
    bench.feed(b"\r\n".join((*lines, b"", b"")), cut)
    assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL
    assert bench.codec.close == CLOSE_ABORT


@pytest.mark.parametrize("accepts", [(b"AAAA",), (b"AAAA", None), (None, None)])
def test_a_wrong_or_doubled_accept(accepts, cut):
    bench, receiver, right = begun()
    lines = [b"Sec-WebSocket-Accept: " + (accept or right) for accept in accepts]
    bench.feed(b"\r\n".join((*LINES.values(), *lines, b"", b"")), cut)
    assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden"])
def test_another_answer_is_passed_on(status, cut):
    bench, receiver, _ = begun()
    bench.feed(b"HTTP/1.1 " + status + b"\r\nContent-Length: 6\r\n\r\nsorry!", cut)
    assert not receiver.head.shape.accepts_tunnel
    assert receiver.body == b"sorry!"
    assert bench.idle_calls == 0, "the tunnel that was asked for may be on its way"


class TestTunnel:
    def test_both_ways(self, cut):
        bench = ClientBench()
        receiver = bench.switch()
        bench.codec.send_data(b"abc", False)
        bench.feed(b"def", cut)
        assert (bench.out, receiver.body) == (b"abc", b"def")

    def test_the_replica_ends_first(self, cut):
        bench = ClientBench()
        receiver = bench.switch()
        bench.feed(b"bye", cut)
        assert bench.eof() is True
        assert (receiver.body, receiver.ended, bench.codec.close) == (b"bye", True, CLOSE_NO)
        bench.codec.send_data(b"last", False)
        bench.codec.send_data(b"", True)
        bench.flush()
        assert (bench.out, bench.half_closed, bench.codec.close) == (b"last", True, CLOSE_FLUSH)

    def test_the_client_ends_first(self, cut):
        bench = ClientBench()
        receiver = bench.switch()
        bench.codec.send_data(b"", True)
        bench.flush()
        assert (bench.half_closed, bench.codec.close) == (True, CLOSE_NO)
        bench.feed(b"bye", cut)
        bench.eof()
        assert (receiver.body, receiver.ended, bench.codec.close) == (b"bye", True, CLOSE_FLUSH)

    def test_after_both_ended_a_lost_transport_says_nothing(self):
        for first in ("client", "replica"):
            bench = ClientBench()
            receiver = bench.switch()
            steps = [lambda bench=bench: bench.codec.send_data(b"", True), bench.eof]
            for step in steps if first == "client" else reversed(steps):
                step()
            bench.flush()
            bench.lost()
            assert receiver.error is None

    def test_lost(self):
        bench = ClientBench()
        receiver = bench.switch()
        bench.lost()
        assert receiver.error.kind is Kind.UPSTREAM_RESET

    def test_lost_after_the_replica_ended_its_half(self):
        bench = ClientBench()
        receiver = bench.switch()
        bench.eof()
        bench.lost()
        assert receiver.error.kind is Kind.UPSTREAM_RESET

    def test_reset(self):
        bench = ClientBench()
        receiver = bench.switch()
        bench.codec.reset(FAILED)
        bench.feed(b"more")
        assert receiver.body == b""
        assert bench.codec.close == CLOSE_ABORT

    def test_hold(self, cut):
        bench = ClientBench()
        receiver = bench.switch()
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(b"abc", cut)
        assert receiver.body == b""
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert receiver.body == b"abc"

    def test_never_back_to_the_pool(self):
        bench = ClientBench()
        bench.switch()
        bench.codec.send_data(b"", True)
        bench.eof()
        assert bench.idle_calls == 0
