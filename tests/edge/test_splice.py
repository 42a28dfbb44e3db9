"""A socket and a stream, joined: every order in which the two can end, and what is given back. On both event loops."""

import asyncio
import random
import socket

import pytest
import uvloop
from attachfakes import FakeFlow, make_reactor, until

from router.edge.splice import Splice
from router.transport.codec.quic.limits import HIGH_BYTES


class Flow(FakeFlow):
    """As strict as a stream of QUIC: of what was taken no more is credited than came."""

    def __init__(self, flow_id=1):
        super().__init__(flow_id)
        self.came = 0

    def credit(self, size):
        super().credit(size)
        assert self.credited <= self.came

    def is_over(self):
        return (self.ended or self.reset_code is not None) and self.credited == self.came


def both_loops(work):
    """Run it on each loop, with whatever the loop says of exceptions in callbacks as failures."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def test(run):
        async def whole():
            said = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
            async with asyncio.timeout(20):
                await work()
            assert not said

        run(whole())

    test.__doc__ = work.__doc__
    return test


async def joined():
    """Return the splice, its stream, its transport and the other end of its socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    flow = Flow()
    transport, splice = await asyncio.get_running_loop().create_unix_connection(
        lambda: Splice(make_reactor(), flow), sock=ours
    )
    return splice, flow, transport, theirs


def give(splice, flow, data, end=False):
    flow.came += len(data)
    splice.take(data, end)


async def hold(flow, theirs):
    """Have more come from the socket than the stream takes."""
    flow.unsent_bytes = HIGH_BYTES + 1
    theirs.send(b"x" * 1_000)
    await until(lambda: flow.sent)


@both_loops
async def test_a_stream_that_is_cut_and_drained_in_one_tick():
    """A client goes while its response waits: RESET_STREAM, STOP_SENDING and acknowledgements in one datagram."""
    splice, flow, _, theirs = await joined()
    await hold(flow, theirs)
    splice.cut()
    splice.cut()
    flow.unsent_bytes = 0
    splice.drained()
    await until(lambda: flow.reset_code is not None)
    theirs.close()


@both_loops
async def test_what_comes_for_a_socket_that_is_being_closed():
    splice, flow, _, theirs = await joined()
    splice.cut()
    give(splice, flow, b"x" * 1_000)
    give(splice, flow, b"y" * 1_000, end=True)
    splice.drained()
    await until(flow.is_over)
    give(splice, flow, b"z")
    assert flow.is_over()
    theirs.close()


@both_loops
async def test_a_reader_that_stops_and_goes_has_all_credit_given_back():
    splice, flow, _, theirs = await joined()
    for _ in range(20):
        give(splice, flow, b"x" * 100_000)
        await asyncio.sleep(0)
    assert flow.credited < flow.came
    theirs.close()
    await until(flow.is_over)
    give(splice, flow, b"late")
    assert flow.is_over() and flow.stop_code is not None


@both_loops
async def test_the_socket_ends_first_and_the_stream_goes_on():
    splice, flow, transport, theirs = await joined()
    theirs.send(b"request")
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: flow.ended)
    give(splice, flow, b"answer")
    await asyncio.sleep(0.01)
    give(splice, flow, b"", end=True)
    await until(transport.is_closing)
    await until(flow.is_over)
    await asyncio.sleep(0.01)
    assert theirs.recv(100) == b"answer" and theirs.recv(100) == b""
    assert (flow.reset_code, flow.stop_code) == (None, None)
    theirs.close()


@both_loops
async def test_the_stream_ends_first_and_the_socket_goes_on():
    splice, flow, _, theirs = await joined()
    give(splice, flow, b"request", end=True)
    await asyncio.sleep(0.01)
    assert theirs.recv(100) == b"request" and theirs.recv(100) == b""
    theirs.send(b"answer")
    theirs.close()
    await until(flow.is_over)
    assert flow.sent == b"answer" and flow.stop_code is None


@both_loops
async def test_any_order():
    """Whatever happens when: nothing is raised, all credit comes back, and both sides end."""
    chance = random.Random(7)
    for _ in range(150):
        splice, flow, transport, theirs = await joined()
        is_ended = is_cut = is_shut = False
        for _ in range(chance.randrange(1, 12)):
            what = chance.randrange(9)
            if what <= 1 and not is_ended and not is_cut:
                is_ended = chance.random() < 0.2
                give(splice, flow, b"x" * chance.choice((0, 10, 300_000)) or b"x", is_ended)
            elif what == 2 and not is_shut:
                try:
                    theirs.send(b"y" * chance.choice((10, 50_000)))
                except OSError:
                    is_shut = True
            elif what == 3:
                flow.unsent_bytes = chance.choice((0, HIGH_BYTES + 1))
                if not flow.unsent_bytes:
                    splice.drained()
            elif what == 4 and not is_shut:
                is_shut = True
                try:
                    theirs.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            elif what == 5 and chance.random() < 0.4:
                is_cut = True
                splice.cut()
            elif what == 6:
                try:
                    theirs.recv(1 << 20)
                except OSError:
                    pass
            elif what == 7:
                await asyncio.sleep(0)
        theirs.close()
        flow.unsent_bytes = 0
        splice.drained()
        if not is_ended and not is_cut:  # whose end was read already says no more when it goes
            give(splice, flow, b"", True)
        await until(flow.is_over)
        await until(transport.is_closing)
