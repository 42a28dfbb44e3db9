"""The way to the operator's collector: what arrives there, and everything that may be wrong with it, at no cost."""

import asyncio
import socket
import time

import msgpack
import pytest
import pytest_asyncio
from udpkit import bound, until

from router.transport.robot_collector import LOOK_UP_S, MAX_AUTHORITY_BYTES, REFUSED_S, RobotCollector
from router.transport.udp import find_local_host
from router.walltime import WallTime


@pytest_asyncio.fixture
async def make():
    made = []

    def make_(where, port=0):
        made.append(RobotCollector(where, port, WallTime()))
        return made[-1]

    yield make_
    for one in made:
        one.close()


@pytest.fixture
def receiver():
    sock = bound()
    sock.setblocking(False)
    yield sock
    sock.close()


def take(collector, payload=b"40 C", *, authority=b"arm.test", now=None):
    now = time.monotonic() if now is None else now
    return collector.take("0123456789abcdef", authority, 7, payload, now)


async def test_over_udp(make, receiver):
    collector = make("127.0.0.1", receiver.getsockname()[1])
    await until(lambda: take(collector))
    told = msgpack.unpackb(receiver.recv(2_000))
    received = told.pop("received_unix_us")
    assert told == {"session": "0123456789abcdef", "authority": "arm.test", "sequence": 7, "payload": b"40 C"}
    assert abs(received / 1e6 - time.time()) < 5.0


async def test_by_a_name(make, receiver):
    collector = make("localhost", receiver.getsockname()[1])
    await until(lambda: collector._sock is not None)
    assert collector._sock.getpeername()[1] == receiver.getsockname()[1]


async def test_what_a_robot_asked_for_is_not_repeated_without_end(make, receiver):
    collector = make("127.0.0.1", receiver.getsockname()[1])
    await until(lambda: take(collector, authority=b"\xff" + b"a" * 10_000))
    data = receiver.recv(65_536)
    assert len(data) < 600
    assert len(msgpack.unpackb(data)["authority"]) == MAX_AUTHORITY_BYTES


async def test_nobody_there_over_udp(make):
    sock = bound()
    port = sock.getsockname()[1]
    sock.close()
    collector = make("127.0.0.1", port)
    await until(lambda: collector._sock is not None)
    taken = [take(collector) for _ in range(20)]
    assert False in taken, "the kernel says that nobody is there"


async def test_a_payload_that_no_datagram_holds(make, receiver):
    collector = make("127.0.0.1", receiver.getsockname()[1])
    await until(lambda: take(collector))
    assert not take(collector, bytes(65_500))
    assert take(collector)


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "256.0.0.0.invalid"])
async def test_a_name_that_leads_nowhere_is_looked_up_again_and_said_once_a_time(make, caplog, name):
    collector = make(name, 9_000)
    await until(lambda: "no way" in caplog.text)
    asked = caplog.text.count("no way")
    now = time.monotonic()
    for _ in range(1_000):
        assert not take(collector, now=now)
    await until(lambda: collector._task.done())
    assert caplog.text.count("no way") == asked == 1
    assert not take(collector, now=now + LOOK_UP_S + 1)
    await until(lambda: caplog.text.count("no way") == 2)


async def test_a_name_that_moves_is_followed(make, receiver):
    other = bound()
    other.setblocking(False)
    try:
        collector = make("127.0.0.1", receiver.getsockname()[1])
        await until(lambda: take(collector))
        collector._port = other.getsockname()[1]  # as if the name led there
        now = time.monotonic() + LOOK_UP_S
        assert take(collector, now=now)
        await until(lambda: collector._task.done())
        assert take(collector, now=now)
        assert other.recv(2_000)
        assert len([receiver.recv(2_000) for _ in range(2)]) == 2
    finally:
        other.close()


ELSEWHERE = "198.51.100.1"  # RFC 5737: nothing is sent there


async def test_one_that_moves_to_another_network_is_followed(make, receiver):
    """From another address of ours, too: no way leads there from the one that led to 127.0.0.1."""
    try:
        ours = find_local_host(socket.AF_INET, (ELSEWHERE, 9))
    except OSError:
        pytest.skip("this host has no way anywhere")
    collector = make("127.0.0.1", receiver.getsockname()[1])
    await until(lambda: take(collector))
    collector._where = ELSEWHERE  # as if the name led there
    assert take(collector, now=time.monotonic() + LOOK_UP_S)
    await until(lambda: collector._task.done())
    assert collector._sock.getpeername()[0] == ELSEWHERE
    assert collector._sock.getsockname()[0] == ours


@pytest.mark.parametrize("first", ["nobody listens", "no way leads there"])
async def test_of_a_name_with_several_addresses_the_one_is_found_where_somebody_listens(make, receiver, monkeypatch, first):
    """As `localhost` often has ::1 before 127.0.0.1, and a name an address of IPv6 where there is none."""
    gone = bound()
    first_place = gone.getsockname() if first == "nobody listens" else ("255.255.255.255", 9)
    gone.close()

    async def look_up(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", where) for where in (first_place, receiver.getsockname())]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    collector = make("several.example", 9)
    await until(lambda: collector._sock is not None)
    now = time.monotonic()
    if first == "nobody listens":
        await until(lambda: not take(collector, now=now))
    await until(lambda: take(collector, now=now + REFUSED_S) and collector._task.done() and arrived(receiver))
    looked_up = collector._task
    assert take(collector, now=now + 2 * REFUSED_S)
    assert collector._task is looked_up, "it stays there"


def arrived(receiver):
    try:
        return receiver.recv(2_000)
    except BlockingIOError:
        return b""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "c")


def unix(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    sock.setblocking(False)
    return sock


async def test_over_a_unix_socket_that_comes_and_goes(make, path, tmp_path):
    collector = make(path)
    assert not take(collector)
    for _ in range(2):
        sock = unix(path)
        assert take(collector)
        assert msgpack.unpackb(sock.recv(2_000))["payload"] == b"40 C"
        sock.close()
        assert not take(collector)
        (tmp_path / "c").unlink()


async def test_one_that_does_not_read_costs_no_wait(make, path):
    sock = unix(path)
    try:
        collector = make(path)
        taken = sum(take(collector, bytes(1_000)) for _ in range(5_000))
        assert 0 < taken < 5_000
        assert not take(collector)
        sock.recv(2_000)
        assert take(collector)
    finally:
        sock.close()


async def test_close_leaves_nothing(make, path):
    by_path, by_name = make(path), make("localhost", 9_000)
    sock = by_path._sock
    by_path.close()
    by_name.close()
    assert sock.fileno() == -1
    await until(lambda: by_name._task.done())
    assert by_name._sock is None
    assert not take(by_path)
    ended = by_name._task
    assert not take(by_name, now=time.monotonic() + LOOK_UP_S)
    assert by_name._task is ended, "what is looked up now would be left open"
