"""Every bound of HTTP/3 by name. Those of a head's fields are HTTP/1.1's; streams and windows are the engine's."""

from __future__ import annotations

from typing import Final

LOW_BYTES: Final = 16_384
"""What a reader has to take within `stall_s` to count as one that reads."""

MAX_BLOCK_BYTES: Final = 65_536
"""A field section on the wire, and what is announced as SETTINGS_MAX_FIELD_SECTION_SIZE."""
MAX_LIST_BYTES: Final = 65_536
"""The fields of a section, RFC 9114 §4.2.2's way of counting."""
MAX_SETTINGS_BYTES: Final = 1_024
"""Of a client's SETTINGS: at least 64 of them."""
MAX_PRIORITY_BYTES: Final = 1_024
"""Of a PRIORITY_UPDATE, which is read and forgotten."""

MEMO_BLOCKS: Final = 64
"""Field sections remembered on a connection …"""
MEMO_BLOCK_BYTES: Final = 1_024
"""… of so many bytes at most."""

# What costs something and carries nothing: so many at once, and so many a second for ever.
RESET_BURST: Final = 512.0
"""Requests given up or malformed, by stream."""
RESETS_PER_S: Final = 100.0
ANSWERS_PER_RESET: Final = 2
"""Requests that were answered whole pardon one: a proxy in front carries many clients."""
EMPTY_BURST: Final = 128.0
"""DATA frames without a byte that end nothing."""
IDLE_BURST: Final = 1_024.0
"""Unknown frames, streams and datagrams, PRIORITY_UPDATE, and what else means nothing to us."""
FRAMES_PER_S: Final = 20.0
EARNED_PER_REQUEST: Final = 4
"""Of the last two kinds, free with each request: clients grease, and end bodies with an empty frame."""
MAX_EARNED: Final = 4_096

DRAIN_ROUND_TRIP_S: Final = 1.0
"""From the GOAWAY that only warns to the one that counts: what a client sent meanwhile is served. And from that one
to the close of a connection without requests: what comes in between is known to be unserved."""
HALF_OPEN_S: Final = 1.0
"""For a client to end its side of a tunnel whose other half is over."""
