"""One count for all that clients come over: limits, reasons, and nothing kept of who is gone."""

import pytest

from router.counters import WorkerCounters
from router.edge.headcount import Headcount, client_of


@pytest.fixture
def counters():
    return WorkerCounters()


def test_the_limit_of_all(counters):
    count = Headcount(counters, 2)
    assert count.enter(b"192.0.2.1") and count.enter(b"192.0.2.2")
    assert not count.enter(b"192.0.2.3")
    assert (counters.connections_open, counters.connections_accepted, counters.connections_refused) == (2, 2, 1)
    count.leave(b"192.0.2.1")
    assert counters.connections_open == 1 and count.enter(b"192.0.2.3")


def test_the_limit_of_an_address(counters):
    count = Headcount(counters, 100, 1)
    assert count.enter(b"2001:db8::1")
    assert not count.has_room(b"2001:db8::2") and not count.enter(b"2001:db8::3")
    assert counters.refused_address == 2 and count.open == 1
    assert count.enter(b"unix") and count.enter(b"unix")
    count.leave(b"2001:db8::1")
    assert count.has_room(b"2001:db8::3") and count.clients == 0


def test_without_memory_none_is_taken(counters):
    count = Headcount(counters, 100)
    count.refuses = True
    assert not count.has_room(b"192.0.2.1") and not count.enter(b"192.0.2.1")
    assert counters.refused_memory == 2 and not counters.connections_accepted


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        (b"192.0.2.1", b"192.0.2.2", False),
        (b"2001:db8::1", b"2001:db8::ffff:2", True),
        (b"2001:db8::1", b"2001:db8:0:1::1", False),
        (b"::ffff:192.0.2.1", b"192.0.2.1", True),
        (b"fe80::1%eth0", b"fe80::2", True),
    ],
)
def test_who_is_one_client(one, other, are_same):
    assert (client_of(one) == client_of(other)) is are_same


def test_a_unix_sockets_clients_have_no_address():
    assert client_of(b"unix") == b""
