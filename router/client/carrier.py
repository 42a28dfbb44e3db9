"""What carries a session for a while: one QUIC connection, or one WebSocket. And the race of those that might.

A carrier is started, comes `up` or fails, and is `lost` at last. What it hears before somebody listens is kept.
The race starts one after another, each some time after the one before unless an earlier one was heard by then: who
answers is waited for. The first that is up is taken; of several at once the one that was to be tried first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal

from router.client.words import LINK_LOST, Lane, RobotError
from router.transport.codec.robot.link import LinkMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.transport.codec.robot.wire import Command

Heard = tuple[Lane, int, bytes, bool]  # lane, sequence, payload, whether it is text


class Carrier:
    """Base of both. `up` and `lost` are futures: None, and the error that ended it."""

    transport: Literal["quic", "websocket"]

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[RobotError] = loop.create_future()
        self.meter = LinkMeter()
        self.replica = ""
        self.session = ""  # its id, where the router gave it one
        self.resume = ""  # the token to find back with
        self.moves = 0
        self.epoch = self.first_epoch = 0  # of the session: of what comes now, and of what came first
        self.on_round_trip: Callable[[float], None] | None = None
        self._kept: deque[Heard | tuple[int, str]] = deque()
        self._on_message: Callable[[Lane, int, bytes, bool], None] | None = None
        self._on_epoch: Callable[[int, str], None] | None = None

    # -- for the session ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; OSError if there is no way."""
        raise NotImplementedError

    @property
    def is_heard(self) -> bool:
        """Whether the other side has answered."""
        raise NotImplementedError

    def listen(
        self, on_message: Callable[[Lane, int, bytes, bool], None], on_epoch: Callable[[int, str], None]
    ) -> None:
        """Tell what comes from now on, and what came."""
        self._on_message, self._on_epoch = on_message, on_epoch
        while self._kept:
            heard = self._kept.popleft()
            if len(heard) == 2:
                on_epoch(*heard)
            else:
                on_message(*heard)

    def send_state(self, payload: bytes, deadline: int, now: float) -> bool:
        """Send the newest; False if it was dropped. `deadline`: microseconds of the monotonic clock, or 0."""
        raise NotImplementedError

    def send_command(self, payload: bytes, deadline: int, now: float, *, is_text: bool) -> bool:
        """Send what is not to be lost; False if there is no room for it."""
        raise NotImplementedError

    def send_telemetry(self, payload: bytes) -> bool:
        """Send what may be lost; False if it was dropped."""
        raise NotImplementedError

    def took(self, payload: bytes) -> None:
        """Learn that the user has a command."""
        raise NotImplementedError

    def unsent(self) -> tuple[list[Command], tuple[bytes, int] | None]:
        """Return what never left: commands in order, and a state message with its deadline. Of one that is lost."""
        raise NotImplementedError

    def unsent_state(self) -> tuple[bytes, int] | None:
        """Return the state message that never left, before a `leave`, which sends commands alone."""
        raise NotImplementedError

    def leave(self) -> None:
        """Say goodbye once all commands have arrived; `lost` follows."""
        raise NotImplementedError

    async def end(self) -> None:
        """Let go of everything at once."""
        raise NotImplementedError

    # -- for the heirs --------------------------------------------------------------------------------

    def hear(self, lane: Lane, sequence: int, payload: bytes, is_text: bool) -> None:
        """Pass a message on, or keep it."""
        if self._on_message is None:
            self._kept.append((lane, sequence, payload, is_text))
        else:
            self._on_message(lane, sequence, payload, is_text)

    def hear_epoch(self, epoch: int, replica: str) -> None:
        """Pass on that another replica is there."""
        self.replica = replica
        if self._on_epoch is None:
            if any(len(one) == 2 for one in self._kept):
                self._kept.append((epoch, replica))
            else:  # what came before the router's welcome overtook it: lanes are streams of their own
                self._kept.appendleft((epoch, replica))
        else:
            self._on_epoch(epoch, replica)

    def hear_pong(self, round_trip_s: float) -> None:
        """Pass on how long an answer took."""
        if self.on_round_trip is not None:
            self.on_round_trip(round_trip_s)

    def come_up(self) -> None:
        """Be ready."""
        if not self.up.done():
            self.up.set_result(None)

    def lose(self, error: RobotError) -> None:
        """Be over."""
        if not self.up.done():
            self.up.set_exception(error)
            self.up.exception()  # it may be that nobody waits any more
        if not self.lost.done():
            self.lost.set_result(error)


async def race(runners: Sequence[tuple[float, Callable[[], Carrier]]]) -> Carrier:
    """Return the first that comes up; raise RobotError if none does. Each has its delay from the beginning."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    waiting = deque(runners)
    running: list[Carrier] = []
    failures: list[RobotError] = []
    winner: Carrier | None = None
    try:
        while winner is None:
            while waiting and _is_due(waiting[0][0], loop.time() - began_s, running):
                make = waiting.popleft()[1]
                try:
                    carrier = make()
                    carrier.start()
                except RobotError as error:
                    failures.append(error)
                    continue
                except OSError as error:
                    failures.append(RobotError(LINK_LOST, f"no way to the router: {error.strerror or error}"))
                    continue
                running.append(carrier)
            if not running:
                raise _gravest(failures)
            left_s = waiting[0][0] - (loop.time() - began_s) if waiting else 0.0
            await asyncio.wait(
                [one.up for one in running],
                timeout=left_s if left_s > 0.0 else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for one in [one for one in running if one.up.done()]:
                failure = one.up.exception()
                if failure is None:
                    winner = winner or one
                    continue
                assert isinstance(failure, RobotError)
                running.remove(one)
                await one.end()
                failures.append(failure)
                if failure.is_final:
                    raise failure
        return winner
    finally:
        for one in running:
            if one is not winner:
                await one.end()


def _is_due(delay_s: float, passed_s: float, running: list[Carrier]) -> bool:
    return not running or (passed_s >= delay_s and not any(one.is_heard for one in running))


def _gravest(failures: list[RobotError]) -> RobotError:
    """Return the error that says most: what somebody answered rather than that nobody did."""
    return max(failures, key=lambda error: (error.status > 0, error.code != LINK_LOST), default=_NOBODY)


_NOBODY = RobotError(LINK_LOST, "there is no address to try")
