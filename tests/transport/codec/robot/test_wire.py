"""Frames and headers of lanes: what one side writes the other reads, however it is cut; what is wrong is a fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.transport.codec.quic.varint import MAX_VARINT, varint
from router.transport.codec.robot import control, wire

integers = st.integers(0, MAX_VARINT)
payloads = st.binary(max_size=300)
cuts = st.lists(st.integers(1, 40), max_size=60)


def pieces(data, sizes):
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size
    yield data[at:]


@given(st.lists(st.tuples(integers, payloads), max_size=6), cuts)
def test_control_frames_however_they_are_cut(frames, sizes):
    reader = wire.FrameReader()
    stream = b"".join(wire.write_frame(kind, body) for kind, body in frames)
    found = [(one.kind, one.body) for piece in pieces(stream, sizes) for one in reader.read(piece)]
    assert found == frames
    assert reader.is_between
    assert not reader.fault


@given(st.lists(st.tuples(payloads, integers, st.booleans()), max_size=6), cuts, st.booleans())
def test_commands_however_they_are_cut(messages, sizes, from_client):
    messages = [(data.hex().encode() if is_text else data, deadline, is_text) for data, deadline, is_text in messages]
    stream = (b"C" if from_client else b"") + b"".join(
        wire.command_header(len(data), deadline, is_text=is_text) + data for data, deadline, is_text in messages
    )
    reader = wire.CommandReader(from_client=from_client)
    found = [(one.data, one.deadline, one.is_text) for piece in pieces(stream, sizes) for one in reader.read(piece)]
    assert found == messages
    assert reader.is_between
    assert not reader.fault


@given(st.integers(1, MAX_VARINT), integers, payloads, cuts)
def test_a_state_message_however_it_is_cut(sequence, deadline, payload, sizes):
    reader = wire.StateReader()
    for piece in pieces(wire.state_header(sequence, deadline) + payload, sizes):
        assert reader.read(piece)
    assert (reader.sequence, reader.deadline, reader.payload(), reader.size) == (sequence, deadline, payload, len(payload))


@given(st.binary(max_size=200), cuts)
def test_garbage_is_a_fault_or_waits_but_nothing_is_raised(data, sizes):
    for reader in (wire.FrameReader(), wire.CommandReader(from_client=True), wire.CommandReader(from_client=False), wire.StateReader()):
        for piece in pieces(data, sizes):
            reader.read(piece)
    wire.read_telemetry(data)
    for kind in (*range(1, 6), 0x11, 0x12, 0x13):
        control.decode(wire.Frame(kind, data))


def test_nothing_is_read_behind_a_fault():
    reader = wire.FrameReader()
    assert reader.read(varint(1) + varint(wire.MAX_FRAME_BYTES + 1)) == []
    assert reader.fault == wire.TOO_LARGE
    assert reader.read(wire.write_frame(wire.BYE, b"\x80")) == []
    commands = wire.CommandReader(from_client=False)
    good = wire.command_header(1, 0, is_text=False) + b"a"
    assert len(commands.read(good + b"\x01\x02\x00b" + good)) == 1
    assert commands.fault == wire.BROKEN
    assert commands.read(good) == []


def test_the_largest_frame_and_message_are_taken():
    reader = wire.FrameReader()
    (frame,) = reader.read(wire.write_frame(9, bytes(wire.MAX_FRAME_BYTES)))
    assert len(frame.body) == wire.MAX_FRAME_BYTES
    commands = wire.CommandReader(from_client=False)
    (one,) = commands.read(wire.command_header(wire.MAX_MESSAGE_BYTES, 0, is_text=False) + bytes(wire.MAX_MESSAGE_BYTES))
    assert len(one.data) == wire.MAX_MESSAGE_BYTES
    state = wire.StateReader()
    assert state.read(wire.state_header(1, 0) + bytes(wire.MAX_MESSAGE_BYTES))
    assert not state.read(b"x")
    assert state.fault == wire.TOO_LARGE


def test_a_header_of_24_bytes_and_one_that_says_its_numbers_at_length():
    long = b"\xc0\0\0\0\0\0\0\x01" + b"\xc0\0\0\0\0\0\0\x00" + b"\xc0\0\0\0\0\0\0\x07"
    assert len(long) == wire.MAX_HEADER_BYTES
    for size in (1, 5, 23, 24, 30):
        reader = wire.CommandReader(from_client=False)
        stream = (long + b"z") * 3
        found = [one for at in range(0, len(stream), size) for one in reader.read(stream[at : at + size])]
        assert [(one.data, one.deadline, one.is_text) for one in found] == [(b"z", 7, False)] * 3


@pytest.mark.parametrize(
    "body",
    [
        control.Hello("a.test", "/p", [("a", "b")], "command", "token"),
        control.Ping(1, 2),
        control.Pong(1, 2, 3, 4),
        control.Link(1, 2, 3, 4, 5, 6),
        control.Bye(),
        control.Welcome("s", 1, "t", "r", 5),
        control.Refused("no_replica", 503, "later", 1),
        control.Epoch(2, "r"),
    ],
    ids=lambda body: type(body).__name__,
)
def test_maps_are_read_as_they_were_written(body):
    (frame,) = wire.FrameReader().read(control.encode(body))
    assert control.is_known(frame.kind)
    assert control.decode(frame) == body


def test_more_headers_than_a_request_may_have_are_no_hello():
    many = control.Hello("a", headers=[("x", "y")] * (control.MAX_RELAYED_HEADERS + 1))
    (frame,) = wire.FrameReader().read(control.encode(many))
    assert control.decode(frame) is None


@given(st.integers(1, MAX_VARINT), payloads)
def test_telemetry(sequence, payload):
    assert wire.read_telemetry(wire.telemetry(sequence, payload)) == sequence
