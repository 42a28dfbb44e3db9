"""What was sent and is not known to have arrived: acknowledgements, loss, probe timeouts (RFC 9002).

    sent --ACK--> acked          of three packet number spaces, whose keys come and go
    sent --later packets acked, or long enough ago--> lost: its frames are sent again in new packets
    nothing heard for a probe timeout --> two packets that must be answered

Invariant: what is to arrive stands in one packet, or waits to be sent again, never both: a probe takes the frames
of the packets that it repeats. Imports nothing but its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.limits import (
    GRANULARITY_S,
    INITIAL_RTT_S,
    MAX_ACK_RANGES,
    MAX_GIVEN_UP,
    MAX_PACKET_THRESHOLD,
    MAX_PTO_SHIFT,
    PACKET_THRESHOLD,
    PERSISTENT_PTOS,
    TIME_THRESHOLD,
)
from router.transport.codec.quic.ranges import Ranges

if TYPE_CHECKING:
    from router.transport.codec.quic.congestion import Congestion
    from router.transport.codec.quic.keys import PacketKey

NOTHING: Final = -1
ECT_0: Final = 2
CONGESTION: Final = 3
"""Bits of an IP header (RFC 3168 §5): a sender that heeds marks, and the mark, Congestion Experienced."""


class SentFrame:
    """Something that a packet carried and that has to arrive."""

    __slots__ = ()

    def on_acked(self) -> None:
        """It arrived."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """It is to be sent again, if it still says something."""
        raise NotImplementedError


class SentPacket:
    """One packet under way. `size` is 0 if it does not count as in flight (an acknowledgement alone)."""

    __slots__ = ("acks_below", "frames", "is_eliciting", "is_probe", "number", "sent_s", "size")

    def __init__(self, number: int, sent_s: float, frames: list[SentFrame], *, is_eliciting: bool) -> None:
        self.number = number
        self.sent_s = sent_s
        self.size = 0
        self.frames = frames
        self.is_eliciting = is_eliciting
        self.is_probe = False  # for the path's MTU: its loss is no sign of congestion
        self.acks_below = 0  # it told the peer of all that we received below this


class Rtt:
    """The path's round trip, RFC 9002 §5; seconds."""

    __slots__ = ("has_sample", "latest_s", "min_s", "smoothed_s", "variance_s")

    def __init__(self) -> None:
        self.has_sample = False
        self.latest_s = INITIAL_RTT_S
        self.min_s = INITIAL_RTT_S
        self.smoothed_s = INITIAL_RTT_S
        self.variance_s = INITIAL_RTT_S / 2

    def add(self, sample_s: float, delay_s: float) -> None:
        """Take a sample; `delay_s` is what the peer says it waited before it acknowledged."""
        self.latest_s = sample_s
        if not self.has_sample:
            self.has_sample = True
            self.min_s = self.smoothed_s = sample_s
            self.variance_s = sample_s / 2
            return
        self.min_s = min(self.min_s, sample_s)
        adjusted_s = sample_s - delay_s if sample_s >= self.min_s + delay_s else sample_s
        self.variance_s += (abs(self.smoothed_s - adjusted_s) - self.variance_s) / 4
        self.smoothed_s += (adjusted_s - self.smoothed_s) / 8

    def probe_s(self) -> float:
        """Return how long to wait for an acknowledgement, without the peer's delay."""
        return self.smoothed_s + max(4 * self.variance_s, GRANULARITY_S)


class Space:
    """A packet number space: keys, what was sent, what was received."""

    __slots__ = (
        "ack_due_s",
        "ce_packets",
        "crypto_sent",
        "ect0_packets",
        "ect1_packets",
        "eliciting_in_flight",
        "expected",
        "given_up",
        "is_ack_due",
        "is_gone",
        "is_marked",
        "largest_acked",
        "largest_s",
        "last_eliciting_s",
        "loss_s",
        "next_number",
        "probes",
        "receive_key",
        "received",
        "received_floor",
        "reported_below",
        "send_key",
        "sent",
        "since_ack",
    )

    def __init__(self) -> None:
        self.send_key: PacketKey | None = None
        self.receive_key: PacketKey | None = None
        self.is_gone = False
        self.next_number = 0
        self.sent: dict[int, SentPacket] = {}
        self.given_up: dict[int, float] = {}  # numbers taken for lost, and when they were sent
        self.largest_acked = NOTHING
        self.eliciting_in_flight = 0
        self.last_eliciting_s = 0.0
        self.loss_s = 0.0  # when the next packet is given up, 0 if none is about to
        self.probes = 0  # packets that must be sent and answered, whatever the window says
        self.received = Ranges()
        self.is_marked = False  # some packet had ECN bits; how many of each kind:
        self.ect0_packets = 0
        self.ect1_packets = 0
        self.ce_packets = 0
        self.received_floor = 0  # everything below counts as received
        self.expected = 0  # one more than the largest received
        self.reported_below = 0  # one more than the largest that we acknowledged
        self.largest_s = 0.0
        self.since_ack = 0
        self.ack_due_s = 0.0
        self.is_ack_due = False
        self.crypto_sent = False

    def note_received(
        self, number: int, now: float, *, is_eliciting: bool, every: int, delay_s: float, reordering: int
    ) -> None:
        """Remember a packet, and when it has to be acknowledged: see `ack_frequency`."""
        if self.is_gone:
            return  # by what the packet itself brought
        received = self.received
        in_order = number == self.expected
        received.add(number, number + 1)
        if number >= self.expected:
            self.expected = number + 1
            self.largest_s = now
        if len(received) > MAX_ACK_RANGES:
            self.received_floor = received.ends[0]
            received.drop_below(self.received_floor)
        if not is_eliciting:
            return
        self.since_ack += 1
        if self.since_ack >= every:
            self.is_ack_due = True
        elif reordering == 1:
            # RFC 9000 §13.2.1: at once for what came out of order, and what stands behind a gap.
            if not in_order or len(received) > 1:
                self.is_ack_due = True
        elif reordering and self._is_gap_news(reordering):
            self.is_ack_due = True
        if not self.ack_due_s:
            self.ack_due_s = now + delay_s

    def _is_gap_news(self, reordering: int) -> bool:
        """Whether the sender, who gives up what is so far behind, has to hear of a gap (the draft's §6.2)."""
        reported = self.reported_below - 1 - reordering  # gaps up to this one were in earlier acknowledgements
        received = self.received
        end = self.received_floor
        for at in range(len(received)):
            start = received.starts[at]
            if start > end and start - 1 > reported:
                return self.expected - 1 - max(end, reported + 1) >= reordering
            end = received.ends[at]
        return False

    def note_mark(self, ecn: int, *, is_eliciting: bool) -> None:
        """Count a new packet's ECN bits; of congestion the sender hears at once (RFC 9000 §13.2.1, §13.4.1)."""
        self.is_marked = True
        if ecn == ECT_0:
            self.ect0_packets += 1
        elif ecn == CONGESTION:
            self.ce_packets += 1
            if is_eliciting and not self.is_gone:
                self.is_ack_due = True
        else:
            self.ect1_packets += 1

    def was_received(self, number: int) -> bool:
        """Whether the packet is a duplicate, or too old to tell."""
        return number < self.received_floor or self.received.has(number)

    def ack_sent(self) -> None:
        """Nothing is left to acknowledge."""
        self.reported_below = self.expected
        self.is_ack_due = False
        self.ack_due_s = 0.0
        self.since_ack = 0


class Recovery:
    """All spaces of one path."""

    __slots__ = (
        "congestion",
        "is_peer_validated",
        "lost_packets",
        "max_ack_delay_s",
        "packet_threshold",
        "pto_count",
        "rtt",
        "spaces",
        "spurious_packets",
    )

    def __init__(self, congestion: Congestion, *, is_server: bool) -> None:
        # By epoch; early data shares the space of all later data.
        data = Space()
        self.spaces: list[Space] = [Space(), data, Space(), data]
        self.congestion = congestion
        self.rtt = Rtt()
        self.pto_count = 0
        self.max_ack_delay_s = 0.0
        self.is_peer_validated = is_server  # whether the peer may answer whatever we sent (RFC 9002 §6.2.2.1)
        self.packet_threshold = PACKET_THRESHOLD
        self.lost_packets = 0
        self.spurious_packets = 0

    def on_sent(self, space: Space, packet: SentPacket) -> None:
        """Count a packet that leaves now."""
        space.sent[packet.number] = packet
        if packet.is_eliciting:
            space.eliciting_in_flight += 1
            space.last_eliciting_s = packet.sent_s
        self.congestion.in_flight += packet.size

    def on_ack(
        self, epoch: int, largest: int, ranges: list[tuple[int, int]], delay_s: float, now: float
    ) -> list[SentPacket]:
        """Take an acknowledgement; return the packets that it newly tells of, in no order."""
        space = self.spaces[epoch]
        sent = space.sent
        given_up = space.given_up
        acked: list[SentPacket] = []
        for low, high in ranges:
            if high - low > len(sent):
                acked += [sent[number] for number in sent if low <= number <= high]
            else:
                for number in range(low, high + 1):
                    packet = sent.get(number)
                    if packet is not None:
                        acked.append(packet)
            if given_up:
                self._note_late(space, [number for number in given_up if low <= number <= high])
        if not acked:
            return acked
        newest = acked[0]
        has_eliciting = False
        congestion = self.congestion
        for packet in acked:
            del sent[packet.number]
            if packet.number > newest.number:
                newest = packet
            if packet.is_eliciting:
                has_eliciting = True
                space.eliciting_in_flight -= 1
        if newest.number == largest and has_eliciting:
            self.rtt.add(now - newest.sent_s, min(delay_s, self.max_ack_delay_s))
        rtt_s = self.rtt.smoothed_s
        for packet in acked:
            if packet.size:
                congestion.on_acked(packet.size, packet.sent_s, now, rtt_s)
            if packet.acks_below:
                space.received.drop_below(min(packet.acks_below, space.expected))
                space.received_floor = max(space.received_floor, min(packet.acks_below, space.expected))
        space.largest_acked = max(space.largest_acked, largest)
        if self.is_peer_validated:
            self.pto_count = 0
        return acked

    def _note_late(self, space: Space, late: list[int]) -> None:
        """Learn from packets that were given up and arrived: they were overtaken (RFC 9002 §6.1.1 lets us wait)."""
        for number in late:
            self.spurious_packets += 1
            self.congestion.on_spurious(space.given_up.pop(number))
            overtaken = space.largest_acked - number + 1
            self.packet_threshold = min(max(self.packet_threshold, overtaken), MAX_PACKET_THRESHOLD)

    def find_lost(self, epoch: int, now: float) -> list[SentPacket]:
        """Take out and return the packets that are given up, and note when the next one will be."""
        space = self.spaces[epoch]
        space.loss_s = 0.0
        lost: list[SentPacket] = []
        if space.largest_acked < 0:
            return lost
        delay_s = max(TIME_THRESHOLD * max(self.rtt.latest_s, self.rtt.smoothed_s), GRANULARITY_S)
        far = space.largest_acked - self.packet_threshold
        for packet in space.sent.values():  # in the order of sending: the first that is not lost ends it
            if packet.number > space.largest_acked:
                break
            if packet.number > far and packet.sent_s + delay_s > now:
                space.loss_s = packet.sent_s + delay_s
                break
            lost.append(packet)
        congestion = self.congestion
        first_s = last_s = 0.0
        for packet in lost:
            del space.sent[packet.number]
            if packet.is_eliciting:
                space.eliciting_in_flight -= 1
                first_s = first_s or packet.sent_s
                last_s = packet.sent_s
            if packet.is_probe:
                congestion.forget(packet.size)
            elif packet.size:
                self.lost_packets += 1
                congestion.on_lost(packet.size, packet.sent_s, now)
                space.given_up[packet.number] = packet.sent_s
                if len(space.given_up) > MAX_GIVEN_UP:
                    del space.given_up[next(iter(space.given_up))]
        if first_s and last_s - first_s > PERSISTENT_PTOS * (self.rtt.probe_s() + self.max_ack_delay_s):
            congestion.on_persistent()
        return lost

    def discard(self, epoch: int) -> None:
        """Forget a space whose keys are gone (RFC 9002 §6.4)."""
        space = self.spaces[epoch]
        for packet in space.sent.values():
            self.congestion.forget(packet.size)
        space.sent.clear()
        space.eliciting_in_flight = 0
        space.loss_s = 0.0
        space.probes = 0
        space.is_gone = True
        space.send_key = space.receive_key = None
        space.ack_sent()
        self.pto_count = 0

    def probe_s(self, epoch: int) -> float:
        """Return how long after the last packet of a space a probe is due."""
        base_s = self.rtt.probe_s()
        if epoch == 3:
            base_s += self.max_ack_delay_s
        return base_s * (1 << min(self.pto_count, MAX_PTO_SHIFT))

    def close_s(self) -> float:
        """Return three probe timeouts: how long a closed connection is remembered."""
        return 3 * (self.rtt.probe_s() + self.max_ack_delay_s)
