"""What a client may not do, byte by byte: ids that cannot be, frames out of place, capsules, datagrams, floods."""

import pytest
from bearer import GET, POST, data, frame, headers, parse
from webtransportkit import CONNECT, SessionBench, capsule, one_way, two_way

from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import IDLE_BURST, RESET_BURST
from router.transport.codec.quic.limits import MAX_STREAMS
from router.transport.codec.quic.varint import varint
from router.transport.codec.webtransport import codes
from router.transport.codec.webtransport.codes import BUFFERED_STREAM_REJECTED, CLOSE_SESSION, SESSION_GONE
from router.transport.codec.webtransport.limits import (
    MAX_CAPSULE_BYTES,
    MAX_REASON_BYTES,
    MAX_WAITING_BYTES,
    MAX_WAITING_DATAGRAMS,
    MAX_WAITING_STREAMS,
)

GREASE = 0x1F * 7 + 0x21
CLOSE = capsule(CLOSE_SESSION, (7).to_bytes(4, "big"))


class TestIds:
    @pytest.mark.parametrize("session_id", [1, 2, 3, 5, 6, 7, (1 << 62) - 1], ids=hex)
    @pytest.mark.parametrize("stream_id", [4, 6])
    def test_that_are_no_clients_two_way_stream(self, session_id, stream_id, cut):
        bench = SessionBench()
        bench.connect()
        bench.feed(stream_id, (one_way if stream_id & 2 else two_way)(session_id) + b"x", cut=cut)
        assert bench.close_code == frames.ID_ERROR
        assert bench.spoken.told[-1] == ("lost", 0, "", True) and bench.host.over == 1

    @pytest.mark.parametrize("stream_id", [4, 6])
    def test_beyond_what_the_client_may_open(self, stream_id):
        first = 4 if stream_id & 2 else 8  # behind what is open
        for beyond, code in ((0, frames.ID_ERROR), (4, None)):
            bench = SessionBench()
            bench.connect()
            session_id = first + 4 * MAX_STREAMS - beyond
            bench.feed(stream_id, (one_way if stream_id & 2 else two_way)(session_id) + b"x")
            assert bench.close_code == code

    def test_of_a_request(self, cut):
        bench = SessionBench()
        bench.feed(0, headers(POST))
        bench.feed(6, one_way(0) + b"x", cut=cut)
        bench.feed(4, two_way(0) + b"x", cut=cut)
        assert bench.flow(6).stop_code == BUFFERED_STREAM_REJECTED
        assert bench.flow(4).stop_code == bench.flow(4).reset_code == BUFFERED_STREAM_REJECTED
        bench.feed(0, data(b"on"), end=True)
        assert bench.request.body == b"on" and bench.host.rejected == 2

    def test_of_a_stream_that_is_gone(self):
        bench = SessionBench()
        bench.feed(0, headers(GET), end=True)
        bench.answer()
        bench.feed(6, one_way(0) + b"x")
        assert bench.flow(6).stop_code == SESSION_GONE

    def test_its_own(self, cut):
        bench = SessionBench()
        bench.feed(4, two_way(4) + b"x", cut=cut)
        assert bench.flow(4).stop_code == bench.flow(4).reset_code == SESSION_GONE and bench.is_open

    def test_of_a_stream_that_turns_out_to_be_one_of_a_session(self):
        bench = SessionBench()
        bench.connect()
        bench.feed(6, one_way(4) + b"x")
        bench.feed(4, two_way(0) + b"x")
        assert bench.flow(6).stop_code == BUFFERED_STREAM_REJECTED and bench.spoken.got == {4: b"x"}

    def test_in_a_circle(self):
        bench = SessionBench()
        bench.feed(4, two_way(8) + b"x")
        bench.feed(8, two_way(4) + b"x")
        assert bench.flow(4).reset_code == BUFFERED_STREAM_REJECTED and bench.flow(8).reset_code == SESSION_GONE
        assert not bench.codec._lanes.waiting and bench.codec.active == 1, "but stream 0"


class TestPrefaces:
    @pytest.mark.parametrize("before", [headers(GET), headers(CONNECT), frame(GREASE, b"x"), frame(GREASE)], ids=range(4))
    def test_the_frame_is_not_first(self, before, cut):
        bench = SessionBench()
        bench.feed(0, before + two_way(0), cut=cut)
        assert bench.close_code == frames.FRAME_ERROR

    def test_the_frame_on_the_control_stream(self, cut):
        bench = SessionBench()
        bench.feed(2, frame(codes.TWO_WAY, b"x"), cut=cut)
        assert bench.is_open, "there it is a frame that means nothing"

    def test_an_end_within_the_id_of_a_two_way_stream(self, cut):
        for size in (1, 2, 3):
            bench = SessionBench()
            bench.feed(0, (two_way(1 << 20))[:size], end=True, cut=cut)
            assert bench.close_code == frames.FRAME_ERROR

    @pytest.mark.parametrize("lone_fin", [False, True])
    def test_an_end_within_the_id_of_a_one_way_stream(self, cut, lone_fin):
        for size in (0, 1, 2, 3):
            bench = SessionBench()
            bench.feed(6, (one_way(1 << 20))[:size], end=True, cut=cut, lone_fin=lone_fin)
            assert bench.is_open and bench.all_credited()

    @pytest.mark.parametrize("stream_id", [4, 6])
    def test_a_reset_within_it(self, stream_id):
        for size in (0, 1, 2, 3):
            bench = SessionBench()
            bench.connect()
            bench.feed(stream_id, (one_way if stream_id & 2 else two_way)(1 << 20)[:size])
            bench.reset(stream_id)
            assert bench.is_open and bench.open_sessions == 1 and not bench.spoken.flows

    def test_a_preface_that_never_ends(self):
        bench = SessionBench()
        bench.connect()
        bench.feed(4, two_way(0)[:1])
        bench.expire()
        assert bench.flow(4).sent and bench.open_sessions == 1, "a slow head like any other"

    def test_without_webtransport_they_are_what_they_were(self, cut):
        from bearer import ServerBench

        bench = ServerBench()
        bench.feed(0, frame(codes.TWO_WAY, b"x") + headers(GET), end=True, cut=cut)
        bench.feed(6, one_way(0) + b"x", cut=cut)
        bench.codec.datagram(b"")
        assert bench.requests and bench.is_open and bench.flow(6).stop_code == frames.STREAM_CREATION_ERROR
        bench.feed(4, headers(CONNECT))
        assert bench.status(4) == "501"


MALFORMED = {
    "CLOSE without a code": capsule(CLOSE_SESSION),
    "CLOSE with half a code": capsule(CLOSE_SESSION, b"abc"),
    "CLOSE whose text is too long": capsule(CLOSE_SESSION, bytes(4 + MAX_REASON_BYTES + 1)),
    "CLOSE of all there is": capsule(CLOSE_SESSION, length=(1 << 62) - 1),
    "DRAIN with something": capsule(codes.DRAIN_SESSION, b"x"),
    "DATAGRAM that is too long": capsule(codes.DATAGRAM, length=MAX_CAPSULE_BYTES + 1),
}


class TestCapsules:
    @pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
    def test_malformed(self, sent, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.say(sent, cut=cut)
        assert bench.flow(0).reset_code == bench.flow(0).stop_code == frames.MESSAGE_ERROR
        assert spoken.told[-1] == ("lost", 0, "", True) and bench.host.over == 1 and bench.is_open

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_truncated(self, size, cut):
        bench = SessionBench()
        bench.connect()
        bench.say(CLOSE[:size], end=True, cut=cut)
        assert bench.flow(0).reset_code == frames.MESSAGE_ERROR and bench.host.over == 1

    def test_something_behind_close(self, cut):
        bench = SessionBench()
        bench.connect()
        bench.say(CLOSE + b"x", cut=cut)
        assert bench.flow(0).stop_code == frames.MESSAGE_ERROR
        assert bench.spoken.told[-1] == ("lost", 7, "", True) and bench.host.over == 1

    def test_text_that_is_none(self):
        bench = SessionBench()
        bench.connect()
        bench.say(capsule(CLOSE_SESSION, b"\0\0\0\1\xff\xfe"))
        assert bench.spoken.told[-1] == ("lost", 1, "��", True)

    def test_unknown_ones_are_skipped_whole(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.say(capsule(GREASE, bytes(3_000)) + capsule(0x190B4D3D, b"x") + capsule(codes.DRAIN_SESSION), cut=cut)
        bench.say(CLOSE, cut=cut)
        assert spoken.told[-1] == ("lost", 7, "", True)

    def test_an_unknown_one_without_end_costs_nothing(self):
        bench = SessionBench()
        bench.connect()
        bench.say(capsule(GREASE, length=(1 << 62) - 1))
        for _ in range(40):
            bench.say(bytes(100_000))
        assert bench.is_open and bench.all_credited()

    def test_a_flood(self):
        bench = SessionBench()
        bench.connect()
        bench.say(capsule(GREASE) * int(IDLE_BURST + 10))
        assert bench.close_code == frames.EXCESSIVE_LOAD and bench.floods == 1 and bench.host.over == 1

    def test_headers_in_the_tunnel(self):
        bench = SessionBench()
        bench.connect()
        bench.feed(0, headers(GET))
        assert bench.close_code == frames.FRAME_UNEXPECTED and bench.host.over == 1


class TestDatagrams:
    @pytest.mark.parametrize("payload", [b"", b"\x40", b"\x80\0\0", b"\xc0\0\0\0\0\0\0"], ids=bytes.hex)
    def test_too_short(self, payload):
        bench = SessionBench()
        bench.connect()
        bench.datagram(payload)
        assert bench.close_code == codes.DATAGRAM_ERROR == 0x33

    def test_an_id_that_no_stream_has(self):
        bench = SessionBench()
        bench.datagram(varint(1 << 60) + b"x")
        assert bench.close_code == codes.DATAGRAM_ERROR

    def test_of_a_stream_beyond_what_the_client_may_open(self):
        bench = SessionBench()
        bench.connect()
        bench.datagram(varint(MAX_STREAMS) + b"x")
        assert bench.is_open
        bench.datagram(varint(MAX_STREAMS + 1) + b"x")
        assert bench.close_code == frames.ID_ERROR

    def test_of_a_request(self):
        bench = SessionBench()
        bench.feed(0, headers(POST))
        bench.datagram(varint(0) + b"x")
        assert bench.is_open and not bench.codec._lanes._datagrams

    def test_no_more_wait_than_may(self):
        bench = SessionBench()
        for i in range(MAX_WAITING_DATAGRAMS + 5):
            bench.datagram(varint(0) + b"%d" % i)
        told = bench.connect(0).told
        assert len(told) == 1 + MAX_WAITING_DATAGRAMS and told[-1] == ("datagram", b"15")

    def test_a_flood_of_sessions_that_never_come(self):
        bench = SessionBench()
        for _ in range(int(IDLE_BURST + 10)):
            if bench.is_open:
                bench.datagram(varint(9) + b"x")
        assert bench.close_code == frames.EXCESSIVE_LOAD


class TestWaiting:
    def test_no_more_streams_wait_than_may(self):
        bench = SessionBench()
        for i in range(MAX_WAITING_STREAMS + 1):
            bench.feed(6 + 4 * i, one_way(0) + b"x")
        last = 6 + 4 * MAX_WAITING_STREAMS
        assert bench.flow(last).stop_code == BUFFERED_STREAM_REJECTED and bench.host.rejected == 1
        assert len(bench.connect(0).flows) == MAX_WAITING_STREAMS

    def test_nor_more_bytes(self):
        bench = SessionBench()
        bench.feed(6, one_way(0) + bytes(MAX_WAITING_BYTES - 1))
        bench.feed(10, one_way(0) + b"x")
        bench.feed(14, one_way(0) + b"x")
        assert bench.flow(14).stop_code == BUFFERED_STREAM_REJECTED and bench.flow(10).stop_code is None
        assert bench.codec._lanes._waiting_bytes == MAX_WAITING_BYTES
        assert {len(got) for got in bench.connect(0).got.values()} == {MAX_WAITING_BYTES - 1, 1}
        assert bench.codec._lanes._waiting_bytes == 0

    def test_a_flood_of_sessions_that_never_come(self):
        bench = SessionBench()
        for i in range(int(RESET_BURST) + MAX_WAITING_STREAMS + 10):
            if bench.is_open:
                bench.feed(6 + 4 * i, one_way(0) + b"x")
        assert bench.close_code == frames.EXCESSIVE_LOAD and bench.floods == 1

    def test_a_flood_that_ends_while_streams_are_turned_away(self):
        """What waits for a stream is turned away as that turns out to be a session's itself: that may be the last straw."""
        bench = SessionBench()
        bench.connect()
        for i in range(int(RESET_BURST)):
            bench.feed(6 + 4 * i, one_way(400) + b"x")
            bench.reset(6 + 4 * i)
        behind = 6 + 4 * int(RESET_BURST)
        bench.feed(behind, one_way(4) + b"x")
        bench.feed(4, two_way(0) + b"x")
        assert bench.close_code == frames.EXCESSIVE_LOAD and bench.host.over == 1

    def test_a_flood_of_two_way_streams_of_sessions_that_are_gone(self):
        bench = SessionBench()
        bench.connect()
        bench.say(CLOSE, end=True)
        for i in range(int(RESET_BURST) + 10):
            if bench.is_open:
                bench.feed(4 + 4 * i, two_way(0) + b"x")
        assert bench.close_code == frames.EXCESSIVE_LOAD


def test_nothing_of_ours_goes_behind_the_end():
    bench = SessionBench()
    spoken = bench.connect()
    bench.feed(4, two_way(0) + b"x")
    bench.say(CLOSE)
    spoken.flows[4].send(b"late", False)
    spoken.bearer.touch()
    spoken.bearer.watch()
    bench.flush()
    assert not bench.flow(4).sent and parse(bench.body(0)) == []
