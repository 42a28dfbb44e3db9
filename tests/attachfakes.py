"""A connection of QUIC that only keeps what it is told, and the worker around it."""

import asyncio

from router.clock import Clock
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.transport.codec.quic.seam import Bearer, Flow
from router.transport.outbox import Outbox
from router.transport.shell import Reactor


class FakeFlow(Flow):
    def __init__(self, flow_id):
        self.id = flow_id
        self.unsent_bytes = 0
        self.sent = b""
        self.ended = False
        self.reset_code = self.stop_code = None
        self.credited = 0

    def send(self, data, end):
        self.sent += data
        self.ended |= end

    def reset(self, code):
        self.reset_code = code

    def stop(self, code):
        self.stop_code = code

    def credit(self, size):
        self.credited += size

    def can_send(self):
        return not self.ended and self.reset_code is None

    def send_is_over(self):
        return self.ended


class FakeBearer(Bearer):
    def __init__(self, first_id, max_streams=100):
        self.now = 0.0
        self.is_early = False
        self.closed = None
        self.flows = []
        self._next = first_id
        self._left = max_streams

    def open_stream(self, *, unidirectional):
        assert not unidirectional
        if not self._left:
            return None
        self._left -= 1
        flow = FakeFlow(self._next)
        self._next += 4
        self.flows.append(flow)
        return flow

    def close(self, code, reason=b""):
        assert self.closed is None
        self.closed = code, reason.decode()

    def touch(self):
        pass

    def watch(self):
        pass


def make_reactor():
    clock = Clock()
    return Reactor(clock, Outbox(clock), DeadlineWheel(clock.now), WorkerCounters())


async def until(condition, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)
