"""A robot and a replica that are each behind a real NAT: served through the router, and directly where that can be."""

import json
import os
import subprocess
import sys
import time

import httpx
import pytest
from certkit import Authority
from childkit import first_line


@pytest.fixture(scope="module")
def world(lab, tmp_path_factory):
    """A router on the public network; for each kind of NAT a replica and a robot behind one of their own."""
    folder = tmp_path_factory.mktemp("tls")
    lab.host("router")
    address = lab.address("router")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", address).write(folder, "local")
    return World(lab, folder, address)


class World:
    def __init__(self, lab, folder, address):
        self.lab, self.folder, self.address = lab, folder, address
        self.replicas, self._robots = {}, {}
        pairs = [word for kind in NATS for word in ("--may-attach", f"{name_of(kind)}=t")]
        (folder / "table.toml").write_text("\n".join(
            f'[[endpoint]]\nname = "{name_of(kind)}"\npath_prefixes = ["/{name_of(kind)}"]\nhealth = {{ kind = "none" }}\n'
            f'[[endpoint.replica]]\naddress = "http://{name_of(kind)}.attached.alt:80"\n' for kind in NATS
        ))  # fmt: skip
        self.router = process = lab.run(
            "router", sys.executable, "-m", "router", "serve", "--json", "--admin", f"unix:{folder}/admin",
            "--config", folder / "table.toml", "--unauthenticated", "--workers", 2,
            "--listen-quic", f"{address}:4433", "--listen-tls", f"{address}:4433",
            "--tls-cert", folder / "local.pem", "--tls-key", folder / "local.key", *pairs,
            stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)},  # killed, it leaves its sockets there
        )  # fmt: skip
        ready(process)

    def lanes(self):
        """Return how many robots' tunnels went by lanes, and how many could not."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=f"{self.folder}/admin")) as client:
            lines = client.get("http://admin/metrics").text.splitlines()
        names = ("router_robot_lanes_opened_total ", "router_robot_lanes_failed_total ")
        return tuple(int(float(line.split()[-1])) for name in names for line in lines if line.startswith(name))

    def replica(self, kind):
        """Start a policy and its sidecar behind such a NAT, once."""
        if kind in self.replicas:
            return
        host = self.lab.host(f"replica{len(self.replicas)}", kind)
        policy = self.lab.run(host, sys.executable, "-m", "inference_backend", "policy", "--port", 8000,
                              stdout=subprocess.PIPE)  # fmt: skip
        ready(policy)
        errors = (self.folder / f"{name_of(kind)}.err").open("w")
        sidecar = self.lab.run(
            host, sys.executable, "-m", "router", "sidecar", "--upstream", "http://127.0.0.1:8000", "--endpoint", "e",
            "--store", "none", "--json", "--attach", f"{self.address}:4433", "--attach-name", name_of(kind),
            "--attach-token", "t", "--attach-ca", self.folder / "ca.pem", "--ready-path", "/healthz",
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        errors.close()
        ready(sidecar)
        until = time.monotonic() + 10
        while "attached to" not in (self.folder / f"{name_of(kind)}.err").read_text():
            assert time.monotonic() < until, (self.folder / f"{name_of(kind)}.err").read_text()
            time.sleep(0.05)
        self.replicas[kind] = host

    def drive(self, kind, replica, *flags, seconds=1.5):
        """Drive that replica from behind such a NAT; return what `router robot drive` says."""
        return self.told(self.start(kind, replica, *flags, seconds=seconds))

    @staticmethod
    def told(process):
        said, errors = process.communicate(timeout=20)
        assert said, errors
        return json.loads(said)

    def start(self, kind, replica, *flags, seconds):
        if kind not in self._robots:
            self._robots[kind] = self.lab.host(f"robot{len(self._robots)}", kind)
        return self.lab.run(
            self._robots[kind], sys.executable, "-m", "router", "robot", "drive", f"quic://{self.address}:4433/{name_of(replica)}", "--json",
            "--ca", self.folder / "ca.pem",
            "--bytes", 2000, "--hz", 20, "--seconds", seconds, *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip


NATS = ("", "masquerade", "random", "static")


def name_of(kind):
    return kind or "public"


def ready(process):
    assert json.loads(first_line(process))["event"] == "ready"


# (robot's NAT, replica's NAT): whether they can meet. Two that filter by port, one of which maps each destination
# anew, cannot: neither can know where the other will be seen.
@pytest.mark.parametrize(
    ("robot", "replica", "is_direct"),
    [
        ("masquerade", "masquerade", True),
        pytest.param("masquerade", "static", True, marks=pytest.mark.slow),
        ("random", "static", True),
        pytest.param("masquerade", "", True, marks=pytest.mark.slow),
        pytest.param("random", "", True, marks=pytest.mark.slow),
        pytest.param("static", "random", True, marks=pytest.mark.slow),
        ("masquerade", "random", False),
        ("random", "masquerade", False),
        pytest.param("random", "random", False, marks=pytest.mark.slow),
    ],
)
def test_they_meet_or_are_relayed(world, robot, replica, is_direct):
    world.replica(replica)
    told = world.drive(robot, replica, "--direct")
    assert told["transport"] == "quic"
    assert told["direct"] is is_direct
    assert told["connections"] == (2 if is_direct else 1)
    assert told["replies"] >= 0.9 * told["sent"] - 2


@pytest.mark.parametrize("replica", ["masquerade", "random", "static"])
def test_the_router_comes_to_the_replica_by_lanes(world, replica):
    """From the socket that the replica attached by, which is all that its NAT lets in."""
    world.replica(replica)
    opened, failed = world.lanes()
    told = world.drive("masquerade", replica, seconds=0.3)
    assert told["transport"] == "quic"
    assert told["replies"] >= 1
    assert world.lanes() == (opened + 1, failed)


def test_where_udp_is_blocked_it_is_a_websocket(world):
    world.replica("masquerade")
    told = world.drive("blocked", "masquerade", "--direct")
    assert (told["transport"], told["direct"]) == ("websocket", False)
    assert told["replies"] >= 0.9 * told["sent"] - 2


@pytest.mark.slow
def test_a_nat_that_forgets_costs_no_attachment(world):
    """From another port from then on: the connection goes on, since its id is known (RFC 9000 §9)."""
    world.replica("random")
    errors = world.folder / "random.err"
    before = errors.read_text().count("attached to")
    world.lab.forget(world.replicas["random"])
    told = world.drive("masquerade", "random", seconds=3.0)  # within it the replica speaks, and is known again
    assert told["replies"] >= 1
    assert errors.read_text().count("attached to") == before


@pytest.mark.slow
def test_the_direct_way_outlives_the_router(world):
    world.replica("masquerade")
    robot = world.start("masquerade", "masquerade", "--direct", seconds=4.0)
    time.sleep(2.0)  # it has met the replica by then, or the last assertion fails
    world.router.kill()
    world.router.wait(10)
    told = World.told(robot)
    assert told["direct"] and told["connections"] == 2
    assert told["replies"] >= 0.9 * told["sent"] - 2
