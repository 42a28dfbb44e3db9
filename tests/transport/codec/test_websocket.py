"""Handshake values, the close frame, and frame boundaries against a reference that reads byte by byte."""

import base64

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from router.transport.codec.websocket import FrameBoundary, accept_value, close_frame, make_key

CLOSE = b"\x88\x02\x03\xe8"


def test_accept_value():
    assert accept_value(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3


def test_keys_are_sixteen_fresh_bytes():
    keys = {make_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(base64.b64decode(key)) == 16 for key in keys)


@pytest.mark.parametrize("reason", ["", "draining", "x" * 500])
def test_a_close_frame_fits_a_control_frame(reason):
    frame = close_frame(1012, reason)
    assert frame[0] == 0x88
    assert frame[1] == len(frame) - 2 <= 125  # RFC 6455 §5.5
    assert frame[2:4] == (1012).to_bytes(2, "big")
    assert frame[4:].decode() == reason[:123]


class Reference:
    """Byte by byte: what is left of the current frame, and whether a close frame began."""

    def __init__(self):
        self.header = b""
        self.left = 0
        self.closed = False

    def follow(self, data):
        for byte in data:
            if self.left:
                self.left -= 1
                continue
            self.header += bytes((byte,))
            if len(self.header) < 2:
                continue
            length = self.header[1] & 0x7F
            extended = 2 if length == 126 else 8 if length == 127 else 0
            mask = 4 if self.header[1] & 0x80 else 0
            if len(self.header) < 2 + extended + mask:
                continue
            if self.header[0] & 0x0F == 8:
                self.closed = True
            self.left = int.from_bytes(self.header[2 : 2 + extended], "big") if extended else length
            self.header = b""

    @property
    def may_close(self):
        return not (self.left or self.header or self.closed)


def frame(opcode, size, *, masked=False, form=0):
    """One frame; `form` may choose a longer length field than is needed."""
    mask = 0x80 if masked else 0
    if size < 126 and form == 0:
        head = bytes((0x80 | opcode, mask | size))
    elif size < 65_536 and form <= 1:
        head = bytes((0x80 | opcode, mask | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, mask | 127)) + size.to_bytes(8, "big")
    # Payload that looks like headers, so that one read out of step shows.
    return head + (b"mask" if masked else b"") + (b"\x88\x02" * size)[:size]


SIZES = st.one_of(st.integers(0, 10), st.integers(120, 131), st.integers(65_530, 65_540))
FRAMES = st.lists(
    st.builds(frame, st.sampled_from([0, 1, 2, 9, 10]), SIZES, masked=st.booleans(), form=st.integers(0, 2)),
    max_size=4,
)
STEPS = st.lists(
    st.one_of(st.integers(1, 4), st.integers(5, 200), st.integers(1_000, 70_000)), min_size=1, max_size=8
)


def follow_both(data, steps):
    ours, reference = FrameBoundary(), Reference()
    assert ours.may_close
    at = turn = 0
    while at < len(data):
        size = steps[turn % len(steps)]
        piece = data[at : at + size]
        ours.follow(piece)
        reference.follow(piece)
        assert ours.may_close == reference.may_close, (at, size)
        at += size
        turn += 1


@settings(deadline=None)
@given(frames=FRAMES, steps=STEPS, closes=st.booleans(), missing=st.integers(0, 20))
def test_boundaries(frames, steps, closes, missing):
    data = b"".join(frames) + (CLOSE if closes else b"")
    follow_both(data[: max(0, len(data) - missing)], steps)


@settings(deadline=None)
@given(
    frames=st.lists(st.builds(frame, st.sampled_from([1, 2, 9]), st.integers(0, 130)), max_size=8),
    closes=st.booleans(),
)
def test_a_frame_a_piece(frames, closes):
    """The common case: each write of the replica is one whole frame."""
    ours, reference = FrameBoundary(), Reference()
    for piece in [*frames, CLOSE] if closes else frames:
        ours.follow(piece)
        reference.follow(piece)
        assert ours.may_close == reference.may_close


@settings(deadline=None)
@given(data=st.binary(max_size=300), steps=STEPS)
def test_any_bytes(data, steps):
    ours, reference = FrameBoundary(), Reference()
    at = turn = 0
    while at < len(data):
        piece = data[at : at + steps[turn % len(steps)]]
        ours.follow(piece)
        reference.follow(piece)
        if not reference.closed:
            assert ours.may_close == reference.may_close
        at += len(piece)
        turn += 1


@pytest.mark.parametrize("more", [b"\x81", b"\x81\x01x", b"\x81\x01x\x81\x01y"])
def test_nothing_may_stand_behind_a_close_frame(more):
    """RFC 6455 §5.5.1: after a close frame no further frame is sent, also not a second close of ours."""
    boundary = FrameBoundary()
    boundary.follow(CLOSE)
    boundary.follow(more)
    boundary.follow(b"\x01x" if len(more) == 1 else b"\x82\x00")
    assert not boundary.may_close
