"""The router's side of an attached replica: who may, what breaks the protocol, what its socket carries."""

import asyncio
import os
import socket
import tempfile
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from attachfakes import FakeBearer, FakeFlow, make_reactor, until

from router.edge import attach_server, attach_side
from router.edge.attach_gate import AttachGate
from router.edge.attach_server import ATTACH_LIMIT_S, AttachedReplicas, AttachServer
from router.edge.rendezvous import Rendezvous
from router.errors import Kind, ProxyError, Source
from router.routing.credentials import Credentials
from router.routing.spec import TokenSpec
from router.transport.attached import AttachedSockets
from router.transport.codec.attach import control
from router.transport.codec.robot.wire import Frame, FrameReader, write_frame

pytestmark = pytest.mark.asyncio


class FakeTable:
    def __init__(self):
        self.credentials = Credentials()


class FakeCore:
    def __init__(self):
        self.table = FakeTable()


class FakeWall:
    def at(self, now):
        return 1_000.0


class Server(AttachServer):
    """One with room for what the test knows of it."""


class Rig:
    def __init__(self):
        self.core = FakeCore()
        self.sockets = AttachedSockets(os.urandom(16))
        gate = AttachGate(["gpu-7=right", "gpu-8=other"], self.core, FakeWall())
        self.attached = AttachedReplicas(self.sockets, gate, make_reactor())
        self.servers = []
        self.seen = ("127.0.0.1", 5000)

    def connect(self, **more):
        bearer = FakeBearer(1, **more)
        server = Server(bearer, self.attached, lambda: self.seen, 0.0)
        server.bearer_of_test = bearer
        server.control_of_test = FakeFlow(0)
        server.connected()
        server.stream_opened(server.control_of_test)
        self.servers.append(server)
        return server

    async def attach(self, name="gpu-7", token="right", certificate="", **more):
        server = self.connect(**more)
        say(server, control.Attach(name, token, certificate))
        if server.bearer_of_test.closed is None:
            await until(lambda: server.control_of_test.sent)
        return server


def say(server, body, end=False):
    data = body if isinstance(body, bytes) else control.encode(body)
    server.stream_data(server.control_of_test, data, end)


def heard(server):
    return [control.decode(frame) for frame in FrameReader().read(server.control_of_test.sent)]


@pytest_asyncio.fixture
async def rig(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        rig = Rig()
        yield rig
        for server in rig.servers:
            server.connection_lost(0, "", False)
        await asyncio.sleep(0)


async def test_it_is_told_where_it_is_seen(rig):
    server = await rig.attach()
    assert heard(server) == [control.Attached(("127.0.0.1", 5000))]
    assert rig.attached.numbers()["attached_replicas"] == 1
    server.connection_lost(0, "", True)
    assert rig.attached.numbers()["attached_replicas"] == 0
    assert not Path(rig.sockets.path_of("gpu-7.attached.alt")).exists()


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("gpu-7", "wrong", "not known"),
        ("gpu-7", "", "not known"),
        ("gpu-7", "other", "not known"),
        ("gpu-7", "x" * 1_024, "not known"),
        ("../evil", "right", "no label"),
        ("", "right", "no label"),
        ("gpu-7", "key.expired", "expired"),
        ("gpu-7", "key.elsewhere", "no scope attach:gpu-7"),
        ("gpu-7", "key.client", "no scope attach:gpu-7"),
    ],
)
async def test_who_may_not(rig, name, token, says):
    tokens = rig.core.table.credentials
    tokens.put(TokenSpec(sha256(b"key.expired").digest(), "a", scopes=("attach:gpu-7",), not_after_us=999_000_000))
    tokens.put(TokenSpec(sha256(b"key.elsewhere").digest(), "b", scopes=("attach:gpu-8",)))
    tokens.put(TokenSpec(sha256(b"key.client").digest(), "c"))
    server = await rig.attach(name, token)
    code, reason = server.bearer_of_test.closed
    assert code == control.REFUSED and says in reason
    assert rig.attached.numbers() == {"attached_replicas": 0, "attach_refused": 1, "attach_streams": 0}


async def test_a_token_of_the_table(rig):
    rig.core.table.credentials.put(TokenSpec(sha256(b"key.secret").digest(), "a", scopes=("attach:gpu-9",)))
    server = await rig.attach("gpu-9", "key.secret")
    assert isinstance(heard(server)[0], control.Attached)


async def test_a_token_to_attach_calls_no_endpoint():
    tokens = Credentials()
    tokens.put(TokenSpec(sha256(b"a.b").digest(), "a", scopes=("attach:gpu-7",)))
    tokens.put(TokenSpec(sha256(b"c.d").digest(), "c", scopes=("attach:gpu-7", "endpoint:e")))
    assert not tokens.find(b"a.b").may_call("e", "main")
    assert tokens.find(b"c.d").may_call("e", "main")


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (write_frame(0x01, b"\xc1"), False),  # no msgpack
        (write_frame(0x01, msgspec.msgpack.encode({"name": 7, "token": "t"})), False),
        (write_frame(0x01, msgspec.msgpack.encode({"name": "a" * 2_000, "token": "t"})), False),
        (write_frame(0x01, b"\x81" * 5_000), False),  # nested deeper than it goes
        (write_frame(0x11, msgspec.msgpack.encode({"address": ["a", 1]})), False),  # what the router says
        (b"\x01\x80\xff\xff\xff" + bytes(100), False),  # larger than a frame may be
        (b"\x01\x7f", True),  # half a frame
    ],
    ids=["no msgpack", "types", "long", "deep", "role", "large", "half"],
)
async def test_what_breaks_the_protocol(rig, data, end):
    server = rig.connect()
    say(server, data, end)
    assert server.bearer_of_test.closed is not None


async def test_a_frame_that_is_not_known_is_ignored(rig):
    server = rig.connect()
    say(server, write_frame(0x3F, b"whatever"))
    assert server.bearer_of_test.closed is None
    say(server, control.Attach("gpu-7", "right"))
    await until(lambda: server.control_of_test.sent)


async def test_frames_byte_by_byte(rig):
    server = rig.connect()
    for byte in control.encode(control.Attach("gpu-7", "right")):
        say(server, bytes((byte,)))
    await until(lambda: server.control_of_test.sent)


async def test_what_may_be_a_replay_takes_no_name(rig):
    first = await rig.attach()
    server = rig.connect()
    server.bearer_of_test.is_early = True
    say(server, control.Attach("gpu-7", "right"))
    assert server.bearer_of_test.closed[0] == control.BROKEN
    assert rig.attached.by_name == {"gpu-7": first}


async def test_only_one_word(rig):
    server = await rig.attach()
    say(server, control.Attach("gpu-7", "right"))
    assert server.bearer_of_test.closed[0] == control.BROKEN


@pytest.mark.parametrize("stream", [4, 2])
async def test_no_stream_of_its_own(rig, stream):
    server = await rig.attach()
    server.stream_opened(FakeFlow(stream))
    assert server.bearer_of_test.closed[0] == control.BROKEN


async def test_who_says_nothing_is_let_go(rig):
    server = rig.connect()
    assert server.next_deadline() == ATTACH_LIMIT_S
    server.handle_deadline(ATTACH_LIMIT_S)
    assert server.bearer_of_test.closed[0] == control.BROKEN


async def test_so_many_and_no_more(rig, monkeypatch):
    monkeypatch.setattr(attach_server, "MAX_ATTACHED", 1)
    await rig.attach()
    second = await rig.attach("gpu-8", "other")
    assert second.bearer_of_test.closed[0] == control.REFUSED


async def test_one_that_reads_no_control_is_let_go(rig):
    server = await rig.attach(certificate="pem")
    server.control_of_test.unsent_bytes = attach_side.MAX_UNREAD_BYTES + 1
    server.ask(control.Punch(0, "u", b"k", "t", []))
    assert server.bearer_of_test.closed[0] == control.BROKEN


async def open_to(rig, name="gpu-7"):
    return await asyncio.open_unix_connection(rig.sockets.path_of(f"{name}.attached.alt"))


async def test_what_its_socket_carries(rig):
    server = await rig.attach()
    reader, writer = await open_to(rig)
    writer.write(b"GET / HTTP/1.1\r\n")
    await until(lambda: server.bearer_of_test.flows)
    (flow,) = server.bearer_of_test.flows
    await until(lambda: flow.sent == b"GET / HTTP/1.1\r\n")
    server.stream_data(flow, b"HTTP/1.1 200 OK\r\n", False)
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert flow.credited == 17
    writer.write_eof()
    await until(lambda: flow.ended)
    server.stream_data(flow, b"body", True)
    assert await reader.read() == b"body"
    server.stream_gone(flow)
    writer.close()
    assert (flow.reset_code, flow.stop_code) == (None, None)


async def test_a_socket_that_is_not_read_holds_the_stream(rig):
    server = await rig.attach()
    reader, writer = await open_to(rig)
    await until(lambda: server.bearer_of_test.flows)
    (flow,) = server.bearer_of_test.flows
    piece = bytes(65_536)
    sent = 0
    for _ in range(100):
        server.stream_data(flow, piece, False)
        sent += len(piece)
        await asyncio.sleep(0)
        if flow.credited < sent - 2_000_000:
            break
    assert flow.credited < sent - 1_000_000
    taken = 0
    while taken < sent:
        taken += len(await reader.read(1 << 20))
    await until(lambda: flow.credited == sent)
    writer.close()


async def test_a_stream_that_is_not_taken_holds_the_socket(rig):
    server = await rig.attach()
    _, writer = await open_to(rig)
    await until(lambda: server.bearer_of_test.flows)
    (flow,) = server.bearer_of_test.flows
    flow.unsent_bytes = 10_000_000  # as if nothing left
    writer.write(bytes(20_000_000))
    await until(lambda: len(flow.sent) > 0)
    for _ in range(20):
        await asyncio.sleep(0)
    held = len(flow.sent)
    assert held < 2_000_000
    await asyncio.sleep(0.05)
    assert len(flow.sent) == held
    flow.unsent_bytes = 0
    server.stream_drained(flow)
    await until(lambda: len(flow.sent) == 20_000_000)
    writer.close()


async def test_a_reset_is_no_end(rig):
    server = await rig.attach()
    reader, writer = await open_to(rig)
    writer.write(b"request")
    await until(lambda: server.bearer_of_test.flows)
    (flow,) = server.bearer_of_test.flows
    await until(lambda: flow.sent)
    server.stream_data(flow, b"half", False)
    server.stream_reset(flow, 1)
    await until(lambda: flow.reset_code is not None)
    assert flow.stop_code is not None
    writer.close()
    del reader


async def test_a_socket_that_is_cut_resets_the_stream(rig):
    server = await rig.attach()
    _, writer = await open_to(rig)
    writer.write(b"request")
    await until(lambda: server.bearer_of_test.flows)
    (flow,) = server.bearer_of_test.flows
    await until(lambda: flow.sent)
    writer.transport.abort()
    await until(lambda: flow.ended or flow.reset_code is not None)


async def test_no_stream_to_be_had(rig):
    await rig.attach(max_streams=0)
    reader, writer = await open_to(rig)
    assert await reader.read() == b""
    writer.close()


async def test_the_newest_of_a_name_serves(rig):
    first = await rig.attach()
    second = await rig.attach()
    assert first.bearer_of_test.closed[0] == control.REPLACED
    _, writer = await open_to(rig)
    await until(lambda: second.bearer_of_test.flows)
    assert not first.bearer_of_test.flows
    assert rig.attached.by_name == {"gpu-7": second}
    writer.close()


@pytest.mark.parametrize("how", ["drain", "retire"])
async def test_a_router_that_goes_sends_it_elsewhere_and_serves_on(rig, how):
    server = await rig.attach()
    server.drain() if how == "drain" else server.retire(0.0)
    assert isinstance(heard(server)[-1], control.Leaving)
    _, writer = await open_to(rig)
    writer.write(b"more")
    await until(lambda: server.bearer_of_test.flows)
    server.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
    assert server.bearer_of_test.closed[0] == control.DONE
    writer.close()


async def test_robots_are_announced_and_the_answer_comes_back(rig):
    server = await rig.attach(certificate="pem")
    asking = asyncio.ensure_future(server.ask(control.Punch(0, "u", b"k", "t", [("192.0.2.1", 9)])))
    await asyncio.sleep(0)
    punch = heard(server)[-1]
    assert (punch.user, punch.key, punch.ticket, punch.places) == ("u", b"k", "t", [("192.0.2.1", 9)])
    say(server, control.Punching(99, [("192.0.2.9", 1)]))  # nobody asked that
    assert not asking.done()
    say(server, control.Punching(punch.n, [("192.0.2.2", 1)]))
    assert (await asking).places == [("192.0.2.2", 1)]


async def test_one_without_a_certificate_is_not_asked(rig):
    server = await rig.attach()
    assert (await server.ask(control.Punch(0, "u", b"k", "t", []))).places == []
    assert len(heard(server)) == 1


async def test_questions_are_bounded(rig, monkeypatch):
    monkeypatch.setattr(attach_server, "MAX_ASKED", 2)
    server = await rig.attach(certificate="pem")
    waiting = [asyncio.ensure_future(server.ask(control.Punch(0, "u", b"k", "t", []))) for _ in range(2)]
    assert (await server.ask(control.Punch(0, "u", b"k", "t", []))).places == []
    for one in waiting:
        one.cancel()


async def test_noise_on_its_control(rig):
    for _ in range(200):
        server = rig.connect()
        say(server, os.urandom(64))
        server.connection_lost(0, "", True)
    assert rig.attached.by_name == {}


async def test_a_connection_that_nobody_waits_for(rig):
    """Whoever connects and leaves at once costs a stream that is given back."""
    server = await rig.attach()
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(rig.sockets.path_of("gpu-7.attached.alt"))
    await until(lambda: len(server.bearer_of_test.flows) == 20)
    await until(lambda: all(flow.ended or flow.reset_code is not None for flow in server.bearer_of_test.flows))


async def test_unknown_frames_are_none():
    assert control.decode(Frame(0x01, b"")) is None
    assert not control.is_known(0x7F)


# -- what changes while it is attached -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [("revoked", "not known"), ("expired", "expired"), ("another scope", "no scope attach:gpu-9"), ("nothing", "")],
)
async def test_a_token_is_looked_at_all_the_time(rig, how, says):
    digest = sha256(b"key.secret").digest()
    tokens = rig.core.table.credentials
    tokens.put(TokenSpec(digest, "a", scopes=("attach:gpu-9",), not_after_us=2_000_000_000))
    server = await rig.attach("gpu-9", "key.secret")
    _, writer = await open_to(rig, "gpu-9")
    await until(lambda: server.bearer_of_test.flows)
    look_s = server.next_deadline()
    assert 0.0 < look_s <= 5.0  # within seconds
    if how == "revoked":
        tokens.revoke(digest)
    elif how == "expired":
        tokens.put(TokenSpec(digest, "a", scopes=("attach:gpu-9",), not_after_us=999_000_000))
    elif how == "another scope":
        tokens.put(TokenSpec(digest, "a", scopes=("attach:gpu-8",)))
    else:
        tokens.put(TokenSpec(digest, "a", scopes=("attach:gpu-9", "endpoint:e")))
    server.handle_deadline(look_s)
    if says:
        code, reason = server.bearer_of_test.closed
        assert code == control.REFUSED and says in reason
        assert not Path(rig.sockets.path_of("gpu-9.attached.alt")).exists()
    else:
        assert server.bearer_of_test.closed is None
        assert server.next_deadline() > look_s
    writer.close()


async def test_a_token_of_a_flag_stays(rig):
    server = await rig.attach()
    server.handle_deadline(server.next_deadline())
    assert server.bearer_of_test.closed is None


@pytest.mark.parametrize("is_leaving", [False, True])
async def test_another_worker_has_the_newest_of_a_name(rig, is_leaving):
    server = await rig.attach()
    if is_leaving:
        server.retire(0.0)
    other = rig.sockets.listen("gpu-7")  # as another worker of the host does
    server.handle_deadline(server.next_deadline())
    if is_leaving:
        assert server.bearer_of_test.closed is None  # it is the successor, and what is under way here goes on
    else:
        assert server.bearer_of_test.closed[0] == control.REPLACED
    assert other.is_ours
    other.close()
    other.sock.close()
    other.questions.close()


async def test_a_socket_that_somebody_removed_has_it_attach_anew(rig):
    server = await rig.attach()
    Path(rig.sockets.path_of("gpu-7.attached.alt")).unlink()
    server.handle_deadline(server.next_deadline())
    assert server.bearer_of_test.closed[0] == control.DONE


async def test_where_it_is_seen_is_where_it_is_now(rig):
    """A NAT gave its connection another port since; and a socket of IPv6 sees IPv4 in its own way."""
    rig.seen = ("::ffff:192.0.2.7", 5000, 0, 0)
    server = await rig.attach(certificate="pem")
    assert heard(server) == [control.Attached(("192.0.2.7", 5000))]
    rig.seen = ("::ffff:192.0.2.7", 6000, 0, 0)
    offered = []
    Rendezvous(rig.sockets, rig.attached.reactor).ask("gpu-7.attached.alt", [("192.0.2.1", 9)], offered.append)
    await until(lambda: len(heard(server)) > 1)
    say(server, control.Punching(heard(server)[-1].n, [("10.0.0.1", 4)]))
    await until(lambda: offered)
    assert offered[0].places == [("192.0.2.7", 6000), ("10.0.0.1", 4)]
    assert (offered[0].certificate, len(offered[0].key)) == ("pem", 32)


# -- what a replica may waste ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame", [control.encode(control.Punching(7, [])), write_frame(0x3F, b"whatever")], ids=["not asked", "not known"]
)
async def test_frames_that_nobody_asked_for_are_bounded(rig, frame):
    server = await rig.attach()
    for _ in range(1_000):
        if server.bearer_of_test.closed is None:
            say(server, frame)
    assert server.bearer_of_test.closed[0] == control.BROKEN


async def test_answers_are_not(rig):
    server = await rig.attach(certificate="pem")
    for n in range(1_000):
        asking = asyncio.ensure_future(server.ask(control.Punch(0, "u", b"k", "t", [])))
        await asyncio.sleep(0)
        say(server, control.Punching(n + 1, [("192.0.2.2", 1)]))
        assert (await asking).places == [("192.0.2.2", 1)]


async def test_refusals_are_counted_and_not_all_logged(rig, caplog):
    for _ in range(200):
        await rig.attach(token="wrong")
    assert rig.attached.refused == 200
    assert 1 <= len(caplog.records) < 50


# -- ends -------------------------------------------------------------------------------------------------


async def test_who_asks_one_that_goes_has_an_answer_at_once(rig):
    server = await rig.attach(certificate="pem")
    asking = asyncio.ensure_future(server.ask(control.Punch(0, "u", b"k", "t", [])))
    await asyncio.sleep(0)
    server.connection_lost(0, "", True)
    assert (await asyncio.wait_for(asking, 1)).places == []
    assert (await asyncio.wait_for(server.ask(control.Punch(0, "u", b"k", "t", [])), 1)).places == []


async def test_one_that_goes_while_its_sockets_are_made_leaves_nothing(rig):
    """And takes nothing from the one that comes at the same time."""
    for _ in range(20):
        first = rig.connect()
        say(first, control.Attach("gpu-7", "right", "pem"))
        first.connection_lost(0, "", True)  # before anything was listened on
        second = rig.connect()
        say(second, control.Attach("gpu-7", "right", "pem"))
        await until(lambda server=second: server.control_of_test.sent)
        offered = []
        Rendezvous(rig.sockets, rig.attached.reactor).ask("gpu-7.attached.alt", [], offered.append)
        await until(lambda server=second: len(heard(server)) > 1)
        say(second, control.Punching(heard(second)[-1].n, [("192.0.2.2", 1)]))
        await until(lambda: offered)
        assert offered[0].places
        second.connection_lost(0, "", True)
        assert not Path(rig.sockets.path_of("gpu-7.attached.alt")).parent.exists()


async def test_files_and_sockets_are_given_back(rig):
    async def once():
        server = await rig.attach(certificate="pem")
        writers = [(await open_to(rig))[1] for _ in range(5)]
        await until(lambda: len(server.bearer_of_test.flows) == 5)
        flows = server.bearer_of_test.flows
        server.stream_data(flows[0], b"x" * 100_000, True)
        server.stream_reset(flows[1], 1)
        server.stream_stopped(flows[2], 1)
        writers[3].write_eof()
        writers[4].transport.abort()
        await asyncio.sleep(0)
        server.connection_lost(0, "", True)
        for writer in writers:
            writer.close()

    def count():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers

    await once()
    await asyncio.sleep(0.05)
    before = count()
    for _ in range(200):  # a thousand connections
        await once()
    await until(lambda: count() <= before)
    await until(lambda: len(asyncio.all_tasks()) == 1)
