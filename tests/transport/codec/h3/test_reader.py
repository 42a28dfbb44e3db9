"""FrameReader: the same frames, however their bytes are cut; large payloads are handed on and not kept."""

import random

import hypothesis.strategies as st
import pytest
from bearer import frame
from hypothesis import given, settings

from router.transport.codec.h3.reader import GATHER, PASS, SKIP, STOP, FrameReader
from router.transport.codec.quic.varint import varint

MODES = {0: PASS, 1: GATHER, 0x21: SKIP, 0x5C: GATHER, 0x3FFF: SKIP, 0x12345678: GATHER, (1 << 62) - 1: PASS}


class Recorder(FrameReader):
    def __init__(self, stop_at=-1):
        super().__init__()
        self.found = []
        self.slices = []
        self.stop_at = stop_at
        self.ended = False

    def on_frame(self, kind, length):
        if kind == self.stop_at:
            return STOP
        self.found.append([kind, length, b""])
        return MODES[kind]

    def on_payload(self, kind, payload, end):
        assert self.found[-1][:2] == [kind, len(payload)]
        self.found[-1][2] = payload
        self.ended = end

    def on_slice(self, data, end):
        self.found[-1][2] += data
        self.slices.append(len(data))
        self.ended = end


frame_lists = st.lists(st.tuples(st.sampled_from(sorted(MODES)), st.binary(max_size=300)), max_size=8)


def forms(value):
    """Every form of an integer, the longer ones too (RFC 9000 §16 asks for none in particular)."""
    for size, bits in ((1, 6), (2, 14), (4, 30), (8, 62)):
        if value < 1 << bits:
            yield (value | (size.bit_length() - 1) << 8 * size - 2).to_bytes(size, "big")


@given(frame_lists, st.integers(0, 1 << 30), st.booleans())
@settings(deadline=None, max_examples=200)
def test_however_they_are_cut(listed, seed, by_byte):
    rng = random.Random(seed)
    stream = b"".join(
        rng.choice(list(forms(kind))) + rng.choice(list(forms(len(payload)))) + payload for kind, payload in listed
    )
    reader = Recorder()
    at = 0
    while at < len(stream):
        size = 1 if by_byte else rng.choice((1, 2, 3, 7, 19, 400))
        piece = stream[at : at + size]
        assert reader.feed(piece, False) == len(piece)
        at += size
    assert not reader.is_within_frame()
    wanted = [[k, len(p), b"" if MODES[k] == SKIP else p] for k, p in listed]
    assert reader.found == wanted


@pytest.mark.parametrize("stream", [b"\x00", b"\x40", b"\x00\x05", b"\x01\x05abcd", b"\x21\x01", b"\x00\x05abc", b"\x80\0"])
def test_a_frame_that_is_not_whole_is_known(stream, cut):
    reader = Recorder()
    for piece in cut(stream):
        reader.feed(piece, False)
    assert reader.is_within_frame()


def test_an_end_is_told_with_the_last_of_a_payload():
    for stream in (frame(0, b"abc"), frame(1, b"abc"), frame(0), frame(1)):
        reader = Recorder()
        reader.feed(stream, True)
        assert reader.ended
        reader = Recorder()
        reader.feed(stream + b"\0", True)
        assert not reader.ended


def test_a_large_payload_is_handed_on_and_not_copied():
    reader = Recorder()
    reader.feed(varint(0) + varint(1 << 40), False)
    piece = b"x" * 65_536
    taken = []
    reader.on_slice = lambda data, end: taken.append(data)
    for _ in range(100):
        reader.feed(piece, False)
    assert all(data is piece for data in taken) and len(taken) == 100


def test_what_stops_reading_leaves_the_rest():
    reader = Recorder(stop_at=0x21)
    stream = frame(0, b"abc") + frame(0x21, b"x") + frame(0, b"def")
    assert reader.feed(stream, False) == len(frame(0, b"abc")) + 2
    reader = Recorder()

    def stop(data, end):
        reader.may_read = False

    reader.on_slice = stop
    assert reader.feed(frame(0, b"abc") + frame(0, b"def"), False) == len(frame(0, b"abc"))
