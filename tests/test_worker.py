"""The worker's end of the control channel: when it says that all is well, and when it keeps that to itself."""

import pytest

from router.control import Alive, Unpacker, from_worker
from router.worker import MAX_UNHEARD_BYTES, ControlProtocol


class Transport:
    def __init__(self):
        self.closing = False
        self.unheard = 0
        self.written = []

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return self.unheard

    def write(self, data):
        assert not self.closing, "uvloop raises"
        self.written.append(data)


@pytest.fixture
async def channel():
    protocol = ControlProtocol(lambda start: None, [])
    protocol.connection_made(Transport())
    return protocol, protocol._transport


async def test_a_pulse_is_said(channel):
    protocol, transport = channel
    protocol.pulse(Alive("lag 120 ms"))
    ((body,),) = [list(Unpacker().feed(data)) for data in transport.written]
    assert from_worker.decode(body) == Alive("lag 120 ms")


async def test_none_to_a_supervisor_that_does_not_listen(channel):
    protocol, transport = channel
    transport.unheard = MAX_UNHEARD_BYTES
    protocol.pulse(Alive(""))
    assert not transport.written


async def test_none_on_a_channel_that_closes(channel):
    """The tick goes on for a moment after the last word of a drain."""
    protocol, transport = channel
    transport.closing = True
    protocol.pulse(Alive(""))
    assert not transport.written
