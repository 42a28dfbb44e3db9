"""A clock with a tick each few hundred microseconds, for an event loop whose timers count milliseconds.

libuv rounds timers to whole milliseconds, which an open loop at 2,000 requests a second cannot use:
the rounding would be most of the latency. A timerfd (timerfd_create(2)) is exact and the loop waits
on it like on a socket. Python has it as `os.timerfd_create` from 3.13; before, through ctypes.
Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import os

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are defined as these


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


class Ticker:
    """A file descriptor that becomes readable each `interval_s` seconds, from one interval from now on."""

    def __init__(self, interval_s: float) -> None:
        if interval_s <= 0:
            raise ValueError("an interval is longer than nothing")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = int(self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        seconds, nanoseconds = divmod(max(1, round(interval_s * 1e9)), 1_000_000_000)
        period = _TimeSpec(seconds, nanoseconds)
        spec = _TimerSpec(period, period)
        if self._libc.timerfd_settime(self.fd, 0, ctypes.byref(spec), None) != 0:
            os.close(self.fd)
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def ticks(self) -> int:
        """Ticks since the last call; 0 when there was none."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Stop ticking and give the descriptor back."""
        os.close(self.fd)
