"""Which CPU each part of a measurement runs on.

The proxy has a CPU for itself, else its figure contains the generator's cache misses and waits. With
two CPUs the generator and the replica share the other one; from three on each has its own. Pinning
is inherited: a child starts with the affinity of the thread that forks it. Imports nothing of the
project.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pins(msgspec.Struct, frozen=True, kw_only=True):
    """CPU numbers of generator, replica and proxy."""

    generator: list[int]
    replica: list[int]
    proxy: list[int]

    def describe(self) -> str:
        """Return one sentence for the report."""
        if self.generator == self.replica == self.proxy:
            return f"not pinned (CPUs {_join(self.proxy)})"
        if self.generator == self.replica:
            shared = _join(self.replica)
            return f"generator and replica share CPU {shared}, the proxy has CPU {_join(self.proxy)}"
        return (
            f"generator on CPU {_join(self.generator)}, replica on CPU {_join(self.replica)}, "
            f"proxy on CPU {_join(self.proxy)}"
        )


def choose_pins(cpus: set[int], *, pin: bool) -> Pins:
    """Places for the three parts among `cpus`; all of them everywhere when `pin` is off or one CPU is all."""
    ordered = sorted(cpus)
    if not pin or len(ordered) < 2:
        return Pins(generator=ordered, replica=ordered, proxy=ordered)
    if len(ordered) == 2:
        return Pins(generator=ordered[:1], replica=ordered[:1], proxy=ordered[1:])
    return Pins(generator=ordered[:1], replica=ordered[1:2], proxy=ordered[2:3])


@contextmanager
def pinned(cpus: list[int]) -> Iterator[None]:
    """Run the block, and whatever it forks, on `cpus`; then put this thread back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _join(cpus: list[int]) -> str:
    return ",".join(map(str, cpus))
