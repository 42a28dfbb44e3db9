"""The certificates of TLS listeners as the QUIC handshake wants them: objects of `cryptography`, found by name.

What cannot be served over QUIC although OpenSSL would is refused by name, before a client finds it out. Imported
only where QUIC is listened on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from router.transport.certificates import TlsFileError
from router.transport.server_tls import ServerNames

if TYPE_CHECKING:
    from router.transport.server_tls import CertificatePair, ServerTls

_CURVES: Final = ("secp256r1", "secp384r1")  # what aioquic's TLS signs with


class ServedIdentity:
    """One certificate with its chain and its key."""

    __slots__ = ("certificate", "chain", "key")

    def __init__(self, pair: CertificatePair) -> None:
        """Read them; TlsFileError says what QUIC cannot use."""
        try:
            certificates = load_pem_x509_certificates(pair.cert)
            self.key: Any = load_pem_private_key(pair.key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as failure:
            raise TlsFileError("key", f"{pair.path}: cannot be served over QUIC: {failure}") from None
        self.certificate: Any = certificates[0]
        self.chain: list[Any] = list(certificates[1:])
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            if self.key.curve.name not in _CURVES:
                raise TlsFileError("key", f"{pair.path}: has a key on {self.key.curve.name}, which QUIC cannot use")
        elif not isinstance(self.key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
            raise TlsFileError("key", f"{pair.path}: has a key of a kind that QUIC cannot use")


class ServedIdentities:
    """All of them. The first is for clients that name no server, or none that we have."""

    __slots__ = ("_found", "_names", "client_ca")

    def __init__(self, tls: ServerTls) -> None:
        """Read them; TlsFileError says what QUIC cannot use."""
        self.client_ca = tls.client_ca
        self._names = ServerNames(tls.pairs)
        self._found = [ServedIdentity(pair) for pair in tls.pairs]

    def find(self, name: str) -> ServedIdentity:
        """Return the one for a server's name."""
        return self._found[self._names.find(name)]
