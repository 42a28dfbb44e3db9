"""Which replicas of an endpoint to start and to stop, to have as many as are desired. No clock, no I/O.

A replica of ours (started by an autoscaler) is

    pending    ordered, registered or restarting, and not READY for less than `launch_timeout_s`; counts as there
    ready      counts as there
    draining   by itself or by an operator: counts for `DRAIN_PATIENCE_S`, since an engine that pauses comes back
    stopping   told to stop: does not count
    lost       its process ended untold, or it was pending for too long: does not count, and the next launch waits,
               longer each time, until one becomes ready

Replicas of others count while they are READY or have not been STARTING for too long; they are never stopped.
Stopped are, one at a time and only while as many as are desired are READY: draining ones, those that are down,
then the youngest. One with live sessions never is.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.autoscale.launcher import REPLICA_PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection

DRAIN_PATIENCE_S = 10.0
BACK_OFF_S = 1.0  # before the launch after a failed one; doubles with each
MAX_BACK_OFF_S = 60.0
_RANK = {"DRAINING": 0, "DOWN": 1, "": 2, "STARTING": 2, "READY": 3}


@dataclass(slots=True)
class Member:
    """One replica. `state` is its row's, empty if it has none."""

    replica: str
    is_ours: bool
    since_s: float
    """When it was ordered, or first seen."""
    state: str = ""
    unready_s: float | None = None
    """Since when it has not been READY."""
    was_ready: bool = False
    is_registered: bool = False
    told_s: float | None = None
    """When it was told to stop."""
    is_leaving: bool = False
    """It was draining when it was first seen: told by an earlier run, and telling it again would hurry it."""
    has_sessions: bool = False

    @property
    def is_stopping(self) -> bool:
        """Whether it is not to be counted on any more."""
        return self.is_leaving or self.told_s is not None


@dataclass(slots=True)
class News:
    """What an observation brought to light."""

    ready: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)


class Fleet:
    """One endpoint's replicas, over time."""

    def __init__(self, launch_timeout_s: float) -> None:
        self.launch_timeout_s = launch_timeout_s
        self.members: dict[str, Member] = {}
        self.failures = 0  # in a row
        self.not_before_s = 0.0
        self._buried: set[str] = set()  # whose process is gone and whose row is not yet

    # -- seeing -----------------------------------------------------------------------------------------

    def observe(
        self, rows: dict[str, str], held: Collection[str], running: set[str] | None, now_s: float
    ) -> News:
        """Take what the store says (`rows`: replica to state) and which processes run; return what is new."""
        news = News()
        self._buried &= rows.keys()
        for replica, state in rows.items():
            if replica not in self.members and replica not in self._buried:
                is_ours = replica.startswith(REPLICA_PREFIX) if running is None else replica in running
                is_leaving = is_ours and state == "DRAINING"
                self.members[replica] = Member(replica, is_ours, now_s, is_leaving=is_leaving)
        for replica in (running or set()) - self.members.keys():
            self.members[replica] = Member(replica, True, now_s, unready_s=now_s)
        for replica, member in list(self.members.items()):
            state = rows.get(replica, "")
            if self._is_gone(member, state, running):
                self._bury(member, state, running, now_s, news)
            else:
                self._look_at(member, state, now_s, news)
                member.has_sessions = replica in held
        return news

    @staticmethod
    def _is_gone(member: Member, state: str, running: set[str] | None) -> bool:
        if member.is_ours and running is not None:
            return member.replica not in running
        return not state and (member.is_registered or member.is_stopping)

    def _bury(self, member: Member, state: str, running: set[str] | None, now_s: float, news: News) -> None:
        del self.members[member.replica]
        news.gone.append(member.replica)
        if state:
            self._buried.add(member.replica)
        if member.is_ours and running is not None and not member.is_stopping:
            news.lost.append(member.replica)
            self.fail(now_s)

    def _look_at(self, member: Member, state: str, now_s: float, news: News) -> None:
        before, member.state = member.state, state
        member.is_registered |= bool(state)
        if state == "READY":
            member.is_leaving = False  # it was its engine that paused
            member.unready_s = None
            if member.is_ours and not member.was_ready:
                news.ready.append(member.replica)
                self.failures, self.not_before_s = 0, 0.0
            member.was_ready = True
            if member.told_s is not None and now_s - member.told_s > self.launch_timeout_s:
                member.told_s = None  # it did not hear
        elif member.unready_s is None or (state == "DRAINING" and before != "DRAINING"):
            member.unready_s = now_s
        elif self._is_late(member, now_s):
            member.told_s = now_s
            news.late.append(member.replica)
            self.fail(now_s)

    def _is_late(self, member: Member, now_s: float) -> bool:
        if not member.is_ours or member.is_stopping or member.state == "DRAINING" or member.unready_s is None:
            return False
        return now_s - member.unready_s > self.launch_timeout_s

    def fail(self, now_s: float) -> None:
        """Count a launch that came to nothing; several of one moment count as one."""
        if now_s < self.not_before_s:
            return
        self.failures += 1
        self.not_before_s = now_s + min(BACK_OFF_S * 2.0 ** (self.failures - 1), MAX_BACK_OFF_S)

    # -- counting ---------------------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Replicas that serve and stay."""
        return sum(member.state == "READY" and not member.is_stopping for member in self.members.values())

    def pending(self, now_s: float) -> int:
        """Return how many are on their way."""
        return sum(self._is_pending(member, now_s) for member in self.members.values())

    def ours_pending(self, now_s: float) -> int:
        """Return how many of them are ours."""
        return sum(member.is_ours and self._is_pending(member, now_s) for member in self.members.values())

    def held(self, now_s: float) -> int:
        """Return how many of those that count have live sessions."""
        return sum(
            member.has_sessions and not member.is_stopping
            and (member.state == "READY" or self._is_pending(member, now_s))
            for member in self.members.values()
        )  # fmt: skip

    def _is_pending(self, member: Member, now_s: float) -> bool:
        if member.is_stopping or member.unready_s is None:
            return False
        for_s = now_s - member.unready_s
        if member.state == "DRAINING":
            return member.is_ours and for_s <= DRAIN_PATIENCE_S
        return (member.is_ours or member.state == "STARTING") and for_s <= self.launch_timeout_s

    # -- acting -----------------------------------------------------------------------------------------

    def starts(self, desired: int, room: int, now_s: float) -> list[str]:
        """Return names of replicas to start now, at most `room`; they count as pending from here on."""
        if now_s < self.not_before_s or (self.failures and self.ours_pending(now_s)):
            return []
        missing = desired - self.ready - self.pending(now_s)
        if self.failures:
            missing = min(missing, 1)  # one at a time, until one has come up
        names = [f"{REPLICA_PREFIX}{secrets.token_hex(5)}" for _ in range(min(missing, room))]
        for name in names:
            self.members[name] = Member(name, True, now_s, unready_s=now_s)
        return names

    def stops(self, desired: int, now_s: float) -> list[str]:
        """Return the replica to stop now, if there is one too many; it is stopping from here on."""
        ready = self.ready
        drained = sum(
            member.is_ours and member.state == "DRAINING" and not member.is_stopping
            and not self._is_pending(member, now_s) for member in self.members.values()
        )  # fmt: skip
        if ready < desired or ready + self.pending(now_s) + drained <= desired:
            return []
        candidates = [
            member for member in self.members.values()
            if member.is_ours and not member.is_stopping and not member.has_sessions
            and (member.state != "READY" or ready > desired)
        ]  # fmt: skip
        if not candidates:
            return []
        victim = min(candidates, key=lambda member: (_RANK.get(member.state, 0), -member.since_s, member.replica))
        victim.told_s = now_s
        return [victim.replica]

    def not_started(self, replica: str, now_s: float) -> None:
        """Take back a start that failed."""
        if self.members.pop(replica, None) is not None:
            self.fail(now_s)

    def not_stopped(self, replica: str) -> None:
        """Take back a stop that failed: it is chosen again."""
        member = self.members.get(replica)
        if member is not None:
            member.told_s = None
