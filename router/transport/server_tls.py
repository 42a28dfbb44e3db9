"""TLS to clients: certificates checked by a real handshake, and the context that serves them.

The supervisor reads the files (`read_server_tls`) and hands what it read to every worker, so that all of them, and
a worker that starts later, serve what was checked, whatever becomes of the files. A worker makes one context of it
(`server_context`); every new connection is given the newest, and old ones keep theirs.
"""

from __future__ import annotations

import ssl
from typing import Any, Final, Literal

import msgspec

from router.transport.certificates import (
    CIPHERS_1_2,
    TlsFileError,
    first_certificate,
    load_authorities,
    load_pair,
    read_pem,
)

ALPN: Final = ["h2", "http/1.1"]
MinVersion = Literal["1.2", "1.3"]
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# OpenSSL's SSL_OP_PRIORITIZE_CHACHA, which Python does not name: a client that puts ChaCha20 first has no AES in
# hardware, and gets it; else our order counts.
_PRIORITIZE_CHACHA: Final = 1 << 21
_EXPIRED, _NOT_YET, _WRONG_PURPOSE = 10, 9, 26  # X509_V_ERR_*


class CertificatePair(msgspec.Struct, frozen=True):
    """A certificate with its chain and its key; `names` are its DNS names, lower case."""

    path: str
    cert: bytes
    key: bytes
    names: tuple[str, ...]
    expires_epoch_s: float


class ServerTls(msgspec.Struct, frozen=True):
    """What TLS listeners serve. The first pair is for clients that name no server, or none that we have."""

    pairs: tuple[CertificatePair, ...]
    client_ca: bytes = b""
    min_version: MinVersion = "1.2"


def read_server_tls(certs: list[str], keys: list[str], client_ca: str, min_version: MinVersion) -> ServerTls:
    """Read and check the files; TlsFileError names the field (`ca` is the clients' authority) and the file."""
    pairs = tuple(read_pair(cert, key) for cert, key in zip(certs, keys, strict=True))
    ca = read_pem(client_ca, "ca") if client_ca else b""
    tls = ServerTls(pairs, ca, min_version)
    try:
        server_context(tls)
    except TlsFileError as failure:  # the pairs were tried: what is left is the authority
        raise TlsFileError("ca", f"{client_ca}: {failure}") from None
    return tls


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """Return the context for new connections. It picks among the pairs by the name a client asks for."""
    contexts = [_make_context(tls, pair) for pair in tls.pairs]
    default = contexts[0]
    if len(contexts) > 1:
        names = ServerNames(tls.pairs)

        def choose(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            found = names.find(name or "")
            if found:
                connection.context = contexts[found]

        default.sni_callback = choose
    return default


class ServerNames:
    """Which pair serves a name: an exact name before a wildcard, the first pair that has it before others."""

    __slots__ = ("_exact", "_wild")

    def __init__(self, pairs: tuple[CertificatePair, ...]) -> None:
        self._exact: dict[str, int] = {}
        self._wild: dict[str, int] = {}
        for i, pair in enumerate(pairs):
            for name in pair.names:
                if name.startswith("*."):
                    self._wild.setdefault(name[2:], i)
                else:
                    self._exact.setdefault(name, i)

    def find(self, name: str) -> int:
        """Return the index of the pair for `name`, 0 if none has it. RFC 6125 §6.4.3: `*` is one label."""
        name = name.lower().rstrip(".")
        found = self._exact.get(name)
        return self._wild.get(name.partition(".")[2], 0) if found is None else found


def _make_context(tls: ServerTls, pair: CertificatePair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.set_ciphers(CIPHERS_1_2)
    context.set_alpn_protocols(ALPN)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA
    load_pair(context, pair.cert, pair.key)
    if tls.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        load_authorities(context, tls.client_ca)
        if not context.cert_store_stats()["x509_ca"]:
            raise TlsFileError("ca", "holds no certificate of an authority")
    return context


def read_pair(cert_path: str, key_path: str) -> CertificatePair:
    """Read one certificate and its key; TlsFileError names the field and the file."""
    cert, key = read_pem(cert_path, "cert"), read_pem(key_path, "key")
    try:
        names, expires_epoch_s = _try_out(cert, key)
    except TlsFileError as failure:
        path = key_path if failure.field == "key" else cert_path
        raise TlsFileError(failure.field, f"{path}: {failure}") from None
    return CertificatePair(cert_path, cert, key, names, expires_epoch_s)


def _try_out(cert: bytes, key: bytes) -> tuple[tuple[str, ...], float]:
    """Shake hands with the pair in memory; return its DNS names and when it expires.

    Python's ssl tells what stands in a certificate only of one that a peer showed and that was verified. So a
    client that trusts just this certificate is shown it, which also finds what no client would take.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server, cert, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    load_authorities(client, first_certificate(cert).encode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for end in (theirs, ours, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        found = theirs.getpeercert()
    except ssl.SSLCertVerificationError as failure:
        raise TlsFileError("cert", _VERDICTS.get(failure.verify_code, failure.verify_message)) from None
    except (ssl.SSLError, ValueError) as failure:
        raise TlsFileError("cert", f"cannot be served: {failure}") from None
    assert found is not None
    alternatives: Any = found.get("subjectAltName", ())
    names = tuple(value.lower() for kind, value in alternatives if kind == "DNS")
    return names, float(ssl.cert_time_to_seconds(str(found["notAfter"])))


_VERDICTS: Final = {
    _EXPIRED: "has expired",
    _NOT_YET: "is not valid yet",
    _WRONG_PURPOSE: "is not for servers: its extended key usage leaves serverAuth out",
}
