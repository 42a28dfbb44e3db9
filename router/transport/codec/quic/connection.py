"""One QUIC connection: packets joined with TLS, time and the application. Both roles; no socket, no clock.

    receive(datagrams) -> application hears -> datagrams_to_send() -> next_deadline() -> handle_deadline()

The owner calls `datagrams_to_send` at the end of each tick in which the connection was touched, and
`handle_deadline` when `next_deadline` has passed. `is_over` says that it may be forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.quic.ack_frequency import MIN_ACK_DELAY_US
from router.transport.codec.quic.keys import PacketKey
from router.transport.codec.quic.limits import (
    CRYPTO_ERROR,
    HELD_IDS,
    INITIAL_RTT_S,
    ISSUED_IDS,
    MAX_ACK_DELAY_S,
    MAX_DATAGRAMS,
    MIN_DATAGRAM_BYTES,
    NO_VIABLE_PATH,
    PROBES,
    TRANSPORT_PARAMETER_ERROR,
)
from router.transport.codec.quic.packet import DATA, HANDSHAKE, INITIAL
from router.transport.codec.quic.packets_out import MIN_CHALLENGE_BYTES, PacketWriter
from router.transport.codec.quic.path import BLACK_HOLE, Mtu, Path
from router.transport.codec.quic.state import CLOSING, HANDSHAKING, OPEN, OVER, SPACES
from router.transport.codec.quic.transport_parameters import (
    DELAY_EXPONENT,
    ID_LIMIT,
    IDLE_TIMEOUT,
    INITIAL_SOURCE_ID,
    MAX_ACK_DELAY,
    MAX_DATA,
    MAX_DATA_BIDI_LOCAL,
    MAX_DATA_BIDI_REMOTE,
    MAX_DATA_UNI,
    MAX_DATAGRAM,
    MAX_PAYLOAD,
    MAX_STREAMS_BIDI,
    MAX_STREAMS_UNI,
    MIN_ACK_DELAY,
    RESET_TOKEN,
    Parameters,
    read_parameters,
)

if TYPE_CHECKING:
    from router.transport.codec.quic.recovery import Space
    from router.transport.codec.quic.seam import Flow

_NEVER = 1e12
_DATAGRAM_OVERHEAD = 3 + 16  # of a DATAGRAM frame with its length, and the tag


class QuicConnection(PacketWriter):
    """See the module. Subclassed by role: `ServerConnection`, `ClientConnection`."""

    __slots__ = ()

    # -- for the application --------------------------------------------------------------------------

    def open_stream(self, *, unidirectional: bool) -> Flow | None:
        """Open a stream of ours."""
        if self.phase >= CLOSING:
            return None
        return self.streams.open(unidirectional=unidirectional)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a DATAGRAM."""
        if self.phase >= CLOSING or len(data) > self.max_datagram_bytes():
            return False
        waiting = self.datagrams_out
        if len(waiting) >= MAX_DATAGRAMS:
            waiting.popleft()
        waiting.append(data)
        self.owner.touch()
        return True

    def waiting_datagrams(self) -> int:
        """Return how many DATAGRAMs were not sent yet."""
        return len(self.datagrams_out)

    def max_datagram_bytes(self) -> int:
        """Return the largest payload of a DATAGRAM now."""
        allowed = self.max_peer_datagram - 3
        room = self.path.mtu.size - 1 - len(self.peer_ids.current) - 4 - _DATAGRAM_OVERHEAD
        return max(0, min(allowed, room))

    def close(self, code: int, reason: bytes = b"") -> None:
        """End with an application error code."""
        self.silence()
        if self.phase < CLOSING:
            self.begin_close(code, reason, is_application=True)

    def abort(self, code: int, reason: str) -> None:
        """End with a transport error code, for the owner; the application hears of it."""
        self.fail(code, reason)

    def touch(self) -> None:
        """Be flushed at the end of this tick."""
        self.owner.touch()

    def watch(self) -> None:
        """Have the deadlines looked at."""
        self.owner.watch()

    def unsent_bytes(self) -> int:
        """Return what waits for its first transmission."""
        return self.streams.unsent_bytes

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase == OVER

    def let_go(self) -> None:
        """Forget whatever leads back here, once it is over: else only the garbage collector would find it."""
        self.application = None
        if self.handshake is not None:
            self.handshake.let_go()
            self.handshake = None
        self.streams.let_go()
        for space in self.recovery.spaces:
            space.sent.clear()

    # -- TLS ------------------------------------------------------------------------------------------

    def own_parameters(self) -> Parameters:
        """Return what we say of ourselves; the roles add what is theirs."""
        config = self.config
        own = Parameters()
        own.numbers.update(
            {
                IDLE_TIMEOUT: int(config.idle_s * 1000),
                MAX_PAYLOAD: config.max_payload,
                MAX_DATA: config.connection_window,
                MAX_DATA_BIDI_LOCAL: config.stream_window,
                MAX_DATA_BIDI_REMOTE: config.stream_window,
                MAX_DATA_UNI: config.stream_window,
                MAX_STREAMS_BIDI: config.max_streams,
                MAX_STREAMS_UNI: config.max_uni_streams,
                DELAY_EXPONENT: 3,
                MAX_ACK_DELAY: int(MAX_ACK_DELAY_S * 1000),
                ID_LIMIT: HELD_IDS,
                MIN_ACK_DELAY: MIN_ACK_DELAY_US,
            }
        )
        if config.datagram_bytes:
            own.numbers[MAX_DATAGRAM] = config.datagram_bytes
        own.ids[INITIAL_SOURCE_ID] = self.source_id
        return own

    def install_secret(self, epoch: int, is_sending: bool, suite: int, secret: bytes) -> None:
        """Take a traffic secret of TLS."""
        key = PacketKey(suite, secret)
        space = self.space(epoch)
        if epoch == 1:
            self.early_key = key
        elif is_sending:
            space.send_key = key
        else:
            space.receive_key = key

    def receive_crypto(self, epoch: int, data: bytes) -> None:
        """Hand bytes of the handshake to TLS, and follow what comes of it."""
        handshake = self.handshake
        if handshake is None:
            return
        code = handshake.receive(epoch, data)
        if code:
            self.send_crypto()
            self.fail(code, handshake.reason, 0x06)
            return
        self.follow_handshake()

    def follow_handshake(self) -> None:
        """Send what TLS wrote; take the peer's parameters; go on when it is complete."""
        handshake = self.handshake
        assert handshake is not None
        self.send_crypto()
        if self.application is None and not self._take_parameters():
            return
        if handshake.is_complete and self.phase == HANDSHAKING:
            self.phase = OPEN
            self.on_complete()
            if self.application is not None and self.phase == OPEN:
                self.application.connected()
        self.owner.touch()
        self.owner.watch()

    def send_crypto(self) -> None:
        """Queue what TLS wrote."""
        handshake = self.handshake
        assert handshake is not None
        for epoch, data in handshake.out:
            self.crypto[epoch].send(data)
        handshake.out.clear()

    def on_complete(self) -> None:
        """TLS is complete. The roles differ in what follows."""
        raise NotImplementedError

    def _take_parameters(self) -> bool:
        """Read the peer's transport parameters once they and the protocol are known; whether to go on."""
        handshake = self.handshake
        assert handshake is not None
        if self.is_server and not handshake.is_hello_read:
            return True
        if not self.is_server and self.space(HANDSHAKE).receive_key is None:
            return True
        body = handshake.peer_parameters()
        if body is None:
            if self.is_server or handshake.is_complete:
                self.fail(CRYPTO_ERROR + 109, "no transport parameters", 0x06)
                return False
            return True
        peer = read_parameters(body, from_client=self.is_server)
        if isinstance(peer, str):
            self.fail(TRANSPORT_PARAMETER_ERROR, peer)
            return False
        fault = self.check_ids(peer)
        if fault:
            self.fail(TRANSPORT_PARAMETER_ERROR, fault)
            return False
        self.use_parameters(peer)
        self.alpn = handshake.alpn
        self.application = self.owner.make_application(self, self.alpn)
        return True

    def check_ids(self, peer: Parameters) -> str:
        """Return what is wrong with the ids that the peer's parameters name, empty if nothing (RFC 9000 §7.3)."""
        raise NotImplementedError

    def use_parameters(self, peer: Parameters) -> None:
        """Keep to what the peer says it takes."""
        self.peer = peer
        self.streams.set_peer_limits(
            peer.number(MAX_DATA),
            peer.number(MAX_DATA_BIDI_REMOTE),
            peer.number(MAX_DATA_BIDI_LOCAL),
            peer.number(MAX_DATA_UNI),
            (peer.number(MAX_STREAMS_BIDI), peer.number(MAX_STREAMS_UNI)),
        )
        self.max_peer_datagram = peer.number(MAX_DATAGRAM)
        self.takes_ack_frequency = MIN_ACK_DELAY in peer.numbers
        self.recovery.max_ack_delay_s = peer.number(MAX_ACK_DELAY) / 1000
        idle_s = peer.number(IDLE_TIMEOUT) / 1000
        if idle_s:
            self.idle_s = min(self.idle_s, idle_s) if self.idle_s else idle_s
        mtu = self.path.mtu
        mtu.ceiling = min(mtu.ceiling, peer.number(MAX_PAYLOAD))
        token = peer.ids.get(RESET_TOKEN)
        if token is not None:
            self.peer_ids.tokens[self.peer_ids.current] = token

    def confirm(self) -> None:
        """Forget the handshake's keys, and give the peer more ids (RFC 9001 §4.9.2)."""
        if self.is_confirmed:
            return
        self.is_confirmed = True
        self.recovery.is_peer_validated = True
        self.discard(INITIAL)
        self.discard(HANDSHAKE)
        self.early_key = None
        self.own_ids.issue(min(self.peer.number(ID_LIMIT), ISSUED_IDS))
        self.owner.touch()

    # -- what came ------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Tell the application all that was read: once a stream, however many packets it took."""
        streams = self.streams
        application = self.application
        if application is None:
            return
        # Once the client has finished the handshake it is there, and what it sent early is no replay.
        self.is_early = self.is_server and self.phase == HANDSHAKING
        while streams.fresh:
            fresh, streams.fresh = streams.fresh, []
            for flow in fresh:
                application.stream_opened(flow)
                if self.phase > OPEN:
                    return
        while streams.batch and self.phase <= OPEN:
            batch, streams.batch = streams.batch, []
            for flow in batch:
                flow.in_batch = False
                if flow.is_settled or flow.receive_over:
                    continue
                data = flow.take_pieces()
                end = flow.final_size >= 0 and flow.has_all()
                if end:
                    flow.receive_over = True
                if data or end:
                    application.stream_data(flow, data, end)
                if end:
                    streams.check_gone(flow)
                if self.phase > OPEN:
                    return
        self._deliver_ends()
        if self.datagrams_in:
            datagrams, self.datagrams_in = self.datagrams_in, []
            for datagram in datagrams:
                if self.phase <= OPEN:
                    application.datagram(datagram)

    def _deliver_ends(self) -> None:
        application = self.application
        assert application is not None
        while self.resets and self.phase <= OPEN:
            flow, code = self.resets.pop(0)
            application.stream_reset(flow, code)
            flow.untold -= 1
            self.streams.check_gone(flow)
        while self.stops and self.phase <= OPEN:
            flow, code = self.stops.pop(0)
            application.stream_stopped(flow, code)
            flow.untold -= 1
            self.streams.check_gone(flow)

    def deliver_drained(self) -> None:
        """Tell the application which streams have room again; after sending, so within a flush."""
        streams = self.streams
        application = self.application
        while streams.drained:
            flow = streams.drained.pop()
            if application is not None and self.phase <= OPEN and flow.can_send():
                application.stream_drained(flow)

    # -- addresses ------------------------------------------------------------------------------------

    def move_to(self, path: Path) -> None:
        """Follow the peer to another address; it has to answer there before it gets much (RFC 9000 §9.3)."""
        before = self.path
        self.path = path
        self.migrations += 1
        if not path.is_validated and not path.challenge:
            path.begin_validation(self.now)
        if before.address[0] == path.address[0]:
            path.mtu.size = before.mtu.size  # another port: a NAT that forgot, over the same links
        else:
            self._forget_path()
        if before.is_validated and not before.challenge:
            before.begin_validation(self.now)  # it may be an attacker's copy that came first (§9.3.3)
            before.is_validated = True
        self.owner.peer_moved(path.address)
        self.owner.touch()
        self.owner.watch()

    def _forget_path(self) -> None:
        """Begin anew with what was learnt of the path (RFC 9000 §9.4)."""
        congestion = self.recovery.congestion
        congestion.window = congestion.initial
        congestion.threshold = 1 << 62
        self.recovery.rtt.has_sample = False
        self.recovery.rtt.smoothed_s = INITIAL_RTT_S
        self.recovery.rtt.variance_s = INITIAL_RTT_S / 2

    def on_path_validated(self, path: Path) -> None:
        """Keep only the path in use, once it is known to lead to the peer."""
        if path is self.path:
            self.paths = [path]
        self.owner.touch()

    def local_address_changed(self, local: object) -> None:
        """Go on from another address of ours, once the handshake is confirmed: the socket was bound anew."""
        if not self.is_confirmed or self.phase != OPEN:
            return
        self.peer_ids.change()
        mtu = Mtu(self.path.mtu.size, self.path.mtu.ceiling)
        path = Path(self.path.address, local, mtu, is_validated=True)
        path.begin_validation(self.now)
        self.path = path
        self.paths = [path]
        self.migrations += 1
        self.owner.touch()

    # -- time -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `handle_deadline` has to be called, None never."""
        phase = self.phase
        if phase == OVER:
            return None
        if phase >= CLOSING:
            return self.deadline_s
        first = self.last_heard_s + self._idle_limit_s() if self.idle_s else _NEVER
        if phase == HANDSHAKING:
            first = min(first, self.handshake_until_s)
        if self.config.keep_alive_s and self.is_confirmed:
            first = min(first, self.last_heard_s + self.config.keep_alive_s)
        if self.paced_until_s:
            first = min(first, self.paced_until_s)
        can_send = self.path.room() >= MIN_CHALLENGE_BYTES
        for epoch in SPACES:
            space = self.recovery.spaces[epoch]
            if space.ack_due_s and can_send:
                first = min(first, space.ack_due_s)
            if space.loss_s:
                first = min(first, space.loss_s)
        first = min(first, self._probe_deadline())
        if len(self.paths) > 1 or self.path.challenge:
            for path in self.paths:
                if path.challenge:
                    first = min(first, path.challenge_s)
        return first

    def _idle_limit_s(self) -> float:
        return max(self.idle_s, self.recovery.close_s())  # RFC 9000 §10.1

    def _probe_deadline(self) -> float:
        """Return when the peer is asked for a word (RFC 9002 §6.2)."""
        recovery = self.recovery
        first = _NEVER
        for epoch in SPACES:
            space = recovery.spaces[epoch]
            if space.loss_s:
                return _NEVER  # loss by time comes first
            if (
                not space.eliciting_in_flight
                or space.send_key is None
                or (epoch == DATA and not self.is_confirmed and not self.is_server)
            ):
                continue
            first = min(first, space.last_eliciting_s + recovery.probe_s(epoch))
        if first == _NEVER and not recovery.is_peer_validated:
            # §6.2.2.1: a server may wait for us to prove our address, with nothing of ours under way.
            first = max(self.last_heard_s, self.last_probe_s) + recovery.probe_s(INITIAL)
        if self.path.room() < MIN_DATAGRAM_BYTES and not self.is_confirmed:
            return _NEVER  # nothing could be sent
        return first

    def handle_deadline(self, now: float) -> None:
        """Act on all that has passed."""
        self.now = now
        if self.phase >= CLOSING:
            if now >= self.deadline_s:
                self.phase = OVER
            return
        if self.idle_s and now >= self.last_heard_s + self._idle_limit_s():
            self.phase = OVER  # RFC 9000 §10.1: silently
            self.lose(0, "idle", by_peer=False)
            return
        if self.phase == HANDSHAKING and now >= self.handshake_until_s:
            self.fail(0x0A, "the handshake took too long")
            return
        if self.paced_until_s and now >= self.paced_until_s:
            self.paced_until_s = 0.0
        if self.config.keep_alive_s and now >= self.last_heard_s + self.config.keep_alive_s:
            self.ping_due = True
        for epoch in SPACES:
            if 0.0 < self.space(epoch).loss_s <= now:
                self.settle_lost(self.recovery.find_lost(epoch, now))
        if now >= self._probe_deadline():
            self._probe()
        self._retry_paths(now)
        self.owner.touch()

    def _probe(self) -> None:
        """Repeat the oldest of what is not acknowledged, in packets that have to be."""
        recovery = self.recovery
        recovery.pto_count += 1
        self.last_probe_s = self.now
        if recovery.pto_count >= BLACK_HOLE and self.path.mtu.size > 1200:
            self.path.mtu.fall_back(self.now)
            recovery.congestion.set_mtu(self.path.mtu.size)
        probed = False
        for epoch in SPACES:
            space = recovery.spaces[epoch]
            if space.eliciting_in_flight and space.send_key is not None:
                self._repeat_oldest(space)
                space.probes = PROBES if epoch == DATA else 1
                probed = True
        if not probed:
            which = HANDSHAKE if self.space(HANDSHAKE).send_key is not None else INITIAL
            self.space(which).probes = 1

    def _repeat_oldest(self, space: Space) -> None:
        left = PROBES
        for packet in space.sent.values():
            if packet.frames:
                frames = packet.frames
                packet.frames = []  # what it carried is the new packet's to carry
                for frame in frames:
                    frame.on_lost()
                left -= 1
                if not left:
                    return

    def _retry_paths(self, now: float) -> None:
        for path in list(self.paths):
            if not path.challenge or path.challenge_s > now:
                continue
            if path.challenges_left:
                if path.room() < MIN_CHALLENGE_BYTES:  # nothing can be sent there: time passes all the same
                    path.challenges_left -= 1
                    path.challenge_s = now + self.recovery.probe_s(DATA)
                continue
            path.challenge = b""
            path.challenge_s = 0.0
            if path is not self.path:
                self.paths.remove(path)
                continue
            proven = next((other for other in self.paths if other is not path and other.is_validated), None)
            if proven is not None and not path.is_validated:
                self.paths.remove(path)
                self.path = proven  # RFC 9000 §9.3.2
                self.owner.peer_moved(proven.address)
            elif not path.is_validated:
                self.phase = OVER
                self.lose(NO_VIABLE_PATH, "the peer's new address does not answer", by_peer=False)
