"""Resident memory of processes, read from the kernel: the most they had since the last look.

`VmHWM` of /proc/PID/status is the peak of what is resident; writing 5 to /proc/PID/clear_refs sets it to what is
resident now (Documentation/filesystems/proc.rst). Both are zero or nothing for a process that is gone or is
somebody else's. Imports `cpu`.
"""

from __future__ import annotations

import contextlib

from loadtest.cpu import PROC


def forget_peaks(pids: list[int]) -> None:
    """Let the peak of each process begin anew."""
    for pid in pids:
        with contextlib.suppress(OSError):
            (PROC / str(pid) / "clear_refs").write_bytes(b"5")


def peaks_bytes(pids: list[int]) -> dict[int, int]:
    """Peak resident bytes per process of `pids` since `forget_peaks`."""
    return {pid: _peak_bytes(pid) for pid in pids}


def _peak_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
