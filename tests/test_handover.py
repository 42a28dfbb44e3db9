"""What a daemon and its successor say: in order, in words that are checked, and when the other is gone."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from router.handover import (
    VARIABLE,
    VERSION,
    Busy,
    BusyReplica,
    FromPredecessor,
    Gone,
    HandedSocket,
    Handover,
    HandoverError,
    Predecessor,
    Ready,
    Refused,
    Yours,
    frame,
    from_successor,
    refuse_on,
    take_pair,
)
from router.routing.spec import SessionEntry


def handover(**more):
    return Handover(**({"version": VERSION, "pid": 7, "generation": 3, "sockets": []} | more))


class Pair:
    """A successor's side, and by hand the predecessor's."""

    def __init__(self):
        self.ours, theirs = socket.socketpair()
        self.successor = Predecessor(theirs)

    def say(self, message: FromPredecessor):
        self.ours.sendall(frame(message))

    async def hear(self):
        self.ours.setblocking(False)
        async with asyncio.timeout(5):
            data = await asyncio.get_running_loop().sock_recv(self.ours, 65_536)
        return from_successor.decode(data[4:])


@pytest.fixture
async def pair():
    made = Pair()
    yield made
    made.successor.close()
    made.ours.close()
    await asyncio.sleep(0.01)


async def test_all_goes_well(pair):
    pair.say(handover(older=[5, 6], is_failed=True, removed=["a"]))
    await pair.successor.receive()
    assert pair.successor.handover.generation == 3 and pair.successor.handover.is_failed
    waiting = asyncio.ensure_future(pair.successor.ready([5, 6]))
    assert await pair.hear() == Ready([5, 6])
    assert not waiting.done()
    pair.say(Yours())
    await waiting
    assert not pair.successor.is_gone
    told = []
    pair.successor.on_busy = told.append
    busy = Busy([BusyReplica("e", "r", 2)], ["s"], [SessionEntry("s", "e", "r", 60)], ["over"])
    pair.say(busy)
    pair.say(Gone(4))
    pair.ours.close()
    async with asyncio.timeout(5):
        while not pair.successor.is_gone:
            await asyncio.sleep(0.01)
    assert pair.successor.cut == 4
    assert told == [busy, Busy([])], "nothing is on them when it is gone"


async def test_a_predecessor_that_dies_after_ready_has_let_go(pair):
    pair.say(handover())
    await pair.successor.receive()
    waiting = asyncio.ensure_future(pair.successor.ready([]))
    await pair.hear()
    pair.ours.close()
    async with asyncio.timeout(5):
        await waiting
    assert pair.successor.is_gone and pair.successor.cut is None


async def test_one_that_died_before_ready_is_not_taken_over_from(pair):
    pair.say(handover())
    await pair.successor.receive()
    pair.ours.close()
    async with asyncio.timeout(5):
        while not pair.successor.is_gone:
            await asyncio.sleep(0.01)
    with pytest.raises(HandoverError, match="ended"):
        await pair.successor.ready([])


async def test_one_that_dies_before_its_first_word(pair):
    pair.ours.close()
    with pytest.raises(HandoverError, match="ended"):
        await pair.successor.receive()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"\0\0\0\1\xc1", "cannot be read"), (b"\xff\xff\xff\xff", "cannot be read"), (frame(Ready([])), "cannot be read")],
)
async def test_words_that_are_none(pair, raw, reason):
    pair.ours.sendall(raw)
    with pytest.raises(HandoverError, match=reason):
        await pair.successor.receive()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (handover(version=VERSION + 1), "by version 2, this is 1"),
        (handover(sockets=[HandedSocket(5, "--listen", "a")] * 2), "one twice"),
    ],
)
async def test_a_description_that_does_not_fit(pair, wrong, reason):
    pair.say(wrong)
    with pytest.raises(HandoverError, match=reason):
        await pair.successor.receive()


async def test_numbers_are_looked_at(pair, tmp_path):
    with (tmp_path / "file").open("wb") as file, socket.socket() as sock:
        pair.say(handover(sockets=[HandedSocket(file.fileno(), "--listen", "a:1")]))
        await pair.successor.receive()
        with pytest.raises(HandoverError, match=f"descriptor {file.fileno()} for a:1"):
            pair.successor.sockets()
        pair.successor.handover = handover(sockets=[HandedSocket(os.dup(sock.fileno()), "--listen", "a:1", 2)])
        with pytest.raises(HandoverError, match="another kind"):
            pair.successor.sockets()


async def test_it_refuses(pair):
    pair.say(handover())
    await pair.successor.receive()
    pair.successor.refuse("no table")
    assert await pair.hear() == Refused("no table")


async def test_a_refusal_before_anything_was_read_arrives(pair):
    ours, theirs = socket.socketpair()
    ours.sendall(frame(handover()))
    refuse_on(theirs, "bad file")
    assert from_successor.decode(ours.recv(65_536)[4:]) == Refused("bad file")
    assert ours.recv(1) == b""
    ours.close()


TAKE = "import os, sys; from router.handover import take_pair; p = take_pair(); print(p and p.family.name, 'ROUTER_HANDOVER' in os.environ)"


def run(number, *fds):
    return subprocess.run(
        [sys.executable, "-c", TAKE], env={**os.environ, VARIABLE: number}, pass_fds=fds, capture_output=True, text=True
    )


def test_the_variable_names_our_parents_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run(str(theirs.fileno()), theirs.fileno())
        assert done.stdout.strip() == "AF_UNIX False", done.stderr


@pytest.mark.parametrize("number", ["nonsense", "-1", "987654"])
def test_a_variable_that_names_none(number):
    assert "names no socket" in run(number).stderr


def test_a_variable_that_names_another_socket():
    with socket.socket() as sock:
        assert "no pair's" in run(str(sock.fileno()), sock.fileno()).stderr


def test_a_variable_that_somebody_left():
    """The other end must be our parent's: here it is a grandparent's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        inner = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {TAKE!r}], pass_fds=[{fd}]))"
        done = subprocess.run(
            [sys.executable, "-c", inner], env={**os.environ, VARIABLE: str(fd)}, pass_fds=[fd], capture_output=True, text=True
        )
        assert "is not our parent's" in done.stderr


def test_without_it_nothing_is_taken(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert take_pair() is None
