"""One pace for all who ask a store that does not answer."""

import asyncio
from time import monotonic

import pytest

from router.config import pace as module
from router.config.pace import Pace


class FakeTime:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.now = 100.0
        self.waits = []

    def monotonic(self):
        return self.now


@pytest.fixture
def still(monkeypatch):
    """No jitter, and waits that are noted and not waited."""
    time = FakeTime()

    class Timeout:
        def __init__(self, seconds):
            time.waits.append(seconds)
            time.now += seconds

        async def __aenter__(self):
            raise TimeoutError

        async def __aexit__(self, *_):
            raise AssertionError("unreachable")

    monkeypatch.setattr(module, "monotonic", time.monotonic)
    monkeypatch.setattr(module, "random", lambda: 0.5)
    monkeypatch.setattr(module.asyncio, "timeout", Timeout)
    return time


async def test_waits_double_up_to_the_ceiling(still):
    pace = Pace()
    for _ in range(9):
        await pace.wait()
    assert still.waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert pace.attempts == 9


async def test_jitter_is_a_quarter_at_most(monkeypatch, still):
    for chance, factor in ((0.0, 0.75), (1.0, 1.25)):
        monkeypatch.setattr(module, "random", lambda chance=chance: chance)
        still.waits.clear()
        await Pace().wait()
        assert still.waits == pytest.approx([0.05 * factor])


async def test_a_first_attempt_after_a_long_peace_waits_little():
    pace = Pace()
    began = monotonic()
    await pace.wait()
    assert monotonic() - began < 0.5


async def test_many_who_wait_take_turns():
    """Eight partitions are not eight times as eager as one."""
    pace = Pace()
    tasks = [asyncio.ensure_future(pace.wait()) for _ in range(8)]
    await asyncio.sleep(0.6)
    assert 1 <= pace.attempts <= 5
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_success_lets_everybody_go_on():
    pace = Pace()
    tasks = [asyncio.ensure_future(pace.wait()) for _ in range(8)]
    await asyncio.sleep(0)
    pace.succeeded()
    async with asyncio.timeout(1.0):
        await asyncio.gather(*tasks)
    assert pace.attempts == 8


async def test_after_a_success_it_begins_again_at_the_floor(still):
    pace = Pace()
    for _ in range(5):
        await pace.wait()
    pace.succeeded()
    still.waits.clear()
    await pace.wait()
    assert still.waits == pytest.approx([0.05])


async def test_one_who_gives_up_waiting_counts_no_attempt():
    pace = Pace()
    pace._delay_s = 2.0
    task = asyncio.ensure_future(pace.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert pace.attempts == 0
