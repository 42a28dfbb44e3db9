"""What starts and stops replicas, as the autoscaler sees it. Types only.

A launcher starts a replica of a name that it is given; the replica registers itself in the store under that name.
To stop one is to ask it to drain. Both return soon: whether it happens, the store tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

REPLICA_PREFIX = "auto-"
"""Names of replicas that an autoscaler started; others are counted, and left alone."""


class LaunchError(Exception):
    """A replica was not started, or not told to stop; the text says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """One replica to start or to stop; `desired` is how many the endpoint is to have then."""

    endpoint: str
    replica: str
    region: str
    desired: int


class Launcher(Protocol):
    """Starts and stops replicas; see the module."""

    def adopt(self) -> None:
        """Find what an earlier run left behind. Called each time this autoscaler comes on duty."""

    def endpoints(self) -> set[str]:
        """Return the endpoints of which replicas of ours are known to run."""

    def running(self, endpoint: str) -> set[str] | None:
        """Return the replicas of ours that run or are about to; None if only the store can tell."""

    async def start(self, order: Order) -> None:
        """Start a replica; LaunchError."""

    async def stop(self, order: Order) -> None:
        """Ask a replica to drain and end; LaunchError. Asking again must not hurry it."""

    async def close(self, *, stop: bool) -> None:
        """End; with `stop` drain every replica of ours that it knows, and wait for them."""
