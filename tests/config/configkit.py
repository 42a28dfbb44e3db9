"""Rows as they come from the store, the table that patches make of them, and a store and agents in this process."""

import asyncio
import base64
import contextlib
import hashlib
import inspect
import json
import secrets
from time import monotonic

import pytest

from router.config.agent import ConfigAgent
from router.config.embedded.hooks import TestHooks
from router.config.embedded.server import StoreServer
from router.config.errors import StoreError
from router.config.projection import Projection
from router.config.reduce import RowBook
from router.config.schema import MIGRATIONS, SCHEMA_KEY, SESSION_KEY, SESSION_VERSION, streamed
from router.config.settings import Settings
from router.config.target import DEFAULT_DATABASE, Target
from router.config.wire import DataRecord
from router.config.writer import open_writer
from router.routing.image import TableImage

STREAM = "RouterStream"
COMMIT = "spanner.commit_timestamp()"


async def poll(condition, within_s=10.0):
    """Ask a condition, sync or async, until it is truthy, and return what it returned."""
    deadline = monotonic() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert monotonic() < deadline, f"still {value!r} after {within_s} s"
        await asyncio.sleep(0.005)


async def refused(call, *parts):
    """Await a call that the store refuses in words with these parts, and return them."""
    with pytest.raises(StoreError) as failure:
        await call
    assert all(part in str(failure.value) for part in parts), str(failure.value)
    return str(failure.value)


# -- rows --------------------------------------------------------------------------------------------------


def text(value):
    """A JSON column: None stays NULL, a text is taken as it is."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def endpoint_row(policy=None, health=None, state="ACTIVE", environment="main"):
    return (environment, text(policy), text(health), state)


def replica_row(address="10.0.0.1", port="30000", weight=1.0, state="READY", generation="1", capabilities=None, node=""):
    return (node, "", "", address, port, weight, state, generation, text(capabilities))


def route_row(endpoint="e", prefix="/", priority="0", match=..., action=...):
    match = {"path_prefix": prefix} if match is ... else match
    action = {"endpoint": endpoint} if action is ... else action
    return (priority, text(match), text(action))


def host_row(route_set):
    return (route_set, None, None)


def record(table, *rows, at, transaction="", records=1):
    return DataRecord(at, transaction or str(at), records, table, list(rows))


class Book:
    """A row book, a projection over it, and the table that its patches make."""

    def __init__(self, shrink_guard=0.5):
        self.book = RowBook()
        self.projection = Projection(self.book, shrink_guard)
        self.image = TableImage()
        self.patches = []
        self.now_us = 1_000_000

    def put(self, *writes):
        """One transaction of (table, key, row or None); return the patch or None."""
        self.now_us += 1
        changes = self.book.take([record(t, (k, r), at=self.now_us, records=len(writes)) for t, k, r in writes])
        self.projection.guard(changes)
        return self._published(self.projection.step(changes))

    def accept(self):
        count, patch = self.projection.accept()
        self._published(patch)
        return count

    def _published(self, patch):
        if patch is not None:
            self.patches.append(patch)
            self.image.apply(patch)
        return patch

    def reasons(self):
        return {(r["table"], r["key"]): r["reason"] for r in self.projection.reasons()}

    def replicas(self, endpoint="e"):
        return set(self.image.replicas.get(endpoint, {}))

    def table(self):
        return shape(self.image)


def shape(image):
    """The table as values that do not depend on order or on slots."""
    endpoints = {
        name: (spec, {(r.id, r.address, r.weight, r.state) for r in image.replicas[name].values()})
        for name, spec in image.endpoints.items()
    }
    return endpoints, sorted((r.host, -r.priority, r.path_prefix, r.endpoint) for r in image.routes)


def fresh(book):
    """The table of the book's rows, projected from nothing."""
    projection, image = Projection(book, 0.0), TableImage()
    patch = projection.step(list(book.rows()))
    if patch is not None:
        image.apply(patch)
    return projection, image


# -- a store and agents ------------------------------------------------------------------------------------


class Store:
    """An embedded store with the schema, on a Unix socket; it may go away and come back at the same place."""

    def __init__(self, folder, data=None, hooks=None, kind="embedded"):
        self.folder = folder
        self.address = f"unix:{folder}/s.sock"
        self.data = data
        self.hooks = hooks or TestHooks()
        self.target = Target(kind, self.address)
        self.server = None

    async def start(self, *, init=True, migrations=MIGRATIONS):
        self.server = StoreServer(self.data, self.address, hooks=self.hooks)
        await self.server.start()
        if init:
            await self._init(migrations)
        return self

    async def _init(self, migrations):
        """What `router.config.setup.initialise` does, in a fiftieth of its time; test_setup compares them."""
        instance, _, _ = self.target.database.rpartition("/databases/")
        registry = self.server._registry
        registry.add_instance(instance, b"")
        database = registry.create(self.target.database).database
        for statements in migrations:
            database.apply_ddl(statements)
        schema = {"version": len(migrations), "oldest_client": 1, "identity": secrets.token_hex(16)}
        await self.write(put_meta(SCHEMA_KEY, schema))
        if len(migrations) >= SESSION_VERSION:
            await self.write(put_meta(SESSION_KEY, {"keys": [secrets.token_hex(32)]}))

    async def stop(self):
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop()

    @property
    def database(self):
        return self.server.database(DEFAULT_DATABASE)

    def partitions(self):
        return self.database.partitions.open(self.database.catalog.streams[STREAM.lower()].id)

    def tokens(self):
        return [partition.token for partition in self.partitions()]

    def split(self, index=0):
        return self.database.split(STREAM, self.tokens()[index])

    def merge(self, *indexes):
        tokens = self.tokens()
        return self.database.merge(STREAM, [tokens[i] for i in indexes or range(len(tokens))])

    def ddl(self, *statements):
        return self.database.apply_ddl(statements)

    def writer(self):
        return open_writer(self.target)

    async def write(self, *mutations):
        """One commit of (operation, table, columns, row…) or ("delete", table, key…); its timestamp."""
        async with self.writer() as writer:
            made = [
                (m[0], m[1], (), list(m[2:])) if m[0] == "delete" else (m[0], m[1], m[2], list(m[3:])) for m in mutations
            ]
            return await writer._client.write(made)


def put_endpoint(name, **row):
    columns = ("EndpointId", "Environment", "Policy", "Health", "State", "UpdatedAt")
    return ("insert_or_update", "Endpoints", columns, (name, *endpoint_row(**row), COMMIT))


def put_replica(endpoint, name, **row):
    return put_replicas(endpoint, (name,), **row)


def put_replicas(endpoint, names, **row):
    columns = ("EndpointId", "ReplicaId", "NodeId", "RegionId", "Zone", "Address", "Port", "Weight", "State",
               "Generation", "Capabilities", "UpdatedAt")  # fmt: skip
    return ("insert_or_update", "Replicas", columns, *((endpoint, n, *replica_row(**row), COMMIT) for n in names))


def put_meta(key, value):
    return ("insert_or_update", "Meta", ("K", "V", "UpdatedAt"), (key, text(value), COMMIT))


def put_token(subject):
    columns = ("TokenHash", "Subject", "Environment", "Scopes", "UpdatedAt")
    hashed = base64.b64encode(hashlib.sha256(subject.encode()).digest()).decode()
    return ("insert_or_update", "AuthTokens", columns, (hashed, subject, "main", ["endpoint:a", "pin"], COMMIT))


class Agent:
    """One agent, the table that it publishes, and how it ended."""

    def __init__(self, target_setting, state, **settings):
        values = {"store": target_setting, "state_dir": str(state), "reaper": False, **settings}
        self.agent = ConfigAgent(Settings(**values), self._publish, self._end)
        self.image = TableImage()
        self.patches = []
        self.sizes = []  # ready replicas after each patch
        self.ended = []

    def _publish(self, patch):
        self.patches.append(patch)
        self.image.apply(patch)
        self.sizes.append(sum(map(len, self.image.replicas.values())))

    def _end(self, code):
        self.ended.append(code)

    def start(self):
        self.agent.start()
        return self

    async def close(self):
        await self.agent.close()

    @property
    def status(self):
        return self.agent.status()

    @property
    def rows(self):
        """The rows that are there, by table, without their timestamps."""
        found = {}
        for table, key, row in self.agent._book.rows():
            found.setdefault(table, {})[key] = row
        return found

    def replicas(self, endpoint="e"):
        return set(self.image.replicas.get(endpoint, {}))

    async def until_connected(self, within_s=10.0):
        await poll(lambda: self.status["connected"] and self.status["has_table"], within_s)
        return self

    async def until_error(self, part, within_s=15.0):
        """Its error text, once it contains `part`."""
        await poll(lambda: part in self.status["error"], within_s)
        return self.status["error"]

    async def until_watermark(self, at_us, within_s=10.0):
        await poll(lambda: self.agent._watermark.read(self.agent._transactions.oldest_us()) >= at_us, within_s)

    def moved(self, since=0):
        """Replicas that one patch removed and added again, from patch `since` on; none may."""
        twice = []
        for patch in self.patches[since:]:
            for change in patch.endpoints:
                twice += sorted(set(change.remove) & {r.id for r in change.upsert})
                if change.name in patch.gone:
                    twice.append(change.name)
        return twice


async def snapshot(target, at=None, schema=SESSION_VERSION):
    """Every streamed row as of now, or of `at` (a protobuf timestamp), as the client reads it."""
    from router.config.client import StoreClient

    client = StoreClient(target)
    try:
        await client.open_session()
        at = at or await client.read_time()
        found = {}
        for table in streamed(schema):
            async with contextlib.aclosing(client.read_table(table, at)) as blocks:
                async for block in blocks:
                    found.setdefault(table.name, {}).update(block)
        return found
    finally:
        await client.close()
