"""QPACK against pylsqpack, which nobody here wrote (RFC 9204)."""

import hypothesis.strategies as st
import pylsqpack
import pytest
from bearer import section
from hypothesis import given, settings

from router.transport.codec.h3.limits import MAX_LIST_BYTES
from router.transport.codec.h3.qpack import STATIC, QpackDecoder, write_field, write_fields

names = st.one_of(
    st.sampled_from([name for name, _ in STATIC]),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=40).map(str.encode),
)
values = st.one_of(st.sampled_from([value for _, value in STATIC]), st.binary(max_size=300))
lists = st.lists(st.tuples(names, values), max_size=12)


def peer_decodes(block):
    _, fields = pylsqpack.Decoder(0, 0).feed_header(0, block)
    return [tuple(field) for field in fields]


def integer(pattern, mask, value):
    out = bytearray((pattern | min(value, mask),))
    if value >= mask:
        value -= mask
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def test_the_static_table():
    assert len(STATIC) == 99
    for index, field in enumerate(STATIC):
        assert peer_decodes(b"\0\0" + integer(0xC0, 0x3F, index)) == [field]


@given(lists)
@settings(deadline=None, max_examples=200)
def test_what_a_peer_writes_is_read(fields):
    decoder = QpackDecoder()
    assert decoder.decode(section(fields)) == fields
    assert not decoder.error and not decoder.is_too_large


@given(lists.filter(len), st.booleans())  # ls-qpack refuses a section without fields
@settings(deadline=None, max_examples=200)
def test_what_is_written_a_peer_reads(fields, is_secret):
    never = frozenset(name for name, _ in fields) if is_secret else frozenset()
    block = b"\0\0" + write_fields(fields, never)
    assert peer_decodes(block) == fields
    decoder = QpackDecoder()
    assert decoder.decode(block) == fields
    assert decoder.never_indexed >= never


@given(st.binary(max_size=200).map(lambda tail: b"\0\0" + tail))
@settings(deadline=None, max_examples=500)
def test_any_bytes_are_decoded_as_the_library_does_or_refused(block):
    decoder = QpackDecoder()
    fields = decoder.decode(block)
    try:
        wanted = peer_decodes(block)
    except (pylsqpack.DecompressionFailed, pylsqpack.StreamBlocked):
        # Beyond the RFC it refuses a section without fields, and names that are empty, which we call malformed later.
        assert decoder.error or not fields or any(not name for name, _ in fields)
    else:
        assert not decoder.error
        assert fields == wanted


@pytest.mark.parametrize("index", [0, 14, 15, 62, 63, 84, 98])
@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 126, 127, 128, 254, 255, 300])
def test_every_length_of_prefix(index, size):
    for field in ((STATIC[index][0], b"v" * size), (b"x" * max(size, 1), b"v")):
        assert peer_decodes(b"\0\0" + write_field(field)) == [field]
        assert QpackDecoder().decode(b"\0\0" + write_field(field)) == [field]
        assert QpackDecoder().decode(section([field])) == [field]


FAULTS = [
    (b"", "no prefix"),
    (b"\0", "half a prefix"),
    (b"\x01\0", "a required insert count"),
    (b"\xff\x01\0", "a large one"),
    (b"\0\x80", "a base below nothing"),
    (b"\0\xff\x01", "one far below"),
    (b"\0\x7f", "a base cut short"),
    (b"\0\x7f" + b"\xff" * 9 + b"\x01", "a base beyond 62 bits"),
    (b"\0\0\x80", "indexed, dynamic"),
    (b"\0\0\x10", "indexed, post-base"),
    (b"\0\0\x00\0", "a literal's name, post-base"),
    (b"\0\0\x40\0", "a literal's name, dynamic"),
    (b"\0\0\xff\x24", "static 99"),
    (b"\0\0\xff" + b"\xff" * 9, "an index without end"),
    (b"\0\0\x5f\x54\0", "a literal's name, static 99"),
    (b"\0\0\x5f", "a name's index cut short"),
    (b"\0\0\x51", "no value"),
    (b"\0\0\x51\x05ab", "a value cut short"),
    (b"\0\0\x51\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a value beyond everything"),
    (b"\0\0\x25ab", "a name cut short"),
    (b"\0\0\x21a", "a name without a value"),
    (b"\0\0\x51\x81\x00", "Huffman padding that is not ones"),
    (b"\0\0\x51\x82\xff\xff", "Huffman padding longer than seven bits"),
    (b"\0\0\x51\x84\xff\xff\xff\xff", "EOS in a string"),
    (b"\0\0\x29\x00\0", "Huffman in a name, broken"),
]


@pytest.mark.parametrize(("block", "why"), FAULTS, ids=[why for _, why in FAULTS])
def test_faults(block, why):
    decoder = QpackDecoder()
    decoder.decode(block)
    assert decoder.error, why
    decoder.decode(b"\0\0\xd1")
    assert not decoder.error, "the next section stands for itself"


def test_a_base_that_nobody_uses_is_allowed():
    """RFC 9204 §4.5.1.2: a section without references may have any base, of up to 62 bits."""
    for prefix in (b"\0\x05", b"\0\x7f\x00", b"\0\x7f\x80\xff\xff\xff\xff\xff\xff\xff\x1f"):
        decoder = QpackDecoder()
        assert decoder.decode(prefix + b"\xd1") == [(b":method", b"GET")]
        assert not decoder.error


def test_a_bomb_is_not_expanded():
    decoder = QpackDecoder()
    fields = decoder.decode(b"\0\0" + integer(0xC0, 0x3F, 85) * 32_000)
    assert decoder.is_too_large and not decoder.error
    assert sum(len(n) + len(v) + 32 for n, v in fields) <= MAX_LIST_BYTES


def test_secrets_are_never_indexed():
    for name in (b"authorization", b"cookie", b"x-router-key", b"set-cookie"):
        decoder = QpackDecoder()
        decoder.decode(b"\0\0" + write_field((name, b"v")))
        assert decoder.never_indexed == {name}
    decoder = QpackDecoder()
    decoder.decode(b"\0\0" + write_field((b"x-a", b"v"), frozenset((b"x-a",))) + write_field((b"date", b"v")))
    assert decoder.never_indexed == {b"x-a"}
