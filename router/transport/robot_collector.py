"""The way of robots' telemetry to the operator's own collector: a datagram for each, over UDP or a Unix socket.

One system call a datagram, which waits for nothing: what is not taken at once is dropped, and who handed it over
counts it. A name is looked up again now and then while there is something to send, so that a collector may move; a
Unix socket's path is looked up by the kernel each time, so that it may begin anew. Imports no protocol.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from router.transport.tasks import spawn

if TYPE_CHECKING:
    from router.walltime import WallTime

_log = logging.getLogger("router.robots")

LOOK_UP_S: Final = 30.0
"""Between two times that a collector's name is looked up."""
MAX_AUTHORITY_BYTES: Final = 128
"""Of the name that stands beside each payload: what a robot asked for may be a thousand times its telemetry."""


_encoder: Final = msgspec.msgpack.Encoder()


class RobotCollector:
    """One worker's. `port` 0: `where` is the path of a Unix datagram socket.

    `sequence` is the robot's own: gaps are what was lost on the way.
    """

    __slots__ = ("_look_up_s", "_port", "_sock", "_task", "_walltime", "_where")

    def __init__(self, where: str, port: int, walltime: WallTime) -> None:
        self._where = where
        self._port = port
        self._walltime = walltime
        self._sock: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._look_up_s = 0.0
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
        except OSError:  # no room, nobody there, too large: telemetry may be lost
            return False
        return True

    def close(self) -> None:
        """Let the socket go."""
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
            family, _, _, _, address = found[0]
            sock = self._sock
            if sock is None or sock.family != family:
                if sock is not None:
                    sock.close()
                self._sock = sock = _socket(family)
            sock.connect(address)  # of UDP: nothing is sent, but that nobody is there is told
        except (OSError, UnicodeError) as failure:  # UnicodeError: of a name that is none
            _log.warning("telemetry of robots finds no way to %s port %d: %s", self._where, self._port, failure)


def _socket(family: int) -> socket.socket:
    sock = socket.socket(socket.AddressFamily(family), socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock
