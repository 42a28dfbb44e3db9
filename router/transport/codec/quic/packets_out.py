"""What is to be said, put into packets, and packets into datagrams (RFC 9000 §12, §13, §14; 9002).

While the handshake goes on, packets of several epochs share a datagram; after it each datagram is one packet, as
large as the path takes, and those of one size go to the kernel together. The order within a packet: what lets the
peer go on first, streams last, in turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.ack_frequency import ACK_FREQUENCY, IMMEDIATE_ACK
from router.transport.codec.quic.frames_in import (
    CLOSE,
    CLOSE_APPLICATION,
    CRYPTO,
    HANDSHAKE_DONE,
    MAX_DATA,
    MAX_STREAMS_BIDI,
    NEW_CONNECTION_ID,
    PATH_CHALLENGE,
    PATH_RESPONSE,
    PING,
    RESET_STREAM,
    RETIRE_CONNECTION_ID,
    STOP_SENDING,
)
from router.transport.codec.quic.frames_out import STREAM_CREDIT, ConnectionFrame, FlowFrame, write_ack
from router.transport.codec.quic.keys import TAG_BYTES
from router.transport.codec.quic.limits import APPLICATION_ERROR, KEY_PACKETS, MIN_DATAGRAM_BYTES
from router.transport.codec.quic.packet import DATA, EARLY, FIRST_BYTE, HANDSHAKE, INITIAL, write_long
from router.transport.codec.quic.packets_in import PacketReader
from router.transport.codec.quic.recovery import SentFrame, SentPacket, Space
from router.transport.codec.quic.state import CLOSING, SPACES
from router.transport.codec.quic.transport_parameters import MAX_ACK_DELAY
from router.transport.codec.quic.varint import varint

if TYPE_CHECKING:
    from router.transport.codec.quic.flow import QuicFlow
    from router.transport.codec.quic.path import Address, Path

_CONTROL_ROOM: Final = 64  # no frame about the connection or a stream is larger
_STREAM_ROOM: Final = 32  # of a STREAM frame's header, and some bytes that it is worth
_TWO_BYTE_NUMBERS: Final = 1 << 14
_NO_FRAMES: Final[list[SentFrame]] = []
MIN_CHALLENGE_BYTES: Final = 64
"""Of a packet with a challenge; less than that is not worth sending at all."""
_ACK_BYTES: Final = 56  # of an ACK of one range and the counts of ECN, at most
_RANGE_BYTES: Final = 8  # of each further one; numbers far apart are not received in one window
MAX_BURST_PACKETS: Final = 1_024
"""Datagrams of one flush; the rest comes in a next turn, so that a fast stream does not keep the others waiting."""


class Burst:
    """Datagrams to one address in the order of sending: `segment_bytes` each, the last may be smaller."""

    __slots__ = ("address", "local", "pieces", "segment_bytes")

    def __init__(self, address: Address, local: object, segment_bytes: int) -> None:
        self.address = address
        self.local = local
        self.segment_bytes = segment_bytes
        self.pieces: list[bytes] = []


class PacketWriter(PacketReader):
    """Makes datagrams."""

    __slots__ = ("_bursts", "_eliciting", "_parts", "_parts_bytes")

    def datagrams_to_send(self, now: float) -> list[Burst]:
        """Return all that may be sent now, each burst's datagrams in order; empty if there is nothing."""
        self.now = now
        self._bursts: list[Burst] = []
        if self.phase >= CLOSING:
            if self.close_wanted and self.phase == CLOSING:
                self.close_wanted = False
                self._write_close()
            return self._bursts
        application = self.application
        if application is not None:
            application.before_send(now)
            if self.phase >= CLOSING:
                return self.datagrams_to_send(now)
        self._parts: list[bytes] = []
        if not self.is_confirmed and not self._write_handshake():
            return self._bursts
        if self.recovery.spaces[DATA].send_key is not None:
            self._write_paths()
            self._write_data()
        return self._bursts

    # -- while the handshake goes on ------------------------------------------------------------------

    def _write_handshake(self) -> bool:
        """Write datagrams of long-header packets; False if the path takes no more for now."""
        spaces = self.recovery.spaces
        for _ in range(MAX_BURST_PACKETS):
            room = min(self.path.mtu.size, self.path.room())
            if room < MIN_DATAGRAM_BYTES and (not self.path.is_validated):
                # RFC 9000 §8.1: a server waits for the client, which probes until the server is heard.
                return False
            written: list[tuple[int, Space, SentPacket, bytes, bytes, int]] = []
            size = 0
            for epoch in (INITIAL, EARLY, HANDSHAKE):
                space = spaces[epoch]
                key = self.early_key if epoch == EARLY else space.send_key
                if key is None or (epoch == EARLY and not self._may_send_early(space)):
                    continue
                token = self.token if epoch == INITIAL else b""
                header = write_long(epoch, self.peer_ids.current, self.source_id, token, 4)
                overhead = len(header) + 2 + 4 + TAG_BYTES
                packet = self._gather(epoch, space, room - size - overhead)
                if packet is None:
                    continue
                written.append((epoch, space, packet, header, b"".join(self._parts), overhead))
                size += overhead + max(self._parts_bytes, 1)
            if not written:
                return True
            self._seal_long(written, size)
        return True

    def _may_send_early(self, space: Space) -> bool:
        return (
            not self.is_server and space.send_key is None and self.recovery.congestion.room() >= MIN_DATAGRAM_BYTES
        )

    def _seal_long(self, written: list[tuple[int, Space, SentPacket, bytes, bytes, int]], size: int) -> None:
        """Seal packets into one datagram, padded where it must be (RFC 9000 §14.1)."""
        must_pad = any(
            epoch == INITIAL and (not self.is_server or packet.is_eliciting) for epoch, _, packet, *_ in written
        )
        padding = max(0, MIN_DATAGRAM_BYTES - size) if must_pad else 0
        datagram: list[bytes] = []
        last = written[-1][2]
        for epoch, space, packet, header, payload, _ in written:
            key = self.early_key if epoch == EARLY else space.send_key
            assert key is not None
            if packet is last and padding:
                payload += bytes(padding)  # noqa: PLW2901 - the datagram's rest belongs to its last packet
            length = 4 + len(payload) + TAG_BYTES
            whole = header + (0x4000 | length).to_bytes(2, "big")
            sealed = key.seal_packet(packet.number, whole, payload, 4, 0x0F)
            datagram.append(sealed)
            if packet.is_eliciting or (packet is last and padding):
                packet.size = len(sealed)
            self._count(space, packet)
            if epoch == HANDSHAKE and not self.is_server:
                self.discard(INITIAL)  # RFC 9001 §4.9.1
        self._add(self.path, b"".join(datagram))

    # -- afterwards -----------------------------------------------------------------------------------

    def _write_data(self) -> None:
        """Write packets of data to the path in use, as long as window, pace and address allow."""
        space = self.recovery.spaces[DATA]
        congestion = self.recovery.congestion
        congestion.is_held_back = False
        path = self.path
        mtu = path.mtu
        if self.takes_ack_frequency and self.streams.unsent_bytes:
            self.ack_frequency.consider(congestion.window, mtu.size, self.streams.unsent_bytes)
        for _ in range(MAX_BURST_PACKETS):
            room = min(mtu.size, path.room())
            if room < MIN_CHALLENGE_BYTES:
                return
            has_more = self._has_more(space)
            is_ack_wanted = self._is_ack_wanted(space)
            if not has_more and not is_ack_wanted and not space.probes:
                break
            is_free = space.probes > 0 or congestion.room() >= mtu.size
            if is_free and not space.probes and has_more:
                paced_s = congestion.take_tokens(mtu.size, self.now, self.recovery.rtt.smoothed_s)
                if paced_s:
                    congestion.is_held_back = True
                    self.paced_until_s = paced_s
                    self.owner.watch()
                    is_free = False
            if not is_free:
                if has_more:
                    congestion.is_held_back = True
                if not is_ack_wanted:
                    return
            if not self._write_packet(space, path, room, acks_only=not is_free):
                break
        else:
            self.owner.touch()
            return
        if self.is_confirmed and not path.challenge and path.is_validated:
            size = mtu.wanted(self.now)
            if size and congestion.room() >= size:
                self._write_mtu_probe(space, path, size)

    def _write_packet(self, space: Space, path: Path, room: int, *, acks_only: bool) -> bool:
        number_bytes = _number_bytes(space)
        peer_id = self.peer_ids.current
        overhead = 1 + len(peer_id) + number_bytes + TAG_BYTES
        if acks_only:
            self._parts.clear()
            self._parts_bytes = 0
            packet: SentPacket | None = SentPacket(space.next_number, self.now, _NO_FRAMES, is_eliciting=False)
            assert packet is not None
            self._put_ack(space, packet, room - overhead)
        else:
            packet = self._gather(DATA, space, room - overhead)
        if packet is None:
            return False
        self._finish(space, path, packet, b"".join(self._parts), peer_id, number_bytes)
        return True

    def _finish(
        self, space: Space, path: Path, packet: SentPacket, payload: bytes, peer_id: bytes, number_bytes: int
    ) -> None:
        """Seal a packet of data and send it."""
        key = space.send_key
        assert key is not None
        short = 5 - number_bytes  # RFC 9001 §5.4.2: enough behind the number for a sample
        if len(payload) < short:
            payload += bytes(short)
        first = 0x40 | self.key_phase << 2 | (number_bytes - 1)
        sealed = key.seal_packet(packet.number, FIRST_BYTE[first] + peer_id, payload, number_bytes, 0x1F)
        if packet.is_eliciting:
            packet.size = len(sealed)
        self._count(space, packet)
        self._add(path, sealed)
        self.key_packets += 1
        if self.key_packets >= KEY_PACKETS and self.phase_acked and self.is_confirmed:
            self.update_keys()

    def update_keys(self) -> None:
        """Change keys, if the peer has answered the last change (RFC 9001 §6.1)."""
        space = self.recovery.spaces[DATA]
        if not self.is_confirmed or not self.phase_acked or space.receive_key is None:
            return
        self.rotate_keys(self.following_key or space.receive_key.next_phase())

    def _write_mtu_probe(self, space: Space, path: Path, size: int) -> None:
        """Send a packet larger than is known to arrive (RFC 9000 §14.4)."""
        packet = SentPacket(space.next_number, self.now, _NO_FRAMES, is_eliciting=True)
        packet.is_probe = True
        peer_id = self.peer_ids.current
        number_bytes = _number_bytes(space)
        kind = IMMEDIATE_ACK if self.takes_ack_frequency else PING  # the next step waits for the answer
        payload = FIRST_BYTE[kind] + bytes(size - 1 - len(peer_id) - number_bytes - TAG_BYTES - 1)
        path.mtu.is_probing = True
        self._finish(space, path, packet, payload, peer_id, number_bytes)

    def _write_paths(self) -> None:
        """Answer challenges on the path they came over, and ask on those that are new (RFC 9000 §8.2)."""
        space = self.recovery.spaces[DATA]
        for path in self.paths:
            if not path.answers and not (path.challenge and path.challenge_s <= self.now):
                continue
            if path.room() < MIN_CHALLENGE_BYTES:
                continue
            parts = [FIRST_BYTE[PATH_RESPONSE] + answer for answer in path.answers]
            path.answers.clear()
            if path.challenge and path.challenge_s <= self.now:
                parts.append(FIRST_BYTE[PATH_CHALLENGE] + path.challenge)
                path.challenges_left -= 1
                path.challenge_s = self.now + self.recovery.probe_s(DATA)
                self.owner.watch()
            payload = b"".join(parts)
            peer_id = path.peer_id or self.peer_ids.current
            number_bytes = _number_bytes(space)
            whole = MIN_DATAGRAM_BYTES - 1 - len(peer_id) - number_bytes - TAG_BYTES
            if path.room() >= MIN_DATAGRAM_BYTES:
                payload += bytes(whole - len(payload))  # RFC 9000 §8.2.1: the path carries that much
            packet = SentPacket(space.next_number, self.now, _NO_FRAMES, is_eliciting=True)
            self._finish(space, path, packet, payload, peer_id, number_bytes)

    # -- a packet's frames ----------------------------------------------------------------------------

    def _gather(self, epoch: int, space: Space, room: int) -> SentPacket | None:
        """Gather frames for one packet into `_parts`; None if there is nothing to say."""
        self._parts.clear()
        self._parts_bytes = 0
        self._eliciting = False
        frames: list[SentFrame] = []
        packet = SentPacket(space.next_number, self.now, frames, is_eliciting=False)
        is_early = epoch == EARLY
        if not is_early and self._is_ack_wanted(space):
            self._put_ack(space, packet, room)
        if not is_early:
            self._put_crypto(epoch, frames, room)
        if epoch & EARLY:
            if not is_early:
                self._put_controls(frames, room)
            else:
                self._put_stream_controls(frames, room)
            self._put_datagrams(room)
            self._put_streams(frames, room)
        if space.probes and not is_early:
            if epoch == DATA and self.takes_ack_frequency:
                self._put(FIRST_BYTE[IMMEDIATE_ACK])
                self._eliciting = True
            elif not self._eliciting:
                self._put(FIRST_BYTE[PING])
                self._eliciting = True
            space.probes -= 1
        if epoch == DATA and self.ping_due:
            self.ping_due = False
            if not self._eliciting:
                self._put(FIRST_BYTE[PING])
                self._eliciting = True
        if not self._parts:
            return None
        if self._eliciting and space.ack_due_s and not packet.acks_below and self._parts_bytes + 256 < room:
            self._put_ack(space, packet, room)
        packet.is_eliciting = self._eliciting
        return packet

    def _put(self, part: bytes) -> None:
        self._parts.append(part)
        self._parts_bytes += len(part)

    def _is_ack_wanted(self, space: Space) -> bool:
        return space.is_ack_due or (space.ack_due_s > 0.0 and space.ack_due_s <= self.now)

    def _put_ack(self, space: Space, packet: SentPacket, room: int) -> None:
        more = max(0, (room - self._parts_bytes - _ACK_BYTES) // _RANGE_BYTES)
        self._put(write_ack(space, self.now, more))
        packet.acks_below = space.expected
        space.ack_sent()

    def _put_crypto(self, epoch: int, frames: list[SentFrame], room: int) -> None:
        crypto = self.crypto[epoch]
        while crypto.waiting and room - self._parts_bytes > _CONTROL_ROOM:
            chunk = crypto.take_chunk(room - self._parts_bytes - 16)
            if chunk is None:
                return
            self._put(FIRST_BYTE[CRYPTO] + varint(chunk.offset) + varint(len(chunk.data)) + chunk.data)
            frames.append(chunk)
            self._eliciting = True

    def _put_controls(self, frames: list[SentFrame], room: int) -> None:
        """Say what concerns the connection."""
        if self.handshake_done_due:
            self.handshake_done_due = False
            self._put_frame(frames, HANDSHAKE_DONE, 0, b"")
        own = self.own_ids
        while own.due and room - self._parts_bytes > _CONTROL_ROOM:
            sequence = own.due.pop(0)
            issued = own.by_sequence[sequence]
            body = varint(sequence) + b"\0" + FIRST_BYTE[len(issued)] + issued + self.owner.reset_token(issued)
            self._put_frame(frames, NEW_CONNECTION_ID, sequence, body)
        retiring = self.peer_ids.retiring
        while retiring and room - self._parts_bytes > _CONTROL_ROOM:
            sequence = retiring.pop(0)
            self._put_frame(frames, RETIRE_CONNECTION_ID, sequence, varint(sequence))
        while self.tokens_due and room - self._parts_bytes > 256:
            token = self.tokens_due.pop()
            self._put(b"\x07" + varint(len(token)) + token)  # not repeated: it only saves a round trip
            self._eliciting = True
        frequency = self.ack_frequency
        if frequency.is_due and self.takes_ack_frequency and room - self._parts_bytes > _CONTROL_ROOM:
            delay_us = 1_000 * self.peer.number(MAX_ACK_DELAY)  # as it has now
            self._put(frequency.write(delay_us, self.recovery.packet_threshold))
            frames.append(ConnectionFrame(self, ACK_FREQUENCY, frequency.sequence))
            self._eliciting = True
        streams = self.streams
        if streams.max_data_due and room - self._parts_bytes > _CONTROL_ROOM:
            streams.max_data_due = False
            self._put_frame(frames, MAX_DATA, 0, varint(streams.max_data))
        for kind in (0, 1):
            if streams.max_streams_due[kind] and room - self._parts_bytes > _CONTROL_ROOM:
                streams.max_streams_due[kind] = False
                self._put(FIRST_BYTE[MAX_STREAMS_BIDI + kind] + varint(streams.max_streams[kind]))
                frames.append(ConnectionFrame(self, MAX_STREAMS_BIDI, kind))
                self._eliciting = True
        if streams.controls:
            self._put_stream_controls(frames, room)

    def _put_frame(self, frames: list[SentFrame], kind: int, value: int, body: bytes) -> None:
        self._put(FIRST_BYTE[kind] + body)
        frames.append(ConnectionFrame(self, kind, value))
        self._eliciting = True

    def _put_stream_controls(self, frames: list[SentFrame], room: int) -> None:
        controls = self.streams.controls
        while controls and room - self._parts_bytes > _CONTROL_ROOM:
            flow = controls.pop()
            if flow.reset_due:
                flow.reset_due = False
                self._put_flow_frame(frames, flow, RESET_STREAM, varint(flow.reset_code) + varint(flow.sent_bytes))
            if flow.stop_due:
                flow.stop_due = False
                if flow.final_size < 0:
                    self._put_flow_frame(frames, flow, STOP_SENDING, varint(flow.stop_code))
            if flow.max_data_due:
                flow.max_data_due = False
                self._put_flow_frame(frames, flow, STREAM_CREDIT, varint(flow.max_data))

    def _put_flow_frame(self, frames: list[SentFrame], flow: QuicFlow, kind: int, body: bytes) -> None:
        self._put(FIRST_BYTE[kind] + varint(flow.id) + body)
        frames.append(FlowFrame(flow, kind))
        self._eliciting = True

    def _put_datagrams(self, room: int) -> None:
        waiting = self.datagrams_out
        while waiting:
            data = waiting[0]
            size = len(data)
            left = room - self._parts_bytes
            if size + 3 > left:
                if self._parts_bytes == 0:
                    waiting.popleft()  # the path has become smaller: nothing will ever carry it
                    continue
                return
            waiting.popleft()
            self._put(b"\x31" + varint(size) + data)
            self._eliciting = True

    def _put_streams(self, frames: list[SentFrame], room: int) -> None:
        queue = self.streams.queue
        while queue:
            left = room - self._parts_bytes
            if left < _STREAM_ROOM:
                return
            flow = queue.popleft()
            flow.is_ready = False
            if not flow.has_something():
                continue
            # To the byte: packets of one size leave in one system call.
            offset = flow.next_offset()
            place = varint(flow.id) + varint(offset) if offset else varint(flow.id)
            chunk = flow.take_chunk(left - len(place) - 3)
            if chunk is None:
                continue
            data = chunk.data
            kind = 0x0E | chunk.end if offset else 0x0A | chunk.end
            self._parts += (FIRST_BYTE[kind] + place, (0x4000 | len(data)).to_bytes(2, "big"), data)
            self._parts_bytes += 3 + len(place) + len(data)
            frames.append(chunk)
            self._eliciting = True
            if flow.has_something():
                flow.is_ready = True
                queue.append(flow)

    def _has_more(self, space: Space) -> bool:
        """Whether anything waits that counts as in flight."""
        streams = self.streams
        if streams.queue or streams.controls or streams.max_data_due or self.datagrams_out or self.ping_due:
            return True
        if self.crypto[DATA].waiting or self.handshake_done_due or self.own_ids.due or self.peer_ids.retiring:
            return True
        return streams.max_streams_due[0] or streams.max_streams_due[1] or bool(self.tokens_due)

    # -- the end --------------------------------------------------------------------------------------

    def _write_close(self) -> None:
        """Say goodbye in every epoch that the peer may be able to read (RFC 9000 §10.2.3)."""
        room = self.path.room()
        datagram = b""
        for epoch in SPACES:
            space = self.recovery.spaces[epoch]
            key = space.send_key
            if key is None or (epoch != DATA and self.is_confirmed):
                continue
            code, kind, reason = self.close_code, CLOSE, self.close_reason
            if self.close_is_application:
                if epoch == DATA:
                    kind = CLOSE_APPLICATION
                else:
                    code, reason = APPLICATION_ERROR, b""
            body = FIRST_BYTE[kind] + varint(code)
            if kind == CLOSE:
                body += varint(self.close_frame_type)
            body += varint(len(reason)) + reason
            number = space.next_number
            space.next_number += 1
            if epoch == DATA:
                header = FIRST_BYTE[0x43 | self.key_phase << 2] + self.peer_ids.current
                datagram += key.seal_packet(number, header, body, 4, 0x1F)
                continue
            if epoch == INITIAL and not self.is_server:
                body += bytes(MIN_DATAGRAM_BYTES - 100 - len(body))
            header = write_long(
                epoch, self.peer_ids.current, self.source_id, self.token if epoch == INITIAL else b"", 4
            )
            header += (0x4000 | (4 + len(body) + TAG_BYTES)).to_bytes(2, "big")
            datagram += key.seal_packet(number, header, body, 4, 0x0F)
        if datagram and len(datagram) <= room:
            self._add(self.path, datagram)

    # -- counting -------------------------------------------------------------------------------------

    def _count(self, space: Space, packet: SentPacket) -> None:
        space.next_number += 1
        self.sent_packets += 1
        if packet.is_eliciting and not self.spoke_since_heard:
            # RFC 9000 §10.1: the idle time begins anew with the first that the peer will answer.
            self.spoke_since_heard = True
            self.last_heard_s = self.now
        if packet.size or packet.acks_below:
            self.recovery.on_sent(space, packet)
        self.owner.watch()

    def _add(self, path: Path, datagram: bytes) -> None:
        """Put a datagram behind others of its size to the same address, or begin a burst."""
        size = len(datagram)
        path.sent_bytes += size
        bursts = self._bursts
        if bursts:
            last = bursts[-1]
            if (
                last.address is path.address
                and size <= last.segment_bytes
                and len(last.pieces[-1]) == last.segment_bytes
            ):
                last.pieces.append(datagram)
                return
        burst = Burst(path.address, path.local, size)
        burst.pieces.append(datagram)
        bursts.append(burst)


def _number_bytes(space: Space) -> int:
    """Return how many bytes of the next number the peer needs (RFC 9000 §17.1)."""
    return 2 if space.next_number - space.largest_acked < _TWO_BYTE_NUMBERS else 4
