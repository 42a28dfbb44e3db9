"""Each endpoint of the admin listener, over a real socket with a client nobody here wrote."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import httpx
import msgspec
import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from adminkit import STARTED_EPOCH_S, TABLE, FakeSource, daemon_state, robot, serve, worker_state

from router.control import Robots
from router.routing.spec import SessionEntry
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.robot.shown import MAX_SHOWN


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert response.headers["x-router-error"] == error["code"]
    return error


async def test_livez_is_always_ok():
    async with serve() as admin, admin.client() as client:
        admin.source.reasons = ["draining"]
        response = await client.get("/livez")
        assert (response.status_code, response.text) == (200, "ok\n")
        assert admin.source.asked == 0


@pytest.mark.parametrize("path", ["/readyz", "/health", "/healthz"])
async def test_readiness(path):
    async with serve() as admin, admin.client() as client:
        assert (await client.get(path)).status_code == 200
        admin.source.reasons = ["draining", "no worker accepts"]
        response = await client.get(path)
        assert response.status_code == 503
        assert response.text == "not ready: draining; no worker accepts\n"
        assert admin.source.asked == 0, "a probe must not wait for a worker"


async def test_readyz_verbose_lists_reasons_workers_and_endpoints():
    source = FakeSource()
    source.reasons = ["draining"]
    source.workers = [worker_state(), worker_state(1, 101, stalled=True), worker_state(2, 0, "restarting")]
    async with serve(source) as admin, admin.client() as client:
        response = await client.get("/readyz?verbose")
        assert response.status_code == 503
        assert response.text.splitlines() == [
            "[-] draining",
            "[+] worker 0: ready",
            "[-] worker 1: ready, stalled",
            "[-] worker 2: restarting",
            "[+] endpoint llama: 1/2 replicas ready",
            "[-] endpoint qwen: 0/1 replicas ready",
            "not ready",
        ]
        source.reasons = []
        response = await client.get("/readyz?verbose")
        assert response.status_code == 200
        assert response.text.endswith("\nready\n")


async def test_config_dump():
    async with serve() as admin, admin.client() as client:
        dump = (await client.get("/config_dump")).json()
        assert dump["settings"]["auth_token"] == "***"
        assert dump["table"]["version"] == 7
        assert [endpoint["name"] for endpoint in dump["table"]["endpoints"]] == ["llama", "qwen"]
        (token,) = dump["table"]["tokens"]
        assert (token["key"], token["environment"], token["digest"]) == ("wk-1", "team-a", ""), "no hash is shown"
        assert dump["last_reload"]["ok"] is True
        assert dump["workers"] == [{"worker": 0, "pid": 100, "table_version": 7}]


async def test_clusters_as_text():
    async with serve() as admin, admin.client() as client:
        response = await client.get("/clusters")
        assert response.headers["content-type"].startswith("text/plain")
        lines = response.text.splitlines()
        for line in (
            "llama::policy::p2c",
            "llama::ready::1/2",
            "llama::a:1::health_flags::healthy",
            "llama::a:1::in_flight::2",
            "llama::a:1::latency_ms::100.0",
            "llama::a:1::pooled::3",
            "llama::b:1::health_flags::/failed_active_hc/failed_outlier_check",
            "llama::b:1::health_reason::refused",
            "llama::b:1::weight::2.0",
            "qwen::c:1::state::DRAINING",
        ):
            assert line in lines


async def test_clusters_as_json_sums_workers_that_serve():
    from adminkit import replica, snapshot

    source = FakeSource()
    source.workers = [worker_state(), worker_state(1, 101), worker_state(2, 102, "restarting")]
    source.taken = [
        snapshot(0, 100, replicas=[replica(in_flight=2, requests=10, latency_s=0.1)]),
        snapshot(1, 101, replicas=[replica(in_flight=3, requests=30, latency_s=0.3, is_ejected=True)]),
        snapshot(2, 99, replicas=[replica(in_flight=50, requests=1)]),  # of a process that is gone
    ]
    async with serve(source) as admin, admin.client() as client:
        endpoints = (await client.get("/clusters?format=json")).json()["endpoints"]
        assert [(e["name"], e["policy"], e["ready"], e["total"]) for e in endpoints] == [
            ("llama", "p2c", 1, 2),
            ("qwen", "round_robin", 0, 1),
        ]
        row = endpoints[0]["replicas"][0]
        assert (row["in_flight"], row["requests"], row["ejected_by"], row["is_ejected"]) == (5, 40, 1, True)
        assert row["latency_ms"] == pytest.approx(250.0)


async def test_workers_are_listed_as_sglang_lists_them():
    async with serve() as admin, admin.client() as client:
        listed = (await client.get("/workers")).json()
        assert listed["total"] == 3
        assert listed["stats"] == {"prefill_count": 0, "decode_count": 0, "regular_count": 3}
        first, second, third = listed["workers"]
        assert (first["id"], first["url"], first["model_id"]) == ("a:1", "http://a:1", "llama")
        assert (first["is_healthy"], first["load"], first["worker_type"]) == (True, 2, "regular")
        assert first["connection_mode"] == "http"
        assert not second["is_healthy"]
        assert not third["is_healthy"]
        assert (await client.get("/workers/a:1")).json() == first
        assert (await client.get("/workers/a%3A1")).json() == first
        assert error_of(await client.get("/workers/x"))["code"] == "not_found"


async def test_a_worker_is_added():
    async with serve() as admin, admin.client() as client:
        response = await client.post("/workers", json={"url": "http://d:1", "model_id": "ignored"})
        assert response.status_code == 202
        assert response.json()["worker_id"] == "d:1"
        assert response.headers["location"] == "/workers/d:1"
        response = await client.post("/workers", json={"url": "http://e:1", "endpoint": "qwen", "weight": 3})
        assert admin.source.told == [("add", "http://d:1", None, 1.0), ("add", "http://e:1", "qwen", 3.0)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"url":"d:1"}', "url"),
        (b'{"url":"http://d:1","endpoint":"none"}', "endpoint"),
        (b'{"url":"http://d:1","weight":0}', "weight"),
        (b'{"url":"http://d:1","weight":7}', "weight"),
        (b'{"url":"http://d:1","weight":"heavy"}', "weight"),
        (b'{"url":7}', "url"),
        (b'{"endpoint":"llama"}', "url"),
        (b"{", None),
        (b"[]", None),
        (b"", None),
    ],
)
async def test_bad_input_names_the_field(body, param):
    async with serve() as admin, admin.client() as client:
        response = await client.post("/workers", content=body)
        assert response.status_code == 400
        error = error_of(response)
        assert error["param"] == param
        assert error["message"].startswith(f"{param or 'body'}: ")
        assert error["type"] == "invalid_request_error"
        assert not admin.source.told


async def test_a_worker_is_removed():
    async with serve() as admin, admin.client() as client:
        assert (await client.delete("/workers/a:1")).json()["worker_id"] == "a:1"
        assert (await client.delete("/workers/a%3A1")).status_code == 200
        assert (await client.delete("/workers/nobody")).status_code == 404
        assert error_of(await client.delete("/workers/last"))["param"] == "id"
        assert admin.source.told[0] == ("remove", "a:1")


async def test_demand_of_every_endpoint_and_how_telling_the_store_goes():
    source = FakeSource()
    told = {"router": "me", "region": "eu", "rows": 1, "commits": 4, "failures": 2, "error": "", "age_s": 0.5}
    source.state = lambda: daemon_state() | {"demand": told}
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/v1/demand")).json()
        assert found["published"] == told
        assert found["endpoints"] == [
            {"endpoint": "llama", "in_flight": 2, "arrivals": 9, "unserved": 3, "waiting": 0, "sessions": 0,
             "replicas": 2, "ready": 1, "scaling": None},
            {"endpoint": "qwen", "in_flight": 0, "arrivals": 0, "unserved": 0, "waiting": 0, "sessions": 0,
             "replicas": 1, "ready": 0, "scaling": None},
        ]  # fmt: skip
        text = (await client.get("/metrics")).text
        assert "router_demand_age_seconds 0.5" in text
        assert "router_demand_commits_total 4.0" in text
        assert "router_demand_failures_total 2.0" in text
    async with serve() as admin, admin.client() as client:
        assert (await client.get("/v1/demand")).json()["published"] is None
        assert "router_demand" not in (await client.get("/metrics")).text


async def test_server_info():
    async with serve() as admin, admin.client() as client:
        info = (await client.get("/server_info")).json()
        assert info["version"] == "1.2.3"
        assert info["uptime_s"] == pytest.approx(time.time() - STARTED_EPOCH_S, abs=10)
        assert info["python"].startswith("3.")
        assert info["workers"] == [worker_state()]


async def test_debug_route():
    async with serve() as admin, admin.client() as client:
        found = (await client.get("/debug/route", params={"host": "x.example", "path": "/v1/a?b=c"})).json()
        assert (found["host"], found["path"]) == ("x.example", "/v1/a?b=c")
        assert (await client.get("/debug/route")).json()["path"] == "/"
        assert error_of(await client.get("/debug/route?path=v1"))["param"] == "path"
        assert (await client.get("/debug/route?host=nobody")).status_code == 503


async def test_debug_robots():
    source = FakeSource()
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/debug/robots")).json()
        assert (found["open"], found["left_out"], found["robots"]) == (0, 0, [])
        source.robot_answers = [
            Robots(1, 3, [robot("b", badness_us=40_000), robot("a", badness_us=10_000)]),
            Robots(1, 1, [robot("c", worker=1, badness_us=30_000, gaps=[4, *[0] * 14])]),
        ]
        found = (await client.get("/debug/robots")).json()
        assert [one["session"] for one in found["robots"]] == ["b", "c", "a"], "the worst link first"
        assert (found["open"], found["left_out"]) == (4, 1)
        assert found["robots"][1]["worker"] == 1
        assert len(found["gap_bounds_us"]) == len(found["robots"][1]["gaps"]) - 1
        found = (await client.get("/debug/robots?limit=1")).json()
        assert ([one["session"] for one in found["robots"]], found["left_out"]) == (["b"], 3)
        await client.get("/debug/robots?session=c")
        assert source.robots_asked[-3:] == [(MAX_SHOWN, ""), (1, ""), (MAX_SHOWN, "c")]
        source.robot_answers = []
        assert (await client.get("/debug/robots?session=c")).status_code == 404
        for query in ("limit=0", "limit=1001", "limit=x", "limit=1e2", "limit=", "who=me"):
            assert error_of(await client.get("/debug/robots?" + query))["param"] == query.partition("=")[0]


async def test_debug_robots_is_guarded():
    async with serve(token="secret") as admin, admin.client() as client:
        assert (await client.get("/debug/robots")).status_code == 401


async def test_mutations_of_the_daemon():
    async with serve() as admin, admin.client() as client:
        assert (await client.post("/healthcheck/fail")).json() == {"ready": False}
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/healthcheck/ok")).json() == {"ready": True}
        assert (await client.post("/logging?level=debug")).json() == {"level": "DEBUG"}
        assert error_of(await client.post("/logging?level=loud"))["param"] == "level"
        assert error_of(await client.post("/logging"))["param"] == "level"
        response = await client.post("/drain_listeners")  # answered although the drain never ends
        assert (response.status_code, response.json()) == (202, {"draining": True})
        assert admin.source.told == [("ready", False), ("ready", True), ("level", "DEBUG"), ("drain",)]


async def test_unknown_path_lists_the_endpoints():
    async with serve() as admin, admin.client() as client:
        response = await client.get("/nothing")
        assert response.status_code == 404
        assert error_of(response)["type"] == "not_found_error"
        assert {"GET /metrics", "POST /workers", "DELETE /workers/ID"} <= set(response.json()["endpoints"])
        assert (await client.get("/workers/")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/livez", "GET, HEAD"),
        ("GET", "/drain_listeners", "POST"),
        ("HEAD", "/logging", "POST"),
        ("PUT", "/workers", "GET, POST, HEAD"),
        ("POST", "/workers/a:1", "GET, DELETE, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
    ],
)
async def test_wrong_method(method, path, allow):
    async with serve() as admin, admin.client() as client:
        response = await client.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allow
        assert not admin.source.told


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/workers", "/", "/nothing"])
async def test_head_is_get_without_the_body(path):
    async with serve() as admin, admin.client() as client:
        got, head = await client.get(path), await client.head(path)
        assert head.content == b""
        assert head.status_code == got.status_code
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.headers["content-type"] == got.headers["content-type"]
        assert (await client.get("/livez")).text == "ok\n", "the connection is in step"


async def test_nothing_is_cached_sniffed_or_framed():
    async with serve() as admin, admin.client() as client:
        for path in ("/", "/workers", "/nothing"):
            headers = (await client.get(path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"


async def test_a_large_body_is_refused():
    async with serve() as admin, admin.client() as client:
        response = await client.post("/workers", content=b" " * 65_537)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"

        async def chunks():
            for _ in range(70):
                yield b" " * 1024

        assert (await client.post("/workers", content=chunks())).status_code == 413
        assert (await client.post("/workers", content=b" " * 65_536)).status_code == 400
        assert not admin.source.told


async def test_a_chunked_body_with_trailers_and_one_by_one():
    async with serve() as admin:
        body = b'{"url":"http://d:1"}'
        head = (
            b"POST /workers HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        answer = await admin.raw(head + b"%x\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(body), body))
        assert answer.startswith(b"HTTP/1.1 202 ")
        assert admin.source.told == [("add", "http://d:1", None, 1.0)]


async def test_expect_continue_is_answered():
    async with serve() as admin:
        reader, writer = await asyncio.open_connection(*admin.where)
        writer.write(
            b"POST /workers HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: 20\r\n\r\n"
        )
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"url":"http://d:1"}')
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 202 ")
        writer.close()
        await writer.wait_closed()


async def test_pipelined_requests_are_answered_in_order():
    async with serve() as admin:
        one = b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\n%b\r\n"
        sent = one % (b"/workers", b"") + one % (b"/livez", b"") + one % (b"/x", b"connection: close\r\n")
        answer = await admin.raw(sent)
        found = [answer.find(mark) for mark in (b'"total": 3', b"\r\n\r\nok\n", b"HTTP/1.1 404")]
        assert -1 not in found
        assert found == sorted(found)


@pytest.mark.parametrize("data", [b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n"])
async def test_a_slow_head_is_closed(data):
    async with serve(limits=ServerLimits(head_s=0.1, linger_s=0.1)) as admin:
        answer = await admin.raw(data)
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed(monkeypatch):
    monkeypatch.setattr("router.edge.admin_request.IDLE_S", 0.1)
    async with serve(limits=ServerLimits(keep_alive_s=0.1)) as admin:
        assert await admin.raw(b"") == b""
        answer = await admin.raw(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert answer.endswith(b"ok\n")


async def test_a_handler_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("router.edge.admin_request.IDLE_S", 0.1)
    source = FakeSource()
    source.hang = asyncio.Event()
    async with serve(source) as admin, admin.client() as client:
        response = await client.get("/debug/route")
        assert response.status_code == 504
        await asyncio.wait_for(source.was_cancelled.wait(), 5)


async def test_a_client_that_leaves_cancels_the_handler():
    source = FakeSource()
    source.hang = asyncio.Event()
    async with serve(source) as admin:
        _, writer = await asyncio.open_connection(*admin.where)
        writer.write(b"GET /debug/route HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        while not source.hang._waiters:
            await asyncio.sleep(0.005)
        writer.transport.abort()
        await asyncio.wait_for(source.was_cancelled.wait(), 5)


async def test_a_client_that_leaves_does_not_cancel_what_others_wait_for():
    source = FakeSource()
    gate = asyncio.Event()
    take = source.snapshots

    async def snapshots():
        await gate.wait()
        return await take()

    source.snapshots = snapshots
    async with serve(source) as admin, admin.client() as client:
        _, writer = await asyncio.open_connection(*admin.where)
        writer.write(b"GET /workers HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        while not gate._waiters:
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(client.get(path)) for path in ("/workers", "/metrics", "/clusters")]
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        gate.set()
        assert [response.status_code for response in await asyncio.gather(*others)] == [200, 200, 200]
        assert source.asked == 1, "callers that come meanwhile share one reading"


async def test_a_bug_costs_one_request(caplog):
    async with serve() as admin, admin.client() as client:
        response = await client.get("/debug/route?host=bug")
        assert response.status_code == 500
        assert error_of(response)["code"] == "internal"
        assert "secret" not in response.text
        assert "RuntimeError: a secret" in caplog.text
        assert (await client.get("/livez")).status_code == 200


async def test_no_websocket():
    async with serve() as admin:
        answer = await admin.raw(
            b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_too_many_query_fields():
    async with serve() as admin, admin.client() as client:
        assert (await client.get("/livez?" + "a&" * 40)).status_code == 400


async def test_unix_socket(tmp_path):
    path = tmp_path / "admin.sock"
    async with serve(path=path), httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
        # No browser gets to a Unix socket, so any host name does.
        assert (await client.get("http://anything/livez")).text == "ok\n"


async def test_close_ends_connections_and_stops_accepting():
    source = FakeSource()
    source.hang = asyncio.Event()
    async with serve(source) as admin:
        reader, writer = await asyncio.open_connection(*admin.where)
        writer.write(b"GET /debug/route HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        idle_reader, idle_writer = await asyncio.open_connection(*admin.where)
        while not source.hang._waiters:
            await asyncio.sleep(0.005)
        admin.listener.close()
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 503 ")
        assert await asyncio.wait_for(idle_reader.read(), 5) == b""
        with pytest.raises(OSError):
            await asyncio.open_connection(*admin.where)
        for each in (writer, idle_writer):
            each.close()
            await each.wait_closed()


def test_the_same_on_uvloop():
    async def ask():
        async with serve() as admin, admin.client() as client:
            for path in ("/", "/metrics", "/workers", "/readyz?verbose", "/dashboard.json"):
                assert (await client.get(path)).status_code == 200

    uvloop.run(ask())


async def test_an_upgrade_is_begun_or_refused():
    async with serve() as admin, admin.client() as client:
        answer = await client.post("/upgrade")
        assert answer.status_code == 202 and answer.json()["upgrading"] is True
        assert admin.source.told == [("upgrade",)]
        admin.source.no_upgrade = "an upgrade is under way"
        answer = await client.post("/upgrade")
        assert answer.status_code == 409 and "under way" in answer.json()["error"]["message"]
        assert (await client.get("/upgrade")).status_code == 405


async def test_retired_it_answers_who_is_connected_and_nobody_else():
    async with serve() as admin:
        reader, writer = await asyncio.open_connection(*admin.where)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"ok\n")
        admin.listener.retire()
        writer.write(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"connection: close" in await reader.read()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*admin.where)


async def test_readyz_says_what_a_worker_suffers_from():
    source = FakeSource()
    source.workers = [worker_state() | {"overload": "lag 120 ms, 40% of new requests refused"}]
    async with serve(source) as admin, admin.client() as client:
        answer = await client.get("/readyz?verbose")
        assert answer.status_code == 200, "less than all is better than nothing"
        assert "[+] worker 0: ready, overloaded: lag 120 ms, 40% of new requests refused" in answer.text


async def test_sessions_are_listed_and_ended():
    async with serve() as admin, admin.client() as client:
        (shown,) = (await client.get("/sessions")).json()["sessions"]
        assert (shown["session"], shown["replica"]) == ("s1", "a:1")
        assert (await client.get("/sessions?endpoint=other")).json() == {"sessions": []}
        answer = await client.delete("/sessions/s1")
        assert (answer.status_code, answer.json()) == (200, {"terminated": "s1"})
        assert admin.source.told == [("end", "s1")]
        assert (await client.delete("/sessions/nobody")).status_code == 404
        assert (await client.delete("/sessions")).status_code == 405
        assert (await client.get("/sessions/s1")).status_code == 405
        admin.source.no_end = "session_unavailable"
        answer = await client.delete("/sessions/s1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "session_unavailable")


async def test_the_dump_shows_neither_keys_nor_sessions():
    source = FakeSource()
    secret = b"a key of thirty-two bytes, at least"
    source.spec = msgspec.structs.replace(
        TABLE, session_keys=(secret,), sessions=(SessionEntry("s1", "llama", "a:1", 60),)
    )
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/config_dump")).json()["table"]
        assert found["session_keys"] is found["sessions"] is None
