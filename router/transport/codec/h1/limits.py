"""The bounds a client connection is held to."""

from __future__ import annotations

import msgspec


class ServerLimits(msgspec.Struct, frozen=True):
    """Seconds and bytes. A head's size and field count are `head.MAX_HEAD_BYTES` and `MAX_FIELDS`."""

    head_s: float = 10.0  # from a head's first byte to its last: holds off slow heads (slowloris)
    keep_alive_s: float = 75.0  # idle between requests
    idle_s: float = 1800.0  # nothing moves on a request; the endpoint's own limit replaces it
    stall_s: float = 60.0  # the client takes nothing of what waits for it
    retire_s: float = 5.0  # idle while another process has taken the listener over
    linger_s: float = 2.0  # input read and dropped after the last answer
    max_held_bytes: int = 65_536  # input kept for later before reading stops
