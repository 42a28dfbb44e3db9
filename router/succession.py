"""What of a daemon only one process may have, and how it passes from one process to the next.

Sockets, the files of Unix sockets and of the pid, checkpoints, what an operator did by hand. Taking over: `bind`
takes them as they are, `know_enough` waits until this process knows what its predecessor does, `take_over` says so
and owns them. Handing over: `upgrade` starts a successor; once that is ready, everything is let go of and the rest
drains.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from router.handover import VERSION, AddedReplica, Busy, Handover, Yours
from router.listening import AdminSocket, Inheritance, ListeningSockets
from router.service import PidFile, is_running, notify
from router.upgrade import Upgrade

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.config.agent import ConfigAgent
    from router.config.settings import Settings
    from router.config.static_table import StaticTable
    from router.handover import Predecessor, Ready
    from router.routing.image import TableImage
    from router.routing.spec import SessionEntry
    from router.transport.upstream.probe import HealthMonitor
    from router.upgrade import Successor

_log = logging.getLogger("router.supervisor")

FIRST_CHECKS_S = 3.0  # a successor that does not know yet which replicas are ill is not ready; of many it never may
LOOK_S = 0.02  # between two looks at what a successor waits for


class Succession:
    """One per daemon. `command` starts it again; None: it cannot be.

    `drain` is the owner's, after a hand-over: it says now and then what is still under way, and returns how many
    requests were cut. `is_failed`: an operator took the daemon out of the rotation, which outlives an upgrade.
    """

    def __init__(
        self,
        settings: Settings,
        command: list[str] | None,
        predecessor: Predecessor | None,
        agent: ConfigAgent | None,
        static: StaticTable | None,
        image: TableImage,
        drain: Callable[[Callable[[Busy], None]], Awaitable[int]],
    ) -> None:
        self.sockets = ListeningSockets(settings)
        self.admin = AdminSocket()
        self.pid_file = PidFile(settings.pid_file)
        self.predecessor = predecessor
        self.is_failed = False
        self._settings = settings
        self._agent = agent
        self._static = static
        self._image = image
        self._drain = drain
        self._inheritance = Inheritance([])
        self._upgrade = Upgrade(command, settings.upgrade_timeout_s, self._describe, self._hand_over)

    # -- taking over ------------------------------------------------------------------------------------

    async def bind(self) -> None:
        """Bind what is listened on, or take it from the predecessor. BindError, HandoverError."""
        if self.predecessor is not None:
            await self.predecessor.receive()
            self._inheritance = Inheritance(self.predecessor.sockets())
            self._restore(self.predecessor.handover)
        try:
            before = None if self.predecessor is None else self.predecessor.handover.quic
            self.sockets.bind(self._inheritance, before)
            self.admin.bind(self._settings.admin, self._inheritance)
        finally:
            self._inheritance.close()

    def _restore(self, handover: Handover) -> None:
        self.is_failed = handover.is_failed
        if self._agent is not None:
            self._agent.keeps_checkpoint = False
        if self._static is not None:
            added = [(entry.endpoint, entry.address, entry.weight) for entry in handover.added]
            try:
                self._static.restore(added, handover.removed)
            except ValueError as refusal:
                _log.warning("what was changed by hand is not all kept: %s", refusal)

    def sessions(self) -> tuple[tuple[bytes, ...], tuple[SessionEntry, ...], tuple[str, ...]]:
        """Return keys and sessions that a predecessor had of a table of its own, and those that ended lately."""
        if self.predecessor is None:
            return (), (), ()
        handover = self.predecessor.handover
        return tuple(handover.session_keys), tuple(handover.sessions), tuple(handover.ended)

    async def know_enough(self, monitor: HealthMonitor, is_over: Callable[[], bool]) -> None:
        """Wait for the table, and for which replicas are ill; RuntimeError when there is no way on."""
        assert self.predecessor is not None
        while self._agent is not None and not self._agent.has_table:  # the predecessor's limit of time holds
            await asyncio.sleep(LOOK_S)
            if is_over() or self.predecessor.is_gone:
                raise RuntimeError("there is no table to serve from")
        ends_s = time.monotonic() + FIRST_CHECKS_S
        while not monitor.has_checked_all() and time.monotonic() < ends_s:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def take_over(self) -> None:
        """Say that all workers accept, and own what only one may once the other has let go of it, or is gone."""
        assert self.predecessor is not None
        await self.predecessor.ready(self._inheritance.taken)
        self.sockets.own()
        self.admin.own()
        if self._agent is not None:
            self._agent.keeps_checkpoint = True
        self._upgrade.note_success(self.predecessor.handover.pid)

    def refuse(self, reason: str) -> None:
        """Tell the predecessor, if there is one, why this process does not take over."""
        if self.predecessor is not None:
            self.predecessor.refuse(reason)

    # -- handing over -----------------------------------------------------------------------------------

    def upgrade(self, *, is_serving: bool) -> str:
        """Begin to start a successor; return why not, which changes nothing."""
        return self._upgrade.begin(is_serving, len(self._older()))

    async def abort(self, reason: str) -> None:
        """Give an upgrade up that is not ready yet."""
        await self._upgrade.abort(reason)

    @property
    def is_handed_over(self) -> bool:
        """Whether a successor serves in this daemon's place."""
        return self._upgrade.is_handed_over

    async def _describe(self) -> Handover:
        """Return what a successor is told; the newest table is on disk for it."""
        if self._agent is not None:
            await self._agent.save_now()
        added, removed = ([], []) if self._static is None else self._static.by_hand()
        return Handover(
            version=VERSION,
            pid=os.getpid(),
            generation=self._generation,
            sockets=[*self.sockets.described(), *self.admin.described()],
            older=self._older(),
            is_failed=self.is_failed,
            added=[AddedReplica(*entry) for entry in added],
            removed=removed,
            session_keys=list(self._image.session_keys) if self._static is not None else [],
            sessions=list(self._image.sessions.values()) if self._static is not None else [],
            ended=list(self._image.ended_sessions),
            quic=self.sockets.quic_handover(),
        )

    async def _hand_over(self, successor: Successor, ready: Ready) -> int:
        """Let go of everything and drain; return how many requests were cut. The successor accepts already."""
        if self._agent is not None:
            await self._agent.retire()
        taken = set(ready.taken)
        self.sockets.disown(taken)
        self.admin.disown(taken)
        notify(f"MAINPID={successor.pid}")
        successor.tell(Yours())
        return await self._drain(successor.tell)

    # -- what is known of it ----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return which generation this is, and how the last upgrade went."""
        before, upgrade = self.predecessor, self._upgrade
        return {
            "generation": self._generation,
            "upgrading": upgrade.is_under_way,
            "upgrade_failures": upgrade.failures,
            "last_upgrade": upgrade.last,
            "predecessor": None
            if before is None
            else {"pid": before.handover.pid, "draining": not before.is_gone, "cut": before.cut},
        }

    def close(self) -> None:
        """Close all of it here, and remove the files that are this process's."""
        self.sockets.close()
        self.admin.close()
        self.pid_file.remove()
        if self.predecessor is not None:
            self.predecessor.close()

    @property
    def _generation(self) -> int:
        return 1 if self.predecessor is None else self.predecessor.handover.generation + 1

    def _older(self) -> list[int]:
        """Return the processes of generations before this one that still drain."""
        before = self.predecessor
        if before is None:
            return []
        return [pid for pid in (*before.handover.older, before.handover.pid) if is_running(pid)]
