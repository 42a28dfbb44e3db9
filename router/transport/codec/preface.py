"""Which version a client speaks on a port for both: the first bytes decide (RFC 9113 §3.3, prior knowledge).

Stands in for the codec until then. `Upgrade: h2c` is not taken up: RFC 9113 §3.1 deprecates it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.deadlines import NEVER
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, Codec
from router.transport.codec.ending import Ending
from router.transport.codec.h2.frames import PREFACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.errors import ProxyError
    from router.stream import Shell
    from router.transport.codec.h1.limits import ServerLimits


class Preface(Codec):
    """Waits for enough bytes; then `choose(is_http2)` returns the codec that goes on with them."""

    __slots__ = ("_choose", "_ending", "_keep_alive_s", "_limits", "_shell", "_since_s", "_stash")

    def __init__(self, choose: Callable[[bool], Codec], limits: ServerLimits, shell: Shell, now: float) -> None:
        super().__init__()
        self._choose = choose
        self._limits = limits
        self._keep_alive_s = limits.keep_alive_s
        self._shell = shell
        self._since_s = now
        self._stash = b""
        self._ending: Ending | None = None

    def receive(self, data: bytes, now: float) -> None:
        """Decide as soon as one of the two is ruled out."""
        if not data:
            return
        if not self._stash:
            self._since_s = now
        else:
            data = self._stash + data
        if data.startswith(PREFACE):
            self._choose(True).receive(data, now)
        elif PREFACE.startswith(data):
            self._stash = data
            self._shell.watch()  # a head has less time than an idle connection
        else:
            self._choose(False).receive(data, now)

    def receive_eof(self, now: float) -> bool:
        """There is nobody to answer."""
        self.close = CLOSE_FLUSH
        return False

    def receive_lost(self, now: float) -> None:
        """Nothing to tell anybody."""

    def take_output(self, now: float) -> list[bytes]:
        """Nothing is said before the client has spoken; the end begins here."""
        if self.close and self._ending is None:
            self._ending = Ending(now, self._limits.linger_s)
            self._shell.watch()
        return []

    def transport_full(self, full: bool, now: float) -> None:
        """Cannot be: nothing was written."""

    def next_deadline(self) -> float | None:
        """When a beginning is too slow, or the connection idle for too long."""
        if self.close:
            return self._ending.until_s if self._ending is not None else NEVER
        return self._since_s + (self._limits.head_s if self._stash else self._keep_alive_s)

    def handle_deadline(self, now: float) -> None:
        """Close an idle connection; what was begun is an HTTP/1.1 head that did not come in time."""
        if self.close:
            limits, ending = self._limits, self._ending
            unsent = self._shell.unsent_bytes()
            if ending is None or not ending.goes_on(unsent, now, limits.linger_s, limits.stall_s):
                self._end(CLOSE_ABORT)
            return
        if not self._stash:
            self._end(CLOSE_FLUSH)
            return
        codec = self._choose(False)
        codec.receive(self._stash, self._since_s)
        codec.handle_deadline(now)

    def drain(self) -> None:
        """Close: no request has begun."""
        self._end(CLOSE_FLUSH)

    def retire(self, now: float) -> None:
        """Wait a little for the request that may be on its way; `choose` then makes a codec that retires."""
        if not self._stash:
            self._since_s = now
        self._keep_alive_s = min(self._keep_alive_s, self._limits.retire_s)
        self._shell.watch()

    def cut(self, error: ProxyError) -> None:
        """Close."""
        self._end(CLOSE_FLUSH)

    def _end(self, close: int) -> None:
        self.close = max(self.close, close)
        self._shell.watch()
        self._shell.touch()
