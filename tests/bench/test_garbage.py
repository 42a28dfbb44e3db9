"""A connection that is gone is freed at once: what only the collector finds grows until it stops the worker."""

import gc

import pytest
from pairkit import H2_CALL, H2_HEAD, H2_SETTINGS, H2_TRAILERS, MESSAGE, REQUEST, RESPONSE, make_pair

from router.transport.codec.h2 import frames

CALL = frames.frame(frames.HEADERS, 4, 1, H2_CALL) + frames.frame(frames.DATA, 1, 1, MESSAGE)
ANSWER = [
    frames.frame(frames.HEADERS, 4, 1, H2_HEAD),
    frames.frame(frames.DATA, 0, 1, MESSAGE),
    frames.frame(frames.HEADERS, 5, 1, H2_TRAILERS),
]
H1, H2 = "http://127.0.0.1:1", "h2c://127.0.0.1:1"


def frames_of(*pieces):
    return frames.PREFACE + H2_SETTINGS + b"".join(pieces)


CASES = {
    "h1, nothing": (H1, [], []),
    "h1, half a head": (H1, [REQUEST[:20]], []),
    "h1, answered": (H1, [REQUEST], [RESPONSE]),
    "h1, cut in the answer": (H1, [REQUEST], [RESPONSE[:-1]]),
    "h1, not answered": (H1, [REQUEST], []),
    "h2, nothing": (H2, [frames_of()], [H2_SETTINGS]),
    "h2, half a frame": (H2, [frames_of(CALL[:12])], [H2_SETTINGS]),
    "h2, answered": (H2, [frames_of(CALL)], [H2_SETTINGS, *ANSWER]),
    "h2, cut in the answer": (H2, [frames_of(CALL)], [H2_SETTINGS, *ANSWER[:2]]),
    "h2, cancelled": (H2, [frames_of(CALL), frames.rst_stream(1, 8)], [H2_SETTINGS]),
}


@pytest.mark.parametrize("first", ["client", "replica"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_to_the_collector(case, first):
    address, said, answered = CASES[case]
    client, replica = make_pair(address)
    reactor, owner, pool = client.reactor, client._owner, replica._pool  # these live on
    gc.collect()
    gc.disable()
    try:
        for piece in said:
            client.data_received(piece)
        for piece in answered:
            replica.data_received(piece)
        for connection in (client, replica) if first == "client" else (replica, client):
            connection.connection_lost(None)
        reactor.wheel.turn(reactor.clock.read() + 60.0)  # what it had to watch it forgets within a turn
        reactor.wheel.turn(reactor.clock.read() + 120.0)
        del client, replica, connection
        gc.set_debug(gc.DEBUG_SAVEALL)
        found = gc.collect()
        left = [type(each).__name__ for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found, (left, owner, pool)
