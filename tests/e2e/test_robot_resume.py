"""A robot whose router is killed goes on at another one of the fleet: the same session, the same replica, an epoch on."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from certkit import Authority

sys.path.insert(0, str(Path(__file__).parent))

from storekit import StoreProcess  # noqa: E402
from test_robot import Policy, metric, quic_flags  # noqa: E402

from router.client import RobotError, RobotSession, dial
from router.config.token_admin import create_token

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


def udp_port(router):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return httpx.URL(url).port


def kill(router):
    """End it without a word to anybody, as a host that lost its power."""
    for process in [*psutil.Process(router.pid).children(recursive=True), psutil.Process(router.pid)]:
        process.send_signal(signal.SIGKILL)


async def fill(store, policies):
    """Write an endpoint of these replicas; return the fields by which a robot shows a token for it."""
    async with store.writer() as writer:
        await writer.put_endpoint("arm", create=True, hosts=("arm.example",), policy=json.dumps({"policy": "least_inflight"}),
                                  health='{"kind": "none"}')  # fmt: skip
        for policy in policies:
            where = urlsplit(policy.url)
            await writer.put_replica("arm", policy.name.decode(), create=True, address=where.hostname, port=where.port)
        made = await create_token(writer, "robots", "main", ("pin",), None, None)
    return [("modal-key", made["key"]), ("modal-secret", made["secret"])]


async def test_a_robot_goes_on_at_another_router(start_router, until, monkeypatch, tmp_path):
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    authority.sign("localhost", "127.0.0.1").write(tmp_path, "local")
    async with AsyncExitStack() as stack:
        store = StoreProcess(stack.enter_context(tempfile.TemporaryDirectory(prefix="r")))
        stack.callback(store.end)
        await store.start()
        policies = [await stack.enter_async_context(Policy(name)) for name in "abcd"]
        headers = await fill(store, policies)
        flags = (*quic_flags(tmp_path), "--store", store.setting)
        routers = await asyncio.gather(*(start_router(*flags, "--state-dir", tmp_path / name) for name in "xy"))
        for router in routers:

            async def is_known(router=router):
                return len(await router.rows()) == len(policies)

            await until(is_known)
        first, second = routers
        # As a name has it that leads to both.
        places = [(int(socket.AF_INET), ("127.0.0.1", udp_port(router))) for router in routers]

        async def find_places(target):
            return places[1:] if target.path == "/second" else places

        monkeypatch.setattr(dial, "find_places", find_places)
        epochs = []
        async with RobotSession(
            "quic://localhost/", authority="arm.example", headers=headers, ca=tmp_path / "ca.pem", websocket_url="", silence_s=0.5,
            on_epoch=lambda *epoch: epochs.append(epoch),
        ) as robot:  # fmt: skip
            greeting = await robot.recv(5)
            replica, session = robot.link.replica, robot.session_id
            assert greeting.data == b"metadata " + replica.encode()
            assert (robot.epoch, len(session)) == (1, 16)
            # Busy at the other router, it is nobody's choice there but by the token.
            usual = {"authority": "arm.example", "ca": tmp_path / "ca.pem", "websocket_url": ""}
            pinned = [*headers, ("x-router-replica", replica)]
            busy = await stack.enter_async_context(RobotSession("quic://localhost/second", headers=pinned, **usual))
            assert busy.link.replica == replica
            kill(first)
            await until(lambda: robot.link.connections == 2, 15)
            greeting = await robot.recv(5)
            assert (greeting.data, greeting.epoch) == (b"metadata " + replica.encode(), 2)
            assert (robot.link.replica, robot.session_id, robot.epoch) == (replica, session, 2)
            assert epochs == [(2, replica)]
            found = (await second.ask(f"/debug/robots?session={session}")).json()
            assert (found["open"], found["left_out"]) == (2, 1)
            (shown,) = found["robots"]
            assert (shown["session"], shown["replica"], shown["epoch"], shown["endpoint"]) == (session, replica, 2, "arm")
            assert await metric(second, "router_robot_resumed_total") == 1
            token = robot.resume_token

        # Another process of the same robot, whose replica is not there any more.
        async with store.writer() as writer:
            await writer.delete_replica("arm", replica)

        async def has_left():
            return len(await second.rows()) == len(policies) - 1

        await until(has_left)
        options = {**usual, "resume": token}
        async with RobotSession("quic://localhost/second", headers=headers, **options) as robot:
            assert robot.session_id == session
            assert robot.epoch == 3
            assert robot.link.replica != replica

        # Somebody else's token is nothing to whoever has another credential.
        async with store.writer() as writer:
            other = await create_token(writer, "others", "main", (), None, None)
        shown_by_other = [("modal-key", other["key"]), ("modal-secret", other["secret"])]

        async def is_let_in():
            robot = RobotSession("quic://localhost/second", headers=shown_by_other, **options)
            try:
                await robot.connect()
            except RobotError as error:
                if error.status != 401:  # the credential is on its way to the router
                    raise
                return False
            assert robot.session_id != session
            assert robot.epoch == 1
            await robot.close()
            return True

        await until(is_let_in)
        assert await metric(second, "router_robot_resume_ignored_total") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_a_robot_hears_at_once_that_its_router_is_gone(start_router, files, until, number):
    """The supervisor is gone, so its workers go; the link is fine, and nothing has to be waited for."""
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files), replicas=[policy.url])
        robot = RobotSession(
            f"quic://127.0.0.1:{udp_port(router)}/", ca=files / "ca.pem", server_name="localhost", websocket_url="", silence_s=30.0
        )
        async with robot:
            psutil.Process(router.pid).send_signal(number)
            await until(lambda: not robot.is_connected)
