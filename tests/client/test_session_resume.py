"""What a session keeps of one connection for the next: its id, the token to show, and where the epochs are."""

import asyncio

import pytest

from router.client.session import RobotSession
from router.client.words import LINK_LOST, RobotError
from router.transport.codec.robot import wire
from tests.client.test_session_direct import Fake, until

pytestmark = pytest.mark.asyncio


class Rig:
    """A session whose connections are made by the test: each gets what `welcome` says, and notes what was shown."""

    def __init__(self, **options):
        self.epochs = []
        self.shown = []
        self.carriers = []
        self.welcomes = asyncio.Queue()
        self.session = RobotSession(
            "quic://router.test/", websocket_url="", on_epoch=lambda epoch, _: self.epochs.append(epoch), **options
        )
        self.session._dialler.dial = self.race

    def welcome(self, session, epoch, token, **options):
        self.welcomes.put_nowait((session, epoch, token, options))

    async def race(self, resume, waiting):
        session, epoch, token, options = await self.welcomes.get()
        self.shown.append(resume)
        carrier = Fake(**options)
        carrier._kept.clear()
        carrier.session, carrier.resume = session, token
        carrier.hear_epoch(epoch, "replica")
        self.carriers.append(carrier)
        return carrier

    async def lose(self):
        count = len(self.carriers)
        self.carriers[-1].lose(RobotError(LINK_LOST, "gone"))
        await until(lambda: len(self.carriers) > count and self.session.is_connected)


async def test_a_lost_session_goes_on():
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:
        assert (session.session_id, session.resume_token, session.epoch) == ("s1", "t1", 1)
        rig.carriers[-1].resume = "t2"  # another came meanwhile
        assert session.resume_token == "t2"
        rig.welcome("s1", 2, "t3")
        await rig.lose()
        assert rig.shown == ["", "t2"]
        assert (session.session_id, session.resume_token, session.epoch) == ("s1", "t3", 2)
        assert rig.epochs == [2]


async def test_one_that_was_forgotten_counts_on():
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:
        for number in range(2, 4):
            rig.carriers[-1].hear_epoch(number, "replica")
        rig.welcome("s2", 1, "t2")
        await rig.lose()
        assert (session.session_id, session.resume_token, session.epoch) == ("s2", "t2", 4)
        assert rig.epochs == [2, 3, 4]


async def test_a_router_without_keys_takes_nothing_away():
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:
        rig.welcome("s2", 1, "")
        await rig.lose()
        assert (session.session_id, session.resume_token, session.epoch) == ("s2", "t1", 2)


async def test_what_a_replica_gives_is_not_shown_to_the_router():
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:
        rig.welcome("of the replica", 1, "its own", is_direct=True)
        await rig.lose()
        assert (session.session_id, session.resume_token) == ("s1", "t1")


async def test_a_token_of_another_process():
    rig = Rig(resume="t0")
    rig.welcome("s0", 8, "t1")
    async with rig.session as session:
        assert rig.shown == ["t0"]
        assert (session.session_id, session.epoch) == ("s0", 8)
        assert rig.epochs == [8]


async def test_one_that_was_taken_over_does_not_come_again():
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    rig.welcome("s1", 3, "t3")
    async with rig.session as session:
        rig.carriers[-1].lose(RobotError(wire.NOT_ALLOWED, wire.SUPERSEDED))
        with pytest.raises(RobotError) as ended:
            await session.recv(5)
        assert ended.value.is_superseded
    assert len(rig.carriers) == 1
    assert not RobotError(wire.NOT_ALLOWED, "nothing is read").is_superseded
