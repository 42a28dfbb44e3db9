"""`router robot ping|drive|list` by click's runner, against a daemon of this test's own in another process."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import types

import msgspec
import pytest
from certkit import Authority
from childkit import first_line
from click.testing import CliRunner

from inference_backend.ports import free_port
from router.cli import main
from router.cli.robot_runs import DriveRun, PingRun
from router.client import BlockingRobotSession, Message, RobotError, RobotSession


def start(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    return process, json.loads(first_line(process))


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    process.stdout.close()


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    """Where the router of `place` has its admin listener."""
    return f"unix:{tmp_path_factory.mktemp('admin')}/admin.sock"


@pytest.fixture(scope="module")
def place(tmp_path_factory, admin):
    """URL of a router in front of a policy, and what it takes to trust it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", "127.0.0.1").write(folder, "local")
    policy, ready = start("inference_backend", "policy", "--port", free_port())
    router = None
    try:
        router, told = start(
            "router", "serve", "--json", "--admin", admin, "--listen", "127.0.0.1:0", "--listen-quic", "127.0.0.1:0",
            "--tls-cert", folder / "local.pem", "--tls-key", folder / "local.key", "--health", "none",
            "--auth-token", "s3cret", "--drain-settle-s", "0", "--replica", ready["url"].replace("ws://", "http://"),
        )  # fmt: skip
        quic = next(url for url in told["listen"] if url.startswith("quic://"))
        plain = next(url for url in told["listen"] if url.startswith("http://"))
        yield quic + "/", ("--ca", str(folder / "ca.pem"), "--token", "s3cret"), plain.replace("http", "ws", 1) + "/"
    finally:
        stop(policy)
        if router is not None:
            stop(router)


def call(*arguments):
    return CliRunner().invoke(main, ["robot", *map(str, arguments)])


def test_ping(place):
    url, trust, _ = place
    found = call("ping", url, *trust, "--count", 5, "--interval", 0.02, "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.output)
    assert summary["transport"] == "quic"
    assert summary["answered"] == 5
    assert summary["loss"] == 0.0
    assert 0 < summary["rtt_min_s"] <= summary["rtt_p50_s"] <= summary["rtt_p99_s"] <= summary["rtt_max_s"] < 1
    found = call("ping", url, *trust, "--count", 3, "--interval", 0.02)
    assert found.exit_code == 0
    assert "connected over quic" in found.output
    assert "3 answered, 0 lost (0.0%), over quic" in found.output
    assert "jitter" in found.output


def test_ping_over_a_websocket(place):
    url, trust, plain = place
    found = call("ping", url, *trust, "--websocket", "--websocket-url", plain, "--count", 3, "--interval", 0.02, "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.output)
    assert (summary["transport"], summary["answered"]) == ("websocket", 3)
    assert summary["rtt_min_s"] > 0


class Answering:
    """A session of which nine of ten PINGs are lost at last, though none of the last hundred was."""

    def __init__(self, run):
        self._run = run
        self.link = types.SimpleNamespace(
            transport="quic", replica="", is_direct=False, pings_lost=9, loss=0.0, jitter_s=0.0
        )
        run.take(0.001)


def test_the_loss_of_a_ping_is_of_all_that_were_asked():
    run = PingRun(10, 0.02, None)
    asyncio.run(run.work(Answering(run)))
    assert (run.summary()["answered"], run.summary()["lost"], run.summary()["loss"]) == (1, 9, 0.9)


def test_who_reads_no_more_ends_a_ping():
    def say(line):
        if not line.startswith("connected"):
            raise BrokenPipeError

    run = PingRun(10, 0.02, say)
    session = Answering(run)
    with pytest.raises(BrokenPipeError):
        asyncio.run(run.work(session))


def test_drive(place):
    url, trust, _ = place
    found = call(
        "drive", url, *trust, "--hz", 50, "--bytes", 20_000, "--seconds", 0.5, "--deadline-ms", 5_000, "--lane", "command", "--json",
        "--telemetry-hz", 200,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    summary = json.loads(found.output)
    assert summary["sent"] == 25
    assert summary["replies"] == 25
    assert 50 < summary["telemetry_sent"] <= 100
    assert summary["telemetry_dropped"] == 0
    assert summary["missed"] == summary["dropped"] == summary["late"] == 0
    assert 0 < summary["reply_p50_s"] <= summary["reply_p99_s"] < 1
    assert sum(summary["gaps"].values()) >= 24


def test_a_session_that_ends_on_the_way_is_a_failure_and_no_crash(place, caplog):
    url, trust, _ = place
    run = DriveRun(20, 1_000, 5.0, None, "state", 500.0, is_live=False)

    async def drive():
        async with RobotSession(url, ca=trust[1], token=trust[3], websocket_url="") as session:
            work = asyncio.create_task(run.work(session))
            while not run.summary().get("telemetry_sent"):
                await asyncio.sleep(0.01)
            await session.close()
            await work

    asyncio.run(drive())
    assert run.failure
    assert "crashed" not in caplog.text


class TwoReplicas:
    """A session whose replica is replaced: each says what it is first, and answers once."""

    link = None

    def __init__(self):
        self.comes = [Message(b"", "command", n, epoch, False) for n, epoch in enumerate((1, 1, 2, 2))]

    async def recv(self, timeout_s=None):
        await asyncio.sleep(0)
        if not self.comes:
            raise RobotError(1011, "over")
        return self.comes.pop(0)

    def send(self, data, lane, deadline_s):
        return True


async def test_what_another_replica_says_first_is_no_reply():
    run = DriveRun(1_000.0, 10, 0.01, None, "state", is_live=False)
    await run.work(TwoReplicas())
    assert run.summary()["replies"] == 2


def test_drive_shows_a_table(place):
    url, trust, plain = place
    found = call("drive", url, *trust, "--hz", 20, "--bytes", 1_000, "--seconds", 0.4, "--telemetry-hz", 100)
    assert found.exit_code == 0, found.output
    for words in ("observations sent / dropped", "8 / 0", "telemetry sent / dropped", "gap between replies", "missed deadlines", "round trip", "late / overtaken"):
        assert words in found.output
    found = call("drive", url, *trust, "--websocket", "--websocket-url", plain, "--hz", 20, "--seconds", 0.3, "--json")
    assert json.loads(found.output)["replies"] >= 5


def test_deadlines_that_cannot_be_kept_are_counted(place):
    """A policy answers after a millisecond at least: within 0.1 ms none does."""
    url, trust, _ = place
    found = call("drive", url, *trust, "--hz", 20, "--bytes", 100_000, "--seconds", 0.5, "--deadline-ms", 0.1, "--json")
    summary = json.loads(found.output.splitlines()[0])
    assert summary["missed"] + summary["dropped"] == summary["sent"] == 10


def test_list(place, admin):
    url, trust, _ = place
    found = call("list", "--admin", admin)
    assert (found.exit_code, found.output) == (0, "none\n")
    with BlockingRobotSession(url, ca=trust[1], token=trust[3]) as session:
        for _ in range(3):
            session.send(msgspec.msgpack.encode({"image": b"x", "sequence": 1}))
            session.recv(5.0)
        ends_s = time.monotonic() + 10
        while True:  # the robot's first report is a second away
            found = call("list", "--admin", admin, "--json")
            (robot,) = json.loads(found.output)["robots"]
            if robot["reported_ago_s"] is not None:
                break
            assert time.monotonic() < ends_s
        assert (robot["transport"], robot["upstream"], robot["epoch"], robot["state_in"]) == ("quic", "websocket", 1, 3)
        assert robot["replica"] == session.link.replica
        assert robot["client"].startswith("127.0.0.1:")
        assert 0 < robot["reported_rtt_us"] < 1_000_000
        assert sum(robot["gaps"]) == 2
        found = call("list", "--admin", admin, "--session", robot["session"])
        assert found.exit_code == 0
        assert robot["session"] in found.output
        assert robot["replica"] in found.output
        assert call("list", "--admin", admin, "--session", "nobody").exit_code == 1
    assert call("list", "--admin", "none").exit_code == 2
    found = call("list", "--admin", admin + ".not")
    assert found.exit_code == 1
    assert "no daemon answers" in found.output


def test_errors_say_what_to_do(place):
    url, trust, _ = place
    found = call("ping", url, *trust[:2])
    assert found.exit_code == 1
    assert "401" in found.output
    assert "--token" in found.output
    found = call("ping", url, "--token", "s3cret", "--websocket-url", "")
    assert found.exit_code == 1
    assert "--insecure" in found.output
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind(("127.0.0.1", 0))
        port = hole.getsockname()[1]
        found = call("drive", f"quic://127.0.0.1:{port}/", "--websocket-url", "", "--connect-timeout", 0.3)
        assert found.exit_code == 1
        assert "nobody answers" in found.output
        assert "--listen-quic" in found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ping", "http://here/"), "quic://HOST:PORT"),
        (("ping", "quic://h/", "--header", "nothing"), "NAME:VALUE"),
        (("ping", "quic://h/", "--count", 0), "--count"),
        (("drive", "quic://h/", "--hz", 0), "--hz"),
        (("drive", "quic://h/", "--lane", "telemetry"), "--lane"),
        (("drive", "quic://h/", "--telemetry-hz", 5_000), "--telemetry-hz"),
        (("drive", "quic://h/", "--ca", "/no/such/file"), "--ca"),
    ],
)
def test_bad_usage(arguments, says):
    found = call(*arguments)
    assert found.exit_code == 2
    assert says in found.output


def test_help_is_whole():
    for command in ("ping", "drive"):
        found = call(command, "--help")
        assert found.exit_code == 0
        for flag in ("--token", "--ca", "--insecure", "--websocket", "--json", "--connect-timeout"):
            assert flag in found.output
        assert "router robot " + command in found.output


@pytest.mark.slow
def test_as_a_program_of_its_own(place):
    """What a user runs: compiled where it was compiled, and from source."""
    url, trust, _ = place
    for env in ({}, {"ROUTER_PURE": "1"}):
        found = subprocess.run(
            [sys.executable, "-m", "router", "robot", "drive", url, *trust, "--hz", "20", "--bytes", "300000", "--seconds", "0.5", "--json"],
            capture_output=True, text=True, timeout=50, env={**os.environ, **env},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["replies"] >= 8
