"""`router endpoint|replica|route|token|region|store`: answers, errors in words, exit codes."""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli import main
from router.config.embedded.hooks import Cut, TestHooks
from router.config.embedded.server import StoreServer
from router.config.schema import CLIENT_VERSION
from router.config.setup import initialise
from router.config.target import Target


class Background:
    """A store on a loop of its own: commands run a loop themselves."""

    def __init__(self, folder, *, init=True):
        self.folder = folder
        self.path = f"{folder}/s.sock"
        self.hooks = TestHooks()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = StoreServer(folder / "data", f"unix:{self.path}", hooks=self.hooks)
        self.run(self._server.start())
        if init:
            initialise(Target("embedded", f"unix:{self.path}"))

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def stop(self):
        self.run(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="r") as name:
        yield Path(name)


@pytest.fixture
def store(folder):
    found = Background(folder)
    yield found
    found.stop()


def call(path, *arguments):
    """Run a command in this process; its result."""
    words = list(map(str, arguments))
    return CliRunner().invoke(main, [*words, "--store", f"embedded:{path}"], catch_exceptions=False)


@pytest.fixture
def ask(store):
    """`ask(*arguments)`: the JSON answer of a command that must succeed."""

    def run(*arguments):
        done = call(store.path, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


@pytest.fixture
def fail(store):
    """`fail(*arguments)`: the error of a command that must fail with exit code 1."""

    def run(*arguments, code=1):
        done = call(store.path, *arguments)
        assert done.exit_code == code, (done.exit_code, done.output)
        assert "Traceback" not in done.output
        assert done.stdout == ""
        return done.stderr

    return run


def test_endpoints(ask, fail):
    made = ask("endpoint", "create", "e", "--policy", '{"retries": 1}', "--host", "a.x", "--host", "b.x", "--prefix", "/v1")
    assert made == {"endpoint": "e", "environment": "main", "policy": {"retries": 1}, "health": {}, "state": "ACTIVE"}
    assert ask("endpoint", "update", "e", "--state", "PAUSED")["state"] == "PAUSED"
    assert ask("endpoint", "update", "e", "--state", "ACTIVE")["policy"] == {"retries": 1}
    (listed,) = ask("endpoint", "list")
    assert listed == ask("endpoint", "show", "e")
    assert (listed["replicas"], listed["ready"]) == (0, 0)
    assert fail("endpoint", "create", "e") == "Error: endpoint 'e' is there already: use `router endpoint update`\n"
    assert fail("endpoint", "update", "f") == "Error: endpoint 'f' is not there\n"
    assert fail("endpoint", "show", "f") == "Error: endpoint 'f' is not there\n"
    assert "Policy.policy" in fail("endpoint", "update", "e", "--policy", '{"policy": "best"}')
    assert "EndpointId" in fail("endpoint", "create", "a b")
    assert "--host" in fail("endpoint", "create", "g", "--host", "a b")
    assert "--state" in fail("endpoint", "update", "e", "--state", "GONE", code=2)
    assert ask("endpoint", "delete", "e") == {"deleted": "e"}
    assert ask("endpoint", "list") == []
    assert ask("route", "list") == []


def test_endpoints_are_paused_and_resumed(ask, fail):
    made = ask("endpoint", "create", "e", "--policy", '{"retries": 1}')
    assert ask("endpoint", "pause", "e") == made | {"state": "PAUSED"}
    assert ask("endpoint", "resume", "e") == made
    assert fail("endpoint", "pause", "f") == "Error: endpoint 'f' is not there\n"


def test_replicas_are_drained_and_put_back(ask, fail):
    ask("endpoint", "create", "e")
    made = ask("replica", "create", "e", "r", "--address", "10.0.0.1", "--port", 30_000, "--weight", 2)
    assert ask("replica", "drain", "e", "r") == made | {"state": "DRAINING"}
    assert ask("replica", "undrain", "e", "r") == made
    assert "'e/x' is not there" in fail("replica", "drain", "e", "x")


def test_regions_are_drained_and_put_back(ask, fail):
    made = ask("region", "create", "eu", "--weight", 2, "--failover", "us")
    assert ask("region", "drain", "eu") == made | {"state": "DRAINING"}
    assert ask("region", "undrain", "eu") == made
    assert "'x' is not there" in fail("region", "drain", "x")


def test_waiting_for_a_replica_to_be_idle_names_who_does_not_answer(store, ask):
    ask("endpoint", "create", "e")
    ask("replica", "create", "e", "r", "--address", "10.0.0.1", "--port", 30_000)
    done = call(store.path, "replica", "drain", "e", "r", "--wait", "--wait-s", 0, "--admin", f"unix:{store.folder}/none")
    assert done.exit_code == 1 and "not idle after 0 s: unix:" in done.stderr
    done = call(store.path, "replica", "drain", "e", "r", "--wait", "--admin", "nonsense")
    assert done.exit_code == 2 and "--admin" in done.stderr


def test_replicas(ask, fail):
    assert "router endpoint create e" in fail("replica", "create", "e", "r", "--address", "h", "--port", 1)
    ask("endpoint", "create", "e")
    made = ask("replica", "create", "e", "r", "--address", "10.0.0.1", "--port", 30_000, "--weight", 2, "--zone", "z")
    assert (made["address"], made["port"], made["weight"], made["state"], made["generation"]) == ("10.0.0.1", 30_000, 2.0, "READY", 1)
    assert ask("replica", "update", "e", "r", "--state", "DRAINING") == made | {"state": "DRAINING"}
    assert ask("replica", "list") == ask("replica", "list", "e") == [ask("replica", "show", "e", "r")]
    assert ask("replica", "list", "other") == []
    assert "'e/r' is there already" in fail("replica", "create", "e", "r", "--address", "h", "--port", 1)
    assert "'e/x' is not there" in fail("replica", "show", "e", "x")
    assert "'e/x' is not there" in fail("replica", "delete", "e", "x")
    assert "Address" in fail("replica", "update", "e", "r", "--address", "a b")
    assert "Capabilities" in fail("replica", "update", "e", "r", "--capabilities", "{")
    for flags in (("--port", 0), ("--port", 70_000), ("--weight", 0), ("--state", "UP")):
        assert flags[0] in fail("replica", "update", "e", "r", *flags, code=2)
    assert "Weight" in fail("replica", "update", "e", "r", "--weight", "nan")
    assert "--address and --port" in fail("replica", "create", "e", "x", code=2)
    assert ask("replica", "delete", "e", "r") == {"deleted": "e/r"}


def test_a_replica_registered_as_a_sidecar_would(ask, fail):
    ask("endpoint", "create", "e")
    place = ("--address", "10.0.0.1", "--port", 1, "--node", "n")
    assert ask("replica", "register", "e", "r", *place)["generation"] == 1
    found = ask("replica", "register", "e", "r", *place, "--state", "DOWN")
    assert (found["generation"], found["state"], found["node"]) == (2, "DOWN", "n")
    assert ask("replica", "register", "e", "r", *place, "--generation", 7)["generation"] == 7
    assert "generation 7" in fail("replica", "register", "e", "r", *place, "--generation", 6)
    assert "--node" in fail("replica", "register", "e", "r", "--address", "h", "--port", 1, code=2)


def test_routes(ask, fail):
    ask("endpoint", "create", "e")
    ask("endpoint", "create", "f")
    made = ask("route", "create", "H.example", "e", "--prefix", "/v1", "--priority", 3)
    assert made == {"host": "h.example", "route": "/v1", "path_prefix": "/v1", "endpoint": "e", "priority": 3}
    assert ask("route", "update", "h.example", "f", "--prefix", "/v1")["endpoint"] == "f"
    assert ask("route", "list", "h.example") == [made | {"endpoint": "f", "priority": 0}]
    assert ask("route", "list", "other") == []
    assert "is there already" in fail("route", "create", "h.example", "e", "--prefix", "/v1")
    assert "'h.example /' is not there" in fail("route", "delete", "h.example")
    assert "'nobody' is not there" in fail("route", "create", "*", "nobody")
    assert "HOST" in fail("route", "create", "a b", "e")
    assert "path_prefix" in fail("route", "create", "*", "e", "--prefix", "v1")
    fail("route", "create", "*", "e", "--priority", 2**64)
    assert ask("route", "delete", "h.example", "--prefix", "/v1") == {"deleted": "h.example /v1"}


def test_tokens_are_shown_once(ask, fail, store, folder):
    made = ask("token", "create", "alice", "--scope", "endpoint:chat", "--not-after", "2031-01-31T00:00:00Z")
    listed = ask("token", "list")
    shown = ask("token", "show", made["key"])
    assert listed == [shown]
    assert shown["subject"] == "alice"
    assert shown["scopes"] == ["endpoint:chat"]
    assert "secret" not in shown
    for text in (json.dumps(listed), call(store.path, "token", "list").output, call(store.path, "token", "show", made["key"]).output):
        assert made["secret"] not in text
        assert made["secret"][3:] not in text
    assert made["secret"] not in json.dumps(ask("store", "status"))
    data = b"".join(file.read_bytes() for file in (folder / "data").rglob("*") if file.is_file())
    assert b"alice" in data
    assert made["secret"][3:].encode() not in data
    assert ask("token", "revoke", made["key"]) == {"revoked": made["key"]}
    assert ask("token", "list")[0]["revoked_at"]
    assert ask("token", "delete", made["key"]) == {"deleted": made["key"]}
    assert "is not there" in fail("token", "revoke", made["key"])
    assert "is not there" in fail("token", "show", made["key"])
    assert "--not-after" in fail("token", "create", "bob", "--not-after", "tomorrow")


def test_regions(ask, fail):
    made = ask("region", "create", "eu", "--failover", "us", "--failover", "ap", "--weight", 2)
    assert made == {"region": "eu", "state": "READY", "weight": 2.0, "failover": ["us", "ap"]}
    assert ask("region", "update", "eu", "--state", "DRAINING")["failover"] == ["us", "ap"]
    assert ask("region", "list") == [ask("region", "show", "eu")]
    assert "REGION" in fail("region", "create", "a b")
    assert ask("region", "delete", "eu") == {"deleted": "eu"}
    assert "'eu' is not there" in fail("region", "delete", "eu")


def test_a_regions_weight_is_a_number(store, ask):
    ask("region", "create", "eu")
    done = call(store.path, "region", "update", "eu", "--weight", "nan")
    assert done.exit_code in (1, 2), done.output
    assert ask("region", "list")[0]["weight"] == 1.0


def test_for_people(store, ask):
    assert call(store.path, "endpoint", "list").output == "none\n"
    ask("endpoint", "create", "llama", "--host", "*")
    ask("replica", "create", "llama", "r-with-a-very-long-name-" + "x" * 80, "--address", "10.0.0.1", "--port", 30_000)
    table = call(store.path, "replica", "list").output
    assert "r-with-a-very-long-name-" + "x" * 80 in table  # not cut at the width of a pipe
    assert table.splitlines()[0].split()[:2] == ["endpoint", "replica"]
    assert "llama" in call(store.path, "endpoint", "show", "llama").output
    assert call(store.path, "replica", "delete", "llama", "r-with-a-very-long-name-" + "x" * 80).output.endswith("is deleted\n")
    assert call(store.path, "endpoint", "delete", "llama").output == "endpoint llama is deleted\n"


@pytest.mark.parametrize("command", [("endpoint", "list"), ("route", "list"), ("token", "create", "a"), ("store", "status")])
def test_a_store_that_is_not_there(folder, command):
    done = call(folder / "nobody", *command)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "does not answer" in done.stderr
    assert "router store" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", [("endpoint", "list"), ("endpoint", "create", "e"), ("store", "status")])
def test_a_store_without_a_schema(folder, command):
    bare = Background(folder, init=False)
    try:
        done = call(bare.path, *command)
        assert done.exit_code == 1, done.output
        assert "router store init" in done.stderr
    finally:
        bare.stop()


@pytest.mark.parametrize("setting", ["nonsense", "emulator://", "spanner"])
def test_a_store_that_is_none(setting):
    done = CliRunner().invoke(main, ["endpoint", "list", "--store", setting])
    assert done.exit_code == 2
    assert "--store" in done.stderr
    assert "://HOST:PORT" in done.stderr


def test_the_setting_may_come_from_the_environment(store, monkeypatch):
    monkeypatch.setenv("ROUTER_STORE", f"embedded:{store.path}")
    done = CliRunner().invoke(main, ["endpoint", "list", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])


def test_an_error_of_the_store_is_one_line(store, fail):
    store.hooks.cuts.append(Cut("Commit", code="INTERNAL"))
    text = fail("endpoint", "create", "e")
    assert text.count("\n") == 1
    assert "cut by a test" in text
    store.hooks.cuts.clear()


def test_init_and_status(folder):
    bare = Background(folder, init=False)
    try:
        done = call(bare.path, "store", "init", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["schema"] == CLIENT_VERSION
        assert f"migrating to schema {CLIENT_VERSION}" in done.stderr
        again = call(bare.path, "store", "init")
        assert again.exit_code == 0
        assert f"is at schema {CLIENT_VERSION}" in again.stdout
        assert again.stderr == ""
        assert call(bare.path, "endpoint", "create", "e", "--json").exit_code == 0
        status = json.loads(call(bare.path, "store", "status", "--json").stdout)
    finally:
        bare.stop()
    assert (status["schema"], status["partitions"], status["nodes"], status["reaper"]) == (CLIENT_VERSION, 1, 0, None)
    assert status["autoscaler"] is None
    assert status["rows"]["Endpoints"] == 1
    assert 0 <= status["staleness_s"] < 5
    assert len(status["identity"]) == 32


def test_init_of_a_store_that_is_not_there(folder, monkeypatch):
    from router.config import setup

    monkeypatch.setattr(setup.reach, "__defaults__", (0.3,))
    done = call(folder / "nobody", "store", "init")
    assert done.exit_code == 1
    assert "start it with `router store`" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--listen", "nonsense"), ("--listen", "unix:" + "x" * 200), ("--retention", "7"), ("--max-readers", "0"), ("--follow", "nonsense")],
)  # fmt: skip
def test_arguments_of_the_store_that_cannot_be_used(folder, arguments):
    done = CliRunner().invoke(main, ["store", "--data", str(folder), *arguments])
    assert done.exit_code == 2, done.output
    assert arguments[0] in done.stderr


def test_a_second_store_on_the_same_data(store, folder):
    done = subprocess.run(
        [sys.executable, "-m", "router", "store", "--data", str(folder / "data"), "--listen", f"unix:{folder}/other.sock"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 3
    assert "in use by the process" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_grpc():
    code = "import sys; from router.cli import main\ntry: main(['endpoint', '--help'])\nexcept SystemExit: assert 'grpc' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Named pools" in done.stdout
