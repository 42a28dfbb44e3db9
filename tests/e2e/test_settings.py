"""Flags, environment, file: what is refused and by which name, and which of them wins."""

from __future__ import annotations

import socket
import subprocess

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

REPLICA = ("--replica", "http://127.0.0.1:9")
ONE = '[[endpoint]]\nname = "one"\nreplica = [{ address = "http://127.0.0.1:9" }]\n'

# What is given, and what the complaint must say.
BAD_FLAGS = [
    ((), "--replica"),
    (("--replica", "127.0.0.1:9"), "address"),
    (("--replica", "gopher://127.0.0.1:9"), "gopher"),
    (("--replica", "http://127.0.0.1"), "port"),
    (("--replica", "http://127.0.0.1:99999"), "port"),
    (("--replica", "http://127.0.0.1:9/path"), "address"),
    ((*REPLICA, *REPLICA), "twice"),
    ((*REPLICA, "--listen", "8080"), "--listen"),
    ((*REPLICA, "--listen", "127.0.0.1:x"), "--listen"),
    ((*REPLICA, "--listen", "127.0.0.1:70000"), "--listen"),
    ((*REPLICA, "--listen", "0.0.0.0:0"), "--auth-token"),
    ((*REPLICA, "--listen", "[::]:0"), "--auth-token"),
    ((*REPLICA, "--admin", "0.0.0.0:0"), "--admin-token"),
    ((*REPLICA, "--admin", "nowhere"), "--admin"),
    ((*REPLICA, "--policy", "fastest"), "--policy"),
    ((*REPLICA, "--workers", "0"), "--workers"),
    ((*REPLICA, "--workers", "two"), "--workers"),
    ((*REPLICA, "--connect-timeout-s", "0"), "--connect-timeout-s"),
    ((*REPLICA, "--idle-timeout-s", "-1"), "--idle-timeout-s"),
    ((*REPLICA, "--access-log-sample", "2"), "--access-log-sample"),
    ((*REPLICA, "--no-such-flag"), "--no-such-flag"),
    ((*REPLICA, "--config", "/nowhere/at/all.toml"), "/nowhere/at/all.toml"),
]
BAD_FILES = [
    ("[[endpoint", "TOML"),
    ("[router]\nno_such_key = 1\n" + ONE, "router.no_such_key"),
    ("[routre]\n", "routre"),
    ('[router]\npolicy = "fastest"\n' + ONE, "policy"),
    ('[router]\nworkers = "many"\n' + ONE, "workers"),
    ("[[endpoint]]\nreplica = []\n", "name"),
    ('[[endpoint]]\nname = "a b"\n', "name"),
    (ONE + ONE, "stands twice"),
    ('[[endpoint]]\nname = "one"\ncolour = "red"\n', "colour"),
    ('[[endpoint]]\nname = "one"\npolicy = "fastest"\n', "endpoint[0].policy"),
    ('[[endpoint]]\nname = "one"\nhosts = ["a b"]\n', "hosts"),
    ('[[endpoint]]\nname = "one"\npath_prefixes = ["v1"]\n', "path_prefixes"),
    ('[[endpoint]]\nname = "one"\nreplica = [{ address = "nonsense" }]\n', "endpoint[0].replica[0].address"),
    ('[[endpoint]]\nname = "one"\nreplica = [{ address = "http://h:1", weight = 0 }]\n', "weight"),
    ('[[endpoint]]\nname = "one"\nreplica = [{ address = "http://h:1", state = "SICK" }]\n', "state"),
    ('[[endpoint]]\nname = "one"\ntimeouts = { connect_s = 0 }\n', "connect_s"),
    ('[[endpoint]]\nname = "one"\ntimeouts = { conect_s = 1 }\n', "conect_s"),
    (ONE + ONE.replace('"one"', '"two"'), "belongs to"),
    ("[router]\n", "--replica"),
]


@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS, ids=[" ".join(row[0]) or "none" for row in BAD_FLAGS])
async def test_bad_flags(run_router, flags, named):
    done = await run_router("serve", "--check", *flags)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize(("text", "named"), BAD_FILES, ids=[row[1] for row in BAD_FILES])
async def test_bad_files(run_router, tmp_path, text, named):
    path = tmp_path / "router.toml"
    path.write_text(text)
    done = await run_router("serve", "--check", "--config", path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


async def test_a_bad_start_is_refused_without_check(run_router):
    """The same words and the same code when it is meant to serve."""
    done = await run_router("serve", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0", *REPLICA)
    assert done.returncode == 2 and "--auth-token" in done.stderr


async def test_replicas_are_named_in_one_place(run_router, tmp_path):
    path = tmp_path / "router.toml"
    path.write_text(ONE)
    done = await run_router("serve", "--check", "--config", path, *REPLICA)
    assert done.returncode == 2 and "--replica" in done.stderr


async def test_check_of_good_settings(run_router, tmp_path):
    path = tmp_path / "router.toml"
    path.write_text('[router]\nworkers = 2\nlisten = ["127.0.0.1:1"]\n' + ONE)
    done = await run_router("serve", "--check", "--config", path)
    assert (done.returncode, done.stdout) == (0, "ok: 1 endpoints, 1 replicas\n")
    done = await run_router("serve", "--check", "--listen", "0.0.0.0:0", "--unauthenticated", *REPLICA)
    assert done.returncode == 0
    done = await run_router("serve", "--check", "--listen", "0.0.0.0:0", "--auth-token", "t", *REPLICA)
    assert done.returncode == 0


async def test_version_and_help(run_router):
    assert (await run_router("--version")).stdout.startswith("router")
    shown = await run_router("serve", "--help")
    assert shown.returncode == 0
    for flag in ("--listen", "--replica", "ROUTER_LISTEN", "ROUTER_DRAIN_DEADLINE_S", "--config"):
        assert flag in shown.stdout


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
async def test_a_port_that_is_taken(run_router, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        addresses = {"--listen": "127.0.0.1:0", "--admin": "127.0.0.1:0"} | {flag: address}
        done = await run_router("serve", *(word for pair in addresses.items() for word in pair), *REPLICA)
    assert done.returncode == 3
    assert f"{flag} {address}" in done.stderr and "in use" in done.stderr
    assert "Traceback" not in done.stderr and "did not end" not in done.stderr


async def test_a_port_that_another_router_has(start_router, run_router):
    """SO_REUSEPORT is for the workers of one daemon; a second daemon would take half of the connections."""
    router = await start_router(*REPLICA)
    address = f"127.0.0.1:{router.port}"
    try:
        done = await run_router("serve", "--listen", address, "--admin", "127.0.0.1:0", *REPLICA, within_s=5)
    except subprocess.TimeoutExpired:
        pytest.fail("the second daemon serves on the same port")
    assert done.returncode == 3 and address in done.stderr


async def test_an_address_of_another_machine(run_router):
    done = await run_router(
        "serve", "--listen", "192.0.2.1:0", "--auth-token", "t", "--admin", "127.0.0.1:0", *REPLICA
    )
    assert done.returncode == 3 and "--listen 192.0.2.1:0" in done.stderr


async def test_flag_over_environment_over_file_over_default(start_router):
    """Each of four settings is given in one place more than the one before."""
    router = await start_router(
        "--keep-alive-s", 41, "--stall-timeout-s", 42,
        toml="[router]\nhead_timeout_s = 21\nidle_timeout_s = 22\nkeep_alive_s = 23\nstall-timeout-s = 24\n" + ONE,
        env={"ROUTER_IDLE_TIMEOUT_S": "32", "ROUTER_STALL_TIMEOUT_S": "34", "ROUTER_MAX_CONNECTIONS": "35"},
    )  # fmt: skip
    settings = (await router.ask("/config_dump")).json()["settings"]
    assert settings["connect_timeout_s"] == 1.0
    assert settings["head_timeout_s"] == 21
    assert settings["idle_timeout_s"] == 32
    assert settings["keep_alive_s"] == 41
    assert settings["stall_timeout_s"] == 42
    assert settings["max_connections"] == 35


async def test_everything_by_environment(start_router, engine, client, policy):
    """Lists are separated by blanks."""
    router = await start_router(
        env={
            "ROUTER_REPLICA": f"{engine.url} {policy.url.replace('ws', 'http', 1)}",
            "ROUTER_POLICY": "round_robin",
            "ROUTER_AUTH_TOKEN": "one two",
            "ROUTER_LISTEN": "127.0.0.1:1",  # the flag wins
        }
    )
    settings = (await router.ask("/config_dump")).json()["settings"]
    assert len(settings["replica"]) == 2 and settings["policy"] == "round_robin"
    assert settings["listen"] == ["127.0.0.1:0"]
    answer = await client.get(f"{router.url}/healthz", headers={"authorization": "Bearer two"})
    assert "x-router-error" not in answer.headers
    assert (await client.get(router.url)).status_code == 401


async def test_listen_by_environment(run_router):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = await run_router("serve", "--admin", "none", *REPLICA, env={"ROUTER_LISTEN": address})
    assert done.returncode == 3 and address in done.stderr


async def test_a_bad_environment_is_named(run_router):
    done = await run_router("serve", "--check", *REPLICA, env={"ROUTER_WORKERS": "many"})
    assert done.returncode == 2 and "ROUTER_WORKERS" in done.stderr.replace("'", "") or "--workers" in done.stderr


async def test_several_listeners_and_ipv6(start_router, engine, client):
    router = await start_router("--listen", "[::1]:0", "--listen", "localhost:0", replicas=[engine.url])
    assert len(router.listen) == 3 and len(set(router.listen)) == 3
    for url in router.listen:
        assert (await client.get(f"{url}/_sim/echo")).status_code == 200


async def test_without_an_admin_listener(start_router, engine, client):
    router = await start_router("--admin", "none", replicas=[engine.url])
    assert router.admin == ""
    assert (await client.get(f"{router.url}/_sim/echo")).status_code == 200


async def test_admin_on_a_unix_socket(start_router, engine, tmp_path):
    import httpx

    path = tmp_path / "admin"
    router = await start_router("--admin", f"unix:{path}", replicas=[engine.url])
    assert router.admin == f"unix:{path}"
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        assert (await admin.get("/readyz")).status_code == 200
    assert path.stat().st_mode & 0o077 == 0
