"""The ways by which processes of this host pass QUIC datagrams on to each other, and what they prove it with.

One Unix datagram pair for each worker, whose sending end all workers have; one more (`NEXT`) that a successor
reads, for what belongs to it or what it has to decide on. A daemon that takes over gets the sending ends of its
predecessor, and of those before that still drain, and the daemon's secret. `incarnation` is one more than the
predecessor's, or than that of a daemon that was killed, where the state directory knows it, or random: ids of a
daemon before this one must pass neither for its own nor for its successor's.

The supervisor keeps both ends, so that a worker's replacement reads on; when it drains it lets go, and the end of a
worker is the end of its way.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from router.config.quic_secret import keep_incarnation, load_secret, next_incarnation
from router.edge.quic_forwarding import NEXT, make_pair
from router.handover import HandedSocket, QuicHandover

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.listening import Inheritance

FLAG = "quic-way"  # in the place of a listener's flag, among the sockets that are handed over
_TO, _FROM = "to", "from"


class Ways:
    """Made once the daemon knows whether it has a predecessor that serves QUIC."""

    def __init__(self, settings: Settings, inherited: Inheritance, before: QuicHandover | None) -> None:
        self._workers = settings.workers
        self._receivers: list[socket.socket] = []
        self._senders: dict[tuple[int, int], socket.socket] = {}
        self._from_predecessor: socket.socket | None = None
        for entry, sock in inherited.take_all(FLAG):
            kind, incarnation, place = entry.address.split()
            if kind == _FROM:
                self._from_predecessor = sock
            else:
                self._senders[int(incarnation), int(place)] = sock
        if before is None:
            self.secret = load_secret(settings.state_dir)
            self.incarnation = next_incarnation(settings.state_dir)
        else:
            self.secret = before.secret
            self.incarnation = (before.incarnation + 1) & 0xFF
        keep_incarnation(settings.state_dir, self.incarnation)
        for worker in range(settings.workers):
            self._add(worker)
        self._next = self._add(NEXT)

    def _add(self, worker: int) -> socket.socket:
        receiving, self._senders[self.incarnation, worker] = make_pair()
        self._receivers.append(receiving)
        return receiving

    def receivers(self, worker: int) -> list[socket.socket]:
        """Return what a worker reads: its own way, and the first one also what a predecessor passes on."""
        own = [self._receivers[worker]]
        return own if worker or self._from_predecessor is None else [*own, self._from_predecessor]

    def senders(self) -> list[tuple[tuple[int, int], socket.socket]]:
        """Return the ways to all processes, by incarnation and worker."""
        return list(self._senders.items())

    def handover(self) -> QuicHandover:
        """Return what a successor is told beside the sockets."""
        return QuicHandover(self.secret, self.incarnation)

    def described(self) -> list[HandedSocket]:
        """Return the sockets that a successor is given; ways to processes that have ended are left out."""
        found = [self._entry(self._next, _FROM, self.incarnation, NEXT)]
        for (incarnation, worker), sock in self._senders.items():
            if worker != NEXT and _is_read(sock):
                found.append(self._entry(sock, _TO, incarnation, worker))
        return found

    def _entry(self, sock: socket.socket, kind: str, incarnation: int, worker: int) -> HandedSocket:
        return HandedSocket(sock.fileno(), FLAG, f"{kind} {incarnation} {worker}", int(sock.type))

    def close(self) -> None:
        """Close the supervisor's copies."""
        for sock in (*self._receivers, *self._senders.values()):
            sock.close()
        if self._from_predecessor is not None:
            self._from_predecessor.close()
        self._from_predecessor = None
        self._receivers = []
        self._senders = {}


def _is_read(sock: socket.socket) -> bool:
    """Whether the other end is still open: an empty datagram is dropped by who reads it."""
    try:
        sock.send(b"", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
