"""One successor at a time: what comes of each way in which it can go wrong, and when none is begun."""

import asyncio
import os
import sys
import time

import pytest

from router import upgrade
from router.handover import VERSION, Handover, Ready
from router.upgrade import MAX_OLDER, Upgrade, own_command

GOOD = (
    "import os, socket\n"
    "from router.handover import *\n"
    "pair = take_pair(); pair.recv(65536)\n"
    "pair.sendall(frame(Ready([1, 2]))); pair.settimeout(10); pair.recv(100)\n"
)


def python(code):
    return [sys.executable, "-c", code]


class Daemon:
    def __init__(self, command, limit_s=10.0):
        self.handed = None
        self.upgrade = Upgrade(command, limit_s, self.describe, self.hand_over)
        self.fault = None

    async def describe(self):
        if self.fault:
            raise self.fault
        return Handover(VERSION, os.getpid(), 1, [])

    async def hand_over(self, successor, ready):
        self.handed = (successor, ready)
        return 3

    async def attempt(self):
        assert self.upgrade.begin(is_serving=True, older=0) == ""
        async with asyncio.timeout(15):
            while self.upgrade.is_under_way:
                await asyncio.sleep(0.01)
        return self.upgrade.last


async def test_it_takes_over():
    daemon = Daemon(python(GOOD))
    assert await daemon.attempt() is None
    successor, ready = daemon.handed
    assert ready == Ready([1, 2]) and daemon.upgrade.is_handed_over
    await daemon.upgrade.abort("too late")  # changes nothing any more
    await successor.kill()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(7)", "exit code 7"),
        ("import os; os.abort()", "exit code -6"),
        ("from router.handover import *; refuse_on(take_pair(), 'bad file')", "bad file"),
        ("from router.handover import *; p = take_pair(); p.recv(99999); p.sendall(b'\\0\\0\\0\\1\\xc1')", "cannot be read"),
        ("from router.handover import *; p = take_pair(); p.recv(99999); p.sendall(b'\\xff' * 8)", "cannot be read"),
    ],
)
async def test_it_does_not(code, reason, caplog):
    daemon = Daemon(python(code))
    last = await daemon.attempt()
    assert last["ok"] is False and reason in last["error"]
    assert daemon.upgrade.failures == 1 and daemon.handed is None and not daemon.upgrade.is_handed_over
    assert "the upgrade failed, this daemon goes on" in caplog.text
    daemon.upgrade._command = python(GOOD)
    await daemon.attempt()
    assert daemon.handed, "the next one may go well"
    await daemon.handed[0].kill()


async def test_a_command_that_is_not_there():
    assert "No such file" in (await Daemon(["/nowhere/at/all"]).attempt())["error"]


async def test_one_that_says_nothing_is_ended():
    daemon = Daemon(python("import time; time.sleep(60)"), limit_s=0.5)
    last = await daemon.attempt()
    assert "not ready within 0.5 s" in last["error"]
    with pytest.raises(ProcessLookupError):
        os.kill(last["pid"], 0)


async def test_one_that_closes_its_end_and_stays_is_ended(monkeypatch):
    monkeypatch.setattr(upgrade, "END_LIMIT_S", 0.2)
    code = "from router.handover import *; p = take_pair(); p.recv(99999); p.close(); import time; time.sleep(60)"
    assert "did not go" in (await Daemon(python(code)).attempt())["error"]


async def test_a_fault_of_our_own_is_one_more_reason():
    daemon = Daemon(python(GOOD))
    daemon.fault = RuntimeError("a bug")
    assert "RuntimeError: a bug" in (await daemon.attempt())["error"]


async def test_it_is_given_up_when_the_daemon_ends():
    daemon = Daemon(python("import time; time.sleep(60)"))
    daemon.upgrade.begin(is_serving=True, older=0)
    await asyncio.sleep(0)
    began_s = time.monotonic()
    await daemon.upgrade.abort("the daemon ends")
    assert time.monotonic() - began_s < 5 and not daemon.upgrade.is_under_way
    assert "told to end" in daemon.upgrade.last["error"]


async def test_when_none_is_begun(monkeypatch):
    daemon = Daemon(python("import time; time.sleep(60)"))
    assert "starting or draining" in daemon.upgrade.begin(is_serving=False, older=0)
    assert "still draining" in daemon.upgrade.begin(is_serving=True, older=MAX_OLDER)
    assert "only `router serve`" in Daemon(None).upgrade.begin(is_serving=True, older=0)
    with monkeypatch.context() as patch:
        patch.setattr(upgrade.os, "getpid", lambda: 1)
        assert "process 1 of a container" in daemon.upgrade.begin(is_serving=True, older=0)
    assert daemon.upgrade.begin(is_serving=True, older=MAX_OLDER - 1) == ""
    assert "under way" in daemon.upgrade.begin(is_serving=True, older=0)
    await daemon.upgrade.abort("the test is over")


def test_the_command_is_this_ones():
    command = own_command()
    assert command[0] == sys.executable and command[1:] == sys.orig_argv[1:]
