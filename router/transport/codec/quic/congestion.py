"""How much may be on its way: CUBIC (RFC 9438) with pacing (RFC 9002 §7.7). Times in seconds, sizes in bytes.

The window grows only while it is what held the sender back. Imports nothing but limits.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.limits import MIN_PACKETS

_C: Final = 0.4
_BETA: Final = 0.7
_BURST_S: Final = 0.002  # of the pace that may leave at once: timers are not finer
_BURST_PACKETS: Final = 16
_WAIT_S: Final = 0.001


class Congestion:
    """One path's window. `is_held_back`: the writer had more to send than the window let out."""

    __slots__ = (
        "_k_s",
        "_lost",
        "_mtu",
        "_origin",
        "_reno",
        "_since_s",
        "_tokens",
        "_tokens_s",
        "_undo",
        "_window_max",
        "in_flight",
        "initial",
        "is_held_back",
        "recovery_s",
        "threshold",
        "window",
    )

    def __init__(self, initial: int, mtu: int) -> None:
        self.initial = initial
        self.window = initial
        self.in_flight = 0
        self.threshold = 1 << 62
        self.is_held_back = False
        self.recovery_s = -1.0  # when the last loss was answered: what was sent before says nothing new
        self._mtu = mtu
        self._window_max = 0.0
        self._origin = 0.0
        self._reno = 0.0
        self._k_s = 0.0
        self._since_s = 0.0
        self._lost = 0  # since the window shrank last, and not found to have arrived
        self._undo: tuple[int, int, float, float, float, float, float] | None = None
        self._tokens = float(initial)
        self._tokens_s = 0.0

    def set_mtu(self, mtu: int) -> None:
        """Count in packets of another size."""
        self._mtu = mtu

    def room(self) -> int:
        """Return how many bytes more may be in flight."""
        return self.window - self.in_flight

    def on_acked(self, size: int, sent_s: float, now: float, rtt_s: float) -> None:
        """Count an acknowledged packet."""
        self.in_flight -= size
        if sent_s <= self.recovery_s or not self.is_held_back:
            return
        if self.window < self.threshold:
            self.window += size
            return
        mtu = self._mtu
        if not self._since_s:
            self._begin(now)
        t_s = now - self._since_s + rtt_s
        cubic = self._origin + _C * (t_s - self._k_s) ** 3 * mtu
        self._reno += mtu * size / self.window * (3.0 * (1.0 - _BETA) / (1.0 + _BETA))
        target = min(max(cubic, self._reno), 1.5 * self.window)
        if target > self.window:
            self.window += max(1, int((target - self.window) * size / self.window))

    def _begin(self, now: float) -> None:
        self._since_s = now
        self._reno = float(self.window)
        if self._window_max > self.window:
            self._k_s = ((self._window_max - self.window) / (_C * self._mtu)) ** (1.0 / 3.0)
            self._origin = self._window_max
        else:
            self._k_s = 0.0
            self._origin = float(self.window)

    def on_lost(self, size: int, sent_s: float, now: float) -> None:
        """Count a lost packet; the window shrinks once for all that were under way."""
        self.in_flight -= size
        if sent_s <= self.recovery_s:
            self._lost += 1
            return
        self._lost = 1
        self._undo = (
            self.window, self.threshold, self._window_max, self._origin, self._reno, self._k_s, self._since_s,
        )  # fmt: skip
        self.recovery_s = now
        window = float(self.window)
        # Fast convergence: who lost before it came as far as last time leaves room for others.
        self._window_max = window * (1.0 + _BETA) / 2.0 if window < self._window_max else window
        self.window = self.threshold = max(int(window * _BETA), MIN_PACKETS * self._mtu)
        self._since_s = 0.0

    def on_spurious(self, sent_s: float) -> None:
        """Take a loss back; if all of them were none, the window is as it was before (as Eifel does, RFC 4015)."""
        if sent_s > self.recovery_s or self._undo is None:
            return
        self._lost -= 1
        if self._lost > 0:
            return
        window, self.threshold, self._window_max, self._origin, self._reno, self._k_s, self._since_s = self._undo
        self.window = max(self.window, window)
        self._undo = None

    def on_persistent(self) -> None:
        """Begin anew: everything was lost for longer than a few probe timeouts (RFC 9002 §7.6)."""
        self.window = MIN_PACKETS * self._mtu
        self.recovery_s = -1.0
        self._undo = None
        self._since_s = 0.0

    def forget(self, size: int) -> None:
        """Take a packet out of the count of which nothing will be heard."""
        self.in_flight -= size

    # -- pacing ---------------------------------------------------------------------------------------

    def take_tokens(self, size: int, now: float, rtt_s: float) -> float:
        """Spend the pace's share of a packet: 0 if it may leave now, else when (monotonic seconds)."""
        pace = self._pace(rtt_s)
        if now > self._tokens_s:
            burst = max(pace * _BURST_S, float(_BURST_PACKETS * self._mtu))
            self._tokens = min(self._tokens + (now - self._tokens_s) * pace, burst)
            self._tokens_s = now
        if self._tokens < size:
            # Not for one packet: what a millisecond lets out leaves together.
            return now + max(size - self._tokens, pace * _WAIT_S) / pace + 1e-6
        self._tokens -= size
        return 0.0

    def _pace(self, rtt_s: float) -> float:
        """Return bytes a second: the window in somewhat less than a round trip, in half of it while it doubles."""
        return (2.0 if self.window < self.threshold else 1.25) * self.window / max(rtt_s, 1e-5)
