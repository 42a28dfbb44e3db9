"""Ports for servers that are told where to listen before they do."""

from __future__ import annotations

import socket
from random import randrange

# Below what Linux gives to outgoing connections and to servers that take any port: one of those, made in between,
# would have the port before its server binds it.
_FIRST, _END = 18_000, 32_768
_TRIES = 1_000


def free_port() -> int:
    """Return a loopback port that nobody has now, and nobody is given by chance. OSError if none was found."""
    for _ in range(_TRIES):
        port = randrange(_FIRST, _END)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on the loopback")
