"""Follows every partition of the change stream, and starts each one again where it broke.

One task per partition. A break is restarted from the partition's position, inclusively: what comes twice is
recognised. A stream that says nothing for three heartbeats is broken too, and so is one that ends without
naming who takes over. What cannot be resumed, since the position or the stream is no longer there, ends the
tail: the caller reads everything anew.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

from router.config.client import RpcError, Status
from router.config.wire import Child, DataRecord, Heartbeat, WireError
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.client import StoreClient
    from router.config.pace import Pace
    from router.config.reduce import Transactions, Watermark
    from router.config.wire import Record

HEARTBEAT_MS = 1_000
SILENCE_S = 3 * HEARTBEAT_MS / 1e3
HELD_S = 1.0
"""A stream that lived so long is one that works: one that is cut after each message is not."""

TRANSACTION_S = 0.25
"""How long a transaction of several records may wait for the rest of them."""

PASSING = frozenset((
    Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.INTERNAL, Status.ABORTED,
    Status.RESOURCE_EXHAUSTED, Status.CANCELLED, Status.UNKNOWN,
))  # fmt: skip
"""What passes by itself."""


class LostPlaceError(Exception):
    """The stream cannot be read on from where it was."""


class Tail:
    """Runs until its place is lost.

    `take` gets each transaction, whole, in no order between partitions; `on_progress` is called after each message.
    """

    def __init__(
        self,
        client: StoreClient,
        pace: Pace,
        watermark: Watermark,
        transactions: Transactions,
        take: Callable[[list[DataRecord]], None],
        on_trouble: Callable[[str], None],
        *,
        heartbeat_ms: int = HEARTBEAT_MS,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._pace = pace
        self._watermark = watermark
        self._transactions = transactions
        self._take = take
        self._on_trouble = on_trouble
        self._heartbeat_ms = heartbeat_ms
        self._on_progress = on_progress
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.restarts = 0

    async def run(self) -> None:
        """Follow the partitions that the watermark names, and their children. LostPlaceError says why it ended."""
        try:
            for token in list(self._watermark.positions):
                self._follow(token)
            await self._ended
        finally:
            for follower in self._followers.values():
                follower.cancel()
            if self._followers:
                await asyncio.wait(self._followers.values())
            if self._flush is not None:
                self._flush.cancel()

    def _follow(self, token: str) -> None:
        self._followers[token] = task = spawn(self._read(token), f"partition {token[:12]}")
        task.add_done_callback(lambda done: self._done(token, done))

    def _done(self, token: str, task: asyncio.Task[None]) -> None:
        self._followers.pop(token, None)
        if task.cancelled() or self._ended.done():
            return
        failure = task.exception()
        if failure is not None:
            self._ended.set_exception(failure)
        elif not self._followers:
            self._ended.set_exception(LostPlaceError("no partition is left"))

    async def _read(self, token: str) -> None:
        """Read one partition until its children take over."""
        while True:
            try:
                children = await self._read_once(token)
            except RpcError as failure:
                if failure.code() not in PASSING:
                    raise LostPlaceError(f"{failure.code().name}: {failure.details()}") from None
                trouble = f"{failure.code().name}: {failure.details()}"
            except TimeoutError:
                trouble = f"the store said nothing for {SILENCE_S:g} s"
            except WireError as failure:
                trouble = str(failure)
            else:
                if children:
                    for child in children:
                        if self._watermark.open(child.token, child.start_us):
                            self._follow(child.token)
                    self._watermark.end(token)
                    return
                trouble = "a partition ended without naming who takes over"
            self.restarts += 1
            self._on_trouble(trouble)
            await self._pace.wait()

    async def _read_once(self, token: str) -> list[Child]:
        children: list[Child] = []
        position = self._watermark.positions[token]
        holds_s = monotonic() + HELD_S
        async with aclosing(self._client.changes(position, token, self._heartbeat_ms)) as stream:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    records = await anext(stream, None)
                if records is None:
                    return children
                self._on_trouble("")
                if monotonic() >= holds_s:
                    self._pace.succeeded()
                for record in records:
                    self._take_record(token, record, children)
                self._on_progress()

    def _take_record(self, token: str, record: Record, children: list[Child]) -> None:
        if isinstance(record, Heartbeat):
            self._watermark.move(token, record.at_us)
        elif isinstance(record, Child):
            children.append(record)
        else:
            whole = self._transactions.add(record, monotonic())
            if whole:
                self._take(whole)
            elif self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(TRANSACTION_S, self._let_go)
            self._watermark.move(token, record.commit_us, is_record=True)

    def _let_go(self) -> None:
        self._flush = None
        for part in list(self._transactions.overdue(monotonic() - TRANSACTION_S + 0.001)):
            try:
                self._take(part)
            except Exception as failure:  # ends the tail as it would from a stream
                if not self._ended.done():
                    self._ended.set_exception(failure)
        first_s = self._transactions.first_s()
        if first_s is not None:
            delay_s = max(0.0, first_s + TRANSACTION_S - monotonic())
            self._flush = asyncio.get_running_loop().call_later(delay_s, self._let_go)
