"""H1Server and H1Client with everything around them faked: playbooks are written against these two benches.

A bench does what `TcpShell` does, without a socket: it gives the codec what arrived as long as the codec
reads, and flushes after each piece. What the codec is told and tells is kept in order.
"""

from router.errors import Kind, ProxyError, Source
from router.http import RequestHead, RequestShape, ResponseHead, ResponseShape
from router.stream import CLOSE_NO
from router.transport.codec.h1.client import H1Client
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h1.server import H1Server
from router.transport.codec.websocket import accept_value

T0 = 1_000.0
FAILED = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM)
CUT = ProxyError(Kind.DRAINING, Source.ROUTER)
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def make_server(on_request, on_refused, limits, shell, now):
    return H1Server(on_request, on_refused, limits, shell, now)


def make_client(bench, shell, now):
    return H1Client(b"replica:80", lambda: bench.keep_s, bench.on_idle, lambda: bench.untouched, shell, now)


def response(status=200, length=None, fields=(), tunnel=False):
    shape = ResponseShape(status)
    shape.fields = list(fields)
    shape.accepts_tunnel = tunnel
    return ResponseHead(shape, length)


def request(method=b"GET", path=b"/", authority=b"a.example", length=None, fields=(), upgrade=None):
    shape = RequestShape(method, path, authority)
    shape.fields = list(fields)
    shape.upgrade = upgrade
    return RequestHead(shape, length)


class FakeShell:
    def __init__(self):
        self.is_touched = False
        self.watches = 0
        self.unsent = 0
        self.input_waits = False

    def touch(self):
        self.is_touched = True

    def watch(self):
        self.watches += 1

    def unsent_bytes(self):
        return self.unsent

    def has_input(self):
        return self.input_waits


class Receiver:
    """Either receiver of the seam. Checks its order: one head, no data while held or after the end."""

    def __init__(self, bench):
        self.bench = bench
        self.head = None
        self.informational = []
        self.body = b""
        self.calls = 0
        self.ended = False
        self.trailers = None
        self.error = None
        self.paused = False
        self.held = 0
        self.on_event = None

    def _take_head(self, head, end):
        assert self.head is None, "two heads"
        assert self.error is None
        self.head = head
        self.ended = end
        self._tell("head")

    def _take_data(self, data, end):
        assert self.head is not None, "data before the head"
        assert not self.ended, "data after the end"
        assert self.error is None, "data after a reset"
        assert data or end, "empty data"
        assert not self.held, "data while held"
        self.body += data
        self.calls += 1
        self.ended = end
        self._tell("end" if end else "data")

    def _take_trailers(self, trailers):
        assert not self.ended
        assert not self.held, "trailers while held"
        self.trailers = trailers
        self.ended = True
        self._tell("end")

    def _take_reset(self, error):
        assert self.error is None, "two resets"
        self.error = error
        self._tell("reset")

    def _tell(self, what):
        if self.on_event is not None:
            self.on_event(self, what)

    def hold(self, why):
        self.held |= why
        self.bench.codec.hold(why)

    def release(self, why):
        self.held &= ~why
        self.bench.codec.release(why)

    request_head = response_head = _take_head
    request_data = response_data = _take_data
    request_trailers = response_trailers = _take_trailers
    request_reset = response_reset = _take_reset

    def response_informational(self, head):
        assert self.head is None
        self.informational.append(head.shape.status)

    def pause_response(self):
        self.paused = True

    def resume_response(self):
        self.paused = False

    pause_request = pause_response
    resume_request = resume_response


class Bench:
    """The transport's owner. `now` moves only by hand."""

    def __init__(self):
        self.now = T0
        self.shell = FakeShell()
        self.inbox = []
        self.out = b""
        self.half_closed = False
        self.writes = 0
        self.eof_kept = None

    def feed(self, data, cut=lambda data: [data] if data else []):
        self.inbox += cut(data)
        self.pump()

    def pump(self):
        self.flush()
        while self.inbox and self.codec.wants_read:
            self.codec.receive(self.inbox.pop(0), self.now)
            self.flush()

    def flush(self):
        codec = self.codec
        for _ in range(1_000):
            self.shell.is_touched = False
            self._write(codec.take_output(self.now))
            if codec.has_held_input:
                codec.receive(b"", self.now)
            elif not self.shell.is_touched:
                return
        raise AssertionError("the flush does not end")

    def _write(self, pieces):
        if pieces:
            self.writes += 1
        for i, piece in enumerate(pieces):
            assert not self.half_closed, "written after the write side was shut"
            if not piece:
                assert i == len(pieces) - 1, "something follows the half-close"
                self.half_closed = True
            self.out += piece

    def eof(self):
        assert self.codec.wants_read or not self.inbox
        self.eof_kept = self.codec.receive_eof(self.now)
        self.pump()
        return self.eof_kept

    def lost(self):
        self.codec.receive_lost(self.now)
        self.flush()

    def full(self, is_full):
        self.codec.transport_full(is_full, self.now)
        self.pump()

    def taken(self):
        out, self.out = self.out, b""
        return out

    def expire(self):
        """Let the next deadline pass; return how long that took."""
        deadline = self.codec.next_deadline()
        assert deadline is not None
        passed = deadline - self.now
        self.now = max(deadline, self.now)
        self.codec.handle_deadline(self.now)
        self.flush()
        return passed

    @property
    def is_open(self):
        return self.codec.close == CLOSE_NO


class ServerBench(Bench):
    """The client's bytes go in, `requests` are what the exchange would see."""

    def __init__(self, on_event=None, hold=0, **limits):
        super().__init__()
        self.requests = []
        self.refused = []
        self.on_event = on_event
        self.hold_all = hold
        self.limits = ServerLimits(**limits)
        self.codec = make_server(self._on_request, self._on_refused, self.limits, self.shell, self.now)

    def _on_request(self, stream):
        assert stream is self.codec
        receiver = Receiver(self)
        receiver.on_event = self.on_event
        self.requests.append(receiver)
        if self.hold_all:
            receiver.hold(self.hold_all)
        return receiver

    def _on_refused(self, error):
        self.refused.append(error)

    @property
    def request(self):
        return self.requests[-1]

    def answer(self, status=200, body=b"ok", **head):
        self.codec.send_head(response(status, len(body), **head), False)
        self.codec.send_data(body, True)
        self.pump()


class ClientBench(Bench):
    """The replica's bytes go in; `start` begins a request."""

    def __init__(self):
        super().__init__()
        self.keep_s = 4.0
        self.untouched = True
        self.idle_calls = 0
        self.codec = make_client(self, self.shell, self.now)

    def on_idle(self):
        assert self.codec.is_idle
        self.idle_calls += 1

    def start(self, head=None, end=True, reused=False):
        receiver = Receiver(self)
        self.codec.may_be_untouched = reused
        self.codec.start(receiver)
        self.codec.send_head(head if head is not None else request(), end)
        self.flush()
        return receiver

    def switch(self):
        """Open a tunnel; return its receiver and clear the output."""
        receiver = self.start(request(b"CONNECT", b"/ws", upgrade=b"websocket"), end=False)
        key = self.taken().split(b"sec-websocket-key: ")[1].split(b"\r\n")[0]
        self.accept = accept_value(key)
        self.feed(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + self.accept + b"\r\n\r\n"
        )
        return receiver


def split_response(out):
    """Split the first response of `out` into status line, fields and the rest."""
    head, _, rest = out.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, [tuple(line.split(b": ", 1)) for line in lines], rest
