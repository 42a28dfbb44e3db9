"""A client's UDP socket, and the connections on it: to the router, and one to a replica that it led to.

One socket for both, since a NAT lets in what comes to the address from which the router was asked. Datagrams are
told apart by where they come from; STUN's are those of the checks.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from mypy_extensions import trait

from router.transport.udp import DatagramReceiver, UdpCounters, UdpSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.transport.udp import Address


@trait
class PortUser:
    """One connection."""

    __slots__ = ()

    def receive(self, data: bytes, segment_bytes: int, address: Address, ecn: int) -> None:
        """Take datagrams of the other side."""
        raise NotImplementedError

    def received(self) -> None:
        """This wake-up is over: the place for a flush."""
        raise NotImplementedError

    def moved(self) -> None:
        """The socket is another one from now on."""
        raise NotImplementedError


class ClientPort(DatagramReceiver):
    """Open from the first user's `join` to the last one's `leave`."""

    __slots__ = ("_heard", "_users", "counters", "family", "on_stun", "sock")

    def __init__(self, family: int) -> None:
        self.family = family
        self.counters = UdpCounters()
        self.sock: UdpSocket | None = None
        self.on_stun: Callable[[bytes, Address], None] | None = None
        self._users: dict[tuple[str, int], PortUser] = {}
        self._heard: list[PortUser] = []

    def join(self, user: PortUser, address: Address) -> None:
        """Give it what comes from there. OSError: there is no socket, or another user speaks to that address."""
        place = address[0], address[1]
        if self._users.get(place, user) is not user:
            raise OSError(errno.EADDRINUSE, "there is a connection to this address")
        if self.sock is None:
            self.sock = self._open()
        self._users[place] = user

    @property
    def is_shared(self) -> bool:
        """Whether it has more than one user."""
        return len(self._users) > 1

    def leave(self, user: PortUser) -> None:
        """Give it nothing more."""
        for place, known in list(self._users.items()):
            if known is user:
                del self._users[place]
        if not self._users and self.sock is not None:
            self.sock.close()
            self.sock = None

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram."""
        if self.sock is not None:
            self.sock.send([data], len(data), b"", address)

    def rebind(self) -> None:
        """Go on from another socket. May raise OSError, and then nothing has changed."""
        if self.sock is None:
            return
        fresh = self._open()
        self.sock.close()
        self.sock = fresh
        for user in list(self._users.values()):
            user.moved()

    def _open(self) -> UdpSocket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.bind(("::" if self.family == socket.AF_INET6 else "0.0.0.0", 0))  # noqa: S104 - it is a client
            made = UdpSocket(sock, self, self.counters)
        except BaseException:
            sock.close()
            raise
        made.start_reading()
        return made

    # -- for the socket -------------------------------------------------------------------------------

    def receive(
        self, sock: UdpSocket, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int
    ) -> None:
        """Hand datagrams to whom they are from."""
        if data and data[0] <= 3:  # RFC 9443
            if self.on_stun is not None:
                size = segment_bytes or len(data)
                for at in range(0, len(data), size):
                    self.on_stun(data[at : at + size], address)
            return
        user = self._users.get((address[0], address[1]))
        if user is not None:
            user.receive(data, segment_bytes, address, ecn)
            if user not in self._heard:
                self._heard.append(user)

    def received(self) -> None:
        """Have them flush."""
        heard = self._heard
        if heard:
            self._heard = []
            for user in heard:
                user.received()
