"""The command end to end, with a router of a few lines in the place of ours."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from loadtest.certificate import openssl
from loadtest.clients import h2load
from loadtest.compare import doable, main
from loadtest.cpu import process_tree
from loadtest.peers import Nginx
from loadtest.peers.base import Readiness
from loadtest.processes import Fleet, NotReadyError, wait_ready

# A router of a few lines: what the options mean is the contract with `python -m router serve`.
STAND_IN = """#!{python}
import asyncio, ssl, sys
def port(name):
    return int(sys.argv[sys.argv.index(name) + 1].rsplit(":", 1)[1])
async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
async def relay(reader, writer):
    up, down = await asyncio.open_connection("127.0.0.1", port("--replica"))
    await asyncio.gather(pipe(reader, down), pipe(up, writer))
async def ready(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
async def main():
    await asyncio.start_server(relay, "127.0.0.1", port("--listen"))
    if "--listen-tls" in sys.argv:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*(sys.argv[sys.argv.index(name) + 1] for name in ("--tls-cert", "--tls-key")))
        await asyncio.start_server(relay, "127.0.0.1", port("--listen-tls"), ssl=tls)
    await asyncio.start_server(ready, "127.0.0.1", port("--admin"))
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "stand-in"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def command(stand_in, folder, *more):
    return [
        *("--peer", "nginx", "--rounds", "1", "--duration-s", "0.05"),
        *("--ours-python", str(stand_in), "--output", str(folder), *more),
    ]


def test_a_whole_run_leaves_a_report_and_no_process(stand_in, tmp_path):
    before = set(process_tree(os.getpid()))
    result = CliRunner().invoke(main, command(stand_in, tmp_path / "report", "--quick", "--work", "http1,h2,tls"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    measured = {slot["measure"] for slot in report["slots"]}
    expected = {"unary-1", "unary-32", "unary-open", "sse-32", "websocket-8", "grpc-stream-32"}
    expected |= {"grpc-1", "grpc-4x8"} if h2load.binary() else set()
    expected |= {"tls-full"} if openssl() and Nginx().binary() else set()
    assert measured == expected
    assert not [slot for slot in report["slots"] if slot["result"]["errors"]]
    for slot in report["slots"]:
        assert bool(slot["result"]["cpu_ns"]) == (slot["proxy"] != "direct")
    assert set(process_tree(os.getpid())) <= before


def runs(pid):
    """Whether the process is there and no zombie that its adoptive parent has yet to reap."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2][:1] != b"Z"
    except OSError:
        return False


def test_ctrl_c_ends_every_child(stand_in, tmp_path):
    arguments = command(stand_in, tmp_path / "report", "--work", "sse", "--duration-s", "5")
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as run:
        until = time.monotonic() + 10
        while len(process_tree(run.pid)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        children = process_tree(run.pid)[1:]
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=15)
    assert run.returncode == 130, output
    assert len(children) >= 3
    until = time.monotonic() + 2  # what was killed without being our child ends a moment later
    while any(map(runs, children)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [pid for pid in children if runs(pid)]


def test_unknown_names_are_refused():
    result = CliRunner().invoke(main, ["--peer", "envoy,traefik"])
    assert result.exit_code == 2
    assert "traefik: choose from envoy, nginx, haproxy, sglang-router" in result.output


def test_a_name_for_several_works(stand_in, tmp_path):
    result = CliRunner().invoke(main, command(stand_in, tmp_path / "report", "--quick", "--work", "h2"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    measured = {slot["measure"] for slot in report["slots"]}
    assert "grpc-stream-32" in measured
    assert all(name.startswith("grpc") for name in measured)


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr("loadtest.compare.h2load.binary", lambda: None)
    assert doable(["unary", "grpc"]) == (
        ["unary"], ["h2load is not installed (apt install nghttp2-client): grpc is not measured."],
    )  # fmt: skip


def test_a_router_that_does_not_start_is_reported(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    broken.chmod(0o755)
    result = CliRunner().invoke(main, command(broken, tmp_path / "report", "--work", "sse"))
    assert result.exit_code == 1
    assert "ours ended with code 2: no such option" in result.output


def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("loadtest.processes.STOP_S", 0.2)
    with Fleet() as fleet:
        stubborn = fleet.start(
            "stubborn",
            ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"],
            folder=tmp_path,
            cpus=sorted(os.sched_getaffinity(0)),
        )
        while not stubborn.output.read_text():
            time.sleep(0.01)
    assert stubborn.process.returncode == -signal.SIGKILL


def test_waiting_for_a_process_that_ends_says_why(tmp_path):
    with Fleet() as fleet:
        child = fleet.start(
            "brief", ["sh", "-c", "echo gone; exit 3"], folder=tmp_path, cpus=sorted(os.sched_getaffinity(0))
        )
        child.process.wait(5)
        with pytest.raises(NotReadyError, match="brief ended with code 3: gone"):
            wait_ready(child, Readiness(1, "/"))
