"""The first event of a stream: each refusal SGLang 0.5.23 sends, whole and byte by byte, and all that is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.first_event import LIMIT_BYTES, FirstEvent, NeedMore, Pass, Refused, is_stream

FULL = (
    b'data: {"error": {"object": "error", "message": "The request queue is full.", '
    b'"type": "SERVICE_UNAVAILABLE", "param": null, "code": 503}}\n\n'
)
TOO_LONG = (
    b'data: {"error":{"message":"too long","type":"invalid_request_error","code":400,"retryable":false}}\n\n'
)
ABORTED = (
    b'data: {"text":"","meta_info":{"id":"a","finish_reason":{"type":"abort",'
    b'"message":"The request queue is full.","status_code":503,"err_type":null}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
ROLE = (
    b'data: {"id":"0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"reasoning_content":null,"role":"assistant","content":""},'
    b'"logprobs":null,"finish_reason":null,"matched_stop":null}]}\n\n'
)

REFUSALS = [
    (FULL, Refused(503, "The request queue is full.")),
    (TOO_LONG, Refused(400, "too long")),
    (ABORTED, Refused(503, "The request queue is full.")),
    (FULL.replace(b"\n", b"\r\n"), Refused(503, "The request queue is full.")),
    (FULL.replace(b"\n", b"\r"), Refused(503, "The request queue is full.")),
    (b"\xef\xbb\xbf" + FULL, Refused(503, "The request queue is full.")),
    (b"event: error\nid: 1\nretry: 5\n" + FULL, Refused(503, "The request queue is full.")),
    (b'data: {"object":"error","message":"no","code":"429"}\n\n', Refused(429, "no")),
    (b'data:{"error":\ndata: {"code":500}}\n\n', Refused(500, "")),
]
PASSES = [
    ROLE,
    DONE,
    b": ping\n\n" + FULL,
    b"\n\n" + FULL,
    b"data\n\n",
    b"data: \n\n",
    b"data: {broken\n\n",
    b"data: [1]\n\n",
    b'data: {"error":"text"}\n\n',
    b'data: {"error":{"message":"no code"}}\n\n',
    b'data: {"error":{"code":true}}\n\n',
    b'data: {"error":{"code":200}}\n\n',
    b'data: {"error":{"code":"50x"}}\n\n',
    b'data: {"error":{"code":"5030"}}\n\n',
    b'data: {"error":{"code":99999999999999999999999}}\n\n',
    b'data: {"error":null,"choices":[]}\n\n',
    b'data: {"meta_info":{"finish_reason":null}}\n\n',
    b'data: {"meta_info":{"finish_reason":{"type":"abort","message":"by the client","status_code":null}}}\n\n',
    b'data: {"meta_info":{"finish_reason":{"type":"length","length":3}}}\n\n',
    b"data: " + b"[" * 4_000 + b"\n\n",
    b'data: {"error":{"code":503,"message":"\xff"}}\n\n',
    b"<html>",
    b"\x1f\x8b\x08",
    b'data: {"error":{"code":503,"message":"' + b"x" * LIMIT_BYTES + b'"}}\n\n',
]


def feed(pieces):
    """The decision, and how many bytes were fed before it."""
    frame, fed = FirstEvent(), 0
    for piece in pieces:
        fed += len(piece)
        decision = frame.feed(piece)
        if not isinstance(decision, NeedMore):
            return decision, fed
    return frame.end(), fed


def each_byte(data):
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("wire", "expected"), REFUSALS)
def test_refusals(wire, expected):
    assert feed([wire + DONE]) == (expected, len(wire + DONE))
    decision, fed = feed(each_byte(wire + DONE))
    assert decision == expected and fed <= len(wire)


@pytest.mark.parametrize("wire", PASSES)
def test_everything_else_passes_unchanged(wire):
    assert feed([wire + DONE])[0] == Pass(wire + DONE)
    decision, fed = feed(each_byte(wire + DONE))
    assert decision == Pass((wire + DONE)[:fed])
    assert fed <= LIMIT_BYTES


def test_a_stream_cut_in_its_first_event_passes():
    assert feed([FULL[:-1]]) == (Pass(FULL[:-1]), len(FULL) - 1)
    assert feed([]) == (Pass(b""), 0)


def test_what_cannot_be_a_refusal_is_not_held_back():
    assert feed([b"d", b"a", b"z"])[0] == Pass(b"daz")
    assert feed([b":"])[0] == Pass(b":")
    assert isinstance(FirstEvent().feed(b"event: er"), NeedMore)


def test_never_more_than_the_limit_is_held():
    frame = FirstEvent()
    held = b"data: " + b"x" * (LIMIT_BYTES - 7)
    assert isinstance(frame.feed(held), NeedMore)
    assert frame.feed(b"yz") == Pass(held + b"yz")


def test_retry_after_where_it_helps():
    assert [Refused(status, "").retry_after_s for status in (400, 429, 500, 503)] == [0, 1, 0, 1]
    assert len(feed([b'data: {"error":{"code":503,"message":"' + b"x" * 3_000 + b'"}}\n\n'])[0].message) == 500


@pytest.mark.parametrize(
    ("status", "content_type", "expected"),
    [
        (200, b"text/event-stream; charset=utf-8", True),
        (200, b"Text/Event-Stream", True),
        (200, b"application/json", False),
        (206, b"text/event-stream", False),
        (503, b"text/event-stream", False),
        (200, b"", False),
    ],
)
def test_which_responses_are_looked_into(status, content_type, expected):
    assert is_stream(status, content_type) is expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5), st.sampled_from([b"", b"data: ", b'data: {"error":']))
def test_any_bytes_in_any_pieces_are_decided_alike_and_nothing_is_lost(tail, cuts, lead):
    wire = lead + tail
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[a:b] for a, b in zip(edges, edges[1:])]
    decision, fed = feed(pieces)
    if isinstance(decision, Pass):
        assert decision.held == wire[:fed]
    assert isinstance(decision, Refused) == isinstance(feed([wire])[0], Refused)


@given(st.integers(400, 599), st.text(max_size=200))
def test_any_status_and_message_survive(status, message):
    wire = b"data: " + json.dumps({"error": {"code": status, "message": message}}).encode() + b"\n\n"
    assert feed(each_byte(wire))[0] == Refused(status, message)
