"""Which process may pass datagrams to which, over generations of a daemon."""

import os
import socket

import pytest

from router.config.settings import Settings
from router.edge.quic_forwarding import NEXT
from router.handover import HandedSocket
from router.listening import Inheritance
from router.quic_ways import FLAG, Ways


@pytest.fixture
def make():
    made = []

    def ways(workers=2, after=None, state_dir=""):
        settings = Settings(listen_quic=["127.0.0.1:0"], workers=workers, state_dir=state_dir)
        inherited = Inheritance(handed(after)) if after is not None else Inheritance([])
        made.append(Ways(settings, inherited, None if after is None else after.handover()))
        made[-1].taken = inherited.taken
        inherited.close()
        return made[-1]

    yield ways
    for one in made:
        one.close()


def handed(ways):
    """What the next process has: the same sockets under numbers of its own."""
    return [
        (HandedSocket(fd, entry.flag, entry.address, entry.kind), socket.socket(fileno=fd))
        for entry in ways.described()
        for fd in [os.dup(entry.fd)]
    ]


def says(sender, receiver, text):
    sender.send(text)
    receiver.setblocking(False)
    try:
        while (found := receiver.recv(100)) == b"":
            pass
    except BlockingIOError:
        return False
    return found == text


def test_every_worker_reaches_every_other_and_the_next_daemon(make):
    ways = make(workers=3)
    keys = [key for key, _ in ways.senders()]
    assert keys == [(ways.incarnation, worker) for worker in (0, 1, 2, NEXT)]
    senders = dict(ways.senders())
    for worker in range(3):
        (own,) = ways.receivers(worker)
        assert says(senders[ways.incarnation, worker], own, b"%d" % worker)


def test_a_successor_reaches_its_predecessor_and_reads_what_that_passes_on(make):
    old = make(workers=2)
    new = make(workers=3, after=old)
    assert new.secret == old.secret and new.incarnation == (old.incarnation + 1) & 0xFF
    senders = dict(new.senders())
    assert set(senders) == {(old.incarnation, 0), (old.incarnation, 1)} | {
        (new.incarnation, worker) for worker in (0, 1, 2, NEXT)
    }
    for worker in range(2):
        assert says(senders[old.incarnation, worker], old.receivers(worker)[0], b"back")
    first, second = new.receivers(0), new.receivers(1)
    assert len(first) == 2 and len(second) == 1, "its first worker reads for all"
    assert says(dict(old.senders())[old.incarnation, NEXT], first[1], b"on")
    assert len(new.taken) == 3


def test_the_third_reaches_all_that_still_drain(make):
    first = make(workers=1)
    second = make(workers=1, after=first)
    third = make(workers=1, after=second)
    assert {key for key, _ in third.senders() if key[1] == 0} == {
        (ways.incarnation, 0) for ways in (first, second, third)
    }
    assert says(dict(third.senders())[first.incarnation, 0], first.receivers(0)[0], b"long ago")


def test_who_has_ended_is_handed_on_no_more(make):
    first = make(workers=1)
    second = make(workers=1, after=first)
    first.close()
    third = make(workers=1, after=second)
    assert {key for key, _ in third.senders()} == {
        (second.incarnation, 0), (third.incarnation, 0), (third.incarnation, NEXT)
    }  # fmt: skip


def test_incarnations_go_round(make):
    old = make()
    old.incarnation = 255
    assert make(after=old).incarnation == 0


def test_two_daemons_know_nothing_of_each_other(make):
    incarnations = {make(workers=1).incarnation for _ in range(20)}
    assert len(incarnations) > 5
    assert make().secret != make().secret


def test_a_restart_knows_the_secret_but_is_another(make, tmp_path):
    first = make(state_dir=str(tmp_path))
    successor = make(after=first, state_dir=str(tmp_path))
    restarted = make(state_dir=str(tmp_path))
    assert first.secret == successor.secret == restarted.secret
    # One before it would take the ids of who was killed for those of a successor, which nobody is yet.
    assert restarted.incarnation == (successor.incarnation + 1) & 0xFF == (first.incarnation + 2) & 0xFF


def test_what_is_handed_over_is_named(make):
    ways = make(workers=1)
    found = {entry.address for entry in ways.described()}
    assert found == {f"from {ways.incarnation} {NEXT}", f"to {ways.incarnation} 0"}
    assert {entry.flag for entry in ways.described()} == {FLAG}
