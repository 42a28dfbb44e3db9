"""The server over a real socket: streams, faults on demand, sockets, locks, hostile requests."""

import asyncio
import socket
import stat
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from router.config.embedded.hooks import Cut
from router.config.embedded.limits import Settings
from router.config.embedded.messages import Admin, InstanceAdmin, PartialResultSet, Session, Spanner, raw
from router.config.embedded.server import BindError, LockedError, StoreServer

E = ["EndpointId", "State", "N"]


async def status(call):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call:
            pass
    return refused.value.code().name


class Tail:
    """A reader of one partition: records as they come."""

    def __init__(self, call, listed):
        self.call, self.listed = call, listed
        self.left = []
        self.token = b""

    async def next(self):
        while not self.left:
            message = await self.call.read()
            if message is grpc.aio.EOF:
                return None
            self.token = message.resume_token or self.token
            for value in message.values:
                data, beats, children = self.listed(value)[0]
                self.left += [("data", d) for d in data] + [("beat", b) for b in beats] + [("children", c) for c in children]
        return self.left.pop(0)


@pytest.fixture
def tail(client, helpers):
    def make(*args, **kwargs):
        return Tail(client.changes(*args, **kwargs), helpers.listed)

    return make


@pytest.fixture
def put(client, helpers):
    async def put_(*rows):
        return await client.commit(helpers.mutation("insert_or_update", "Endpoints", E, *rows))

    return put_


async def test_records_are_pushed_then_resumed_where_they_broke_off(client, tail, put):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    reader = tail(start, token)
    assert (await reader.next())[1][4] == "Endpoints"
    times = [await put(["a", "up", n]) for n in range(5)]
    seen = [(await reader.next())[1][0] for _ in range(2)]
    reader.call.cancel()
    again = tail(start, token, resume=reader.token)
    # The message that carried the token may have held more than was taken out of it.
    taken = 2 + len(reader.left)
    seen += [(await again.next())[1][0] for _ in range(5 - taken)]
    from router.config.embedded.timestamps import wire_of_us

    assert [*seen[:2], *[record[1][0] for record in reader.left], *seen[2:]] == [wire_of_us(at) for at in times]


async def test_heartbeats_are_promises(client, tail, put):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    reader = tail(start + 1, token, heartbeat_ms=100)
    kind, (beat,) = await reader.next()
    assert kind == "beat"
    from router.config.embedded.timestamps import us_of_wire

    assert await put(["a", "up", 1]) > us_of_wire(beat)


async def test_end_timestamp_ends_with_a_heartbeat(client, tail, put):
    start, end = await put(["a", "up", 0]), await put(["a", "up", 1])
    await put(["a", "up", 2])
    (token,) = await client.tokens(start)
    reader = tail(start, token, end_us=end)
    kinds = [await reader.next() for _ in range(4)]
    assert [kind[0] if kind else None for kind in kinds] == ["data", "data", "beat", None]


async def test_a_split_and_a_merge_hand_over_without_loss(client, server, tail, put, helpers):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    reader = tail(start + 1, token)
    split = await client.hooks(call="split", database=helpers.DATABASE, stream="RouterStream", token=token)
    children = [(await reader.next())[1] for _ in range(2)]
    assert await reader.next() is None
    assert [child[2][0][0] for child in children] == split["tokens"]
    assert all(child[2][0][1] == [token] for child in children)
    await put(*[[f"e{n}", "up", n] for n in range(20)])
    readers = [tail(start + 1, one) for one in split["tokens"]]
    assert [await status(r.call) for r in readers] == ["OUT_OF_RANGE"] * 2  # before the partitions began
    from router.config.embedded.timestamps import us_of_wire

    born = us_of_wire(children[0][0])
    readers = [tail(born, one) for one in split["tokens"]]
    keys = [mod[0] for r in readers for mod in (await r.next())[1][6]]
    assert len(set(keys)) == 20
    merged = await client.hooks(call="merge", database=helpers.DATABASE, stream="RouterStream", tokens=split["tokens"])
    for r in readers:
        kind, child = await r.next()
        assert (kind, child[2][0]) == ("children", [merged["tokens"][0], split["tokens"]])
    opened = await client.hooks(call="partitions", database=helpers.DATABASE, stream="RouterStream")
    assert [p[0] for p in opened["partitions"]] == merged["tokens"]


async def test_cuts_before_and_within_a_stream(client, server, tail, put):
    start = await put(["a", "up", 0])
    await put(["a", "up", 1])
    (token,) = await client.tokens(start)
    server.hooks.cuts.append(Cut("ExecuteStreamingSql", change_stream=True))
    assert await status(client.changes(start, token)) == "UNAVAILABLE"
    await client.hooks(call="cut", method="ExecuteStreamingSql", messages=1, change_stream=True)
    reader = tail(start, token)
    assert (await reader.next())[0] == "data"
    with pytest.raises(grpc.aio.AioRpcError, match="cut by a test"):
        while True:
            assert await reader.next() is not None
    await client.hooks(call="cut", method="Commit", code="ABORTED")
    with pytest.raises(grpc.aio.AioRpcError):
        await put(["a", "up", 2])
    assert await put(["a", "up", 2])
    assert (await client.hooks(call="calls"))["calls"]["Commit"] == 4


async def test_a_hung_server_goes_on_where_it_stopped(client, server, tail, put):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    reader = tail(start, token, heartbeat_ms=100)
    assert (await reader.next())[0] == "data"
    server.hooks.hang()
    waiting = asyncio.ensure_future(reader.next())
    commit = asyncio.ensure_future(put(["a", "up", 1]))
    done, _ = await asyncio.wait([waiting, commit], timeout=0.3)
    assert not done
    server.hooks.resume()
    assert await commit
    assert await waiting


async def test_silent_and_ended_streams(client, server, tail, put):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    await client.hooks(call="set", silent_streams=True)
    reader = tail(start, token, heartbeat_ms=100)
    waiting = asyncio.ensure_future(reader.next())
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await client.hooks(call="set", silent_streams=False, end_streams=True)
    assert await waiting is None  # OK, and no children


async def test_the_readers_of_a_partition_are_limited(client, server, tail, put):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    server.hooks.max_readers = 1
    reader = tail(start, token)
    await reader.next()
    assert await status(client.changes(start, token)) == "RESOURCE_EXHAUSTED"
    reader.call.cancel()
    for _ in range(100):  # the server notices the cancellation in its own time
        again = tail(start, token)
        try:
            assert (await again.next())[0] == "data"
            break
        except grpc.aio.AioRpcError as refused:
            assert refused.code().name == "RESOURCE_EXHAUSTED"  # noqa: PT017
            await asyncio.sleep(0.01)
    else:
        pytest.fail("a reader that went still counts")


async def test_a_dropped_stream_ends_its_readers(client, server, tail, put, helpers):
    start = await put(["a", "up", 0])
    (token,) = await client.tokens(start)
    reader = tail(start + 1, token)
    waiting = asyncio.ensure_future(reader.next())
    request = raw(Admin.UpdateDatabaseDdlRequest)(database=helpers.DATABASE, statements=["DROP CHANGE STREAM RouterStream"])
    await client.call("google.spanner.admin.database.v1.DatabaseAdmin", "UpdateDatabaseDdl", request)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await waiting
    assert ended.value.code().name == "NOT_FOUND"
    assert await status(client.changes(start, token)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
async def test_values_in_pieces_merge_to_what_they_were(client, server, put, helpers, chunk):
    """By the rules of result_set.proto, with the official client's own merging."""
    from google.cloud.spanner_v1 import types
    from google.cloud.spanner_v1.streamed import StreamedResultSet

    start = await put(["é" * 50, "up", 1], ["b", "", 2], ["c", None, None])
    (token,) = await client.tokens(start)

    async def everything(make):
        messages = [m async for m in make()]
        return [row for row in StreamedResultSet(iter([types.PartialResultSet.wrap(m) for m in messages]))], messages

    for make in (
        lambda: client.read("Endpoints", E),
        lambda: client.sql("SELECT EndpointId, [N, 1], ['x', 'yyyyyyyyyyyyyyyyyyyyyyyy', NULL, 'z'] FROM Endpoints"),
        lambda: client.changes(start, token, end_us=start),
    ):
        server.hooks.chunk_bytes = None
        whole, _ = await everything(make)
        server.hooks.chunk_bytes = chunk
        pieces, messages = await everything(make)
        assert pieces == whole
        assert chunk > 500 or any(m.chunked_value for m in messages)


async def test_a_long_read_is_resumed_by_a_server_that_never_saw_it(tmp_path, helpers):
    async with StoreServer(tmp_path / "d", f"unix:{tmp_path}/s", settings=Settings(chunk_bytes=200)) as server:
        client = helpers.Client(server.address)
        await client.setup()
        await client.commit(helpers.mutation("insert", "Endpoints", E, *[[f"e{n:03}", "up", n] for n in range(300)]))
        for make in (
            lambda **more: client.read("Endpoints", ["EndpointId"], limit=250, **more),
            lambda **more: client.sql("SELECT EndpointId FROM Endpoints LIMIT 250", **more),
        ):
            found, token = [], b""
            async with aclosing(make().__aiter__()) as messages:
                async for message in messages:
                    found += [v.string_value for v in message.values]
                    token = message.resume_token
                    if token:
                        break
            await client.commit(helpers.mutation("insert_or_update", "Endpoints", E, ["a", "new", 0], ["zz", "new", 0]))
            await server.stop()
            await server.start()
            rest = [v.string_value async for m in make(resume_token=token) for v in m.values]
            assert found + rest == [f"e{n:03}" for n in range(250)]
            await client.commit(helpers.deletion("Endpoints", ["a"], ["zz"]))
        await client.channel.close()


async def test_any_session_name_of_a_database_will_do(client, server, put):
    await put(["a", "up", 1])
    client.session = "projects/p/instances/i/databases/db/sessions/from-another-life"
    assert [m async for m in client.read("Endpoints", E)]
    get = raw(Spanner.GetSessionRequest)(name=client.session)
    assert (await client.call("google.spanner.v1.Spanner", "GetSession", get, Session)).name == client.session
    for bad in ("", "x", "projects/p/instances/i/databases/nope/sessions/s", client.session + "/x", client.session + "\n"):
        client.session = bad
        assert await status(client.read("Endpoints", E)) == "NOT_FOUND"


HOSTILE = [
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "resume_token": b"r"}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "resume_token": b"r" + b"\xff" * 40}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "limit": -1}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "x\0\"'; DROP TABLE meta", "columns": ["EndpointId"]}, "NOT_FOUND"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["c1; --"]}, "NOT_FOUND"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "transaction": {"id": b"ro" + b"\x7f" * 14}}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "transaction": {"id": b"\0"}}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "transaction": {"single_use": {"read_only": {"read_timestamp": {"seconds": -(1 << 62)}}}}}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "transaction": {"single_use": {"read_only": {"read_timestamp": {"seconds": 1 << 62}}}}}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "transaction": {"single_use": {"read_only": {"exact_staleness": {"seconds": -5}}}}}, "INVALID_ARGUMENT"),
    ("StreamingRead", {"table": "Endpoints", "columns": ["EndpointId"], "partition_token": b"x"}, "UNIMPLEMENTED"),
    ("ExecuteStreamingSql", {"sql": "SELECT 1", "resume_token": b"q"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT 1", "resume_token": b"q" + b"\x7f" * 24}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT '" + "x" * (1 << 20) + "'"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream('x', NULL, NULL, 1000)"}, "UNIMPLEMENTED"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream(NULL, NULL, NULL, 1000)"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream(@a, NULL, NULL, 1000)"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream("}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream(1, 2, 3, 4, 5, 6)"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream('9999-12-31T23:59:59Z', NULL, NULL, 1000)"}, "OUT_OF_RANGE"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream('2020-01-01T00:00:00Z', NULL, NULL, 1000)"}, "OUT_OF_RANGE"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_RouterStream('2020-01-01T00:00:00Z', NULL, NULL, 50)"}, "OUT_OF_RANGE"),
    ("ExecuteStreamingSql", {"sql": "SELECT ChangeRecord FROM READ_Nope('2020-01-01T00:00:00Z', NULL, NULL, 1000)"}, "INVALID_ARGUMENT"),
    ("ExecuteStreamingSql", {"sql": "SELECT 1", "query_mode": 1}, "UNIMPLEMENTED"),
]  # fmt: skip


@pytest.mark.parametrize(("rpc", "fields", "wanted"), HOSTILE)
async def test_hostile_requests_are_refused_by_name(client, rpc, fields, wanted):
    kind = raw(Spanner.ReadRequest if rpc == "StreamingRead" else Spanner.ExecuteSqlRequest)
    request = kind(session=client.session, **fields)
    if rpc == "StreamingRead":
        request.key_set.all_ = True
    assert await status(client.stream(rpc, request)) == wanted


async def test_bytes_that_are_no_message(client):
    method = client.channel.unary_unary("/google.spanner.v1.Spanner/Commit")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await method(b"\xff\xff\xff")
    assert refused.value.code().name == "INVALID_ARGUMENT"
    assert [m async for m in client.read("Endpoints", E)]


async def test_a_fault_of_ours_is_internal_and_logged(client, monkeypatch, caplog):
    monkeypatch.setattr("router.config.embedded.reads.Read.__init__", lambda *_: 1 / 0)
    assert await status(client.read("Endpoints", E)) == "INTERNAL"
    monkeypatch.undo()
    assert [m async for m in client.read("Endpoints", E)]
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()


async def test_admin_errors(client, helpers):
    async def code(service, name, request):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.call(f"google.spanner.admin.{service}", name, request)
        return refused.value.code().name

    create, instance = raw(Admin.CreateDatabaseRequest), raw(InstanceAdmin.CreateInstanceRequest)
    parent = "projects/p/instances/i"
    db = "database.v1.DatabaseAdmin"
    assert await code(db, "CreateDatabase", create(parent=parent, create_statement="CREATE DATABASE db")) == "ALREADY_EXISTS"
    assert await code(db, "CreateDatabase", create(parent=parent, create_statement="CREATE DATABASE `../x`")) == "INVALID_ARGUMENT"
    assert await code(db, "CreateDatabase", create(parent=parent, create_statement="DROP")) == "INVALID_ARGUMENT"
    assert await code(db, "CreateDatabase", create(parent=parent + "x", create_statement="CREATE DATABASE db2")) == "NOT_FOUND"
    assert await code(db, "CreateDatabase", create(parent=parent, create_statement="CREATE DATABASE db2", extra_statements=["x"])) == "INVALID_ARGUMENT"
    assert await code(db, "GetDatabase", raw(Admin.GetDatabaseRequest)(name=parent + "/databases/db2")) == "NOT_FOUND"
    assert await code("instance.v1.InstanceAdmin", "CreateInstance", instance(parent="projects/p", instance_id="i")) == "ALREADY_EXISTS"
    assert await code("instance.v1.InstanceAdmin", "CreateInstance", instance(parent="projects/p", instance_id="../i")) == "INVALID_ARGUMENT"


# -- sockets and files


async def test_the_socket_is_ours_alone_and_goes_with_us(server):
    path = Path(server.address.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.stop()
    assert not path.exists()


async def test_a_second_server_is_told_who_has_the_data(server, tmp_path):
    import os

    second = StoreServer(tmp_path / "data", f"unix:{tmp_path}/t")
    with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        await second.start()
    third = StoreServer(tmp_path / "other", server.address)
    with pytest.raises(BindError, match="somebody else"):
        await third.start()
    await server.stop()
    async with second:
        pass


async def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    async with StoreServer(None, f"unix:{path}"):
        pass
    path.write_text("precious")
    with pytest.raises(BindError, match="not a socket"):
        await StoreServer(None, f"unix:{path}").start()
    assert path.read_text() == "precious"


async def test_tcp_on_request(helpers):
    async with StoreServer(None, "127.0.0.1:0") as server:
        assert not server.address.endswith(":0")
        client = helpers.Client(server.address)
        await client.setup()
        await client.channel.close()
        with pytest.raises(BindError):
            await StoreServer(None, server.address).start()


async def test_big_messages(client, put, helpers):
    """A value of 5 MB goes in and out; a request above the limit is refused, and the server lives."""
    wide = "CREATE TABLE Wide (K INT64, V BYTES(MAX)) PRIMARY KEY (K)"
    request = raw(Admin.UpdateDatabaseDdlRequest)(database=helpers.DATABASE, statements=[wide])
    await client.call("google.spanner.admin.database.v1.DatabaseAdmin", "UpdateDatabaseDdl", request)
    import base64

    text = base64.b64encode(bytes(5_000_000)).decode()
    await client.commit(helpers.mutation("insert", "Wide", ["K", "V"], [1, text]))
    assert (await helpers.gather(client.read("Wide", ["V"]))) == [text]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.commit(helpers.mutation("insert", "Wide", ["K", "V"], [2, "A" * (65 << 20)]))
    assert refused.value.code().name == "RESOURCE_EXHAUSTED"
    assert (await helpers.gather(client.read("Wide", ["K"]))) == ["1"]
    assert PartialResultSet
