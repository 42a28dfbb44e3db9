"""The engine as a process of ours, and as one that somebody else runs.

`EngineProcess` gives the command its own session and process group and passes its output through. SIGTERM goes
to the engine alone, because it knows in which order its own children end; SIGKILL goes to the whole group.
Nothing of an incarnation is left when the next one starts, and nothing at all when the sidecar is gone (see
`child`). asyncio only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from router.routing.load import split_address
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHILD = str(Path(__file__).with_name("child.py"))
FLOOR_S = 0.5  # the first wait; it doubles while incarnations die young
CEILING_S = 30.0  # a model that cannot load reads its weights in vain each time
OLD_AGE_S = 120.0  # longer than most engines take to load: it died of something else than its own start
_KNOCK_S = 5.0
_GONE_POLL_S = 0.01
_GONE_S = 10.0  # the kernel may take a while to give back a GPU's memory


class EngineProcess:
    """Runs `command`, again and again; satisfies `ports.Engine`.

    `generation` is the last one in use: the first start is one more. `stdout` as of `subprocess`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        generation: int = 0,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        floor_s: float = FLOOR_S,
        ceiling_s: float = CEILING_S,
        old_age_s: float = OLD_AGE_S,
    ) -> None:
        assert command, "an engine without a command is an ExternalEngine"
        self.command = tuple(command)
        self._before = generation
        self._starts = 0
        self._env = env
        self._stdout = stdout
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._old_age_s = old_age_s
        self._wait_s = 0.0
        self._began_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline = -1
        self._is_killed = False

    @property
    def generation(self) -> int:
        """Number of the incarnation."""
        return self._before + self._starts

    @property
    def restarts(self) -> int:
        """How often it was started after the first time."""
        return max(self._starts - 1, 0)

    @property
    def pid(self) -> int:
        """The engine's process id, which is its group's as well; 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the engine's own process runs."""
        return self._process is not None and self._process.returncode is None

    def back_off_s(self) -> float:
        """Return how long to wait before the next start."""
        return self._wait_s

    async def start(self) -> None:
        """Run the command once more. OSError if a process cannot be made or the command is not to be found."""
        assert not self.is_running, "one incarnation at a time"
        await self._clear_group()
        self._starts += 1
        self._began_s = asyncio.get_running_loop().time()
        # Should this fail or the engine die young: the next wait is at least the floor.
        self._wait_s = min(max(self._wait_s * 2, self._floor_s), self._ceiling_s)
        if shutil.which(self.command[0], path=(self._env or os.environ).get("PATH")) is None:
            raise FileNotFoundError(f"no such command: {self.command[0]}")
        making = spawn(self._make(), f"engine {self.generation}")
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:  # a process that is half made cannot be given up: have it, then end it
            await asyncio.wait([making])
            await self.stop(0)
            raise

    async def exited(self) -> str:
        """Wait until the engine's own process has ended; kill what it left in its group; say how it ended."""
        process = self._process
        assert process is not None, "start it first"
        code = await process.wait()
        if process is self._process:
            self._kill_group()
        if asyncio.get_running_loop().time() - self._began_s >= self._old_age_s:
            self._wait_s = self._floor_s
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def stop(self, grace_s: float) -> bool:
        """SIGTERM to the engine, `grace_s` later SIGKILL to its group; return whether it went by itself."""
        process = self._process
        if process is None:
            return True
        if process.returncode is None and grace_s > 0:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await process.wait()
        went = process.returncode is not None
        self._kill_group()
        await process.wait()
        await self._clear_group()
        return went

    async def _make(self) -> None:
        lifeline, ours = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", _CHILD, str(lifeline), str(os.getpid()), *self.command,
                stdin=asyncio.subprocess.DEVNULL, stdout=self._stdout, start_new_session=True, pass_fds=(lifeline,),
                env=None if self._env is None else {**os.environ, **self._env},
            )  # fmt: skip
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(lifeline)
        self._lifeline = ours
        self._is_killed = False

    def _kill_group(self) -> None:
        """Once: nobody survives it, and the number may be another's when the last of them is gone."""
        if self._lifeline >= 0 and not self._is_killed:
            self._is_killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _clear_group(self) -> None:
        """Wait until no process of the last incarnation is left, so that its memory and ports are free."""
        if self._lifeline < 0:
            return
        self._kill_group()
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + _GONE_S
        while _is_left(self.pid) and loop.time() < give_up_s:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(_GONE_POLL_S)
        os.close(self._lifeline)
        self._lifeline = -1


def _is_left(group: int) -> bool:
    """Whether any process of the group still holds something; the dead that no init reaps do not."""
    with contextlib.suppress(ChildProcessError):  # what fell to this process, if it is the init of a container
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = entry.read_bytes().rpartition(b")")[2].split(maxsplit=3)[:3]
            if int(its_group) == group and state not in {b"Z", b"X"}:
                return True
    return not Path("/proc/self").exists()


class ExternalEngine:
    """An engine that somebody else starts and stops, at http://host:port; satisfies `ports.Engine`.

    Its death is known from its port alone (`readiness`); its next incarnation begins when the port accepts again.
    """

    def __init__(self, address: str, *, generation: int = 0, poll_s: float = 0.25) -> None:
        _, self._host, self._port = split_address(address)
        self._before = generation
        self._starts = 0
        self._poll_s = poll_s

    @property
    def generation(self) -> int:
        """Number of the incarnation."""
        return self._before + self._starts

    @property
    def restarts(self) -> int:
        """How often it was waited for after the first time."""
        return max(self._starts - 1, 0)

    def back_off_s(self) -> float:
        """Waiting costs nothing: the port is asked at a steady pace anyway."""
        return 0.0

    async def start(self) -> None:
        """Count an incarnation: the first at once, since it may well be loading; the next when it listens."""
        while self._starts and not await self._listens():  # noqa: ASYNC110 - a port tells nobody
            await asyncio.sleep(self._poll_s)
        self._starts += 1

    async def exited(self) -> str:
        """Never return: there is no process to wait for."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    async def stop(self, grace_s: float) -> bool:
        """Leave it alone."""
        return True

    async def _listens(self) -> bool:
        try:
            async with asyncio.timeout(_KNOCK_S):
                _, writer = await asyncio.open_connection(self._host, self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True
