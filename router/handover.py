"""What a daemon and its successor say to each other over a socket pair while one takes over from the other.

    predecessor                                   successor (the same command line, a child)
    Handover: the sockets by number, what was     takes what it still listens on, binds what is new, starts
    set by hand                                   its workers, waits for its table and its first health checks
                                       <--------  Ready, with the sockets it took; or Refused, and the end
    Yours: stops accepting, lets go    -------->  owns files of sockets, pid file, checkpoints
    drains: Busy now and then; Gone,   -------->  counts that against the replicas' limits
    or its end

Nothing changes for the predecessor until it has read Ready, and nothing of what both hold is shut down or removed
before: a socket is the same one in both processes. A predecessor that ends before Ready takes the successor with
it, as it does its workers; after Ready the successor goes on whatever becomes of the other.
Messages are msgpack with their length before them, as in `control`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from router.control import Unpacker
from router.routing.spec import SessionEntry
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "ROUTER_HANDOVER"  # the number of the successor's end of the pair
VERSION = 1
MAX_SOCKETS = 4_096
READ_BYTES = 65_536
DESCRIPTION_LIMIT_S = 10.0  # from the successor's start to the predecessor's first word
ANSWER_LIMIT_S = 10.0  # from Ready to Yours; its end would do as well
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class HandedSocket(msgspec.Struct):
    """One socket: its number in both processes, and what it was bound for.

    `flag` and `address` are as in the settings; `path` and `inode` say which file belongs to a Unix socket. `kind`
    is the kernel's, so that datagram sockets can travel too.
    """

    fd: int
    flag: str
    address: str
    kind: int = int(socket.SOCK_STREAM)
    path: str = ""
    inode: int = 0


class AddedReplica(msgspec.Struct):
    """A replica that was added by hand to a table that comes from a file or flags."""

    endpoint: str
    address: str
    weight: float = 1.0


class QuicHandover(msgspec.Struct):
    """What the processes of this host prove to each other and to clients with; see `quic_ways`."""

    secret: bytes
    incarnation: int


class Handover(msgspec.Struct, tag="handover"):
    """All that the successor is given."""

    version: int
    pid: int
    generation: int
    sockets: list[HandedSocket]
    older: list[int] = []  # processes of generations before that were still draining
    is_failed: bool = False  # by the operator
    added: list[AddedReplica] = []
    removed: list[str] = []
    session_keys: list[bytes] = []  # of a static table, whose sessions are the daemon's
    sessions: list[SessionEntry] = []
    ended: list[str] = []  # sessions, lately
    quic: QuicHandover | None = None


class Ready(msgspec.Struct, tag="ready"):
    """The successor accepts; `taken` are the numbers of the sockets that it goes on with."""

    taken: list[int]


class Refused(msgspec.Struct, tag="refused"):
    """The successor cannot, and ends."""

    reason: str


class Yours(msgspec.Struct, tag="yours"):
    """The predecessor stopped accepting and let go of what only one may have."""


class BusyReplica(msgspec.Struct):
    """How many requests the predecessor still has on a replica."""

    endpoint: str
    id: str
    in_flight: int


class Busy(msgspec.Struct, tag="busy"):
    """What the predecessor still has under way, now and then while it drains; replicas without are left out."""

    replicas: list[BusyReplica]
    busy_sessions: list[str] = []
    sessions: list[SessionEntry] = []  # of a static table, and those that ended lately, as in the beginning
    ended: list[str] = []


class Gone(msgspec.Struct, tag="gone"):
    """The predecessor has drained and ends; so many requests were cut."""

    cut: int


FromPredecessor = Handover | Yours | Busy | Gone
FromSuccessor = Ready | Refused

_encoder = msgspec.msgpack.Encoder()
_from_predecessor: msgspec.msgpack.Decoder[FromPredecessor] = msgspec.msgpack.Decoder(FromPredecessor)
from_successor: msgspec.msgpack.Decoder[FromSuccessor] = msgspec.msgpack.Decoder(FromSuccessor)


class HandoverError(Exception):
    """What came is no hand-over of ours; the text says why."""


def frame(message: FromPredecessor | FromSuccessor) -> bytes:
    """Return the message with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Predecessor:
    """The successor's side. `find`, then `receive`, `ready`, and `yours` once it may own what only one may."""

    def __init__(self, pair: socket.socket) -> None:
        self.handover = Handover(VERSION, 0, 0, [])
        self.is_gone = False
        self.cut: int | None = None
        self.on_busy: Callable[[Busy], None] = lambda _: None
        self._pair = pair
        self._writer: asyncio.StreamWriter | None = None
        self._first: asyncio.Future[Handover] = asyncio.get_running_loop().create_future()
        self._yours = asyncio.Event()

    async def receive(self) -> None:
        """Wait for the description and check that it fits this process. HandoverError says what is wrong."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._pair)
        spawn(self._listen(reader), "predecessor")
        try:
            async with asyncio.timeout(DESCRIPTION_LIMIT_S):
                self.handover = handed = await self._first
        except TimeoutError:
            raise HandoverError("the predecessor said nothing") from None
        if handed.version != VERSION:
            raise HandoverError(f"the predecessor hands over by version {handed.version}, this is {VERSION}")
        if len(handed.sockets) > MAX_SOCKETS or len({entry.fd for entry in handed.sockets}) != len(handed.sockets):
            raise HandoverError("the predecessor names too many sockets, or one twice")

    def sockets(self) -> list[tuple[HandedSocket, socket.socket]]:
        """Return the sockets as objects of this process, which owns them; HandoverError if one is none."""
        found: list[tuple[HandedSocket, socket.socket]] = []
        try:
            for entry in self.handover.sockets:
                found.append((entry, _adopted(entry)))
        except OSError as failure:
            for _, sock in found:
                sock.close()
            raise HandoverError(f"descriptor {entry.fd} for {entry.address}: {failure.strerror}") from None
        return found

    async def ready(self, taken: list[int]) -> None:
        """Say that this process accepts; return once the other has let go, or is gone.

        HandoverError if it was gone before: whoever ended it did not want another in its place.
        """
        if self.is_gone:
            raise HandoverError("the predecessor ended")
        self._send(Ready(taken))
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._yours.wait()

    def refuse(self, reason: str) -> None:
        """Say why it cannot be."""
        self._send(Refused(reason))

    def close(self) -> None:
        """Let the pair go."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._pair.close()

    def _send(self, message: FromSuccessor) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        unpacker = Unpacker()
        failure = HandoverError("the predecessor ended")
        try:
            while data := await reader.read(READ_BYTES):
                for body in unpacker.feed(data):
                    self._take(_from_predecessor.decode(body))
        except (OSError, ValueError, msgspec.DecodeError) as wrong:
            failure = HandoverError(f"the predecessor's words cannot be read: {wrong}")
        self.is_gone = True
        self.on_busy(Busy([]))
        self._yours.set()
        if not self._first.done():
            self._first.set_exception(failure)
        self.close()

    def _take(self, message: FromPredecessor) -> None:
        if isinstance(message, Handover):
            if not self._first.done():
                self._first.set_result(message)
        elif isinstance(message, Yours):
            self._yours.set()
        elif isinstance(message, Busy):
            self.on_busy(message)
        else:
            self.cut = message.cut


def _adopted(entry: HandedSocket) -> socket.socket:
    sock = socket.socket(fileno=entry.fd)
    sock.set_inheritable(False)
    if sock.type != entry.kind:
        sock.close()
        raise OSError(0, "it is another kind of socket")
    return sock


def take_pair() -> socket.socket | None:
    """Return this process's end of the pair if it was started to take over; HandoverError if that is not so.

    The variable is taken out of the environment: no child of ours is to find it. That the other end is our parent's
    is for the kernel to say, so a variable that was left somewhere starts nothing.
    """
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    try:
        pair = socket.socket(fileno=int(text))
    except (ValueError, OSError):
        raise HandoverError(f"{VARIABLE} names no socket of this process") from None
    pair.set_inheritable(False)
    if pair.family != socket.AF_UNIX or pair.type != socket.SOCK_STREAM:
        pair.close()
        raise HandoverError(f"{VARIABLE} names a socket that is no pair's")
    credentials = pair.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    if (pid, uid) != (os.getppid(), os.getuid()):
        pair.close()
        raise HandoverError(f"{VARIABLE} names a socket whose other end is not our parent's")
    return pair


def refuse_on(pair: socket.socket, reason: str) -> None:
    """Say on a bare pair why this process does not even begin: its settings are wrong."""
    with suppress(OSError):
        pair.settimeout(DESCRIPTION_LIMIT_S)
        pair.recv(READ_BYTES)  # what is closed unread would reach the other end before our words
        pair.sendall(frame(Refused(reason)))
    pair.close()
