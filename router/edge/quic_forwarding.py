"""Datagrams that another process of this host has to have: a sibling's, the predecessor's, the successor's.

The kernel spreads datagrams over workers by addresses; a client whose address changes comes to another worker,
which knows by the connection id whose it is. It passes the datagram on over a Unix datagram socket pair that the
supervisor made, with all that the owner needs to handle it as if it had read it itself; the owner answers from its
own UDP socket. Nothing waits here: what the other side has no room for is dropped and counted, as UDP may.

    u8 version, u8 hops, u8 ECN, u8 length of local, of host and of the listener's address; u16 segment, u16 port,
    u32 flow, u32 scope; listener, local, host; the datagrams

No datagram is passed on more than `MAX_HOPS` times, so that two that disagree do not play with it for ever.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.transport.udp import Address

_log = logging.getLogger("router.quic")

VERSION: Final = 1
MAX_HOPS: Final = 4
MAX_READS: Final = 16  # in one wake-up
BUFFER_BYTES: Final = 4 << 20  # asked for, for each process: some 60 reads of 64 KiB
READ_BYTES: Final = 66_560  # 64 KiB of datagrams and what stands before them
NEXT: Final = -1
"""In the place of a worker: whichever of the successor's reads it."""

SENT: Final = 0
FULL: Final = 1
GONE: Final = 2
_HEAD: Final = struct.Struct("!BBBBBBHHII")


@trait
class ForwardReceiver:
    """Who is given what other processes pass on."""

    __slots__ = ()

    def receive_forwarded(
        self, listener: bytes, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int, hops: int
    ) -> None:
        """Take datagrams as if they had been read here, on the socket that is bound to `listener`."""
        raise NotImplementedError

    def received(self) -> None:
        """Learn that this wake-up is over: the place for a flush."""
        raise NotImplementedError


class Forwarding:
    """One worker's ends. `senders` are by (incarnation, worker); the sockets are this object's from now on."""

    __slots__ = ("_loop", "_receiver", "_receivers", "_senders", "malformed")

    def __init__(self, receivers: list[socket.socket], senders: dict[tuple[int, int], socket.socket]) -> None:
        self._receivers = receivers
        self._senders = senders
        self._receiver: ForwardReceiver | None = None
        self._loop = asyncio.get_running_loop()
        self.malformed = 0
        for sock in (*receivers, *senders.values()):
            sock.setblocking(False)

    def listen(self, receiver: ForwardReceiver) -> None:
        """Hand what comes to `receiver`."""
        self._receiver = receiver
        for sock in self._receivers:
            self._loop.add_reader(sock.fileno(), self._on_readable, sock)

    def leads_to(self, incarnation: int, worker: int) -> bool:
        """Whether there is a way to that process; it may have ended."""
        return (incarnation, worker) in self._senders

    def send(
        self,
        incarnation: int,
        worker: int,
        listener: bytes,
        data: bytes,
        segment_bytes: int,
        address: Address,
        local: bytes,
        ecn: int,
        hops: int,
    ) -> int:
        """Pass datagrams on; return what came of it: SENT, FULL or GONE."""
        sock = self._senders.get((incarnation, worker))
        if sock is None:
            return GONE
        host = str(address[0]).encode()
        flow, scope = (int(address[2]), int(address[3])) if len(address) == 4 else (0, 0)
        head = _HEAD.pack(
            VERSION, hops, ecn, len(local), len(host), len(listener), segment_bytes, address[1], flow, scope
        )
        try:
            sock.sendmsg((head + listener + local + host, data))
        except OSError as failure:
            if failure.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.EMSGSIZE):
                return FULL
            return GONE
        return SENT

    def close(self) -> None:
        """Close this process's copies."""
        for sock in self._receivers:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for sock in self._senders.values():
            sock.close()
        self._receivers = []
        self._senders = {}

    def _on_readable(self, sock: socket.socket) -> None:
        receiver = self._receiver
        assert receiver is not None
        for _ in range(MAX_READS):
            try:
                message = sock.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as failure:
                _log.warning("forwarded datagrams cannot be read: %s", failure)
                break
            if message:  # an empty one is a supervisor's, which looks who is still there
                self._take(message, receiver)
        receiver.received()

    def _take(self, message: bytes, receiver: ForwardReceiver) -> None:
        if len(message) < _HEAD.size or message[0] != VERSION:
            self.malformed += 1
            return
        _, hops, ecn, local_bytes, host_bytes, listener_bytes, segment_bytes, port, flow, scope = _HEAD.unpack_from(
            message
        )
        local_at = _HEAD.size + listener_bytes
        host_at = local_at + local_bytes
        data_at = host_at + host_bytes
        if data_at >= len(message):
            self.malformed += 1
            return
        host = message[host_at:data_at].decode("ascii", "replace")
        address: Address = (host, port, flow, scope) if ":" in host else (host, port)
        receiver.receive_forwarded(
            message[_HEAD.size : local_at], message[data_at:], segment_bytes, address, message[local_at:host_at],
            ecn, hops,
        )  # fmt: skip


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return a receiving and a sending end. The short queue of other Unix datagram sockets does not bind a pair."""
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sending.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return receiving, sending
