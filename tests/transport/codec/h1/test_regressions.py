"""Faults that were found by reading, each with the order of events that showed it."""

import pytest
from h1kit import GET, T0, ClientBench, ServerBench, request, response, split_response

from router.errors import Kind
from router.stream import CLOSE_ABORT, HOLD_NO_UPSTREAM, HOLD_PEER_FULL

POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello"


def test_a_kept_connection_is_read_again_after_an_early_answer_to_a_full_upload():
    bench = ServerBench()
    bench.feed(POST)
    bench.request.hold(HOLD_PEER_FULL)  # the last piece went over the replica's high mark
    bench.answer(413)
    assert bench.is_open
    assert bench.codec.wants_read
    bench.feed(GET)
    assert len(bench.requests) == 2


def test_a_client_that_leaves_during_a_drain_is_gone():
    """`Connection: close` of ours must not be taken for the client's announcement."""
    bench = ServerBench()
    bench.feed(GET)
    bench.codec.drain()
    bench.codec.send_head(response(), False)
    bench.flush()
    assert b"connection: close" in bench.out
    bench.eof()
    assert bench.request.error.kind is Kind.CLIENT_GONE


def test_a_client_gone_behind_held_input_is_closed_at_once():
    """Its end was seen while the request was held, so nothing else will touch the connection again."""
    bench = ServerBench(hold=HOLD_NO_UPSTREAM)
    bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhello")
    bench.eof()
    bench.request.release(HOLD_NO_UPSTREAM)
    bench.shell.is_touched = False
    bench.codec.receive(b"", bench.now)
    assert bench.codec.close == CLOSE_ABORT
    assert bench.shell.is_touched


def test_a_blank_line_on_an_idle_connection_leads_to_no_answer():
    bench = ServerBench(head_s=10.0, keep_alive_s=75.0)
    bench.feed(GET)
    bench.answer()
    bench.taken()
    bench.feed(b"\r\n")
    assert bench.expire() == pytest.approx(75.0)
    assert bench.taken() == b""


def test_an_upload_nobody_wants_does_not_keep_the_connection():
    bench = ClientBench()
    bench.start(request(b"POST", length=10), end=False)
    bench.codec.send_data(b"abc", False)
    bench.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert bench.codec.close == CLOSE_ABORT


def test_a_full_connection_is_not_pooled():
    bench = ClientBench()
    bench.start(request(b"POST", length=3), end=False)
    bench.codec.send_data(b"abc", True)
    bench.codec.transport_full(True, bench.now)
    bench.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert bench.idle_calls == 0
    assert bench.codec.close == CLOSE_ABORT


def test_a_close_that_is_not_taken_has_a_deadline():
    bench = ClientBench()
    bench.start()
    bench.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert bench.codec.next_deadline() <= T0 + 5.0
    bench.expire()
    assert bench.codec.close == CLOSE_ABORT


def test_errors_are_not_put_into_compressed_streams():
    bench = ClientBench()
    receiver = bench.start()
    bench.feed(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    assert not receiver.head.shape.is_event_stream


def test_many_small_reads_of_a_head_are_searched_once():
    bench = ServerBench()
    head = b"GET / HTTP/1.1\r\nHost: a.example\r\n" + b"A: b\r\n" * 100 + b"\r\n"
    bench.feed(head, lambda data: [data[i : i + 1] for i in range(len(data))])
    bench.answer()
    assert split_response(bench.out)[0] == b"HTTP/1.1 200 OK"
    bad = ServerBench()
    bad.feed(head[:-4] + b"\nA: b", lambda data: [data[i : i + 1] for i in range(len(data))])
    assert bad.refused
