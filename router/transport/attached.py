"""Replicas that dialled us: under which name each is in the table, and which socket of this host leads to it.

A replica behind a NAT keeps a connection of QUIC to the router (`router-attach/1`) and is served through it. Its
address in the table is `http://NAME.attached.alt:80` (names under .alt are no names of DNS, RFC 9476). The worker
that has its connection listens on a Unix socket of that name, and splices what comes there to it; so every worker
of the host, its health checks and a daemon that takes over reach the replica alike, by connecting.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final

from router.transport.codec.attach.control import PUNCH_SUFFIX

SUFFIX: Final = ".attached.alt"
PORT: Final = 80
"""In an address, which has to have one; it means nothing."""
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BACKLOG: Final = 1_024


def is_name(name: str) -> bool:
    """Whether a replica may attach under this name: one label of DNS, lower case."""
    return _NAME.fullmatch(name) is not None


def name_of(host: str) -> str:
    """Return the name that a replica's host attaches under; empty for a host that is dialled."""
    name = host.lower().removesuffix(SUFFIX)
    return name if name != host.lower() and is_name(name) else ""


class AttachedSockets:
    """Where they are: a folder that only this user can enter, the same for all with the daemon's secret."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: as QUIC's; empty: nobody can attach, and nothing is found."""
        digest = hashlib.sha256(b"router attached\0" + secret).hexdigest()[:16]
        self._folder = Path(tempfile.gettempdir(), f"router-{os.getuid()}-{digest}") if secret else None

    def path_of(self, host: str) -> str:
        """Return the path of the socket that leads to a host of the table; empty for one that is dialled.

        There need be none: the replica is then not attached, as connecting says.
        """
        name = name_of(host)
        if not name:
            return ""
        return str((self._folder or Path("/nonexistent")) / name)

    def listen(self, name: str) -> ListeningSocket:
        """Return the socket of a name from now on; who had it before is reached no more. OSError: it cannot be."""
        folder = self._folder
        if folder is None:
            raise FileNotFoundError("QUIC is not listened on")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()  # of itself: somebody else's link may lead to a folder of ours
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} is not ours alone")
        return ListeningSocket(folder / name)

    def clear(self) -> None:
        """Remove all of it: the daemon ends, and has no successor. Killed workers have left their files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


NOWHERE: Final = AttachedSockets(b"")
"""For who serves no QUIC."""


class ListeningSocket:
    """One name's two sockets. Their files are removed by `close`, unless another one has taken their place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inodes: dict[Path, int] = {}
        self.sock = self._bind(path)
        try:
            self.questions = self._bind(path.with_name(path.name + PUNCH_SUFFIX))
        except BaseException:
            self.close()
            self.sock.close()
            raise

    def _bind(self, path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_name(f".{secrets.token_hex(4)}")
        try:
            sock.setblocking(False)
            sock.bind(str(fresh))
            sock.listen(_BACKLOG)
            self._inodes[path] = fresh.stat().st_ino  # nobody else's while the socket is open
            fresh.replace(path)  # in one step: there is no moment without a socket
        except BaseException:
            sock.close()
            fresh.unlink(missing_ok=True)
            raise
        return sock

    @property
    def is_there(self) -> bool:
        """Whether anybody listens under this name."""
        return self._path.exists()

    @property
    def is_ours(self) -> bool:
        """Whether who connects under this name comes here."""
        try:
            return self._path.stat().st_ino == self._inodes.get(self._path)
        except OSError:
            return False

    def close(self) -> None:
        """Remove what is ours, once. The sockets themselves are closed by whom they were given to, and later."""
        inodes, self._inodes = self._inodes, {}
        for path, inode in inodes.items():
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()  # fails while others are in it
