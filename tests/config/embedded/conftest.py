"""A database on a clock that tests move, and a server with the official client's own messages over raw grpc.aio."""

import asyncio
import json

import grpc
import pytest

from router.config.embedded import keys, mutations
from router.config.embedded.database import Database
from router.config.embedded.hooks import TestHooks
from router.config.embedded.limits import Settings
from router.config.embedded.messages import Admin, InstanceAdmin, PartialResultSet, Spanner, raw
from router.config.embedded.server import StoreServer
from router.config.embedded.sql import ast
from router.config.embedded.sql.defaults import default_value
from router.config.embedded.sql.dml import Change, Result
from router.config.embedded.sql.expressions import Context
from router.config.embedded.sql.parser import parse
from router.config.embedded.sql.select import Query
from router.config.embedded.sql.sources import View
from router.config.embedded.sql.typed import Params
from router.config.embedded.timestamps import text_of_us
from router.config.embedded.transactions import Transactions

NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z in microseconds
SCHEMA = [
    """CREATE TABLE Endpoints (EndpointId STRING(64) NOT NULL, State STRING(16), N INT64,
        UpdatedAt TIMESTAMP OPTIONS (allow_commit_timestamp=true)) PRIMARY KEY (EndpointId)""",
    """CREATE TABLE Replicas (EndpointId STRING(64) NOT NULL, ReplicaId STRING(64) NOT NULL, State STRING(16), Weight INT64)
        PRIMARY KEY (EndpointId, ReplicaId), INTERLEAVE IN PARENT Endpoints ON DELETE CASCADE""",
    "CREATE INDEX ByState ON Replicas(State)",
    "CREATE CHANGE STREAM RouterStream FOR ALL OPTIONS (value_capture_type='NEW_ROW', retention_period='7d')",
]
Mutation = raw(Spanner.Mutation)


class Wall:
    """A wall clock in microseconds that goes where it is put."""

    def __init__(self, us=NOON):
        self.us = us

    def __call__(self):
        return self.us


def mutation(operation, table, columns, *rows):
    """A google.spanner.v1.Mutation from Python values as JSON would have them."""
    message = Mutation()
    write = getattr(message, operation)
    write.table = table
    write.columns.extend(columns)
    for row in rows:
        write.values.add().extend([str(v) if type(v) is int else v for v in row])
    return message


def deletion(table, *wanted, everything=False):
    message = Mutation()
    message.delete.table = table
    message.delete.key_set.all_ = everything
    for key in wanted:
        message.delete.key_set.keys.add().extend([str(v) if type(v) is int else v for v in key])
    return message


class Bench:
    """What tests do with a database, in one line each."""

    def __init__(self, path, settings=None, wall=None, schema=SCHEMA):
        self.path, self.settings, self.wall = path, settings or Settings(), wall or Wall()
        self.db = self.reopened()
        if not self.db.catalog.tables and schema:
            self.db.apply_ddl(schema)

    def reopened(self):
        self.db = Database(self.path, self.settings, self.wall, default_value)
        self.transactions = Transactions(self.db)
        return self.db

    def commit(self, *messages, **more):
        return self.db.commit(lambda workspace, at: mutations.apply(workspace, messages, at), **more)

    def put(self, table, columns, *rows, operation="insert_or_update"):
        return self.commit(mutation(operation, table, columns, *rows))

    def rows(self, table, at=None):
        table = self.db.catalog.table(table)
        return [row for _, row in self.db.scan(table, [keys.ALL], self.db.safe() if at is None else at)]

    def query(self, sql, params=None, at=None, transaction=None):
        now = self.db.safe()
        view = View(self.db, (at or now) if transaction is None else transaction.at, transaction)
        context = Context(Params(params or {}, {}), text_of_us(now))
        query = Query(view, parse(sql), context)
        return [row for row in query.rows() if row is not None]

    def dml(self, transaction, sql, params=None):
        view = View(self.db, transaction.at, transaction)
        statement = parse(sql)
        assert not isinstance(statement, ast.Select)
        transaction.workspace.begin_statement()
        try:
            steps = Change(view, statement, Context(Params(params or {}, {}), text_of_us(self.db.safe()))).run()
            return next(step for step in steps if isinstance(step, Result))
        except BaseException:
            transaction.workspace.undo_statement()
            raise

    def log(self, stream="RouterStream"):
        """All records of a stream, decoded: [(at, [data, heartbeats, children]), …] in order."""
        found = []
        stream_id = self.db.catalog.streams[stream.lower()].id
        for partition in self.db.partitions.of(stream_id):
            for at, id_, record in self.db.storage.records(partition.id, (0, 0), 1 << 62, 1 << 30):
                value = PartialResultSet.FromString(record).values[0]
                found.append((at, id_, partition.token, listed(value)[0]))
        return [(at, token, record) for at, _, token, record in sorted(found, key=lambda item: item[:2])]


def listed(value):
    """A google.protobuf.Value as Python lists."""
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [listed(item) for item in value.list_value.values]
    return None if kind == "null_value" else getattr(value, kind)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path / "db.sqlite")
    yield made
    made.db.close()


@pytest.fixture
def make_bench():
    made = []

    def make(*args, **kwargs):
        made.append(Bench(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.db.storage.close()


DATABASE = "projects/p/instances/i/databases/db"
SPANNER = "/google.spanner.v1.Spanner/"


class Client:
    """The RPCs as an agent uses them: raw stubs, its own requests."""

    def __init__(self, address):
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )
        self.session = f"{DATABASE}/sessions/any-name-will-do"

    async def call(self, service, name, request, response=None):
        method = self.channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=response.FromString if response else None,
        )
        return await method(request)

    async def setup(self, schema=SCHEMA):
        create = raw(InstanceAdmin.CreateInstanceRequest)(parent="projects/p", instance_id="i")
        await self.call("google.spanner.admin.instance.v1.InstanceAdmin", "CreateInstance", create)
        request = raw(Admin.CreateDatabaseRequest)(
            parent="projects/p/instances/i", create_statement="CREATE DATABASE `db`", extra_statements=schema
        )
        await self.call("google.spanner.admin.database.v1.DatabaseAdmin", "CreateDatabase", request)

    async def commit(self, *messages):
        request = raw(Spanner.CommitRequest)(session=self.session, mutations=messages)
        request.single_use_transaction.read_write.SetInParent()
        found = await self.call("google.spanner.v1.Spanner", "Commit", request, raw(Spanner.CommitResponse))
        return found.commit_timestamp.ToMicroseconds()

    def stream(self, name, request, **options):
        method = self.channel.unary_stream(
            SPANNER + name,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=PartialResultSet.FromString,
        )
        return method(request, **options)

    def changes(self, start_us, token, end_us=None, heartbeat_ms=10_000, resume=b""):
        request = raw(Spanner.ExecuteSqlRequest)(
            session=self.session, sql="SELECT ChangeRecord FROM READ_RouterStream(@s, @e, @t, @h)", resume_token=resume
        )
        request.params["s"] = text_of_us(start_us) + "Z"
        request.params["e"] = None if end_us is None else text_of_us(end_us) + "Z"
        request.params["t"] = token
        request.params["h"] = str(heartbeat_ms)
        return self.stream("ExecuteStreamingSql", request)

    def read(self, table, columns, **more):
        request = raw(Spanner.ReadRequest)(session=self.session, table=table, columns=columns, **more)
        if not (request.key_set.keys or request.key_set.ranges):
            request.key_set.all_ = True
        return self.stream("StreamingRead", request)

    def sql(self, text, **more):
        return self.stream("ExecuteStreamingSql", raw(Spanner.ExecuteSqlRequest)(session=self.session, sql=text, **more))

    async def hooks(self, **request):
        method = self.channel.unary_unary("/router.store.TestHooks/Call")
        return json.loads(await method(json.dumps(request).encode()))

    async def tokens(self, start_us):
        """The partitions' tokens at a time."""
        found = []
        async for message in self.changes(start_us, None):
            for value in message.values:
                ((_, _, children),) = listed(value)
                found += [child[0] for record in children for child in record[2]]
        return found


async def gather(call):
    """All values of a stream, one flat list."""
    return [listed(value) async for message in call for value in message.values]


@pytest.fixture
async def server(tmp_path):
    async with StoreServer(tmp_path / "data", f"unix:{tmp_path}/s", hooks=TestHooks()) as made:
        yield made


@pytest.fixture
async def client(server):
    made = Client(server.address)
    await made.setup()
    yield made
    await made.channel.close()


@pytest.fixture
def helpers():
    """The functions above, for modules that cannot import them."""

    class Helpers:
        pass

    Helpers.mutation, Helpers.deletion, Helpers.listed = staticmethod(mutation), staticmethod(deletion), staticmethod(listed)
    Helpers.gather, Helpers.Client, Helpers.Wall, Helpers.NOON = staticmethod(gather), Client, Wall, NOON
    Helpers.DATABASE, Helpers.SCHEMA, Helpers.sleep = DATABASE, SCHEMA, staticmethod(asyncio.sleep)
    return Helpers
