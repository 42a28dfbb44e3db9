"""What becomes of datagrams that belong to no connection of this worker.

    Initial, to a new id           Retry, refusal, or a connection (RFC 9000 §8.1, §5.2.2)
    an id that another made        passed on to that process: a sibling, a predecessor, a successor
    an id of ours, unknown         its connection is gone: stateless reset (§10.3), within a rate
    an unknown version             Version Negotiation (§6.1), within a rate
    a Binding request of STUN      its sender's address (RFC 8489), within a rate; with a name it is the host's
    anything else                  dropped, as is all that comes to a socket from which we only dial

Each outcome is counted. Nothing is remembered of a stranger, and nothing sent that is larger than what came (STUN's
answer is, by 24 bytes), until its Initial is authentic; while many handshakes are unfinished, or many Initials are
not authentic, not before it has answered a Retry.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

from router.edge.quic_forwarding import FULL, GONE, MAX_HOPS, NEXT, SENT
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.quic.invariants import (
    EARLY,
    HANDSHAKE,
    INITIAL,
    MAX_ID_BYTES,
    MIN_CLIENT_ID_BYTES,
    MIN_INITIAL_BYTES,
    NEGOTIATION,
    VERSIONS,
    LongHeader,
    initial_token,
    is_long,
    make_stateless_reset,
    make_version_negotiation,
    read_long,
    short_id,
)
from router.transport.codec.quic.limits import CONNECTION_REFUSED, INVALID_TOKEN
from router.transport.codec.quic.refusal import make_refusal
from router.transport.codec.quic.retry import Tokens, make_retry
from router.transport.codec.stun import (
    BINDING_REQUEST,
    UNKNOWN_ATTRIBUTE,
    binding_error,
    binding_success,
    is_stun,
    read_message,
)

if TYPE_CHECKING:
    from router.edge.quic_counters import QuicCounters
    from router.edge.quic_forwarding import Forwarding
    from router.transport.codec.quic.keyring import Keyring
    from router.transport.udp import Address, UdpSocket
    from router.walltime import WallTime

RETRY_FROM: Final = 64
"""Unfinished handshakes of a worker from which on clients have to prove their address first."""
MAX_HANDSHAKES: Final = 1_024
"""Unfinished handshakes of a worker beyond which nobody new is taken."""
JUNK_BURST: Final = 64
JUNK_RATE: Final = 64.0
"""First packets a second that turn out to be nobody's. Each costs more than two Retries, so beyond that …"""
SUSPICION_S: Final = 10.0
"""… every client has to prove its address for so long."""
NEGOTIATION_BURST: Final = 128
NEGOTIATION_RATE: Final = 64.0
RETURNED_HOPS: Final = 2
"""Hops after which an Initial has been where its id says, and come back."""
RESET_BURST: Final = 128
RESET_RATE: Final = 64.0
STUN_BURST: Final = 256
STUN_RATE: Final = 512.0
"""Answers a second to Binding requests. An answer is at most 24 bytes larger than what it answers: with the headers
of UDP and IPv6 1.35 times the smallest request there is."""
STUN_BEFORE: Final = 4
"""STUN begins with a smaller byte, which no packet of QUIC does (RFC 9443 §3)."""


class Datagrams:
    """What was read at once from one sender: one datagram if `segment_bytes` is 0, else each so large but the last.

    `hops`: how many other processes have had it.
    """

    __slots__ = ("address", "data", "ecn", "hops", "local", "segment_bytes", "sock")

    def __init__(
        self, sock: UdpSocket, data: bytes, segment_bytes: int, address: Address, local: bytes, ecn: int, hops: int
    ) -> None:
        self.sock = sock
        self.data = data
        self.segment_bytes = segment_bytes
        self.address = address
        self.local = local
        self.ecn = ecn
        self.hops = hops


@trait
class Host:
    """The listener, as strangers see it."""

    __slots__ = ()

    handshaking: int
    accepts: bool
    is_retired: bool

    def accept(
        self, arrived: Datagrams, now: float, destination_id: bytes, original_id: bytes, *, is_validated: bool
    ) -> bool:
        """Begin a connection; False if there is no room for it. `destination_id` is what the client sends to."""
        raise NotImplementedError

    def take_check(self, user: bytes, arrived: Datagrams) -> bytes:
        """Take a Binding request with a USERNAME, as RFC 8445 §7 checks a way; return the answer, or nothing."""
        raise NotImplementedError


class Strangers:
    """One per listener. `worker` and `incarnation` are this process's, as its ids have them."""

    __slots__ = (
        "_counters",
        "_forwarding",
        "_host",
        "_incarnation",
        "_junk",
        "_keyring",
        "_negotiations",
        "_resets",
        "_stun",
        "_suspicious_until_s",
        "_tokens",
        "_walltime",
        "_worker",
    )

    def __init__(
        self,
        host: Host,
        counters: QuicCounters,
        keyring: Keyring,
        worker: int,
        incarnation: int,
        forwarding: Forwarding,
        walltime: WallTime,
        now: float,
    ) -> None:
        self._host = host
        self._counters = counters
        self._keyring = keyring
        self._worker = worker
        self._incarnation = incarnation
        self._forwarding = forwarding
        self._walltime = walltime
        self._tokens = Tokens(keyring.tokens)
        self._junk = Allowance(JUNK_BURST, JUNK_RATE, now)
        self._suspicious_until_s = 0.0
        self._negotiations = Allowance(NEGOTIATION_BURST, NEGOTIATION_RATE, now)
        self._resets = Allowance(RESET_BURST, RESET_RATE, now)
        self._stun = Allowance(STUN_BURST, STUN_RATE, now)

    def take(self, arrived: Datagrams, now: float) -> None:
        """Deal with datagrams to one id that leads to no connection here."""
        data = arrived.data
        if not data:
            self._counters.quic_drop_malformed += 1
            return
        if not arrived.sock.name:  # nobody was told of it: not even that somebody is there is said
            self._counters.quic_drop_unknown += 1
            return
        if data[0] < STUN_BEFORE:
            self._each(arrived, now)
            return
        if not is_long(data, 0):
            found = short_id(data, 0, arrived.segment_bytes or len(data))
            if not self._keyring.is_ours(found):
                self._counters.quic_drop_unknown += 1
            elif not self._is_forwarded(arrived, found):
                self._reset(arrived, found, now)
            return
        self._each(arrived, now)

    def _each(self, arrived: Datagrams, now: float) -> None:
        """Deal with what is looked at one by one."""
        data, size = arrived.data, arrived.segment_bytes
        if not size:
            self._take_one(arrived, now)
            return
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            self._take_one(
                Datagrams(
                    arrived.sock, piece, 0, arrived.address, arrived.local, arrived.ecn, arrived.hops
                ),
                now,
            )  # fmt: skip

    def _take_one(self, arrived: Datagrams, now: float) -> None:
        data = arrived.data
        if is_long(data, 0):
            self._take_long(arrived, now)
        elif is_stun(data):
            self._take_stun(arrived, now)
        else:
            self._counters.quic_drop_unknown += 1  # RFC 9443: nothing of QUIC's

    def take_namesake(self, arrived: Datagrams, now: float) -> None:
        """Deal with what names a connection that began at another address: that may have been a copy.

        A first Initial's client proves its address, and gets a connection of its own by the id of the Retry.
        """
        data = arrived.data
        header = read_long(data, 0, len(data))
        if (
            header is None
            or header.version not in VERSIONS
            or header.kind != INITIAL
            or len(data) < MIN_INITIAL_BYTES
            or len(header.source_id) > MAX_ID_BYTES
            or self._keyring.is_ours(header.destination_id)  # what the client sends behind our answer, or a Retry
            or not arrived.sock.name
        ):
            self._counters.quic_drop_unknown += 1
        else:
            self._retry(arrived, header, now)

    def note_junk(self, now: float) -> None:
        """Count an Initial that turned out to be nobody's."""
        self._counters.quic_drop_junk += 1
        if not self._junk.take(now):
            self._suspicious_until_s = now + SUSPICION_S

    def token_for(self, address: Address, now: float) -> bytes:
        """Return a token with which a client at this address need not answer a Retry next time."""
        return self._tokens.of_connection(str(address[0]), self._walltime.at(now))

    def _take_long(self, arrived: Datagrams, now: float) -> None:
        counters = self._counters
        data = arrived.data
        header = read_long(data, 0, len(data))
        if header is None or header.version == NEGOTIATION:
            counters.quic_drop_malformed += 1
        elif header.version not in VERSIONS:
            self._negotiate(arrived, header, now)
        elif max(len(header.destination_id), len(header.source_id)) > MAX_ID_BYTES:
            counters.quic_drop_malformed += 1
        elif self._belongs_elsewhere(arrived, header):
            pass
        elif header.kind == INITIAL:
            self._take_initial(arrived, header, now)
        elif header.kind in (EARLY, HANDSHAKE):
            counters.quic_drop_early += 1  # RFC 9000 §5.2.2; the client repeats early data behind its Initial
        else:
            counters.quic_drop_malformed += 1  # a Retry, to a server

    # -- STUN -----------------------------------------------------------------------------------------

    def _take_stun(self, arrived: Datagrams, now: float) -> None:
        """Tell a client its address. Who sends an indication or a response has asked for nothing."""
        counters = self._counters
        request = read_message(arrived.data)
        if request is None or request.kind != BINDING_REQUEST:
            counters.quic_drop_stun += 1
        elif request.username:
            counters.stun_checks += 1
            answer = self._host.take_check(request.username, arrived)
            if answer:
                self._answer(arrived, answer)
        elif not self._stun.take(now):
            counters.quic_drop_stun_limit += 1
        elif request.unknown:
            counters.stun_refusals += 1
            self._answer(arrived, binding_error(request, UNKNOWN_ATTRIBUTE, request.unknown))
        else:
            counters.stun_answers += 1
            self._answer(arrived, binding_success(request, arrived.address))

    # -- a new connection -----------------------------------------------------------------------------

    def _take_initial(self, arrived: Datagrams, header: LongHeader, now: float) -> None:
        counters, host = self._counters, self._host
        data = arrived.data
        if len(data) < MIN_INITIAL_BYTES:
            counters.quic_drop_small += 1  # RFC 9000 §14.1
            return
        token = initial_token(data, header.rest_at, len(data))
        if token is None or len(header.destination_id) < MIN_CLIENT_ID_BYTES:
            counters.quic_drop_malformed += 1
            return
        if host.is_retired:
            self._pass_on(arrived, self._incarnation, NEXT)
            return
        original_id = header.destination_id
        is_validated = False
        where, port = str(arrived.address[0]), int(arrived.address[1])
        if self._tokens.is_of_retry(token):
            found = self._tokens.open_retry(token, where, port, header.destination_id, self._walltime.at(now))
            if found is None:
                counters.quic_invalid_tokens += 1
                self._refuse(arrived, header, INVALID_TOKEN)  # §8.1.3: it would take no other Retry
                return
            counters.quic_retries_answered += 1
            original_id = found
            is_validated = True
        elif token and self._tokens.is_known(token, where, self._walltime.at(now)):
            counters.quic_tokens_used += 1
            is_validated = True
        is_busy = host.handshaking >= RETRY_FROM or now < self._suspicious_until_s
        if is_busy and not is_validated:
            self._retry(arrived, header, now)
        elif host.handshaking >= MAX_HANDSHAKES:
            counters.quic_drop_handshakes += 1
        elif not host.accepts or not host.accept(
            arrived, now, header.destination_id, original_id, is_validated=is_validated
        ):
            counters.quic_refused += 1
            self._refuse(arrived, header, CONNECTION_REFUSED)

    def _retry(self, arrived: Datagrams, header: LongHeader, now: float) -> None:
        """Have the client prove its address; nothing of it is kept."""
        chosen = self._keyring.make_id(self._worker, self._incarnation)
        token = self._tokens.of_retry(
            str(arrived.address[0]), int(arrived.address[1]), chosen, header.destination_id, self._walltime.at(now)
        )
        packet = make_retry(header.source_id, chosen, header.destination_id, token, os.urandom(1)[0])
        self._counters.quic_retries += 1
        self._answer(arrived, packet)

    def _refuse(self, arrived: Datagrams, header: LongHeader, code: int) -> None:
        self._answer(arrived, make_refusal(header.destination_id, header.source_id, code))

    def _negotiate(self, arrived: Datagrams, header: LongHeader, now: float) -> None:
        counters = self._counters
        if len(arrived.data) < MIN_INITIAL_BYTES:
            counters.quic_drop_small += 1
        elif not self._negotiations.take(now):
            counters.quic_drop_negotiation_limit += 1
        else:
            counters.quic_negotiations += 1
            self._answer(arrived, make_version_negotiation(header, os.urandom(6)))

    # -- of a connection that is elsewhere, or gone ---------------------------------------------------

    def _belongs_elsewhere(self, arrived: Datagrams, header: LongHeader) -> bool:
        """Pass a handshake's packet on; False if it is to be dealt with here.

        A client may by chance have made up an id that looks like a predecessor's, who sends its Initial back.
        """
        if header.kind == INITIAL and arrived.hops >= RETURNED_HOPS:
            return False
        return self._keyring.is_ours(header.destination_id) and self._is_forwarded(arrived, header.destination_id)

    def _is_forwarded(self, arrived: Datagrams, found: bytes) -> bool:
        """Pass it on if the id is another process's; False if it is ours, or nobody is there any more."""
        worker, incarnation = found[0], found[1]
        if incarnation == self._incarnation and worker == self._worker:
            return False
        if incarnation == (self._incarnation + 1) & 0xFF:
            return self._pass_on(arrived, self._incarnation, NEXT)  # both read while one takes over from the other
        return self._pass_on(arrived, incarnation, worker)

    def _pass_on(self, arrived: Datagrams, incarnation: int, worker: int) -> bool:
        """Send it to another process; False where there is none."""
        counters = self._counters
        if arrived.hops >= MAX_HOPS:
            counters.quic_drop_forward_hops += 1
            return True
        outcome = self._forwarding.send(
            incarnation, worker, arrived.sock.name, arrived.data, arrived.segment_bytes, arrived.address,
            arrived.local, arrived.ecn, arrived.hops + 1,
        )  # fmt: skip
        if outcome == SENT:
            counters.quic_forwarded += 1
        elif outcome == FULL:
            counters.quic_drop_forward_full += 1
        elif outcome == GONE:
            counters.quic_drop_forward_gone += 1
            return False
        return True

    def _reset(self, arrived: Datagrams, found: bytes, now: float) -> None:
        """Tell the peer that its connection is gone: it would else try until its own limit of time."""
        size = min(arrived.segment_bytes or len(arrived.data), len(arrived.data))
        packet = make_stateless_reset(self._keyring.reset_token(found), size, os.urandom(64))
        if not packet or not self._resets.take(now):
            self._counters.quic_drop_reset_limit += 1
            return
        self._counters.quic_resets += 1
        self._answer(arrived, packet)

    def _answer(self, arrived: Datagrams, packet: bytes) -> None:
        arrived.sock.send([packet], len(packet), arrived.local, arrived.address)
