"""The daemon's listening sockets: an address's are shared out among the workers, a Unix socket is one for all.

The supervisor binds and keeps them, so that a worker's successor, and its own, accept on the same ones. A worker
knows them by their order: plain, TLS, QUIC, and the ways to other processes that QUIC needs (`quic_ways`).

Invariant: a TCP socket that has ever listened is closed only when its address is no longer served. Closing one of
several that share a port by SO_REUSEPORT would reset what waits in its queue, so with fewer workers than sockets a
worker accepts on several; with more, sockets are added, which begin to listen when their worker accepts. A UDP
socket gets datagrams from the moment it is bound: one that is added is bound by its worker when that reads.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from router.config.addresses import UnixSocket, bind, bind_udp, parse_listen, unix_path
from router.config.listeners import portal_target, unix_mode
from router.control import QuicStart
from router.handover import HandedSocket
from router.quic_ways import Ways

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.handover import QuicHandover

BACKLOG = 4_096


class BindError(Exception):
    """A listening address cannot be had."""


class Bound:
    """One address: what it was bound for, its sockets, its file if it is a Unix socket's."""

    __slots__ = ("address", "file", "flag", "is_quic", "is_tls", "shown", "sockets")

    def __init__(
        self, flag: str, address: str, sockets: list[socket.socket], file: UnixSocket | None = None
    ) -> None:
        self.flag = flag
        self.address = address
        self.sockets = sockets
        self.file = file
        self.is_tls = flag == "--listen-tls"
        self.is_quic = flag == "--listen-quic"
        self.shown = address if file is not None else self._url(sockets[0])

    def _url(self, sock: socket.socket) -> str:
        host, _ = parse_listen(self.address, self.flag)
        shown = f"[{host}]" if ":" in host else host
        scheme = "quic" if self.is_quic else "https" if self.is_tls else "http"
        return f"{scheme}://{shown}:{sock.getsockname()[1]}"

    def of_worker(self, index: int, workers: int) -> list[socket.socket]:
        """Return the sockets on which one of so many workers accepts: each socket has a worker, each worker one."""
        return self.sockets[index::workers] or [self.sockets[index % len(self.sockets)]]

    def described(self) -> list[HandedSocket]:
        """Return what a successor is told of them."""
        path = unix_path(self.address, self.flag)
        inode = self.file.inode if self.file is not None else 0
        return [
            HandedSocket(sock.fileno(), self.flag, self.address, int(sock.type), path, inode)
            for sock in self.sockets
        ]


class Inheritance:
    """Sockets that a predecessor hands over; what nobody takes is closed by `close`."""

    def __init__(self, handed: list[tuple[HandedSocket, socket.socket]]) -> None:
        self._left = list(handed)
        self.taken: list[int] = []

    def take_all(self, flag: str) -> list[tuple[HandedSocket, socket.socket]]:
        """Return every socket that was handed over under a flag."""
        found = [pair for pair in self._left if pair[0].flag == flag]
        for pair in found:
            self._left.remove(pair)
            self.taken.append(pair[0].fd)
        return found

    def take(
        self, flag: str, address: str, kind: int = socket.SOCK_STREAM
    ) -> tuple[list[socket.socket], HandedSocket | None]:
        """Return the sockets of an address, and one of their descriptions; none of a new one.

        First by the words of the settings, since port 0 means the one that was chosen; then by where they are
        bound, so that an address may be written in another way, or change from plain to TLS.
        """
        left = [pair for pair in self._left if pair[1].type == kind]
        same = [pair for pair in left if (pair[0].flag, pair[0].address) == (flag, address)]
        if not same:
            wanted = _names(flag, address)
            same = [pair for pair in left if wanted and _name(pair[1]) in wanted]
        same = [pair for pair in same if _name(pair[1]) == _name(same[0][1])]  # port 0 may stand there twice
        for pair in same:
            self._left.remove(pair)
            self.taken.append(pair[0].fd)
        return [sock for _, sock in same], same[0][0] if same else None

    def close(self) -> None:
        """Close this process's copies of what nobody took."""
        for _, sock in self._left:
            sock.close()
        self._left.clear()


class ListeningSockets:
    """Bound by `bind`. `shown` are the addresses as URLs, `by_worker` each worker's sockets.

    `tls_count` says for each worker how many of them speak TLS, `quic` what it is told of those of QUIC, if any.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bound: list[Bound] = []
        self.shown: list[str] = []
        self.by_worker: list[list[socket.socket]] = []
        self.tls_count: list[int] = []
        self.quic: list[QuicStart | None] = []
        self.ways: Ways | None = None

    def bind(self, inherited: Inheritance, before: QuicHandover | None = None) -> None:
        """Bind every address of the settings that is not inherited. BindError names the flag.

        `before`: what a predecessor that serves QUIC says of it.
        """
        settings = self._settings
        for address in settings.addresses():
            self._bind("--listen", address, inherited)
        for address in settings.listen_tls:
            self._bind("--listen-tls", address, inherited)
        for address in settings.listen_quic:
            self._bind_quic("--listen-quic", address, inherited)
        self.shown = [bound.shown for bound in self._bound]
        if settings.listen_quic:
            self.ways = Ways(settings, inherited, before)
        workers = settings.workers
        for index in range(workers):
            shares = [(bound, bound.of_worker(index, workers)) for bound in self._bound]
            self.by_worker.append([sock for _, share in shares for sock in share])
            self.tls_count.append(sum(len(share) for bound, share in shares if bound.is_tls))
            self.quic.append(self._quic_start(index, [pair for pair in shares if pair[0].is_quic]))

    def _quic_start(self, index: int, shares: list[tuple[Bound, list[socket.socket]]]) -> QuicStart | None:
        """Add the ways to a worker's sockets, and return what it is told of all this."""
        ways = self.ways
        if ways is None:
            return None
        receivers, senders = ways.receivers(index), ways.senders()
        self.by_worker[index] += [*receivers, *(sock for _, sock in senders)]
        where = [bound.sockets[0].getsockname()[:2] for bound, share in shares for _ in share]
        portal = portal_target(self._settings.quic_portal) if self._settings.quic_portal else None
        keys = [key for key, _ in senders]
        return QuicStart(where, len(receivers), keys, ways.secret, ways.incarnation, portal)

    def alt_svc(self) -> bytes:
        """Return what clients over TLS are told of HTTP/3 (RFC 7838, RFC 9114 §3.1); empty without any."""
        ports = [bound.sockets[0].getsockname()[1] for bound in self._bound if bound.is_quic]
        return b'h3=":%d"; ma=86400' % ports[0] if ports else b""

    def own(self) -> None:
        """Take over the files of inherited Unix sockets: their maker removes them no more."""
        for bound in self._bound:
            if bound.file is not None:
                bound.file.own(unix_mode(self._settings))

    def described(self) -> list[HandedSocket]:
        """Return what a successor is told."""
        ways = [] if self.ways is None else self.ways.described()
        return [*(entry for bound in self._bound for entry in bound.described()), *ways]

    def quic_handover(self) -> QuicHandover | None:
        """Return what a successor is told of QUIC beside the sockets."""
        return None if self.ways is None else self.ways.handover()

    def disown(self, taken: set[int]) -> None:
        """Leave the files of the sockets that a successor took to it."""
        for bound in self._bound:
            if bound.file is not None and bound.file.sock.fileno() in taken:
                bound.file.disown()

    def close(self) -> None:
        """Close all of them here, and remove the files of Unix sockets: who connects is refused at once.

        Where a successor took them only the copies are closed.
        """
        for bound in self._bound:
            for sock in bound.sockets:
                sock.close()
            if bound.file is not None:
                bound.file.remove()
        self._bound.clear()
        for sockets in self.by_worker:
            sockets.clear()
        if self.ways is not None:
            self.ways.close()
            self.ways = None

    def _bind(self, flag: str, address: str, inherited: Inheritance) -> None:
        path = unix_path(address, flag)
        sockets, entry = inherited.take(flag, address)
        if path:
            self._bound.append(Bound(flag, address, *_unix(path, flag, unix_mode(self._settings), sockets, entry)))
            return
        host, port = parse_listen(address, flag)
        try:
            if not sockets:
                # Else a second router would share the port unasked.
                bind(host, port, reuse_port=False).close()
                for _ in range(self._settings.workers):
                    sockets.append(bind(host, port, reuse_port=True))
                    sockets[-1].listen(BACKLOG)
                    port = sockets[-1].getsockname()[1]  # port 0 is chosen once and shared
            port = sockets[0].getsockname()[1]
            while len(sockets) < self._settings.workers:
                sockets.append(bind(host, port, reuse_port=True))
        except OSError as failure:
            for sock in sockets:
                sock.close()
            raise BindError(f"{flag} {address}: {failure.strerror or failure}") from None
        self._bound.append(Bound(flag, address, sockets))


    def _bind_quic(self, flag: str, address: str, inherited: Inheritance) -> None:
        host, port = parse_listen(address, flag)
        sockets, _ = inherited.take(flag, address, socket.SOCK_DGRAM)
        is_new = not sockets
        try:
            if is_new:
                # Else a second router would share the port unasked.
                bind_udp(host, port, reuse_port=False).close()
                sockets.append(bind_udp(host, port, reuse_port=True))
            port = sockets[0].getsockname()[1]  # port 0 is chosen once and shared
            while len(sockets) < self._settings.workers:
                sockets.append(bind_udp(host, port, reuse_port=True, is_bound=is_new))
        except OSError as failure:
            for sock in sockets:
                sock.close()
            raise BindError(f"{flag} {address}: {failure.strerror or failure}") from None
        self._bound.append(Bound(flag, address, sockets))


class AdminSocket:
    """The admin listener's one socket: TCP, Unix, or none. `shown` is its address as a URL, empty for none."""

    def __init__(self) -> None:
        self._bound: Bound | None = None
        self.shown = ""

    def bind(self, where: str, inherited: Inheritance) -> None:
        """Bind it unless it is inherited. BindError names the flag."""
        if where == "none":
            return
        path = unix_path(where, "--admin")
        sockets, entry = inherited.take("--admin", where)
        if path:
            self._bound = Bound("--admin", where, *_unix(path, "--admin", 0o600, sockets, entry))
        else:
            host, port = parse_listen(where, "--admin")
            try:
                sockets = sockets or [bind(host, port, reuse_port=False)]
            except OSError as failure:
                raise BindError(f"--admin {where}: {failure.strerror or failure}") from None
            self._bound = Bound("--admin", where, sockets)
        self.shown = self._bound.shown

    def accepting(self) -> list[socket.socket]:
        """Return copies for a listener, which closes what it is given."""
        return [] if self._bound is None else [sock.dup() for sock in self._bound.sockets]

    def own(self) -> None:
        """See `ListeningSockets.own`."""
        if self._bound is not None and self._bound.file is not None:
            self._bound.file.own(0o600)

    def described(self) -> list[HandedSocket]:
        """Return what a successor is told."""
        return [] if self._bound is None else self._bound.described()

    def disown(self, taken: set[int]) -> None:
        """See `ListeningSockets.disown`."""
        if self._bound is not None and self._bound.file is not None and self._bound.file.sock.fileno() in taken:
            self._bound.file.disown()

    def close(self) -> None:
        """Close it here, and remove its file."""
        if self._bound is None:
            return
        for sock in self._bound.sockets:
            sock.close()
        if self._bound.file is not None:
            self._bound.file.remove()
        self._bound = None


def _unix(
    path: str, flag: str, mode: int, sockets: list[socket.socket], entry: HandedSocket | None
) -> tuple[list[socket.socket], UnixSocket]:
    """Return one socket that all workers accept on, since Unix sockets cannot share a path, and its file."""
    if sockets and entry is not None:
        return sockets, UnixSocket.inherited(path, sockets[0], entry.inode)
    try:
        file = UnixSocket(path, mode)
    except OSError as failure:
        raise BindError(f"{flag} unix:{path}: {failure.strerror or failure}") from None
    file.sock.listen(BACKLOG)
    return [file.sock], file


def _name(sock: socket.socket) -> object:
    name = sock.getsockname()
    return os.fsdecode(name) if isinstance(name, bytes) else name[:2] if isinstance(name, tuple) else name


def _names(flag: str, address: str) -> set[object]:
    """Return what a socket of this address would be called; nothing for port 0, which is any."""
    path = unix_path(address, flag)
    if path:
        return {path}
    host, port = parse_listen(address, flag)
    if not port:
        return set()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return set()
    return {name[:2] for *_, name in found[:1]}
