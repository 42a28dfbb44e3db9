"""A daemon is replaced by another while it is under load: nobody notices, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from certkit import Authority

from inference_backend.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

import loadkit  # noqa: E402
from loadkit import Load, lineage  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(150)]

FLAGS = ("--drain-settle-s", 0, "--drain-deadline-s", 30)


def connector(router):
    async def connect():
        return await asyncio.open_connection("127.0.0.1", router.port)

    return connect


def table(http, robot, grpc):
    return (
        f'[[endpoint]]\nname = "http"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{http}" }}]\n'
        f'[[endpoint]]\nname = "robot"\nhosts = ["robot.test"]\nreplica = [{{ address = "{robot}" }}]\n'
        f'[[endpoint]]\nname = "grpc"\npath_prefixes = ["/kit.Kit"]\nreplica = [{{ address = "{grpc}" }}]\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_three_in_a_row_under_load_fail_nothing(
    start_router, start_server, start_grpc, policy, until, gone, workers
):
    toml = table(
        await start_server(loadkit.replica), policy.url.replace("ws", "http", 1), (await start_grpc()).url
    )
    router = await start_router(*FLAGS, toml=toml, workers=workers)
    load = Load(connector(router))
    descriptors = psutil.Process(router.pid).num_fds()
    async with lineage(router, until, gone) as line:
        load.start(loadkit.kept, 40, 0.1)  # 400 requests/s
        load.start(loadkit.fresh, 4, 0.02)
        load.start(loadkit.calls, 5, router.port, 0.1)  # 50 calls/s
        load.start(loadkit.events, 100)
        load.start(loadkit.talk, 100, router.port)
        await asyncio.sleep(2)
        for generation in (2, 3, 4):
            info = await line.upgrade()
            assert info["generation"] == generation and info["last_upgrade"]["ok"]
            assert len(info["workers"]) == workers
            await asyncio.sleep(1.5)
        await load.stop()
        assert not load.failures, load.failures[:5]
        assert len(load.workers) == 4 * workers, "each generation served"
        assert load.done["events"] >= 200 and load.done["talk"] >= 200 and load.done["request"] >= 1500
        assert load.done["fresh"] >= 400 and load.done["call"] >= 200, load.done
        await line.settled()
        assert await router.wait() == 0
        assert not [process for process in line.workers() if process.ppid() != line.pid]
        assert len(line.workers()) == workers
        # One more where a connection of the test's own to the admin listener is still open.
        await until(lambda: psutil.Process(line.pid).num_fds() <= descriptors + 1)
    assert "Traceback" not in router.stderr()


@pytest.mark.slow
async def test_connections_in_a_tight_loop_are_never_refused(start_router, start_server, until, gone):
    router = await start_router(
        *FLAGS, "--health", "none", replicas=[await start_server(loadkit.replica)], workers=2
    )
    load = Load(connector(router))
    async with lineage(router, until, gone) as line:
        load.start(loadkit.fresh, 8)
        for _ in range(3):
            await line.upgrade()
        await load.stop()
        assert not load.failures, load.failures[:5]
        assert load.done["fresh"] > 100
        await line.settled()


@pytest.mark.slow
async def test_more_and_fewer_workers_and_another_address(start_router, start_server, tmp_path, until, gone):
    """What the file says is read anew: the sockets that stay are the same ones, however many accept on them."""
    replica = await start_server(loadkit.replica)
    path, spare = tmp_path / "router.toml", tmp_path / "spare.sock"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{replica}" }}]\n'

    def write(workers, *more):
        listen = ", ".join(f'"{address}"' for address in ("127.0.0.1:0", *more))
        path.write_text(f"[router]\nworkers = {workers}\nlisten = [{listen}]\n{endpoint}")

    write(1, f"unix:{spare}")
    router = await start_router("--config", path, *FLAGS, plain=True)
    load = Load(connector(router))
    async with lineage(router, until, gone) as line:
        load.start(loadkit.fresh, 4)
        load.start(loadkit.kept, 10, 0.05)
        port = router.port
        for workers, more in ((3, (f"unix:{spare}",)), (2, ()), (1, ()), (2, ())):
            write(workers, *more)
            info = await line.upgrade()
            assert len(info["workers"]) == workers
            await asyncio.sleep(0.5)
        await load.stop()
        assert not load.failures, load.failures[:5]
        await line.settled()
        assert not spare.exists(), "an address that went"
        held = [c for c in psutil.Process(line.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert len([c for c in held if c.laddr.port == port]) == 3, "no socket that listened was closed"


async def test_tls_unix_and_admin_sockets(start_router, start_server, tmp_path, until, gone):
    authority = Authority()
    authority.sign("localhost", "127.0.0.1").write(tmp_path, "local")
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    sock, pid_file = tmp_path / "data.sock", tmp_path / "pid"
    router = await start_router(
        *FLAGS, "--health", "none", "--listen", f"unix:{sock}", "--listen-tls", "127.0.0.1:0",
        "--tls-cert", tmp_path / "local.pem", "--tls-key", tmp_path / "local.key", "--pid-file", pid_file,
        replicas=[await start_server(loadkit.replica)], workers=2,
    )  # fmt: skip
    tls_port = httpx.URL(next(url for url in router.listen if url.startswith("https"))).port
    over_tls = Load(lambda: asyncio.open_connection("127.0.0.1", tls_port, ssl=context, server_hostname="localhost"))
    over_unix = Load(lambda: asyncio.open_unix_connection(sock))
    inode = sock.stat().st_ino
    async with lineage(router, until, gone) as line:
        for load in (over_tls, over_unix):
            load.start(loadkit.kept, 4, 0.02)
            load.start(loadkit.fresh, 2)
        for _ in range(2):
            await line.upgrade()
            await until(lambda: int(pid_file.read_text()) == line.pid)
            assert (await router.ask("/livez")).status_code == 200
        for load in (over_tls, over_unix):
            await load.stop()
            assert not load.failures, load.failures[:5]
            assert len(load.workers) >= 4
        await line.settled()
        assert sock.stat().st_ino == inode, "the file outlives those who made it"
        os.kill(line.pid, signal.SIGTERM)
        await until(lambda: gone(line.pid))
        assert not sock.exists() and not pid_file.exists()


@pytest.mark.slow
async def test_systemd_is_told_which_process_is_the_main_one(start_router, start_server, tmp_path, until, gone):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        router = await start_router(
            "--health", "none", *FLAGS, replicas=[await start_server(loadkit.replica)],
            env={"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )  # fmt: skip
        assert systemd.recv(100) == b"READY=1"
        async with lineage(router, until, gone) as line:
            await line.upgrade()
            told = {await asyncio.to_thread(systemd.recv, 100) for _ in range(2)}
            assert told == {b"MAINPID=%d" % line.pid, b"READY=1"}
            await line.settled()
            os.kill(line.pid, signal.SIGTERM)
            assert await asyncio.to_thread(systemd.recv, 100) == b"STOPPING=1"
            await until(lambda: gone(line.pid))


@pytest.mark.slow
async def test_sigquit_to_every_process_upgrades_all_the_same(start_router, start_server, until, gone):
    """As a terminal or a service manager sends it: the workers leave it to the supervisor."""
    router = await start_router("--health", "none", *FLAGS, replicas=[await start_server(loadkit.replica)], workers=2)
    load = Load(connector(router))
    async with lineage(router, until, gone) as line:
        load.start(loadkit.kept, 8, 0.02)
        for worker in line.workers():
            worker.send_signal(signal.SIGQUIT)
        await line.upgrade()
        await load.stop()
        assert not load.failures, load.failures[:5]
        await line.settled()


# -- when it does not go well


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("workers = nonsense\n", "TOML"),
        ('listen = ["127.0.0.1:0", "192.0.2.1:1"]\nunauthenticated = true\n', "--listen 192.0.2.1:1"),
    ],
    ids=["a bad file", "an address that cannot be had"],
)
async def test_a_successor_that_fails_changes_nothing(
    start_router, start_server, tmp_path, until, gone, change, reason
):
    path = tmp_path / "router.toml"
    endpoint = (
        f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\n'
        f'replica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    )
    path.write_text(f'[router]\nlisten = ["127.0.0.1:0"]\n{endpoint}')
    router = await start_router("--config", path, *FLAGS, plain=True)
    load = Load(connector(router))
    async with lineage(router, until, gone) as line:
        load.start(loadkit.fresh, 2)
        load.start(loadkit.kept, 2, 0.02)
        path.write_text(f"[router]\n{change}{endpoint}")
        os.kill(router.pid, signal.SIGQUIT)

        async def failed():
            return (await line.info())["last_upgrade"]

        last = await until(failed)
        assert last["ok"] is False and reason in last["error"]
        assert (await router.ask("/readyz")).status_code == 200
        assert "router_upgrade_failures_total 1.0" in (await router.ask("/metrics")).text
        assert "the upgrade failed, this daemon goes on" in router.stderr()
        await until(lambda: len(psutil.Process(router.pid).children(recursive=True)) == 1)
        path.write_text(f'[router]\nlisten = ["127.0.0.1:0"]\n{endpoint}')
        assert (await router.ask("/upgrade", "POST")).status_code == 202, "the next one may go well"

        async def taken():
            info = await line.info()
            return info["pid"] if info["pid"] != router.pid else 0

        line.pids.append(await until(taken, 30))
        await load.stop()
        assert not load.failures, load.failures[:5]
        await line.settled()


@pytest.mark.slow
async def test_a_successor_that_hangs_is_ended(start_router, start_server, tmp_path, until, gone):
    """It never finds its table: the store is not there, and nothing says how long to wait for it."""
    path = tmp_path / "router.toml"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    path.write_text(f'[router]\nlisten = ["127.0.0.1:0"]\n{endpoint}')
    router = await start_router("--config", path, "--upgrade-timeout-s", 2, *FLAGS, plain=True)
    load = Load(connector(router))
    async with lineage(router, until, gone) as line:
        load.start(loadkit.fresh, 2)
        store = f'store = "embedded:{tmp_path}/none.sock"\nstate_dir = "{tmp_path}"\nstore_start_timeout_s = 0\n'
        path.write_text(f'[router]\nlisten = ["127.0.0.1:0"]\n{store}')
        os.kill(router.pid, signal.SIGQUIT)

        async def under_way():
            return (await line.info())["upgrading"]

        await until(under_way)
        refused = await router.ask("/upgrade", "POST")
        assert refused.status_code == 409 and "under way" in refused.text
        os.kill(router.pid, signal.SIGQUIT)
        await until(lambda: "an upgrade is under way" in router.stderr())

        async def failed():
            return (await line.info())["last_upgrade"]

        assert "not ready within 2 s" in (await until(failed))["error"]
        assert len(psutil.Process(router.pid).children(recursive=True)) == 1
        await load.stop()
        assert not load.failures, load.failures[:5]


async def test_a_daemon_that_is_killed_takes_its_successor_with_it(
    start_router, start_server, tmp_path, until, gone
):
    path = tmp_path / "router.toml"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    path.write_text(f"[router]\n{endpoint}")
    router = await start_router("--config", path, "--listen", "127.0.0.1:0", *FLAGS, plain=True)
    path.write_text(f'[router]\nstore = "embedded:{tmp_path}/none.sock"\nstate_dir = "{tmp_path}"\nstore_start_timeout_s = 0\n')
    os.kill(router.pid, signal.SIGQUIT)
    family = await until(lambda: len(found := psutil.Process(router.pid).children(recursive=True)) > 2 and found)
    os.kill(router.pid, signal.SIGKILL)
    await until(lambda: all(gone(process.pid) for process in family))


@pytest.mark.slow
async def test_sigterm_during_an_upgrade_ends_both(start_router, start_server, tmp_path, until, gone):
    path = tmp_path / "router.toml"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    path.write_text(f"[router]\n{endpoint}")
    router = await start_router("--config", path, "--listen", "127.0.0.1:0", *FLAGS, plain=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
    await reader.readuntil(b"data: 0")
    path.write_text(f'[router]\nstore = "embedded:{tmp_path}/none.sock"\nstate_dir = "{tmp_path}"\nstore_start_timeout_s = 0\n')
    os.kill(router.pid, signal.SIGQUIT)
    family = await until(lambda: len(found := psutil.Process(router.pid).children(recursive=True)) > 2 and found)
    os.kill(router.pid, signal.SIGTERM)
    assert (await reader.read()).endswith(b"0\r\n\r\n"), "it drains as ever"
    writer.close()
    assert await router.wait() == 0
    await until(lambda: all(gone(process.pid) for process in family))
    assert "the daemon drains" in router.stderr() or "told to end" in router.stderr()


@pytest.mark.slow
async def test_a_stream_that_outlives_the_deadline_is_cut_and_said(start_router, start_server, until, gone):
    router = await start_router(
        "--health", "none", "--drain-deadline-s", 0.5, replicas=[await start_server(loadkit.replica)]
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
    await reader.readuntil(b"data: 0")
    async with lineage(router, until, gone) as line:
        await line.upgrade()
        text = await reader.read()
        writer.close()
        assert not text.endswith(b"0\r\n\r\n") and b"event: error" in text
        assert await router.wait() == 4

        async def known():
            return (await line.info())["predecessor"]["cut"] == 1

        await until(known)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_a_sigterm_hurries_the_old_one_only_when_it_is_said_twice(
    start_router, start_server, until, gone, signals
):
    """A service manager may signal every process of the group: the streams of the old one have their time."""
    router = await start_router("--health", "none", *FLAGS, replicas=[await start_server(loadkit.replica)])
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
    await reader.readuntil(b"data: 0")
    async with lineage(router, until, gone) as line:
        await line.upgrade()
        for _ in range(signals):
            os.kill(router.pid, signal.SIGTERM)
            await asyncio.sleep(0.1)  # two at once are one
        text = await reader.read()
        writer.close()
        assert text.endswith(b"0\r\n\r\n") is (signals == 1)
        assert await router.wait() == (0 if signals == 1 else 4)
        assert (await router.ask("/readyz")).status_code == 200


@pytest.mark.slow
async def test_what_the_old_one_still_has_counts_against_a_replicas_limit(start_router, start_server, until, gone):
    router = await start_router(
        "--health", "none", "--max-concurrency", 3, *FLAGS, replicas=[await start_server(loadkit.replica)], workers=2
    )
    streams = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(3)]
    for reader, writer in streams:
        writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
        await reader.readuntil(b"data: 0")

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer.lower()

    assert b"x-router-error: at_capacity" in await ask()
    async with lineage(router, until, gone) as line:
        await line.upgrade()

        async def is_full():
            return b"x-router-error: at_capacity" in await ask()

        await until(is_full)
        for reader, writer in streams:
            assert (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()
        await line.settled()

        async def is_free():
            return (await ask()).startswith(b"http/1.1 200 ")

        await until(is_free)


async def test_what_an_operator_did_by_hand_outlives_it(start_router, start_server, until, gone):
    first, second = await start_server(loadkit.replica), await start_server(loadkit.replica)
    router = await start_router("--health", "none", replicas=[first])
    async with lineage(router, until, gone) as line:
        assert (await router.ask("/workers", "POST", json={"url": second, "weight": 2})).status_code == 202
        assert (await router.ask(f"/workers/{first.partition('://')[2]}", "DELETE")).status_code == 200
        assert (await router.ask("/healthcheck/fail", "POST")).status_code == 200
        await line.upgrade()
        (row,) = await router.rows()
        assert row["id"] == second.partition("://")[2] and row["weight"] == 2
        assert (await router.ask("/readyz")).status_code == 503


async def test_one_process_too_many_is_refused_a_stale_variable(run_router):
    done = await run_router("serve", "--replica", "http://127.0.0.1:9", env={"ROUTER_HANDOVER": "0"})
    assert done.returncode == 2 and "ROUTER_HANDOVER" in done.stderr


# -- by command


@pytest.mark.slow
async def test_serve_upgrade_waits_and_says_how_it_went(
    start_router, start_server, run_router, tmp_path, until, gone
):
    path, admin, pid_file = tmp_path / "router.toml", f"127.0.0.1:{free_port()}", tmp_path / "pid"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    path.write_text(endpoint)
    flags = ("--config", path, "--admin", admin, "--pid-file", pid_file, "--upgrade-timeout-s", 20)
    none = await run_router("serve", *flags, "--upgrade")
    assert none.returncode == 1 and f"nothing to upgrade: no daemon answers on --admin {admin}" in none.stderr
    router = await start_router(*flags, "--listen", "127.0.0.1:0", *FLAGS, plain=True)
    async with lineage(router, until, gone) as line:
        done = await run_router("serve", *flags, "--upgrade")
        assert done.returncode == 0, done.stderr
        line.pids.append((await line.info())["pid"])
        assert f"upgraded: process {line.pid} serves" in done.stdout and line.pid != router.pid
        path.write_text('[router]\nlisten_tls = ["127.0.0.1:0"]\n' + endpoint)
        bad = await run_router("serve", *flags, "--upgrade")
        assert bad.returncode == 2 and "--tls-cert" in bad.stderr, "its own look at the file"
        path.write_text('[router]\npid_file = "/nowhere/pid"\n' + endpoint.replace('name = "e"', 'name = "e"\nhosts = ["*"]'))
        assert (await run_router("serve", *flags, "--upgrade")).returncode == 0
        line.pids.append((await line.info())["pid"])
        await line.settled()

        # Without an admin address that can be known, by the pid file.
        blind = ("--config", path, "--admin", "none", "--upgrade-timeout-s", 20)
        assert "give one" in (await run_router("serve", *blind, "--upgrade", "--pid-file", "")).stderr
        done = await run_router("serve", *blind, "--pid-file", pid_file, "--upgrade")
        assert done.returncode == 0, done.stderr
        line.pids.append((await line.info())["pid"])
        assert f"process {line.pid} serves" in done.stdout
        await line.settled()
    stale = tmp_path / "stale"
    stale.write_text(f"{os.getpid()}\n")
    done = await run_router("serve", *blind, "--pid-file", stale, "--upgrade")
    assert done.returncode == 1 and "names no running router" in done.stderr


async def test_serve_upgrade_says_why_it_failed(start_router, start_server, run_router, tmp_path):
    """What only the daemon can find out: here an address that somebody else has."""
    path, admin = tmp_path / "router.toml", f"127.0.0.1:{free_port()}"
    endpoint = f'[[endpoint]]\nname = "e"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
    path.write_text(f'[router]\nlisten = ["127.0.0.1:0"]\n{endpoint}')
    router = await start_router("--config", path, "--admin", admin, *FLAGS, plain=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path.write_text(f'[router]\nlisten = ["127.0.0.1:0", "{address}"]\n{endpoint}')
        done = await run_router("serve", "--config", path, "--admin", admin, "--upgrade")
    assert done.returncode == 1
    assert f"process {router.pid} goes on: --listen {address}: " in done.stderr
    assert (await router.ask("/readyz")).status_code == 200


@pytest.mark.slow
async def test_drain_by_command(start_router, start_server, run_router, tmp_path):
    admin = f"unix:{tmp_path}/admin.sock"
    router = await start_router("--health", "none", *FLAGS, "--admin", admin, replicas=[await start_server(loadkit.replica)])
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
    await reader.readuntil(b"data: 0")
    done = await run_router("drain", "--admin", admin)
    assert done.returncode == 0 and "drained: it has ended" in done.stdout, done.stderr
    assert (await reader.read()).endswith(b"0\r\n\r\n")
    writer.close()
    assert await router.wait() == 0
    done = await run_router("drain", "--admin", admin)
    assert done.returncode == 1 and "no daemon answers" in done.stderr


@pytest.mark.slow
async def test_router_up_is_not_upgraded(start_router, until):
    router = await start_router("--no-check", "--time-scale", 0, "--replicas", 1, command="up")
    os.kill(router.pid, signal.SIGQUIT)
    await until(lambda: "only `router serve` can be upgraded" in router.stderr())
    assert (await router.ask("/upgrade", "POST")).status_code == 409
    assert (await router.ask("/readyz")).status_code == 200
