"""`router nat` behind real NATs says which kind they are; and what the lab of these tests promises is so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from certkit import Authority
from childkit import first_line

sys.path.insert(0, str(Path(__file__).parent))

from lab import KINDS, Lab, spaces_of, sweep

EXPECTED = {"": "none", "masquerade": "same", "random": "another", "static": "same", "blocked": "blocked"}


@pytest.fixture(scope="module")
def servers(lab, tmp_path_factory):
    """Two ports of one daemon on the public network, and a host behind each kind of NAT."""
    folder = tmp_path_factory.mktemp("tls")
    lab.host("router")
    for kind in KINDS:
        lab.host(kind, kind)
    lab.host("public")
    address = lab.address("router")
    Authority().sign("localhost", address).write(folder, "local")
    process = lab.run(
        "router", sys.executable, "-m", "router", "serve", "--json", "--admin", "none", "--replica", "http://127.0.0.1:9",
        "--listen-quic", f"{address}:4433", "--listen-quic", f"{address}:4434", "--workers", 1, "--auth-token", "secret",
        "--tls-cert", folder / "local.pem", "--tls-key", folder / "local.key", "--health", "none",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert json.loads(first_line(process))["event"] == "ready"
    return f"{address}:4433", f"{address}:4434"


def nat(lab, host, servers, *more):
    found = lab.call(host, sys.executable, "-m", "router", "nat", *servers, "--json", "--timeout", 0.8, *more)
    assert found.stdout, found.stderr
    return json.loads(found.stdout), found.returncode


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_what_it_says(lab, servers, kind):
    host = kind or "public"
    told, code = nat(lab, host, servers)
    assert told["kind"] == EXPECTED[kind], told
    assert code == (1 if kind == "blocked" else 0)
    for row in told["servers"]:
        assert row["local"].rpartition(":")[0] == lab.address(host)
        if kind == "blocked":
            assert row["mapped"] is None
        else:
            assert row["mapped"].rpartition(":")[0] == lab.public(host)
    if kind == "masquerade":
        assert told["servers"][0]["mapped"].rpartition(":")[2] == told["servers"][0]["local"].rpartition(":")[2]


def test_one_server_does_not_tell(lab, servers):
    assert nat(lab, "random", servers[:1])[0]["kind"] == "unknown"


def test_a_nat_that_forgets(lab, servers):
    """One that chooses ports at random gives another one then."""
    lab.set_timeouts("random", 60)

    def ask():
        return nat(lab, "random", servers[:1], "--port", 5_555)[0]["servers"][0]["mapped"]

    first = ask()
    assert ask() == first
    lab.forget("random")
    assert ask() != first


def test_a_nat_with_another_address(lab, servers):
    before = lab.public("masquerade")
    lab.renumber("masquerade")
    told, _ = nat(lab, "masquerade", servers)
    assert told["kind"] == "same" and lab.public("masquerade") != before
    assert told["servers"][0]["mapped"].rpartition(":")[0] == lab.public("masquerade")


LISTEN = "import socket; s = socket.socket(2, 2); s.bind(('0.0.0.0', 7777)); s.settimeout(5); "
SEND = "import socket, sys; s = socket.socket(2, 2); s.bind(('0.0.0.0', 7777)); s.sendto(b'hello', (sys.argv[1], 7777))"


@pytest.mark.parametrize("kind", ["static", "masquerade", "random", "blocked"])
def test_who_is_reached_unasked(lab, servers, kind):
    hears = lab.run(
        kind, sys.executable, "-c", LISTEN + "print('ready', flush=True); print(s.recvfrom(99), flush=True)",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert hears.stdout.readline() == "ready\n"
    assert lab.call("public", sys.executable, "-c", SEND, lab.public(kind)).returncode == 0
    heard = first_line(hears, 5 if kind == "static" else 0.3)
    hears.kill()
    assert "hello" in heard if kind == "static" else not heard


def test_two_behind_masquerade_reach_each_other_when_both_send(lab, servers):
    """What hole punching rests on: each one's first datagram opens its own NAT."""
    lab.host("second", "masquerade")
    code = LISTEN + (
        "import sys\n"
        "s.settimeout(0.1)\n"
        "for _ in range(40):\n"
        "    s.sendto(b'hello', (sys.argv[1], 7777))\n"
        "    try: print(s.recvfrom(99)[1][0], flush=True); s.sendto(b'hello', (sys.argv[1], 7777)); break\n"
        "    except TimeoutError: pass\n"
    )
    pair = [
        lab.run(host, sys.executable, "-c", code, lab.public(other), stdout=subprocess.PIPE, text=True)
        for host, other in (("masquerade", "second"), ("second", "masquerade"))
    ]
    told = [process.communicate(timeout=8)[0].strip() for process in pair]
    assert told == [lab.public("second"), lab.public("masquerade")]


def test_nothing_is_left_behind():
    with Lab() as other:
        other.host("one", "masquerade")
        process = other.run("one", "sleep", "60")
        mine = [space for space in spaces_of(os.getpid()) if "one" in space]
        assert len(mine) == 2
    assert process.returncode is not None
    assert not [space for space in spaces_of(os.getpid()) if space in mine]


def test_what_a_killed_run_left_is_removed_by_the_next():
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from lab import Lab\n"
        "lab = Lab().__enter__(); lab.host('one', 'random'); print(lab.run('one', 'sleep', '60').pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    sleeper = int(dead.stdout.readline())
    assert dead.wait(10) == -signal.SIGKILL
    dead.stdout.close()
    assert len(spaces_of(dead.pid)) == 3
    swept = sweep()
    assert len([space for space in swept if f"-{dead.pid}-" in space]) == 3 and not spaces_of(dead.pid)
    ends = time.monotonic() + 5
    while Path(f"/proc/{sleeper}/stat").exists() and Path(f"/proc/{sleeper}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_living_runs_are_left_alone(lab):
    before = spaces_of(os.getpid())
    sweep()
    assert spaces_of(os.getpid()) == before


def test_hosts_have_a_loopback(lab, servers):
    code = "import socket; s = socket.socket(2, 2); s.bind(('127.0.0.1', 0)); s.sendto(b'x', s.getsockname()); print(s.recv(9))"
    assert lab.call("random", sys.executable, "-c", code).stdout == "b'x'\n"
