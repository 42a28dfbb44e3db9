"""What an engine says of itself, followed for as long as it lives.

`Judge` is pure: one answer in, one reading out. `ReadinessWatch` asks. Never two questions at a time.

    heard                  STARTING   READY              DRAINING    FAILING
    2xx                    READY      READY, strikes 0   READY       READY
    503                    -          DRAINING           -           DRAINING
    refused, twice         -          DEAD               DEAD        DEAD
    cut, late, any other   -          FAILING at the third strike    -

* An engine that was never ready cannot die here: its port refuses while it loads (SGLang: until the weights are
  in).
* 503 is the engine's own word, so it counts at once: SGLang says it while it warms up, pauses and drains.
* Refused after having been ready: nobody listens any more. One knock 50 ms later confirms it, and that is the
  end of the watch; whoever comes next on that port is another incarnation.
* Silence is not death: SGLang's /health generates a token, which takes 1.0 s on an idle engine and up to 20 s.
* /ready is asked first. Who answers 404 there is asked at /health for the rest of its life (SGLang's Rust front
  end); since that costs it a token, it is asked rarely once ready, and its port is knocked at in between.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from router.routing.load import split_address
from router.transport.upstream.question import ask_http as ask_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Reading(Enum):
    """What is believed of the engine."""

    STARTING = auto()  # not ready yet
    READY = auto()
    DRAINING = auto()  # it was ready and says 503
    FAILING = auto()  # it was ready and gives no good answer
    DEAD = auto()  # it was ready and nobody listens


class Heard(Enum):
    """What one question brought."""

    GOOD = auto()
    UNAVAILABLE = auto()  # 503
    REFUSED = auto()  # nobody listens
    CUT = auto()  # the connection broke before the answer was there
    POOR = auto()  # late, or any other answer


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, and how long to wait."""

    starting_s: float = 0.25
    ready_s: float = 0.5
    health_s: float = 5.0  # between questions at the fall-back path; knocks come every `ready_s` meanwhile
    confirm_s: float = 0.05
    answer_s: float = 5.0  # SGLang answers /ready in 11 ms, but from the loop that also tokenizes
    health_answer_s: float = 25.0  # SGLang itself gives up after 20 s, and then says 503
    strikes: int = 3


class Judge:
    """The table above. `reading` is the current belief."""

    __slots__ = ("_allowed", "_strikes", "reading")

    def __init__(self, strikes: int = 3) -> None:
        self.reading = Reading.STARTING
        self._allowed = strikes
        self._strikes = 0

    def hear(self, heard: Heard) -> Reading:
        """Take one answer; a refusal only once it is confirmed."""
        before = self.reading
        assert before is not Reading.DEAD, "the watch ends there"
        if heard is Heard.GOOD:
            self._strikes = 0
            self.reading = Reading.READY
        elif before is Reading.STARTING:
            pass
        elif heard is Heard.UNAVAILABLE:
            self._strikes = 0
            self.reading = Reading.DRAINING
        elif heard is Heard.REFUSED:
            self.reading = Reading.DEAD
        else:
            self._strikes += 1
            if self._strikes >= self._allowed:
                self.reading = Reading.FAILING
        return self.reading


class ReadinessWatch:
    """Follows one incarnation of the engine at `address` (http://host:port), and is made anew for the next.

    `on_change(reading)` is called from within `run`, on each change, and must not block; the last one is DEAD.
    `ask(address, path)` returns a status; `knock(address)` returns when the port accepted. Both raise OSError,
    `ask` also ValueError for what is not HTTP.
    """

    def __init__(
        self,
        address: str,
        on_change: Callable[[Reading], None],
        *,
        path: str = "/ready",
        fallback_path: str = "/health",
        pace: Pace | None = None,
        ask: Callable[[str, str], Awaitable[int]] = ask_status,
        knock: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        split_address(address)
        self.reason = "not asked yet"  # the last answer, for people
        self._address = address
        self._on_change = on_change
        self._pace = pace or Pace()
        self._ask = ask
        self._knock = knock or _knock
        self._judge = Judge(self._pace.strikes)
        self._fallback_path = fallback_path
        self._path = path
        self._first_path = path

    @property
    def reading(self) -> Reading:
        """The current belief."""
        return self._judge.reading

    @property
    def path(self) -> str:
        """The path this engine is asked at."""
        return self._path

    async def run(self) -> None:
        """Ask until the engine is dead."""
        while True:
            before = self._judge.reading
            heard = await self._inquire()
            if heard in (Heard.REFUSED, Heard.CUT) and before is not Reading.STARTING:
                heard = await self._confirm()
            after = self._judge.hear(heard)
            if after is not before:
                self._on_change(after)
            if after is Reading.DEAD:
                return
            await self._pause()

    async def _inquire(self) -> Heard:
        status = await self._question(self._path)
        if status == 404 and self._fallback_path:
            other = self._first_path if self._path == self._fallback_path else self._fallback_path
            second = await self._question(other)
            if second != 404:
                self._path = other
                status = second
        if isinstance(status, Heard):
            return status
        self.reason = f"{self._path}: status {status}"
        if 200 <= status < 300:
            return Heard.GOOD
        return Heard.UNAVAILABLE if status == 503 else Heard.POOR

    async def _question(self, path: str) -> int | Heard:
        limit_s = self._pace.health_answer_s if self._is_costly(path) else self._pace.answer_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._ask(self._address, path)
        except TimeoutError:
            self.reason = f"{path}: no answer in {limit_s:g} s"
            return Heard.POOR
        except ConnectionRefusedError:
            self.reason = "connection refused"
            return Heard.REFUSED
        except (OSError, ValueError) as failure:
            self.reason = f"{path}: {failure}"
            return Heard.CUT

    async def _confirm(self) -> Heard:
        """Knock once more, after a moment."""
        await asyncio.sleep(self._pace.confirm_s)
        return Heard.REFUSED if await self._is_refused() else Heard.POOR

    async def _is_refused(self) -> bool:
        try:
            async with asyncio.timeout(self._pace.answer_s):
                await self._knock(self._address)
        except ConnectionRefusedError:
            self.reason = "connection refused"
            return True
        except (OSError, TimeoutError):
            pass  # whatever this is, the next question will say it
        return False

    async def _pause(self) -> None:
        """Wait for the next question; shorter if a knock finds nobody."""
        pace = self._pace
        if self.reading is Reading.STARTING:
            await asyncio.sleep(pace.starting_s)
        elif self.reading is not Reading.READY or not self._is_costly(self._path):
            await asyncio.sleep(pace.ready_s)
        else:
            loop = asyncio.get_running_loop()
            next_s = loop.time() + pace.health_s
            while loop.time() < next_s:
                await asyncio.sleep(pace.ready_s)
                if await self._is_refused():
                    return

    def _is_costly(self, path: str) -> bool:
        return path == self._fallback_path


async def _knock(address: str) -> None:
    _, host, port = split_address(address)
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
