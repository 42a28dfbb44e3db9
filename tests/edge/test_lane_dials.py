"""Lanes that are dialled: races of a cancel, a timeout and a handshake's end; what is left behind; who is avoided."""

import asyncio
import socket

import pytest
import pytest_asyncio
from quickit import OPEN, Rig, copies, daemon, initial, short
from udpkit import bound, until

from router.edge.lane_dials import LaneDials, best_of
from router.edge.quic_strangers import RETRY_FROM
from router.http import ResponseHead
from router.routing.load import Replica
from router.routing.spec import LaneSpec, ReplicaSpec
from router.stream import PendingStream, ResponseReceiver
from router.transport.codec.attach import control
from router.transport.codec.head import read_request
from router.transport.codec.robot import wire

CERTIFICATE = "not even one"


class Waiting(ResponseReceiver):
    """An exchange that waits for its stream."""

    def __init__(self, head):
        self.head = head
        self.streams, self.failures = [], []

    def upstream_ready(self, stream):
        self.streams.append(stream)
        if hasattr(stream, "application"):
            stream.send_head(self.head, False)

    def upstream_failed(self, error):
        self.failures.append(error)

    def response_reset(self, error):
        self.failures.append(error)

    def response_head(self, head: ResponseHead, end):
        raise AssertionError("nobody answers")


class Instead(PendingStream):
    """The WebSocket that is opened where there are no lanes."""

    def __init__(self):
        self.asked = 0
        self.is_cancelled = False

    def __call__(self, receiver):
        self.asked += 1
        return self

    def cancel(self):
        self.is_cancelled = True


class Spec:
    connect_s = 5.0


class Nowhere:
    """A rendezvous that finds nobody."""

    async def find(self, host, places):
        return control.Found(), "ticket"


class Dials(Rig):
    """A listener, and lanes from it to a port where nobody answers."""

    def __init__(self, **more):
        super().__init__(**more)
        self.start()
        self.lanes = LaneDials(self.listener, Nowhere())
        self.silent = bound()
        self.clients.append(self.silent)
        self.port = self.silent.getsockname()[1]
        self.head = read_request(
            [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", b"a"),
             (b":path", b"/"), (b"sec-websocket-version", b"13")],
            wire.VERSION,
        )  # fmt: skip
        self.waiting, self.instead = Waiting(self.head), Instead()

    def replica(self, host="127.0.0.1", port=0):
        lanes = LaneSpec(port or self.port, CERTIFICATE)
        shown = f"[{host}]" if ":" in host else host
        return Replica(ReplicaSpec("r1", f"http://{shown}:8000", lanes=lanes))

    def open(self, replica=None, limit_s=5.0):
        spec = Spec()
        spec.connect_s = limit_s
        return self.lanes.open(replica or self.replica(), self.waiting, spec, self.instead)

    async def dialled(self, pending):
        """Wait until the connection has begun; return its shell."""
        await until(lambda: pending._shell is not None)
        return pending._shell

    def own_address(self, family=socket.AF_INET):
        """Where lanes begin."""
        port = self.listener.dialling_socket(family).address()[1]
        return ("127.0.0.1" if family == socket.AF_INET else "::1"), port

    @property
    def internal_errors(self):
        return self.reactor.counters.internal_errors

    def complete(self, shell):
        """End the handshake, as the engine does in the connection's `receive`."""
        try:
            shell.connection.phase = OPEN
            shell.connection.application = shell.make_application(shell.connection, wire.ALPN)
        except Exception:
            shell._crash()

    def is_clean(self):
        listener = self.listener
        left = (listener._shells, listener._dialled, listener._by_id)
        return not any(left) and listener.handshaking == 0 and self.headcount.open == 0


@pytest_asyncio.fixture
async def dials():
    dials = Dials()
    yield dials
    dials.close()


async def test_who_cancels_hears_nothing_of_a_handshake_that_ends_in_the_same_turn(dials):
    pending = dials.open()
    shell = await dials.dialled(pending)
    connection = shell.connection
    pending.cancel()
    if shell.connection is connection:  # its last datagram is read before the task wakes
        dials.complete(shell)
    await until(lambda: pending._task.done())
    assert dials.internal_errors == 0
    assert dials.waiting.streams == dials.waiting.failures == []
    assert dials.instead.asked == 0
    await until(dials.is_clean)


async def test_lanes_that_are_up_when_their_time_is_over_are_no_failure(dials):
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + 0.1
    pending = dials.open(limit_s=0.1)
    shell = await dials.dialled(pending)
    loop.call_at(ends_s + 0.01, dials.complete, shell)
    while loop.time() < ends_s + 0.02:
        pass  # both times have passed in one turn: the limit's first, and the task wakes in the next
    await until(lambda: pending._task.done())
    assert len(dials.waiting.streams) == 1 and dials.waiting.failures == []
    assert (dials.lanes.opened, dials.lanes.failed) == (1, 0)
    assert dials.lanes.leads_to(dials.replica(), dials.head)
    assert dials.instead.asked == 0


async def test_nobody_there_is_a_websocket_and_leaves_nothing(dials):
    pending = dials.open(limit_s=0.05)
    await until(lambda: dials.instead.asked == 1)
    assert dials.is_clean()
    assert not dials.lanes.leads_to(dials.replica(), dials.head)
    pending.cancel()
    assert dials.instead.is_cancelled


async def test_whatever_a_resolver_raises_is_a_websocket(dials):
    pending = dials.open(dials.replica("a" * 64 + ".example"))
    await until(lambda: pending._task.done())
    assert dials.instead.asked == 1
    assert dials.is_clean()


async def test_one_replica_that_is_avoided_is_not_all_of_its_host(dials):
    dials.open(limit_s=0.01)
    await until(lambda: dials.instead.asked == 1)
    assert not dials.lanes.leads_to(dials.replica(), dials.head)
    assert dials.lanes.leads_to(dials.replica(port=dials.port + 1), dials.head)


async def test_dials_of_ours_do_not_make_us_suspicious_of_clients(dials):
    """Retry, and in the end refusal, are for handshakes that strangers begin."""
    for _ in range(RETRY_FROM + 1):
        dials.open()
    await until(lambda: len(dials.listener._shells) == RETRY_FROM + 1)
    _, engine, _ = await dials.connected()
    assert engine.retry_id == b""


@pytest.mark.parametrize("when", ["asked", "dialled"])
async def test_a_cancel_leaves_nothing(dials, when):
    pending = dials.open()
    if when == "dialled":
        await dials.dialled(pending)
    pending.cancel()
    await asyncio.wait([pending._task])
    assert dials.is_clean()
    assert pending._shell is None, "each would keep the other"
    assert dials.lanes.failed == 0


async def test_dials_of_ours_are_no_connections_of_the_address_that_they_lead_to(dials):
    """Else robots' lanes would keep out the replica that attaches from there, and its neighbours behind a NAT."""
    dials.headcount.max_per_address = 1
    for _ in range(3):
        dials.open()
    await until(lambda: len(dials.listener._shells) == 3)
    await dials.connected()
    assert dials.headcount.open == 4
    assert dials.counters.refused_address == 0


@pytest.mark.parametrize("worker", [0, 3, None], ids=["gone", "another worker's", "nobody's"])
async def test_what_comes_from_a_sidecar_is_dealt_with_once(dials, worker):
    """However many lanes lead there: the kernel gives one worker all that comes from one address."""
    packet = short(b"\xee" * 12 if worker is None else dials.keyring.make_id(worker, 7), size=100)
    dials.silent.sendto(packet, dials.address)
    await until(lambda: dealt_with(dials) > 0)
    without = dealt_with(dials)
    for _ in range(20):
        dials.open()
    await until(lambda: len(dials.listener._shells) == 20)
    dials.silent.sendto(packet, dials.address)
    await until(lambda: dealt_with(dials) > without)
    assert dealt_with(dials) == 2 * without
    assert all(shell.connection.path.received_bytes == 0 for shell in dials.listener._shells)


def dealt_with(dials):
    numbers = dials.listener.numbers()
    return sum(number for name, number in numbers.items() if name == "quic_resets" or name.startswith("quic_drop_"))


async def test_a_stateless_reset_finds_whose_it_is(dials):
    pending, other = dials.open(), dials.open()
    shell = await dials.dialled(pending)
    await dials.dialled(other)
    token = bytes(range(16))
    shell.connection.peer_ids.tokens[b"id"] = token  # as the sidecar gave it
    dials.silent.sendto(short(b"\xee" * 12, size=30) + token, dials.own_address())
    await until(lambda: dials.instead.asked == 1)
    assert shell.connection is None
    assert other._shell.connection is not None


STUN = b"\0\1\0\0\x21\x12\xa4\x42" + bytes(range(12))


@pytest.mark.parametrize("what", ["initial", "another version", "stun", "an id that is gone", "a sibling's", "a successor's"])
async def test_strangers_get_no_answer_where_lanes_begin(what):
    """Nobody was told of that port; a datagram of a lane that went astray there is passed on to no other process."""
    receivers, senders = daemon([7, 8], workers=4)
    dials = Dials(ways=copies(senders))
    try:
        await dials.dialled(dials.open())
        stranger = dials.client()
        stranger.connect(dials.own_address())
        stranger.send({
            "initial": initial(),
            "another version": initial(version=0x1A2A3A4A),
            "stun": STUN,
            "an id that is gone": short(dials.keyring.make_id(0, 7), size=100),
            "a sibling's": short(dials.keyring.make_id(3, 7), size=100),
            "a successor's": short(dials.keyring.make_id(0, 8), size=100),
        }[what])  # fmt: skip
        await until(lambda: dealt_with(dials) == 1)
        assert dials.count("drop_unknown") == 1
        with pytest.raises(BlockingIOError):
            stranger.recv(2_000)
        assert (dials.count("forwarded"), dials.engines, len(dials.listener._shells)) == (0, [], 1)
        stranger.connect(dials.address)
        await dials.connected(stranger)  # which a listening socket is for
    finally:
        dials.close()
        for sock in (*receivers.values(), *senders.values()):
            sock.close()


async def test_lanes_begin_at_one_socket_that_nobody_else_is_given(dials):
    listening = dials.listener.first_socket()
    shells = [await dials.dialled(dials.open()) for _ in range(3)]
    assert len({shell.sock for shell in shells}) == 1
    assert shells[0].sock not in (listening, dials.listener.socket_named(b""))
    assert dials.listener.first_socket() is listening
    (first, *_) = {dials.silent.recvfrom(2_000)[1] for _ in range(3)}
    assert first == dials.own_address()


V4, V6 = (int(socket.AF_INET), ("192.0.2.1", 1)), (int(socket.AF_INET6), ("2001:db8::1", 1, 0, 0))


@pytest.mark.parametrize(
    ("found", "preferred", "best"),
    [([V6, V4], V4, V4), ([V6, V4], V6, V6), ([V4, V6], V6, V6), ([V6], V4, V6), ([V4], V6, V4)],
)
def test_of_a_host_with_both_the_listeners_family_is_dialled(found, preferred, best):
    assert best_of(found, preferred[0]) == best


async def test_lanes_lead_where_the_listener_is_not(dials):
    """A listener on 127.0.0.1 reaches a sidecar on ::1."""
    try:
        other = bound("::1", socket.AF_INET6, dials.port)
    except OSError:
        pytest.skip("this host has no ::1")
    dials.clients.append(other)
    other.setblocking(False)
    shell = await dials.dialled(dials.open(dials.replica("::1")))
    assert shell.address[:2] == ("::1", dials.port)
    data, sender = other.recvfrom(2_000)
    assert data[0] & 0xF0 == 0xC0
    assert sender[:2] == dials.own_address(socket.AF_INET6)


async def test_lanes_are_read_on_while_another_process_takes_over(dials):
    shell = await dials.dialled(dials.open())
    dials.listener.retire()
    token = bytes(range(16))
    shell.connection.peer_ids.tokens[b"id"] = token
    dials.silent.sendto(short(b"\xee" * 12, size=30) + token, dials.own_address())
    await until(lambda: shell.connection is None, 1.0)  # long before it would be given up


async def test_where_lanes_begin_is_closed_with_the_listener(dials):
    await dials.dialled(dials.open())
    sock = dials.listener.dialling_socket(socket.AF_INET)._sock
    dials.listener.close()
    assert sock.fileno() == -1
    with pytest.raises(OSError, match="closed"):
        dials.listener.dialling_socket(socket.AF_INET)


async def test_lanes_that_begin_as_the_listener_is_closed_are_none(dials, caplog):
    pending = dials.open()
    dials.listener.close()
    await until(lambda: pending._task.done())
    assert (dials.lanes.failed, dials.instead.asked) == (1, 1)
    assert not [record for record in caplog.records if record.exc_info], "it is no bug"
