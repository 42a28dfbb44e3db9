"""Keeps the routing table current from the store, and outlives the store.

    checkpoint -> serve at once -> connect -> resume each partition, or read everything -> follow
         ^ every 30 s and at exit                   ^ when a place in the stream is lost    |
         +------------------------------------------+-------------------------------------+

Reading everything never clears the table: the difference is worked out and applied. No clock of this host
decides anything: the store's timestamps order writes, and staleness is measured in monotonic time since the
store last told its own. A store that is down, wrong or too new leaves the last good table in force, and is
named in `status`.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import secrets
import socket
from collections import deque
from contextlib import aclosing, suppress
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any

import msgspec

from router.config import checkpoint
from router.config.pace import Pace
from router.config.projection import Projection
from router.config.reduce import RowBook, Transactions, Watermark
from router.config.schema import CLIENT_VERSION, SCHEMA_KEY, STREAMED, STREAMED_VERSION, streamed
from router.config.target import parse_target, state_dir
from router.config.timestamps import format_timestamp, to_micros
from router.routing.image import TableImage
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.client import StoreClient
    from router.config.reaper import Reaper
    from router.config.reduce import Change
    from router.config.settings import Settings
    from router.config.tail import Tail
    from router.config.wire import DataRecord, Key, Row
    from router.routing.spec import TablePatch, TableSpec

_log = logging.getLogger("router.config")

EXIT_NO_STORE = 5
CHECKPOINT_S = 30.0
SLICE = 1_000  # rows that are turned into a patch at a time, so that the supervisor's loop goes round
REFUSED_RETRY_S = 10.0  # what is wrong with a database or its schema takes a person to mend


class SchemaError(Exception):
    """A database that this router cannot read; the text says what to do."""


class SchemaEntry(msgspec.Struct):
    """Row `schema` of Meta."""

    version: int = 0
    oldest_client: int = 0
    identity: str = ""


class ConfigAgent:
    """One per host, in the supervisor.

    `publish` gets each patch, `replace` a whole table after a fault, `end` the exit code when there is no way on.
    """

    def __init__(
        self,
        settings: Settings,
        publish: Callable[[TablePatch], None],
        end: Callable[[int], None],
        replace: Callable[[TableSpec], None] = lambda _: None,
    ) -> None:
        self._target = parse_target(settings.store, settings.state_dir)
        self._path = state_dir(settings.state_dir) / f"{self._target.key}.checkpoint"
        self._start_limit_s = settings.store_start_timeout_s
        self._has_reaper = settings.reaper
        self._publish = publish
        self._end = end
        self._book = RowBook()
        self._shrink_guard = settings.shrink_guard
        self._projection = Projection(self._book, settings.shrink_guard)
        self._replace = replace
        self._watermark = Watermark()
        self._transactions = Transactions()
        self._pace = Pace()
        self._identity = ""
        self._schema = 0
        self._client: StoreClient | None = None
        self._tail: Tail | None = None
        self._reaper: Reaper | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._backlog: deque[Change] = deque()
        self._has_table = False
        self._is_connected = False
        self._is_changed = False  # since the last checkpoint
        self.keeps_checkpoint = True  # only one process may; a successor begins when its predecessor has stopped
        self._saving = asyncio.Lock()
        self._source = "nothing"
        self._error = ""
        self._bootstraps = 0
        self._restarts = 0
        self._saved_s: float | None = None
        self._told_us = 0  # the store's time, as it last told it …
        self._told_s = 0.0  # … and when, on the monotonic clock

    # -- what the supervisor calls ----------------------------------------------------------------------

    def start(self) -> None:
        """Serve from the checkpoint, if there is one, and go on in the background."""
        gc.disable()  # all that is made now is here to stay
        try:
            self._load()
        finally:
            gc.freeze()
            gc.enable()
        self._tasks = [spawn(self._run(), "config agent"), spawn(self._save_often(), "checkpoints")]

    async def close(self) -> None:
        """Stop, and write the last checkpoint."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._client is not None:
            with suppress(Exception):
                await self._client.close()
        if self._is_changed and self.keeps_checkpoint:
            await self._save()

    async def save_now(self) -> None:
        """Write a checkpoint of what is in force, for a successor that is about to start."""
        if self._has_table and self.keeps_checkpoint:
            await self._save()

    async def retire(self) -> None:
        """Leave checkpoints and reaping to a successor; the table stays current until `close`."""
        self.keeps_checkpoint = False
        for task in self._tasks:
            if task.get_name() == "reaper":
                task.cancel()
        async with self._saving:  # one that is being written is the last
            pass

    @property
    def has_table(self) -> bool:
        """Whether there is a table to serve from, of the store or of a checkpoint."""
        return self._has_table

    def known_to_s(self) -> float:
        """Return up to when everything is known that the store committed, in Unix seconds of its clock."""
        return self._watermark.read(self._transactions.oldest_us()) / 1e6

    def accept_held(self) -> int:
        """Let through what the shrink guard holds; return how many ready replicas that takes out."""
        count, patch = self._projection.accept()
        self._is_changed = True
        if patch is not None:
            self._publish(patch)
        return count

    def status(self) -> dict[str, Any]:
        """Return what is known of the store and of the table's age."""
        watermark_us = self._watermark.read(self._transactions.oldest_us())
        return {
            "store": str(self._target),
            "has_table": self._has_table,
            "source": self._source,
            "connected": self._is_connected,
            "error": self._error,
            "watermark": format_timestamp(watermark_us) if watermark_us else None,
            "staleness_s": self._staleness_s(watermark_us),
            "partitions": len(self._watermark.positions),
            "rows": {name: len(rows) for name, rows in self._book.tables.items()},
            "quarantined": len(self._projection.quarantine),
            "held": self._projection.held,
            "attempts": self._pace.attempts,
            "restarts": self._restarts + (0 if self._tail is None else self._tail.restarts),
            "bootstraps": self._bootstraps,
            "reaping": self._reaper is not None and self._reaper.is_on_duty,
            "reaped": 0 if self._reaper is None else self._reaper.reaped,
            "spared": 0 if self._reaper is None else sum(self._reaper.refused.values()),
            "checkpoint_age_s": None if self._saved_s is None else round(monotonic() - self._saved_s, 3),
        }

    def quarantine(self) -> list[dict[str, str]]:
        """Return the rows that cannot be used, with reasons."""
        return self._projection.reasons()

    def _staleness_s(self, watermark_us: int) -> float | None:
        """Seconds by which the table is behind the store; None if there is no table."""
        if not watermark_us:
            return None
        # Before the store has told its time there is only this host's to go by.
        now_us = self._told_us + (monotonic() - self._told_s) * 1e6 if self._told_us else time() * 1e6
        return round(max(0.0, (now_us - watermark_us) / 1e6), 3)

    # -- life -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        if not self._has_table and self._start_limit_s:
            asyncio.get_running_loop().call_later(self._start_limit_s, self._give_up)
        # Half a second of imports, beside the loop: the checkpoint is served meanwhile.
        await asyncio.to_thread(_import_client)
        from router.config.client import RpcError  # noqa: PLC0415
        from router.config.tail import PASSING, LostPlaceError  # noqa: PLC0415

        if self._has_reaper and self._target.kind != "relay":  # a relay takes no writes
            from router.config.reaper import Reaper  # noqa: PLC0415

            self._reaper = Reaper(self._target, own_name())
            self._tasks.append(spawn(self._reaper.run(), "reaper"))
        while True:
            try:
                await self._follow()
            except LostPlaceError as reason:
                _log.warning("reading the store anew: %s", reason)
                self._watermark = Watermark(self._watermark.read())
                await self._pace.wait()  # a stream that is lost again and again must not be read in a loop
            except SchemaError as refusal:
                # What was refused must not be met again once it is mended: everything is read anew then.
                self._watermark = Watermark(self._watermark.read())
                self._trouble(str(refusal))
                await self._pause()
            except RpcError as failure:
                self._trouble(_in_words(failure.code().name, failure.details() or ""))
                # A relay that has not caught up yet has no time at which it can be read.
                if failure.code() in PASSING or failure.code().name == "OUT_OF_RANGE":
                    await self._pace.wait()
                else:
                    await self._pause()
            except Exception as failure:  # a bug, or a message nobody foresaw: the table stays
                _log.exception("the config agent failed and starts again")
                self._trouble(f"{type(failure).__name__}: {failure}")
                self._rebuild()
                await self._pause()

    def _rebuild(self) -> None:
        """Work the table out anew from all rows: a step that failed left the table without what was taken over.

        What is in force although the rows say otherwise stays in force.
        """
        try:
            kept = self._projection.kept()
            self._watermark = Watermark(self._watermark.read())
            self._backlog.clear()
            self._projection = Projection(self._book, self._shrink_guard)
            image = TableImage()
            for patch in (self._projection.restore(kept), self._projection.step(self._book.rows())):
                if patch is not None:
                    image.apply(patch)
            self._replace(image.spec())
        except Exception:
            _log.exception("the table could not be worked out anew; the last one stays")

    async def _pause(self) -> None:
        """Wait: a person has to mend something."""
        self._pace.attempts += 1
        await asyncio.sleep(REFUSED_RETRY_S)

    async def _follow(self) -> None:
        """Connect, catch up and follow, until something ends it."""
        from router.config.client import StoreClient  # noqa: PLC0415
        from router.config.tail import Tail  # noqa: PLC0415

        if self._client is not None:
            await self._client.close()
        self._is_connected = False
        self._client = client = StoreClient(self._target)
        await client.open_session()
        await self._check_database(client)
        if not self._watermark.positions:
            await self._bootstrap(client)
        self._has_table = True
        self._source = "store"
        self._is_connected = True
        self._trouble("")
        self._tail = tail = Tail(
            client, self._pace, self._watermark, self._transactions, self._take, self._trouble
        )
        try:
            await tail.run()
        finally:
            self._tail = None
            self._restarts += tail.restarts
            self._is_connected = False

    def _give_up(self) -> None:
        if not self._has_table:
            _log.error(
                "no table: %s was not usable within %g s and there is no checkpoint: %s",
                self._target, self._start_limit_s, self._error or "no answer",
            )  # fmt: skip
            self._end(EXIT_NO_STORE)

    def _trouble(self, text: str) -> None:
        if text == self._error:
            return
        if text:
            _log.warning("%s: %s", self._target, text)
        else:
            _log.info("%s: connected", self._target)
        self._error = text
        self._is_connected = not text

    # -- reading ----------------------------------------------------------------------------------------

    async def _check_database(self, client: StoreClient) -> None:
        """Refuse a database that is not ours to read; forget the places in another one's stream."""
        at = await client.read_time()
        self._told_us = to_micros(at)
        self._told_s = monotonic()
        meta = STREAMED[0]
        found: dict[Key, Row] = {}
        async with aclosing(client.read_table(meta, at)) as blocks:
            async for block in blocks:
                found.update(block)
        schema = check_schema(found.get((SCHEMA_KEY,)))
        if streamed(schema.version) != streamed(self._schema):
            self._watermark = Watermark(self._watermark.read())  # of a table that is streamed now nothing is known
        self._schema = schema.version
        if schema.identity != self._identity:
            if self._identity:
                _log.warning("%s: this is another database than the checkpoint's", self._target)
                self._book.forget_times()
            self._identity = schema.identity
            self._watermark = Watermark(0)

    async def _bootstrap(self, client: StoreClient) -> None:
        """Read everything as of one time, and put the difference in force."""
        from router.config.tail import HEARTBEAT_MS, LostPlaceError  # noqa: PLC0415
        from router.config.wire import Child  # noqa: PLC0415

        began_s = perf_counter()
        at = await client.read_time()
        read_us = to_micros(at)
        tables: dict[str, dict[Key, Row]] = {}
        for table in streamed(self._schema):
            rows = tables[table.name] = {}
            async with aclosing(client.read_table(table, at)) as blocks:
                async for block in blocks:
                    rows.update(block)
        tokens: dict[str, int] = {}
        async with aclosing(client.changes(read_us, None, HEARTBEAT_MS)) as stream:
            async for records in stream:
                tokens.update({r.token: max(r.start_us, read_us) for r in records if isinstance(r, Child)})
        if not tokens:
            raise LostPlaceError("the change stream has no partitions")
        self._watermark = Watermark(self._watermark.read(), tokens)
        self._transactions = Transactions()
        # Nothing is taken over before everything is here: what the book has, no later difference would bring.
        changes = [
            change for table, rows in tables.items() for change in self._book.replace(table, rows, read_us)
        ]
        await self._put_in_force(changes)
        gc.freeze()  # else each full collection walks all of it
        self._bootstraps += 1
        _log.info(
            "%s: read %d rows as of %s in %.2f s, %d changed",
            self._target, sum(map(len, self._book.tables.values())), format_timestamp(read_us),
            perf_counter() - began_s, len(changes),
        )  # fmt: skip

    def _take(self, records: list[DataRecord]) -> None:
        """Put one transaction in force."""
        for record in records:
            if record.table == "Meta":  # before anything is taken over
                for key, row in record.rows:
                    if key == (SCHEMA_KEY,) and streamed(check_schema(row).version) != streamed(self._schema):
                        from router.config.tail import LostPlaceError  # noqa: PLC0415

                        raise LostPlaceError("another schema streams other tables")
        changes = self._book.take(records)
        if not changes:
            return
        self._is_changed = True
        self._guard(changes)
        patch = self._projection.step(changes)
        if patch is not None:
            self._publish(msgspec.structs.replace(patch, committed_us=records[0].commit_us))

    async def _put_in_force(self, changes: list[Change]) -> None:
        """Apply a difference in slices, with the loop going round between them."""
        self._is_changed |= bool(changes)
        self._guard(changes)
        # What grows comes first, then routes, then what goes: no route leads to what is not all there yet.
        self._backlog += changes
        growth = deque(change for change in self._backlog if _is_growth(change))
        rest = deque(change for change in self._backlog if not _is_growth(change))
        self._backlog = deque((*growth, *rest))
        for part, is_growth in ((growth, True), (rest, False)):
            while part:
                slice_ = [part.popleft() for _ in range(min(SLICE, len(part)))]
                patch = self._projection.step(slice_, defer_routes=is_growth)
                if patch is not None:
                    self._publish(patch)
                for _ in slice_:
                    self._backlog.popleft()
                await asyncio.sleep(0)
        patch = self._projection.step(())  # routes that were deferred
        if patch is not None:
            self._publish(patch)

    def _guard(self, changes: list[Change]) -> None:
        held = self._projection.guard(changes)
        if held:
            _log.error(
                "held: one change would take out %d of %d ready replicas; POST /config/accept lets it through",
                held, self._projection.ready,
            )  # fmt: skip

    # -- the checkpoint -----------------------------------------------------------------------------------

    def _load(self) -> None:
        found, complaints = checkpoint.read(self._path, self._target.database)
        for complaint in complaints:
            _log.error("checkpoint not used: %s", complaint)
        if found is None:
            if complaints:
                self._error = f"checkpoint not used: {complaints[0]}"
            return
        began_s = perf_counter()
        found.restore(self._book)
        header = found.header
        self._identity = header.identity
        self._schema = header.of_schema
        self._watermark = Watermark(header.watermark_us, header.positions)
        for patch in (self._projection.restore(header.kept), self._projection.step(self._book.rows())):
            if patch is not None:
                self._publish(patch)
        self._has_table = True
        self._source = "checkpoint"
        _log.info(
            "serving from %s, as of %s (%.2f s)", self._path, format_timestamp(header.watermark_us),
            perf_counter() - began_s,
        )  # fmt: skip

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            self._book.forget(self._watermark.read(self._transactions.oldest_us()))
            if self._has_table and self._source == "store" and self.keeps_checkpoint:
                await self._save()

    async def _save(self) -> None:
        """Write a checkpoint; one that cannot be written is a warning, not the end of serving."""
        async with self._saving:
            await self._write()

    async def _write(self) -> None:
        watermark_us = self._watermark.read(self._transactions.oldest_us())
        # What is said again after a restart does no harm, what is missing would.
        positions = {token: min(at, watermark_us) for token, at in self._watermark.positions.items()}
        header = checkpoint.Header(
            checkpoint.FORMAT, STREAMED_VERSION, self._target.database, self._identity, watermark_us, positions,
            self._projection.kept(), self._schema,
        )  # fmt: skip
        self._is_changed = False
        encoding = checkpoint.blocks_of(self._book)  # as of now, like the header
        blocks = []
        for block in encoding:
            blocks.append(block)
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(checkpoint.write, self._path, header, blocks)
        except OSError as failure:
            self._is_changed = True
            _log.warning("the checkpoint could not be written: %s", failure)
        else:
            self._saved_s = monotonic()


def _is_growth(change: Change) -> bool:
    table, _, row = change
    return row is not None and (table == "Replicas" or (table == "Endpoints" and row[3] != "PAUSED"))


def own_name() -> str:
    """Return a name for this process that no other has."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(3)}"


def _import_client() -> None:
    importlib.import_module("router.config.tail")


def check_schema(row: Row | None) -> SchemaEntry:
    """Return the row `schema` of Meta; SchemaError if this router cannot read such a database."""
    if row is None or row[0] is None:
        raise SchemaError("the database has no schema of ours: run `router store init`")
    try:
        schema = msgspec.json.decode(row[0], type=SchemaEntry)
    except (msgspec.DecodeError, TypeError) as failure:
        raise SchemaError(f"Meta/{SCHEMA_KEY} cannot be read: {failure}") from None
    if schema.oldest_client > CLIENT_VERSION:
        raise SchemaError(
            f"the database's schema {schema.version} needs a router that knows schema {schema.oldest_client}; "
            f"this one knows {CLIENT_VERSION}: update it"
        )
    return schema


def _in_words(code: str, details: str) -> str:
    if code == "NOT_FOUND":
        return f"{code}: {details} (is it the right database? `router store init` makes the schema)"
    return f"{code}: {details}"
