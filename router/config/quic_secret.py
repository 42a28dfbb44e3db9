"""The daemon's QUIC secret: kept in the state directory if one was named, else made anew with each start.

With it a restart can still end what the process before it left behind (stateless resets, RFC 9000 §10.3).
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from router.transport.codec.quic.keyring import SECRET_BYTES

_log = logging.getLogger("router.config")

FILE = "quic.secret"


def load_secret(state_dir: str) -> bytes:
    """Return the secret; without a directory, or one that cannot be written, it lives as long as the daemon."""
    if not state_dir:
        return secrets.token_bytes(SECRET_BYTES)
    path = Path(state_dir) / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            found = path.read_bytes()
            if len(found) == SECRET_BYTES:
                return found
            _log.warning("%s has %d bytes instead of %d and is made anew", path, len(found), SECRET_BYTES)
        return _make(path)
    except OSError as failure:
        _log.warning("%s: %s; the next daemon cannot end this one's QUIC connections", path, failure.strerror)
        return secrets.token_bytes(SECRET_BYTES)


def _make(path: Path) -> bytes:
    """Write a new one whole, for nobody else's eyes."""
    made = secrets.token_bytes(SECRET_BYTES)
    new = path.with_name(f"{FILE}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, made)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.replace(path)
    return made
