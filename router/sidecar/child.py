"""Runs as the engine's process until it becomes the engine: `python -I -S child.py LIFELINE PARENT COMMAND…`.

It sees to it that the engine and all of its process group end with the sidecar, however that ends:

* the engine itself by PR_SET_PDEATHSIG, which outlives exec;
* its children by a guard, a process of the same group that holds the reading end of the pipe LIFELINE. Only the
  sidecar holds the other end, so the pipe ends when the sidecar does, and the guard then kills the group.

The guard is nobody's child (forked twice), so an engine that waits for any child never meets it. Being a
member, it also keeps the group's number from being given away while the sidecar may still signal it. Standard
library only: this runs without the project's packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
CANNOT_RUN = 127  # as a shell says it


def main(lifeline: int, parent: int, command: list[str]) -> NoReturn:
    """Tie the process to its parent and become `command`."""
    _leave_guard(lifeline)
    os.close(lifeline)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    # What Python ignores would be ignored by the engine as well: it is inherited.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the operator's own command, and no shell is wanted
    except OSError as failure:
        sys.stderr.write(f"sidecar: {command[0]}: {failure.strerror}\n")
        sys.stderr.flush()
        os._exit(CANNOT_RUN)


def _leave_guard(lifeline: int) -> None:
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    if os.fork():
        os._exit(0)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    # The engine's output must end with the engine: whoever reads it waits for every holder of the pipe.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.closerange(3, lifeline)
    os.closerange(lifeline + 1, 1_024)
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
