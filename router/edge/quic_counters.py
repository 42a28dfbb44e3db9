"""What a worker's QUIC listener counts, by name; packets and datagrams apart from `UdpCounters`.

Every datagram that leads nowhere is counted under one reason. Imports nothing but histograms.
"""

from __future__ import annotations

from router.counters import Histogram

DROP_REASONS = (
    "malformed",  # no header to be read, or one that no client sends
    "small",  # a client's first packet in a datagram below 1,200 bytes
    "junk",  # a client's first packet that does not authenticate
    "unknown",  # an id that is nobody's
    "early",  # long headers of a connection that is not there
    "negotiation_limit",  # of an unknown version, too many of them
    "reset_limit",  # of a connection that is gone, too many of them, or too small to be answered
    "handshakes",  # more unfinished handshakes than a worker has room for
    "forward_full",  # another process does not take so many
    "forward_gone",  # the process that it belonged to has ended
    "forward_hops",  # sent round and round
    "stun",  # STUN that asks for nothing, or is not as it should be
    "stun_limit",  # too many Binding requests
)
DROPS = tuple(f"quic_drop_{reason}" for reason in DROP_REASONS)
ATTACH_NUMBERS = ("attached_replicas", "attach_refused", "attach_streams")
"""Of replicas that dialled; see `attach_server`. The first also falls."""
LANE_NUMBERS = ("lanes_opened", "lanes_failed")
"""Of robots' tunnels to them; see `lane_dials`."""
QUIC_NUMBERS = (
    "quic_connections_open",
    "quic_handshaking",
    "quic_handshakes",
    "quic_handshake_failures",
    "quic_refused",
    "quic_retries",
    "quic_retries_answered",
    "quic_invalid_tokens",
    "quic_tokens_used",
    "quic_negotiations",
    "quic_resets",
    "quic_migrations",
    "quic_forwarded",
    "quic_taken_over",
    "quic_packets_received",
    "quic_packets_sent",
    "quic_packets_lost",
    "stun_answers",
    "stun_refusals",
    "stun_checks",
    *DROPS,
)


class QuicCounters:
    """Plain integers; `quic_connections_open` and `quic_handshaking` also fall."""

    __slots__ = (*QUIC_NUMBERS, "rtt")

    def __init__(self) -> None:
        self.quic_connections_open = 0
        self.quic_handshaking = 0
        self.quic_handshakes = 0
        self.quic_handshake_failures = 0
        self.quic_refused = 0
        self.quic_retries = 0
        self.quic_retries_answered = 0
        self.quic_invalid_tokens = 0
        self.quic_tokens_used = 0
        self.quic_negotiations = 0
        self.quic_resets = 0
        self.quic_migrations = 0
        self.quic_forwarded = 0
        self.quic_taken_over = 0  # that another process had read
        self.quic_packets_received = 0
        self.quic_packets_sent = 0
        self.quic_packets_lost = 0
        self.stun_answers = 0
        self.stun_refusals = 0
        self.stun_checks = 0
        self.quic_drop_malformed = 0
        self.quic_drop_small = 0
        self.quic_drop_junk = 0
        self.quic_drop_unknown = 0
        self.quic_drop_early = 0
        self.quic_drop_negotiation_limit = 0
        self.quic_drop_reset_limit = 0
        self.quic_drop_handshakes = 0
        self.quic_drop_forward_full = 0
        self.quic_drop_forward_gone = 0
        self.quic_drop_forward_hops = 0
        self.quic_drop_stun = 0
        self.quic_drop_stun_limit = 0
        self.rtt = Histogram()  # smoothed, of each connection when it ends
