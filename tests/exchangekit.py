"""One exchange between fake streams, and what it is given."""

from router.clock import Clock
from router.core import Core, Peer
from router.deadlines import DeadlineWheel
from router.errors import Kind, ProxyError, Retry, Source
from router.exchange import Exchange
from router.http import RequestHead, RequestShape, ResponseHead, ResponseShape
from router.routing.credentials import ANYBODY
from router.routing.prefix import PrefixBoard
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, RouteSpec, TablePatch, TableSpec
from router.routing.stage import Stage, whole
from router.stream import DownstreamStream, PendingStream, UpstreamStream

GONE = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)
REFUSED = ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE)
CLOSED = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM)
STREAM_REFUSED = ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, Retry.SAFE)
GOES_AWAY = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, Retry.SAFE)
STALE = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, Retry.IF_REUSED)


class FakeStream(DownstreamStream, UpstreamStream):
    """Records what it is told and refuses what the seam forbids."""

    def __init__(self, reused=False, untouched=True):
        self.may_be_untouched = reused
        self.untouched = untouched
        self.head = None
        self.data = b""
        self.informational = []
        self.trailers = None
        self.ended = False
        self.error = None
        self.holds = 0

    def _check(self):
        assert not self.ended, "sent after the end"
        assert self.error is None, "sent after a reset"

    def limit_idle(self, idle_s):
        self.idle_s = idle_s

    def send_informational(self, head):
        self._check()
        assert self.head is None
        self.informational.append(head.shape.status)

    def send_head(self, head, end):
        self._check()
        assert self.head is None, "two heads"
        self.head = head
        self.ended = end

    def send_data(self, data, end):
        self._check()
        assert self.head is not None, "data before the head"
        assert data or end, "empty data"
        self.data += data
        self.ended = end

    def send_trailers(self, trailers):
        self._check()
        self.trailers = trailers
        self.ended = True

    def reset(self, error):
        assert self.error is None
        self.error = error

    def hold(self, why):
        self.holds |= why

    def release(self, why):
        self.holds &= ~why

    def is_untouched(self):
        return self.untouched


class FakePending(PendingStream):
    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class FakePool:
    """Gives out pending opens, or the streams put into `warm`."""

    def __init__(self):
        self.warm = []
        self.opened = []

    def open(self, replica, receiver, dial, head, *, fresh):
        stream = self.warm.pop() if self.warm and not fresh else FakePending()
        self.opened.append((replica, stream))
        return stream


class OpenGate:
    """Lets everybody in as `credential`, to the endpoints that `refusals` does not name."""

    def __init__(self):
        self.credential = ANYBODY
        self.refusals = {}

    def check(self, head, endpoint, credentials, now):
        return self.credential if endpoint is None else self.admit(self.credential, endpoint, now)

    def check_session(self, head, endpoint, credentials, minter, now):
        self.minter = minter
        return self.admit(self.credential, endpoint, now)

    def admit(self, found, endpoint, now):
        return self.refusals.get(endpoint.name, found)


class FakeDesk:
    """Keeps what was asked of the supervisor, to be answered by the test."""

    def __init__(self):
        self.asked = []

    def start(self, endpoint, replica, idle_s, answer):
        self.asked.append(((endpoint, replica, idle_s), answer))

    def end(self, session_id, answer):
        self.asked.append((session_id, answer))


class Bench:
    """One exchange with everything around it faked."""

    def __init__(self, replicas=2, more=(), routes=(RouteSpec("*", "/", "e"),), prefixes=False, **endpoint):
        self.now = 100.0
        self.clock = Clock(lambda: self.now)
        spec = EndpointSpec("e", tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80") for i in range(replicas)), **endpoint)
        board = PrefixBoard(memoryview(bytearray(1 << 20))) if prefixes else None
        self.stage = Stage(None, "", board)
        self.stage.add(whole(TableSpec(1, (spec, *more), tuple(routes))), 100.0)
        self.table = self.stage.table
        self.pool = FakePool()
        self.records = []
        self.gate = OpenGate()
        self.desk = FakeDesk()
        self.core = Core(
            self.table, self.gate, self.pool, self.clock, DeadlineWheel(100.0), b"p", self.records.append,
            desk=self.desk,
        )  # fmt: skip
        self.down = FakeStream()
        self.exchange = Exchange(self.core, self.down, Peer(b"192.0.2.1"))

    @property
    def endpoint(self):
        return self.table.endpoints["e"]

    def change(self, endpoints=(), **changes):
        """Bring the next version of the table."""
        patch = TablePatch(self.core.table.version + 1, tuple(endpoints), **changes)
        self.core.table = self.table = self.stage.add(patch, self.now).table

    def patch(self, replicas):
        """Bring the next version of the table, in which the endpoint has so many replicas."""
        gone = tuple(r.id for r in self.core.table.endpoints["e"].replicas[replicas:])
        change = EndpointPatch("e", remove=gone)
        self.core.table = self.stage.add(TablePatch(self.core.table.version + 1, (change,)), self.now).table

    def pick_of(self, known):
        """Which replica a request with these fields is given."""
        self.head(end=True, known=known)
        return self.pool.opened[0][0].id

    def head(
        self, method=b"POST", length=None, end=False, upgrade=None, known=None, fields=(), path=b"/v1/x",
        expects_continue=False, continuity=None,
    ):  # fmt: skip
        shape = RequestShape(method, path, b"example.com")
        shape.expects_continue = expects_continue
        shape.upgrade = upgrade
        shape.fields = list(fields)
        if known:
            shape.known = known
        head = RequestHead(shape, length)
        head.continuity = continuity
        self.exchange.request_head(head, end)

    def warm(self, **kwargs):
        stream = FakeStream(reused=True, **kwargs)
        self.pool.warm.append(stream)
        return stream

    def connected(self):
        stream = FakeStream()
        self.exchange.upstream_ready(stream)
        return stream

    def pass_time(self, seconds):
        """Let time pass, with deadlines acted on as the wheel would."""
        ends = self.now + seconds
        while not self.finished():
            due = self.exchange.next_deadline()
            if due is None or due > ends:
                break
            self.now = max(self.now, due)
            self.exchange.handle_deadline(self.clock.read())
        self.now = ends
        self.clock.read()

    def in_flight(self):
        return sum(replica.in_flight for replica in self.endpoint.replicas)

    def finished(self):
        assert len(self.records) <= 1
        return len(self.records) == 1

    @property
    def flags(self):
        return self.records[0][7].decode(), self.records[0][8].decode(), self.records[0][18]


def response(status=200, length=None, event_stream=False, tunnel=False):
    shape = ResponseShape(status)
    shape.accepts_tunnel = tunnel
    shape.is_event_stream = event_stream
    return ResponseHead(shape, length)
