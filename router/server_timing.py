"""What a response says in `server-timing` of the time it took, in milliseconds to three places.

Written from tables: a double through `%.3f` costs as much as picking a replica, and each response has two.
Imports nothing of the project.
"""

from __future__ import annotations

from typing import Final

_MS: Final = tuple(b"%d" % ms for ms in range(1_000))
_US: Final = tuple(b".%03d" % us for us in range(1_000))


def server_timing(router_s: float, connected_s: float, upstream_s: float) -> bytes:
    """Return the field's value; no time for a connect means that there was none."""
    if connected_s:
        times = (in_ms(router_s), in_ms(connected_s), in_ms(upstream_s))
        return b"router;dur=%b, connect;dur=%b, upstream;dur=%b" % times
    return b'router;dur=%b, connect;dur=0;desc="reused", upstream;dur=%b' % (in_ms(router_s), in_ms(upstream_s))


def in_ms(seconds: float) -> bytes:
    """Return what `%.3f` would of the milliseconds."""
    us = int(seconds * 1e6 + 0.5)
    if 0 <= us < 1_000_000:
        return _MS[us // 1_000] + _US[us % 1_000]
    return b"%.3f" % (seconds * 1e3)
