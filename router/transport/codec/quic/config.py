"""What a connection is told before it begins. Imports nothing but limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.quic.limits import (
    CONNECTION_WINDOW,
    HANDSHAKE_LIMIT_S,
    IDLE_LIMIT_S,
    INITIAL_PACKETS,
    MAX_DATAGRAM_BYTES,
    MAX_STREAMS,
    MAX_UNI_STREAMS,
    MIN_DATAGRAM_BYTES,
    STREAM_WINDOW,
)

if TYPE_CHECKING:
    from aioquic.tls import SessionTicket

    from router.transport.codec.quic.handshake import Identities, Identity, Tickets


class QuicConfig:
    """Shared by the connections of a listener, or a client's. Sizes in bytes, times in seconds.

    `initial_window`: what may be under way before the first acknowledgement; `datagram_bytes`: the largest DATAGRAM
    frame that is taken, 0 for none; `max_payload`: the largest UDP payload that is taken, and probed for.
    """

    __slots__ = (
        "alpn",
        "ca",
        "connection_window",
        "datagram_bytes",
        "handshake_s",
        "identities",
        "identity",
        "idle_s",
        "initial_window",
        "is_server",
        "keep_alive_s",
        "max_payload",
        "max_streams",
        "max_uni_streams",
        "server_name",
        "stream_window",
        "takes_early",
        "takes_no_alpn",
        "ticket",
        "tickets",
        "verify",
    )

    def __init__(self, *, is_server: bool, alpn: list[str]) -> None:
        self.is_server = is_server
        self.alpn = alpn
        self.idle_s = IDLE_LIMIT_S
        self.handshake_s = HANDSHAKE_LIMIT_S
        self.keep_alive_s = 0.0
        self.stream_window = STREAM_WINDOW
        self.connection_window = CONNECTION_WINDOW
        self.max_streams = MAX_STREAMS
        self.max_uni_streams = MAX_UNI_STREAMS
        self.initial_window = INITIAL_PACKETS * MIN_DATAGRAM_BYTES
        self.datagram_bytes = MAX_DATAGRAM_BYTES
        self.max_payload = MAX_DATAGRAM_BYTES
        # a server's
        self.identities: Identities | None = None
        self.tickets: Tickets | None = None
        self.takes_early = True
        self.takes_no_alpn = False  # of a client that names no protocol
        # a client's
        self.server_name = ""
        self.ca = b""
        self.verify = True
        self.identity: Identity | None = None
        self.ticket: SessionTicket | None = None
