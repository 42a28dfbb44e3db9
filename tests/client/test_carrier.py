"""The race of carriers, and what one keeps until somebody listens."""

import asyncio
import time

import pytest

from router.client.carrier import Carrier, race
from router.client.words import RobotError


class Fake(Carrier):
    transport = "quic"

    def __init__(self, name, *, up_s=None, heard_s=None, fails_s=None, error=None, raises=None):
        super().__init__()
        self.name, self.up_s, self.heard_s, self.fails_s, self.error, self.raises = name, up_s, heard_s, fails_s, error, raises
        self.began_s = None
        self.ended = False
        self._heard = False

    def start(self):
        if self.raises:
            raise self.raises
        self.began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        if self.up_s is not None:
            loop.call_later(self.up_s, self.come_up)
        if self.heard_s is not None:
            loop.call_later(self.heard_s, self._hear)
        if self.fails_s is not None:
            loop.call_later(self.fails_s, self.lose, self.error or RobotError(1006, "failed"))

    def _hear(self):
        self._heard = True

    @property
    def is_heard(self):
        return self._heard

    async def end(self):
        self.ended = True


async def run(*fakes):
    return await race([(delay_s, lambda fake=fake: fake) for delay_s, fake in fakes])


async def test_the_first_that_is_up_is_taken_and_the_others_end():
    slow, fast = Fake("slow", up_s=1.0), Fake("fast", up_s=0.01)
    assert await run((0.0, slow), (0.05, fast)) is fast
    assert slow.ended
    assert not fast.ended


async def test_who_was_heard_is_waited_for():
    first, second = Fake("first", heard_s=0.01, up_s=0.2), Fake("second", up_s=0.0)
    assert await run((0.0, first), (0.05, second)) is first
    assert second.began_s is None


async def test_a_failure_starts_the_next_at_once():
    first, second = Fake("first", fails_s=0.01), Fake("second", up_s=0.01)
    began_s = time.monotonic()
    assert await run((0.0, first), (30.0, second)) is second
    assert time.monotonic() - began_s < 5
    assert first.ended


async def test_of_two_at_once_the_first_is_taken():
    first, second = Fake("first", up_s=0.05), Fake("second", up_s=0.05)
    assert await run((0.0, first), (0.0, second)) is first
    assert second.ended


async def test_a_final_error_ends_the_race():
    first, second = Fake("first", fails_s=0.01, error=RobotError(1008, "no", 401)), Fake("second", up_s=10.0)
    with pytest.raises(RobotError, match="no"):
        await run((0.0, first), (0.0, second))
    assert second.ended


async def test_the_error_that_says_most_is_told():
    first = Fake("first", fails_s=0.01, error=RobotError(1013, "no_replica", 503, 1.0))
    second = Fake("second", fails_s=0.02)
    third = Fake("third", raises=OSError(101, "Network is unreachable"))
    with pytest.raises(RobotError, match="no_replica"):
        await run((0.0, first), (0.0, second), (0.0, third))
    with pytest.raises(RobotError, match="unreachable"):
        await run((0.0, Fake("x", raises=OSError(101, "Network is unreachable"))))
    with pytest.raises(RobotError, match="no address"):
        await run()


async def test_who_is_cancelled_leaves_nothing_running():
    first = Fake("first")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await run((0.0, first))
    assert first.ended


async def test_what_comes_before_somebody_listens_is_kept_in_order():
    fake = Fake("a")
    fake.hear_epoch(1, "r1")
    fake.hear("command", 0, b"metadata", False)
    heard = []
    fake.listen(lambda *message: heard.append(message), lambda *epoch: heard.append(epoch))
    fake.hear_epoch(2, "r2")
    assert heard == [(1, "r1"), ("command", 0, b"metadata", False), (2, "r2")]


async def test_what_overtook_the_welcome_is_of_its_epoch():
    carrier, told = Fake("quic"), []
    carrier.hear("command", 0, b"metadata", False)
    carrier.hear_epoch(1, "a")
    carrier.hear("state", 1, b"actions", False)
    carrier.hear_epoch(2, "b")
    carrier.listen(lambda lane, sequence, data, is_text: told.append(data), lambda epoch, replica: told.append(epoch))
    assert told == [1, b"metadata", b"actions", 2]
