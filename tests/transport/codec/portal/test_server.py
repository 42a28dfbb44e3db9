"""Clients of quic-portal over a link in memory: messages to a replica's WebSocket and back, limits, ends."""

import random

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State

from router.errors import Kind, ProxyError, Source
from router.http import ResponseHead, ResponseShape
from router.stream import HOLD_NO_UPSTREAM, HOLD_PEER_FULL, RequestReceiver
from router.transport.codec.portal import server as portal
from tests.transport.codec.quic.rig import Link, Recorder, Rig


def switched():
    shape = ResponseShape(200)
    shape.accepts_tunnel = True
    return ResponseHead(shape)


def frame(payload, kind=Opcode.BINARY):
    return Frame(kind, payload).serialize(mask=False)


class Replica(RequestReceiver):
    """An exchange that leads to a WebSocket server, as `websockets` understands it."""

    def __init__(self, stream):
        self.stream = stream
        self.protocol = Protocol(SERVER, state=State.OPEN, max_size=None)
        self.messages = []
        self.close = None
        self.ended = False
        self.error = None
        self.paused = 0
        self.head = None
        self.in_stream_call = False

    def request_head(self, head, end):
        self.head = head
        self.stream.hold(HOLD_NO_UPSTREAM)

    def open(self):
        self.stream.send_head(switched(), False)
        self.stream.release(HOLD_NO_UPSTREAM)

    def say(self, data):
        self.in_stream_call = True
        self.stream.send_data(data, False)
        self.in_stream_call = False

    def request_data(self, data, end):
        assert not self.in_stream_call, "called back"
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if event.opcode is Opcode.CLOSE:
                self.close = int.from_bytes(event.data[:2], "big")
            else:
                self.messages.append((event.opcode, bytes(event.data)))
        assert self.protocol.parser_exc is None
        self.ended |= end

    def request_trailers(self, trailers):
        raise AssertionError

    def request_reset(self, error):
        self.error = error

    def pause_response(self):
        self.paused += 1

    def resume_response(self):
        self.paused -= 1


class Portal(Rig):
    def __init__(self, **kwargs):
        self.replica = None

        def begin(stream):
            self.replica = Replica(stream)
            return self.replica

        def make(bearer):
            if bearer.is_server:
                return portal.PortalServer(bearer, begin, b"policy.test", b"/infer?v=1")
            return Recorder(bearer)

        super().__init__(make_app=make, server_change=lambda config: setattr(config, "takes_no_alpn", True),
                         change=lambda config: setattr(config, "alpn", None), **kwargs)

    def up_to_date(self):
        self.connect()
        assert self.run(lambda: self.replica is not None and self.replica.head is not None)
        return self

    def opened(self):
        self.up_to_date().replica.open()
        self.flow = self.client.connection.open_stream(unidirectional=False)
        return self

    def say(self, *messages):
        for data in messages:
            self.flow.send(len(data).to_bytes(4, "big") + data, False)

    def got(self):
        data = self.client.app.data.get(self.flow.id, b"")
        found = []
        while data:
            size = int.from_bytes(data[:4], "big")
            assert len(data) >= 4 + size
            found.append(data[4 : 4 + size])
            data = data[4 + size :]
        return found


def test_the_request_names_what_the_listener_was_told():
    head = Portal().up_to_date().replica.head
    assert (head.shape.authority, head.shape.path, head.shape.upgrade) == (b"policy.test", b"/infer?v=1", b"websocket")


def test_messages_go_both_ways_in_order():
    rig = Portal().opened()
    sizes = [0, 1, 200, 70_000, 600_000]
    sent = [random.Random(size).randbytes(size) for size in sizes]
    rig.say(*sent)
    assert rig.run(lambda: len(rig.replica.messages) == len(sent))
    assert [data for _, data in rig.replica.messages] == sent
    for data in sent:
        rig.replica.say(frame(data))
    assert rig.run(lambda: rig.flow.id in rig.client.app.data and len(rig.client.app.data[rig.flow.id]) == sum(sizes) + 20)
    assert rig.got() == sent


@pytest.mark.parametrize("step", [1, 3, 1_000])
def test_in_pieces_of_any_size(step):
    rig = Portal(up=Link(0.001), down=Link(0.001)).opened()
    wire = b"".join(len(data).to_bytes(4, "big") + data for data in (b"", b"a", bytes(300), b"last"))
    for at in range(0, len(wire), step):
        rig.flow.send(wire[at : at + step], False)
        rig.run(limit_s=0.003)
    assert rig.run(lambda: [data for _, data in rig.replica.messages] == [b"", b"a", bytes(300), b"last"])


def test_what_the_replica_says_first_waits_for_the_clients_stream():
    rig = Portal().up_to_date()
    rig.replica.open()
    rig.replica.say(frame(b"metadata"))
    assert rig.replica.paused == 1
    rig.flow = rig.client.connection.open_stream(unidirectional=False)
    rig.say(b"observation")
    assert rig.run(lambda: rig.client.app.data.get(rig.flow.id) is not None)
    assert rig.got() == [b"metadata"]
    assert rig.replica.paused == 0


def test_what_the_client_says_first_waits_for_the_replica():
    rig = Portal().up_to_date()
    rig.flow = rig.client.connection.open_stream(unidirectional=False)
    rig.say(b"one", b"two")
    rig.run(limit_s=0.5)
    assert not rig.replica.messages
    rig.replica.open()
    rig.server.app.touch()
    assert rig.run(lambda: [data for _, data in rig.replica.messages] == [b"one", b"two"])


def test_pings_are_answered_not_passed_on():
    rig = Portal().opened()
    rig.say(b"x")
    rig.run(limit_s=0.2)
    rig.replica.say(frame(b"?", Opcode.PING))
    assert rig.run(lambda: (Opcode.PONG, b"?") in rig.replica.messages)
    assert rig.flow.id not in rig.client.app.data


def test_a_replica_that_takes_nothing_is_felt():
    rig = Portal().opened()
    rig.say(b"first")
    rig.run(limit_s=0.2)
    rig.replica.stream.hold(HOLD_PEER_FULL)
    rig.say(*(bytes(100_000) for _ in range(60)))
    rig.run(limit_s=3.0)
    received = rig.server.connection.streams.received_bytes
    assert received < portal.MAX_WAITING_BYTES + 2 * 1_048_576
    assert len(rig.replica.messages) == 1
    rig.replica.stream.release(HOLD_PEER_FULL)
    assert rig.run(lambda: len(rig.replica.messages) == 61)


def test_a_client_that_reads_nothing_is_felt():
    rig = Portal().opened()
    rig.client.app.gives_credit = False
    rig.say(b"x")
    rig.run(limit_s=0.2)
    for _ in range(40):
        rig.replica.say(frame(bytes(100_000)))
        rig.run(limit_s=0.05)
        if rig.replica.paused:
            break
    assert rig.replica.paused > 0


def test_a_message_too_large_ends_it():
    rig = Portal().opened()
    rig.flow.send((portal.MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"), False)
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[:2] == (1009, "message_too_large")
    assert rig.replica.ended or rig.replica.error is not None


def test_a_second_stream_ends_it():
    rig = Portal().opened()
    rig.say(b"x")
    other = rig.client.connection.open_stream(unidirectional=False)
    other.send(b"y", False)
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[0] == 1002


@pytest.mark.parametrize(
    ("status", "error", "code"), [(503, b"no_replica", 1013), (401, b"unauthenticated", 1008), (404, b"", 1008), (500, b"", 1011)]
)
def test_a_refusal_is_told_as_a_code(status, error, code):
    rig = Portal().up_to_date()
    head = ResponseHead(ResponseShape(status))
    head.added.append((b"x-router-error", error))
    rig.replica.stream.send_head(head, False)
    rig.replica.stream.send_data(b"sorry", True)
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[0] == code


def test_the_replicas_close_comes_behind_its_last_message():
    rig = Portal().opened()
    rig.say(b"x")
    rig.run(limit_s=0.2)
    rig.replica.say(frame(bytes(200_000)) + Frame(Opcode.CLOSE, b"\x03\xf3trace").serialize(mask=False))
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[:2] == (1011, "trace")
    assert rig.got() == [bytes(200_000)]
    assert rig.replica.close == 1011


def test_a_goodbye_behind_a_long_silence_has_its_time():
    rig = Portal().opened()
    rig.say(b"x")
    rig.run(limit_s=0.2)
    rig.run(limit_s=8.0)
    rig.replica.say(frame(b"at last") + Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False))
    rig.server.connection.datagrams_to_send(rig.now)
    deadline = rig.server.app.next_deadline()
    assert deadline is not None
    assert deadline == pytest.approx(rig.now + portal.GOODBYE_S)


def test_a_reset_of_the_replica_is_its_kinds_code():
    rig = Portal().opened()
    rig.replica.stream.reset(ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM))
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[:2] == (1011, "upstream_reset")


def test_a_client_that_leaves_lets_the_replica_go():
    rig = Portal().opened()
    rig.say(b"x")
    rig.run(limit_s=0.2)
    rig.client.connection.close(0, b"")
    assert rig.run(lambda: rig.replica.ended)
    assert rig.replica.close == 1000


def test_a_router_that_goes_says_so():
    rig = Portal().opened()
    rig.say(b"x")
    rig.run(limit_s=0.2)
    rig.server.app.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
    assert rig.run(lambda: rig.client.app.lost is not None)
    assert rig.client.app.lost[:2] == (1012, "draining")
