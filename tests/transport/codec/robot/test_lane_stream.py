"""A robot's tunnel by lanes, from the router's side of a session to the sidecar's, over two engines in memory."""

import pytest

from router.errors import Kind, ProxyError, Source
from router.transport.codec.framing import COMMAND_LANE, STATE_LANE, LaneFraming, lane_header
from router.transport.codec.head import read_request
from router.transport.codec.quic.limits import HIGH_BYTES
from router.transport.codec.robot import wire
from router.transport.codec.robot.lane_stream import LaneStream, fits
from router.transport.codec.robot.limits import GOODBYE_S
from tests.transport.codec.quic.rig import Link
from tests.transport.codec.robot.lanekit import Lanes

REQUEST = [
    (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", b"robots.test"),
    (b":path", b"/p"), (b"sec-websocket-version", b"13"),
]  # fmt: skip
GONE = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)


def noise(size, seed=0):
    return bytes((n * 31 + seed * 7) & 0xFF for n in range(256)) * (size // 256 + 1)


@pytest.mark.parametrize("bytewise", [False, True])
def test_messages_keep_their_lanes_both_ways(bytewise):
    lanes = Lanes(bytewise=bytewise, headers=[(b"x-mine", b"1"), (b"authorization", b"Bearer engine's")]).opened()
    head = lanes.replica.head
    assert (head.shape.authority, head.shape.path) == (b"robots.test", b"/p")
    assert {(b"x-mine", b"1"), (b"authorization", b"Bearer engine's")} <= set(head.shape.fields)
    assert head.shape.known[b"x-router-key"] == b"the ticket"
    assert lanes.session.is_relayed
    lanes.replica.binary(b"metadata")
    assert lanes.run(lambda: lanes.heard_messages == [(COMMAND_LANE, b"metadata")])
    lanes.send_state(noise(30_000))
    lanes.send_command(b"")
    lanes.send_command(b"stop", is_text=True)
    assert lanes.run(lambda: len(lanes.replica.messages) == 3)
    assert [one for one in lanes.replica.messages if one != noise(30_000)] == [b"", "stop"]
    lanes.replica.binary(b"reply")
    lanes.replica.text("a traceback")
    assert lanes.run(lambda: len(lanes.heard_messages) == 3)
    assert set(lanes.heard_messages[1:]) == {(STATE_LANE, b"reply"), (COMMAND_LANE, "a traceback")}
    assert (lanes.counters.robot_state_in, lanes.counters.robot_command_in) == (1, 2)


def test_replies_that_may_not_be_lost_are_asked_for_by_the_lane_of_commands():
    lanes = Lanes(headers=[(b"x-router-replies", b"command")]).opened()
    lanes.replica.binary(b"metadata")
    for number in range(50):
        lanes.replica.binary(b"%d" % number)
    assert lanes.run(lambda: len(lanes.heard_messages) == 51)
    assert lanes.heard_messages[1:] == [(COMMAND_LANE, b"%d" % number) for number in range(50)]


@pytest.mark.parametrize(("status", "after_s", "body"), [(503, 7, b"full"), (404, 0, b""), (429, 1, b"x" * 400)])
def test_a_refusal_keeps_its_status(status, after_s, body):
    lanes = Lanes(auto=False)
    assert lanes.run(lambda: lanes.replicas)
    lanes.replica.refuse(status, "at_capacity", after_s, body)
    assert lanes.run(lambda: lanes.refused is not None)
    assert lanes.refused == (status, after_s, body)
    assert lanes.closed is None


@pytest.mark.parametrize(("code", "shown"), [(1_001, 1_001), (1_012, 1_012), (4_321, 4_321), (1_000, 1_000)])
def test_the_engines_close_is_the_sidecars(code, shown):
    lanes = Lanes().opened()
    lanes.replica.binary(b"last words")
    lanes.replica.close(code, "because")
    assert lanes.run(lambda: lanes.closed is not None)
    assert lanes.closed == (shown, "because", "")
    assert lanes.heard_messages == [(COMMAND_LANE, b"last words")]
    assert len(lanes.replicas) == 1  # the router takes another one, and not the sidecar


def test_an_engine_that_is_cut_off_is_one_that_goes():
    lanes = Lanes().opened()
    lanes.replica.stream.reset(ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM))
    assert lanes.run(lambda: lanes.closed is not None)
    assert lanes.closed[0] == 1_001
    assert len(lanes.replicas) == 1


def test_a_way_that_is_cut_is_a_replica_that_failed():
    lanes = Lanes().opened()
    lanes.up.drop = lanes.down.drop = lambda _: True
    assert lanes.run(lambda: lanes.closed is not None, 120.0)
    assert lanes.between.error.kind is Kind.UPSTREAM_RESET
    assert lanes.closed[2] == Kind.UPSTREAM_RESET.value


def test_a_sidecar_that_never_welcomes():
    lanes = Lanes(auto=False)
    assert lanes.run(lambda: lanes.replicas)
    lanes.session.shut(wire.GOING, "going", wire.GOING)
    assert lanes.run(lambda: lanes.refused is not None)
    assert lanes.between.error.kind is Kind.UPSTREAM_CLOSED


def test_a_newer_state_overtakes_and_commands_are_not_held_up():
    lanes = Lanes(up=Link(delay_s=0.02, loss=0.02, seed=5), down=Link(delay_s=0.02, loss=0.02, seed=6)).opened()
    for number in range(20):
        lanes.send_state(noise(300_000, number))
        lanes.send_command(b"%d" % number)
        lanes.run(limit_s=0.01)
    assert lanes.run(lambda: noise(300_000, 19) in lanes.replica.messages)
    arrived = lanes.replica.messages
    assert [one for one in arrived if len(one) < 10] == [b"%d" % number for number in range(20)]
    assert len([one for one in arrived if len(one) > 10]) < 20
    assert lanes.session.counters.robot_stale_in + lanes.stream.meter.stale > 0


def test_what_is_late_is_not_delivered():
    lanes = Lanes(up=Link(delay_s=0.05), down=Link(delay_s=0.05)).opened()
    lanes.run(limit_s=3.0)  # PINGs: the clocks are known
    lanes.send_state(noise(1_000, 1), within_s=0.03)
    lanes.run(limit_s=0.5)
    lanes.send_state(noise(1_000, 2), within_s=0.3)
    assert lanes.run(lambda: noise(1_000, 2) in lanes.replica.messages)
    assert lanes.replica.messages == [noise(1_000, 2)]


def test_a_client_that_takes_nothing_is_felt_by_the_engine():
    lanes = Lanes(headers=[(b"x-router-replies", b"command")]).opened()
    lanes.tunnel.pause()
    for _ in range(64):
        lanes.replica.binary(bytes(100_000))
        lanes.run(limit_s=0.05)
    assert lanes.replica.paused
    assert lanes.heard_messages == []
    lanes.tunnel.resume()
    assert lanes.run(lambda: len(lanes.heard_messages) == 64)
    assert not lanes.replica.paused


def test_of_states_for_a_client_that_takes_nothing_the_newest_is_kept():
    lanes = Lanes().opened()
    lanes.replica.binary(b"metadata")
    assert lanes.run(lambda: lanes.heard_messages)
    lanes.tunnel.pause()
    for number in range(5):
        lanes.replica.binary(b"%d" % number)
        lanes.run(limit_s=0.05)
    lanes.replica.text("error")
    lanes.run(limit_s=0.1)
    assert len(lanes.heard_messages) == 1
    lanes.tunnel.resume()
    assert lanes.run(lambda: len(lanes.heard_messages) == 3)
    assert lanes.heard_messages[1:] == [(COMMAND_LANE, "error"), (STATE_LANE, b"4")]


def test_commands_that_the_engine_does_not_take_hold_up_the_router():
    lanes = Lanes().opened()
    lanes.replica.stream.hold(1)
    sent = 0
    while not lanes.between.paused:
        lanes.send_command(bytes(50_000))
        sent += 1
        lanes.run(limit_s=0.05)
        assert sent < 1_000, "nobody ever says stop"
    assert lanes.tunnel.is_full()
    assert sent * 50_000 > HIGH_BYTES
    lanes.replica.stream.release(1)
    assert lanes.run(lambda: len(lanes.replica.messages) == sent)
    assert lanes.between.paused == [True, False]
    assert not lanes.tunnel.is_full()


def test_a_goodbye_waits_for_commands():
    lanes = Lanes().opened()
    for number in range(20):
        lanes.send_command(noise(10_000, number))
    lanes.tunnel.close(wire.DONE)
    assert lanes.run(lambda: lanes.replica.closed is not None)
    assert lanes.replica.messages == [noise(10_000, number) for number in range(20)]
    assert lanes.replica.closed == 1_000
    assert lanes.run(lambda: lanes.client.connection.is_over, GOODBYE_S + 5.0)


def test_a_reset_ends_the_connection():
    lanes = Lanes().opened()
    lanes.stream.reset(GONE)
    assert lanes.run(lambda: lanes.replica.is_over)
    assert lanes.between.error is None
    assert lanes.replica.error is not None or lanes.replica.closed == wire.GOING


@pytest.mark.parametrize("count", [0, 100])
def test_as_many_fields_as_a_robot_may_have_fit(count):
    lanes = Lanes(headers=[(b"x-%d" % n, b"") for n in range(count)]).opened()
    assert fits(lanes.between.head)
    assert len(lanes.replica.head.shape.fields) == count


@pytest.mark.parametrize(
    "headers",
    [[(b"x-large", b"a" * 16_300)], [(b"x-%d" % n, b"") for n in range(113)], [(b"x-latin", b"caf\xe9")]],
)
def test_what_no_hello_holds_does_not_fit(headers):
    head = read_request([*REQUEST, *headers], wire.VERSION)
    assert not fits(head)
    head = read_request([*REQUEST, (b"x-mine", b"a" * 15_000)], wire.VERSION)
    assert fits(head)


def test_a_robot_at_work_is_not_interrupted_by_a_drain():
    lanes = Lanes().opened()
    lanes.stream.application.drain()
    lanes.stream.application.retire(lanes.now)
    lanes.send_command(b"on")
    assert lanes.run(lambda: lanes.replica.messages == [b"on"])


def test_framing_takes_any_pieces():
    framing, other = LaneFraming(), LaneFraming()
    said = b"".join(
        (*framing.write(b"abc", False, True, 5), *framing.write(b"", False, False, 0),
         *framing.write(b"text", True, False, 0), framing.write_close(4_000, "why")),
    )  # fmt: skip
    found = [message for byte in said for message in other.read(bytes((byte,)))]
    assert [(one.kind, one.data, one.code, one.lane) for one in found] == [
        (2, b"abc", 0, STATE_LANE), (2, b"", 0, COMMAND_LANE), (1, b"text", 0, COMMAND_LANE), (8, b"why", 4_000, 0),
    ]  # fmt: skip
    assert other.fault == 0
    other.read(lane_header(1, 8, 0))
    assert other.fault == wire.BROKEN


def test_on_the_wire_a_lane_has_no_such_flags():
    reader = wire.CommandReader(from_client=False)
    assert reader.read(lane_header(1, 2, 0) + b"a") == []
    assert reader.fault == wire.BROKEN
    assert LaneStream.is_untouched(None) is False


@pytest.mark.parametrize("how", ["goodbye", "cut"])
def test_whoever_is_cut_off_leaves_the_engine_at_once(how):
    """As a WebSocket that is cut: the router has room for another session from then on, so must the sidecar."""
    lanes = Lanes().opened()
    if how == "cut":
        lanes.tunnel.abandon()
        assert lanes.run(lambda: lanes.replica.is_over, limit_s=1)
        assert lanes.replica.closed is None
        assert lanes.replica.error is not None
    else:
        lanes.tunnel.close(1001)
        assert lanes.run(lambda: lanes.replica.is_over, limit_s=1)
        assert lanes.replica.closed == 1000
        assert lanes.replica.error is None
