"""WebSocket messages out of a replica's bytes, in whatever pieces, and frames out of ours; `websockets` is the peer."""

import random

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State

from router.transport.codec import messages
from router.transport.codec.messages import BINARY, CLOSE, PING, TEXT, MessageReader


def frame(kind, payload, *, fin=True):
    return Frame(Opcode(kind), payload, fin).serialize(mask=False)


def shape(found):
    return [(one.kind, one.data, one.code) for one in found]


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (frame(BINARY, b"abc"), [(BINARY, b"abc", 0)]),
        (frame(TEXT, "grüße".encode()), [(TEXT, "grüße".encode(), 0)]),
        (frame(BINARY, b""), [(BINARY, b"", 0)]),
        (frame(BINARY, bytes(126)), [(BINARY, bytes(126), 0)]),
        (frame(BINARY, bytes(70_000)), [(BINARY, bytes(70_000), 0)]),
        (frame(BINARY, b"a", fin=False) + frame(0, b"b", fin=False) + frame(0, b"c"), [(BINARY, b"abc", 0)]),
        (
            frame(BINARY, b"a", fin=False) + frame(PING, b"?") + frame(0, b"b"),
            [(PING, b"?", 0), (BINARY, b"ab", 0)],
        ),
        (frame(CLOSE, b"\x03\xf5why"), [(CLOSE, b"why", 1013)]),
        (frame(CLOSE, b""), [(CLOSE, b"", 1005)]),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 100_000])
def test_messages(wire, expected, step):
    reader = MessageReader(100_000)
    found = []
    for at in range(0, len(wire), step):
        found += reader.read(wire[at : at + step])
    assert shape(found) == expected
    assert not reader.fault


@pytest.mark.parametrize(
    ("wire", "fault"),
    [
        (b"\xc2\x01a", 1002),  # a reserved bit
        (b"\x82\x81keyxa", 1002),  # masked
        (b"\x83\x01a", 1002),  # an unknown opcode
        (b"\x80\x01a", 1002),  # a continuation of nothing
        (b"\x02\x01a\x82\x01b", 1002),  # a message within a message
        (b"\x09\x01a", 1002),  # a fragmented ping
        (b"\x89\x7e\x00\x80" + bytes(128), 1002),  # a long ping
        (b"\x88\x01\x03", 1002),  # half a close code
        (b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), 1009),
        (b"\x02\x7e\x03\xe8" + bytes(1000) + b"\x80\x01a", 1009),
        (b"\x81\x02\xff\xfe", 1007),
    ],
)
def test_faults(wire, fault):
    whole = MessageReader(1_000)
    whole.read(wire)
    assert whole.fault == fault
    bytewise = MessageReader(1_000)
    for at in range(len(wire)):
        bytewise.read(wire[at : at + 1])
    assert bytewise.fault == fault


@pytest.mark.parametrize("size", [0, 1, 5, 125, 126, 65_535, 65_536, 600_000])
def test_what_we_write_is_read_by_a_server(size):
    payload = random.Random(size).randbytes(size)
    server = Protocol(SERVER, state=State.OPEN, max_size=None)
    server.receive_data(messages.write_frame(BINARY, payload))
    received = server.events_received()
    assert [(one.opcode, bytes(one.data)) for one in received] == [(Opcode.BINARY, payload)]
    assert server.parser_exc is None


def test_a_close_payload_fits_and_is_text():
    assert messages.close_payload(1011, "ä" * 100) == b"\x03\xf3" + ("ä" * 61).encode()
