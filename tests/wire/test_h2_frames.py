"""Frames, states, settings, field blocks and malformed requests from a client (RFC 9113 §3.4–§8, RFC 7541).

A row is what is sent behind a good preface and what has to come of it. RFC 9113 §5.4 lets a stream error be treated
as a connection error, and §8.1.1 lets a server answer a malformed request with 4xx; nothing else is left open where
a row does not say so. After each row the connection, if it may live, and a new one still serve.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

import hpack
import pytest
from h2kit import (
    ACK,
    CLOSED,
    COMPRESSION,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW,
    FRAME_SIZE,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    MAX_STREAMS,
    MOST,
    NO_PRIORITIES,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PROTOCOL,
    PUSH_PROMISE,
    REFUSED,
    RST_STREAM,
    SETTINGS,
    TABLE_SIZE,
    WINDOW_UPDATE,
    block,
    data,
    frame,
    goaway,
    head,
    headers,
    headers_split,
    integer,
    literal,
    ping,
    rst,
    settings,
    string,
    window,
)
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

CONN, STREAM, MALFORMED, SERVED, IGNORED = "conn", "stream", "malformed", "served", "ignored"


@dataclass(frozen=True)
class Row:
    """`lenient`: outcomes that the RFC allows beside; `stream`: the one that the row is about."""

    id: str
    data: bytes
    expect: str = CONN
    codes: tuple[int, ...] = (PROTOCOL,)
    stream: int = 1
    lenient: tuple[str, ...] = ()
    hold: bool = False  # the replica does not answer before the row is done
    body: bytes | None = None


GET = head()
POST = head(b"POST")
G1 = headers(1, GET)
P1 = headers(1, POST, end=False)
GETB = block(GET)


def get1(extra: bytes) -> bytes:
    """A request whose block ends with these bytes."""
    return headers(1, GETB + extra)


def bad(name: str, *fields: tuple[bytes, bytes], expect: str = MALFORMED, lenient=()) -> Row:
    return Row(name, headers(1, list(fields)), expect, lenient=lenient)


def field(name: str, key: bytes, value: bytes, **more) -> Row:
    return bad(name, *GET, (key, value), **more)


def without(name: bytes, fields=GET):
    return [pair for pair in fields if pair[0] != name]


def instead(name: bytes, value: bytes, fields=GET):
    return [(key, value if key == name else old) for key, old in fields]


SIZES = [
    # §4.2: over SETTINGS_MAX_FRAME_SIZE, or of a size that the frame cannot have. DATA may be a stream error.
    Row("data-16385", P1 + data(1, bytes(16_385)), STREAM, (FRAME_SIZE,)),
    Row("headers-16385", headers(1, GETB + literal(b"x", b"v" * (16_385 - len(GETB) - 6))), CONN, (FRAME_SIZE,)),
    Row("continuation-16385", frame(HEADERS, END_STREAM, 1, GETB) + frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"v" * 16_380)), CONN, (FRAME_SIZE,)),
    Row("settings-16386", frame(SETTINGS, 0, 0, bytes(6 * 2731)), CONN, (FRAME_SIZE,)),
    Row("unknown-16385", frame(0x77, 0, 0, bytes(16_385)), CONN, (FRAME_SIZE,)),
    Row("unknown-2^24-1", frame(0x77, 0, 0, length=(1 << 24) - 1), CONN, (FRAME_SIZE,)),
    Row("goaway-16385", frame(GOAWAY, 0, 0, bytes(16_385)), CONN, (FRAME_SIZE,)),
    *(Row(f"ping-{n}", frame(PING, 0, 0, bytes(n)), CONN, (FRAME_SIZE,)) for n in (0, 7, 9)),
    *(Row(f"ping-ack-{n}", frame(PING, ACK, 0, bytes(n)), CONN, (FRAME_SIZE,)) for n in (0, 7, 9)),
    *(Row(f"rst-{n}", P1 + frame(RST_STREAM, 0, 1, bytes(n)), CONN, (FRAME_SIZE,)) for n in (0, 3, 5)),
    *(Row(f"window-{n}", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1\1"[:n]), CONN, (FRAME_SIZE,)) for n in (0, 3, 5)),
    *(Row(f"window-stream-{n}", P1 + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1\1"[:n]), CONN, (FRAME_SIZE,)) for n in (0, 3, 5)),
    *(Row(f"settings-{n}", frame(SETTINGS, 0, 0, bytes(n)), CONN, (FRAME_SIZE,)) for n in (1, 5, 7)),
    Row("settings-ack-6", frame(SETTINGS, ACK, 0, bytes(6)), CONN, (FRAME_SIZE,)),
    Row("settings-ack-1", frame(SETTINGS, ACK, 0, b"x"), CONN, (FRAME_SIZE,)),
    *(Row(f"goaway-{n}", frame(GOAWAY, 0, 0, bytes(n)), CONN, (FRAME_SIZE,)) for n in (0, 7)),
    *(Row(f"priority-{n}", P1 + frame(PRIORITY, 0, 1, bytes(n)), STREAM, (FRAME_SIZE,)) for n in (0, 4, 6)),
    Row("headers-padded-empty", frame(HEADERS, PADDED | END_HEADERS, 1), CONN, (FRAME_SIZE, PROTOCOL)),
    Row("headers-priority-4", frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, bytes(4)), CONN, (FRAME_SIZE, PROTOCOL)),
    Row("headers-priority-padded-5", frame(HEADERS, PRIORITY_FLAG | PADDED | END_HEADERS, 1, bytes(5)), CONN, (FRAME_SIZE, PROTOCOL)),
    Row("data-padded-empty", P1 + frame(DATA, PADDED, 1), STREAM, (FRAME_SIZE, PROTOCOL)),
    Row("data-16384", P1 + data(1, b"x" * 16_384, end=True), SERVED, body=b"x" * 16_384),
    Row("headers-16384", headers(1, GETB + literal(b"x", b"v" * (16_384 - len(GETB) - 6))), SERVED),
]

STREAMS = [
    # §4.1, §5.5: what is not known is ignored, except inside a field block.
    Row("reserved-bit", headers(1 | 1 << 31, GET), SERVED),
    Row("reserved-bit-ping", frame(PING, 0, 1 << 31, b"12345678"), IGNORED),
    Row("reserved-bit-window", frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 | 1 << 31)), IGNORED),
    Row("unknown-flags", headers(1, GET, flags=END_HEADERS | 0xC2 & ~PADDED), SERVED),
    Row("unknown-flags-ping", frame(PING, 0xFE, 0, b"12345678"), IGNORED),
    Row("unknown-flags-settings", frame(SETTINGS, 0xFE), IGNORED),
    Row("unknown-flags-rst", P1 + frame(RST_STREAM, 0xFF, 1, struct.pack(">I", 8)), IGNORED),
    Row("unknown-flags-data", P1 + frame(DATA, END_STREAM | 0xF2 & ~PADDED, 1, b"hello"), SERVED, body=b"hello"),
    Row("unknown-flags-window", frame(WINDOW_UPDATE, 0xFF, 0, struct.pack(">I", 1)), IGNORED),
    Row("unknown-type", frame(0x77, 0xFF, 0, b"hello") + G1, SERVED),
    Row("unknown-type-empty", frame(0xFF, 0xFF, 0) + G1, SERVED),
    Row("unknown-type-on-stream", P1 + frame(0x77, 0xFF, 1, b"hello") + data(1, b"hello", end=True), SERVED, body=b"hello"),
    Row("altsvc-origin", frame(0xA, 0, 0, b"\0\0") + frame(0xC, 0, 0, b"\0\1x") + frame(0x10, 0, 0, b"\0\0\0\1u=1") + G1, SERVED),
    Row("unknown-type-in-block", frame(HEADERS, END_STREAM, 1, GETB[:9]) + frame(0x77, 0, 1), CONN),
    # §5.1 idle.
    Row("idle-data", data(1, b"x"), CONN),
    Row("idle-data-end", data(5, b"", end=True), CONN),
    Row("idle-rst", rst(1), CONN),
    Row("idle-window", window(1, 1), CONN),
    Row("idle-continuation", frame(CONTINUATION, END_HEADERS, 1, GETB), CONN),
    Row("idle-even-data", data(2, b"x"), CONN),
    Row("idle-even-rst", rst(2), CONN),
    Row("idle-even-window", window(2, 1), CONN),
    Row("idle-priority", frame(PRIORITY, 0, 9, bytes(5)), IGNORED),
    # §5.1 half-closed (remote): STREAM_CLOSED.
    Row("half-closed-data", G1 + data(1, b"x"), STREAM, (CLOSED,), hold=True),
    Row("half-closed-data-empty", G1 + data(1, b"", end=True), STREAM, (CLOSED,), hold=True),
    Row("half-closed-headers", G1 + headers(1, [(b"x", b"y")]), STREAM, (CLOSED,), hold=True),
    Row("half-closed-headers-request", G1 + headers(1, GET), STREAM, (CLOSED,), hold=True),
    Row("half-closed-continuation", G1 + frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"y")), CONN, (PROTOCOL, CLOSED), hold=True),
    Row("half-closed-window", G1 + window(1, 5), SERVED),
    Row("half-closed-priority", G1 + frame(PRIORITY, 0, 1, bytes(5)), SERVED),
    Row("half-closed-after-body", P1 + data(1, b"x", end=True) + data(1, b"x"), STREAM, (CLOSED,), hold=True),
    Row("half-closed-after-trailers", P1 + headers(1, [(b"x", b"y")]) + data(1, b"x"), STREAM, (CLOSED,), hold=True),
    # §5.1 closed: by our RST_STREAM. What crosses is ignored or STREAM_CLOSED; a frame of ours does not cross.
    Row("closed-data", P1 + rst(1) + data(1, b"x"), STREAM, (CLOSED,), lenient=(IGNORED,)),
    Row("closed-headers", P1 + rst(1) + headers(1, GET), STREAM, (CLOSED,), lenient=(IGNORED,)),
    Row("closed-priority", P1 + rst(1) + frame(PRIORITY, 0, 1, bytes(5)), IGNORED),
    Row("closed-window", P1 + rst(1) + window(1, 5), IGNORED, lenient=(CONN,), codes=(CLOSED,)),
    Row("closed-rst", P1 + rst(1) + rst(1), IGNORED, lenient=(CONN,), codes=(CLOSED,)),
    Row("closed-continuation", P1 + rst(1) + frame(CONTINUATION, END_HEADERS, 1), CONN, (PROTOCOL, CLOSED)),
    # §5.1.1: a new stream is odd and higher than any before.
    Row("even", headers(2, GET), CONN),
    Row("zero", headers(0, GET), CONN),
    Row("descending", headers(5, GET) + headers(3, GET), CONN, (PROTOCOL, CLOSED)),
    Row("skipped-data", headers(5, GET) + data(3, b"x"), CONN, (PROTOCOL, CLOSED), lenient=(STREAM,), stream=3),
    Row("skipped-rst", headers(5, GET) + rst(3), IGNORED, lenient=(CONN,), codes=(PROTOCOL, CLOSED)),
    Row("skipped-window", headers(5, GET) + window(3, 1), IGNORED, lenient=(CONN,), codes=(PROTOCOL, CLOSED)),
    Row("skipping", headers(0x7FFF_FFFD, GET), SERVED, stream=0x7FFF_FFFD),
    Row("last-stream", headers(MOST, GET), SERVED, stream=MOST),
    # §5.3, RFC 7540 §5.3.1: deprecated; a stream that depends on itself was PROTOCOL_ERROR.
    Row("priority-fields", frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG, 1, b"\x80\0\0\0\xff" + GETB), SERVED),
    Row("priority-all", frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG | PADDED, 1, b"\x04\0\0\0\0\x10" + GETB + bytes(4)), SERVED),
    Row("priority-self", frame(PRIORITY, 0, 1, b"\0\0\0\1\x10"), IGNORED, lenient=(STREAM,)),
    Row("headers-priority-self", frame(HEADERS, END_STREAM | END_HEADERS | PRIORITY_FLAG, 1, b"\0\0\0\1\x10" + GETB), SERVED, lenient=(STREAM,)),
    Row("priority-zero", frame(PRIORITY, 0, 0, bytes(5)), CONN),
    Row("priority-between-data", P1 + data(1, b"he") + frame(PRIORITY, 0, 1, b"\0\0\0\3\x10") + data(1, b"llo", end=True), SERVED, body=b"hello"),
]

PADDING = [
    # §6.1, §6.2.
    Row("data-zero", data(0, b"x"), CONN),
    Row("pad", P1 + data(1, b"hello", end=True, pad=7), SERVED, body=b"hello"),
    Row("pad-0", P1 + data(1, b"hello", end=True, pad=0), SERVED, body=b"hello"),
    Row("pad-255", P1 + data(1, b"hello", end=True, pad=255), SERVED, body=b"hello"),
    Row("pad-all", P1 + data(1, b"", pad=9) + data(1, b"hello", end=True), SERVED, body=b"hello"),
    Row("pad-all-end", P1 + data(1, b"", end=True, pad=9), SERVED, body=b""),
    Row("pad-length", P1 + frame(DATA, PADDED, 1, b"\x06hello"), CONN),
    Row("pad-length-less-1", P1 + frame(DATA, PADDED | END_STREAM, 1, b"\x05hello"), SERVED, body=b""),
    Row("pad-longer", P1 + frame(DATA, PADDED, 1, b"\xffhello"), CONN),
    Row("pad-1-of-nothing", P1 + frame(DATA, PADDED, 1, b"\x01"), CONN),
    Row("headers-pad", frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\x03" + GETB + bytes(3)), SERVED),
    Row("headers-pad-longer", frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff" + GETB), CONN),
    Row("headers-pad-exact", frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, bytes([len(GETB)]) + GETB), MALFORMED),
    Row("headers-pad-over-priority", frame(HEADERS, END_STREAM | END_HEADERS | PADDED | PRIORITY_FLAG, 1, b"\x01" + bytes(5)), CONN, (PROTOCOL, FRAME_SIZE)),
]

SETS = [
    # §6.5, RFC 8441 §3, RFC 9218 §2.1.
    Row("settings-on-stream", frame(SETTINGS, 0, 1), CONN),
    Row("settings-ack-on-stream", frame(SETTINGS, ACK, 1), CONN),
    Row("settings-empty", settings(), IGNORED),
    Row("settings-unknown", settings({0xF0F0: 7, 0: 1, 0xA: 3}), IGNORED),
    Row("push-2", settings({ENABLE_PUSH: 2}), CONN),
    Row("push-max", settings({ENABLE_PUSH: 0xFFFFFFFF}), CONN),
    Row("initial-2^31", settings({INITIAL_WINDOW: 1 << 31}), CONN, (FLOW,)),
    Row("initial-max", settings({INITIAL_WINDOW: 0xFFFFFFFF}), CONN, (FLOW,)),
    Row("initial-2^31-1", settings({INITIAL_WINDOW: MOST}) + G1, SERVED),
    Row("frame-16383", settings({MAX_FRAME: 16_383}), CONN),
    Row("frame-0", settings({MAX_FRAME: 0}), CONN),
    Row("frame-2^24", settings({MAX_FRAME: 1 << 24}), CONN),
    Row("frame-2^24-1", settings({MAX_FRAME: (1 << 24) - 1}) + G1, SERVED),
    Row("streams-0", settings({MAX_STREAMS: 0}) + G1, SERVED),
    Row("table-0", settings({TABLE_SIZE: 0}) + G1, SERVED),
    Row("table-max", settings({TABLE_SIZE: 0xFFFFFFFF}) + G1, SERVED),
    Row("table-thrice", settings(((TABLE_SIZE, 0), (TABLE_SIZE, 100), (TABLE_SIZE, 4096))) + G1, SERVED),
    Row("settings-last-wins", settings(((INITIAL_WINDOW, 0), (INITIAL_WINDOW, 10))) + G1, SERVED),
    Row("settings-bad-behind-good", settings(((MAX_FRAME, 20_000), (ENABLE_PUSH, 3))), CONN),
    Row("settings-1000", frame(SETTINGS, 0, 0, struct.pack(">HI", 0xF0F0, 1) * 1000), IGNORED, lenient=(CONN,), codes=(11,)),
    Row("priorities-2", settings({NO_PRIORITIES: 2}), CONN),
    Row("connect-protocol", settings({8: 1}), IGNORED),
    # §6.6: a client cannot push.
    Row("push", P1 + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + GETB), CONN),
    Row("push-zero", frame(PUSH_PROMISE, END_HEADERS, 0, struct.pack(">I", 2) + GETB), CONN),
    Row("push-closed", G1 + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + GETB), CONN),
    # §6.7, §6.8.
    Row("ping-on-stream", frame(PING, 0, 1, bytes(8)), CONN),
    Row("ping-ack-unasked", ping(b"87654321", ACK), IGNORED),
    Row("goaway-on-stream", P1 + frame(GOAWAY, 0, 1, bytes(8)), CONN),
    Row("rst-zero", rst(0), CONN),
    Row("rst-unknown-code", P1 + rst(1, 0xFFFFFFFF), IGNORED),
    # §6.9.
    Row("window-by-0", window(0, 0), CONN),
    Row("window-by-0-reserved", window(0, 1 << 31), CONN),
    Row("window-stream-0-by", P1 + window(1, 0), STREAM),
    Row("window-overflow", window(0, MOST), CONN, (FLOW,)),
    Row("window-stream-overflow", P1 + window(1, MOST), STREAM, (FLOW,)),
    Row("window-stream-overflow-by-1", settings({INITIAL_WINDOW: 100}) + P1 + window(1, MOST - 99), STREAM, (FLOW,)),
    Row("window-to-the-brim", window(0, MOST - 65_535) + G1 + window(1, MOST - 65_535), SERVED),
    Row("initial-overflows-window", P1 + window(1, MOST - 65_535) + settings({INITIAL_WINDOW: 65_536}), CONN, (FLOW,)),
    # §6.10.
    Row("continuation-first", frame(CONTINUATION, END_HEADERS, 1, GETB), CONN),
    Row("continuation-zero", frame(CONTINUATION, END_HEADERS, 0, GETB), CONN),
    Row("continuation-behind-end", P1 + frame(CONTINUATION, END_HEADERS, 1, b""), CONN),
    Row("continuation-other-stream", frame(HEADERS, END_STREAM, 1, GETB) + frame(CONTINUATION, END_HEADERS, 3), CONN),
    Row("continuation-zero-inside", frame(HEADERS, END_STREAM, 1, GETB) + frame(CONTINUATION, END_HEADERS, 0), CONN),
    Row("continuation", headers_split(1, GETB, 9), SERVED),
    Row("continuation-each-byte", headers_split(1, block(without(b":x")), 8), SERVED),
    Row("continuation-empty", frame(HEADERS, END_STREAM, 1, GETB) + frame(CONTINUATION, END_HEADERS, 1), SERVED),
    Row("headers-empty-continuation", frame(HEADERS, END_STREAM, 1) + frame(CONTINUATION, END_HEADERS, 1, GETB), SERVED),
    *(
        Row(f"block-cut-by-{name}", frame(HEADERS, END_STREAM, 1, GETB[:9]) + cut, CONN)
        for name, cut in {
            "data": data(1, b"x"), "headers": headers(1, GET), "other-headers": headers(3, GET), "priority": frame(PRIORITY, 0, 1, bytes(5)),
            "rst": rst(1), "settings": settings(), "settings-ack": settings(flags=ACK), "ping": ping(), "goaway": goaway(), "window": window(0, 1),
        }.items()
    ),
]  # fmt: skip

encode = hpack.Encoder()
HUFFMAN = encode.encode(GET, huffman=True)
EOS = b"\xff\xff\xff\xfc"  # thirty ones: the symbol that must not be coded


def coded(value: bytes) -> bytes:
    """A field x whose value is these bytes of Huffman code."""
    return b"\0\x01x" + integer(len(value), 7, 0x80) + value


BLOCKS = [
    # RFC 9113 §4.3: whatever cannot be decoded is COMPRESSION_ERROR, of the connection. RFC 7541 §5.1.
    Row("empty-block", headers(1, b""), MALFORMED),
    Row("index-0", get1(b"\x80"), CONN, (COMPRESSION,)),
    Row("index-62", get1(b"\xbe"), CONN, (COMPRESSION,)),
    Row("index-huge", get1(b"\xff\xff\xff\xff\x07"), CONN, (COMPRESSION,)),
    Row("name-index-62", get1(b"\x7e\x01v"), CONN, (COMPRESSION,)),
    Row("name-index-70-never", get1(b"\x1f\x37\x01v"), CONN, (COMPRESSION,)),
    Row("cut-integer", get1(b"\xff"), CONN, (COMPRESSION,)),
    Row("cut-integer-2", get1(b"\xff\x80"), CONN, (COMPRESSION,)),
    Row("cut-name", get1(b"\0\x05ab"), CONN, (COMPRESSION,)),
    Row("cut-before-value", get1(b"\0\x01x"), CONN, (COMPRESSION,)),
    Row("cut-value", get1(b"\0\x01x\x09v"), CONN, (COMPRESSION,)),
    Row("cut-literal", get1(b"\0"), CONN, (COMPRESSION,)),
    Row("cut-indexed-literal", get1(b"\x44"), CONN, (COMPRESSION,)),
    Row("string-longer-than-block", get1(b"\0\x01x" + integer(1 << 20, 7) + b"v"), CONN, (COMPRESSION,)),
    Row("string-2^62", get1(b"\0\x01x" + integer(1 << 62, 7) + b"v"), CONN, (COMPRESSION,)),
    Row("integer-endless", get1(b"\xff" + b"\x80" * 200 + b"\x01"), CONN, (COMPRESSION,)),
    Row("integer-2^70", get1(integer(1 << 70, 7, 0x80)), CONN, (COMPRESSION,)),
    Row("integer-zeros", get1(b"\x7f\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01v"), CONN, (COMPRESSION,), lenient=(SERVED,)),
    # §5.2: padding is less than a byte, all ones; EOS is never coded.
    Row("huffman", headers(1, HUFFMAN), SERVED),
    Row("huffman-eos", get1(coded(EOS)), CONN, (COMPRESSION,)),
    Row("huffman-eos-behind", get1(coded(b"\x1f" + b"\xff\xff\xff\xff")), CONN, (COMPRESSION,)),
    Row("huffman-pad-8", get1(coded(b"\xff")), CONN, (COMPRESSION,)),
    Row("huffman-pad-15", get1(coded(b"\x1f\xff\xff")), CONN, (COMPRESSION,)),
    Row("huffman-pad-zeros", get1(coded(b"\x18")), CONN, (COMPRESSION,)),
    Row("huffman-pad-ones", get1(coded(b"\x1f")), SERVED),
    Row("huffman-cut-code", get1(coded(b"\xff\xc0")), CONN, (COMPRESSION,)),
    Row("huffman-empty", get1(b"\0\x01x\x80"), SERVED),
    Row("huffman-name-bad", get1(b"\0\x81\x00\x01v"), CONN, (COMPRESSION,)),
    # §4.2, §6.3: size updates.
    Row("update-over-limit", headers(1, integer(4097, 5, 0x20) + GETB), CONN, (COMPRESSION,)),
    Row("update-max", headers(1, integer(1 << 40, 5, 0x20) + GETB), CONN, (COMPRESSION,)),
    Row("update-behind-field", get1(b"\x20"), CONN, (COMPRESSION,)),
    Row("update-between", headers(1, literal(*GET[0]) + b"\x20" + block(GET[1:])), CONN, (COMPRESSION,)),
    Row("update-0", headers(1, b"\x20" + GETB), SERVED),
    Row("update-0-and-back", headers(1, b"\x20" + integer(4096, 5, 0x20) + GETB), SERVED),
    Row("update-4096", headers(1, integer(4096, 5, 0x20) + GETB), SERVED),
    Row("update-evicts", headers(1, GETB + literal(b"x-own", b"v", 0x40)) + headers(3, b"\x20" + GETB + b"\xbe"), CONN, (COMPRESSION,), stream=3),
    Row("evicted-by-large", headers(1, GETB + literal(b"x-own", b"v", 0x40) + literal(b"y", b"v" * 4096, 0x40) + b"\xbe"), CONN, (COMPRESSION,)),
    Row("dynamic", headers(1, GETB + literal(b"x-own", b"v", 0x40)) + headers(3, GETB + b"\xbe"), SERVED, stream=3),
    Row("dynamic-same-block", headers(1, GETB + literal(b"x-own", b"v", 0x40) + b"\xbe"), SERVED),
    Row("dynamic-name", headers(1, GETB + literal(b"x-own", b"v", 0x40) + b"\x7e\x01w\x0f\x2f\x01u"), SERVED),
    Row("never-indexed", headers(1, GETB + literal(b"x-own", b"v", 0x10)), SERVED),
    # A malformed block and a refused stream keep the decoder in step (§4.3).
    Row("table-survives-malformed", headers(1, GETB + literal(b"X", b"v") + literal(b"x-own", b"v", 0x40)) + headers(3, GETB + b"\xbe"), SERVED, stream=3),
    Row("table-survives-trailers", P1 + headers(1, literal(b"x-own", b"v", 0x40)) + headers(3, GETB + b"\xbe"), SERVED, stream=3),
    Row("static-all", headers(1, b"\x82\x86\x84" + literal(b":authority", b"h")), SERVED),
    Row("static-names", headers(1, b"\x82\x86\x44\x02/t\x41\x01h"), SERVED),
    # In a field block of trailers too.
    Row("trailers-index-0", P1 + headers(1, b"\x80"), CONN, (COMPRESSION,)),
    Row("block-of-refused-stream", P1 + rst(1) + headers(3, GETB + b"\x80"), CONN, (COMPRESSION,), stream=3),
]

NAMES = [
    # §8.2.1.
    *(
        field(f"name-{name!r}", name, b"v")
        for name in [
            b"", b"X", b"x-Own", b"x y", b" x", b"x ", b"x\0", b"x\r", b"x\n", b"x\r\ny", b"x\t", b"x:", b"x:y", b"\x7f", b"x\x80", b"x\xff",
            b"\xc3\xa9", b"x/y", b"x(", b'x"', b"x,y", b"x;", b"x=", b"x@", b"x[", b"x{", b"x\x01", b"HOST", b"Content-Length", b"Transfer-Encoding",
        ]
    ),
    *(field(f"value-{value!r}", b"x", value) for value in [b"\0", b"\r", b"\n", b"a\0b", b"a\rb", b"a\nb", b"a\r\nb: c", b"a\r\n\r\nGET / HTTP/1.1"]),
    *(field(f"value-{value!r}", b"x", value) for value in [b" v", b"v ", b"\tv", b"v\t", b" ", b"\t"]),
    field("value-empty", b"x", b"", expect=SERVED),
    field("value-latin", b"x", b"caf\xe9 \xc3\xa9", expect=SERVED),
    field("value-inner-space", b"x", b"a \t b", expect=SERVED),
    field("name-odd", b"!#$%&'*+-.^_`|~09az", b"v", expect=SERVED),
    # §8.2.2.
    *(
        field(f"field-{name.decode()}-{value.decode()}", name, value)
        for name, value in [
            (b"connection", b"close"), (b"connection", b"x"), (b"connection", b""), (b"keep-alive", b"timeout=5"), (b"proxy-connection", b"keep-alive"),
            (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity"), (b"transfer-encoding", b""), (b"upgrade", b"websocket"),
            (b"upgrade", b"h2c"), (b"te", b"gzip"), (b"te", b"trailers, gzip"), (b"te", b"chunked"),
        ]
    ),
    field("te-trailers", b"te", b"trailers", expect=SERVED),
    # §8.3.
    bad("pseudo-behind-regular", *GET[:3], (b"x", b"y"), GET[3]),
    bad("pseudo-method-behind-regular", *GET[1:], (b"x", b"y"), GET[0]),
    field("pseudo-unknown", b":x", b"y"),
    field("pseudo-status", b":status", b"200"),
    field("pseudo-empty", b":", b"y"),
    field("pseudo-upper", b":Path", b"/"),
    field("pseudo-host", b":host", b"h"),
    *(bad(f"twice-{name.decode()[1:]}", *GET, (name, dict(GET)[name])) for name in (b":method", b":scheme", b":path", b":authority")),
    bad("twice-path-different", *GET, (b":path", b"/other")),
    *(bad(f"no-{name.decode()[1:]}", *without(name)) for name in (b":method", b":scheme", b":path")),
    bad("none-at-all", (b"x", b"y")),
    bad("no-authority-no-host", *without(b":authority"), lenient=(SERVED,)),
    bad("host-alone", *without(b":authority"), (b"host", b"h"), expect=SERVED),
    bad("host-equal", *GET, (b"host", b"h"), expect=SERVED),
    bad("host-different", *GET, (b"host", b"other")),
    bad("host-twice", *without(b":authority"), (b"host", b"h"), (b"host", b"i")),
    bad("host-empty-beside", *GET, (b"host", b"")),
    *(
        bad(f"path-{path!r}", *instead(b":path", path))
        for path in [b"", b"t", b"*", b"http://h/t", b"//\0", b"/a b", b"/\r\nx: y", b"/a\tb", b"/\x7f", b"/a#b", b" /", b"/ ", b"?q", b"/\n", b"\\", b"/\x01"]
    ),
    *(bad(f"path-{path!r}", *instead(b":path", path), lenient=(SERVED,)) for path in [b"/\x80", b"/caf\xc3\xa9", b'/"', b"/<>", b"/{}", b"/|", b"/\\", b"/^`"]),
    *(
        bad(f"method-{method!r}", *instead(b":method", method))
        for method in [b"", b"GE T", b"GET ", b" GET", b"G\0", b"GET\r\n", b"GET /x HTTP/1.1\r\nx:", b"G:T", b"\xc3\xa9", b"G,T", b"G/T"]
    ),
    bad("method-own", *instead(b":method", b"X-!~"), expect=SERVED, lenient=(MALFORMED,)),
    bad("method-lower", *instead(b":method", b"get"), expect=SERVED, lenient=(MALFORMED,)),
    *(bad(f"scheme-{scheme!r}", *instead(b":scheme", scheme)) for scheme in [b"", b"ht tp", b"http\r\nx: y", b"http\0", b"1http", b"http:", b"http://h/"]),
    bad("scheme-https", *instead(b":scheme", b"https"), expect=SERVED, lenient=(MALFORMED,)),
    *(
        bad(f"authority-{authority!r}", *instead(b":authority", authority))
        for authority in [
            b"u@h", b"u:p@h", b"h\r\nx: y", b"h\0", b"h i", b"h/x", b"h?x", b"h#x", b" h", b"h ", b"h:x", b"h:80:80", b"h\\i", b"h\ti", b"[::1", b"::1", b"h\x7f",
        ]
    ),
    *(bad(f"authority-{authority!r}", *instead(b":authority", authority), expect=SERVED) for authority in [b"h:80", b"[::1]:80", b"127.0.0.1", b"a.example", b"h,i"]),
    bad("authority-empty", *instead(b":authority", b""), lenient=(SERVED,)),
    bad("options-asterisk", (b":method", b"OPTIONS"), *instead(b":path", b"*")[1:], expect=SERVED),
    bad("protocol-on-get", *GET, (b":protocol", b"websocket")),
    # §8.5.
    bad("connect-with-path", (b":method", b"CONNECT"), *GET[1:]),
    bad("connect-with-scheme", (b":method", b"CONNECT"), (b":scheme", b"http"), (b":authority", b"h:80")),
    bad("connect-no-authority", (b":method", b"CONNECT")),
    bad("connect", (b":method", b"CONNECT"), (b":authority", b"h:80")),
]  # fmt: skip


def sized(name: str, length: bytes, *pieces: bytes, expect: str = MALFORMED, fields=(), served: bytes | None = None) -> Row:
    """`served`: what may have reached the replica, with its answer, before the fault came (§8.1.1)."""
    out = headers(1, [*POST, (b"content-length", length), *fields], end=not pieces)
    for i, piece in enumerate(pieces):
        out += data(1, piece, end=i == len(pieces) - 1)
    lenient = () if served is None else (SERVED,)
    return Row(name, out, expect, lenient=lenient, body=b"".join(pieces) if expect == SERVED else served)


LENGTHS = [
    # §8.1.1.
    sized("length", b"5", b"hello", expect=SERVED),
    sized("length-split", b"5", b"he", b"", b"llo", b"", expect=SERVED),
    sized("length-0", b"0", expect=SERVED),
    sized("length-0-data", b"0", b"", expect=SERVED),
    sized("length-short", b"6", b"hello"),
    sized("length-long", b"4", b"hello"),
    sized("length-long-split", b"4", b"hell", b"o", served=b"hell"),
    sized("length-no-data", b"5"),
    sized("length-empty-data", b"5", b""),
    sized("length-0-and-data", b"0", b"hello", served=b""),
    *(sized(f"length-{v!r}", v, b"hello") for v in [b"", b"+5", b"-5", b"5 5", b"5,6", b"0x5", b"five", b"5.0", b"\xb2", b"5;", b"5_0"]),
    *(sized(f"length-{v}", b"%d" % v, b"hello") for v in [2**31 + 5, 2**32 + 5, 2**63, 2**64 + 5, 10**40]),
    sized("length-twice", b"5", b"hello", fields=[(b"content-length", b"6")]),
    Row("length-and-trailers-short", headers(1, [*POST, (b"content-length", b"9")], end=False) + data(1, b"hello") + headers(1, [(b"x", b"y")]), MALFORMED),
    Row("length-and-trailers", headers(1, [*POST, (b"content-length", b"5")], end=False) + data(1, b"hello") + headers(1, [(b"x-t", b"y")]), SERVED, body=b"hello"),
    # §8.1: trailers.
    Row("trailers-no-end", P1 + data(1, b"x") + headers(1, [(b"x", b"y")], end=False), MALFORMED),
    Row("trailers-twice", P1 + headers(1, [(b"x", b"y")], end=False) + headers(1, [(b"x", b"y")]), MALFORMED),
    *(
        Row(f"trailers-{name!r}", P1 + data(1, b"x") + headers(1, [(name, b"y")]), MALFORMED)
        for name in [b":path", b":status", b":x", b"X", b"x y", b"", b"x\0", b"x:y", b"connection", b"transfer-encoding"]
    ),
    Row("trailers-value", P1 + data(1, b"x") + headers(1, [(b"x", b"a\r\nb: c")]), MALFORMED),
    Row("trailers", P1 + data(1, b"hello") + headers(1, [(b"x-t", b"y")]), SERVED, body=b"hello"),
    Row("trailers-alone", P1 + headers(1, [(b"x-t", b"y")]), SERVED, body=b""),
    Row("trailers-continued", P1 + data(1, b"hello") + headers_split(1, block([(b"x-t", b"y" * 50)]), 9), SERVED, body=b"hello"),
    Row("trailers-empty", P1 + data(1, b"hello") + headers(1, b""), SERVED, body=b"hello"),
]


def table(*rows: Row):
    names = [row.id for row in rows]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return [
        pytest.param(row, mode, id=f"{row.id}-{mode}")
        for row in rows
        for mode in ("whole", "bytes")
        if mode == "whole" or len(row.data) < 400
    ]


def allowed(row: Row) -> set[str]:
    kinds = {row.expect, *row.lenient}
    if MALFORMED in kinds:
        kinds.add(STREAM)
    if STREAM in kinds:
        kinds.add(CONN)
    return kinds


async def outcome(client, stream, row: Row) -> str:
    """What became of it: `served`, `malformed` (4xx), `stream`, `conn`, `ignored`; with codes of the row."""
    kinds = allowed(row)
    silent = kinds & {IGNORED}
    if silent or kinds == {CONN}:
        await client.roundtrip()
    else:
        await client.wait(lambda: stream.ended or stream.reset is not None)
    if client.goaways or client.ended:
        ended = await client.ending()
        assert ended != "violation", client.violation
        assert client.goaways, f"closed without GOAWAY: {ended}"
        last, code, _ = client.goaways[-1]
        assert code in row.codes, f"GOAWAY {client.goaways}"
        assert last <= MOST
        return CONN
    if stream.reset is not None and not (stream.ended and stream.reset == 0):
        assert stream.reset in row.codes, f"RST_STREAM {stream.reset}"
        return STREAM
    if stream.fields:
        if stream.status == 200:
            return SERVED
        assert 400 <= stream.status < 500 or (stream.status == 501 and b"CONNECT" in row.data), stream.fields
        assert stream.get(b"x-router-error")
        return MALFORMED
    return IGNORED


async def check(row: Row, mode: str, connect, replica) -> None:
    gate = asyncio.Event()
    if row.hold:
        answered = replica.script

        async def script(connection, request):
            await gate.wait()
            await answered(connection, request)

        replica.script = script
    client = await connect()
    client.raw_settings = client.raw_pings = True
    stream = client.stream(row.stream)
    await client.send(row.data, mode)
    try:
        got = await outcome(client, stream, row)
    finally:
        gate.set()
    assert got in allowed(row), f"{got}: {stream.fields} {stream.reset} {client.describe()}"
    served = [request for request in replica.requests if request.target != b"/after"]
    if got == SERVED:
        assert stream.ended
        assert any(request.complete for request in served)
        if row.body is not None:
            assert bytes(served[-1].body) == row.body
    elif row.expect == MALFORMED and SERVED not in row.lenient:
        assert not any(request.complete for request in served), f"a malformed request was passed on: {served}"
    if got != CONN and row.stream < MOST - 4:
        client.next = max(client.next, 101)
        after = await client.get(b"/after")
        assert after.status == 200, "the connection stays usable"
    other = await connect()
    assert (await other.get(b"/after")).status == 200
    await until(lambda: all(request.complete or link.ended for link, request in replica.seen), "cut requests end")


@pytest.mark.parametrize(("row", "mode"), table(*SIZES, *STREAMS, *PADDING, *SETS))
async def test_frames(row, mode, h2_connect, replica):
    await check(row, mode, h2_connect, replica)


@pytest.mark.parametrize(("row", "mode"), table(*BLOCKS))
async def test_field_blocks(row, mode, h2_connect, replica):
    await check(row, mode, h2_connect, replica)


@pytest.mark.parametrize(("row", "mode"), table(*NAMES, *LENGTHS))
async def test_requests(row, mode, h2_connect, replica):
    await check(row, mode, h2_connect, replica)


# --- the preface (§3.4) --------------------------------------------------------------------------------------------

FIRST = {
    "ping": ping(), "headers": G1, "ack": settings(flags=ACK), "window": window(0, 1), "data": data(1, b"x"), "goaway": goaway(), "unknown": frame(0x77),
    "priority": frame(PRIORITY, 0, 1, bytes(5)), "rst": rst(1), "http": b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("mode", ["whole", "bytes"])
@pytest.mark.parametrize("name", FIRST)
async def test_the_first_frame_is_settings(name, mode, h2_connect, replica):
    client = await h2_connect(bare=True)
    client.raw_settings = client.raw_pings = True
    await client.send(PREFACE + FIRST[name] + settings() + G1, mode)
    assert await client.ending() in {"eof", "reset"}, client.violation
    assert [code for _, code, _ in client.goaways] in ([PROTOCOL], [FRAME_SIZE] if name == "http" else [PROTOCOL])
    assert not replica.seen


PREFACES = [
    b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\nHost: h\r\n\r\nSM\r\n\r\n", b"PRI * HTTP/1.1\r\nHost: h\r\n\r\n", b"pri * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET * HTTP/2.0\r\n\r\n",
    b"PRI * HTTP/2.0\n\nSM\n\n", b"PRI * HTTP/2.0\r\n\r\nsm\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["whole", "bytes"])
@pytest.mark.parametrize("preface", PREFACES, ids=repr)
async def test_what_is_no_preface(preface, mode, connect, h2_connect, replica):
    # §3.4: a connection error, and GOAWAY may be left out; or HTTP/1.1's 4xx or 505, since that is spoken here too.
    client = await connect()
    await client.send(preface + settings() + G1, mode)
    await client.ending()
    assert b" 200 " not in bytes(client.unread[:20])
    assert not replica.seen
    assert (await (await h2_connect()).get()).status == 200


async def test_the_preface_in_pieces_and_with_a_request(h2_connect, replica):
    for mode in ("whole", "bytes", "split"):
        client = await h2_connect(bare=True)
        client.raw_settings = True
        stream = client.stream(1)
        await client.send(PREFACE + settings() + G1, mode)
        assert (await stream.done()).status == 200
        assert client.frames[0][0] == SETTINGS, "§3.4: the server's SETTINGS come first"


async def test_settings_are_acknowledged_each(h2_connect, replica):
    # §6.5.3: one by one, in order.
    client = await h2_connect()
    for _ in range(5):
        client.post_settings({INITIAL_WINDOW: 70_000})
    assert await client.roundtrip()
    assert not client.unacked
    assert client.acked_settings == 6


async def test_ping_is_answered_with_its_payload(h2_connect, replica):
    # §6.7.
    client = await h2_connect()
    client.raw_pings = True
    for payload in (bytes(8), b"\xff" * 8, b"\r\n\r\nabcd"):
        await client.send(ping(payload), "bytes")
        await client.wait(lambda payload=payload: payload in client.pongs)
        assert client.pongs[-1] == payload


async def test_ping_is_answered_in_the_middle_of_an_upload(h2_connect, replica):
    client = await h2_connect()
    stream = await client.open(head(b"POST"), end=False)
    for _ in range(20):
        await stream.send(b"x" * 1000)
        assert await client.roundtrip()
    await stream.send(b"", end=True)
    assert (await stream.done()).status == 200


async def test_a_client_that_says_goaway(h2_connect, replica):
    # §6.8: streams below go on; nothing has to be accepted behind it.
    client = await h2_connect()
    stream = await client.open(head(b"POST"), end=False)
    await client.send(goaway(0))
    await stream.send(b"hello", end=True)
    assert (await stream.done()).status == 200
    client.finish()
    assert await client.ending() in {"eof", "reset"}


async def test_priority_of_rfc_9218(h2_connect, replica):
    # RFC 9218 §7.1: on stream 0, for a request stream, idle or open; other placements are PROTOCOL_ERROR.
    client = await h2_connect()
    update = struct.pack(">I", 1) + b"u=0, i"
    await client.send(frame(0x10, 0, 0, update) + frame(0x10, 0, 0, struct.pack(">I", 1) + b"not a dictionary ="))
    assert (await client.get(b"/t", (b"priority", b"u=9;;;"))).status == 200
    assert replica.requests[-1].get(b"priority") == b"u=9;;;"


async def test_the_limit_of_streams_is_kept(h2_connect, replica):
    # §5.1.2: beyond it a stream error REFUSED_STREAM or PROTOCOL_ERROR; those within are served.
    gate = asyncio.Event()
    answered = replica.script

    async def script(connection, request):
        await gate.wait()
        await answered(connection, request)

    replica.script = script
    client = await h2_connect()
    limit = client.peer[MAX_STREAMS]
    assert limit <= 256
    streams = [await client.open(head()) for _ in range(limit)]
    over = [await client.open(head()) for _ in range(3)]
    for stream in over:
        await stream.done()
        assert stream.reset in {REFUSED, PROTOCOL}, client.describe()
    gate.set()
    for stream in streams:
        assert (await stream.done()).status == 200
    assert (await client.get(b"/after")).status == 200
    assert len(replica.seen) == limit + 1


async def test_a_stream_error_leaves_the_others(h2_connect, replica):
    # §5.4.2: an upload on one stream goes on through errors of others.
    client = await h2_connect()
    upload = await client.open(head(b"POST", b"/upload"), end=False)
    for i, fields in enumerate([[*GET, (b"X", b"y")], without(b":path"), [*GET, (b"connection", b"x")], [*POST, (b"content-length", b"3")]]):
        await upload.send(b"%d" % i)
        broken = await (await client.open(fields)).done()
        assert broken.reset == PROTOCOL or 400 <= broken.status < 500, client.describe()
    await upload.send(b"!", end=True)
    assert (await upload.done()).status == 200
    assert [bytes(r.body) for r in replica.requests if r.complete] == [b"0123!"]


async def test_the_decoder_follows_a_table_size_of_ours(h2_connect, replica):
    # RFC 7541 §4.2: after a smaller SETTINGS_HEADER_TABLE_SIZE the router's encoder says so; the kit's decoder insists.
    client = await h2_connect()
    for size in (4096, 0, 100, 65_536, 1, 4096):
        client.post_settings({TABLE_SIZE: size})
        for _ in range(3):
            assert (await client.get(b"/t")).status == 200


async def test_a_client_s_table_up_to_the_router_s_limit(h2_connect, replica):
    # RFC 7541 §4.3, §4.4: evictions at the brim keep both ends in step, over many heads.
    client = await h2_connect()
    encoder = hpack.Encoder()
    for i in range(60):
        stream = client.stream()
        fields = [*GET, *((b"x-%d" % (i * k % 17), b"v" * (i * 13 % 300)) for k in range(3))]
        await client.send(headers(stream.id, encoder.encode(fields, huffman=bool(i % 2))))
        assert (await stream.done()).status == 200
        got = [(name, value) for name, value in replica.requests[-1].fields if name.startswith(b"x-") and name[2:].isdigit()]
        assert got == fields[4:]


@pytest.mark.parametrize("name", ["settings", "ping"])
async def test_half_a_frame_and_the_end(name, h2_connect, replica):
    whole = {"settings": settings({INITIAL_WINDOW: 5}), "ping": ping()}[name]
    for cut in (1, 8, 9, len(whole) - 1):
        client = await h2_connect()
        await client.send(whole[:cut])
        client.finish()
        assert await client.ending() in {"eof", "reset"}
    assert string(b"x") == b"\x01x"
