"""Every bound of a QUIC connection by name, with its reason. Imports nothing."""

from __future__ import annotations

from typing import Final

VERSION_1: Final = 1

ID_BYTES: Final = 12
"""Length of the connection ids we issue; what stands in them is the shell's."""
ISSUED_IDS: Final = 4
"""Ids that a peer has of us at a time: one in use, the others for paths it may move to."""
HELD_IDS: Final = 4
"""What we announce as active_connection_id_limit."""
MAX_RETIRING: Final = 32
"""Ids of the peer that are retired and not acknowledged; more is an attack on our memory (CVE-2023-39319)."""

MIN_DATAGRAM_BYTES: Final = 1_200
"""Every path carries that (RFC 9000 §14)."""
MAX_DATAGRAM_BYTES: Final = 65_527
AMPLIFICATION: Final = 3
"""Bytes sent for each one received while an address is not validated (RFC 9000 §8.1)."""

# Receive credit. A robot's observation of 600 KB has to fit a window, or it takes another round trip.
STREAM_WINDOW: Final = 1_048_576
CONNECTION_WINDOW: Final = 8_388_608
MAX_STREAMS: Final = 256
"""Request streams of a peer at a time, as with HTTP/2."""
MAX_UNI_STREAMS: Final = 64
"""One-way streams of a peer at a time: HTTP/3 has three, a robot one for each observation in flight."""

HIGH_BYTES: Final = 262_144
"""Of a stream of ours that wait to be sent: the application is told to hold back …"""
LOW_BYTES: Final = 65_536
"""… until so many are left."""
PACKET_ROOM: Final = 1_024
"""A stream whose share of a packet would be less waits for the next one, unless it is all it has."""

MAX_GAPS: Final = 1_024
"""Holes in what was received of one stream; a packet that makes more is dropped as if it were lost."""
MAX_ACK_RANGES: Final = 64
"""Ranges of packet numbers that we remember having received; older ones are taken for received."""
CRYPTO_BYTES: Final = 65_536
"""Of a handshake, out of order, in each epoch: a chain of certificates fits."""
MAX_EARLY_PACKETS: Final = 16
"""Packets kept that came before their keys."""
MAX_DATAGRAMS: Final = 256
"""DATAGRAM frames that wait to be sent; the oldest is dropped for a new one."""
MAX_PATHS: Final = 4
"""Addresses of the peer that are being validated at a time."""
CONTROL_BURST: Final = 1_024
CONTROL_RATE: Final = 200.0
"""Frames that make us answer or allocate and carry nothing (PATH_CHALLENGE, NEW_CONNECTION_ID, RETIRE…, resets)."""

MAX_ACK_DELAY_S: Final = 0.025
ACK_EVERY: Final = 2
"""Packets after which an acknowledgement is due at the end of the tick; a tick may bring a thousand."""
ACK_DELAY_EXPONENT: Final = 3
GRANULARITY_S: Final = 0.001
INITIAL_RTT_S: Final = 0.1
"""Until there is a sample. RFC 9002 says 0.333, with which the first loss costs most of a second."""
PACKET_THRESHOLD: Final = 3
"""Packets behind which one is given up. It grows as far as packets are seen to overtake each other …"""
MAX_PACKET_THRESHOLD: Final = 1_024
"""… up to this; TCP of Linux goes to 300."""
MAX_GIVEN_UP: Final = 1_024
"""Packets given up whose late acknowledgement would still be understood."""
TIME_THRESHOLD: Final = 9.0 / 8.0
PERSISTENT_PTOS: Final = 3
MAX_PTO_SHIFT: Final = 6
PROBES: Final = 2
"""Packets sent when the probe timer fires (RFC 9002 §6.2.4)."""

INITIAL_PACKETS: Final = 32
"""Of the initial window, for answers; RFC 9002 says ten, the content networks use about this many."""
MIN_PACKETS: Final = 2

HANDSHAKE_LIMIT_S: Final = 10.0
IDLE_LIMIT_S: Final = 30.0
KEY_PACKETS: Final = 4_194_304
"""Packets under one key before we change it: half of what RFC 9001 §6.6 allows AES-GCM."""
INTEGRITY_LIMIT: Final = 1 << 36
"""Packets that may fail to authenticate (RFC 9001 §6.6, ChaCha20-Poly1305, the stricter one)."""
MAX_REASON_BYTES: Final = 256

# Transport error codes, RFC 9000 §20.1.
NO_ERROR: Final = 0x0
INTERNAL_ERROR: Final = 0x1
CONNECTION_REFUSED: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_LIMIT_ERROR: Final = 0x4
STREAM_STATE_ERROR: Final = 0x5
FINAL_SIZE_ERROR: Final = 0x6
FRAME_ENCODING_ERROR: Final = 0x7
TRANSPORT_PARAMETER_ERROR: Final = 0x8
CONNECTION_ID_LIMIT_ERROR: Final = 0x9
PROTOCOL_VIOLATION: Final = 0xA
INVALID_TOKEN: Final = 0xB
APPLICATION_ERROR: Final = 0xC
CRYPTO_BUFFER_EXCEEDED: Final = 0xD
KEY_UPDATE_ERROR: Final = 0xE
AEAD_LIMIT_REACHED: Final = 0xF
NO_VIABLE_PATH: Final = 0x10
CRYPTO_ERROR: Final = 0x100
"""Plus the TLS alert."""
