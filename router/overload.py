"""When a worker has too much to do: how large a share of new requests it refuses, by its loop's lag and its memory.

    lag     a share of 0 at `lag_s`, of 1 at LAG_FULL times that; it begins after LATE_TICKS late ticks in a row,
            since one long pause (a machine that slept) says nothing of load, and ends when the lag is well below
    memory  a share of 0 at MEMORY_FROM of `memory_bytes`, of 1 at all of it; then new connections are refused, too

The larger share counts. It moves in steps, faster up than down, so that it finds the load that can be carried
instead of swinging between all and nothing. Requests under way go on. Pure but for what reads and trims this
process's memory; the owner calls `tick`. Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

LATE_TICKS = 3
LAG_FULL = 3.0
LAG_WEIGHT = 0.3  # of a tick in the smoothed lag
LAG_OVER = 0.5  # of the limit: below it the lag is over
FLOOR = 0.05  # refused until then
RISE, FALL = 0.1, 0.02  # a tick: all in 0.25 s, nothing after 1.25 s
MEMORY_FROM = 0.9
MEMORY_BACK = 0.97  # of the limit: below it connections are taken again
MEMORY_LOOK_S = 1.0
TRIM_GAP_S = 10.0  # between two attempts to give memory back to the system: each takes milliseconds
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class OverloadLimits(msgspec.Struct, frozen=True):
    """What a worker may take on; 0 means no limit. Seconds, bytes, and connections of one client address."""

    lag_s: float = 0.0
    memory_bytes: int = 0
    connections_per_address: int = 0


def read_memory() -> int:
    """Return the bytes of memory that this process has resident."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - each second, on the event loop
        return int(file.read().split()[1]) * _PAGE_BYTES


def release_memory() -> None:
    """Give freed memory back: what the allocator keeps counts as resident."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class Overload:
    """One worker's state: `share` of new requests is to be refused, for `reason`; connections, if it says so."""

    def __init__(
        self,
        limits: OverloadLimits,
        read: Callable[[], int] = read_memory,
        release: Callable[[], None] = release_memory,
    ) -> None:
        self.share = 0.0
        self.reason = ""
        self.refuses_connections = False
        self._limits = limits
        self._read = read
        self._release = release
        self._lag_s = 0.0  # smoothed
        self._late = 0  # ticks in a row
        self._memory_bytes = 0
        self._look_s = 0.0
        self._trim_s = 0.0

    def tick(self, lag_s: float, now: float) -> None:
        """Take notice of one tick, which came `lag_s` too late."""
        by_lag = self._by_lag(lag_s)
        by_memory = self._by_memory(now)
        wanted = max(by_lag, by_memory)
        if wanted >= self.share:
            self.share = min(wanted, self.share + RISE)
        else:
            self.share = max(wanted, self.share - FALL)
        if wanted:
            self.reason = "memory" if by_memory > by_lag else "lag"
        elif not self.share:
            self.reason = ""

    def _by_lag(self, lag_s: float) -> float:
        limit_s = self._limits.lag_s
        if not limit_s:
            return 0.0
        self._lag_s += (lag_s - self._lag_s) * LAG_WEIGHT
        self._late = self._late + 1 if lag_s > limit_s else 0
        is_on = self.reason == "lag"
        if self._lag_s > limit_s and (is_on or self._late >= LATE_TICKS):
            return max(FLOOR, min(1.0, (self._lag_s / limit_s - 1.0) / (LAG_FULL - 1.0)))
        return FLOOR if is_on and self.share and self._lag_s > limit_s * LAG_OVER else 0.0

    def _by_memory(self, now: float) -> float:
        limit = self._limits.memory_bytes
        if not limit:
            return 0.0
        if now >= self._look_s:
            self._look_s = now + MEMORY_LOOK_S
            self._memory_bytes = self._read()
            if self._memory_bytes > limit * MEMORY_FROM and now >= self._trim_s:
                self._trim_s = now + TRIM_GAP_S
                self._release()
                self._memory_bytes = self._read()
            used = self._memory_bytes / limit
            self.refuses_connections = used >= (MEMORY_BACK if self.refuses_connections else 1.0)
        return max(0.0, min(1.0, (self._memory_bytes / limit - MEMORY_FROM) / (1.0 - MEMORY_FROM)))

    def describe(self) -> str:
        """Return what an operator is told; empty when there is nothing to tell."""
        if not self.share and not self.refuses_connections:
            return ""
        if self.reason == "memory" or self.refuses_connections:
            what = f"memory {self._memory_bytes >> 20} of {self._limits.memory_bytes >> 20} MiB"
        else:
            what = f"lag {self._lag_s * 1e3:.0f} ms"
        return f"{what}, {self.share:.0%} of new requests refused"
