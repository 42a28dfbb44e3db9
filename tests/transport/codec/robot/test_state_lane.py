"""What the sender of the state lane gives up, what it lets go on, what waits."""

from router.transport.codec.quic.seam import Bearer, Flow
from router.transport.codec.robot.limits import MAX_UNDER_WAY, NEARLY_BYTES
from router.transport.codec.robot.state_lane import StateOut


class FakeFlow(Flow):
    def __init__(self, number):
        self.id = number * 4 + 2
        self.unsent_bytes = 0
        self.sent = b""
        self.ended = False
        self.code = None

    def send(self, data, end):
        self.sent += data
        self.unsent_bytes += len(data)
        self.ended = end

    def reset(self, code):
        assert self.code is None
        self.code = code
        self.unsent_bytes = 0


class FakeBearer(Bearer):
    def __init__(self):
        self.flows = []
        self.room = 1_000

    def open_stream(self, *, unidirectional):
        assert unidirectional
        if len(self.flows) >= self.room:
            return None
        self.flows.append(FakeFlow(len(self.flows)))
        return self.flows[-1]


LARGE = 100_000


def lane():
    bearer = FakeBearer()
    return StateOut(bearer), bearer.flows, bearer


def test_what_has_not_begun_is_always_replaced():
    out, flows, _ = lane()
    for number in range(5):
        out.send(b"%d" % number + bytes(LARGE))
    assert [flow.code for flow in flows] == [1, 1, 1, 1, None]
    assert out.stale == 4


def test_of_those_that_have_begun_never_two_in_a_row():
    out, flows, _ = lane()
    out.send(b"a" + bytes(LARGE))
    flows[0].unsent_bytes -= 10_000
    out.send(b"b" + bytes(LARGE))
    flows[1].unsent_bytes -= 10_000
    out.send(b"c" + bytes(LARGE))
    out.send(b"d" + bytes(LARGE))
    assert [flow.code for flow in flows] == [1, None]
    assert out.stale == 2  # a, and c, which d replaced before it had a stream
    flows[1].unsent_bytes = NEARLY_BYTES
    out.send_waiting()
    assert flows[2].sent[3:4] == b"d"
    assert flows[1].code is None
    flows[2].unsent_bytes -= 10_000
    out.send(b"e" + bytes(LARGE))  # b was sent whole: d may be given up again
    assert flows[2].code == 1


def test_what_was_sent_whole_is_left_to_be_repeated():
    out, flows, _ = lane()
    for number in range(MAX_UNDER_WAY):
        out.send(b"%d" % number + bytes(LARGE))
        flows[-1].unsent_bytes = 0
    assert not any(flow.code for flow in flows)
    out.send(b"one more")
    assert [flow.code for flow in flows] == [1, *[None] * MAX_UNDER_WAY]


def test_of_a_small_message_a_quarter_may_be_left():
    out, flows, _ = lane()
    out.send(bytes(4_000))
    flows[0].unsent_bytes = 1_100
    out.send(bytes(4_000))
    assert flows[0].code == 1
    flows[1].unsent_bytes = 900
    out.send(bytes(4_000))
    assert flows[1].code is None
    assert len(flows) == 3


def test_without_a_stream_the_newest_alone_waits():
    out, flows, bearer = lane()
    bearer.room = 0
    out.send(b"a")
    out.send(b"b")
    assert out.stale == 1
    bearer.room = 1
    out.send_waiting()
    out.send_waiting()
    assert [flow.sent[-1:] for flow in flows] == [b"b"]
    assert out.sequence == 1


def test_late_ones_are_given_up():
    out, flows, bearer = lane()
    out.send(bytes(LARGE), 1_000)
    flows[0].unsent_bytes = 0
    out.send(bytes(LARGE), 500)
    bearer.room = 2
    flows[1].unsent_bytes = 0
    out.send(bytes(LARGE), 700)
    assert out.next_deadline() == 500
    out.expire(700)
    assert [flow.code for flow in flows] == [None, 1]
    assert out.late == 2
    assert out.next_deadline() == 1_000
    out.expire(1_000)
    assert out.late == 3
    assert out.next_deadline() == 0
    assert out.is_settled()


def test_what_was_acknowledged_or_stopped_is_forgotten():
    out, flows, _ = lane()
    out.send(b"a")
    out.send(b"b")
    out.gone(flows[0])
    out.stopped(flows[1])
    assert out.stale == 1 + 1  # a had not begun when b came
    assert out.is_settled()
    assert out.last is None
    out.gone(flows[1])
    out.stopped(flows[1])
    assert out.stale == 2


def test_a_last_word_does_not_wait():
    out, flows, _ = lane()
    out.send(b"a" + bytes(LARGE))
    flows[0].unsent_bytes -= 10_000
    out.send(b"b" + bytes(LARGE))
    flows[1].unsent_bytes -= 10_000
    out.send(b"c")
    assert len(flows) == 2
    out.hurry()
    assert [flow.code for flow in flows] == [1, 1, None]
    assert flows[2].sent[-1:] == b"c"
