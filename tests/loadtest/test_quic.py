"""The QUIC bench: its network, its figures, its servers and, shortened, its works."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop
from certkit import Authority

from loadtest.certificate import openssl
from loadtest.quic import echo, listener, portal, robots
from loadtest.quic.figures import Figure, Samples, failures, over_rounds
from loadtest.quic.policy import reply_to
from loadtest.quic.relay import Relay

CHECKOUT = Path(__file__).parents[2]


class Answering(asyncio.DatagramProtocol):
    """Sends back what it gets, and keeps from where."""

    def connection_made(self, transport):
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]
        self.got = []

    def datagram_received(self, data, address):
        self.got.append((data, address[1]))
        self.transport.sendto(data, address)


@pytest.fixture
async def server():
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(Answering, local_addr=("127.0.0.1", 0))
    yield made
    transport.close()


async def talk(relay, count):
    """Send so many datagrams at once; return those that came back within a while, with times."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        began = loop.time()
        for number in range(count):
            sock.sendto(b"%d" % number, ("127.0.0.1", relay.port))
        found = []
        try:
            async with asyncio.timeout(0.3):
                while len(found) < count:
                    found.append((int(await loop.sock_recv(sock, 100)), loop.time() - began))
        except TimeoutError:
            pass
        return found


class TestRelay:
    async def test_delays_and_keeps_the_order(self, server):
        async with Relay(server.port, rtt_s=0.04, jitter_s=0.02) as relay:
            found = await talk(relay, 50)
        assert [number for number, _ in found] == list(range(50))
        assert all(0.039 <= after < 0.2 for _, after in found)

    async def test_loses(self, server):
        async with Relay(server.port, rtt_s=0.002, loss=0.2, seed=7) as relay:
            found = await talk(relay, 200)
        assert 100 < len(found) < 160 and 140 < len(server.got) < 180
        assert [number for number, _ in found] == sorted(number for number, _ in found)

    async def test_forgets(self, server):
        async with Relay(server.port, rtt_s=0.002) as relay:
            await talk(relay, 2)
            await relay.forget()
            assert len(await talk(relay, 2)) == 2
        ports = [port for _, port in server.got]
        assert ports[0] == ports[1] != ports[2] == ports[3]

    async def test_what_comes_to_the_old_port_is_lost(self, server):
        loop = asyncio.get_running_loop()
        async with Relay(server.port, rtt_s=0.002) as relay:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                sock.setblocking(False)
                sock.sendto(b"one", ("127.0.0.1", relay.port))
                assert await loop.sock_recv(sock, 100) == b"one"
                await relay.forget()
                server.transport.sendto(b"late", ("127.0.0.1", server.got[0][1]))
                sock.sendto(b"two", ("127.0.0.1", relay.port))
                assert await loop.sock_recv(sock, 100) == b"two"


def test_figures():
    figure = over_rounds("w", "n", [3.0, 1.0, 2.0], "x", 2.5)
    assert (figure.value, figure.low, figure.high, figure.holds) == (2.0, 1.0, 3.0, True)
    assert figure.cells() == ["w", "n", "2 x", "1-3", "<= 2.5", "yes"]
    assert Figure(work="w", name="n", value=3.14159, unit="ms", at_most=3).cells() == ["w", "n", "3.14 ms", "", "<= 3", "no"]
    assert over_rounds("w", "n", [1234.5], "us").cells() == ["w", "n", "1,234 us", "", "", ""]
    window = Samples(seconds=[0.001, 0.002, 0.003], cpu_ns=6_000, errors=1)
    assert (window.p(0.5), window.cpu_us()) == (2.0, 2.0)
    assert (failures("w", [window, window]).value, failures("w", [window]).holds) == (2, False)


def test_replies():
    assert reply_to(bytes(16) + bytes(600_000), 7) == bytes(16) + (7).to_bytes(8, "big") + bytes(4_976)
    assert len(reply_to(bytes(4_096), 7)) == 200
    assert len(reply_to(bytes(100), 7)) == 100


def test_ages():
    """Sent each 10 ms, there 5 ms later, but one of them 100 ms later."""
    robot = robots.Robot(1, "state", "state")
    robot.began_s, robot.ended_s = 10.0, 12.0
    robot.sent = 201
    for number in range(200):
        sent = 10.0 + number * 0.01
        there = sent + (0.1 if number == 50 else 0.005)
        robot.answers.append((number, sent, there, there + 0.005))
    assert robots.on_arrival(robot)[-1] == pytest.approx(0.1)
    assert 0.019 < robots.known(robot)[-1] < 0.026, "a newer one came meanwhile: that is what is known"
    assert robot.unanswered() == 1 and max(robot.round_trips()) == pytest.approx(0.105)


class TestListener:
    def test_our_echo_answers_the_stock_client(self, tmp_path):
        import threading

        Authority().sign("localhost", "127.0.0.1").write(tmp_path, "local")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        loop = uvloop.new_event_loop()

        async def listen():
            return echo.listen(sock, str(tmp_path / "local.pem"), str(tmp_path / "local.key"))

        host = loop.run_until_complete(listen())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            client = portal.connect(sock.getsockname()[1])
            for size in (0, 1, 200, 10_000, 70_000, 600_000):
                message = bytes([size % 251]) * size
                client.send(message)
                assert client.recv(timeout_ms=5_000) == (message if size <= 10_000 else bytes(5_000)), size
            for number in range(30):
                client.send(b"%d" % number)
            assert [client.recv(timeout_ms=5_000) for _ in range(30)] == [b"%d" % number for number in range(30)]
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            for peer in host.by_id.values():
                peer.close()
            host.sock.close()
            loop.close()

    @pytest.mark.slow
    def test_a_copy_is_compiled_once(self, tmp_path):
        made = listener.build(CHECKOUT, tmp_path / "copies")
        stamp = (made / "router" / "compiled.json").stat().st_mtime_ns
        assert listener.build(CHECKOUT, tmp_path / "copies") == made
        assert (made / "router" / "compiled.json").stat().st_mtime_ns == stamp

    def test_what_cannot_be_compiled_says_why(self, tmp_path, monkeypatch):
        monkeypatch.setattr(listener.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no compiler"))
        with pytest.raises(listener.NotBuiltError, match="no compiler"):
            listener.build(CHECKOUT, tmp_path / "copies")
        (copy,) = (tmp_path / "copies").iterdir()
        assert '"bench_echo"' in (copy / "router" / "compiled.py").read_text()
        assert '"exchange"' not in (copy / "router" / "compiled.py").read_text()

    def test_figures_are_of_pairs(self):
        """Two rounds, the second on a machine half as fast: the ratio stays."""

        def server(factor):
            made = listener._Server(None, 1)
            for slow in (1, 2):
                for size in made.windows:
                    made.windows[size].append(Samples(seconds=[0.001 * factor * slow] * 3, cpu_ns=int(3_000 * factor * slow)))
            return made

        found = {figure.name: figure for figure in listener._figures({"ours": server(1.2), "quic-portal": server(1.0)})}
        assert found["200 B echo: p50, ours over quic-portal"].value == pytest.approx(1.2)
        assert found["200 B echo: p50, ours over quic-portal"].holds is False
        assert found["600 KB up, 5 KB down: p50, ours over quic-portal"].holds is True
        assert found["600 KB up, 5 KB down: CPU, ours over quic-portal"].high == pytest.approx(1.2)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["portal", "move"])
def test_the_command(work, tmp_path):
    if openssl() is None:
        pytest.skip("openssl is not installed")
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "loadtest.quic", "--quick", "--rounds", "1", "--work", work, "--output", str(tmp_path / "figures.json")],
        capture_output=True, text=True, timeout=50, check=False, cwd=CHECKOUT,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "figures.json").read_text())}
    if work == "portal":
        assert 0.5 < figures["600 KB up, 5 KB down: p50"]["value"] < 100
        assert figures["without an answer"]["value"] == 0
    else:
        assert figures["commands lost, or out of order"]["value"] == 0
        assert 49 < figures["command to answer: p50"]["value"] < 200
    assert time.monotonic() - began < 40


@pytest.mark.slow
@pytest.mark.parametrize("work", ["fleet", "newest"])
def test_the_longer_works(work, tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "loadtest.quic", "--quick", "--work", work, "--output", str(tmp_path / "figures.json")],
        capture_output=True, text=True, timeout=50, check=False, cwd=CHECKOUT,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    figures = {figure["name"]: figure["value"] for figure in json.loads((tmp_path / "figures.json").read_text())}
    if work == "fleet":
        assert figures["observations of 20 robots"] == 600
    else:
        assert figures["age on arrival: over the ordered"] < 1


def test_unknown_works_are_refused():
    found = subprocess.run([sys.executable, "-m", "loadtest.quic", "--work", "tcp"], capture_output=True, text=True, timeout=30, check=False, cwd=CHECKOUT)
    assert found.returncode == 2 and "listener, portal, fleet, newest, move" in found.stderr
