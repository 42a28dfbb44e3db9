"""What a protocol sees of the QUIC connection it runs on, and what the connection sees of it: types only.

A connection is a `Bearer` of streams and datagrams; HTTP/3, robot sessions and the portal are `Application`s.
Who writes calls `Bearer.touch`, which gets the connection flushed at the end of this tick: all that a tick
produced leaves in as few system calls as the kernel allows. Receive credit is the application's to give
(`Flow.credit`), so that whoever holds data back is felt by the peer. Imports only `errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.errors import ProxyError


@trait
class Flow:
    """One QUIC stream. `id` as in RFC 9000 §2.1.

    Calls on a stream that is over in that direction do nothing.
    """

    __slots__ = ()

    id: int
    unsent_bytes: int  # queued and not sent for the first time yet

    def send(self, data: bytes, end: bool) -> None:
        """Queue bytes; `end` is the FIN, with or without data. Never refuses: look at `unsent_bytes`."""
        raise NotImplementedError

    def reset(self, code: int) -> None:
        """RESET_STREAM: drop what was not acknowledged, end our side. Harmless where it has ended."""
        raise NotImplementedError

    def stop(self, code: int) -> None:
        """STOP_SENDING: the peer's bytes are not wanted; the application hears nothing more of them."""
        raise NotImplementedError

    def credit(self, size: int) -> None:
        """Let the peer send as many bytes more, on the stream and on the connection, once they are consumed."""
        raise NotImplementedError

    def can_send(self) -> bool:
        """Whether our side is neither finished nor reset, nor stopped by the peer."""
        raise NotImplementedError

    def send_is_over(self) -> bool:
        """Whether all of our side up to its FIN, or its RESET_STREAM, was acknowledged."""
        raise NotImplementedError


@trait
class Bearer:
    """One QUIC connection. `now` is the monotonic time of the callback under way, in seconds."""

    __slots__ = ()

    now: float
    is_server: bool
    is_early: bool  # the handshake is not complete: what is delivered may be a replay (RFC 9001 §9.2)
    alpn: str

    def open_stream(self, *, unidirectional: bool) -> Flow | None:
        """Open a stream of ours; None while the peer allows no more."""
        raise NotImplementedError

    def send_datagram(self, data: bytes) -> bool:
        """Queue a DATAGRAM; False if it is larger than `max_datagram_bytes`. Of too many the oldest goes."""
        raise NotImplementedError

    def waiting_datagrams(self) -> int:
        """Return how many DATAGRAMs were not sent yet."""
        raise NotImplementedError

    def max_datagram_bytes(self) -> int:
        """Return the largest payload of a DATAGRAM that the path and the peer take now; 0 if none."""
        raise NotImplementedError

    def close(self, code: int, reason: bytes = b"") -> None:
        """End the connection with an application error code. The application hears `connection_lost` no more."""
        raise NotImplementedError

    def touch(self) -> None:
        """Be flushed at the end of this tick. Sending does this by itself."""
        raise NotImplementedError

    def watch(self) -> None:
        """Say that `Application.next_deadline` moved to an earlier time."""
        raise NotImplementedError

    def unsent_bytes(self) -> int:
        """Return how much of all streams waits for its first transmission."""
        raise NotImplementedError


@trait
class Application:
    """A protocol on a connection. Callbacks run inside the connection's `receive`, one direction per tick."""

    __slots__ = ()

    def connected(self) -> None:
        """The handshake is complete; early data may have come before."""
        raise NotImplementedError

    def stream_opened(self, flow: Flow) -> None:
        """The peer opened a stream; its first bytes follow."""
        raise NotImplementedError

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Take the next bytes in order; empty only with `end`. Give credit when they are consumed."""
        raise NotImplementedError

    def stream_reset(self, flow: Flow, code: int) -> None:
        """The peer gave up its side: no more data comes."""
        raise NotImplementedError

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """The peer wants no more of ours (STOP_SENDING); a RESET_STREAM was queued for it (RFC 9000 §3.5)."""
        raise NotImplementedError

    def stream_drained(self, flow: Flow) -> None:
        """`unsent_bytes` fell below the low mark after it had passed the high one. See `limits.py`."""
        raise NotImplementedError

    def stream_gone(self, flow: Flow) -> None:
        """Both directions are over and acknowledged: the last word about this stream."""
        raise NotImplementedError

    def datagram(self, data: bytes) -> None:
        """Take a DATAGRAM."""
        raise NotImplementedError

    def streams_available(self) -> None:
        """The peer allows more streams than it did."""
        raise NotImplementedError

    def before_send(self, now: float) -> None:
        """The connection is about to be flushed: what waits for the end of the tick is to be sent now."""
        raise NotImplementedError

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """The connection is over: every stream with it. Called once, unless the application closed it."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called, monotonic seconds; asked lazily, may be late by 50 ms."""
        raise NotImplementedError

    def handle_deadline(self, now: float) -> None:
        """Act on a deadline that has passed."""
        raise NotImplementedError

    def drain(self) -> None:
        """Finish what is under way, start nothing new, then close."""
        raise NotImplementedError

    def retire(self, now: float) -> None:
        """As `drain`, but serve what a client sends that cannot know of it yet."""
        raise NotImplementedError

    def may_be_left(self) -> bool:
        """Whether a process that comes to its end need not wait for this connection, although it is open."""
        return False

    def cut(self, error: ProxyError) -> None:
        """End now, telling every exchange under way."""
        raise NotImplementedError


@trait
class Owner:
    """The shell around a connection: sockets, clocks, connection ids, and what protocols there are."""

    __slots__ = ()

    def touch(self) -> None:
        """Have `datagrams_to_send` called at the end of this tick."""
        raise NotImplementedError

    def watch(self) -> None:
        """Look at the deadlines again: one moved to an earlier time."""
        raise NotImplementedError

    def make_id(self) -> bytes:
        """Return a new connection id that leads here; routed from now on."""
        raise NotImplementedError

    def retire_id(self, retired: bytes) -> None:
        """Route this id no more."""
        raise NotImplementedError

    def reset_token(self, issued: bytes) -> bytes:
        """Return the stateless reset token of one of our ids, 16 bytes."""
        raise NotImplementedError

    def new_token(self, address: object) -> bytes:
        """Return a token that proves the address in a later connection (RFC 9000 §8.1.3); empty for none."""
        raise NotImplementedError

    def make_application(self, bearer: Bearer, alpn: str) -> Application:
        """Return the protocol that the handshake chose among those that were offered."""
        raise NotImplementedError

    def stray(self, data: bytes, address: object) -> None:
        """Take back a datagram of a batch that is for another connection on the same addresses."""
        raise NotImplementedError

    def peer_moved(self, address: object) -> None:
        """Learn that the peer is reached at another address from now on."""
        raise NotImplementedError
