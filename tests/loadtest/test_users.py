"""The parsers of the locust users, and locust itself in a process of its own (importing it patches gevent in)."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loadtest import run, wire
from loadtest.openpi import PolicyError, observation, read_map
from loadtest.run import announced, main, unserved
from loadtest.sse_parser import Event, SseParser

STREAM = (
    b": comment\n"
    b'data: {"a": 1}\n\n'
    b"event: error\r\ndata: first\r\ndata: second\r\n\r\n"
    b"id: 7\n\n"
    b"data:no space\rdata:  two\r\r"
    b"data: \xc3\xa9\n\n"
    b"data: unfinished\n"
)
EVENTS = [
    Event("message", '{"a": 1}'),
    Event("error", "first\nsecond"),
    Event("message", "no space\n two"),
    Event("message", "é"),
]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
def test_sse_parser_takes_any_cut(step):
    parser = SseParser()
    found = [event for at in range(0, len(STREAM), step) for event in parser.feed(STREAM[at : at + step])]
    assert found == EVENTS


def test_sse_parser_reads_our_replica():
    found = SseParser().feed(wire.event(3) + wire.DONE_EVENT)
    assert json.loads(found[0].data)["choices"][0]["delta"]["content"] == " 0003"
    assert found[1].data == "[DONE]"


def test_observation_is_what_openpi_packs():
    openpi = pytest.importorskip("openpi_client.msgpack_numpy")
    found = openpi.unpackb(observation(8))
    assert found["observation/image"].shape == (8, 8, 3)
    assert found["observation/state"].dtype == "float64"


def test_actions_and_tracebacks_are_told_apart():
    assert read_map(msgspec.msgpack.encode({"actions": 1})) == {"actions": 1}
    with pytest.raises(PolicyError, match="ValueError: no"):
        read_map("Traceback\nValueError: no\n")
    with pytest.raises(PolicyError, match="not MessagePack"):
        read_map(b"\xc1")
    with pytest.raises(PolicyError, match="a list where a map belongs"):
        read_map(msgspec.msgpack.encode([1]))


def test_the_ready_line_is_found_among_others():
    line = '{"event":"ready","listen":"http://127.0.0.1:8","admin":"http://127.0.0.1:9","hosts":{}}'
    assert announced(f"starting\n{{not json\n{line}\n") == ("http://127.0.0.1:8", "")
    assert announced(line[:-1] + ',"quic":"quic://127.0.0.1:7"}') == ("http://127.0.0.1:8", "quic://127.0.0.1:7")
    assert announced(line[:-4]) is None


def entry(method, name, requests=1, failed=0):
    return run.Entry(
        name=name,
        method=method,
        num_requests=requests,
        num_failures=failed,
        start_time=0.0,
        last_request_timestamp=2.0,
        max_response_time=1.0,
        response_times={1: requests},
    )


def test_silence_is_a_failure():
    served = [entry("POST", "chat completion"), entry("SSE", "stream", 3, 3)]
    assert unserved(served, ["http", "sse", "websocket"]) == ["sse", "websocket"]
    assert served[0].rate() == 0.5
    assert entry("SSE", "itl", 4).percentile_ms(0.5) == 1.0


def locust(tmp_path, *arguments):
    folder = tmp_path / "report"
    result = CliRunner().invoke(
        main, ["--users", "4", "--spawn-rate", "50", "--output", str(folder), *arguments]
    )
    return result, folder


@pytest.fixture
def replica_url():
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.replica", "--events", "10", "--interval-ms", "2"],
        stdout=subprocess.PIPE,
    ) as replica:
        yield f"http://127.0.0.1:{json.loads(replica.stdout.readline())['port']}"
        replica.terminate()


def test_locust_runs_against_a_target(tmp_path, replica_url):
    result, folder = locust(tmp_path, "--run-time", "2", "--kind", "http,sse", "--target", replica_url)
    assert result.exit_code == 0, result.output
    entries = {
        f"{one.method} {one.name}": one
        for one in msgspec.json.decode((folder / run.STATS).read_bytes(), type=list[run.Entry])
    }
    assert {"POST chat completion", "SSE stream", "SSE ttft", "SSE itl"} <= entries.keys()
    # Ten events, so one first token and nine gaps for each stream that ended.
    assert entries["SSE itl"].num_requests >= 9 * entries["SSE stream"].num_requests
    assert (folder / "report.html").exists()
    assert Path(folder / "locust_stats.csv").exists()


POLICY = """
import asyncio, msgspec, websockets
async def serve(connection):
    await connection.send(msgspec.msgpack.encode({"host": connection.request.headers["host"]}))
    async for frame in connection:
        observation = msgspec.msgpack.decode(frame)
        await connection.send(msgspec.msgpack.encode({"actions": sorted(observation)}))
async def main():
    server = await websockets.serve(serve, "127.0.0.1", 0, compression=None, max_size=None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_the_robot_talks_to_a_policy(tmp_path):
    with subprocess.Popen([sys.executable, "-c", POLICY], stdout=subprocess.PIPE) as policy:
        port = int(policy.stdout.readline())
        arguments = ("--run-time", "1", "--kind", "websocket", "--target", f"http://127.0.0.1:{port}")
        result, _ = locust(tmp_path, *arguments)
        policy.terminate()
    assert result.exit_code == 0, result.output
    assert "WS infer" in result.output


def started(*arguments):
    """A child with a ready line on stdout: the process and the line."""
    child = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE)
    return child, json.loads(child.stdout.readline())


@pytest.fixture
def engine():
    child, ready = started("inference_backend", "simulate", "--time-scale", "0", "--grpc-port", "0")
    with child:
        yield ready
        child.terminate()


def entries_of(folder):
    found = msgspec.json.decode((folder / run.STATS).read_bytes(), type=list[run.Entry])
    return {f"{one.method} {one.name}": one for one in found}


def test_grpc_users_call_the_engine(tmp_path, engine):
    target = engine["grpc_url"].replace("h2c://", "http://")
    result, folder = locust(tmp_path, "--run-time", "2", "--kind", "grpc", "--target", target)
    assert result.exit_code == 0, result.output
    entries = entries_of(folder)
    assert entries["gRPC HealthCheck"].num_requests and not entries["gRPC HealthCheck"].num_failures
    # 32 tokens, a message each: one first and 31 gaps for each stream that ended.
    assert entries["gRPC itl"].num_requests >= 31 * entries["gRPC Generate"].num_requests
    assert entries["gRPC ttft"].num_requests >= entries["gRPC Generate"].num_requests


def test_a_grpc_failure_is_counted(tmp_path, engine):
    # The engine's HTTP port speaks no HTTP/2: every call ends as UNAVAILABLE.
    result, folder = locust(tmp_path, "--run-time", "1", "--kind", "grpc", "--target", engine["url"])
    assert result.exit_code == 1
    entries = entries_of(folder)
    assert sum(one.num_failures for one in entries.values()) == sum(one.num_requests for one in entries.values()) > 0


def test_http2_users_through_the_router(tmp_path, engine):
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1")
    child, ready = started("router", "serve", "--json", *ports, "--replica", engine["url"])
    with child:
        result, folder = locust(tmp_path, "--run-time", "2", "--kind", "h2", "--target", ready["listen"][0])
        child.send_signal(2)
    assert result.exit_code == 0, result.output
    assert entries_of(folder)["H2 chat completion"].num_requests > 5


@pytest.fixture
def up():
    """`router up`, as the load test starts it, with HTTP/3."""
    child, ready = started("router", "up", "--no-check", "--json", "--listen", "127.0.0.1:0", "--replicas", "1")
    with child:
        yield ready
        child.send_signal(2)


@pytest.mark.slow
def test_users_over_quic(tmp_path, up):
    assert up["quic"].startswith("quic://127.0.0.1:")
    result, folder = locust(
        tmp_path, "--run-time", "2", "--kind", "h3,robot", "--target", up["listen"], "--quic-target", up["quic"]
    )
    assert result.exit_code == 0, result.output
    entries = entries_of(folder)
    for name in ("H3 connect", "H3 chat completion", "Robot connect", "Robot infer"):
        assert entries[name].num_requests and not entries[name].num_failures, name
    assert entries["H3 chat completion"].num_requests > 5 and entries["Robot infer"].num_requests > 5


@pytest.mark.slow
def test_users_over_quic_of_whom_nobody_is_there(tmp_path, unused_udp_port, replica_url):
    where = ("--target", replica_url, "--quic-target", f"quic://127.0.0.1:{unused_udp_port}")
    result, folder = locust(tmp_path, "--run-time", "1", "--kind", "h3", *where)
    assert result.exit_code == 1
    assert "no h3 user was served" in result.output
    result, folder = locust(tmp_path, "--run-time", "1", "--kind", "http,h3", "--target", replica_url)
    assert result.exit_code == 0, result.output
    assert "without h3 users" in result.output and "POST chat completion" in entries_of(folder)
    result, _ = locust(tmp_path, "--run-time", "1", "--kind", "h3", "--target", replica_url)
    assert result.exit_code == 1 and "--quic-target" in result.output


def test_a_refused_target_fails_the_run(tmp_path, unused_tcp_port):
    result, _ = locust(
        tmp_path, "--run-time", "1", "--kind", "http", "--target", f"http://127.0.0.1:{unused_tcp_port}"
    )
    assert result.exit_code == 1
