"""What a policy is to its tier. A trait and not a Protocol, for the reason that `stream` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.routing.load import Replica


@trait
class Chooser:
    """Chooses among the replicas it was made with; never blocks, never allocates per replica."""

    __slots__ = ()

    def choose(self, now: float) -> Replica:
        """Return one replica. The tuple it was made with is never empty."""
        raise NotImplementedError
