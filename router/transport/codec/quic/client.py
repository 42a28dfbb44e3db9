"""The client's role: says hello, follows a Retry, sends early data where an earlier connection allows it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from router.transport.codec.quic.connection import QuicConnection
from router.transport.codec.quic.handshake import Handshake
from router.transport.codec.quic.invariants import read_long
from router.transport.codec.quic.limits import VERSION_1
from router.transport.codec.quic.packet import DATA, INITIAL
from router.transport.codec.quic.retry import retry_tag
from router.transport.codec.quic.state import HANDSHAKING, OVER
from router.transport.codec.quic.transport_parameters import (
    INITIAL_SOURCE_ID,
    ORIGINAL_ID,
    RETRY_SOURCE_ID,
    Parameters,
    read_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.tls import SessionTicket

    from router.transport.codec.quic.config import QuicConfig
    from router.transport.codec.quic.packet import LongHeader
    from router.transport.codec.quic.path import Address
    from router.transport.codec.quic.recovery import Space
    from router.transport.codec.quic.seam import Owner

_PARAMETERS = 0x39  # the TLS extension's number


class ClientConnection(QuicConnection):
    """One connection to a server."""

    __slots__ = ("_on_token", "_remembered", "was_early_refused")

    def __init__(
        self,
        config: QuicConfig,
        owner: Owner,
        now: float,
        address: Address,
        token: bytes = b"",
        on_ticket: Callable[[SessionTicket], None] | None = None,
        on_token: Callable[[bytes], None] | None = None,
    ) -> None:
        """`token` is one that the server gave before; `on_ticket`, `on_token` get what it gives for next time."""
        super().__init__(config, owner, now, address, None, os.urandom(8))
        self.first_id = self.source_id
        self.token = token
        self._on_token = on_token
        self.was_early_refused = False
        self.install_initial(self.original_id)
        handshake = Handshake(
            is_server=False,
            alpn=config.alpn,
            parameters=self.own_parameters().encode(),
            on_secret=self.install_secret,
        )
        self.handshake = handshake
        handshake.connect(
            config.server_name,
            ca=config.ca,
            verify=config.verify,
            identity=config.identity,
            ticket=config.ticket,
            on_ticket=on_ticket,
        )
        self.send_crypto()
        self._remembered: Parameters | None = None
        if self.early_key is not None:
            self._use_remembered(config)

    def _use_remembered(self, config: QuicConfig) -> None:
        """Send early data within what the server allowed last time (RFC 9000 §7.4.1)."""
        assert config.ticket is not None
        for kind, body in config.ticket.other_extensions:
            found = read_parameters(bytes(body), from_client=False) if kind == _PARAMETERS else ""
            if not isinstance(found, str):
                found.numbers = {which: value for which, value in found.numbers.items() if 0x04 <= which <= 0x09}
                self._remembered = found
                self._use_limits(found)
                self.alpn = config.alpn[0]
                self.application = self.owner.make_application(self, self.alpn)
                return
        self.early_key = None

    def _use_limits(self, found: Parameters) -> None:
        numbers = found.number
        self.streams.set_peer_limits(numbers(4), numbers(6), numbers(5), numbers(7), (numbers(8), numbers(9)))

    def follow_handshake(self) -> None:
        """As any, and learn whether early data was taken."""
        super().follow_handshake()
        handshake = self.handshake
        assert handshake is not None
        if self._remembered is None or not handshake.is_complete:
            return
        self._remembered = None
        body = handshake.peer_parameters()
        found = read_parameters(body or b"", from_client=False)
        fault = found if isinstance(found, str) else self.check_ids(found)
        if fault or isinstance(found, str):
            self.fail(0x08, fault)
            return
        self.was_early_refused = not handshake.is_early_accepted
        if self.was_early_refused:
            self.streams.forget_peer_limits()
            self._repeat(self.space(DATA))
        self.use_parameters(found)
        self.early_key = None

    def _repeat(self, space: Space) -> None:
        """Send again what the server did not read: before its Retry, or as early data (RFC 9001 §4.6.2)."""
        packets = list(space.sent.values())
        space.sent.clear()
        space.eliciting_in_flight = 0
        for packet in packets:
            self.recovery.congestion.forget(packet.size)
            for frame in packet.frames:
                frame.on_lost()

    def check_ids(self, peer: Parameters) -> str:
        """Compare with what we saw: nobody between us may have changed it."""
        ids = peer.ids
        if ids.get(ORIGINAL_ID) != self.original_id:
            return "original_destination_connection_id does not fit"
        if ids.get(INITIAL_SOURCE_ID) != self.peer_ids.current:
            return "initial_source_connection_id does not fit"
        if ids.get(RETRY_SOURCE_ID, b"") != self.retry_id:
            return "retry_source_connection_id does not fit"
        return ""

    def on_complete(self) -> None:
        """Wait for the server to confirm."""

    def on_confirmed(self) -> None:
        """Go on with one pair of keys."""
        self.confirm()

    def on_new_token(self, token: bytes) -> None:
        """Keep it for the next connection."""
        if self._on_token is not None:
            self._on_token(token)

    def receive_retry(self, header: LongHeader, packet: bytes) -> None:
        """Begin again with the server's token, once (RFC 9000 §17.2.5)."""
        if self.source_known or self.retry_id or self.phase != HANDSHAKING or header.destination != self.source_id:
            return
        if len(header.token) <= 16 or retry_tag(self.original_id, packet[:-16]) != packet[-16:]:
            return
        self.retry_id = header.source
        self.peer_ids.replace_first(header.source)
        self.token = header.token[:-16]
        self.install_initial(header.source)
        self._repeat(self.space(INITIAL))
        self._repeat(self.space(DATA))

    def receive_negotiation(self, data: bytes) -> None:
        """Give up: the server speaks no version that we do, unless somebody forged this (RFC 9000 §6.2)."""
        if self.source_known or self.phase != HANDSHAKING:
            return
        header = read_long(data, 0, len(data))
        if header is None:
            return
        versions = data[header.rest_at :]
        offered = {int.from_bytes(versions[at : at + 4], "big") for at in range(0, len(versions), 4)}
        if header.destination_id == self.source_id and VERSION_1 not in offered:
            self.phase = OVER
            self.lose(0, "the server speaks no version of QUIC that we do", by_peer=False)
