"""The daemon's listening sockets: one for each worker and TCP address, one for all where it is a Unix socket.

The supervisor binds and keeps them, so that a worker's successor accepts on the same ones. Those that speak TLS
come last among a worker's: that is how it knows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config.addresses import UnixSocket, bind, parse_listen, unix_path
from router.config.listeners import unix_mode

if TYPE_CHECKING:
    import socket

    from router.config.settings import Settings

BACKLOG = 4_096


class BindError(Exception):
    """A listening address cannot be had."""


class ListeningSockets:
    """Bound by `bind`. `shown` are the addresses as URLs, `by_worker` each worker's sockets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: list[UnixSocket] = []
        self.shown: list[str] = []
        self.by_worker: list[list[socket.socket]] = [[] for _ in range(settings.workers)]

    def bind(self) -> None:
        """Bind every address of the settings. BindError names the flag."""
        settings = self._settings
        for address in settings.addresses():
            path = unix_path(address, "--listen")
            if path:
                self._bind_unix(path)
            else:
                self._bind_tcp(address, "--listen", "http")
        for address in settings.listen_tls:
            self._bind_tcp(address, "--listen-tls", "https")

    def close(self) -> None:
        """Close all of them here, and remove the files of Unix sockets: who connects is refused at once."""
        for sockets in self.by_worker:
            for sock in sockets:
                sock.close()
            sockets.clear()
        for file in self._files:
            file.remove()
        self._files.clear()

    def _bind_tcp(self, address: str, flag: str, scheme: str) -> None:
        """One socket per worker; the kernel spreads connections over them."""
        host, port = parse_listen(address, flag)
        try:
            bind(host, port, reuse_port=False).close()  # else a second router would share the port unasked
            for sockets in self.by_worker:
                sock = bind(host, port, reuse_port=True)
                sockets.append(sock)
                sock.listen(BACKLOG)
                port = sock.getsockname()[1]  # port 0 is chosen once and shared
        except OSError as failure:
            raise BindError(f"{flag} {address}: {failure.strerror or failure}") from None
        shown = f"[{host}]" if ":" in host else host
        self.shown.append(f"{scheme}://{shown}:{port}")

    def _bind_unix(self, path: str) -> None:
        """One socket that all workers accept on: Unix sockets cannot share a path."""
        self._files.append(bind_unix(path, "--listen", unix_mode(self._settings)))
        sock = self._files[-1].sock
        sock.listen(BACKLOG)
        for sockets in self.by_worker:
            sockets.append(sock)
        self.shown.append(f"unix:{path}")


def bind_unix(path: str, flag: str, mode: int = 0o600) -> UnixSocket:
    """Bind a Unix socket; BindError names the flag."""
    try:
        return UnixSocket(path, mode)
    except OSError as failure:
        raise BindError(f"{flag} unix:{path}: {failure.strerror or failure}") from None
