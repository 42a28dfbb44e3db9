"""Datagrams taken apart into packets, opened, and handed to `frames_in` (RFC 9000 §12, 9001 §5, §6).

A read from the socket may hold dozens of datagrams of one size (GRO); the application hears of all they brought
once, at their end. Packets that come before their keys are kept for a moment, a few of them. What does not
authenticate is dropped without a word.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.frames_in import DROPPED, ELICITING, NOT_PROBING, FrameReader
from router.transport.codec.quic.keys import SAMPLE_BYTES, PacketKey, initial_keys
from router.transport.codec.quic.limits import (
    AEAD_LIMIT_REACHED,
    ID_BYTES,
    INTEGRITY_LIMIT,
    MAX_EARLY_PACKETS,
    MAX_PATHS,
    MIN_DATAGRAM_BYTES,
    PROTOCOL_VIOLATION,
)
from router.transport.codec.quic.packet import (
    DATA,
    EARLY,
    FIRST_BYTE,
    HANDSHAKE,
    INITIAL,
    RETRY,
    LongHeader,
    read_long,
    whole_number,
)
from router.transport.codec.quic.path import Address, Mtu, Path
from router.transport.codec.quic.state import CLOSING, DRAINING, HANDSHAKING, OPEN, OVER
from router.transport.codec.stun import is_stun

_NUMBER_AT: Final = 1 + ID_BYTES
_SAMPLE_AT: Final = _NUMBER_AT + 4
_SMALLEST: Final = _SAMPLE_AT + SAMPLE_BYTES
_RESET_BYTES: Final = 16
_FOREVER: Final = 1 << 62


class PacketReader(FrameReader):
    """Takes datagrams."""

    __slots__ = ()

    def deliver(self) -> None:
        """Tell the application what came."""
        raise NotImplementedError

    def move_to(self, path: Path) -> None:
        """Send to another address from now on: the peer was heard from there."""
        raise NotImplementedError

    def receive_retry(self, header: LongHeader, packet: bytes) -> None:
        """Take a Retry packet. A client's."""
        raise NotImplementedError

    def receive_negotiation(self, data: bytes) -> None:
        """Take a packet of version 0. A client's."""
        raise NotImplementedError

    def receive(
        self, data: bytes, segment_bytes: int, address: Address, local: object, now: float, ecn: int = 0
    ) -> None:
        """Take what was read from the socket: datagrams of `segment_bytes` each, or one if that is 0.

        `ecn` are the two bits of RFC 3168, alike for all of them.
        """
        self.now = now
        self.ecn = ecn
        if self.phase >= DRAINING or not data:  # a datagram may be empty
            self._return_strays(data, segment_bytes, address)
            return
        path = self.path
        if path.address != address:
            other = self._path_of(address, local)
            if other is None:
                if self.is_server and data[0] & 0x80:  # a copy of its Initial may have been here first
                    self.owner.stray(data[: segment_bytes or len(data)], address)
                self._return_strays(data, segment_bytes, address)
                return
            path = other
        path.received_bytes += len(data)
        size = len(data)
        if not segment_bytes or segment_bytes >= size:
            self._receive_datagram(data, 0, size, path, b"", 0)
        else:
            masks = self._short_masks(data, segment_bytes)
            at = mask_at = 0
            while at < size:
                end = min(at + segment_bytes, size)
                self._receive_datagram(data, at, end, path, masks, mask_at)
                at = end
                mask_at += SAMPLE_BYTES
        if self.early_packets:
            self.take_early()
        if self.phase <= OPEN:
            self.deliver()
        elif self.phase == CLOSING and not self.close_wanted:
            # RFC 9000 §10.2.1: repeated, ever more rarely.
            self.close_packets += 1
            if self.close_packets & (self.close_packets - 1) == 0:
                self.close_wanted = True
        self.owner.touch()

    def _path_of(self, address: Address, local: object) -> Path | None:
        for path in self.paths:
            if path.address == address:
                return path
        if not self.is_confirmed or not self.is_server:
            return None  # RFC 9000 §9: not before the handshake is confirmed, and servers do not move
        if len(self.paths) >= MAX_PATHS:
            oldest = next((path for path in self.paths if path is not self.path), None)
            if oldest is None:
                return None
            self.paths.remove(oldest)
        mtu = Mtu(MIN_DATAGRAM_BYTES, self.path.mtu.ceiling)
        path = Path(address, local, mtu, is_validated=False)
        path.peer_id = self.peer_ids.current
        self.paths.append(path)
        return path

    def _return_strays(self, data: bytes, segment_bytes: int, address: Address) -> None:
        """Give back what the kernel joined with datagrams of ours that are not read."""
        if not segment_bytes:
            return
        for at in range(segment_bytes, len(data), segment_bytes):
            if not self._is_named(data, at):
                self.owner.stray(data[at : at + segment_bytes], address)

    def _is_named(self, data: bytes, at: int) -> bool:
        """Whether the datagram that begins there is for this connection."""
        if not data[at] & 0x80:
            return data[at + 1 : at + _NUMBER_AT] in self.own_ids.known
        named = data[at + 6 : at + 6 + data[at + 5]] if at + 6 <= len(data) else b""
        return named in self.own_ids.known or named == self.first_id

    def _short_masks(self, data: bytes, segment_bytes: int) -> bytes:
        """Return the header masks of all datagrams as if each were a packet of data; empty: each makes its own.

        In one call they cost little more than one of them. The header's key is the same for all key phases.
        """
        key = self.recovery.spaces[DATA].receive_key
        if key is None or segment_bytes < _SMALLEST:
            return b""
        samples = [data[at : at + SAMPLE_BYTES] for at in range(_SAMPLE_AT, len(data), segment_bytes)]
        if len(samples[-1]) < SAMPLE_BYTES:
            samples.pop()  # the last may be smaller
        return key.masks(b"".join(samples))

    def _receive_datagram(self, data: bytes, at: int, end: int, path: Path, masks: bytes, mask_at: int) -> None:
        """Take the packets of one datagram; `masks`, from `mask_at`, may have the mask of a packet of data."""
        if not data[at] & 0x80:
            self._receive_short(data, at, end, path, masks, mask_at)
            return
        if self.phase >= CLOSING and not self._is_named(data, at):
            self.owner.stray(data[at:end], path.address)
            return
        begin = at
        size = end - at
        while at < end and self.phase < CLOSING:
            if not data[at] & 0x80:
                self._receive_short(data, at, end, path, b"", 0)
                return
            header = read_long(data, at, end)
            if header is None:
                if not self.is_server and data[at + 1 : at + 5] == b"\0\0\0\0":
                    self.receive_negotiation(data[at:end])
                return
            if header.kind == RETRY:
                self.receive_retry(header, data[at:end])
                return
            # RFC 9000 §12.2: all packets of a datagram are for one connection.
            if header.destination not in self.own_ids.known and header.destination != self.first_id:
                if at == begin:
                    self.owner.stray(data[at:end], path.address)
                return
            if header.kind != INITIAL or size >= MIN_DATAGRAM_BYTES or not self.is_server:
                self._open_long(data, at, header, path)
            at = header.end

    def _open_long(self, data: bytes, at: int, header: LongHeader, path: Path) -> None:
        epoch = header.kind
        space = self.recovery.spaces[epoch]
        key = self.early_key if epoch == EARLY else space.receive_key
        if key is None:
            if self.phase == HANDSHAKING and (epoch == HANDSHAKE or (epoch == EARLY and self.is_server)):
                self._keep_early(data[at : header.end])
            return
        number_at = header.number_at
        sample = data[number_at + 4 : number_at + 4 + SAMPLE_BYTES]
        if len(sample) < SAMPLE_BYTES or number_at + 4 + SAMPLE_BYTES > header.end:
            return
        mask = key.mask(sample)
        first = data[at] ^ (mask[0] & 0x0F)
        number_bytes = (first & 3) + 1
        truncated = _unmask(data, number_at, number_bytes, mask, 0)
        number = whole_number(truncated, 8 * number_bytes, space.expected)
        body_at = number_at + number_bytes
        plain = FIRST_BYTE[first] + data[at + 1 : number_at] + truncated.to_bytes(number_bytes, "big")
        payload = key.open(number, plain, data[body_at : header.end])
        if payload is None:
            self._note_failure()
            return
        if first & 0x0C:
            self.fail(PROTOCOL_VIOLATION, "reserved bits are set")
            return
        if space.was_received(number):
            return
        if epoch != EARLY and not self._check_source(header.source):
            return
        if epoch == HANDSHAKE and self.is_server:
            # RFC 9000 §8.1: who can seal under handshake keys has read what we sent; RFC 9001 §4.9.1.
            path.is_validated = True
            self._discard(INITIAL)
        self._take(epoch, number, payload, header.destination, path)

    def _check_source(self, source: bytes) -> bool:
        """Send to the id that the peer chose for itself; it may not change in the handshake (RFC 9000 §7.2)."""
        peer_ids = self.peer_ids
        if not self.source_known:
            peer_ids.replace_first(source)
            self.source_known = True
            return True
        return source in peer_ids.sequences

    def _receive_short(self, data: bytes, at: int, end: int, path: Path, masks: bytes, mask_at: int) -> None:
        if not data[at] & 0x40:
            if is_stun(data[at:end]):  # RFC 9443: it has the same socket, and the kernel joins by addresses
                self.owner.stray(data[at:end], path.address)
            return
        if end - at < _SMALLEST:
            return
        used = data[at + 1 : at + _NUMBER_AT]
        if used not in self.own_ids.known:
            if not self._is_reset(data, end):
                self.owner.stray(data[at:end], path.address)
            return
        space = self.recovery.spaces[DATA]
        key = space.receive_key
        if key is None or (self.phase == HANDSHAKING and self.is_server):
            # RFC 9001 §5.7: a server reads no data before the handshake is complete.
            self._keep_early(data[at:end])
            return
        if mask_at + SAMPLE_BYTES > len(masks):
            masks = key.mask(data[at + _SAMPLE_AT : at + _SMALLEST])
            mask_at = 0
        first = data[at] ^ (masks[mask_at] & 0x1F)
        number_bytes = (first & 3) + 1
        body_at = at + _NUMBER_AT + number_bytes
        truncated = _unmask(data, at + _NUMBER_AT, number_bytes, masks, mask_at)
        number = whole_number(truncated, 8 * number_bytes, space.expected)
        plain = FIRST_BYTE[first] + used + truncated.to_bytes(number_bytes, "big")
        if (first >> 2 & 1) == self.key_phase:
            payload = key.open(number, plain, data[body_at:end])
        else:
            payload = self._open_other_phase(number, plain, data[body_at:end])
        if payload is None:
            if self._is_reset(data, end):
                return
            self._note_failure()
            return
        if number < self.phase_first and (first >> 2 & 1) == self.key_phase:
            self.phase_first = number
        if first & 0x18:
            self.fail(PROTOCOL_VIOLATION, "reserved bits are set")
            return
        if not space.was_received(number):
            self._take(DATA, number, payload, used, path)

    def _take(self, epoch: int, number: int, payload: bytes, used: bytes, path: Path) -> None:
        """Take the frames of a packet that authenticated and is new."""
        now = self.now
        self.received_packets += 1
        self.last_heard_s = now
        self.spoke_since_heard = False
        if self.phase >= CLOSING:
            return
        space = self.recovery.spaces[epoch]
        is_newest = number >= space.expected
        result = self.read_frames(epoch, payload, used, path)
        if result == DROPPED:
            return
        is_eliciting = bool(result & ELICITING)
        frequency = self.ack_frequency
        space.note_received(
            number,
            now,
            is_eliciting=is_eliciting,
            every=frequency.every if epoch == DATA else 1,
            delay_s=frequency.delay_s if epoch == DATA else 0.0,
            reordering=frequency.reordering,
        )
        if self.ecn:
            space.note_mark(self.ecn, is_eliciting=is_eliciting)
        if path is not self.path and is_newest and result & NOT_PROBING and epoch == DATA:
            self.move_to(path)

    def _keep_early(self, packet: bytes) -> None:
        if len(self.early_packets) < MAX_EARLY_PACKETS:
            self.early_packets.append((self.ecn, packet))

    def take_early(self) -> None:
        """Try again what came before its keys."""
        waiting = self.early_packets
        if not waiting or self.phase >= CLOSING:
            return
        self.early_packets = []
        for ecn, packet in waiting:
            self.ecn = ecn
            self._receive_datagram(packet, 0, len(packet), self.path, b"", 0)

    def _note_failure(self) -> None:
        self.failed_opens += 1
        if self.failed_opens > INTEGRITY_LIMIT:
            self.fail(AEAD_LIMIT_REACHED, "too many packets were forged")

    def _is_reset(self, data: bytes, end: int) -> bool:
        """Take a stateless reset (RFC 9000 §10.3.1)."""
        if not self.peer_ids.tokens or not self.peer_ids.is_reset(data[end - _RESET_BYTES : end]):
            return False
        self.phase = OVER
        self.closed_by_peer = True
        self.lose(0, "the peer has forgotten the connection", by_peer=True)
        return True

    # -- keys -----------------------------------------------------------------------------------------

    def install_initial(self, destination: bytes) -> None:
        """Derive the keys of Initial packets from the id that the client chose for the server."""
        space = self.recovery.spaces[INITIAL]
        space.send_key, space.receive_key = initial_keys(destination, is_server=self.is_server)

    def _discard(self, epoch: int) -> None:
        space = self.recovery.spaces[epoch]
        if not space.is_gone:
            self.recovery.discard(epoch)
            self.crypto[epoch].waiting.clear()

    def discard(self, epoch: int) -> None:
        """Forget an epoch's keys and what it still had to say."""
        self._discard(epoch)

    def _open_other_phase(self, number: int, plain: bytes, sealed: bytes) -> bytes | None:
        """Open a packet of the phase before, or of the next one: then the peer has changed keys (RFC 9001 §6)."""
        space = self.recovery.spaces[DATA]
        current = space.receive_key
        assert current is not None
        if number < self.phase_first:
            previous = self.previous_key
            if previous is None or self.now > self.previous_until_s:
                return None
            return previous.open(number, plain, sealed)
        following = self.following_key
        if following is None:  # kept: a forged packet must not cost a derivation
            following = self.following_key = current.next_phase()
        payload = following.open(number, plain, sealed)
        if payload is not None:
            self.rotate_keys(following)
            self.phase_first = number
        return payload

    def rotate_keys(self, following: PacketKey) -> None:
        """Go on to the next phase in both directions."""
        space = self.recovery.spaces[DATA]
        assert space.send_key is not None
        self.previous_key = space.receive_key
        self.previous_until_s = self.now + self.recovery.close_s()
        space.receive_key = following
        self.following_key = None
        space.send_key = space.send_key.next_phase()
        self.key_phase ^= 1
        self.key_packets = 0
        self.phase_first = _FOREVER
        self.phase_sent = space.next_number
        self.phase_acked = False


def _unmask(data: bytes, at: int, size: int, masks: bytes, mask_at: int) -> int:
    """Return the packet number as it stood on the wire before it was masked."""
    number = data[at] ^ masks[mask_at + 1]
    if size > 1:
        number = number << 8 | (data[at + 1] ^ masks[mask_at + 2])
        if size > 2:
            number = number << 8 | (data[at + 2] ^ masks[mask_at + 3])
            if size > 3:
                number = number << 8 | (data[at + 3] ^ masks[mask_at + 4])
    return number
