"""Lanes to a sidecar where sides do not keep step: held and let go in one tick, ends, sizes, refusals."""

import pytest

from router.errors import Kind, ProxyError, Source
from router.transport.codec.framing import COMMAND_LANE, STATE_LANE
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.client_commands import MAX_UNSENT_BYTES
from tests.transport.codec.robot.lanekit import Lanes


def held(**kwargs):
    """Return lanes whose client takes nothing."""
    lanes = Lanes(**kwargs).opened()
    lanes.replica.binary(b"metadata")
    assert lanes.run(lambda: lanes.heard_messages)
    lanes.heard_messages.clear()
    lanes.tunnel.pause()
    return lanes


def comes(lanes, lane, data):
    """Have a message come in the tick that is under way."""
    lanes.stream._message(lane, 0, data, False)  # noqa: SLF001 - what the sidecar's connection calls


def test_a_state_that_comes_in_the_tick_in_which_commands_are_let_go_keeps_its_lane():
    lanes = held()
    lanes.replica.text("first")
    lanes.run(limit_s=0.1)
    lanes.tunnel.resume()
    comes(lanes, wire.STATE, b"state")
    assert lanes.run(lambda: len(lanes.heard_messages) == 2)
    assert lanes.heard_messages == [(COMMAND_LANE, "first"), (STATE_LANE, b"state")]
    assert lanes.stream.application._commands.waiting_bytes == 0  # noqa: SLF001 - no credit for what was no command


def test_a_state_that_was_held_is_not_delivered_behind_a_newer_one():
    lanes = held()
    lanes.replica.binary(b"older")
    lanes.run(limit_s=0.1)
    lanes.tunnel.resume()
    comes(lanes, wire.STATE, b"newer")
    lanes.run(limit_s=0.1)
    assert lanes.heard_messages == [(STATE_LANE, b"newer")]
    assert lanes.stream.meter.stale == 1


def test_all_that_waits_stands_before_the_engines_close():
    lanes = held()
    lanes.is_reading = False
    for number in range(3):
        lanes.replica.text(f"{number}")
    lanes.replica.binary(b"state")
    lanes.run(limit_s=0.1)
    lanes.replica.close(4_321, "because")
    assert lanes.run(lambda: lanes.closed is not None)
    assert lanes.heard_messages == [*((COMMAND_LANE, f"{number}") for number in range(3)), (STATE_LANE, b"state")]
    assert lanes.closed == (4_321, "because", "")


def test_no_command_is_too_much_for_what_is_unsent():
    lanes = Lanes().opened()
    large = bytes(MAX_UNSENT_BYTES + 1)
    lanes.send_command(b"small")
    lanes.send_command(large)
    lanes.send_command(b"last")
    assert lanes.run(lambda: len(lanes.replica.messages) == 3)
    assert lanes.replica.messages == [b"small", large, b"last"]


@pytest.mark.parametrize("is_state", [False, True])
def test_what_the_sidecar_takes_is_not_exceeded(is_state):
    lanes = Lanes().opened()
    lanes.stream.application.max_message_bytes = 10  # as its WELCOME may say
    lanes.tunnel.send(b"longer than ten", is_state=is_state)
    lanes.send_command(b"on")
    assert lanes.run(lambda: lanes.closed is not None)
    assert lanes.closed[0] == wire.TOO_LARGE
    assert lanes.replica.messages == []
    assert lanes.run(lambda: lanes.client.connection.is_over)


@pytest.mark.parametrize("code", ["at_capacity", "no_replica"])
def test_a_refusal_keeps_its_reason(code):
    lanes = Lanes(auto=False)
    assert lanes.run(lambda: lanes.replicas)
    lanes.replica.refuse(503, code, 7, b"full")
    assert lanes.run(lambda: lanes.refused is not None)
    assert lanes.refused_code == code


def test_a_reason_of_a_refusal_is_bounded():
    lanes = Lanes(auto=False)
    assert lanes.run(lambda: lanes.replicas)
    lanes.session.say_refused("x" * 10_000, 503, b"", 0)
    lanes.session.end(wire.NO_ROOM, "")
    assert lanes.run(lambda: lanes.refused is not None)
    assert len(lanes.refused_code) <= control.MAX_CODE_CHARS


@pytest.mark.parametrize("how", ["closed", "cut", "reset"])
def test_what_is_over_is_freed_without_a_collection(how):
    lanes = Lanes().opened()
    stream, client = lanes.stream, lanes.stream.application
    if how == "closed":
        lanes.replica.close(1_000)
        assert lanes.run(lambda: lanes.closed is not None)
    elif how == "cut":
        client.connection_lost(0, "", True)
    else:
        stream.reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
    assert stream.application is None, "its client's calls lead back to it"
