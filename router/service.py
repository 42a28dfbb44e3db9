"""What a service manager is told: the pid file, and systemd's notifications. Both are optional and may fail.

The pid file is the daemon's that serves: a successor writes its own number over it, and who finds another number in
it leaves it alone. Imports nothing of the project.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger("router.supervisor")


class PidFile:
    """The file of --pid-file; an empty path means none."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def write(self) -> None:
        """Say which process serves. A file that cannot be written is a warning."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            new.write_text(f"{os.getpid()}\n")
            new.replace(self._path)  # never half of a number
        except OSError as failure:
            _log.warning("the pid file %s could not be written: %s", self._path, failure.strerror)

    def read(self) -> int | None:
        """Return the number in it; None if there is none."""
        if self._path is None:
            return None
        try:
            number = int(self._path.read_text())
        except (OSError, ValueError):
            return None
        return number if number > 1 else None

    def remove(self) -> None:
        """Remove it if it still names this process."""
        if self._path is not None and self.read() == os.getpid():
            with suppress(OSError):
                self._path.unlink()


def notify(text: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)); else do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as failure:
        _log.warning("systemd could not be told %s: %s", text.partition("\n")[0], failure)


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits for its parent is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
