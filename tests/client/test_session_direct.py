"""A session that finds its replica itself: what of the relayed one goes on, and that nothing stays behind."""

import asyncio

import pytest

from router.client import direct
from router.client import session as module
from router.client.quic_carrier import QuicCarrier
from router.client.session import RobotSession
from router.client.words import LINK_LOST, RobotError
from router.transport.codec.robot.wire import Command

pytestmark = pytest.mark.asyncio


class Fake(QuicCarrier):
    """A connection without a network."""

    def __init__(self, *, is_direct=False, leaves_in_s=0.0):
        super(QuicCarrier, self).__init__()
        self.is_direct = is_direct
        self.leaves_in_s = leaves_in_s
        self.is_ended = False
        self.has_left = False
        self.taken = []
        self.hear_epoch(1, "replica")

    def unsent(self):
        return [], None

    def unsent_state(self):
        return None

    def took(self, payload):
        self.taken.append(payload)

    def was_early(self, state):
        return False

    def leave(self):
        self.has_left = True
        if self.leaves_in_s is not None:
            asyncio.get_running_loop().call_later(self.leaves_in_s, self.lose, RobotError(1000, ""))

    async def end(self):
        self.is_ended = True
        self.lose(RobotError(LINK_LOST, "given up"))


class Rig:
    def __init__(self, monkeypatch):
        self.relayed, self.direct, self.delays, self.epochs = [], [], [], []
        self.found = asyncio.Event()
        self.raises = None
        self.is_slow = False
        monkeypatch.setattr(direct, "find_direct", self.find)
        self.session = RobotSession(
            "quic://router.test/", websocket_url="", direct=True, on_epoch=lambda epoch, _: self.epochs.append(epoch)
        )
        self.session._dialler.dial = self.race

    async def race(self, resume, waiting):
        self.relayed.append(Fake())
        return self.relayed[-1]

    async def find(self, relayed, target, *, silence_s, ping_every_s, delay_s=0.0):
        self.delays.append(delay_s)
        try:
            await self.found.wait()
        except asyncio.CancelledError:
            if not self.is_slow:
                raise
        self.found.clear()
        if self.raises is not None:
            raise self.raises
        self.direct.append(Fake(is_direct=True))
        return self.direct[-1]

    async def go_direct(self):
        count = len(self.direct)
        self.found.set()
        await until(lambda: len(self.direct) > count and self.session._carrier is self.direct[-1])


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.002)


@pytest.fixture
def rig(monkeypatch):
    return Rig(monkeypatch)


async def test_close_waits_for_the_goodbye_of_the_relayed_one(rig):
    await rig.session.connect()
    rig.relayed[0].leaves_in_s = 0.2
    await rig.go_direct()
    assert not rig.relayed[0].is_ended
    await rig.session.close()
    assert rig.relayed[0].is_ended and rig.direct[0].is_ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("when", ["while the goodbye is said", "as it is given up"])
async def test_one_that_is_found_too_late_is_let_go(rig, when):
    await rig.session.connect()
    rig.relayed[0].leaves_in_s = 0.1
    rig.is_slow = when == "as it is given up"
    closing = asyncio.ensure_future(rig.session.close())
    await until(lambda: rig.relayed[0].has_left)
    if not rig.is_slow:
        rig.found.set()
    await closing
    assert rig.relayed[0].is_ended
    assert [one.is_ended for one in rig.direct] == [True]
    assert rig.session.epoch == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_goes_wrong_in_looking_costs_nothing(rig, caplog):
    rig.raises = AssertionError("an offer that nobody expected")
    await rig.session.connect()
    rig.found.set()
    await until(lambda: "crashed" in caplog.text)
    assert rig.session.is_connected
    rig.relayed[0].hear("command", 0, b"hello", False)
    assert (await rig.session.recv(1)).data == b"hello"
    await rig.session.close()


@pytest.mark.parametrize(
    "error",
    [RobotError(1008, "unauthenticated", 401), RobotError(1015, "TLS: alert 42"), RobotError(LINK_LOST, "silence")],
)
async def test_a_replica_that_lets_us_in_no_more_is_reached_through_the_router(rig, error):
    await rig.session.connect()
    await rig.go_direct()
    rig.direct[0].lose(error)
    await until(lambda: len(rig.relayed) == 2 and rig.session.is_connected)
    assert not rig.session.link.is_direct
    assert rig.session.epoch == 3
    await rig.session.close()


async def test_the_policys_word_ends_a_direct_session_too(rig):
    await rig.session.connect()
    await rig.go_direct()
    rig.direct[0].lose(RobotError(1000, "done"))
    with pytest.raises(RobotError) as ended:
        await rig.session.recv(5)
    assert ended.value.code == 1000
    await rig.session.close()


async def test_a_way_that_is_soon_lost_is_not_looked_for_at_once(rig, monkeypatch):
    await rig.session.connect()
    await rig.go_direct()
    rig.direct[0].lose(RobotError(LINK_LOST, "silence"))
    await until(lambda: len(rig.delays) == 2)
    assert rig.delays[0] == 0.0
    assert rig.delays[1] > module.AGAIN_S - 5
    monkeypatch.setattr(module, "GOOD_S", 0.0)  # as if the next one had lasted
    rig.session._direct_from_s = 0.0
    await rig.go_direct()
    rig.direct[1].lose(RobotError(LINK_LOST, "silence"))
    await until(lambda: len(rig.delays) == 3)
    assert rig.delays[2] == 0.0
    await rig.session.close()


async def test_what_the_router_still_has_is_of_the_epoch_before(rig):
    await rig.session.connect()
    rig.relayed[0].leaves_in_s = None
    await rig.go_direct()
    rig.direct[0].hear("state", 1, b"new", False)
    rig.relayed[0].hear("state", 9, b"old", False)  # never in the place of a newer replica's
    rig.relayed[0].hear("command", 0, b"old", False)
    rig.relayed[0].hear_epoch(2, "another")  # whoever serves there now does not serve us
    rig.direct[0].hear("command", 0, b"new", False)
    heard = [await rig.session.recv(1) for _ in range(3)]
    assert [(one.lane, one.data, one.epoch) for one in heard] == [("state", b"new", 2), ("command", b"old", 1), ("command", b"new", 2)]
    assert rig.direct[0].taken == [b"new"]  # nobody gets credit for what another one sent
    assert (rig.session.epoch, rig.epochs) == (2, [2])
    rig.relayed[0].lose(RobotError(1000, ""))
    await rig.session.close()


async def test_commands_wait_until_those_of_the_relayed_session_have_arrived(monkeypatch):
    sent = []
    monkeypatch.setattr(Fake, "send_command", lambda self, data, *_, **__: sent.append((self.is_direct, data)) or True)
    monkeypatch.setattr(Fake, "send_state", lambda self, data, *_: sent.append((self.is_direct, data)) or True)
    monkeypatch.setattr(Fake, "unsent", lambda self: (unsent, None))
    unsent = []
    rig = Rig(monkeypatch)
    async with rig.session as session:
        relayed = rig.relayed[0]
        relayed.leaves_in_s = None
        unsent.append(Command(b"1", 0, False))  # on its lane, which is alive: it goes there, or comes back at its end
        rig.found.set()
        await until(lambda: relayed.has_left)
        assert session.send(b"2", "command")
        assert session.send(b"image")
        assert sent == [(True, b"image")]
        relayed.lose(RobotError(LINK_LOST, "gone"))
        await until(lambda: len(sent) == 3)
        assert sent[1:] == [(True, b"1"), (True, b"2")]
        unsent.clear()
        assert session.send(b"3", "command")
        assert sent[3:] == [(True, b"3")]


async def test_a_state_of_the_relayed_session_is_not_told_behind_a_direct_one(monkeypatch):
    rig = Rig(monkeypatch)
    async with rig.session as session:
        relayed = rig.relayed[0]
        relayed.leaves_in_s = None
        rig.found.set()
        await until(lambda: relayed.has_left)
        rig.direct[0].hear("state", 1, b"new", False)
        assert (await session.recv(1)).data == b"new"
        relayed.hear("state", 9, b"old", False)
        assert await session.recv(0) is None
        relayed.lose(RobotError(LINK_LOST, "gone"))
