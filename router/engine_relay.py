"""The sidecar's relay: a supervisor with one worker and a table of one replica, the engine beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.app import Supervisor

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.control import AttachStart


class EngineRelay:
    """Implements `sidecar.ports.Relay`; `supervisor` has the addresses once it is open."""

    def __init__(self, settings: Settings, attach: AttachStart | None = None) -> None:
        self.supervisor = Supervisor(settings, attach=attach, is_sidecar=True)
        self._is_open = False

    async def open(self) -> None:
        """Listen, unless it does already; OSError if that cannot be."""
        if not self._is_open:
            self._is_open = True
            await self.supervisor.start(take_signals=False)

    async def drain(self, grace_s: float) -> int:
        """Let requests finish, at most `grace_s`; return how many were cut."""
        return await self.supervisor.drain_workers(grace_s)

    def close(self) -> None:
        """End at once; `supervisor.close` waits until it is done."""
        self.supervisor.end()

    def in_flight(self) -> int:
        """Return the number of requests under way, as last counted."""
        return self.supervisor.in_flight()
