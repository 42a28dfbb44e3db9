"""The TCP shell around a codec: the only place where a transport is read, written, paused or closed.

Callbacks of uvloop come in, `codec.receive` takes them, and the last line of each is the flush. Nothing is
raised across a callback: an exception is our bug, is logged and costs this one connection.

Over TLS the transport is uvloop's own, and either direction's end is the end of both: there is no half-close.
An end of ours therefore ends a tunnel; a peer's close_notify means that nothing more can be written, though what
a replica sent before it is still delivered. The transport would wait for the peer's close_notify as long as for a
slow reader; once the kernel has nothing more to send, `CLOSE_NOTIFY_S` is enough.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any, Final

from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_NO, Shell
from router.transport.codec.gone import GONE

if TYPE_CHECKING:
    import asyncio

    from router.clock import Clock
    from router.counters import WorkerCounters
    from router.deadlines import DeadlineWheel
    from router.stream import Codec
    from router.transport.outbox import Outbox

_log = logging.getLogger(__name__)

# Above this size the pieces go to writev as they are; below, one joined buffer is cheaper.
JOIN_BYTES: Final = 16_384
CLOSE_NOTIFY_S: Final = 1.0  # for the peer to answer ours, once everything was sent
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER 0: closing sends RST


class Reactor:
    """What every shell of a worker shares."""

    __slots__ = ("clock", "counters", "outbox", "wheel")

    def __init__(self, clock: Clock, outbox: Outbox, wheel: DeadlineWheel, counters: WorkerCounters) -> None:
        self.clock = clock
        self.outbox = outbox
        self.wheel = wheel
        self.counters = counters


class TcpShell(Shell):
    """One TCP connection: an asyncio protocol that owns a codec. Watched by the deadline wheel."""

    __slots__ = (
        "_clock",
        "_closing",
        "_delivers_rest",
        "_has_rest",
        "_is_reading",
        "_is_tls",
        "_is_touched",
        "_look_s",
        "_outbox",
        "_touched",
        "codec",
        "reactor",
        "transport",
        "watch_tick",
        "written_bytes",
    )

    codec: Codec

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self._clock = reactor.clock
        self._outbox = reactor.outbox
        self._touched = reactor.outbox.touched
        self.transport: Any = None
        self._is_reading = True
        self._is_touched = False
        self._closing = CLOSE_NO
        self._is_tls = False
        self._delivers_rest = True  # what was held when the transport ended is still of use
        self._has_rest = False
        self._look_s = 0.0  # when to see whether a closed TLS connection has sent everything
        self.written_bytes = 0
        self.watch_tick = -1

    # -- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport
        if self.transport.get_extra_info("ssl_object") is not None:
            self._is_tls = True
            # Nothing waits in the layer of TLS unless the socket below it has passed its own mark: that is enough.
            # uvloop would let another 512 KiB pile up.
            self.transport.set_write_buffer_limits(1, 0)
            # uvloop drops what it has decrypted for nobody yet when the peer's FIN is read: so that it is not read
            # before its time, the socket is left alone as soon as anything waits.
            self.transport.set_read_buffer_limits(1, 0)
        self.reactor.wheel.watch(self)

    def data_received(self, data: bytes) -> None:
        """Hand input to the codec."""
        try:
            now = self._clock.read()
            self.codec.receive(data, now)
        except Exception:
            now = self._clock.now
            self._crash()
        touched = self._touched  # the outbox's flush, written out: this is the path of every byte
        while touched:
            touched.pop().flush(now)

    def eof_received(self) -> bool:
        """Hand the end of input to the codec; True keeps the write side open."""
        keep = False
        if self._is_tls and self._closing:
            return False  # the answer to our close: uvloop is in the midst of ending, and must not be aborted there
        try:
            keep = self.codec.receive_eof(self._clock.read())
        except Exception:
            self._crash()
        self._outbox.flush()
        if self._is_tls:
            self._end_tls(keep)
            return False  # a warning of uvloop's would be all that comes of True
        return keep

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the codec; the transport is gone."""
        if self.transport is None:
            return
        if not self._has_rest:
            try:
                self.codec.receive_lost(self._clock.read())
            except Exception:
                self._crash()
        self.transport = None
        self.on_lost()
        self._outbox.flush()
        if not self._has_rest:
            self.let_go()

    def pause_writing(self) -> None:
        """Pass the high mark on. uvloop calls this from within a write, so from within a flush."""
        try:
            self.codec.transport_full(True, self._clock.now)
        except Exception:
            self._crash()

    def resume_writing(self) -> None:
        """Pass the low mark on."""
        try:
            self.codec.transport_full(False, self._clock.read())
        except Exception:
            self._crash()
        self._outbox.flush()

    # -- for the codec --------------------------------------------------------------------------------

    def touch(self) -> None:
        """Be flushed at the end of this tick."""
        if not self._is_touched:
            self._is_touched = True
            self._touched.append(self)

    def watch(self) -> None:
        """Have the wheel look again: the deadline moved to an earlier time."""
        self.reactor.wheel.watch(self)

    def unsent_bytes(self) -> int:
        """Return what waits in the transport and in the kernel, for a peer that has not taken it."""
        transport = self.transport
        if transport is None:
            return 0
        return int(transport.get_write_buffer_size()) + self._queued_bytes(termios.TIOCOUTQ)

    def has_input(self) -> bool:
        """Whether the kernel has input that the loop is about to read; over TLS it need not lead to any for us."""
        transport = self.transport
        if transport is None or self._is_tls or not self._is_reading:
            return False
        return self._queued_bytes(termios.FIONREAD) > 0

    # -- for the outbox and the wheel -----------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Write what the codec queued, continue with held input, read on or stop, close."""
        self._is_touched = False
        transport = self.transport
        if transport is None:
            if self._has_rest:
                self._deliver_rest(now)
            return
        codec = self.codec
        try:
            out = codec.take_output(now)
        except Exception:  # what waited may run an exchange: its fault costs this connection, not the flushing one
            self._crash()
            return
        if out and not self._closing:
            if len(out) == 1 and out[0]:
                self.written_bytes += len(out[0])
                transport.write(out[0])
            elif len(out) == 2 and 0 < len(out[1]) < JOIN_BYTES:  # a head and its small body
                data = out[0] + out[1]
                self.written_bytes += len(data)
                transport.write(data)
            else:
                self._write_all(transport, out, now)
        if codec.has_held_input:
            try:
                codec.receive(b"", now)
            except Exception:
                self._crash()
        if codec.wants_read is not self._is_reading and not transport.is_closing():
            self._is_reading = codec.wants_read
            if codec.wants_read:
                transport.resume_reading()
            else:
                transport.pause_reading()
        if codec.close and codec.close > self._closing and not codec.has_held_input and not self._is_touched:
            self._end(transport, codec.close)

    def next_deadline(self) -> float | None:
        """Ask the codec; None once the transport is gone."""
        if self.transport is None:
            return None
        deadline = self.codec.next_deadline()
        look_s = self._look_s
        return deadline if not look_s or (deadline is not None and deadline < look_s) else look_s

    def handle_deadline(self, now: float) -> None:
        """Tell the codec; the wheel's owner flushes."""
        if self._look_s and now >= self._look_s:
            self._look_s = now + CLOSE_NOTIFY_S
            if not self.unsent_bytes():
                self.transport.abort()  # without RST: the kernel sends FIN behind our close_notify
                return
            deadline = self.codec.next_deadline()
            if deadline is None or deadline > now:
                return
        try:
            self.codec.handle_deadline(now)
        except Exception:
            self._crash()

    def let_go(self) -> None:
        """Forget the codec, which knows its shell."""
        self.codec = GONE

    def on_lost(self) -> None:
        """Let go of whatever was kept for this connection; for the subclass."""

    def abort(self) -> None:
        """Close at once with RST."""
        transport = self.transport
        if transport is None:
            return
        self._closing = CLOSE_ABORT
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            # Closed already, by the kernel or by uvloop (a negative descriptor): abort() is all there is to do.
            with contextlib.suppress(OSError, ValueError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()

    def _write_all(self, transport: Any, out: list[bytes], now: float) -> None:
        ends = not out[-1]
        if ends:
            out.pop()
        if len(out) == 1:
            self.written_bytes += len(out[0])
            transport.write(out[0])
        elif out:
            size = sum(map(len, out))
            self.written_bytes += size
            if size <= JOIN_BYTES:
                transport.write(b"".join(out))
            else:
                transport.writelines(out)
        if ends and not self._is_tls:
            transport.write_eof()
        elif ends and not self.codec.close:
            # RFC 6455 §7.1.1: the client waits for the server to end the connection, and half of it cannot be.
            self.codec.receive_eof(now)

    def _end_tls(self, keep: bool) -> None:
        """Follow the peer's close_notify: nothing can be written any more."""
        self._closing = max(self._closing, CLOSE_FLUSH)
        self._has_rest = keep and self._delivers_rest
        if keep and not self._has_rest:
            try:
                self.codec.receive_lost(self._clock.now)
            except Exception:
                self._crash()
            self._outbox.flush()

    def _deliver_rest(self, now: float) -> None:
        """Go on with what the codec held when the transport ended."""
        codec = self.codec
        try:
            codec.take_output(now)
            if codec.has_held_input:
                codec.receive(b"", now)
        except Exception:
            self._crash()

    def _queued_bytes(self, what: int) -> int:
        """Ask the kernel how much is queued in one direction; 0 of a socket that is closed already."""
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(sock.fileno(), what, b"\0\0\0\0"), sys.byteorder)
        except (OSError, ValueError):
            return 0

    def _end(self, transport: Any, how: int) -> None:
        self._closing = how
        if self._is_tls and how != CLOSE_ABORT:
            # For lingering, too: the transport reads and drops until the peer ends.
            self._look_s = self._clock.now + CLOSE_NOTIFY_S if how == CLOSE_FLUSH else 0.0
            transport.close()
            self.watch()
        elif how == CLOSE_FLUSH:
            transport.close()
        elif how == CLOSE_ABORT:
            self.abort()

    def _crash(self) -> None:
        self.reactor.counters.internal_errors += 1
        _log.exception("connection dropped by a bug in its codec or exchange")
        self.abort()
