"""What the sidecar's life needs from others: a registry, a relay, an engine. Types only.

Who implements them stands elsewhere: the registry writes to the store, the relay is a router worker in front of
one replica, the engine is `EngineProcess` or `ExternalEngine`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class State(StrEnum):
    """A replica's state as the store spells it."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    DOWN = "DOWN"


class StoreUnavailable(Exception):  # noqa: N818 - a condition that passes, not a fault of the caller
    """The store cannot be reached now. Whether the write took effect is not known."""


class Registry(Protocol):
    """The replica's row in the store, under the node's lease.

    Calls never overlap. A call may be cancelled; a later one then decides what the row says. Each may raise
    `StoreUnavailable`; it is then made again, with whatever is wanted by that time.
    """

    async def register(self, generation: int) -> None:
        """Write the row, in state STARTING. Writing the same generation twice is harmless."""

    async def set_state(self, state: str) -> None:
        """Change the state of the row last registered."""

    async def remove(self) -> None:
        """Delete the row. A row that is not there is no error."""


class Relay(Protocol):
    """What clients of the replica talk to."""

    async def open(self) -> None:
        """Listen; OSError if it cannot. Called once, before the engine is started and the row is written."""

    async def drain(self, grace_s: float) -> int:
        """Refuse new requests, let those in flight finish, cut the rest after `grace_s`; return how many were cut.

        May be cancelled; `drain(0)` then cuts at once and counts.
        """

    def close(self) -> None:
        """Close everything at once; the last call. Harmless when it was never opened."""

    def in_flight(self) -> int:
        """Return the number of requests under way."""


class Engine(Protocol):
    """The inference server, one incarnation after another."""

    @property
    def generation(self) -> int:
        """Number of the incarnation; grows with each `start`."""

    @property
    def restarts(self) -> int:
        """How often it was started after the first time."""

    def back_off_s(self) -> float:
        """Return how long to wait before the next `start`; grows while it dies young."""

    async def start(self) -> None:
        """Begin a new incarnation; OSError if that is impossible. Only when none runs."""

    async def exited(self) -> str:
        """Wait for this incarnation's end as a process; return what is known of it. May never return."""

    async def stop(self, grace_s: float) -> bool:
        """Ask it to end, force it after `grace_s`; return whether it went by itself. Nothing is left running.

        Harmless when nothing runs. May be cancelled and called again.
        """
