"""What `router robot` does once it is connected: measure, drive, and show it. Seconds, shown as milliseconds."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from router.client import GAP_BOUNDS_S, RobotError
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.client import Link, RobotSession
    from router.client.words import Lane

LAST_S: Final = 1.0
"""For answers to the last PING, and replies to the last observation."""
SHOW_S: Final = 0.25
TELEMETRY_BYTES: Final = 100
_BAR: Final = 30


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds else "-"


class PingRun:
    """Waits until so many PINGs were answered or lost. `say` prints a line for each, None prints none."""

    def __init__(self, count: int, interval_s: float, say: Callable[[str], None] | None) -> None:
        self._count = count
        self._interval_s = interval_s
        self._say = say
        self._times: list[float] = []
        self._said = 0  # of them
        self._link: Link | None = None

    def take(self, round_trip_s: float) -> None:
        """Keep one answer. `work` says it: where nobody reads any more is no fault of the connection's."""
        if len(self._times) < self._count:
            self._times.append(round_trip_s)

    async def work(self, session: RobotSession) -> None:
        """Wait; the session pings by itself."""
        if self._say is not None:
            link = session.link
            self._say(f"connected over {link.transport}, replica {link.replica or 'not named'}")
        ends_s = monotonic() + self._count * self._interval_s + max(LAST_S, 5 * self._interval_s)
        try:
            while len(self._times) + session.link.pings_lost < self._count and monotonic() < ends_s:
                await asyncio.sleep(min(self._interval_s, 0.1))
                self._say_new()
            self._say_new()
        finally:
            self._link = session.link

    def _say_new(self) -> None:
        if self._say is not None:
            for number in range(self._said, len(self._times)):
                self._said = number + 1
                self._say(f"{number + 1:>5}  {_ms(self._times[number])}")

    def summary(self) -> dict[str, Any]:
        """Return the figures; seconds."""
        times, link = self._times, self._link
        lost = link.pings_lost if link is not None else 0
        return {
            "transport": link.transport if link is not None else "",
            "direct": link is not None and link.is_direct,
            "replica": link.replica if link is not None else "",
            "answered": len(times),
            "lost": lost,
            "loss": lost / max(1, lost + len(times)),  # of all that was asked; the link's is of the last hundred
            "rtt_min_s": min(times, default=0.0),
            "rtt_avg_s": sum(times) / len(times) if times else 0.0,
            "rtt_p50_s": _percentile(times, 0.5),
            "rtt_p99_s": _percentile(times, 0.99),
            "rtt_max_s": max(times, default=0.0),
            "jitter_s": link.jitter_s if link is not None else 0.0,
        }


def show_ping(summary: dict[str, Any]) -> None:
    """Print the figures."""
    Console(highlight=False).print(
        f"{summary['answered']} answered, {summary['lost']} lost ({summary['loss']:.1%}), over "
        f"{summary['transport'] or 'nothing'}{' without the router' if summary['direct'] else ''}\n"
        f"round trip min {_ms(summary['rtt_min_s'])}, avg {_ms(summary['rtt_avg_s'])}, "
        f"p99 {_ms(summary['rtt_p99_s'])}, max {_ms(summary['rtt_max_s'])}; jitter {_ms(summary['jitter_s'])}"
    )


class DriveRun:
    """Sends at a steady rate, whatever comes back; counts what does."""

    def __init__(
        self,
        hz: float,
        size_bytes: int,
        seconds_s: float,
        deadline_s: float | None,
        lane: str,
        telemetry_hz: float = 0.0,
        *,
        is_live: bool,
    ) -> None:
        self._interval_s = 1.0 / hz
        self._telemetry_hz = telemetry_hz
        self._telemetry_sent = 0
        self._noise = os.urandom(size_bytes)  # nothing on the way can compress it
        self._seconds_s = seconds_s
        self._deadline_s = deadline_s
        self._lane: Lane = "command" if lane == "command" else "state"
        self._is_live = is_live
        self._waiting: deque[float] = deque()  # when observations were sent that no reply has followed
        self._took: list[float] = []  # from an observation to the first reply behind it
        self._gaps: list[float] = []
        self._sent = 0
        self._dropped = 0
        self._missed = 0
        self._replies = 0
        self._last_s = 0.0
        self._greeted = 0  # the last epoch that began with a message of the server's own; 0: it says nothing first
        self._began_s = 0.0
        self._elapsed_s = 0.0
        self._link: Link | None = None
        self.failure = ""

    async def work(self, session: RobotSession) -> None:
        """Send and receive until it is time, and a little longer for the last replies."""
        first = await session.recv(LAST_S)  # what a policy server says of itself, if it does
        if first is not None and first.is_text:
            self.failure = _told(first.data)
            return
        if first is not None:
            self._greeted = first.epoch
        self._began_s = monotonic()
        others = [spawn(self._receive(session), "drive receives")]
        if self._telemetry_hz:
            others.append(spawn(self._tell(session), "drive tells"))
        if self._is_live:
            others.append(spawn(self._show(session), "drive shows"))
        try:
            await self._send(session)
            ends_s = monotonic() + max(LAST_S, 2 * (self._deadline_s or 0.0))
            while self._waiting and monotonic() < ends_s and not self.failure:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        except RobotError as failure:
            self.failure = str(failure)
        finally:
            self._note_missed(monotonic() if not self._waiting else float("inf"))
            self._elapsed_s = monotonic() - self._began_s
            self._link = session.link
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _send(self, session: RobotSession) -> None:
        # Counted, and each time from the first: a sum of intervals drifts, by how long the host has been up.
        for number in range(1, max(1, round(self._seconds_s / self._interval_s)) + 1):
            if self.failure:
                return
            payload = msgspec.msgpack.encode({"sequence": self._sent, "image": self._noise})
            now = monotonic()
            self._note_missed(now)
            self._sent += 1
            if session.send(payload, self._lane, self._deadline_s):
                self._waiting.append(now)
            else:
                self._dropped += 1
            await asyncio.sleep(max(0.0, self._began_s + number * self._interval_s - monotonic()))

    async def _tell(self, session: RobotSession) -> None:
        """Send telemetry: all that is due, each time the loop comes by."""
        interval_s = 1.0 / self._telemetry_hz
        while (now := monotonic()) < self._began_s + self._seconds_s:
            while self._began_s + self._telemetry_sent * interval_s <= now:
                self._telemetry_sent += 1
                try:
                    session.send(self._noise[:TELEMETRY_BYTES], "telemetry")
                except RobotError as failure:
                    self.failure = str(failure)
                    return
            await asyncio.sleep(interval_s)

    async def _receive(self, session: RobotSession) -> None:
        while True:
            try:
                message = await session.recv()
            except RobotError as failure:
                self.failure = str(failure)
                return
            if message is None:
                continue
            if message.is_text:
                self.failure = _told(message.data)
                return
            now = monotonic()
            if 0 < self._greeted < message.epoch:  # another replica says what it is: no reply
                self._greeted = message.epoch
                if self._lane == "command":  # else the replies of those behind would be taken for theirs
                    self._missed += len(self._waiting) if self._deadline_s is not None else 0
                    self._waiting.clear()
                continue
            self._replies += 1
            if self._last_s:
                self._gaps.append(now - self._last_s)
            self._last_s = now
            self._note_missed(now)
            if self._lane == "command" and self._waiting:
                self._took.append(now - self._waiting.popleft())
            elif self._waiting:
                self._took.append(now - self._waiting[0])
                self._waiting.clear()

    def _note_missed(self, now: float) -> None:
        """Count observations that had no reply in time."""
        while self._deadline_s is not None and self._waiting and now - self._waiting[0] > self._deadline_s:
            self._waiting.popleft()
            self._missed += 1

    async def _show(self, session: RobotSession) -> None:
        with Live(console=Console(), refresh_per_second=4, transient=True) as live:
            while True:
                self._elapsed_s = monotonic() - self._began_s
                self._link = session.link
                live.update(_table(self.summary()))
                await asyncio.sleep(SHOW_S)

    def summary(self) -> dict[str, Any]:
        """Return the figures; seconds."""
        link, took, gaps = self._link, self._took, self._gaps
        found: dict[str, Any] = {
            "seconds": self._elapsed_s,
            "sent": self._sent,
            "dropped": self._dropped,
            "replies": self._replies,
            "missed": self._missed,
            "reply_p50_s": _percentile(took, 0.5),
            "reply_p99_s": _percentile(took, 0.99),
            "reply_max_s": max(took, default=0.0),
            "gap_p50_s": _percentile(gaps, 0.5),
            "gap_p99_s": _percentile(gaps, 0.99),
            "gap_max_s": max(gaps, default=0.0),
        }
        if self._telemetry_sent:
            found["telemetry_sent"] = self._telemetry_sent
            found["telemetry_dropped"] = 0 if link is None else link.telemetry_dropped
        if link is not None:
            found |= {
                "transport": link.transport,
                "direct": link.is_direct,
                "replica": link.replica,
                "epoch": link.epoch,
                "connections": link.connections,
                "rtt_s": link.rtt_s,
                "rtt_min_s": link.rtt_min_s,
                "jitter_s": link.jitter_s,
                "loss": link.loss,
                "late": link.late,
                "stale": link.stale,
                "gaps": {f"{bound:g}": n for bound, n in zip(GAP_BOUNDS_S, link.gaps, strict=False) if n},
            }
        return found


def _told(data: bytes) -> str:
    """Return what a policy server says by text: the end of a traceback."""
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return f"the policy says: {lines[-1][:200] if lines else 'nothing'}"


def _three(summary: dict[str, Any], *names: str) -> str:
    return " / ".join(_ms(summary[name]) for name in names)


def _table(summary: dict[str, Any]) -> Table:
    way = " without the router" if summary.get("direct") else ""
    table = Table(title=f"{summary.get('transport') or 'not connected'}{way}, {summary['seconds']:.1f} s",
                  title_justify="left", show_header=False)  # fmt: skip
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("observations sent / dropped", f"{summary['sent']} / {summary['dropped']}"),
        ("replies", str(summary["replies"])),
        ("reply after p50 / p99 / max", _three(summary, "reply_p50_s", "reply_p99_s", "reply_max_s")),
        ("gap between replies p50 / p99 / max", _three(summary, "gap_p50_s", "gap_p99_s", "gap_max_s")),
        ("missed deadlines", str(summary["missed"])),
    ]
    if "telemetry_sent" in summary:
        rows.append(("telemetry sent / dropped", f"{summary['telemetry_sent']} / {summary['telemetry_dropped']}"))
    if "rtt_s" in summary:
        rows += [
            ("round trip / least / jitter", _three(summary, "rtt_s", "rtt_min_s", "jitter_s")),
            ("loss", f"{summary['loss']:.1%}"),
            ("late / overtaken", f"{summary['late']} / {summary['stale']}"),
            ("replica", summary["replica"] or "-"),
            ("epoch / connections", f"{summary['epoch']} / {summary['connections']}"),
        ]
        most = max(summary["gaps"].values(), default=1)
        rows += [
            (f"gaps up to {_ms(float(bound))}", f"{'█' * max(1, count * _BAR // most)} {count}")
            for bound, count in summary["gaps"].items()
        ]
    for row in rows:
        table.add_row(*row)
    return table


def show_drive(summary: dict[str, Any]) -> None:
    """Print the last figures."""
    Console().print(_table(summary))
