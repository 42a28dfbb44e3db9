"""Every bound of HTTP/2 by name. A head's size and field count are those of HTTP/1.1."""

from __future__ import annotations

from typing import Final

# What a peer may send before it is read on: per stream as much as a robot's observation at once, and on the
# connection so much that it takes 32 streams whose replica does not read to stop the others.
STREAM_WINDOW: Final = 262_144
CONNECTION_WINDOW: Final = 8_388_608

MAX_STREAMS: Final = 256  # open at a time on a client's connection; one more is refused
ASSUMED_STREAMS: Final = 100  # of a replica whose SETTINGS have not come (RFC 9113 §6.5.2 recommends no less)

# Bytes of one stream that wait for its peer's window: above, its other side is held; below, it goes on.
HIGH_BYTES: Final = 65_536
LOW_BYTES: Final = 16_384

MAX_SENT_FRAME: Final = 65_536  # of a peer that takes larger frames: a large one is held whole until it is read

MAX_BLOCK_BYTES: Final = 65_536  # a field block on the wire, in all its frames
MAX_CONTINUATIONS: Final = 32
MAX_LIST_BYTES: Final = 65_536  # the fields of a block, RFC 9113 §6.5.2's way of counting
MAX_TABLE_BYTES: Final = 4_096  # the peer's encoder's dynamic table
MAX_REMEMBERED_RESETS: Final = 512  # streams we reset, whose late frames are not the peer's fault
MAX_SKIPPED: Final = 64  # ranges of stream ids never used
MAX_BACKLOG: Final = 1_000  # answers to PING and SETTINGS that a peer does not read

MEMO_BLOCKS: Final = 64  # field blocks remembered on a connection …
MEMO_BLOCK_BYTES: Final = 1_024  # … of so many bytes at most

# Frames that cost us something and carry nothing: so many at once, and so many a second for ever.
RESET_BURST: Final = 512.0  # streams reset, by whomever: each was a request
RESETS_PER_S: Final = 100.0
ANSWERS_PER_RESET: Final = 2  # streams that ended whole pardon one: a proxy in front carries many clients
PING_BURST: Final = 512.0
SETTINGS_BURST: Final = 64.0
EMPTY_BURST: Final = 128.0  # DATA without a byte that ends nothing
CREDIT_BURST: Final = 2_048.0  # WINDOW_UPDATE; each frame of ours earns some
IDLE_BURST: Final = 1_024.0  # PRIORITY, PRIORITY_UPDATE, unknown types
FRAMES_PER_S: Final = 20.0
CREDITS_PER_FRAME: Final = 4

DRAIN_ROUND_TRIP_S: Final = 1.0  # for the answer that shows that a client read the first GOAWAY
GOAWAY_LINGER_S: Final = 1.0  # for a peer to read why its connection ends
PING_LIMIT_S: Final = 20.0  # for a replica to answer a PING
IDLE_CONNECTION_S: Final = 300.0  # a replica's connection without streams is closed after this
