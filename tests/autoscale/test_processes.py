"""Sidecars as processes: found again, told once, killed when they overstay. The sidecar is a stand-in that counts signals."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from router.autoscale import processes as module
from router.autoscale.launcher import LaunchError, Order
from router.autoscale.processes import MARK, SimOptions, SimProcesses, find_sidecars

# `-m router` finds this one in the working directory first.
SIDECAR = """
import os, signal, sys, time
place = os.path.join(os.path.dirname(os.path.abspath(__file__)), sys.argv[sys.argv.index("--replica") + 1])
count = 0

def told(*_):
    global count
    count += 1
    open(place + ".told", "w").write(str(count))
    if "stubborn" not in place:
        sys.exit(0)

signal.signal(signal.SIGTERM, told)
open(place + ".args", "w").write("\\n".join(sys.argv[1:]))
while True:
    time.sleep(0.05)
"""


async def until(condition, within_s=10.0):
    deadline = monotonic() + within_s
    while not condition():
        assert monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").touch()
    (tmp_path / "router" / "__main__.py").write_text(SIDECAR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "STORE_S", 0.2)
    return tmp_path / "router"


@pytest.fixture
async def make(place):
    """`make(**options)`: a launcher of the same store each time; all their processes end with the test."""
    key, made = f"test-{os.urandom(4).hex()}", []

    def launcher(names=None, **options):
        values = {"settle_s": 0.0, "exit_grace_s": 0.1, "engine_grace_s": 0.0, **options}
        made.append(SimProcesses(SimOptions("embedded:/s", "/state", key, ("--seed", "1"), **values), lambda: 4_321, names))
        return made[-1]

    yield launcher
    launcher().adopt()
    for each in made:
        await each.close(stop=True)
    assert find_sidecars(key) == []


async def test_a_sidecar_is_started_as_the_command_line_has_it(make, place):
    launcher = make()
    await launcher.start(Order("e/1", "auto-1", "eu", 2))
    assert launcher.running("e/1") == {"auto-1"}
    assert launcher.running("other") == set()
    assert launcher.endpoints() == {"e/1"}
    await until(lambda: (place / "auto-1.args").exists() and (place / "auto-1.args").read_text().endswith("\n1"))
    words = (place / "auto-1.args").read_text().split("\n")
    assert words[:7] == ["sidecar", "--store", "embedded:/s", "--state-dir", "/state", "--endpoint", "e/1"]
    assert words[words.index("--region") + 1] == "eu"
    assert words[words.index("--") + 1 :] == [
        sys.executable, "-m", "inference_backend", "simulate", "--port", "4321", "--seed", "1",
    ]  # fmt: skip


async def test_the_next_launcher_finds_it_and_may_stop_it(make, place):
    first = make()
    await first.start(Order("e", "auto-1", "", 1))
    await until((place / "auto-1.args").exists)
    await first.close(stop=False)
    second = make(["e"])
    assert second.running("e") == set()
    other = make(["f"])
    other.adopt()
    assert other.endpoints() == set()
    second.adopt()
    second.adopt()
    assert second.running("e") == {"auto-1"}
    await second.stop(Order("e", "auto-1", "", 0))
    await until(lambda: second.running("e") == set())
    assert (place / "auto-1.told").read_text() == "1"


async def test_other_stores_and_other_programs_are_not_found(make, place):
    launcher = make()
    key = launcher._options.key
    arguments = ["-m", "router", "sidecar", "--endpoint", "e", "--replica", "auto-9"]
    others = [
        subprocess.Popen([sys.executable, *arguments], env={**os.environ, MARK: "another"}),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments], env={**os.environ, MARK: key}),
    ]
    try:
        await until((place / "auto-9.args").exists)
        assert find_sidecars(key) == []
        assert find_sidecars("another") == [(others[0].pid, "e", "auto-9")]
    finally:
        for other in others:
            other.kill()
            other.wait()


async def test_one_is_told_once_and_killed_when_it_overstays(make, place, monkeypatch):
    sent = []  # two signals at once would reach it as one
    plain = module.Running.signal
    monkeypatch.setattr(module.Running, "signal", lambda self, number: (sent.append(number), plain(self, number)))
    launcher = make()
    order = Order("e", "stubborn", "", 1)
    await launcher.start(order)
    await until((place / "stubborn.args").exists)
    await launcher.stop(order)
    await launcher.stop(order)
    await until((place / "stubborn.told").exists)
    assert launcher.running("e") == {"stubborn"}
    await until(lambda: launcher.running("e") == set())
    assert sent[0] == signal.SIGTERM and set(sent[1:]) == {signal.SIGKILL}


async def test_one_that_ends_by_itself_is_seen_and_leaves_no_zombie(make, place):
    launcher = make()
    await launcher.start(Order("e", "auto-1", "", 1))
    await until((place / "auto-1.args").exists)
    ((pid, _, _),) = find_sidecars(launcher._options.key)
    os.kill(pid, 9)
    await until(lambda: launcher.running("e") == set())
    assert not Path(f"/proc/{pid}").exists()


async def test_its_output_goes_where_it_is_wanted(make, tmp_path):
    launcher = make(log_dir=str(tmp_path))
    await launcher.start(Order("e", "auto-1", "", 1))
    assert (tmp_path / "auto-1.log").exists()
    with pytest.raises(LaunchError):
        await make(log_dir=str(tmp_path / "none")).start(Order("e", "auto-2", "", 1))
