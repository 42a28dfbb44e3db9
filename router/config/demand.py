"""Tells the store each second what this router's endpoints are asked for: rows of `Demand`, one for each endpoint.

Rows that changed are written, in one commit; one that is not idle at least each three seconds, since whoever reads
them ignores what is older than ten. A clean stop deletes them. The store decides nothing here: while it is away
attempts are spaced as everybody's (`pace`), nothing waits for it, and serving goes on. A store whose schema has no
such table yet is asked again now and then. Imports gRPC late, as the agent does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextlib import suppress
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from router.config.agent import SchemaError, check_schema, own_name
from router.config.errors import StoreError
from router.config.pace import Pace
from router.config.schema import DEMAND_VERSION, SCHEMA_KEY
from router.config.target import parse_target
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.config.client import Mutation
    from router.config.settings import Settings
    from router.config.target import Target
    from router.config.writer import Writer
    from router.demand import EndpointDemand

_log = logging.getLogger("router.demand")

PERIOD_S = 1.0
BEAT_S = 3.0
IDLE_BEAT_S = 3_600.0  # far below the day after which the store deletes a row by its age
MAX_ROWS = 1_000  # in one commit: nine columns each, and Spanner takes 80,000 values
CLOSE_S = 1.0  # for deleting the rows at the end
OLD_SCHEMA_S = 30.0  # between looks whether somebody migrated the store
COLUMNS = (
    "EndpointId", "RouterId", "InFlight", "Arrivals", "Unserved", "Waiting", "Sessions", "RegionId", "UpdatedAt",
)  # fmt: skip


def make_publisher(
    settings: Settings, read: Callable[[], Awaitable[dict[str, EndpointDemand]]]
) -> DemandPublisher | None:
    """Return the publisher of a daemon; None without a store, or behind a relay, which takes no writes."""
    if not settings.store:
        return None
    target = parse_target(settings.demand_store or settings.store, settings.state_dir)
    if target.kind == "relay":
        _log.warning("demand is not published: %s takes no writes; name its upstream by --demand-store", target)
        return None
    return DemandPublisher(target, own_name()[:128], settings.region, read)


class OldSchemaError(Exception):
    """The store has no table for demand."""


class DemandPublisher:
    """One in a daemon with a store. `read` returns the demand of now; `name` is no other router's."""

    def __init__(
        self, target: Target, name: str, region: str, read: Callable[[], Awaitable[dict[str, EndpointDemand]]]
    ) -> None:
        self._target = target
        self._name = name
        self._region = region
        self._read = read
        self._pace = Pace()
        self._written: dict[str, tuple[EndpointDemand | None, float]] = {}  # and when, on the monotonic clock
        self._task: asyncio.Task[None] | None = None
        self._is_connected = False
        self._has_said = False  # that the schema is too old
        self._error = "not connected yet"
        self._commits = 0
        self._failures = 0
        self._told_s: float | None = None

    def start(self) -> None:
        """Publish in the background."""
        self._task = spawn(self._run(), "demand")

    async def close(self) -> None:
        """Stop, and delete the rows; not if the store is away."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._is_connected and self._written:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._withdraw()

    def status(self) -> dict[str, Any]:
        """Return how publishing goes."""
        return {
            "router": self._name,
            "region": self._region,
            "rows": len(self._written),
            "commits": self._commits,
            "failures": self._failures,
            "error": self._error,
            "age_s": None if self._told_s is None else round(monotonic() - self._told_s, 3),
        }

    async def _run(self) -> None:
        await asyncio.to_thread(importlib.import_module, "router.config.writer")
        while True:
            try:
                await self._publish()
            except OldSchemaError as reason:
                self._is_connected = False
                self._error = str(reason)
                if not self._has_said:
                    self._has_said = True
                    _log.warning("%s: demand is not published: %s", self._target, reason)
                await asyncio.sleep(OLD_SCHEMA_S)
            except StoreError as failure:
                self._trouble(str(failure))
                await self._pace.wait()
            except Exception as failure:  # a bug must not end it, nor the daemon
                _log.exception("demand could not be published")
                self._trouble(f"{type(failure).__name__}: {failure}")
                await self._pace.wait()

    async def _publish(self) -> None:
        """Connect, and publish until something ends it."""
        from router.config.writer import open_writer  # noqa: PLC0415

        async with open_writer(self._target) as writer:
            await self._check_schema(writer)
            # It may be another store than before, or have lost what was not durable.
            self._written = dict.fromkeys(self._written, (None, 0.0))
            while True:
                await self._turn(writer)
                self._pace.succeeded()
                if self._error:
                    _log.info("%s: demand is published", self._target)
                self._is_connected, self._error = True, ""
                await asyncio.sleep(PERIOD_S * (0.75 + random() * 0.5))

    async def _check_schema(self, writer: Writer) -> None:
        rows = await writer.query("SELECT V FROM Meta WHERE K = @key", {"key": SCHEMA_KEY})
        try:
            version = check_schema(tuple(rows[0]) if rows else None).version
        except SchemaError as refusal:
            raise OldSchemaError(str(refusal)) from None
        if version < DEMAND_VERSION:
            raise OldSchemaError(f"its schema is {version}; `router store init` makes it {DEMAND_VERSION}")

    async def _turn(self, writer: Writer) -> None:
        demand = await self._read()
        now_s = monotonic()
        due = [name for name, seen in demand.items() if self._is_due(name, seen, now_s)]
        if len(due) > MAX_ROWS:  # those that waited longest
            due.sort(key=lambda name: self._written.get(name, (None, 0.0))[1])
            del due[MAX_ROWS:]
        gone = [name for name in self._written if name not in demand][:MAX_ROWS]
        if due or gone:
            await writer.write(self._mutations(demand, due, gone))
            self._commits += 1
        self._told_s = now_s
        for name in due:
            self._written[name] = (demand[name], now_s)
        for name in gone:
            del self._written[name]

    def _is_due(self, name: str, seen: EndpointDemand, now_s: float) -> bool:
        before, at_s = self._written.get(name, (None, 0.0))
        return seen != before or now_s - at_s > (IDLE_BEAT_S if seen.is_idle else BEAT_S)

    def _mutations(self, demand: dict[str, EndpointDemand], due: list[str], gone: list[str]) -> list[Mutation]:
        from router.config.client import COMMIT_TIME  # noqa: PLC0415

        mutations: list[Mutation] = []
        if due:
            rows = []
            for name in due:
                seen = demand[name]
                counts = (seen.in_flight, seen.arrivals, seen.unserved, seen.waiting, seen.sessions)
                rows.append((name, self._name, *counts, self._region, COMMIT_TIME))
            mutations.append(("insert_or_update", "Demand", COLUMNS, rows))
        if gone:
            mutations.append(("delete", "Demand", (), [(name, self._name) for name in gone]))
        return mutations

    async def _withdraw(self) -> None:
        from router.config.writer import open_writer  # noqa: PLC0415

        async with open_writer(self._target) as writer:
            names = list(self._written)
            for i in range(0, len(names), MAX_ROWS):
                await writer.write(self._mutations({}, [], names[i : i + MAX_ROWS]))

    def _trouble(self, text: str) -> None:
        if text != self._error:
            _log.warning("%s: demand is not published: %s", self._target, text)
        self._failures += 1
        self._is_connected, self._error = False, text
