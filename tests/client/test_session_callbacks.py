"""What a session's callbacks may do: send, in order behind what waits, and fail without harm. And how it ends."""

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from router.client import BlockingRobotSession, RobotError
from router.client.places import find_places
from router.client.target import read_target
from tests.client.test_session_direct import Fake, until
from tests.client.test_session_resume import Rig

pytestmark = pytest.mark.asyncio


def note(monkeypatch):
    """Return what any connection is given to send, in order."""
    sent = []
    monkeypatch.setattr(Fake, "send_command", lambda self, data, *_, **__: sent.append(data) or True)
    monkeypatch.setattr(Fake, "send_state", lambda self, data, *_: sent.append(data) or True)
    return sent


async def test_what_on_epoch_sends_goes_behind_what_waits(monkeypatch):
    sent = note(monkeypatch)
    rig = Rig()
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:

        def on_epoch(epoch, replica):
            session.send(b"third", "command")
            session.send(b"new")

        session.on_epoch = on_epoch
        rig.carriers[-1].lose(RobotError(1006, "gone"))
        await until(lambda: not session.is_connected)
        session.send(b"first", "command")
        session.send(b"second", "command")
        session.send(b"old")
        rig.welcome("s1", 2, "t2")
        await until(lambda: session.is_connected)
        assert sent == [b"first", b"second", b"old", b"third", b"new"]


async def test_a_callback_that_fails_ends_nothing(caplog):
    def fail(*_):
        raise ZeroDivisionError

    rig = Rig(on_round_trip=fail)
    rig.session.on_epoch = fail
    rig.welcome("s1", 1, "t1")
    async with rig.session as session:
        rig.welcome("s1", 2, "t2")
        await rig.lose()
        rig.carriers[-1].hear_epoch(3, "replica")
        rig.carriers[-1].hear_pong(0.1)
        assert session.epoch == 3
        assert session.is_connected
        assert [record.message for record in caplog.records] == ["on_epoch failed"] * 2 + ["on_round_trip failed"]


async def test_a_bug_leaves_nobody_waiting(caplog):
    rig = Rig()

    async def dial(resume, waiting):
        raise ZeroDivisionError

    rig.session._dialler.dial = dial
    with pytest.raises(RobotError, match="a bug ended the session"):
        await rig.session.connect()


async def test_one_that_was_closed_does_not_connect():
    rig = Rig()
    await rig.session.close()
    with pytest.raises(RobotError, match="was closed"):
        await rig.session.connect()


async def test_what_is_no_name_is_said_so():
    target = read_target(
        "quic://a..b/", token=None, headers=(), ca=None, verify=True, replies="state", websocket_url="", server_name=None
    )
    with pytest.raises(RobotError, match="no name of a host"):
        await find_places(target)


class Blocking(BlockingRobotSession):
    """One whose connections are made by the test."""

    def __init__(self):
        super().__init__("quic://router.test/", websocket_url="")
        self.carriers = []
        self._session._dialler.dial = self.dial

    async def dial(self, resume, waiting):
        self.carriers.append(Fake())
        return self.carriers[-1]

    def hear_pong(self):
        self._loop.call_soon_threadsafe(self.carriers[-1].hear_pong, 0.1)


async def test_a_callback_of_the_blocking_session_sends_and_does_not_wait(monkeypatch):
    sent = note(monkeypatch)

    def work():
        told, done = [], threading.Event()
        with Blocking() as robot:

            def on_round_trip(seconds):
                robot.send(b"from the callback", "command")
                for wait in (robot.recv, robot.close):
                    try:
                        wait()
                    except RuntimeError as failure:
                        told.append(str(failure))
                done.set()

            robot._session.on_round_trip = on_round_trip
            robot.hear_pong()
            assert done.wait(5)
            assert len(told) == 2

    await asyncio.to_thread(work)
    assert sent == [b"from the callback"]


async def test_a_second_connect_of_the_blocking_session_harms_nothing_and_figures_outlive_it():
    def work():
        with Blocking() as robot:
            with pytest.raises(RuntimeError, match="for once"):
                robot.connect()
            assert robot.is_connected
        assert robot.link.connections == 1
        assert robot.resume_token == ""
        with pytest.raises(RobotError, match="closed"):
            robot.send(b"")

    await asyncio.to_thread(work)


async def test_a_websocket_that_nobody_closed_is_closed_with_its_loop(tmp_path):
    program = """
        import asyncio
        from websockets.asyncio.server import serve
        from router.client import RobotSession

        async def greet(opened):
            await opened.send("welcome")
            await opened.wait_closed()

        async def main():
            port = (await serve(greet, "127.0.0.1", 0)).sockets[0].getsockname()[1]
            url = f"ws://127.0.0.1:{port}/"
            robot = RobotSession("quic://router.test/", transport="websocket", websocket_url=url)
            await robot.connect()
            assert await robot.recv(10)

        asyncio.run(main())
    """
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 0
    assert "raddr" not in ended.stderr, "a connection of the robot's; the listener is the test's"
