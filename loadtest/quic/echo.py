"""Our QUIC engine on a UDP socket, answering as quic-portal's users do: what a listener costs without a router.

    u32 length, message --> the same, or of an observation 5,000 bytes

Compiled together with the engine, in a copy of the sources (`build`): a class in Python cannot be what a compiled
engine calls. `serve` is for that copy's process. Imports the engine and the UDP socket.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.quic.handshake import Tickets
from router.transport.codec.quic.seam import Application, Owner
from router.transport.codec.quic.server import ServerConnection
from router.transport.udp import DatagramReceiver, UdpCounters, UdpSocket

if TYPE_CHECKING:
    import socket

    from router.errors import ProxyError
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.udp import Address

LARGE_BYTES: Final = 10_000
REPLY_BYTES: Final = 5_000
_REPLY: Final = REPLY_BYTES.to_bytes(4, "big") + bytes(REPLY_BYTES)
_GRAIN_S: Final = 0.001


class Echo(Application):
    """One connection's messages, each put together before it is answered."""

    __slots__ = ("_got", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._got = 0

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Gather, and answer what is whole."""
        if data:
            flow.credit(len(data))
            self._parts.append(data)
            self._got += len(data)
        while self._got >= 4:
            if len(self._parts[0]) < 4:
                self._parts = [b"".join(self._parts)]
            size = int.from_bytes(self._parts[0][:4], "big")
            if self._got < 4 + size:
                return
            whole = b"".join(self._parts)
            rest = whole[4 + size :]
            self._parts = [rest] if rest else []
            self._got = len(rest)
            flow.send(_REPLY if size > LARGE_BYTES else whole[: 4 + size], False)

    def connected(self) -> None:
        """Wait for the client."""

    def stream_opened(self, flow: Flow) -> None:
        """Wait for its bytes."""

    def stream_reset(self, flow: Flow, code: int) -> None:
        """Nothing."""

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """Nothing."""

    def stream_drained(self, flow: Flow) -> None:
        """Nothing: one message is under way at a time."""

    def stream_gone(self, flow: Flow) -> None:
        """Nothing."""

    def datagram(self, data: bytes) -> None:
        """Nothing."""

    def streams_available(self) -> None:
        """Nothing."""

    def before_send(self, now: float) -> None:
        """Nothing."""

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Nothing."""

    def next_deadline(self) -> float | None:
        """Return none."""
        return None

    def handle_deadline(self, now: float) -> None:
        """Nothing."""

    def drain(self) -> None:
        """Nothing: the process ends."""

    def retire(self, now: float) -> None:
        """Nothing."""

    def cut(self, error: ProxyError) -> None:
        """Nothing."""


class Peer(Owner):
    """The shell of one connection."""

    __slots__ = ("_at_s", "_host", "_is_touched", "_timer", "connection")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._is_touched = False
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = 0.0
        self.connection: ServerConnection | None = None

    def touch(self) -> None:
        """Be flushed at the end of this tick."""
        if not self._is_touched:
            self._is_touched = True
            self._host.touched.append(self)

    def watch(self) -> None:
        """Be flushed, which looks at the deadlines."""
        self.touch()

    def make_id(self) -> bytes:
        """Return an id that leads here."""
        made = os.urandom(12)
        self._host.by_id[made] = self
        return made

    def retire_id(self, retired: bytes) -> None:
        """Forget it."""
        self._host.by_id.pop(retired, None)

    def reset_token(self, issued: bytes) -> bytes:
        """Return what nobody uses."""
        return os.urandom(16)

    def new_token(self, address: object) -> bytes:
        """Return none."""
        return b""

    def make_application(self, bearer: Bearer, alpn: str) -> Application:
        """Return the echo."""
        return Echo()

    def stray(self, data: bytes, address: object) -> None:
        """Drop it."""

    def peer_moved(self, address: object) -> None:
        """Nothing."""

    def flush(self, now: float) -> None:
        """Send, and set the timer: never for each packet, since a deadline mostly moves later."""
        self._is_touched = False
        connection = self.connection
        assert connection is not None
        for burst in connection.datagrams_to_send(now):
            self._host.sock.send(burst.pieces, burst.segment_bytes, b"", burst.address)
        connection.deliver_drained()
        due = connection.next_deadline()
        if due is not None and (self._timer is None or due < self._at_s):
            if self._timer is not None:
                self._timer.cancel()
            self._at_s = due
            self._timer = self._host.loop.call_later(max(_GRAIN_S, due - now), self._on_timer)

    def close(self) -> None:
        """Let go of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.connection is not None:
            self.connection.let_go()
            self.connection = None

    def _on_timer(self) -> None:
        self._timer = None
        connection = self.connection
        assert connection is not None
        now = monotonic()
        due = connection.next_deadline()
        if due is not None and due <= now:
            connection.handle_deadline(now)
        self.flush(now)


class Host(DatagramReceiver):
    """The socket, and the connections on it."""

    __slots__ = ("_config", "by_id", "loop", "sock", "touched")

    def __init__(self, sock: socket.socket, config: QuicConfig) -> None:
        self._config = config
        self.loop = asyncio.get_running_loop()
        self.by_id: dict[bytes, Peer] = {}
        self.touched: list[Peer] = []
        self.sock = UdpSocket(sock, self, UdpCounters())
        self.sock.start_reading()

    def receive(
        self, sock: UdpSocket, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int
    ) -> None:
        """Hand datagrams to the connection that they name; an Initial makes one."""
        now = monotonic()
        if len(data) < 20:
            return
        if data[0] & 0x80:
            first_id = data[6 : 6 + data[5]]
            peer = self.by_id.get(first_id)
            if peer is None:
                peer = self.by_id[first_id] = Peer(self)
                peer.connection = ServerConnection(
                    self._config, peer, now, address, None, first_id, first_id, False
                )
        else:
            peer = self.by_id.get(data[1:13])
        if peer is not None and peer.connection is not None:
            peer.connection.receive(data, segment_bytes, address, None, now, ecn)

    def received(self) -> None:
        """Send what came of it."""
        now = monotonic()
        touched, self.touched = self.touched, []
        for peer in touched:
            peer.flush(now)


class Identity:
    """The one certificate."""

    __slots__ = ("certificate", "chain", "client_ca", "key")

    def __init__(self, certificate: str, key: str) -> None:
        self.certificate: Any = load_pem_x509_certificate(Path(certificate).read_bytes())
        self.chain: list[Any] = []
        self.key: Any = load_pem_private_key(Path(key).read_bytes(), None)
        self.client_ca = b""

    def find(self, name: str) -> Identity:
        """Return it, whatever is asked for."""
        return self


def listen(sock: socket.socket, certificate: str, key: str) -> Host:
    """Serve on a bound socket for as long as the loop runs."""
    config = QuicConfig(is_server=True, alpn=["h3"])
    config.takes_no_alpn = True
    config.identities = Identity(certificate, key)
    config.tickets = Tickets()
    return Host(sock, config)
