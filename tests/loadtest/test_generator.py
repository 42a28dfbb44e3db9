"""Generator and replica, direct: what each way of asking counts, and that failures are seen."""

import asyncio
import gc
import os
from time import perf_counter

import pytest

from loadtest import wire
from loadtest.clients.http1 import ResponseReader
from loadtest.clients.ticker import Ticker
from loadtest.clients.window import Command
from loadtest.generator import answer, measure


@pytest.fixture(autouse=True)
def small_heap():
    """As in the generator's own process: else the collection before the window takes as long as the suite's heap."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def command(mode, port, **changes):
    fields = {"connections": 4, "duration_s": 0.15, "warmup_s": 0.05, "events": 6, "rate_per_s": 500.0}
    return Command(mode=mode, port=port, **{**fields, **changes})


async def test_closed_loop_counts_requests(replica_port):
    result = await measure(command("closed", replica_port, pids=[os.getpid()]))
    assert result.errors == 0, result.detail
    assert result.units > 100
    assert result.latency.count == result.units
    # Everything ran in this process, so it was busy for most of the window.
    assert 0.03e9 < result.cpu_ns[os.getpid()] < 0.4e9


async def test_streams_count_events_and_gaps(replica_port):
    result = await measure(command("sse", replica_port, duration_s=0.3))
    assert result.errors == 0, result.detail
    assert result.units > 50
    assert result.first_event.count > 5
    assert result.gap.p50_us == pytest.approx(2000, rel=0.8)


async def test_a_truncated_stream_is_an_error(replica_port):
    result = await measure(command("sse", replica_port, events=7))
    assert result.errors
    assert "6 events instead of 7" in result.detail


async def test_websocket_counts_both_directions(replica_port):
    result = await measure(command("websocket", replica_port))
    assert result.errors == 0, result.detail
    assert result.units == 2 * result.latency.count
    assert result.units > 100


async def test_open_loop_keeps_its_rate(replica_port):
    result = await measure(command("open", replica_port, duration_s=0.4))
    assert result.errors == 0, result.detail
    assert result.units == pytest.approx(200, abs=10)


class Stalling(asyncio.Protocol):
    """Answers at once, except that it falls silent once for `stall_s`, as a blocked event loop does.

    Well behind the first request, so that all of it lies within the window.
    """

    stall_s = 0.15
    begins_after_s = 0.35

    def __init__(self, state):
        self.state = state

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.state.setdefault("until", now + self.begins_after_s + self.stall_s)
        begins = self.state["until"] - self.stall_s
        wait = self.state["until"] - now if begins <= now < self.state["until"] else 0
        loop.call_later(wait, self.transport.write, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


async def test_open_loop_measures_from_the_intended_time():
    """One connection, a stall of 150 ms: a closed loop has one slow request, the open loop all of them."""
    loop = asyncio.get_running_loop()
    found = {}
    for mode in ("closed", "open"):
        state = {}
        server = await loop.create_server(lambda: Stalling(state), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        found[mode] = await measure(command(mode, port, connections=1, duration_s=0.6, rate_per_s=333.0))
        server.close()
    assert found["closed"].errors == found["open"].errors == 0
    assert found["closed"].latency.p90_us < 50_000
    # 60 of 200 requests should have left within the stall and waited 75 ms on average.
    assert found["open"].units == pytest.approx(200, abs=10)
    assert found["open"].latency.p90_us > 60_000
    assert found["open"].latency.max_us > 120_000


async def test_open_loop_charges_what_never_came_back(monkeypatch):
    monkeypatch.setattr("loadtest.clients.openloop.DRAIN_S", 0.1)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    result = await measure(command("open", port, rate_per_s=100.0, warmup_s=0))
    server.close()
    assert result.units == 0
    assert result.errors == pytest.approx(15, abs=2)
    assert result.latency.max_us > 200_000


@pytest.mark.parametrize("mode", ["closed", "open", "sse", "websocket"])
async def test_a_refused_connection_is_a_result(mode, unused_tcp_port):
    result = await measure(command(mode, unused_tcp_port))
    assert (result.units, result.errors) == (0, 1)
    assert "Connect" in result.detail


@pytest.mark.parametrize("mode", ["closed", "open", "sse"])
async def test_another_status_is_an_error(mode):
    class Refusing(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")

    server = await asyncio.get_running_loop().create_server(Refusing, "127.0.0.1", 0)
    result = await measure(command(mode, server.sockets[0].getsockname()[1], connections=1))
    server.close()
    assert result.units == 0
    assert result.errors
    assert "503" in result.detail


def test_the_process_answers_a_command_a_line(unused_tcp_port):
    import msgspec

    line = msgspec.json.encode(command("closed", unused_tcp_port, duration_s=0.01, warmup_s=0))
    (result,) = answer([line, b"\n"])
    assert b'"errors":1' in result


@pytest.mark.parametrize(
    "body",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-request-id: 0\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: 0\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_the_reader_finds_the_end_byte_by_byte(body):
    for step in (1, 2, 7, len(body)):
        reader = ResponseReader()
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        for _ in range(2):  # keep-alive
            assert [reader.feed(part) for part in parts] == [0] * (len(parts) - 1) + [200]


def test_unmask_is_its_own_inverse():
    payload = bytes(range(100))
    frame = wire.client_message()
    assert wire.unmask(frame[6:], frame[2:6]) == payload


async def test_ticker_counts_what_was_slept_through():
    began_s = perf_counter()
    ticker = Ticker(0.001)
    assert ticker.ticks() == 0
    await asyncio.sleep(0.05)
    assert ticker.ticks() == pytest.approx((perf_counter() - began_s) * 1e3, abs=25), "however long it was"
    ticker.close()
