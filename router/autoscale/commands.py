"""Replicas by an operator's own commands: a template each to start and to stop one, run without a shell.

`{endpoint}`, `{replica}`, `{region}` and `{desired}` in a word of the template stand for the order's values; every
other brace is refused, so that a slip is found before it is run. The command that starts must see to it that the
replica registers under the name {replica}; exit code 0 says that it is on its way. At most `MAX_RUNNING` run at a
time, each for `timeout_s` at most; one that takes longer is killed with its process group. What a command leaves
running in the background is left alone; its output should go elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import string
import tempfile
from typing import IO, TYPE_CHECKING

from router.autoscale.launcher import LaunchError
from router.config.static import ConfigError

if TYPE_CHECKING:
    from router.autoscale.launcher import Order

MAX_RUNNING = 8
MAX_SHOWN_BYTES = 400  # of what a command that failed said
FIELDS = frozenset(("endpoint", "replica", "region", "desired"))


class Template:
    """A command with places for the values of an order. ConfigError names the flag."""

    def __init__(self, text: str, flag: str) -> None:
        try:
            self._words = shlex.split(text)
            fields = {name for word in self._words for _, name, _, _ in string.Formatter().parse(word)} - {None}
        except ValueError as failure:
            raise ConfigError(f"{flag}: {failure}: {text!r}") from None
        if not self._words:
            raise ConfigError(f"{flag}: there is no command")
        if unknown := {str(name) for name in fields} - FIELDS:
            known = ", ".join(sorted(FIELDS))
            raise ConfigError(f"{flag}: {{{min(unknown)}}} is none of {known}; a brace is written twice")
        if "replica" not in fields:
            raise ConfigError(f"{flag}: it must name the replica, as {{replica}}: which one it is decides")

    def words(self, order: Order) -> list[str]:
        """Return the command of one order."""
        values = {
            "endpoint": order.endpoint, "replica": order.replica, "region": order.region, "desired": order.desired,
        }  # fmt: skip
        return [word.format(**values) for word in self._words]


class Commands:
    """Implements `launcher.Launcher`."""

    def __init__(self, launch: str, stop: str, timeout_s: float) -> None:
        self._launch = Template(launch, "--launch-command")
        self._stop = Template(stop, "--stop-command")
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(MAX_RUNNING)

    def adopt(self) -> None:
        """Nothing to find: the store tells by their names which replicas are ours."""

    def endpoints(self) -> set[str]:
        """Return none: only the store can tell."""
        return set()

    def running(self, endpoint: str) -> None:
        """Return None: only the store can tell."""

    async def start(self, order: Order) -> None:
        """Run the command that starts a replica."""
        await self._run(self._launch.words(order))

    async def stop(self, order: Order) -> None:
        """Run the command that drains and ends a replica."""
        await self._run(self._stop.words(order))

    async def close(self, *, stop: bool) -> None:
        """Nothing is held. To stop all, the keeper orders each stop."""

    async def _run(self, words: list[str]) -> None:
        # A file, not a pipe: what the command leaves running may hold it, and must not be waited for.
        async with self._slots:
            with tempfile.TemporaryFile() as output:
                code = await self._run_into(words, output)
                if code:
                    output.seek(max(0, output.seek(0, os.SEEK_END) - MAX_SHOWN_BYTES))
                    text = " ".join(output.read().decode(errors="replace").split())
                    raise LaunchError(f"{words[0]}: exit code {code}{': ' if text else ''}{text}")

    async def _run_into(self, words: list[str], output: IO[bytes]) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as failure:
            raise LaunchError(f"{words[0]}: {failure.strerror or failure}") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await process.wait()
        except TimeoutError:
            raise LaunchError(f"{words[0]}: still running after {self._timeout_s:g} s: killed") from None
        finally:
            if process.returncode is None:  # late, or cancelled
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
