"""An HTTP/3 connection with WebTransport on the bench of HTTP/3's tests, and an application that notes what it is told."""

from bearer import ServerBench, data, headers

from router.transport.codec.quic.seam import Application
from router.transport.codec.quic.varint import varint
from router.transport.codec.webtransport.codes import ONE_WAY, TWO_WAY
from router.transport.codec.webtransport.host import SessionHost

CONNECT = [
    (":method", "CONNECT"), (":scheme", "https"), (":authority", "a.example"), (":path", "/arm?x=1"),
    (":protocol", "webtransport"), ("sec-webtransport-http3-draft02", "1"), ("origin", "https://page.example"),
]  # fmt: skip


def capsule(kind, payload=b"", length=None):
    return varint(kind) + varint(len(payload) if length is None else length) + payload


def two_way(session_id):
    return varint(TWO_WAY) + varint(session_id)


def one_way(session_id):
    return varint(ONE_WAY) + varint(session_id)


class Spoken(Application):
    """`got`: bytes by stream; `told`: everything else in order."""

    def __init__(self, bearer, asked):
        self.bearer = bearer
        self.asked = asked
        self.got = {}
        self.ends = set()
        self.flows = {}
        self.told = []
        self.times = []
        self.deadline = None
        self.gives_credit = True
        self.on_data = None

    def connected(self):
        self.told.append("connected")

    def stream_opened(self, flow):
        self.flows[flow.id] = flow
        self.got[flow.id] = b""

    def stream_data(self, flow, data, end):
        assert data or end
        assert flow.id not in self.ends
        self.got[flow.id] += data
        if end:
            self.ends.add(flow.id)
        if self.gives_credit:
            flow.credit(len(data))
        if self.on_data is not None:
            self.on_data(flow)

    def stream_reset(self, flow, code):
        self.told.append(("reset", flow.id, code))

    def stream_stopped(self, flow, code):
        self.told.append(("stopped", flow.id, code))

    def stream_drained(self, flow):
        self.told.append(("drained", flow.id))

    def stream_gone(self, flow):
        self.told.append(("gone", flow.id))

    def datagram(self, data):
        self.told.append(("datagram", data))

    def streams_available(self):
        self.told.append("available")

    def before_send(self, now):
        self.times.append(now)

    def connection_lost(self, code, reason, by_peer):
        self.told.append(("lost", code, reason, by_peer))

    def next_deadline(self):
        return self.deadline

    def handle_deadline(self, now):
        self.told.append("deadline")
        self.deadline = None

    def drain(self):
        self.told.append("drain")

    def retire(self, now):
        self.told.append("retire")

    def cut(self, error):
        self.told.append(("cut", error.kind.value))
        self.bearer.close(1012, b"cut")


class Host(SessionHost):
    def __init__(self):
        self.begun = []
        self.over = 0
        self.rejected = 0

    def protocol(self):
        return b"test/1"

    def begin_session(self, bearer, asked, now):
        self.begun.append(Spoken(bearer, asked))
        return self.begun[-1]

    def session_over(self):
        self.over += 1

    def stream_rejected(self):
        self.rejected += 1


class SessionBench(ServerBench):
    """With sessions. `spoken`: the last session's application."""

    def __init__(self, **options):
        self.host = Host()
        super().__init__(host=self.host, **options)

    def open(self, stream_id):
        """With all that come before it, as QUIC has it."""
        for earlier in range(stream_id & 3, stream_id, 4):
            if not stream_id & 1:
                super().open(earlier)
        return super().open(stream_id)

    @property
    def spoken(self):
        return self.host.begun[-1]

    @property
    def open_sessions(self):
        return len(self.host.begun) - self.host.over

    def connect(self, stream_id=0, *more, cut=None, fields=CONNECT):
        self.feed(stream_id, headers([*fields, *more]), **({} if cut is None else {"cut": cut}))
        return self.spoken

    def say(self, payload, stream_id=0, end=False, **options):
        """Capsules of the client."""
        self.feed(stream_id, data(payload), end=end, **options)

    def datagram(self, payload):
        self.codec.datagram(payload)
        self.flush()

    def capsules(self, stream_id=0):
        """What we said on the CONNECT's stream, as (type, payload)."""
        from bearer import parse

        return parse(self.body(stream_id))
