"""QUIC listening sockets of one worker, and the connections on them by the ids that datagrams name.

    UDP socket --> receive --> by id --> QuicShell --> engine --> application
                                  +----> Strangers: who is new, who is elsewhere, who is gone
    outbox --> QuicShell.flush --> engine --> UDP socket

One socket serves all connections of an address. To where no NAT has to know us connections of ours begin from
sockets of this process alone, which take no strangers. Limits and what is refused for want of memory are the TCP
listener's, by the one headcount. It is drained as that one is, but a connection that was closed stays for a while
to repeat it (RFC 9000 §10.2), which nobody waits for.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

from router.core import Peer
from router.edge.quic_counters import QUIC_NUMBERS, QuicCounters
from router.edge.quic_forwarding import ForwardReceiver
from router.edge.quic_shell import QuicShell
from router.edge.quic_strangers import Datagrams, Host, Strangers
from router.edge.quic_timers import QuicTimers
from router.exchange import Exchange
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.quic.invariants import ID_BYTES, is_long
from router.transport.udp import UDP_NUMBERS, DatagramReceiver, UdpCounters, UdpSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core import Core
    from router.edge.headcount import Headcount
    from router.edge.quic_forwarding import Forwarding
    from router.errors import ProxyError
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.quic.connection import QuicConnection
    from router.transport.codec.quic.keyring import Keyring
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.shell import Reactor
    from router.transport.udp import Address
    from router.walltime import WallTime

LOOKS_BURST: Final = 256
LOOKS_RATE: Final = 256.0
"""Looks a second through the connections to one address for whose reset it is: anybody can send such."""
_HTTPS: Final = b"https"


@trait
class Protocols:
    """What a listener serves: engines with its certificates, and an application for each ALPN it offers."""

    __slots__ = ()

    def connect(
        self, shell: QuicShell, now: float, address: Address, local: bytes, first_id: bytes, original_id: bytes,
        *, is_validated: bool,
    ) -> QuicConnection:  # fmt: skip
        """Return the server's side of a new connection.

        `first_id` is where the client's Initial went, `original_id` where its first one did, before a Retry.
        """
        raise NotImplementedError

    def make_application(self, shell: QuicShell, bearer: Bearer, alpn: str, now: float) -> Application:
        """Return what speaks this protocol."""
        raise NotImplementedError


class QuicListener(DatagramReceiver, ForwardReceiver, Host):
    """Serves until it is closed."""

    __slots__ = (
        "_by_id",
        "_core",
        "_dialled",
        "_dialling",
        "_forwarding",
        "_headcount",
        "_incarnation",
        "_looks",
        "_loop",
        "_outbox",
        "_postponed",
        "_protocols",
        "_shells",
        "_sockets",
        "_strangers",
        "_worker",
        "accepts",
        "counters",
        "handshaking",
        "is_retired",
        "keyring",
        "on_check",
        "reactor",
        "timers",
        "touched",
        "udp",
        "wheel",
    )

    def __init__(
        self,
        core: Core,
        reactor: Reactor,
        headcount: Headcount,
        protocols: Protocols,
        keyring: Keyring,
        worker: int,
        incarnation: int,
        forwarding: Forwarding,
        walltime: WallTime,
    ) -> None:
        """`worker`, `incarnation`: this process, as the ids that it issues have it."""
        self._core = core
        self.reactor = reactor
        self._headcount = headcount
        self._protocols = protocols
        self.keyring = keyring
        self._worker = worker
        self._incarnation = incarnation
        self._forwarding = forwarding
        self._loop = asyncio.get_running_loop()
        self._outbox = reactor.outbox
        self.touched = reactor.outbox.touched
        self.wheel = reactor.wheel
        self.timers = QuicTimers(reactor.clock, reactor.outbox)
        self.counters = QuicCounters()
        self.udp = UdpCounters()
        self.handshaking = 0
        self.on_check: Callable[[bytes, bytes, Address], bytes] | None = None
        self.accepts = True
        self.is_retired = False
        self._by_id: dict[bytes, QuicShell] = {}
        self._shells: set[QuicShell] = set()
        self._dialled: dict[Address, list[QuicShell]] = {}  # by the server's address
        self._looks = Allowance(LOOKS_BURST, LOOKS_RATE, reactor.clock.now)
        self._postponed: list[QuicShell] = []
        self._sockets: dict[bytes, UdpSocket] = {}
        self._dialling: dict[int, UdpSocket] = {}  # by family; see `dialling_socket`
        self._strangers = Strangers(
            self, self.counters, keyring, worker, incarnation, forwarding, walltime, reactor.clock.now
        )

    def listen(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets, which the listener then owns."""
        for sock in sockets:
            host, port = sock.getsockname()[:2]
            name = f"{host}|{port}".encode()
            made = UdpSocket(sock, self, self.udp, name)
            self._sockets[name if name not in self._sockets else name + b"|%d" % len(self._sockets)] = made
            made.start_reading()
        self._forwarding.listen(self)

    # -- from the sockets -----------------------------------------------------------------------------

    def receive(
        self, sock: UdpSocket, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int
    ) -> None:
        """Take datagrams of one sender. Nearly always they are one connection's, which gets them as they are."""
        now = self.reactor.clock.read()
        shell = self._find(data, 0)
        if shell is not None:
            shell.receive(data, segment_bytes, address, local, now, ecn)
        elif segment_bytes:
            self._sort(Datagrams(sock, data, segment_bytes, address, local, ecn, 0), now)
        else:
            self._take_unknown(Datagrams(sock, data, 0, address, local, ecn, 0), now)

    def received(self) -> None:
        """Flush what the wake-up touched."""
        self._outbox.flush()

    def receive_forwarded(
        self, listener: bytes, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int, hops: int
    ) -> None:
        """Take datagrams that another process read for us."""
        now = self.reactor.clock.read()
        shell = self._find(data, 0)
        if shell is not None:
            self.counters.quic_taken_over += 1
            shell.receive(data, segment_bytes, address, local, now, ecn)
            return
        sock = self._sockets.get(listener)
        if sock is not None:
            self.counters.quic_taken_over += 1
            self._sort(Datagrams(sock, data, segment_bytes, address, local, ecn, hops), now)
        else:
            self.counters.quic_drop_forward_gone += 1  # an address that is not listened on any more

    def take_stray(self, shell: QuicShell, data: bytes, address: Address, local: bytes, ecn: int) -> None:
        """Take what was read together with a connection's datagrams, and is not its own."""
        found = self._find(data, 0)
        now = self.reactor.clock.now
        if found is None:
            self._strangers.take(Datagrams(shell.sock, data, 0, address, local, ecn, 0), now)
        elif found is not shell:
            found.receive(data, 0, address, local, now, ecn)
        else:
            self._strangers.take_namesake(Datagrams(shell.sock, data, 0, address, local, ecn, 0), now)

    def _find(self, data: bytes, at: int) -> QuicShell | None:
        """Return whose connection the packet names that begins there."""
        if at + 6 >= len(data):
            return None
        if data[at] & 0x80:
            return self._by_id.get(data[at + 6 : at + 6 + data[at + 5]])
        return self._by_id.get(data[at + 1 : at + 1 + ID_BYTES])

    def _sort(self, arrived: Datagrams, now: float) -> None:
        """Hand each run of datagrams to one id to whom it belongs: a client may have several connections."""
        data, size = arrived.data, arrived.segment_bytes or len(arrived.data)
        at = 0
        while at < len(data):
            shell = self._find(data, at)
            end = at + size
            if shell is not None or not is_long(data, at):  # an Initial may begin the connection of those behind it
                named = _name(data, at)
                while end < len(data) and _name(data, end) == named:
                    end += size
            run = Datagrams(
                arrived.sock, data[at:end], size if end - at > size else 0, arrived.address, arrived.local,
                arrived.ecn, arrived.hops,
            )  # fmt: skip
            if shell is not None:
                shell.receive(run.data, run.segment_bytes, run.address, run.local, now, run.ecn)
            else:
                self._take_unknown(run, now)
            at = end

    def _take_unknown(self, arrived: Datagrams, now: float) -> None:
        """Give a stateless reset to the connection that we dialled there: it names nobody (RFC 9000 §10.3).

        Nearly all that comes from such an address is for connections of other workers: its ids are ours.
        """
        data = arrived.data
        shells = self._dialled.get(arrived.address)
        if shells is not None and not self.keyring.is_ours(data[1 : 1 + ID_BYTES]) and self._looks.take(now):
            for shell in shells:
                if shell.is_reset(data):
                    shell.receive(data, arrived.segment_bytes, arrived.address, arrived.local, now, arrived.ecn)
                    return
        self._strangers.take(arrived, now)

    # -- new connections ------------------------------------------------------------------------------

    def accept(
        self, arrived: Datagrams, now: float, destination_id: bytes, original_id: bytes, *, is_validated: bool
    ) -> bool:
        """Begin a connection. What turns out not to be authentic leaves nothing behind."""
        shell = QuicShell(self, arrived.sock, arrived.address, arrived.local)
        if not self._headcount.enter(shell.counted):
            return False
        self._shells.add(shell)
        self.handshaking += 1
        self._by_id[destination_id] = shell
        shell.ids.add(destination_id)
        shell.connection = connection = self._protocols.connect(
            shell, now, arrived.address, arrived.local, destination_id, original_id, is_validated=is_validated
        )
        shell.receive(arrived.data, arrived.segment_bytes, arrived.address, arrived.local, now, arrived.ecn)
        if not connection.received_packets:
            self._strangers.note_junk(now)
            shell.discard()
        return True

    def dial(self, shell: QuicShell, connect: Callable[[float], QuicConnection]) -> bool:
        """Begin a connection of ours from a socket of ours; False: no room."""
        if not self._headcount.enter(shell.counted):
            return False
        self._shells.add(shell)
        self._dialled.setdefault(shell.address, []).append(shell)
        shell.connection = connect(self.reactor.clock.read())
        shell.touch()
        self._outbox.flush()
        return True

    def first_socket(self) -> UdpSocket:
        """Return the one that connections of ours begin from, so that a NAT maps them as those of clients.

        OSError once there is none.
        """
        for sock in self._sockets.values():
            return sock
        raise OSError(errno.ESHUTDOWN, "the listener is closed")

    def dialling_socket(self, family: int) -> UdpSocket:
        """Return what connections of ours begin from to where no NAT has to know us; OSError if there can be none.

        Made at the first, on a port of the kernel's choice, and this process's alone: what a listening socket is
        sent the kernel gives to any worker. It has no name, so that `Strangers` answers nobody there.
        """
        found = self._dialling.get(family)
        if found is None:
            self.first_socket()  # none is made behind the close
            made = socket.socket(socket.AddressFamily(family), socket.SOCK_DGRAM)
            self._dialling[family] = found = UdpSocket(made, self, self.udp)
            found.start_reading()
        return found

    def socket_named(self, name: bytes) -> UdpSocket | None:
        """Return the socket of this worker that a shell of any has told by its name."""
        return self._sockets.get(name)

    def take_check(self, user: bytes, arrived: Datagrams) -> bytes:
        """Ask who expects robots here, if anybody does."""
        return self.on_check(user, arrived.data, arrived.address) if self.on_check is not None else b""

    # -- for shells -----------------------------------------------------------------------------------

    def make_id(self, shell: QuicShell) -> bytes:
        """Return a new id that leads to this connection."""
        made = self.keyring.make_id(self._worker, self._incarnation)
        while made in self._by_id:
            made = self.keyring.make_id(self._worker, self._incarnation)
        self._by_id[made] = shell
        shell.ids.add(made)
        return made

    def retire_id(self, shell: QuicShell, retired: bytes) -> None:
        """Route an id no more."""
        if retired in shell.ids:
            shell.ids.remove(retired)
            del self._by_id[retired]

    def make_application(self, shell: QuicShell, bearer: Bearer, alpn: str) -> Application:
        """Return what speaks the protocol that was chosen; it is told if this process comes to its end."""
        made = self._protocols.make_application(shell, bearer, alpn, self.reactor.clock.now)
        self.tell_end(made)
        return made

    def tell_end(self, made: Application) -> None:
        """Tell a protocol that begins while this process comes to its end: it missed what the others were told."""
        if self.is_retired:
            made.retire(self.reactor.clock.now)
        elif not self.accepts:
            made.drain()

    def make_peer(self, host: bytes) -> Peer:
        """Return who a connection's requests come from."""
        return Peer(host, _HTTPS)

    def token_for(self, address: Address) -> bytes:
        """Return a token with which a client at this address need not prove it next time."""
        return self._strangers.token_for(address, self.reactor.clock.now)

    def begin(self, stream: DownstreamStream, peer: Peer) -> RequestReceiver:
        """Begin an exchange."""
        return Exchange(self._core, stream, peer)

    def note_handshake(self, *, is_done: bool) -> None:
        """Count how a handshake ended."""
        self.handshaking -= 1
        if is_done:
            self.counters.quic_handshakes += 1
        else:
            self.counters.quic_handshake_failures += 1

    def postpone(self, shell: QuicShell) -> None:
        """Flush a connection in the next turn of the loop, so that the others get theirs in this one."""
        if not self._postponed:
            self._loop.call_soon(self._go_on)
        self._postponed.append(shell)

    def forget(self, shell: QuicShell, connection: QuicConnection) -> None:
        """Drop a connection that is over."""
        for known in shell.ids:
            del self._by_id[known]
        shell.ids.clear()
        self.timers.forget(shell)
        self._shells.discard(shell)
        dialled = self._dialled.get(shell.address)
        if dialled is not None and shell in dialled:
            dialled.remove(shell)
            if not dialled:
                del self._dialled[shell.address]
        self._headcount.leave(shell.counted)
        self._add(connection)
        connection.let_go()

    def _go_on(self) -> None:
        self.touched.extend(self._postponed)
        self._postponed.clear()
        self.reactor.clock.read()
        self._outbox.flush()

    # -- the end --------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Refuse new connections; those there are go on."""
        self.accepts = False

    def retire(self) -> None:
        """Leave the sockets' input to another process, which passes on what belongs to our connections.

        But for what is sent to sockets from which we dial: no other process has those.
        """
        self.is_retired = True
        for sock in self._sockets.values():
            sock.stop_reading()
        now = self.reactor.clock.read()
        for shell in list(self._shells):
            if shell.application is not None:
                shell.tell("retire", now)
        self._outbox.flush()

    def drain(self) -> None:
        """Have idle connections closed and the others begin nothing new."""
        self.accepts = False
        now = self.reactor.clock.read()
        for shell in list(self._shells):
            if shell.application is not None:
                shell.tell("drain", now)
        self._outbox.flush()

    def cut(self, error: ProxyError) -> None:
        """End whatever is left."""
        self.accepts = False
        now = self.reactor.clock.read()
        for shell in list(self._shells):
            shell.tell("cut", now, error)
        self._outbox.flush()

    def close(self) -> None:
        """Let sockets and connections go; who is still connected is told."""
        self.reactor.clock.read()
        for shell in list(self._shells):
            shell.end()
        self.timers.close()
        for sock in (*self._sockets.values(), *self._dialling.values()):
            sock.close()
        self._sockets.clear()
        self._dialling.clear()
        self._forwarding.close()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected: who was told that it is over counts no more."""
        return not any(shell.is_waited_for for shell in self._shells)

    @property
    def open_connections(self) -> int:
        """How many connections are known."""
        return len(self._shells)

    # -- numbers --------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, int]:
        """Return every count by name, those of living connections included."""
        found = {name: int(getattr(self.counters, name)) for name in QUIC_NUMBERS}
        found["quic_connections_open"] = len(self._shells)
        found["quic_handshaking"] = self.handshaking
        for shell in self._shells:
            connection = shell.connection
            if connection is not None:
                found["quic_packets_received"] += connection.received_packets
                found["quic_packets_sent"] += connection.sent_packets
                found["quic_packets_lost"] += connection.recovery.lost_packets
        for name in UDP_NUMBERS:
            found[f"udp_{name}"] = int(getattr(self.udp, name))
        return found

    def _add(self, connection: QuicConnection) -> None:
        """Keep what a connection counted."""
        counters = self.counters
        counters.quic_packets_received += connection.received_packets
        counters.quic_packets_sent += connection.sent_packets
        counters.quic_packets_lost += connection.recovery.lost_packets
        rtt = connection.recovery.rtt
        if rtt.has_sample:
            counters.rtt.observe(rtt.smoothed_s)


def _name(data: bytes, at: int) -> bytes:
    """Return what tells the datagram's connection: its form and id."""
    if data[at] & 0x80 and at + 6 <= len(data):
        return b"\x80" + data[at + 6 : at + 6 + data[at + 5]]
    return b"\0" + data[at + 1 : at + 1 + ID_BYTES]
