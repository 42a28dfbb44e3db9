"""CPU time of processes, read from the kernel: what a proxy costs, whatever the noise around it.

`/proc/PID/task/*/schedstat` holds per thread, as field 1, the nanoseconds it ran on a CPU, user and
system together (Documentation/scheduler/sched-stats.rst). The sum over the threads of every process
of a proxy, before and after a window, over the work done in it, is its cost per request. A thread
that ended in between takes its time with it, which none of the compared proxies does under load.
Imports nothing of the project.
"""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def process_cpu_ns(pid: int) -> int:
    """Nanoseconds on a CPU of all living threads of process `pid`; 0 when it is gone."""
    total = 0
    try:
        threads = list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return 0
    for thread in threads:
        try:
            fields = (thread / "schedstat").read_bytes().split()
        except OSError:  # the thread ended between the listing and the reading
            continue
        total += int(fields[0])
    return total


def cpu_ns(pids: list[int]) -> dict[int, int]:
    """Nanoseconds on a CPU per process of `pids`."""
    return {pid: process_cpu_ns(pid) for pid in pids}


def parents() -> dict[int, int]:
    """Parent of every process visible now."""
    found: dict[int, int] = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_bytes()
        except OSError:
            continue
        # pid (command) state ppid …: the command may hold spaces and parentheses, so cut after the last.
        found[int(folder.name)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return found


def process_tree(pid: int) -> list[int]:
    """Process `pid` and its descendants, `pid` first, then each generation in ascending order."""
    above = parents()
    tree = [pid]
    for one in tree:
        tree.extend(sorted(child for child, parent in above.items() if parent == one and child not in tree))
    return tree
