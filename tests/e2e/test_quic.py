"""The daemon's QUIC listener by real processes: a client of another maker, workers, upgrades, drains, limits."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from certkit import Authority

sys.path.insert(0, str(Path(__file__).parent))

from loadkit import lineage  # noqa: E402
from quicclient import Http3  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
DRAIN = ("--drain-settle-s", 0, "--drain-deadline-s", 10)


def quic_flags(files, *more):
    return ("--listen-quic", "127.0.0.1:0", "--tls-cert", files / "local.pem", "--tls-key", files / "local.key", "--health", "none", *more)


def port_of(router):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return httpx.URL(url).port


@pytest_asyncio.fixture(loop_scope="session")
async def open_client(files):
    made = []

    async def open_(router, **options):
        made.append(Http3(port_of(router), files / "ca.pem", **options))
        return await made[-1].connect()

    yield open_
    for client in made:
        client.close()


async def metric(router, name, **labels):
    """The sum of a metric's samples that carry these labels."""
    text = (await router.ask("/metrics")).text
    total, found = 0.0, False
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")):
            if all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
                found = True
    assert found, name
    return total


async def test_requests(start_router, engine, files, open_client):
    router = await start_router(*quic_flags(files), replicas=[engine.url])
    client = await open_client(router)
    answer = await client.get(b"/health")
    assert answer.headers[b":status"] == b"200"
    body = b'{"text": "a", "sampling_params": {"max_new_tokens": 4}}'
    answers = await asyncio.gather(
        *(client.post(b"/generate", body, headers=[(b"content-type", b"application/json")]) for _ in range(20))
    )
    assert {answer.headers[b":status"] for answer in answers} == {b"200"}
    record = await router.record(answer.headers[b"x-request-id"].decode())
    assert record["protocol"] == "HTTP/3"
    assert await metric(router, "router_quic_handshakes_total", result="done") == 1
    assert await metric(router, "router_quic_connections_open") == 1
    assert await metric(router, "router_connections_open") == 1
    assert await metric(router, "router_quic_packets_received_total") > 10
    assert await metric(router, "router_quic_sockets_without_gso") == 0


async def test_who_moves_to_another_worker_goes_on(start_router, engine, files, open_client):
    """The kernel chooses a worker by addresses: most moves lead to another, which passes datagrams on."""
    router = await start_router(*quic_flags(files), replicas=[engine.url], workers=2)
    client = await open_client(router)
    for _ in range(12):
        assert (await client.get()).headers[b":status"] == b"200"
        client.move()
    body = bytes(300_000)
    upload = client.request(b"POST", b"/upload", body[:100_000], end=False)
    client.move()
    client.send(upload, body[100_000:], end=True)
    async with asyncio.timeout(20):
        await upload.done
    assert client.terminated is None
    assert await metric(router, "router_quic_migrations_total") >= 12
    assert await metric(router, "router_quic_forwarded_total") >= 1
    assert await metric(router, "router_quic_taken_over_total") >= 1
    assert await metric(router, "router_quic_handshakes_total", result="done") == 1


async def test_a_dead_workers_connections_are_told_at_once(start_router, engine, files, open_client, until):
    router = await start_router(*quic_flags(files), replicas=[engine.url])
    client = await open_client(router)
    await client.get()
    before = await router.worker_pid()
    os.kill(before, signal.SIGKILL)

    async def replaced():
        (worker,) = await router.workers()
        return worker["state"] == "ready" and worker["pid"] != before

    await until(replaced)
    client.request(b"GET", b"/health")
    await until(lambda: client.was_reset)
    assert await metric(router, "router_quic_stateless_resets_total") >= 1
    assert (await (await open_client(router)).get()).headers[b":status"] == b"200"


async def test_an_upgrade_loses_neither_old_connections_nor_new(start_router, engine, files, open_client, until, gone):
    router = await start_router(*quic_flags(files, *DRAIN), replicas=[engine.url], workers=2)
    async with lineage(router, until, gone) as line:
        old = await open_client(router)
        stream = old.request(
            b"POST", b"/generate", b'{"text": "a", "stream": true, "sampling_params": {"max_new_tokens": 600, "ignore_eos": true}}',
            headers=[(b"content-type", b"application/json")],
        )  # fmt: skip
        await until(lambda: stream.body)
        await line.upgrade()
        seen = len(stream.body)
        await until(lambda: len(stream.body) > seen)
        fresh = await open_client(router)
        assert (await fresh.get()).headers[b":status"] == b"200"
        old.move()
        old.ping()
        async with asyncio.timeout(20):
            await stream.done
        assert stream.body.rstrip().endswith(b"[DONE]")
        assert (await fresh.get()).headers[b":status"] == b"200"
        old.close()
        assert await router.wait(20) == 0
        assert (await fresh.get()).headers[b":status"] == b"200"
    assert "Traceback" not in router.stderr()


@pytest.mark.slow
async def test_handshakes_fail_in_no_moment_of_an_upgrade(start_router, engine, files, open_client, until, gone, tmp_path):
    """Sockets are added and shared out anew while clients come; what belongs to another generation is passed on."""
    path = tmp_path / "router.toml"

    def write(workers):
        path.write_text(f'[router]\nworkers = {workers}\n[[endpoint]]\nname = "all"\nhealth = {{ kind = "none" }}\nreplica = [{{ address = "{engine.url}" }}]\n')

    write(2)
    router = await start_router(
        "--config", path, "--listen", "127.0.0.1:0", "--listen-quic", "127.0.0.1:0", "--tls-cert", files / "local.pem",
        "--tls-key", files / "local.key", *DRAIN, plain=True,
    )  # fmt: skip
    done, failures, stop = [], [], asyncio.Event()

    async def come_and_go():
        while not stop.is_set():
            client = Http3(port_of(router), files / "ca.pem")
            try:
                await client.connect()
                assert (await client.get()).headers[b":status"] == b"200"
                done.append(1)
            except (AssertionError, ConnectionError, TimeoutError) as failure:
                failures.append(repr(failure))
            finally:
                client.close()

    async with lineage(router, until, gone) as line:
        old = await open_client(router)
        stream = old.request(
            b"POST", b"/generate", b'{"text": "a", "stream": true, "sampling_params": {"max_new_tokens": 900, "ignore_eos": true}}',
            headers=[(b"content-type", b"application/json")],
        )  # fmt: skip
        await until(lambda: stream.body)
        tasks = [asyncio.ensure_future(come_and_go()) for _ in range(3)]
        for workers in (3, 1):
            write(workers)
            info = await line.upgrade()
            assert len(info["workers"]) == workers
            before = len(done)
            await until(lambda before=before: len(done) > before + 20)
        async with asyncio.timeout(30):
            await stream.done
        assert stream.body.rstrip().endswith(b"[DONE]")
        stop.set()
        await asyncio.gather(*tasks)
    assert not failures, failures[:3]


async def test_a_restart_ends_what_the_daemon_before_it_left(start_router, engine, files, open_client, until, tmp_path):
    """With a state directory: it was killed, and its clients know of nothing."""
    from inference_backend.ports import free_port

    port = free_port()
    flags = ("--listen-quic", f"127.0.0.1:{port}", *quic_flags(files)[2:], "--state-dir", tmp_path)
    first = await start_router(*flags, replicas=[engine.url])
    client = await open_client(first)
    await client.get()
    for worker in await first.workers():
        os.kill(worker["pid"], signal.SIGKILL)
    first.process.kill()
    await first.wait()
    second = await start_router(*flags, replicas=[engine.url])
    client.request(b"GET", b"/v1/models")
    await until(lambda: client.was_reset)
    assert await metric(second, "router_quic_stateless_resets_total") >= 1


async def test_a_drain_tells_clients_and_waits_for_what_is_under_way(start_router, engine, files, open_client, until):
    router = await start_router(*quic_flags(files, *DRAIN), replicas=[engine.url])
    idle, busy = await open_client(router), await open_client(router)
    await idle.get()
    stream = busy.request(
        b"POST", b"/generate", b'{"text": "a", "stream": true, "sampling_params": {"max_new_tokens": 600, "ignore_eos": true}}',
        headers=[(b"content-type", b"application/json")],
    )  # fmt: skip
    await until(lambda: stream.body)
    router.send_signal(signal.SIGTERM)
    assert (await idle.gone()).error_code == 0x100, "H3_NO_ERROR"
    with pytest.raises(ConnectionError, match="0x2 "):
        await open_client(router)
    async with asyncio.timeout(20):
        await stream.done
    assert stream.body.rstrip().endswith(b"[DONE]")
    assert await router.wait() == 0


async def test_without_a_common_protocol(start_router, engine, files):
    router = await start_router(*quic_flags(files), replicas=[engine.url])
    client = Http3(port_of(router), files / "ca.pem")
    client.quic._configuration.alpn_protocols = ["nothing"]
    with pytest.raises(ConnectionError):
        await client.connect()
    assert client.terminated.error_code == 0x178
    client.close()


async def test_answers_over_tls_say_where_quic_is(start_router, engine, files):
    router = await start_router(*quic_flags(files, "--listen-tls", "127.0.0.1:0"), replicas=[engine.url])
    url = next(url for url in router.listen if url.startswith("https"))
    context = ssl.create_default_context(cafile=files / "ca.pem")
    for http2 in (False, True):
        async with httpx.AsyncClient(verify=context, http2=http2, http1=not http2) as client:
            answer = await client.get(url + "/_sim/bytes?n=10")
        assert answer.headers["alt-svc"] == f'h3=":{port_of(router)}"; ma=86400'
    async with httpx.AsyncClient() as client:
        plain = next(url for url in router.listen if url.startswith("http://"))
        assert "alt-svc" not in (await client.get(plain + "/_sim/bytes?n=10")).headers


async def test_new_certificates_are_for_new_connections(start_router, engine, files, tmp_path, open_client, until):
    (tmp_path / "local.pem").write_bytes((files / "local.pem").read_bytes())
    (tmp_path / "local.key").write_bytes((files / "local.key").read_bytes())
    router = await start_router(
        "--listen-quic", "127.0.0.1:0", "--tls-cert", tmp_path / "local.pem", "--tls-key", tmp_path / "local.key",
        "--health", "none", replicas=[engine.url],
    )  # fmt: skip
    old = await open_client(router)
    other = Authority("another")
    (tmp_path / "ca.pem").write_bytes(other.cert)
    other.sign("localhost").write(tmp_path, "local")
    router.send_signal(signal.SIGHUP)

    async def is_new():
        made = Http3(port_of(router), tmp_path / "ca.pem")
        try:
            await made.connect()
        except ConnectionError:
            return False
        finally:
            made.close()
        return True

    await until(is_new)
    assert (await old.get()).headers[b":status"] == b"200"


async def test_clients_with_certificates_only(start_router, engine, files, open_client):
    router = await start_router(*quic_flags(files, "--tls-client-ca", files / "ca.pem"), replicas=[engine.url])
    with pytest.raises(ConnectionError):
        await (await open_client(router)).get(limit_s=5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--tls-cert": "", "--tls-key": ""}, "--tls-cert: --listen-quic needs a certificate"),
        ({"--listen-quic": "0.0.0.0:0"}, "--listen-quic 0.0.0.0:0: an open router"),
        ({"--listen-quic": "unix:/x"}, "--listen-quic: 'unix:/x' is not HOST:PORT"),
    ],
)
async def test_check(run_router, files, change, text):
    flags = {"--listen-quic": "127.0.0.1:0", "--tls-cert": files / "local.pem", "--tls-key": files / "local.key"} | change
    arguments = [part for flag, value in flags.items() if value for part in (flag, value)]
    done = await run_router("serve", "--check", "--replica", "http://127.0.0.1:1", *arguments)
    assert done.returncode == 2 and text in done.stderr
