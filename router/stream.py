"""THE SEAM: the five verbs between protocols and the exchange, as types only.

Codecs translate their wire to and from head, data, trailers, reset and hold; the exchange knows no
protocol. So N protocols in and M out cost N+M. Nothing here runs. Imports only `http` and `errors`.

One direction per tick: codec -> receiver -> `send_*`, and no `send_*` calls back. What a `send_*`
produced leaves when the outbox is flushed, the last line of each I/O callback; watermarks, releases and
the parsing of held input run there too.

These are traits and not Protocols: once compiled, a call through a trait is a call through a table, one
through a Protocol a look-up by name, and a relayed event makes ten of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.errors import ProxyError
    from router.http import Headers, RequestHead, ResponseHead

# Plain integers and not enums: reading a member of an enum class costs 0.1 us on Python 3.11, an operation
# on a flag 1 us, and both stand on the path of every request.

# Why a stream's incoming data is held: a mask of reasons, never a counter.
HOLD_NO_UPSTREAM: Final = 1
HOLD_PEER_FULL: Final = 2

# What the shell does with the transport once the output is written; a higher one overrules a lower one.
CLOSE_NO: Final = 0
CLOSE_LINGER: Final = 1  # write side shut; input is read and dropped until the peer ends or a deadline
CLOSE_FLUSH: Final = 2  # closed once everything is written
CLOSE_ABORT: Final = 3  # RST: the peer must not take what it got for a whole message


@trait
class Stream:
    """One message pair on one connection, made by a codec and called by the exchange.

    After `end`, `send_trailers` or `reset` no further `send_*` may be called.
    """

    __slots__ = ()

    def send_data(self, data: bytes, end: bool) -> None:
        """Queue body bytes; `end` closes the message. Data may be empty only with `end`."""
        raise NotImplementedError

    def send_trailers(self, trailers: Headers) -> None:
        """Queue the trailer section and end the message."""
        raise NotImplementedError

    def reset(self, error: ProxyError) -> None:
        """End the stream at once in the way the protocol says 'failed'. May be called at any time."""
        raise NotImplementedError

    def hold(self, why: int) -> None:
        """No data or trailers reach the receiver until every reason is released; resets still do."""
        raise NotImplementedError

    def release(self, why: int) -> None:
        """Take one reason back; held input is delivered at the next flush."""
        raise NotImplementedError


@trait
class DownstreamStream(Stream):
    """The client's side of one request."""

    __slots__ = ()

    def limit_idle(self, idle_s: float) -> None:
        """Say how long nothing may move on this request before `request_reset` with IDLE_TIMEOUT."""
        raise NotImplementedError

    def send_informational(self, head: ResponseHead) -> None:
        """Queue a 1xx other than 101; dropped where the client cannot take it (HTTP/1.0)."""
        raise NotImplementedError

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Queue the final head. For an upgrade request see `accepts_tunnel`."""
        raise NotImplementedError


@trait
class UpstreamStream(Stream):
    """The replica's side of one request.

    `may_be_untouched`: it may yet turn out that the request reached nobody, since its connection served an
    earlier one or serves others beside it; so its body is worth keeping for a while.
    """

    __slots__ = ()

    may_be_untouched: bool

    def send_head(self, head: RequestHead, end: bool) -> None:
        """Queue the request head; the first call on a fresh stream."""
        raise NotImplementedError

    def is_untouched(self) -> bool:
        """Whether the peer's kernel acknowledged no byte of this request, so that it may be repeated."""
        raise NotImplementedError

    def send_datagram(self, data: bytes) -> bool:
        """Send what may be lost, beside everything else; False if it was not taken, or there is no such way."""
        return False


class PendingStream:
    """A stream still being opened. A base class, since the exchange must tell it from an open one."""

    __slots__ = ()

    def cancel(self) -> None:
        """Give it up; the receiver hears nothing more."""
        raise NotImplementedError


@trait
class RequestReceiver:
    """The exchange, as the downstream codec sees it."""

    __slots__ = ()

    def request_head(self, head: RequestHead, end: bool) -> None:
        """Take the request's head; called once, first."""
        raise NotImplementedError

    def request_data(self, data: bytes, end: bool) -> None:
        """Take body bytes, never empty unless `end`."""
        raise NotImplementedError

    def request_trailers(self, trailers: Headers) -> None:
        """Take the trailers; the request is complete."""
        raise NotImplementedError

    def request_reset(self, error: ProxyError) -> None:
        """Learn that the client is gone, broke the protocol or ran out of time; ends the exchange."""
        raise NotImplementedError

    def pause_response(self) -> None:
        """Learn that the client takes no more for now."""
        raise NotImplementedError

    def resume_response(self) -> None:
        """Learn that it does again."""
        raise NotImplementedError

    def replica_host(self) -> str:
        """Return the host of the replica that serves it, as the table has it; empty while there is none."""
        return ""

    def request_datagram(self, data: bytes) -> bool:
        """Take what may be lost: it is sent on now, or not at all, and never held. False: it was not."""
        return False


@trait
class ResponseReceiver:
    """The exchange, as the pool and the upstream codec see it."""

    __slots__ = ()

    def upstream_ready(self, stream: UpstreamStream) -> None:
        """Take the stream that a pending open led to."""
        raise NotImplementedError

    def upstream_failed(self, error: ProxyError) -> None:
        """Learn that the open failed; nothing was sent."""
        raise NotImplementedError

    def response_informational(self, head: ResponseHead) -> None:
        """Take a 1xx other than 101."""
        raise NotImplementedError

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """Take the final head."""
        raise NotImplementedError

    def response_data(self, data: bytes, end: bool) -> None:
        """Take body bytes, never empty unless `end`."""
        raise NotImplementedError

    def response_trailers(self, trailers: Headers) -> None:
        """Take the trailers; the response is complete."""
        raise NotImplementedError

    def response_reset(self, error: ProxyError) -> None:
        """Learn that the replica failed this stream."""
        raise NotImplementedError

    def pause_request(self) -> None:
        """Learn that the replica takes no more for now."""
        raise NotImplementedError

    def resume_request(self) -> None:
        """Learn that it does again."""
        raise NotImplementedError


@trait
class Shell:
    """The transport's owner, as a codec sees it."""

    __slots__ = ()

    def touch(self) -> None:
        """Ask for a flush at the end of this tick: output, reading or closing has changed."""
        raise NotImplementedError

    def unsent_bytes(self) -> int:
        """Return how much of what was written the peer's kernel does not have yet."""
        raise NotImplementedError

    def has_input(self) -> bool:
        """Whether the peer sent something that was not read yet and will be; False where it cannot be told."""
        raise NotImplementedError

    def watch(self) -> None:
        """Say that `next_deadline` moved to an earlier time."""
        raise NotImplementedError

    def flush(self, now: float) -> None:
        """Write, read on or stop, close; for the outbox."""
        raise NotImplementedError


class Codec:
    """A protocol's state for one connection: bytes in, verbs out; no I/O, no clock of its own.

    `wants_read` is False while input must stay in the kernel; `has_held_input` asks the shell to call
    `receive(b"", now)` at the flush; `close` says what to do with the transport after the output.
    """

    __slots__ = ("close", "has_held_input", "wants_read")

    def __init__(self) -> None:
        self.wants_read = True
        self.has_held_input = False
        self.close: int = CLOSE_NO

    def receive(self, data: bytes, now: float) -> None:
        """Take what the transport read; `b""` continues with held input."""
        raise NotImplementedError

    def receive_eof(self, now: float) -> bool:
        """Take the peer's end of input; True keeps the write side open."""
        raise NotImplementedError

    def receive_lost(self, now: float) -> None:
        """Learn that the transport is gone."""
        raise NotImplementedError

    def take_output(self, now: float) -> list[bytes]:
        """Hand over what is to be written, in order; a last `b""` shuts the write side."""
        raise NotImplementedError

    def transport_full(self, full: bool, now: float) -> None:
        """Learn that the transport's buffer passed its high mark, or fell below the low one."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called, monotonic seconds; asked lazily, may be late."""
        raise NotImplementedError

    def handle_deadline(self, now: float) -> None:
        """Act on a deadline that has passed."""
        raise NotImplementedError

    def drain(self) -> None:
        """Finish what is under way, start nothing new."""
        raise NotImplementedError

    def retire(self, now: float) -> None:
        """As `drain`, but serve what a client sends that cannot know of it yet. A server's codec only."""
        raise NotImplementedError

    def cut(self, error: ProxyError) -> None:
        """End now, telling every exchange under way. A server's codec only."""
        raise NotImplementedError
