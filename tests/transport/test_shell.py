"""TcpShell over a fake transport (one write a tick, reading, closing), and over real sockets (RST, half-close)."""

import asyncio
import socket

import pytest

from router.clock import Clock
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_LINGER, CLOSE_NO
from router.transport.outbox import Outbox
from router.transport.shell import JOIN_BYTES, Reactor, TcpShell


def make_reactor():
    clock = Clock()
    return Reactor(clock, Outbox(clock), DeadlineWheel(clock.now), WorkerCounters())


class FakeCodec:
    """Does what a test tells it in `on_receive`; otherwise counts."""

    def __init__(self):
        self.wants_read = True
        self.has_held_input = False
        self.close = CLOSE_NO
        self.out = []
        self.received = []
        self.deadline = 1e9
        self.full = []
        self.lost = 0
        self.eof = 0
        self.keep_open = False
        self.on_receive = None

    def receive(self, data, now):
        self.has_held_input = False
        self.received.append(data)
        if self.on_receive is not None:
            self.on_receive(data)

    def receive_eof(self, now):
        self.eof += 1
        return self.keep_open

    def receive_lost(self, now):
        self.lost += 1

    def take_output(self, now):
        out, self.out = self.out, []
        return out

    def transport_full(self, full, now):
        self.full.append(full)

    def next_deadline(self):
        return self.deadline

    def handle_deadline(self, now):
        raise RuntimeError("a bug")

    def drain(self):
        self.close = CLOSE_FLUSH


class FakeTransport:
    def __init__(self):
        self.calls = []
        self.closing = False

    def is_closing(self):
        return self.closing

    def can_write_eof(self):
        return True

    def get_extra_info(self, name):
        return None

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, *args))
            if name in ("close", "abort"):
                self.closing = True

        return call


@pytest.fixture
def shell():
    shell = TcpShell(make_reactor())
    shell.codec = FakeCodec()
    shell.connection_made(FakeTransport())
    return shell


def tick(shell, *out, **state):
    """One callback in which the codec queued `out` and changed `state`."""

    def act(data):
        shell.codec.out += out
        for name, value in state.items():
            setattr(shell.codec, name, value)
        shell.touch()
        shell.codec.on_receive = None

    shell.codec.on_receive = act
    shell.data_received(b"x")
    calls, shell.transport.calls = shell.transport.calls, []
    return calls


class TestWriting:
    @pytest.mark.parametrize(
        "out", [[b"a"], [b"head", b"body"], [b"a", b"b", b"c"], [b"a"] * 50, [b"h", b"x" * (JOIN_BYTES - 10)]]
    )
    def test_one_write_a_tick(self, shell, out):
        assert tick(shell, *out) == [("write", b"".join(out))]
        assert shell.written_bytes == sum(map(len, out))

    @pytest.mark.parametrize("out", [[b"h", b"x" * JOIN_BYTES], [b"a", b"b", b"x" * JOIN_BYTES]])
    def test_large_ones_are_not_copied(self, shell, out):
        assert tick(shell, *out) == [("writelines", out)]
        assert shell.written_bytes == sum(map(len, out))

    @pytest.mark.parametrize("out", [[], [b"a"], [b"a", b"b"], [b"a", b"b", b"c"]])
    def test_an_empty_piece_at_the_end_shuts_the_write_side(self, shell, out):
        wanted = [("write", b"".join(out))] if out else []
        assert tick(shell, *out, b"") == [*wanted, ("write_eof",)]

    def test_nothing(self, shell):
        assert tick(shell) == []

    def test_touched_many_times_is_flushed_once(self, shell):
        for _ in range(5):
            shell.touch()
        assert shell.reactor.outbox.touched == [shell]


class TestReading:
    def test_paused_and_resumed_once(self, shell):
        assert tick(shell, wants_read=False) == [("pause_reading",)]
        assert tick(shell, wants_read=False) == []
        assert tick(shell, wants_read=True) == [("resume_reading",)]

    def test_held_input_is_continued_with_in_the_flush(self, shell):
        tick(shell, has_held_input=True)
        assert shell.codec.received == [b"x", b""]

    def test_not_on_a_closing_transport(self, shell):
        shell.transport.closing = True
        assert tick(shell, wants_read=False) == []


class TestClosing:
    def test_after_the_output(self, shell):
        assert tick(shell, b"bye", close=CLOSE_FLUSH) == [("write", b"bye"), ("close",)]
        assert tick(shell, b"more") == [], "nothing is written after that"

    def test_lingering_is_the_codecs_affair(self, shell):
        assert tick(shell, b"bye", b"", close=CLOSE_LINGER) == [("write", b"bye"), ("write_eof",)]
        assert tick(shell, close=CLOSE_ABORT) == [("abort",)]

    def test_a_firmer_way_overrules(self, shell):
        tick(shell, close=CLOSE_FLUSH)
        assert tick(shell, close=CLOSE_ABORT) == [("abort",)]
        assert tick(shell, close=CLOSE_ABORT) == []

    def test_held_input_comes_first(self, shell):
        """What was held may still queue output."""

        def act(data):
            if data:
                shell.codec.has_held_input = True
                shell.codec.close = CLOSE_FLUSH
            else:
                shell.codec.out.append(b"late")
            shell.touch()

        shell.codec.on_receive = act
        shell.data_received(b"x")
        assert shell.transport.calls == [("write", b"late"), ("close",)]

    def test_lost(self, shell):
        codec = shell.codec
        shell.connection_lost(None)
        assert codec.lost == 1
        assert shell.codec is not codec, "they would keep each other"
        assert shell.next_deadline() is None
        shell.touch()
        shell.reactor.outbox.flush()
        shell.abort()


class TestFaultsOfOurs:
    """An exception is our bug: it is logged and costs this one connection."""

    @pytest.mark.parametrize("callback", ["receive", "receive_eof", "full", "not_full", "handle_deadline", "held", "out"])
    def test_drops_the_connection(self, shell, callback, caplog):
        def bug(*args):
            raise RuntimeError("a bug")

        if callback == "handle_deadline":
            shell.handle_deadline(0.0)
        elif callback == "held":
            shell.codec.receive = bug
            shell.codec.has_held_input = True
            shell.touch()
            shell.reactor.outbox.flush()
        elif callback == "out":
            shell.codec.take_output = bug
            shell.touch()
            shell.reactor.outbox.flush()
        else:
            shell.codec.receive = shell.codec.receive_eof = shell.codec.transport_full = bug
            {
                "receive": lambda: shell.data_received(b"x"),
                "receive_eof": shell.eof_received,
                "full": shell.pause_writing,
                "not_full": shell.resume_writing,
            }[callback]()
        assert ("abort",) in shell.transport.calls
        assert shell.reactor.counters.internal_errors == 1
        assert "bug" in caplog.text

    def test_also_when_the_transport_is_gone(self, shell, caplog):
        def bug(now):
            raise RuntimeError("a bug")

        shell.codec.receive_lost = bug
        shell.connection_lost(None)
        assert shell.transport is None
        assert shell.reactor.counters.internal_errors == 1


def test_watermarks(shell):
    shell.pause_writing()
    shell.resume_writing()
    assert shell.codec.full == [True, False]


def test_it_is_watched_from_the_beginning(shell):
    assert shell.watch_tick >= 0
    assert shell.next_deadline() == shell.codec.deadline


async def connect():
    """A shell with a fake codec, and a blocking socket at its other end."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        shell = TcpShell(make_reactor())
        shell.codec = FakeCodec()
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    await loop.connect_accepted_socket(lambda: shell, accepted)
    client.setblocking(False)
    return shell, client


async def read_to_end(client):
    """Everything that comes, and how it ended."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while piece := await loop.sock_recv(client, 65_536):
            data += piece
    except ConnectionResetError:
        return data, "reset"
    return data, "end"


@pytest.mark.parametrize(("how", "end"), [(CLOSE_FLUSH, "end"), (CLOSE_ABORT, "reset")])
async def test_how_the_peer_sees_the_close(how, end):
    shell, client = await connect()
    with client:
        shell.codec.close = how
        shell.touch()
        shell.reactor.outbox.flush()
        assert await read_to_end(client) == (b"", end)


async def test_half_close_and_linger():
    shell, client = await connect()
    codec = shell.codec
    loop = asyncio.get_running_loop()
    with client:
        shell.codec.out += [b"answer", b""]
        shell.codec.close = CLOSE_LINGER
        shell.touch()
        shell.reactor.outbox.flush()
        assert await read_to_end(client) == (b"answer", "end")
        await loop.sock_sendall(client, b"late")
        while not shell.codec.received:
            await asyncio.sleep(0)
        client.shutdown(socket.SHUT_WR)
        while not codec.lost:
            await asyncio.sleep(0)
        assert codec.received == [b"late"]
        assert codec.eof == 1


async def test_an_end_may_be_kept_open():
    shell, client = await connect()
    shell.codec.keep_open = True
    with client:
        client.shutdown(socket.SHUT_WR)
        while not shell.codec.eof:
            await asyncio.sleep(0)
        shell.codec.out.append(b"still here")
        shell.codec.close = CLOSE_FLUSH
        shell.touch()
        shell.reactor.outbox.flush()
        assert await read_to_end(client) == (b"still here", "end")


async def test_all_is_written_before_a_close():
    shell, client = await connect()
    with client:
        codec = shell.codec
        codec.out += [b"x" * 8_000_000, b"y" * 8_000_000]
        codec.close = CLOSE_FLUSH
        shell.touch()
        shell.reactor.outbox.flush()
        data, end = await read_to_end(client)
        assert (len(data), end) == (16_000_000, "end")
        assert codec.full[:1] == [True]


async def test_what_the_kernel_still_has_in_either_direction():
    shell, client = await connect()
    with client:
        assert (shell.unsent_bytes(), shell.has_input()) == (0, False)
        shell.transport.write(b"x" * 16_000_000)
        before = shell.unsent_bytes()
        assert 0 < before <= 16_000_000
        client.setblocking(False)
        async with asyncio.timeout(10):
            while shell.unsent_bytes() == before:
                await asyncio.get_running_loop().sock_recv(client, 1 << 16)
        assert shell.unsent_bytes() < before
        client.send(b"y")  # not read before the loop's next turn
        assert shell.has_input()
        shell.codec.wants_read = False
        shell.touch()
        shell.reactor.outbox.flush()
        assert not shell.has_input(), "nobody is going to read it"
        shell.abort()
        await asyncio.sleep(0)
    assert (shell.unsent_bytes(), shell.has_input()) == (0, False)
