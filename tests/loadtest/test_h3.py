"""HTTP/3 in the comparison: the generator's client, and a whole run beside Envoy where it is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from certkit import Authority
from click.testing import CliRunner

from loadtest.certificate import openssl
from loadtest.clients import h3
from loadtest.clients.window import Command
from loadtest.compare import main
from loadtest.generator import measure
from loadtest.measures import chosen
from loadtest.peers import Envoy
from loadtest.rounds import order_of


def command(port, **more):
    usual = {"mode": "h3", "connections": 2, "streams": 3, "duration_s": 0.3, "warmup_s": 0.05, "pids": []}
    return Command(port=port, **{**usual, **more})


@pytest.fixture
def router(tmp_path):
    """`router(replica_port)`: the QUIC port of a daemon in front of it."""
    Authority().sign("localhost", "127.0.0.1").write(tmp_path, "local")
    started = []

    def start(replica_port):
        process = subprocess.Popen(
            [
                sys.executable, "-m", "router", "serve", "--json", "--admin", "none", "--workers", "1", "--health", "none",
                "--replica", f"http://127.0.0.1:{replica_port}", "--listen-quic", "127.0.0.1:0",
                "--tls-cert", str(tmp_path / "local.pem"), "--tls-key", str(tmp_path / "local.key"),
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        (url,) = [url for url in json.loads(process.stdout.readline())["listen"] if url.startswith("quic://")]
        return int(url.rpartition(":")[2])

    yield start
    for process in started:
        process.send_signal(2)
        process.wait(10)
        process.stdout.close()


@pytest.fixture
def replica():
    """The port of a replica in a process of its own, which may outlive the router's connections."""
    with subprocess.Popen([sys.executable, "-m", "loadtest.replica"], stdout=subprocess.PIPE) as process:
        yield json.loads(process.stdout.readline())["port"]
        process.terminate()


async def test_requests_are_answered(router, replica):
    result = await measure(command(router(replica)))
    assert result.errors == 0, result.detail
    assert result.units > 20 and result.latency.count == result.units and result.latency.p50_us > 50


async def test_a_rate_is_kept(router, replica):
    result = await measure(command(router(replica), rate_per_s=100.0, duration_s=0.6, connections=2, streams=2))
    assert result.errors == 0, result.detail
    assert 40 <= result.units <= 62, "a closed loop would have hundreds"


async def test_a_refusal_is_an_error(router, unused_tcp_port):
    result = await measure(command(router(unused_tcp_port)))
    assert result.units == 0 and result.errors and "status 50" in result.detail


async def test_nobody_there(monkeypatch, unused_udp_port):
    monkeypatch.setattr(h3, "CONNECT_S", 0.2)
    result = await measure(command(unused_udp_port))
    assert (result.units, result.errors) == (0, 1) and "TimeoutError" in result.detail


def test_there_is_no_direct():
    one, many = chosen(["h3"], quick=True)
    assert (one.key, many.key, many.connections, many.streams) == ("h3-1", "h3-4x8", 4, 8)
    assert order_of(one, "envoy") == ("ours", "envoy")
    (unary, *_) = chosen(["unary"], quick=True)
    assert order_of(unary, "envoy") == ("direct", "ours", "envoy")


@pytest.mark.slow
def test_a_run_beside_envoy(tmp_path):
    if Envoy().binary() is None or openssl() is None:
        pytest.skip("envoy or openssl is not installed")
    arguments = ["--work", "h3", "--peer", "envoy", "--rounds", "1", "--duration-s", "0.2", "--output", str(tmp_path / "report")]
    found = subprocess.run(
        [sys.executable, "-m", "loadtest.compare", *arguments], capture_output=True, text=True, timeout=50, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {(slot["measure"], slot["proxy"]) for slot in report["slots"]} == {
        (measure, proxy) for measure in ("h3-1", "h3-4x8", "h3-rate") for proxy in ("ours", "envoy")
    }
    assert all(slot["result"]["units"] > 10 and slot["main_cpu_ns"] > 0 for slot in report["slots"])
    goals = {(row["goal"]["measure"], row["goal"]["figure"]): row["measured"] for row in report["verdicts"]}
    assert set(goals) == {
        *((measure, figure) for measure in ("h3-1", "h3-4x8") for figure in ("cpu", "p50")), ("h3-rate", "cpu"), ("h3-rate", "p99"),
    }  # fmt: skip
    assert all(measured is not None for measured in goals.values())


def test_without_openssl(monkeypatch):
    monkeypatch.setattr("loadtest.compare.openssl", lambda: None)
    from loadtest.compare import doable

    assert doable(["h3"]) == ([], ["openssl is not installed (apt install openssl): h3 is not measured."])
    assert CliRunner().invoke(main, ["--work", "h4"]).exit_code == 2
