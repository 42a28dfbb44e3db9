"""Files of certificates and keys: read within a bound, put into a context, and what is wrong with them in words.

Contexts are made of bytes, never of paths: what was checked is what serves, whatever becomes of the files.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

MAX_PEM_BYTES = 1 << 20  # the system's whole list of authorities is 230 KB
# RFC 9113 §9.2.2 forbids everything else over TLS 1.2, and nothing else is worth offering.
CIPHERS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

Stamp = tuple[int, int, int] | None

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = b"PRIVATE KEY-----"
_REASONS: Final = {
    "KEY_VALUES_MISMATCH": "does not belong to the certificate",
    "EE_KEY_TOO_SMALL": "has a key too small to be safe",
    "CA_KEY_TOO_SMALL": "has an authority's key too small to be safe",
    "CA_MD_TOO_WEAK": "is signed with a hash too weak to be safe",
}


class TlsFileError(OSError):
    """A file that cannot be used. `field` is `ca`, `cert` or `key`; the text says what is wrong with it."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def file_stamp(path: str) -> Stamp:
    """Return what changes when a file does, links followed; None for no file, or one that cannot be looked at."""
    if not path:
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 - on the way of each new connection to a replica
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_pem(path: str, field: str) -> bytes:
    """Return a file whole; TlsFileError if it cannot be read, is too large, or holds nothing of its kind."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as failure:
        raise TlsFileError(field, f"{path}: cannot be read: {(failure.strerror or str(failure)).lower()}") from None
    if len(data) > MAX_PEM_BYTES:
        raise TlsFileError(field, f"{path}: is larger than {MAX_PEM_BYTES} bytes")
    if (_KEY if field == "key" else _CERTIFICATE) not in data:
        raise TlsFileError(field, f"{path}: holds no {'key' if field == 'key' else 'certificate'} in PEM")
    return data


def load_pair(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Give `context` a certificate with its chain, and its key. TlsFileError, without a path: they do not fit."""
    held = []
    try:
        for data in (cert, key):  # OpenSSL's Python face takes names of files only: these exist in memory alone
            fd = os.memfd_create("pem", os.MFD_CLOEXEC)
            held.append(fd)
            os.write(fd, data)
        context.load_cert_chain(f"/proc/self/fd/{held[0]}", f"/proc/self/fd/{held[1]}", _refuse_password)
    except _EncryptedError:
        raise TlsFileError("key", "is encrypted; a daemon has nobody to ask for the passphrase") from None
    except ssl.SSLError as failure:
        if failure.reason == "KEY_VALUES_MISMATCH" or not failure.reason:
            field = "key" if failure.reason or _is_readable(cert) else "cert"
            text = _REASONS.get(failure.reason or "", "holds a damaged block of PEM")
        else:
            field, text = "cert", _REASONS.get(failure.reason, failure.reason.lower().replace("_", " "))
        raise TlsFileError(field, text) from None
    finally:
        for fd in held:
            os.close(fd)


def load_authorities(context: ssl.SSLContext, ca: bytes) -> None:
    """Have `context` trust these authorities; TlsFileError, without a path, if there is none among them."""
    try:
        context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise TlsFileError("ca", "holds a damaged block of PEM") from None


def first_certificate(cert: bytes) -> str:
    """Return the leaf of a chain as text."""
    end = b"-----END CERTIFICATE-----"
    begin = cert.index(_CERTIFICATE)
    return cert[begin : cert.find(end, begin) + len(end)].decode("ascii", "replace") + "\n"


class _EncryptedError(Exception):
    pass


def _refuse_password() -> str:
    raise _EncryptedError


def _is_readable(cert: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=cert.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        return False
    return True
