"""HPACK against the hpack library, which nobody here wrote, and against the RFC's own examples (RFC 7541)."""

import time

import hpack
import hypothesis.strategies as st
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings

from router.transport.codec import huffman
from router.transport.codec.h2.hpack import STATIC, HpackDecoder, write_field, write_fields
from router.transport.codec.h2.limits import MAX_LIST_BYTES

names = st.one_of(
    st.sampled_from([name for name, _ in STATIC[1:]]), st.binary(min_size=1, max_size=40), st.just(b"x-custom")
)
values = st.binary(max_size=300)
lists = st.lists(st.tuples(names, values), max_size=12)


def test_the_static_table():
    assert tuple(tuple(field) for field in HeaderTable.STATIC_TABLE) == STATIC[1:]


@given(st.lists(st.tuples(lists, st.booleans(), st.sampled_from([None, None, 0, 64, 500, 4096])), max_size=12))
@settings(deadline=None, max_examples=100)
def test_one_table_through_many_blocks(blocks):
    encoder, decoder = hpack.Encoder(), HpackDecoder()
    for fields, huffman_coded, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        kinds = [(hpack.NeverIndexedHeaderTuple if i % 4 == 3 else hpack.HeaderTuple)(*f) for i, f in enumerate(fields)]
        assert decoder.decode(encoder.encode(kinds, huffman=huffman_coded)) == fields
        assert not decoder.error
        assert sum(len(n) + len(v) + 32 for n, v in decoder._entries) == decoder._size <= decoder._capacity


@given(lists)
@settings(deadline=None)
def test_what_is_written_needs_no_table(fields):
    block = write_fields(fields)
    for _ in range(2):
        assert [tuple(field) for field in hpack.Decoder().decode(block, raw=True)] == fields
    decoder = HpackDecoder()
    assert decoder.decode(block) == fields
    assert not decoder.changed


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_huffman_agrees(data):
    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    assert huffman.decode(encoder.encode(data)) == data


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_decoded_as_the_library_does_or_refused(block):
    decoder = HpackDecoder()
    fields = decoder.decode(block)
    try:
        wanted = [tuple(field) for field in hpack.Decoder().decode(block, raw=True)]
    except hpack.HPACKError:
        assert decoder.error
    else:
        assert decoder.error or fields == wanted  # we are stricter where integers are padded


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "an empty dynamic table"),
        (b"\xff\x80\x80\x80\x80\x80\x80\x80\x01", "an integer without end"),
        (b"\xff\xff\xff\xff\xff\x7f", "an integer too large"),
        (b"\x40\x05ab", "a string cut short"),
        (b"\x40", "a field cut short"),
        (b"\x40\x01a", "no value"),
        (b"\x40\x81\xff\x00", "Huffman padding longer than seven bits"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "EOS in a string"),
        (b"\x82\x20", "a size update behind a field"),
        (b"\x3f\xe2\x1f", "a table larger than allowed"),
    ],
)
def test_faults(block, why):
    decoder = HpackDecoder()
    decoder.decode(block)
    assert decoder.error, why


def test_a_bomb_is_not_expanded():
    """RFC 7541 §7.3: one large entry, referred to again and again."""
    decoder = HpackDecoder()
    value = b"x" * 4_000
    encoded = b"\x40\x01a" + b"\x7f" + bytes(((4_000 - 127) & 0x7F | 0x80, (4_000 - 127) >> 7)) + value
    fields = decoder.decode(encoded + b"\xbe" * 60_000)
    assert not decoder.error and decoder.is_too_large
    assert sum(len(n) + len(v) for n, v in fields) <= MAX_LIST_BYTES
    assert decoder.decode(b"\xbe") == [(b"a", value)]  # the table is what it was


def test_a_block_of_never_indexed_names_is_read_in_time():
    block = b"".join(b"\x10\x03%03x\x00" % (i % 4096) for i in range(10_000))
    decoder = HpackDecoder()
    began = time.process_time()
    decoder.decode(block)
    assert time.process_time() - began < 0.1
    assert decoder.is_too_large and not decoder.error


def test_secrets_are_never_indexed():
    for name in (b"authorization", b"cookie", b"x-router-key"):
        assert write_field((name, b"v"))[0] & 0xF0 == 0x10
    assert write_field((b"x-a", b"v"), frozenset((b"x-a",)))[0] & 0xF0 == 0x10
    decoder = HpackDecoder()
    decoder.decode(b"\x10\x01a\x01b\x00\x01c\x01d")
    assert decoder.never_indexed == {b"a"}
