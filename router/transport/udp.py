"""A UDP socket on the event loop that moves many datagrams in one system call. Knows nothing of what they carry.

Read: up to `MAX_READS` times 64 KiB a wake-up, each of which may be many datagrams of one sender (UDP_GRO). Reads
that go on where the last one ended are handed on as one, still of 64 KiB at most: a receiver's work is for each.
Written: groups of equally large datagrams (UDP_SEGMENT), the pieces handed to the kernel as they are. A kernel or
a path that refuses either costs one failed call and a line in the log; after that datagrams go one by one.

Invariant: a datagram is written whole, in the order of `send`, or dropped and counted. Nothing is raised by a peer
or by the network: what ICMP reports about earlier datagrams is of no use to a protocol that does not believe it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections import deque
from typing import Any, Final

from mypy_extensions import trait

_log = logging.getLogger("router.udp")

Address = tuple[Any, ...]  # as the socket module gives it: (host, port), with flow and scope for IPv6
Ancillary = list[tuple[int, int, bytes]]

READ_BYTES: Final = 65_535
MAX_READS: Final = 16  # in one wake-up; what else the loop has to do comes between
LONE_WAKES: Final = 4
"""Wake-ups in a row with one datagram each, after which no second read looks for another: the poll will say."""
LOOK_AGAIN: Final = 32
"""Wake-ups until a second read is tried again, which a busier socket needs: a wake-up costs more than a read."""
MAX_SEGMENTS: Final = 60  # of one write; the kernel takes 64
MAX_WRITE_BYTES: Final = 65_000  # with its headers one write is an IP packet to the kernel: below 64 KiB
MAX_UNSENT: Final = 4_096  # datagrams that wait for a full send buffer; UDP may lose what comes on top
BUFFER_BYTES: Final = 8 << 20  # asked for in each direction; the kernel gives what its own limits allow
MAX_REMEMBERED: Final = 256  # control messages that are kept ready

# Numbers of Linux that the socket module does not name.
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_TOS: Final = 1
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVTOS: Final = 13
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
_SOL_IP: Final = 0
_SOL_IPV6: Final = 41
_PMTUDISC_PROBE: Final = 3  # set "don't fragment", and believe no ICMP about the path's MTU
_CONTROL_BYTES: Final = 256
_NATIVE: Final = sys.byteorder
_TOO_LONG: Final = int(socket.MSG_TRUNC) | int(socket.MSG_CTRUNC)

_NO_ROOM: Final = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
# What a write with UDP_SEGMENT may fail with although each datagram of it could be sent.
_MAYBE_SEGMENTS: Final = frozenset((errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP))


UDP_NUMBERS = (
    "datagrams_received",
    "datagrams_sent",
    "dropped_failed",
    "dropped_too_large",
    "dropped_truncated",
    "dropped_unsent",
    "reads",
    "without_gro",
    "without_gso",
    "writes",
)


class UdpCounters:
    """What the sockets of one owner did."""

    __slots__ = UDP_NUMBERS

    def __init__(self) -> None:
        self.datagrams_received = 0
        self.datagrams_sent = 0
        self.reads = 0  # system calls that brought something
        self.writes = 0  # system calls that took something
        self.dropped_unsent = 0  # on their way out: the send buffer and `MAX_UNSENT` were full
        self.dropped_too_large = 0  # on their way out: larger than the device takes; MTU probes are
        self.dropped_failed = 0  # on their way out: no route, forbidden, no such port
        self.dropped_truncated = 0  # on their way in
        self.without_gro = 0  # sockets on which the kernel does not put datagrams together …
        self.without_gso = 0  # … or does not cut them


@trait
class DatagramReceiver:
    """Who is given what a socket reads."""

    __slots__ = ()

    def receive(
        self, sock: UdpSocket, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int
    ) -> None:
        """Take datagrams of one sender: one if `segment_bytes` is 0, else each so large but the last.

        `local` is for `send` and says which of this host's addresses was meant; empty for a socket bound to one.
        `ecn` are the two bits of RFC 3168.
        """
        raise NotImplementedError

    def received(self) -> None:
        """Learn that this wake-up is over: the place for a flush."""
        raise NotImplementedError


class _Run:
    """Reads of one wake-up that go on where the last one ended: datagrams of one sender and one size."""

    __slots__ = ("address", "ecn", "local", "pieces", "segment_bytes", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.segment_bytes = 0
        self.address: Address = ()
        self.local = b""
        self.ecn = 0

    def begin(self, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int) -> None:
        """Keep the first."""
        self.pieces.append(data)
        self.size = len(data)
        self.segment_bytes = segment_bytes
        self.address = address
        self.local = local
        self.ecn = ecn

    def takes(self, size: int, segment_bytes: int, address: Address, local: bytes, ecn: int) -> bool:
        """Whether a read goes on where the last one ended, which is where all were of full size."""
        return (
            segment_bytes == self.segment_bytes
            and self.size + size <= READ_BYTES
            and self.size % segment_bytes == 0
            and ecn == self.ecn
            and address == self.address
            and local == self.local
        )

    def take(self) -> bytes:
        """Return all of them, and begin anew."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data


class UdpSocket:
    """A bound socket, which is non-blocking and this object's from now on. `name` is its owner's."""

    __slots__ = (
        "_control",
        "_controls",
        "_has_gso",
        "_is_reading",
        "_is_wildcard",
        "_locals",
        "_lone",
        "_loop",
        "_receiver",
        "_run",
        "_sock",
        "_unsent",
        "_unsent_count",
        "_waits",
        "counters",
        "family",
        "name",
    )

    def __init__(
        self, sock: socket.socket, receiver: DatagramReceiver, counters: UdpCounters, name: bytes = b""
    ) -> None:
        self._sock = sock
        self._receiver = receiver
        self.counters = counters
        self.name = name
        self._loop = asyncio.get_running_loop()
        self.family = int(sock.family)
        self._is_reading = False
        self._waits = False
        self._unsent: deque[tuple[list[bytes], int, bytes, Address]] = deque()
        self._unsent_count = 0
        self._run = _Run()
        self._lone = 0  # wake-ups in a row that brought one datagram, not joined by the kernel
        self._locals: dict[bytes, bytes] = {}
        self._controls: dict[tuple[int, bytes], Ancillary] = {}
        sock.setblocking(False)
        self._is_wildcard = _is_wildcard(sock)
        self._has_gso = _has_gso(sock)
        counters.without_gso += not self._has_gso
        has_gro = _set(sock, SOL_UDP, UDP_GRO, 1)
        counters.without_gro += not has_gro
        if not (has_gro and self._has_gso):
            _log.warning("this kernel moves UDP datagrams one by one (GRO: %s, GSO: %s)", has_gro, self._has_gso)
        self._set_options()

    def _set_options(self) -> None:
        """Ask for buffers, "don't fragment", ECN bits and, if need be, local addresses; none of it is vital."""
        sock = self._sock
        _set(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        _set(sock, socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        # An IPv6 socket may carry IPv4 (mapped addresses), for which the options of IPv4 count.
        _set(sock, _SOL_IP, IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        _set(sock, _SOL_IP, IP_RECVTOS, 1)
        if self.family == socket.AF_INET6:
            _set(sock, _SOL_IPV6, IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            _set(sock, _SOL_IPV6, IPV6_RECVTCLASS, 1)
        if not self._is_wildcard:
            return
        if self.family == socket.AF_INET6:
            _set(sock, _SOL_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            _set(sock, _SOL_IP, IP_PKTINFO, 1)

    # -- reading --------------------------------------------------------------------------------------

    def start_reading(self) -> None:
        """Hand what comes to the receiver from now on."""
        if not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def stop_reading(self) -> None:
        """Leave what comes to whoever else has this socket; sending goes on."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _on_readable(self) -> None:
        read = self._sock.recvmsg
        receiver = self._receiver
        counters = self.counters
        for done in range(MAX_READS):
            try:
                data, ancillary, flags, address = read(READ_BYTES, _CONTROL_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # ICMP's word about something that a connected socket sent
                continue
            counters.reads += 1
            if flags & _TOO_LONG:
                counters.dropped_truncated += 1
                continue
            segment_bytes = 0
            ecn = 0
            local = b""
            for level, kind, value in ancillary:
                if kind == UDP_GRO and level == SOL_UDP:
                    segment_bytes = int.from_bytes(value[:4], _NATIVE)
                elif (kind == IP_TOS and level == _SOL_IP) or (kind == IPV6_TCLASS and level == _SOL_IPV6):
                    ecn = int.from_bytes(value[:4], _NATIVE) & 3
                elif kind in (IP_PKTINFO, IPV6_PKTINFO):
                    local = self._local(value)
            size = len(data)
            if 0 < segment_bytes < size:
                counters.datagrams_received += (size + segment_bytes - 1) // segment_bytes
            else:
                segment_bytes = 0
                counters.datagrams_received += 1
            if segment_bytes:
                self._gather(data, segment_bytes, address, local, ecn)
            else:
                if self._run.pieces:
                    self._hand_on()
                receiver.receive(self, data, 0, address, local, ecn)
            if not self._is_reading:
                break
            if done or segment_bytes:
                self._lone = 0
                continue
            self._lone += 1
            if LONE_WAKES < self._lone < LOOK_AGAIN:
                break  # more likely than not there is no more, and to be told so is half the cost of a read
            if self._lone == LOOK_AGAIN:
                self._lone = LONE_WAKES
        if self._run.pieces:
            self._hand_on()
        receiver.received()

    def _gather(self, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int) -> None:
        """Keep datagrams that the kernel joined: it often joins fewer than one read takes."""
        run = self._run
        if run.pieces:
            if run.takes(len(data), segment_bytes, address, local, ecn):
                run.pieces.append(data)
                run.size += len(data)
                return
            self._hand_on()
        run.begin(data, segment_bytes, address, local, ecn)

    def _hand_on(self) -> None:
        run = self._run
        self._receiver.receive(self, run.take(), run.segment_bytes, run.address, run.local, run.ecn)

    def _local(self, info: bytes) -> bytes:
        """Return what to send with so that an answer comes from the address that was asked.

        The interface is left to the routing table, except where an address has no meaning without it.
        """
        found = self._locals.get(info)
        if found is None:
            if len(info) == 12:  # struct in_pktinfo: interface, the local address, the one in the header
                found = bytes(4) + info[4:8] + bytes(4)
            elif len(info) == 20:  # struct in6_pktinfo: address, interface
                is_link_local = info[0] == 0xFE and info[1] & 0xC0 == 0x80
                found = info if is_link_local else info[:16] + bytes(4)
            else:
                return b""
            if len(self._locals) >= MAX_REMEMBERED:
                self._locals.clear()
            self._locals[info] = found
        return found

    # -- writing --------------------------------------------------------------------------------------

    def send(self, pieces: list[bytes], segment_bytes: int, local: bytes, address: Address) -> None:
        """Write one datagram for each piece, all to one address; all but the last are `segment_bytes` large."""
        if self._unsent:
            self._keep(pieces, segment_bytes, local, address)
            return
        count = len(pieces)
        done = 0
        while done < count:
            if not self._has_gso or segment_bytes <= 0:
                group = pieces[done : done + 1] if count > 1 else pieces
            else:
                group_size = min(MAX_SEGMENTS, max(1, MAX_WRITE_BYTES // segment_bytes))
                group = pieces if count <= group_size else pieces[done : done + group_size]
            taken = self._write(group, segment_bytes, local, address)
            done += taken
            if taken < len(group):
                self._keep(pieces[done:] if done else pieces, segment_bytes, local, address)
                return

    @property
    def unsent_datagrams(self) -> int:
        """Return how many wait for the send buffer."""
        return self._unsent_count

    def _write(self, group: list[bytes], segment_bytes: int, local: bytes, address: Address) -> int:
        """Write one group in one call. Return how many are dealt with, sent or lost; the others find no room."""
        count = len(group)
        failure = self._try(group, self._ancillary(segment_bytes if count > 1 else 0, local), address)
        if failure == 0:
            self.counters.datagrams_sent += count
            return count
        if failure in _NO_ROOM:
            return 0
        if count > 1 and failure in _MAYBE_SEGMENTS:
            return self._write_singly(group, failure, local, address)
        self._note_lost(failure, count)
        return count

    def _write_singly(self, group: list[bytes], failure: int, local: bytes, address: Address) -> int:
        """Find out whether it is UDP_SEGMENT that is refused: then the datagrams themselves are taken."""
        plain = self._ancillary(0, local)
        for done, piece in enumerate(group):
            found = self._try([piece], plain, address)
            if found in _NO_ROOM:
                return done
            if found:
                self._note_lost(found, 1)
                continue
            self.counters.datagrams_sent += 1
            if self._has_gso:
                self._has_gso = False
                self.counters.without_gso += 1
                _log.warning("UDP_SEGMENT is refused (%s): datagrams leave one by one", errno.errorcode[failure])
        return len(group)

    def _note_lost(self, failure: int, count: int) -> None:
        if failure == errno.EMSGSIZE:
            self.counters.dropped_too_large += count
        else:
            self.counters.dropped_failed += count

    def _try(self, pieces: list[bytes], ancillary: Ancillary, address: Address) -> int:
        """Make the system call; return 0 or its errno."""
        try:
            self._sock.sendmsg(pieces, ancillary, 0, address)
        except OSError as failure:
            return failure.errno or errno.EIO
        self.counters.writes += 1
        return 0

    def _ancillary(self, segment_bytes: int, local: bytes) -> Ancillary:
        """Return the control messages for a group; kept, since an owner uses few of them."""
        key = (segment_bytes, local)
        found = self._controls.get(key)
        if found is None:
            found = []
            if segment_bytes:
                found.append((SOL_UDP, UDP_SEGMENT, segment_bytes.to_bytes(2, _NATIVE)))
            if len(local) == 12:
                found.append((_SOL_IP, IP_PKTINFO, local))
            elif local:
                found.append((_SOL_IPV6, IPV6_PKTINFO, local))
            if len(self._controls) >= MAX_REMEMBERED:
                self._controls.clear()
            self._controls[key] = found
        return found

    def _keep(self, pieces: list[bytes], segment_bytes: int, local: bytes, address: Address) -> None:
        """Keep what the kernel has no room for, within the bound; the rest is lost, as the network might have."""
        room = MAX_UNSENT - self._unsent_count
        if len(pieces) > room:
            self.counters.dropped_unsent += len(pieces) - room
            pieces = pieces[:room]
        if not pieces:
            return
        self._unsent.append((pieces, segment_bytes, local, address))
        self._unsent_count += len(pieces)
        if not self._waits:
            self._waits = True
            self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        self._waits = False
        self._loop.remove_writer(self._sock.fileno())
        waiting = list(self._unsent)
        self._unsent.clear()
        self._unsent_count = 0
        for pieces, segment_bytes, local, address in waiting:
            self.send(pieces, segment_bytes, local, address)

    # -- the end --------------------------------------------------------------------------------------

    def address(self) -> Address:
        """Return where it is bound."""
        found: Address = self._sock.getsockname()
        return found

    def close(self) -> None:
        """Stop reading, drop what waits, close this process's copy."""
        self.stop_reading()
        if self._waits:
            self._waits = False
            self._loop.remove_writer(self._sock.fileno())
        self.counters.dropped_unsent += self._unsent_count
        self._unsent.clear()
        self._unsent_count = 0
        self._sock.close()


def _set(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _has_gso(sock: socket.socket) -> bool:
    """Whether the kernel knows UDP_SEGMENT: one that does not would send a group as one large datagram."""
    try:
        sock.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def _is_wildcard(sock: socket.socket) -> bool:
    return sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104 - what was bound, not a binding


async def resolve(sock: UdpSocket, host: str, port: int) -> Address:
    """Return an address of a host as the socket has addresses; OSError if there is none."""
    mapped = socket.AI_V4MAPPED if sock.family == socket.AF_INET6 else 0
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, family=socket.AddressFamily(sock.family), type=socket.SOCK_DGRAM, flags=mapped
    )
    return found[0][4]


def find_local_host(family: int, address: Address) -> str:
    """Return the address of this host from which the kernel would send there; OSError if there is no route."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)  # of UDP: nothing is sent
        return str(sock.getsockname()[0])
