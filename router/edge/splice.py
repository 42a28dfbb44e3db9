"""One connection of a socket and one stream of QUIC, joined: what comes on the one goes out on the other.

    socket: read  --> stream: queued        reading stops while the stream has too much that is not sent
    stream: data  --> socket: written       credit only for what the socket has taken
    end           --> end                   each direction by itself
    reset, error  --> reset                 both directions

Neither side is looked into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.transport.codec.quic.limits import HIGH_BYTES

if TYPE_CHECKING:
    from router.transport.codec.quic.seam import Flow
    from router.transport.shell import Reactor

CUT: Final = 1
"""Of RESET_STREAM and STOP_SENDING: the other side is gone without an end."""


class Splice:
    """An asyncio protocol for the socket; the connection's application calls `take`, `cut` and `drained`."""

    __slots__ = (
        "_flow", "_has_read_all", "_has_written_all", "_is_full", "_is_held", "_is_lost", "_owed", "_reactor",
        "_transport", "_waiting",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, flow: Flow | None) -> None:
        """`flow` None: there is none to be had, and the socket is closed when it is there."""
        self._reactor = reactor
        self._flow = flow
        self._transport: Any = None
        self._waiting: list[bytes] = []  # for a socket that is not connected yet
        self._owed = 0  # credit for what the socket has not taken yet
        self._is_full = False
        self._is_held = False  # the socket is not read
        self._is_lost = False
        self._has_read_all = False
        self._has_written_all = False

    # -- the socket -----------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Write what came before."""
        self._transport = transport
        if self._flow is None or self._is_lost:
            transport.abort()
            return
        waiting = self._waiting
        self._waiting = []
        for data in waiting:
            transport.write(data)
        if self._has_written_all:
            transport.write_eof()
        if not self._is_full:
            self._pay()

    def data_received(self, data: bytes) -> None:
        """Queue it on the stream."""
        flow = self._flow
        if flow is None:
            return
        reactor = self._reactor
        reactor.clock.read()
        flow.send(data, False)
        reactor.outbox.flush()
        if flow.unsent_bytes > HIGH_BYTES and not self._is_held and self._transport is not None:
            self._is_held = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """End our side of the stream; keep the socket while the other side goes on."""
        flow = self._flow
        if flow is None:
            return False
        self._has_read_all = True
        self._reactor.clock.read()
        flow.send(b"", True)
        self._reactor.outbox.flush()
        return not self._has_written_all

    def pause_writing(self) -> None:
        """Withhold credit."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Give what was withheld."""
        self._is_full = False
        self._pay()

    def connection_lost(self, error: Exception | None) -> None:
        """Reset whatever has not ended."""
        self.lose()

    # -- the stream -----------------------------------------------------------------------------------

    def take(self, data: bytes, end: bool) -> None:
        """Write to the socket."""
        flow, transport = self._flow, self._transport
        if flow is None:
            return
        if self._is_lost:
            flow.credit(len(data))
            return
        if data:
            if transport is None:
                self._waiting.append(data)
            else:
                transport.write(data)
        if transport is None or self._is_full:
            self._owed += len(data)
        elif data:
            flow.credit(len(data))
        if end:
            self._has_written_all = True
            if transport is None:
                return
            if self._has_read_all:
                transport.close()
            else:
                transport.write_eof()

    def drained(self) -> None:
        """Read on."""
        if self._is_held and self._transport is not None:
            self._is_held = False
            self._transport.resume_reading()

    def cut(self) -> None:
        """Close the socket without an end: the stream was reset, or the connection is lost."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self._is_lost = True

    def lose(self) -> None:
        """Let the stream go: the socket is gone, or could not be had."""
        self._is_lost = True
        self._transport = None
        self._waiting.clear()
        flow = self._flow
        if flow is None:
            return
        self._reactor.clock.read()
        if not self._has_read_all:
            flow.reset(CUT)
        if not self._has_written_all:
            flow.stop(CUT)
        self._pay()
        self._reactor.outbox.flush()

    def _pay(self) -> None:
        owed, flow = self._owed, self._flow
        if owed and flow is not None:
            self._owed = 0
            self._reactor.clock.read()
            flow.credit(owed)
            self._reactor.outbox.flush()
