"""The server's role: a client's first packet makes it, once the listener has found the client worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.quic.connection import QuicConnection
from router.transport.codec.quic.handshake import Handshake
from router.transport.codec.quic.limits import PROTOCOL_VIOLATION
from router.transport.codec.quic.transport_parameters import (
    INITIAL_SOURCE_ID,
    ORIGINAL_ID,
    RESET_TOKEN,
    RETRY_SOURCE_ID,
    Parameters,
)

if TYPE_CHECKING:
    from router.transport.codec.quic.config import QuicConfig
    from router.transport.codec.quic.packet import LongHeader
    from router.transport.codec.quic.path import Address
    from router.transport.codec.quic.seam import Owner


class ServerConnection(QuicConnection):
    """One client's."""

    __slots__ = ()

    def __init__(
        self,
        config: QuicConfig,
        owner: Owner,
        now: float,
        address: Address,
        local: object,
        first_id: bytes,
        original_id: bytes,
        is_validated: bool,
    ) -> None:
        """`first_id` is where the client's Initial went, `original_id` where its first one did, before a Retry.

        `is_validated`: a token has proved its address.
        """
        super().__init__(config, owner, now, address, local, original_id)
        self.first_id = first_id
        if first_id != original_id:
            self.retry_id = first_id
        self.path.is_validated = is_validated
        self.install_initial(first_id)
        own = self.own_parameters()
        own.ids[ORIGINAL_ID] = original_id
        own.ids[RESET_TOKEN] = owner.reset_token(self.source_id)
        if self.retry_id:
            own.ids[RETRY_SOURCE_ID] = self.retry_id
        handshake = Handshake(
            is_server=True, alpn=config.alpn, parameters=own.encode(), on_secret=self.install_secret
        )
        assert config.identities is not None
        handshake.serve(config.identities, config.tickets, takes_early=config.takes_early)
        handshake.takes_no_alpn = config.takes_no_alpn
        self.handshake = handshake

    def check_ids(self, peer: Parameters) -> str:
        """Compare the client's own id with where we send to."""
        if peer.ids.get(INITIAL_SOURCE_ID) != self.peer_ids.current:
            return "initial_source_connection_id does not fit"
        return ""

    def on_complete(self) -> None:
        """Confirm at once (RFC 9001 §4.1.2), and give the client a token for next time."""
        self.handshake_done_due = True
        self.confirm()
        token = self.owner.new_token(self.path.address)
        if token:
            self.tokens_due.append(token)

    def on_confirmed(self) -> None:
        """Cannot be: only servers say so."""
        raise AssertionError

    def on_new_token(self, token: bytes) -> None:
        """Cannot be: only servers give tokens."""
        raise AssertionError

    def receive_retry(self, header: LongHeader, packet: bytes) -> None:
        """Drop it: a client's."""

    def receive_negotiation(self, data: bytes) -> None:
        """Drop it: a client's."""

    def refuse(self, code: int, reason: str) -> None:
        """Turn the client away before anything was read."""
        self.fail(code or PROTOCOL_VIOLATION, reason)
