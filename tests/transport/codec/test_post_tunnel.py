"""Messages as POSTs: one at a time, their answers, refusals and failures, what waits and what is given up."""

import tracemalloc

import pytest

from router.errors import Kind, ProxyError, Source
from router.http import ResponseHead, ResponseShape
from router.stream import HOLD_NO_UPSTREAM, RequestReceiver
from router.transport.codec.message_tunnel import TunnelOwner
from router.transport.codec.post_tunnel import PostTunnel

RESET = ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM)


class Exchange(RequestReceiver):
    def __init__(self, stream):
        self.stream = stream
        self.head = None
        self.body = b""
        self.ended = False
        self.error = None

    def request_head(self, head, end):
        self.head, self.ended = head, end
        if Owner.holds:
            self.stream.hold(HOLD_NO_UPSTREAM)

    def request_data(self, data, end):
        assert not self.ended
        self.body += data
        self.ended = end

    def request_reset(self, error):
        assert self.error is None
        self.error = error

    def answer(self, status, body=b"", **fields):
        head = ResponseHead(ResponseShape(status))
        head.shape.fields.extend((name.replace("_", "-").encode(), value.encode()) for name, value in fields.items())
        self.stream.send_head(head, not body)
        for at in range(0, len(body), 7):
            self.stream.send_data(body[at : at + 7], False)
        if body:
            self.stream.send_data(b"", True)


class Owner(TunnelOwner):
    holds = False

    def __init__(self, limit=1_000):
        Owner.holds = False
        self.told = []
        self.exchanges = []
        self.tunnel = PostTunnel(self, limit)

    def open(self, authority=b"h", path=b"/act", headers=()):
        return self.tunnel.open(self._begin, authority, path, list(headers), b"ROBOT/1")

    def _begin(self, stream):
        self.exchanges.append(Exchange(stream))
        return self.exchanges[-1]

    def tunnel_open(self, head):
        self.told.append("open")

    def tunnel_message(self, data, is_text, lane):
        self.told.append(data)

    def tunnel_refused(self, status, code, retry_after_s, body):
        self.told.append((status, code, retry_after_s, body))

    def tunnel_closed(self, code, reason):
        self.told.append(("closed", code, reason))

    def tunnel_ready(self):
        self.told.append("ready")

    def touch(self):
        self.told.append("touch")


def test_a_message_is_a_post_and_its_answer_the_reply():
    owner = Owner()
    assert owner.open(headers=[(b"x-api-key", b"k"), (b"content-type", b"forged"), (b"content-length", b"7")]) is None
    assert not owner.tunnel.is_full()
    owner.tunnel.send(b"observation")
    (exchange,) = owner.exchanges
    shape = exchange.head.shape
    assert (shape.method, shape.path, shape.authority, exchange.head.length) == (b"POST", b"/act", b"h", 11)
    assert (b"content-type", b"application/octet-stream") in shape.fields and (b"x-api-key", b"k") in shape.fields
    assert (exchange.body, exchange.ended) == (b"observation", True)
    assert owner.tunnel.is_full()
    exchange.answer(200, b"these are the actions")
    assert owner.told == ["open", "touch", b"these are the actions"]
    assert not owner.tunnel.is_full()


def test_text_says_so():
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"go", is_text=True)
    assert (b"content-type", b"text/plain; charset=utf-8") in owner.exchanges[0].head.shape.fields


@pytest.mark.parametrize("path", [b"act", b"/a b", b"/\n"])
def test_what_makes_no_request(path):
    assert isinstance(Owner().open(path=path), ProxyError)


def test_an_empty_message_and_an_empty_answer():
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"")
    assert owner.exchanges[0].ended
    owner.exchanges[0].answer(204)
    assert owner.told[-1] == b""


def test_the_body_waits_for_a_replica():
    owner = Owner()
    owner.open()
    Owner.holds = True
    owner.tunnel.send(b"observation")
    (exchange,) = owner.exchanges
    owner.tunnel.flush()
    assert exchange.body == b""
    exchange.stream.release(HOLD_NO_UPSTREAM)
    assert owner.told[-1] == "touch"
    owner.tunnel.flush()
    assert (exchange.body, exchange.ended) == (b"observation", True)


def test_who_is_paused_asks_nothing():
    owner = Owner()
    owner.open()
    owner.tunnel.pause()
    assert owner.tunnel.is_full()
    owner.tunnel.flush()
    assert "ready" not in owner.told
    owner.tunnel.resume()
    owner.tunnel.flush()
    assert owner.told[-1] == "ready"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 302])
def test_a_refusal_is_one(status):
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"x")
    owner.exchanges[0].answer(status, b"because", x_router_error="why", retry_after="3")
    assert owner.told[-1] == (status, "why", 3, b"because")
    assert owner.tunnel.is_full()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_replica_that_cannot_is_gone_for_now(status):
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"x")
    owner.exchanges[0].answer(status, b"no")
    assert owner.told[-1][0] == "closed" and owner.tunnel.failure == "upstream_reset"


def test_one_that_is_cut():
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"x")
    owner.exchanges[0].stream.reset(RESET)
    assert owner.told[-1] == ("closed", 1011, "upstream_reset") or owner.told[-1][0] == "closed"
    owner.tunnel.close(1001)
    assert owner.exchanges[0].error is None


def test_a_reply_that_is_too_large():
    owner = Owner(limit=20)
    owner.open()
    owner.tunnel.send(b"x")
    owner.exchanges[0].answer(200, bytes(21))
    assert owner.exchanges[0].error.kind is Kind.UPSTREAM_PROTOCOL
    assert owner.told[-1] == ("closed", owner.told[-1][1], "the reply is too large")


def test_a_reply_whose_last_piece_is_too_much():
    """The exchange ends with that piece: it is not ended twice."""
    owner = Owner(limit=20)
    owner.open()
    owner.tunnel.send(b"x")
    stream = owner.exchanges[0].stream
    stream.send_head(ResponseHead(ResponseShape(200)), False)
    stream.send_data(bytes(21), True)
    assert owner.exchanges[0].error is None
    assert owner.told[-1] == ("closed", owner.told[-1][1], "the reply is too large")


def test_a_reply_in_tiny_pieces_costs_what_it_is_large():
    owner = Owner(limit=200_000)
    owner.open()
    owner.tunnel.send(b"x")
    stream = owner.exchanges[0].stream
    stream.send_head(ResponseHead(ResponseShape(200)), False)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(100_000):
        stream.send_data(b"%c" % (n & 0xFF), False)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 300_000
    stream.send_data(b"", True)
    assert owner.told[-1] == bytes(n & 0xFF for n in range(100_000))


def test_a_refusal_of_any_length_is_kept_short():
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"x")
    owner.exchanges[0].answer(404, bytes(100_000))
    assert len(owner.told[-1][3]) <= 4_096


def test_what_is_given_up_says_nothing_more():
    owner = Owner()
    owner.open()
    owner.tunnel.send(b"x")
    owner.tunnel.close(1001)
    assert owner.exchanges[0].error.kind is Kind.CLIENT_GONE
    owner.told.clear()
    owner.exchanges[0].stream.reset(RESET)
    owner.tunnel.close(1001)
    owner.tunnel.flush()
    assert owner.told == []
