"""One connection's state, and what every part of it may do: fail, touch, look things up.

    HANDSHAKING --TLS complete--> OPEN --close, fault--> CLOSING --3 probe timeouts--> OVER
         |                          +----peer's close----> DRAINING ----------------->
         +--reset, idle, limit-------------------------------------------------------> OVER

The parts are classes one above the other, each a file: `frames_in` takes frames, `packets_in` packets,
`packets_out` writes both, `connection` joins them with TLS, time and the application.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.ack_frequency import AckFrequency
from router.transport.codec.quic.congestion import Congestion
from router.transport.codec.quic.crypto_stream import CryptoStream
from router.transport.codec.quic.ids import OwnIds, PeerIds
from router.transport.codec.quic.limits import (
    CONTROL_BURST,
    CONTROL_RATE,
    MAX_REASON_BYTES,
    MIN_DATAGRAM_BYTES,
)
from router.transport.codec.quic.packet import DATA, HANDSHAKE, INITIAL
from router.transport.codec.quic.path import Mtu, Path
from router.transport.codec.quic.recovery import Recovery, SentPacket, Space
from router.transport.codec.quic.seam import Application, Bearer
from router.transport.codec.quic.streams import Streams
from router.transport.codec.quic.transport_parameters import Parameters

if TYPE_CHECKING:
    from router.transport.codec.quic.config import QuicConfig
    from router.transport.codec.quic.flow import QuicFlow
    from router.transport.codec.quic.handshake import Handshake
    from router.transport.codec.quic.keys import PacketKey
    from router.transport.codec.quic.path import Address
    from router.transport.codec.quic.seam import Owner

HANDSHAKING: Final = 0
OPEN: Final = 1
CLOSING: Final = 2
DRAINING: Final = 3
OVER: Final = 4

SPACES: Final = (INITIAL, HANDSHAKE, DATA)


class ConnectionState(Bearer):
    """The attributes; see the classes that use them."""

    __slots__ = (
        "_control_s",
        "_control_tokens",
        "_told_lost",
        "ack_frequency",
        "alpn",
        "application",
        "challenges_seen",
        "close_code",
        "close_frame_type",
        "close_is_application",
        "close_packets",
        "close_reason",
        "close_wanted",
        "closed_by_peer",
        "config",
        "crypto",
        "datagrams_in",
        "datagrams_out",
        "deadline_s",
        "early_key",
        "early_packets",
        "ecn",
        "failed_opens",
        "first_id",
        "following_key",
        "handshake",
        "handshake_done_due",
        "handshake_until_s",
        "idle_s",
        "ids",
        "is_confirmed",
        "is_early",
        "is_server",
        "key_packets",
        "key_phase",
        "last_heard_s",
        "last_probe_s",
        "max_peer_datagram",
        "migrations",
        "now",
        "original_id",
        "own_ids",
        "owner",
        "paced_until_s",
        "path",
        "paths",
        "peer",
        "peer_ids",
        "phase",
        "phase_acked",
        "phase_first",
        "phase_sent",
        "ping_due",
        "previous_key",
        "previous_until_s",
        "received_packets",
        "recovery",
        "resets",
        "retry_id",
        "sent_packets",
        "source_id",
        "source_known",
        "spoke_since_heard",
        "stops",
        "streams",
        "takes_ack_frequency",
        "token",
        "tokens_due",
        "used_token",
    )

    def __init__(
        self, config: QuicConfig, owner: Owner, now: float, address: Address, local: object, original_id: bytes
    ) -> None:
        self.config = config
        self.owner = owner
        self.now = now
        self.is_server = config.is_server
        self.is_early = False
        self.alpn = ""
        self.application: Application | None = None
        self.handshake: Handshake | None = None
        self.phase = HANDSHAKING
        self.peer = Parameters()
        mtu = Mtu(MIN_DATAGRAM_BYTES, config.max_payload)
        self.path = Path(address, local, mtu, is_validated=not config.is_server)
        self.paths: list[Path] = [self.path]
        self.original_id = original_id
        self.first_id = original_id  # where the client's first packets go
        self.retry_id = b""
        self.source_id = owner.make_id()
        self.source_known = False  # whether the peer has named itself
        self.own_ids = OwnIds(self.source_id, owner.make_id, owner.retire_id)
        self.peer_ids = PeerIds(original_id)
        self.token = b""  # of a Retry or an earlier connection, in every Initial of a client
        self.recovery = Recovery(Congestion(config.initial_window, mtu.size), is_server=config.is_server)
        self.ack_frequency = AckFrequency()
        self.takes_ack_frequency = False  # the peer said that it does what such frames ask for
        self.crypto = [CryptoStream(), CryptoStream(), CryptoStream(), CryptoStream()]
        self.streams = Streams(
            is_server=config.is_server,
            window=config.stream_window,
            connection_window=config.connection_window,
            limits=(config.max_streams, config.max_uni_streams),
            touch=owner.touch,
            on_gone=self.on_stream_gone,
        )
        # keys beyond those of the spaces
        self.early_key: PacketKey | None = None
        self.key_phase = 0
        self.key_packets = 0
        self.phase_first = 0  # the lowest number received in this phase
        self.phase_sent = 0  # the first number sent in it
        self.phase_acked = True  # something of it was acknowledged: another update is allowed
        self.previous_key: PacketKey | None = None
        self.following_key: PacketKey | None = None
        self.previous_until_s = 0.0
        self.failed_opens = 0
        self.early_packets: list[tuple[int, bytes]] = []  # come before their keys, with their ECN bits
        # to be told to the application
        self.resets: list[tuple[QuicFlow, int]] = []
        self.stops: list[tuple[QuicFlow, int]] = []
        self.datagrams_in: list[bytes] = []
        self._told_lost = False
        # to be sent
        self.datagrams_out: deque[bytes] = deque()
        self.handshake_done_due = False
        self.ping_due = False
        self.tokens_due: list[bytes] = []
        self.close_wanted = False
        self.close_packets = 0
        self.close_code = 0
        self.close_frame_type = 0
        self.close_is_application = False
        self.close_reason = b""
        self.closed_by_peer = False
        # time
        self.deadline_s = 0.0  # of CLOSING and DRAINING
        self.handshake_until_s = now + config.handshake_s
        self.idle_s = config.idle_s
        self.last_heard_s = now
        self.last_probe_s = now
        self.spoke_since_heard = False
        self.paced_until_s = 0.0
        self.is_confirmed = False
        self.max_peer_datagram = 0
        self.used_token = b""
        self._control_tokens = float(CONTROL_BURST)
        self._control_s = now
        # what metrics ask for
        self.ecn = 0  # of the datagrams that are being read
        self.received_packets = 0
        self.sent_packets = 0
        self.migrations = 0
        self.challenges_seen = 0

    def on_stream_gone(self, flow: QuicFlow) -> None:
        """Tell the application."""
        if self.application is not None and not self._told_lost:
            self.application.stream_gone(flow)

    def fail(self, code: int, reason: str, frame_type: int = 0) -> None:
        """End the connection: the peer broke a rule, or we did."""
        if self.phase >= CLOSING:
            return
        self.begin_close(code, reason.encode()[:MAX_REASON_BYTES], is_application=False, frame_type=frame_type)
        self.lose(code, reason, by_peer=False)

    def begin_close(self, code: int, reason: bytes, *, is_application: bool, frame_type: int = 0) -> None:
        """Say goodbye at the flush, and stay for a while to repeat it."""
        self.phase = CLOSING
        self.close_wanted = True
        self.close_code = code
        self.close_reason = reason[:MAX_REASON_BYTES]
        self.close_is_application = is_application
        self.close_frame_type = frame_type
        self.deadline_s = self.now + self.recovery.close_s()
        self.owner.touch()
        self.owner.watch()

    def lose(self, code: int, reason: str, *, by_peer: bool) -> None:
        """Tell the application, once, that the connection is over."""
        if self._told_lost:
            return
        self._told_lost = True
        if self.application is not None:
            self.application.connection_lost(code, reason, by_peer)

    def silence(self) -> None:
        """Tell the application nothing more: it has closed."""
        self._told_lost = True

    def is_over_budget(self) -> bool:
        """Count a frame that makes us work and carries nothing; whether there are too many of them."""
        tokens = self._control_tokens + (self.now - self._control_s) * CONTROL_RATE
        self._control_s = self.now
        self._control_tokens = min(tokens, float(CONTROL_BURST)) - 1.0
        return self._control_tokens < 0.0

    def space(self, epoch: int) -> Space:
        """Return a packet number space."""
        return self.recovery.spaces[epoch]

    def settle_acked(self, acked: list[SentPacket]) -> None:
        """Tell frames that they arrived."""
        for packet in acked:
            for frame in packet.frames:
                frame.on_acked()

    def settle_lost(self, lost: list[SentPacket]) -> None:
        """Tell frames that they are to be sent again."""
        for packet in lost:
            if packet.is_probe:
                self.path.mtu.lost(self.now)
            for frame in packet.frames:
                frame.on_lost()
        if lost:
            self.owner.touch()
