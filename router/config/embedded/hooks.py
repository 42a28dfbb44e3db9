"""Faults on demand, for tests: none of this happens unless a test asks.

In process, a test holds the `TestHooks` it gave to the server. Over the wire (`router store --test-hooks`) the same
is reached as method /router.store.TestHooks/Call with a JSON object: {"call": "split", "database": …, "stream": …}.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Cut:
    """Fail calls of a method with UNAVAILABLE: `count` of them after `skip`, each after `messages` messages.

    `method` is the RPC's short name, "*" for any; `change_stream` picks change stream queries alone.
    """

    method: str = "*"
    skip: int = 0
    count: int = 1
    messages: int = 0
    change_stream: bool | None = None
    code: str = "UNAVAILABLE"


@dataclass(slots=True)
class TestHooks:
    """What a test may switch. All fields may be set while the server runs.

    `hang`: streams stop sending, and calls do not answer, until it is cleared; connections stay.
    `silent_streams`: change stream queries send neither records nor heartbeats.
    `end_streams`: change stream queries end with OK, without child records, at the next record or heartbeat.
    `max_readers`: concurrent readers of a partition; overrides the setting.
    `chunk_bytes`: size of streamed messages; values are split by `chunked_value` to keep it.
    `calls`: how often each method was called.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    cuts: list[Cut] = field(default_factory=list)
    silent_streams: bool = False
    end_streams: bool = False
    max_readers: int | None = None
    chunk_bytes: int | None = None
    calls: dict[str, int] = field(default_factory=dict)
    _gate: asyncio.Event | None = None

    def hang(self) -> None:
        """Stop sending."""
        self._gate = asyncio.Event()

    def resume(self) -> None:
        """Send again what was held back."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    async def pass_gate(self) -> None:
        """Wait while the server hangs."""
        while self._gate is not None:
            await self._gate.wait()

    def called(self, method: str, *, change_stream: bool) -> Cut | None:
        """Count a call, and return the cut that it shall suffer."""
        self.calls[method] = self.calls.get(method, 0) + 1
        for cut in self.cuts:
            if cut.method not in {"*", method} or cut.change_stream not in {None, change_stream}:
                continue
            if cut.skip > 0:
                cut.skip -= 1
                continue
            cut.count -= 1
            if cut.count <= 0:
                self.cuts.remove(cut)
            return cut
        return None
