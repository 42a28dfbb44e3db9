"""TLS 1.3 inside QUIC, by `aioquic.tls`: messages in, messages and traffic secrets out (RFC 8446, 9001 §4).

Not on the hot path, and not compiled. Tickets for resumption are kept by the process that gave them and work once,
so that early data cannot be replayed (RFC 8446 §8.1). What the library does not check is checked here: that each
message came under the keys of its epoch.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]

from router.transport.codec.quic.limits import CRYPTO_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TICKETS: Final = 16_384
"""Session tickets a worker remembers, about 1 KB each; the oldest is forgotten."""
_FLIGHT_BYTES: Final = 65_536  # of what TLS may write at a time: a chain of certificates
_UNEXPECTED_MESSAGE: Final = 10
_INTERNAL: Final = 80
_MISSING_EXTENSION: Final = 109
_CERTIFICATE_REQUIRED: Final = 116
_EARLY_DATA: Final = 0xFFFFFFFF  # RFC 9001 §4.6.1: all, or none
_PARAMETERS: Final = tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
_SUITES: Final = [
    tls.CipherSuite.AES_128_GCM_SHA256,
    tls.CipherSuite.AES_256_GCM_SHA384,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256,
]
_EPOCHS: Final = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT)
# The epoch in which each state's message has to come.
_IN_INITIAL: Final = frozenset((tls.State.SERVER_EXPECT_CLIENT_HELLO, tls.State.CLIENT_EXPECT_SERVER_HELLO))
_IN_DATA: Final = frozenset((tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE))


class Identity(Protocol):
    """A certificate with its chain and its key, as `cryptography` has them."""

    certificate: Any
    chain: list[Any]
    key: Any


class Identities(Protocol):
    """The certificates of a server."""

    client_ca: bytes

    def find(self, name: str) -> Identity:
        """Return the one for a server's name; empty where the client gave none."""


class Tickets:
    """Session tickets that this process gave. Each is good for one connection."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[bytes, tuple[str, tls.SessionTicket]] = OrderedDict()

    def add(self, alpn: str, ticket: tls.SessionTicket) -> None:
        """Remember one."""
        self._tickets[ticket.ticket] = (alpn, ticket)
        if len(self._tickets) > MAX_TICKETS:
            self._tickets.popitem(last=False)

    def take(self, alpn: str, ticket: bytes) -> tls.SessionTicket | None:
        """Return and forget one, if it was for the same protocol."""
        found = self._tickets.pop(ticket, None)
        return found[1] if found is not None and found[0] == alpn else None

    def clear(self) -> None:
        """Forget all: certificates or authorities have changed."""
        self._tickets.clear()


class Handshake:
    """One connection's. `out` are the bytes to be sent by epoch (0 Initial, 2 Handshake, 3 data)."""

    def __init__(
        self,
        *,
        is_server: bool,
        alpn: list[str],
        parameters: bytes,
        on_secret: Callable[[int, bool, int, bytes], None],
    ) -> None:
        """`on_secret(epoch, is_sending, suite, secret)`; `parameters` are our transport parameters."""
        self._is_server = is_server
        self._on_secret = on_secret
        self._identities: Identities | None = None
        self._first = b""  # of a ClientHello that is not whole yet
        self._tls = tls.Context(
            is_client=not is_server, alpn_protocols=alpn, cipher_suites=list(_SUITES), max_early_data=_EARLY_DATA
        )
        self._tls.handshake_extensions = [(_PARAMETERS, parameters)]
        self._tls.update_traffic_key_cb = self._keep_secret
        self._buffers = {epoch: Buffer(capacity=_FLIGHT_BYTES) for epoch in _EPOCHS}
        self.out: list[tuple[int, bytes]] = []
        self.takes_no_alpn = False
        self.server_name = ""
        self.reason = ""  # of the last failure

    def serve(self, identities: Identities, tickets: Tickets | None, *, takes_early: bool) -> None:
        """Be the server of these identities."""
        self._identities = identities
        context = self._tls
        if identities.client_ca:
            context._request_client_certificate = True  # noqa: SLF001 - the library has no public name for it
        if tickets is not None:
            context._max_early_data = _EARLY_DATA if takes_early else None  # noqa: SLF001
            context.get_session_ticket_cb = lambda ticket: tickets.take(self.alpn, ticket)
            context.new_session_ticket_cb = lambda ticket: tickets.add(self.alpn, ticket)

    def connect(
        self,
        server_name: str,
        *,
        ca: bytes,
        verify: bool,
        identity: Identity | None,
        ticket: tls.SessionTicket | None,
        on_ticket: Callable[[tls.SessionTicket], None] | None,
    ) -> None:
        """Be a client and say hello. `ca` are PEM certificates; without any, certifi's."""
        context = self._tls
        context._server_name = server_name  # noqa: SLF001
        context._verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE  # noqa: SLF001
        context._cadata = ca or None  # noqa: SLF001
        if identity is not None:
            self._present(identity)
        context.session_ticket = ticket
        context.new_session_ticket_cb = on_ticket
        context.handle_message(b"", self._buffers)
        self._collect()

    def let_go(self) -> None:
        """Take back what TLS calls us by: it is over, and reference counts are to free both."""
        context = self._tls
        context.update_traffic_key_cb = lambda *_: None
        context.get_session_ticket_cb = None
        context.new_session_ticket_cb = None

    def receive(self, epoch: int, data: bytes) -> int:
        """Take bytes of the peer's in order; return 0 or a transport error code, `reason` says why."""
        context = self._tls
        try:
            if not self._is_in_place(epoch):
                self.reason = "a TLS message in the wrong epoch"
                return CRYPTO_ERROR + _UNEXPECTED_MESSAGE
            if context.state is tls.State.SERVER_EXPECT_CLIENT_HELLO:
                data = self._first + data
                if len(data) < 4 or len(data) < 4 + int.from_bytes(data[1:4], "big"):
                    self._first = data
                    return 0
                self._first = b""
                self._choose_identity(data)
            was_complete = self.is_complete
            context.handle_message(data, self._buffers)
            if self.is_complete and not was_complete:
                self._check_client()
        except tls.Alert as alert:
            alert.__traceback__ = None  # one that is a local of its own frame would keep us for the collector
            self.reason = str(alert) or type(alert).__name__
            return CRYPTO_ERROR + int(alert.description)
        except (AssertionError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as fault:
            # The library lets a malformed message surface in many ways.
            self.reason = f"the handshake is malformed: {type(fault).__name__}"
            return CRYPTO_ERROR + int(tls.AlertDescription.decode_error)
        self._collect()
        return 0

    @property
    def is_complete(self) -> bool:
        """Whether both have proved what they know."""
        return self._tls.state in _IN_DATA

    @property
    def alpn(self) -> str:
        """The protocol that was chosen, empty before."""
        return self._tls.alpn_negotiated or ""

    @property
    def is_hello_read(self) -> bool:
        """Whether the peer's hello, and so the protocol, is known."""
        return self._tls.received_extensions is not None

    @property
    def is_early_accepted(self) -> bool:
        """Whether early data was or will be read."""
        return self._tls.early_data_accepted

    @property
    def is_resumed(self) -> bool:
        """Whether a ticket stood for the certificate."""
        return self._tls.session_resumed

    def peer_parameters(self) -> bytes | None:
        """Return the peer's transport parameters once they are known."""
        for kind, body in self._tls.received_extensions or ():
            if kind == _PARAMETERS:
                return bytes(body)
        return None

    def _is_in_place(self, epoch: int) -> bool:
        state = self._tls.state
        return epoch == (0 if state in _IN_INITIAL else 3 if state in _IN_DATA else 2)

    def _choose_identity(self, hello: bytes) -> None:
        assert self._identities is not None
        parsed = tls.pull_client_hello(Buffer(data=hello))
        if parsed.alpn_protocols is None and self.takes_no_alpn:
            self._tls._alpn_protocols = None  # noqa: SLF001 - or it would insist
        self.server_name = parsed.server_name or ""
        self._present(self._identities.find(self.server_name))

    def _present(self, identity: Identity) -> None:
        context = self._tls
        context.certificate = identity.certificate
        context.certificate_chain = identity.chain
        context.certificate_private_key = identity.key

    def _check_client(self) -> None:
        """Refuse a client without a certificate of the authority that it was asked for."""
        identities = self._identities
        if identities is None or not identities.client_ca or self._tls.session_resumed:
            return
        found = self._tls._peer_certificate  # noqa: SLF001
        if found is None:
            raise _CertificateRequiredError("a client certificate is required")
        tls.verify_certificate(found, self._tls._peer_certificate_chain, None, identities.client_ca)  # noqa: SLF001

    def _keep_secret(
        self, direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes
    ) -> None:
        self._on_secret(epoch.value, direction is tls.Direction.ENCRYPT, int(suite), secret)

    def _collect(self) -> None:
        for epoch, buffer in self._buffers.items():
            if buffer.tell():
                self.out.append((epoch.value, bytes(buffer.data)))
                buffer.seek(0)


class _CertificateRequiredError(tls.Alert):
    description = _CERTIFICATE_REQUIRED  # type: ignore[assignment]
