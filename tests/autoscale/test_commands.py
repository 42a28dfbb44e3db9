"""An operator's commands: what a template may say, how one that fails, hangs or leaves something behind is met."""

import asyncio
import os
from pathlib import Path

import pytest

from router.autoscale.commands import Commands, Template
from router.autoscale.launcher import LaunchError, Order
from router.config.static import ConfigError

ORDER = Order("e", "auto-1", "eu", 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x {replica}", ["x", "auto-1"]),
        ("x '{endpoint} {region}' --n={desired} {replica}", ["x", "e eu", "--n=3", "auto-1"]),
        ("x '{{\"a\": 1}}' {replica}", ["x", '{"a": 1}', "auto-1"]),
    ],
)
def test_values_stand_for_their_names(text, words):
    assert Template(text, "--f").words(ORDER) == words


def test_values_are_words_and_no_shell_sees_them():
    assert Template("x {endpoint} {replica}", "--f").words(Order("a b; rm", "$(r)", "", 1)) == ["x", "a b; rm", "$(r)"]


@pytest.mark.parametrize("text", ["", " ", "x", "x {zone} {replica}", "x {} {replica}", "x { {replica}", "x 'a {replica}", "x {replica.x}"])
def test_a_template_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match="^--f: "):
        Template(text, "--f")


def commands(launch, timeout_s=5.0):
    return Commands(f"{launch} {{replica}}", "true {replica}", timeout_s)


async def test_a_command_that_does_its_work(tmp_path):
    await commands(f"sh -c 'touch {tmp_path}/started'").start(ORDER)
    assert (tmp_path / "started").exists()


async def test_a_command_that_fails_says_why():
    with pytest.raises(LaunchError, match=r"sh: exit code 3: no room for auto-1"):
        await Commands("sh -c 'echo no  room for {replica} >&2; exit 3'", "true {replica}", 5.0).start(ORDER)
    with pytest.raises(LaunchError, match="No such file"):
        await commands("/nobody/has/this").start(ORDER)


async def test_much_output_is_cut_to_its_end():
    with pytest.raises(LaunchError) as failure:
        await Commands("sh -c 'yes | head -c 1000000; echo END {replica}; exit 1'", "true {replica}", 5.0).start(ORDER)
    assert str(failure.value).endswith("END auto-1")
    assert len(str(failure.value)) < 600


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait; : {{replica}}"
    with pytest.raises(LaunchError, match="still running after 0.5 s"):
        await Commands(f"sh -c '{script}'", "true {replica}", 0.5).start(ORDER)
    await gone(int((tmp_path / "pid").read_text()))


async def test_a_command_that_is_cancelled_is_killed(tmp_path):
    task = asyncio.ensure_future(
        Commands(f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60; : {{replica}}'", "true {replica}", 60.0).start(ORDER)
    )
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int((tmp_path / "pid").read_text()))


async def test_what_a_command_leaves_running_is_left_alone_and_not_waited_for(tmp_path):
    await Commands(f"sh -c 'sleep 60 & echo $! > {tmp_path}/pid; : {{replica}}'", "true {replica}", 5.0).start(ORDER)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    os.kill(pid, 9)


async def gone(pid):
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            await asyncio.sleep(0.01)


