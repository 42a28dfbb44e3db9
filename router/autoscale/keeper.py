"""The autoscaler's loop: look, decide, start and stop, once a second, while the duty is this process's.

One autoscaler of a store works at a time, under a duty in `Meta` (`config.duty`); others stand by and take over
when its lease runs out. Nothing is started or stopped without a look at the store as it is now and a lease that has
not run out, so an autoscaler that is cut off stops scaling, and its replicas stay. Orders run beside the loop: a
slow command delays nobody, and its replica counts as pending meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from router.autoscale.fleet import Fleet
from router.autoscale.follow import Follower
from router.autoscale.launcher import LaunchError, Order
from router.autoscale.policy import Decider, Decision, Observation
from router.config.agent import own_name
from router.config.duty import AUTOSCALER, leave_duty, take_duty
from router.config.errors import StoreError, StoreUnavailableError
from router.config.pace import Pace
from router.config.writer import open_writer
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from router.autoscale.follow import EndpointView
    from router.autoscale.launcher import Launcher
    from router.config.target import Target
    from router.config.writer import Writer

_log = logging.getLogger("router.autoscale")

PERIOD_S = 1.0
DUTY_S = 12.0
DUTY_PERIOD_S = 3.0
STAND_BY_S = 2.0
LEAVE_S = 2.0  # for giving the duty up at the end
ORDERS_S = 5.0  # for commands under way to end by themselves, before that
PARALLEL_LAUNCHES = 8
FORSAKEN_S = 60.0
"""Replicas of an endpoint that was deleted are stopped after so long; not if no endpoint is left at all: an empty
store is more likely a store that lost something."""


class NotOnDutyError(Exception):
    """Another autoscaler works."""


class NeverConnectedError(Exception):
    """The store was not usable in time."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to go about it."""

    region: str = ""
    launch_timeout_s: float = 300.0
    parallel_launches: int = PARALLEL_LAUNCHES
    start_limit_s: float = 30.0
    """For the store to be usable for the first time; 0: no limit."""


@dataclass(slots=True)
class Line:
    """What is known of an endpoint, for people."""

    endpoint: str
    view: EndpointView
    decision: Decision
    ready: int
    pending: int
    held: int


class Keeper:
    """`tell(event, **values)` is called with all that happens. Without a launcher it only says what it would do."""

    def __init__(
        self,
        target: Target,
        names: Sequence[str] | None,
        launcher: Launcher | None,
        options: Options,
        tell: Callable[..., None],
    ) -> None:
        self._target = target
        self._launcher = launcher
        self._options = options
        self._tell = tell
        self._name = own_name()
        self._follower = Follower(names)
        self._fleets: dict[str, Fleet] = {}
        self._deciders: dict[str, Decider] = {}
        self._pace = Pace()
        self._duty_until_s = 0.0
        self._renew_at_s = 0.0
        self._is_on_duty: bool | None = None
        self._has_connected = False
        self._error = ""
        self._skipped: dict[str, str] = {}
        self._orders: set[asyncio.Task[None]] = set()
        self._forsaken: dict[str, float] = {}
        self.lines: dict[str, Line] = {}

    # -- life -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep going until cancelled. StoreError for a store that must be mended first, NeverConnectedError."""
        began_s = monotonic()
        while True:
            try:
                async with open_writer(self._target) as writer:
                    await self._follower.check(writer)
                    while True:
                        wait_s = await self.turn(writer)
                        self._pace.succeeded()
                        self._trouble("")
                        await asyncio.sleep(wait_s)
            except StoreUnavailableError as failure:
                self._trouble(str(failure))
            except StoreError as failure:
                if not self._has_connected:
                    raise
                self._trouble(str(failure))
            limit_s = self._options.start_limit_s
            if not self._has_connected and limit_s and monotonic() - began_s > limit_s:
                raise NeverConnectedError(self._error)
            await self._pace.wait()

    async def once(self) -> None:
        """Look twice, decide, act, and wait until every order is carried out. NotOnDutyError, StoreError."""
        async with open_writer(self._target) as writer:
            await self._follower.check(writer)
            await self._follower.read(writer)  # for the growth since
            await asyncio.sleep(PERIOD_S)
            await self.turn(writer)
        if self._launcher is not None and not self._is_on_duty:
            raise NotOnDutyError("another autoscaler is on duty")
        if self._orders:
            await asyncio.wait(self._orders)

    async def close(self, *, stop: bool) -> None:
        """End: orders under way get a moment, replicas stay unless `stop`; they are another's if the duty is."""
        if self._orders:
            await asyncio.wait(self._orders, timeout=ORDERS_S)
        for order in self._orders:
            order.cancel()
        if self._orders:
            await asyncio.wait(self._orders)
        if self._launcher is None:
            return
        stop = stop and bool(self._is_on_duty)
        if stop:
            await self._stop_all(self._launcher)
        await self._launcher.close(stop=stop)
        if self._is_on_duty:
            try:
                async with asyncio.timeout(LEAVE_S), open_writer(self._target) as writer:
                    await writer.transact(lambda t: leave_duty(t, AUTOSCALER, self._name))
            except (StoreError, TimeoutError) as failure:
                _log.warning("the duty was not given up and runs out by itself: %s", failure)

    # -- one turn ---------------------------------------------------------------------------------------

    async def turn(self, writer: Writer) -> float:
        """Look, decide and act; return how long to wait until the next turn."""
        if not await self._has_duty(writer):
            self._has_connected = True
            return STAND_BY_S
        views = await self._follower.read(writer)
        self._has_connected = True
        self._tell_skipped()
        for name in self._fleets.keys() - views.keys():
            del self._fleets[name], self._deciders[name]
            self.lines.pop(name, None)
        room = self._options.parallel_launches - sum(
            fleet.ours_pending(monotonic()) for fleet in self._fleets.values()
        )
        for name, view in views.items():
            room -= await self._keep(writer, name, view, max(0, room))
        self._stop_forsaken(monotonic())
        return PERIOD_S

    async def _has_duty(self, writer: Writer) -> bool:
        if self._launcher is None:
            return True
        now_s = monotonic()
        if now_s >= self._renew_at_s or not self._is_on_duty:
            was_on_duty = self._is_on_duty and now_s < self._duty_until_s
            ours, _ = await writer.transact(lambda t: take_duty(t, AUTOSCALER, self._name, DUTY_S))
            if ours:
                self._duty_until_s = now_s + DUTY_S
                self._renew_at_s = now_s + DUTY_PERIOD_S
                if not was_on_duty:
                    self._launcher.adopt()
            if ours is not self._is_on_duty:
                self._tell("on duty" if ours else "standing by")
            self._is_on_duty = ours
        return bool(self._is_on_duty)

    async def _keep(self, writer: Writer, name: str, view: EndpointView, room: int) -> int:
        """Keep one endpoint; return how many replicas were ordered."""
        fleet = self._fleets.setdefault(name, Fleet(self._options.launch_timeout_s))
        decider = self._deciders.setdefault(name, Decider(view.scaling))
        decider.spec = view.scaling
        now_s = monotonic()
        running = None if self._launcher is None else self._launcher.running(name)
        news = fleet.observe(view.replicas, view.held, running, now_s)
        for replica in news.ready:
            self._tell("ready", endpoint=name, replica=replica)
        for replica in news.gone:
            self._tell("lost" if replica in news.lost else "gone", endpoint=name, replica=replica)
        seen = Observation(
            view.in_flight, view.waiting, view.arrivals, view.unserved,
            fleet.ready, fleet.pending(now_s), fleet.held(now_s), view.is_blind, view.open_sessions, view.room,
        )  # fmt: skip
        decision = decider.step(seen, now_s)
        before = self.lines.get(name)
        self.lines[name] = Line(name, view, decision, seen.ready, seen.pending, seen.held)
        if before is None or before.decision.desired != decision.desired:
            self._tell(
                "desired", endpoint=name, replicas=decision.desired, reason=decision.reason,
                need=round(decision.need, 2), ready=seen.ready, pending=seen.pending, held=seen.held,
            )  # fmt: skip
        if self._launcher is None or monotonic() > self._duty_until_s:
            return 0
        for replica in news.lost:  # its process is gone: nobody else takes the row away before the lease runs out
            if replica in view.replicas:
                await self._remove_row(writer, name, replica)
        for replica in news.late:
            self._tell("late", endpoint=name, replica=replica, after_s=self._options.launch_timeout_s)
            self._order(self._stop(self._launcher, fleet, self._order_of(name, replica, decision.desired)))
        started = fleet.starts(decision.desired, room, now_s)
        for replica in started:
            self._order(self._start(self._launcher, fleet, self._order_of(name, replica, decision.desired)))
        for replica in fleet.stops(decision.desired, now_s):
            self._order(self._stop(self._launcher, fleet, self._order_of(name, replica, decision.desired)))
        return len(started)

    def _stop_forsaken(self, now_s: float) -> None:
        """Stop replicas whose endpoint is no more: they serve nobody."""
        launcher, there = self._launcher, self._follower.there
        served = launcher.endpoints() if launcher is not None else set[str]()
        left = served - there if there else set[str]()
        self._forsaken = {name: self._forsaken.get(name, now_s) for name in left}
        for name, since_s in self._forsaken.items():
            if launcher is None or now_s - since_s <= FORSAKEN_S:
                continue
            fleet = self._fleets.get(name) or Fleet(self._options.launch_timeout_s)
            self._forsaken[name] = inf  # once
            for replica in launcher.running(name) or ():
                self._order(self._stop(launcher, fleet, self._order_of(name, replica, 0)))

    def _order_of(self, endpoint: str, replica: str, desired: int) -> Order:
        return Order(endpoint, replica, self._options.region, desired)

    async def _remove_row(self, writer: Writer, endpoint: str, replica: str) -> None:
        try:
            await writer.delete_replica(endpoint, replica)
        except StoreUnavailableError:
            raise
        except StoreError as failure:  # its sidecar was quicker
            _log.debug("%s", failure)

    # -- orders -----------------------------------------------------------------------------------------

    def _order(self, work: Coroutine[Any, Any, None]) -> None:
        task = spawn(work, "autoscale order")
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _start(self, launcher: Launcher, fleet: Fleet, order: Order) -> None:
        self._tell("start", endpoint=order.endpoint, replica=order.replica)
        try:
            await launcher.start(order)
        except LaunchError as failure:
            fleet.not_started(order.replica, monotonic())
            self._tell("not started", endpoint=order.endpoint, replica=order.replica, error=str(failure))

    async def _stop(self, launcher: Launcher, fleet: Fleet, order: Order) -> None:
        self._tell("stop", endpoint=order.endpoint, replica=order.replica)
        try:
            await launcher.stop(order)
        except LaunchError as failure:
            fleet.not_stopped(order.replica)
            self._tell("not stopped", endpoint=order.endpoint, replica=order.replica, error=str(failure))

    async def _stop_all(self, launcher: Launcher) -> None:
        await asyncio.gather(*(
            self._stop(launcher, fleet, self._order_of(name, member.replica, 0))
            for name, fleet in self._fleets.items()
            for member in list(fleet.members.values())
            if member.is_ours and not member.is_stopping
        ))  # fmt: skip

    # -- saying -----------------------------------------------------------------------------------------

    def _tell_skipped(self) -> None:
        for name, reason in self._follower.skipped.items():
            if self._skipped.get(name) != reason:
                self._tell("skipped", endpoint=name, reason=reason)
        self._skipped = dict(self._follower.skipped)

    def _trouble(self, text: str) -> None:
        if text != self._error:
            self._tell("store", error=text)
        self._error = text
