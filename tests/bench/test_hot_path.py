"""What the hot path costs, in a unit that no noisy machine changes: Python calls per request and per event.

A budget here is a ratchet: when a change needs more calls, the figure in the commit says why.
"""

import sys

import pytest
from pairkit import EVENT, H2_CALL, H2_HEAD, H2_SETTINGS, H2_TRAILERS, MESSAGE, REQUEST, RESPONSE, STREAM, make_pair

from router.transport.codec.h2 import frames


@pytest.fixture
def pair():
    return make_pair("http://127.0.0.1:1")


@pytest.fixture
def h2_pair():
    return make_pair("h2c://127.0.0.1:1")


def calls(work):
    """How many Python functions `work` calls; the least of three, since a collection may call finalizers in between."""
    return min(count_calls(work) for _ in range(3))


def count_calls(work):
    count = 0

    def on_event(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_warm_request_stays_within_its_budget(pair):
    client, replica = pair

    def request():
        client.data_received(REQUEST)
        replica.data_received(RESPONSE)

    for _ in range(3):
        request()
    assert client.transport.last.endswith(b"\r\n\r\nok")
    assert calls(request) <= 81  # six are what bisect and %.3f did, written out for the compiler
    client.transport.writes = replica.transport.writes = 0
    request()
    assert (client.transport.writes, replica.transport.writes) == (1, 1), "one write per connection and tick"


def test_an_event_stays_within_its_budget(pair):
    client, replica = pair
    client.data_received(REQUEST)
    replica.data_received(STREAM + EVENT)
    assert calls(lambda: replica.data_received(EVENT)) <= 17
    client.transport.writes = 0
    replica.data_received(EVENT)
    assert client.transport.last == EVENT
    assert client.transport.writes == 1


def test_a_grpc_call_stays_within_its_budget(h2_pair):
    client, replica = h2_pair
    client.data_received(frames.PREFACE + H2_SETTINGS)
    replica.data_received(H2_SETTINGS)
    stream = -1

    def call():
        nonlocal stream
        stream += 2
        client.data_received(frames.frame(frames.HEADERS, 4, stream, H2_CALL) + frames.frame(0, 1, stream, MESSAGE))
        replica.data_received(
            frames.frame(frames.HEADERS, 4, stream, H2_HEAD)
            + frames.frame(frames.DATA, 0, stream, MESSAGE)
            + frames.frame(frames.HEADERS, 5, stream, H2_TRAILERS)
        )

    for _ in range(3):
        call()
    assert client.transport.last.endswith(H2_TRAILERS)
    assert calls(call) <= 147
    client.transport.writes = replica.transport.writes = 0
    call()
    assert (client.transport.writes, replica.transport.writes) == (1, 1), "one write per connection and tick"


def test_a_streamed_message_stays_within_its_budget(h2_pair):
    client, replica = h2_pair
    client.data_received(frames.PREFACE + H2_SETTINGS)
    client.data_received(frames.frame(frames.HEADERS, 5, 1, H2_CALL))
    replica.data_received(H2_SETTINGS + frames.frame(frames.HEADERS, 4, 1, H2_HEAD))
    message = frames.frame(frames.DATA, 0, 1, MESSAGE)
    replica.data_received(message)
    assert calls(lambda: replica.data_received(message)) <= 14
    client.transport.writes = 0
    replica.data_received(message)
    assert client.transport.last == message
    assert client.transport.writes == 1
