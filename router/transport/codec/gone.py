"""The codec of a connection that is gone.

A shell and its codec know each other: one of the two has to let go, or only the collector would find them,
thousands at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.stream import Codec

if TYPE_CHECKING:
    from router.errors import ProxyError


class Gone(Codec):
    """Does nothing, whoever still asks."""

    __slots__ = ()

    def receive(self, data: bytes, now: float) -> None:
        """Drop it."""

    def receive_eof(self, now: float) -> bool:
        """Keep nothing open."""
        return False

    def receive_lost(self, now: float) -> None:
        """It is known."""

    def take_output(self, now: float) -> list[bytes]:
        """Return nothing."""
        return []

    def transport_full(self, full: bool, now: float) -> None:
        """Nobody writes."""

    def next_deadline(self) -> float | None:
        """Return none."""
        return None

    def handle_deadline(self, now: float) -> None:
        """There is none."""

    def drain(self) -> None:
        """It is done."""

    def retire(self, now: float) -> None:
        """It has ended."""

    def cut(self, error: ProxyError) -> None:
        """It is cut."""


GONE: Final = Gone()
