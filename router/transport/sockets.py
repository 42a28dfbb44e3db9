"""Options of TCP sockets."""

from __future__ import annotations

import socket

# A host that lost power is noticed after 15 + 3 x 5 s on a connection that waits for an answer. No
# TCP_USER_TIMEOUT: Linux also applies it to a peer whose window is shut, and a reader may be slow.
_IDLE_S, _INTERVAL_S, _PROBES = 15, 5, 3


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask a silent peer whether it is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
