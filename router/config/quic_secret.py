"""The daemon's QUIC secret and its incarnation: in the state directory if one was named, else anew with each start.

With them a restart can still end what the process before it left behind (stateless resets, RFC 9000 §10.3), and
takes the ids of a killed daemon neither for its own nor for those of a successor.
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
INCARNATION = "quic.incarnation"


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


def next_incarnation(state_dir: str) -> int:
    """Return the one behind the last that was kept, 0 to 255; any where nothing is known of a daemon before."""
    if state_dir:
        with suppress(OSError, ValueError):
            return (int((Path(state_dir) / INCARNATION).read_text(encoding="ascii")) + 1) & 0xFF
    return secrets.randbelow(256)


def keep_incarnation(state_dir: str, incarnation: int) -> None:
    """Leave it for the next start."""
    if not state_dir:
        return
    path = Path(state_dir) / INCARNATION
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, b"%d" % incarnation)
    except OSError as failure:
        _log.warning("%s: %s; the next daemon may not end this one's QUIC connections", path, failure.strerror)


def _make(path: Path) -> bytes:
    """Write a new one."""
    made = secrets.token_bytes(SECRET_BYTES)
    _write(path, made)
    return made


def _write(path: Path, data: bytes) -> None:
    """Write a file whole, for nobody else's eyes."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.replace(path)
