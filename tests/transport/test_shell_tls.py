"""TcpShell over TLS, real sockets and uvloop: both ends of it, held input, slow readers, peers that do not answer."""

import asyncio
import errno
import socket
import ssl
import threading

import pytest
from certkit import Authority
from test_shell import FakeCodec, make_reactor

from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_LINGER
from router.transport.shell import CLOSE_NOTIFY_S, TcpShell


class HoldingCodec(FakeCodec):
    """Keeps what comes while it is `holding`, as a codec does for a slow client; `seen` is what went on."""

    def __init__(self):
        super().__init__()
        self.holding = False
        self.kept = b""
        self.seen = b""
        self.ended = False
        self.eof_is_held = False

    def receive(self, data, now):
        self.has_held_input = False
        data = self.kept + data
        if self.holding:
            self.kept = data
            return
        self.kept = b""
        self.seen += data
        self.ended = self.eof_is_held

    def receive_eof(self, now):
        super().receive_eof(now)
        self.eof_is_held = bool(self.kept)
        self.ended = not self.kept
        return self.eof_is_held


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    cert, key = authority.sign("localhost").write(folder, "local")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=folder / "ca.pem")


class Pair:
    """A shell that serves, and a blocking TLS socket at its other end, used from threads."""

    def __init__(self, shell, client):
        self.shell = shell
        self.codec = shell.codec
        self.client = client

    async def ask(self, function, *args):
        async with asyncio.timeout(10):
            return await asyncio.to_thread(function, *args)

    def act(self, *out, close=0):
        self.codec.out += out
        self.codec.close = close
        self.shell.touch()
        self.shell.reactor.clock.read()
        self.shell.reactor.outbox.flush()

    def read_to_end(self):
        data = b""
        try:
            while piece := self.client.recv(65_536):
                data += piece
        except ConnectionResetError:
            return data, "reset"
        except ssl.SSLEOFError:
            return data, "cut"
        return data, "end"


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def pair(contexts):
    server, trusting = contexts
    shell = TcpShell(make_reactor())
    shell.codec = HoldingCodec()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        plain = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    shaking = asyncio.ensure_future(
        asyncio.to_thread(trusting.wrap_socket, plain, server_hostname="localhost", suppress_ragged_eofs=False)
    )
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: shell, accepted, ssl=server, ssl_shutdown_timeout=30
    )
    client = await shaking
    client.settimeout(10)
    yield Pair(shell, client)
    shell.abort()
    client.close()
    await asyncio.sleep(0.01)


async def fill(pair):
    """Write until it says stop and means it: within one tick it may go on as soon as the kernel has taken some."""
    written = 0
    while pair.codec.full[-1:] != [True]:
        pair.act(b"x" * 16_384)
        written += 16_384
        await asyncio.sleep(0)
    return written


async def test_it_says_stop_where_a_plain_transport_does(pair):
    written = await fill(pair)
    assert pair.shell.transport.get_write_buffer_size() < 2 * 16_384, "what the socket below has not taken"
    pair.act(close=CLOSE_FLUSH)
    assert len((await pair.ask(pair.read_to_end))[0]) == written


async def test_it_goes_on_when_there_is_room(pair):
    await fill(pair)
    reading = asyncio.ensure_future(pair.ask(pair.read_to_end))
    await until(lambda: pair.codec.full[-1] is False)
    pair.act(close=CLOSE_FLUSH)
    await reading


async def test_close_is_a_close_notify_behind_everything(pair):
    pair.act(b"x" * 4_000_000, b"y" * 4_000_000, close=CLOSE_FLUSH)
    data, end = await pair.ask(pair.read_to_end)
    assert (len(data), end) == (8_000_000, "end")
    pair.client.close()
    await until(lambda: pair.codec.lost)


async def test_a_close_that_crosses_the_peers_is_no_error(pair, caplog):
    """Both in one tick: uvloop tells of the peer's end from within our close."""
    pair.codec.receive = lambda data, now: setattr(pair.codec, "close", CLOSE_FLUSH) or pair.shell.touch()
    pair.codec.receive_eof = lambda now: setattr(pair.codec, "close", CLOSE_ABORT) or pair.shell.touch()

    def speak_and_close():
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # both in one segment
        pair.client.sendall(b"bye")
        try:
            pair.client.unwrap()
        except OSError:
            pass
        pair.client.close()

    speaking = asyncio.ensure_future(asyncio.to_thread(speak_and_close))
    await until(lambda: pair.codec.lost)
    await speaking
    assert not caplog.messages


async def test_a_slow_reader_is_waited_for_and_one_that_never_answers_is_not(pair):
    pair.act(b"x" * 8_000_000, close=CLOSE_FLUSH)
    shell = pair.shell
    now = shell.reactor.clock.read()
    assert shell.next_deadline() <= now + CLOSE_NOTIFY_S
    shell.handle_deadline(now + CLOSE_NOTIFY_S)
    assert shell.transport is not None, "nothing was read yet"
    gate = threading.Event()

    def read_and_stay():
        data, end = pair.read_to_end()
        gate.wait(10)
        return len(data), end

    reading = asyncio.ensure_future(asyncio.to_thread(read_and_stay))
    ahead = 2.0
    while shell.transport is not None:  # the client answers our close_notify by nothing
        ahead += CLOSE_NOTIFY_S
        shell.handle_deadline(now + ahead)
        await asyncio.sleep(0.01)
    gate.set()
    assert await reading == (8_000_000, "end")
    assert pair.codec.lost == 1


async def test_an_abort_is_a_reset(pair):
    pair.act(close=CLOSE_ABORT)
    await until(lambda: pair.codec.lost)
    # Asked of the kernel: Python's ssl calls a reset a violation of the protocol.
    assert pair.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


async def test_lingering_reads_on_and_drops(pair):
    pair.act(b"answer", b"", close=CLOSE_LINGER)

    def upload_then_read():
        for _ in range(20):
            pair.client.sendall(b"x" * 65_536)
        return pair.read_to_end()

    assert await pair.ask(upload_then_read) == (b"answer", "end")
    assert pair.codec.seen == b""


async def test_an_end_of_ours_is_the_end_of_both(pair):
    """What a codec says of half a tunnel cannot be said over TLS, so the codec learns of the other half's end."""
    pair.act(b"last words", b"")
    assert pair.codec.eof == 1
    pair.act(close=CLOSE_FLUSH)
    assert await pair.ask(pair.read_to_end) == (b"last words", "end")


async def test_a_close_notify_of_the_peer_ends_writing(pair, caplog):
    await pair.ask(pair.client.sendall, b"bye")
    await until(lambda: pair.codec.seen)
    closing = asyncio.ensure_future(asyncio.to_thread(pair.client.unwrap))
    await until(lambda: pair.codec.eof)
    for _ in range(10):
        pair.act(b"too late")
    await until(lambda: pair.codec.lost)
    (await closing).close()
    assert not caplog.messages


async def test_what_was_held_when_the_peer_ended_is_still_delivered(pair):
    """A replica may answer and close while our client is slow: nothing of the answer may be lost."""
    pair.codec.holding = True
    size = 600_000

    def answer_and_close():
        pair.client.sendall(b"x" * size)
        try:
            pair.client.unwrap()
        except OSError:
            pass
        pair.client.close()

    sending = asyncio.ensure_future(asyncio.to_thread(answer_and_close))
    await until(lambda: pair.codec.kept)
    pair.codec.wants_read = False
    pair.act()
    await asyncio.sleep(0.05)
    assert pair.codec.lost == 0
    pair.codec.wants_read = True
    pair.act()
    await until(lambda: pair.codec.eof)
    await sending
    assert len(pair.codec.kept) == size
    await until(lambda: pair.shell.transport is None)
    assert pair.codec.lost == 0
    pair.codec.holding = False
    pair.codec.has_held_input = True
    pair.act()
    assert (len(pair.codec.seen), pair.codec.ended) == (size, True)


async def test_a_client_that_ended_is_lost_at_once_whatever_its_codec_kept(pair):
    pair.shell._delivers_rest = False
    pair.codec.holding = True
    await pair.ask(pair.client.sendall, b"x")
    await until(lambda: pair.codec.kept)
    closing = asyncio.ensure_future(asyncio.to_thread(pair.client.unwrap))
    await until(lambda: pair.codec.lost)
    (await closing).close()


async def test_a_connection_cut_without_close_notify_is_lost_not_ended(pair):
    """An end that anybody on the way can make is no end of a body."""
    await pair.ask(pair.client.sendall, b"half")
    await until(lambda: pair.codec.seen)
    socket.socket(fileno=pair.client.detach()).close()
    await until(lambda: pair.codec.lost)
    assert pair.codec.eof == 0
