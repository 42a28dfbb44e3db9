"""The way of robots' telemetry to the operator's own collector: a datagram for each, over UDP or a Unix socket.

One system call a datagram, which waits for nothing: what is not taken at once is dropped, and who handed it over
counts it. A name is looked up again now and then while there is something to send, so that a collector may move;
soon where nobody listens, for the next of its addresses. A Unix socket's path is looked up by the kernel each time,
so that it may begin anew. Imports no protocol.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from router.transport.tasks import spawn

if TYPE_CHECKING:
    from router.transport.udp import Address
    from router.walltime import WallTime

_log = logging.getLogger("router.robots")

LOOK_UP_S: Final = 30.0
"""Between two times that a collector's name is looked up."""
REFUSED_S: Final = 2.0
"""As long, once the kernel says that nobody listens."""
MAX_AUTHORITY_BYTES: Final = 128
"""Of the name that stands beside each payload: what a robot asked for may be a thousand times its telemetry."""


_encoder: Final = msgspec.msgpack.Encoder()


class RobotCollector:
    """One worker's. `port` 0: `where` is the path of a Unix datagram socket.

    `sequence` is the robot's own: gaps are what was lost on the way.
    """

    __slots__ = ("_is_refused", "_look_up_s", "_port", "_sock", "_task", "_turn", "_walltime", "_where")

    def __init__(self, where: str, port: int, walltime: WallTime) -> None:
        self._where = where
        self._port = port
        self._walltime = walltime
        self._sock: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._look_up_s = 0.0
        self._is_refused = False  # since the last look-up
        self._turn = 0  # which of the name's addresses, of those that take a socket
        if port:
            self._look_up(asyncio.get_running_loop().time())
        else:
            self._sock = _socket(socket.AF_UNIX)

    def take(self, session: str, authority: bytes, sequence: int, payload: bytes, now: float) -> bool:
        """Send one; False if it was not taken."""
        if self._port and now >= self._look_up_s:
            self._look_up(now)
        sock = self._sock
        if sock is None:
            return False
        name = authority[:MAX_AUTHORITY_BYTES].decode("ascii", "replace")
        told = {
            "session": session, "authority": name, "sequence": sequence,
            "received_unix_us": int(self._walltime.at(now) * 1e6), "payload": payload,
        }  # fmt: skip
        data = _encoder.encode(told)
        try:
            if self._port:
                sock.send(data)
            else:
                sock.sendto(data, self._where)
        except ConnectionRefusedError:  # nobody there: an earlier one was lost, and this one with it
            if self._port and not self._is_refused:
                self._is_refused = True
                self._look_up_s = min(self._look_up_s, now + REFUSED_S)
            return False
        except OSError:  # no room, no way, too large: telemetry may be lost
            return False
        return True

    def close(self) -> None:
        """Let the socket go, for good."""
        self._look_up_s = float("inf")
        if self._task is not None:
            self._task.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _look_up(self, now: float) -> None:
        self._look_up_s = now + LOOK_UP_S
        if self._task is None or self._task.done():
            self._task = spawn(self._connect(), "where robots' telemetry goes")

    async def _connect(self) -> None:
        """Send to where the name leads now."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._where, self._port, type=socket.SOCK_DGRAM)
            self._turn += self._is_refused
            self._is_refused = False
            sock = self._open([(int(one[0]), one[4]) for one in found])
        except (OSError, UnicodeError) as failure:  # UnicodeError: of a name that is none
            _log.warning("telemetry of robots finds no way to %s port %d: %s", self._where, self._port, failure)
            return
        if self._sock is not None:
            self._sock.close()
        self._sock = sock

    def _open(self, found: list[tuple[int, Address]]) -> socket.socket:
        """Return a socket that leads to the address whose turn it is, or to the next that there is a way to.

        A new one each time: one that was connected keeps the address of ours that led to the old place, from which
        there may be no way to the new one. To connect UDP sends nothing; that nobody is there is told later.
        """
        last = OSError("it has no address")
        for _ in found:
            family, address = found[self._turn % len(found)]
            try:
                sock = _socket(family)
                try:
                    sock.connect(address)
                except OSError:
                    sock.close()
                    raise
            except OSError as failure:
                last = failure
                self._turn += 1
            else:
                return sock
        raise last


def _socket(family: int) -> socket.socket:
    sock = socket.socket(socket.AddressFamily(family), socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock
