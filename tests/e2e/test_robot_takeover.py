"""A robot whose connection was lost without a word takes its session over, where its replica has room for one alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from robotpeer import REFUSED, WELCOME, RobotPeer  # noqa: E402
from test_robot import Policy, metric, quic_flags  # noqa: E402

from router.client import RobotError, RobotSession  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

ONE_EACH = ("--max-concurrency", "1", "--policy", "least_inflight")
# A robot in a process of its own: says where it is and how to go on, then waits for its end.
ROBOT = """
import asyncio, sys
from router.client import RobotSession

async def main(port, ca):
    async with RobotSession(f"quic://localhost:{port}/", ca=ca, websocket_url="") as robot:
        print(robot.session_id, robot.link.replica, robot.epoch, robot.resume_token, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def udp_port(router):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return httpx.URL(url).port


async def come(router, files, resume=""):
    """A robot that is welcome; what it was told."""
    robot = RobotPeer(udp_port(router), files / "ca.pem")
    await robot.begin(resume=resume)
    async with asyncio.timeout(10):
        while robot.first(WELCOME) is None:
            assert robot.first(REFUSED) is None, robot.told
            await asyncio.sleep(0.005)
    return robot, robot.first(WELCOME)


async def worker_of(router, session):
    """Which worker has the session, once it is alone."""
    found = (await router.ask(f"/debug/robots?session={session}")).json()
    (shown,) = found["robots"]
    return shown["worker"]


async def until_open(router, count):
    async with asyncio.timeout(10):
        while await metric(router, "router_robot_sessions_open") != count:
            await asyncio.sleep(0.02)


async def test_one_whose_process_was_killed_finds_its_replica(start_router, files, until):
    async with Policy("a") as first, Policy("b") as second:
        router = await start_router(*quic_flags(files, *ONE_EACH), replicas=[first.url, second.url])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ROBOT, str(udp_port(router)), str(files / "ca.pem"), stdout=asyncio.subprocess.PIPE
        )
        try:
            session, replica, epoch, token = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()
        finally:
            process.kill()
            await process.wait()
        assert epoch == "1"
        async with RobotSession(
            f"quic://localhost:{udp_port(router)}/", ca=files / "ca.pem", websocket_url="", resume=token
        ) as robot:
            assert (robot.session_id, robot.link.replica, robot.epoch) == (session, replica, 2)
            assert await metric(router, "router_robot_superseded_total") == 1
            assert await metric(router, "router_robot_sessions_open") == 1
            before = first if first.url.endswith(replica.rpartition(":")[2]) else second
            await until(lambda: len(before.closed) == len(before.sockets) == 1)
        await router.settled()


async def test_it_does_whichever_worker_it_comes_to(start_router, files):
    """The kernel spreads connections over the workers: it comes again until it met both another and the same."""
    async with Policy("a") as first, Policy("b") as second:
        flags = quic_flags(files, *ONE_EACH)
        router = await start_router(*flags, replicas=[first.url, second.url], workers=2)
        robot, welcome = await come(router, files)
        session, replica, worker = welcome["session"], welcome["replica"], await worker_of(router, welcome["session"])
        met = set()
        for epoch in range(2, 30):
            robot.vanish()
            robot, again = await come(router, files, welcome["token"])
            assert (again["session"], again["replica"], again["epoch"]) == (session, replica, epoch)
            now = await worker_of(router, session)
            met.add(now == worker)
            welcome, worker = again, now
            if len(met) == 2 and epoch > 5:
                break
        assert len(met) == 2
        assert await metric(router, "router_robot_superseded_total") == epoch - 1
        assert await metric(router, "router_robot_sessions_open") == 1

        # What does not hold ends nobody, at whichever worker.
        body, _, signature = welcome["token"].rpartition(".")
        for forged in ("nonsense", body, f"{body}.{signature[::-1]}", welcome["token"][:-4] + "AAAA"):
            other, anew = await come(router, files, forged)
            assert (anew["session"] != session, anew["replica"] != replica, anew["epoch"]) == (True, True, 1)
            other.close()
            await until_open(router, 1)
        assert await metric(router, "router_robot_superseded_total") == epoch - 1
        robot.state(b"still here")
        async with asyncio.timeout(5):
            while not robot.states:
                await asyncio.sleep(0.005)
        robot.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_two_with_one_token_do_not_fight(start_router, files, until, workers):
    async with Policy("a") as policy:
        router = await start_router(*quic_flags(files, *ONE_EACH), replicas=[policy.url], workers=workers)
        where = {"ca": files / "ca.pem", "websocket_url": ""}
        url = f"quic://localhost:{udp_port(router)}/"
        async with RobotSession(url, **where) as old:
            await old.recv(5)
            async with RobotSession(url, resume=old.resume_token, **where) as new:
                assert (new.session_id, new.epoch) == (old.session_id, 2)
                with pytest.raises(RobotError) as ended:
                    while True:
                        await old.recv(10)
                assert ended.value.is_superseded
                assert ended.value.is_final
                assert (await new.recv(5)).data == b"metadata a"
                new.send(b"on")
                assert (await new.recv(5)).data == b"a on"
                # An older token of the same session holds as well: the newest may have been lost on its way.
                async with RobotSession(url, resume=old.resume_token, **where) as newest:
                    assert newest.epoch == 2
                    with pytest.raises(RobotError, match="superseded"):
                        while True:
                            await new.recv(10)
                assert await metric(router, "router_robot_superseded_total") == 2
                assert await metric(router, "router_robot_sessions_total") == 3, "nobody came again"
        await until(lambda: not policy.sockets)
