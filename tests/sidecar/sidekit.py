"""Virtual time, and fakes of the sidecar's three ports."""

import asyncio
import functools
import inspect
import selectors

from router.sidecar.ports import StoreUnavailable
from router.sidecar.readiness import Reading


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for a timer, the clock is moved to it."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everything waits for something that will never come")
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is that of its timers; not for real I/O."""

    def __init__(self):
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self):
        return self._jumping.now


def in_virtual_time(test):
    """Run an async test on a virtual loop; whatever task it leaves behind is a failure."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def whole():
            try:
                return await test(*args, **kwargs)
            finally:
                left = asyncio.all_tasks() - {asyncio.current_task()}
                assert not left, f"tasks left behind: {left}"

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(whole())

    del run.__wrapped__  # pytest-asyncio must not see a coroutine function
    run.__signature__ = inspect.signature(test)  # but pytest the names of the fixtures
    return run


def now():
    return round(asyncio.get_running_loop().time(), 6)


class Diary(list):
    """What happened, and when."""

    def note(self, *what):
        self.append((now(), *what))

    def words(self):
        return [" ".join(str(word) for word in entry[1:]) for entry in self]

    def at(self, *what):
        return next(entry[0] for entry in self if entry[1:] == what)


class FakeRegistry:
    """Keeps a row. `away` makes every call fail; `lands` says whether a failing call takes effect all the same."""

    def __init__(self, diary):
        self.diary = diary
        self.away = False
        self.lands = False
        self.hangs = False
        self.calls = 0
        self.row = None
        self.overlapping = 0

    async def _write(self, row, *words):
        self.calls += 1
        assert not self.overlapping, "calls never overlap"
        self.overlapping += 1
        try:
            await asyncio.sleep(0.001)
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.overlapping -= 1
        if not self.away or self.lands:
            self.row = row
        if self.away:
            raise StoreUnavailable("away")
        self.diary.note("store", *words)

    async def register(self, generation):
        await self._write((generation, "STARTING"), "register", generation)

    async def set_state(self, state):
        assert self.row is not None or self.away
        await self._write((self.row[0] if self.row else None, state), state)

    async def remove(self):
        await self._write(None, "remove")


class FakeRelay:
    def __init__(self, diary):
        self.diary = diary
        self.flying = 0
        self.finish_s = None  # None: the requests in flight never finish
        self.fails = None

    async def open(self):
        if self.fails:
            raise self.fails
        self.diary.note("relay open")

    async def drain(self, grace_s):
        self.diary.note("relay drain", grace_s)
        if self.flying and grace_s:
            await asyncio.sleep(grace_s if self.finish_s is None else min(self.finish_s, grace_s))
            if self.finish_s is not None and self.finish_s <= grace_s:
                self.flying = 0
        cut, self.flying = self.flying, 0
        return cut

    def close(self):
        self.diary.note("relay close")

    def in_flight(self):
        return self.flying


class FakeEngine:
    """Started and stopped in no time, unless told otherwise."""

    def __init__(self, diary, first=0):
        self.diary = diary
        self.generation = first
        self.restarts = 0
        self.waits = [0.5]
        self.stop_takes_s = 0.1
        self.start_takes_s = 0.0
        self.start_fails = None
        self._started = 0
        self._gone = None

    def back_off_s(self):
        return 0.0 if not self._started else self.waits[min(self._started, len(self.waits)) - 1]

    async def start(self):
        assert self._gone is None or self._gone.is_set(), "one at a time"
        self.generation += 1
        self._started += 1
        self.restarts = self._started - 1
        if self.start_fails:
            raise self.start_fails
        await asyncio.sleep(self.start_takes_s)
        self._gone = asyncio.Event()
        self.diary.note("engine start", self.generation)

    def crash(self):
        self.diary.note("engine crash")
        self._gone.set()

    async def exited(self):
        await self._gone.wait()
        return "exit code 9"

    async def stop(self, grace_s):
        if self._gone is None or self._gone.is_set():
            return True
        self.diary.note("engine stop", grace_s)
        await asyncio.sleep(min(grace_s, self.stop_takes_s))
        self._gone.set()
        return grace_s >= self.stop_takes_s


class FakeWatch:
    """Says what the test tells it to."""

    reason = "connection refused"

    def __init__(self, on_change):
        self.on_change = on_change
        self.dead = asyncio.Event()

    def say(self, reading):
        self.on_change(reading)
        if reading is Reading.DEAD:
            self.dead.set()

    async def run(self):
        await self.dead.wait()
