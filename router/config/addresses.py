"""Listening addresses: HOST:PORT and unix:PATH, and how each is bound."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from typing import Any

from router.config.static import ConfigError
from router.transport.sockets import keep_alive

UNIX = "unix:"
UNIX_PROBE_S = 1.0  # for whoever may listen on a socket's path already


def parse_listen(address: str, flag: str) -> tuple[str, int]:
    """Split HOST:PORT; IPv6 in brackets, port 0 for any free one."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"{flag}: {address!r} is not HOST:PORT")
    return host, int(port)


def unix_path(address: str, flag: str) -> str:
    """Return the path of unix:PATH, empty for any other address."""
    if not address.startswith(UNIX):
        return ""
    path = address.removeprefix(UNIX)
    if not path or "\0" in path or len(os.fsencode(path)) > 107:  # what sockaddr_un has room for
        raise ConfigError(f"{flag}: {address!r} is not unix:PATH with a path of 1 to 107 bytes")
    return path


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Return a bound, not yet listening TCP socket; OSError says why not."""
    sock, where = _make(host, port, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keep_alive(sock)  # accepted connections inherit it
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def bind_udp(host: str, port: int, *, reuse_port: bool, is_bound: bool = True) -> socket.socket:
    """Return a UDP socket, bound unless that is left to who reads it; OSError says why not."""
    sock, where = _make(host, port, socket.SOCK_DGRAM)
    try:
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_bound:
            sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _make(host: str, port: int, kind: int) -> tuple[socket.socket, Any]:
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, proto)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock, where


class UnixSocket:
    """A bound, not yet listening Unix socket and its file, which `remove` takes away.

    One that came from a predecessor is `inherited`: the file is the other's until `own`.
    """

    __slots__ = ("_is_owned", "_path", "inode", "sock")

    def __init__(self, path: str, mode: int = 0o600) -> None:
        """Bind it for users that `mode` lets in. A socket nobody listens on is replaced; OSError says why not."""
        self._path = path
        self._is_owned = True
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _clear(path)
            mask = os.umask(0o177)
            try:
                self.sock.bind(path)
            finally:
                os.umask(mask)
            if mode != 0o600:
                os.chmod(path, mode)  # noqa: PTH101
            self.inode = os.stat(path).st_ino  # noqa: PTH116
        except OSError:
            self.sock.close()
            raise

    @classmethod
    def inherited(cls, path: str, sock: socket.socket, inode: int) -> UnixSocket:
        """Return one that another process made and that this one has now, too."""
        found = cls.__new__(cls)
        found._adopt(path, sock, inode)  # noqa: SLF001 - its own class
        return found

    def _adopt(self, path: str, sock: socket.socket, inode: int) -> None:
        self._path, self._is_owned, self.inode, self.sock = path, False, inode, sock

    def own(self, mode: int) -> None:
        """Take the file over, for users that `mode` lets in; its maker has let go of it."""
        self._is_owned = True
        with suppress(OSError):
            if os.stat(self._path).st_ino == self.inode:  # noqa: PTH116
                os.chmod(self._path, mode)  # noqa: PTH101

    def disown(self) -> None:
        """Leave the file alone from now on: it is a successor's."""
        self._is_owned = False

    def remove(self) -> None:
        """Remove the file, unless it is another's or somebody put another in its place."""
        if not self._is_owned:
            return
        with suppress(OSError):
            if os.stat(self._path).st_ino == self.inode:  # noqa: PTH116
                os.unlink(self._path)  # noqa: PTH108


def _clear(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(UNIX_PROBE_S)
        if other.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):  # EAGAIN: a full queue is somebody's
            raise OSError(errno.EADDRINUSE, "another process listens there")
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
