"""Start the servers of this package as child processes, for tests and for `router up`.

    async with ReplicaProcess.simulate(time_scale=0) as replica:
        ...  # replica.url, replica.pid

asyncio only; works on its default loop and on uvloop. A child never outlives its parent: it is stopped by
`stop` or `kill`, and the kernel kills it if the thread that started it ends without either
(PR_SET_PDEATHSIG). Start it from a thread that lives as long as the child should: the main one, usually.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_STDERR_SHOWN = 4_000  # bytes of a dead child's stderr that its error shows
Option = str | float | bool | None


class LaunchError(RuntimeError):
    """The child exited or said nothing within the time given; the text has what it wrote to stderr."""


class ReplicaProcess:
    """One child: `python -m inference_backend` with `arguments`."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, start_timeout_s: float = 20.0
    ) -> None:
        self.arguments = arguments
        self.url = ""
        self._env = env
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: IO[bytes] | None = None

    @classmethod
    def simulate(cls, **options: Option) -> Self:
        """Make a simulated engine; options as on the command line, `time_scale=0` is `--time-scale 0`."""
        return cls("simulate", *_flags(options))

    @classmethod
    def policy(cls, **options: Option) -> Self:
        """Make an openpi policy server; options as on the command line."""
        return cls("policy", *_flags(options))

    @property
    def pid(self) -> int:
        """The child's process id; only after `start`."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> Self:
        """Start the child and wait for its ready line.  Raises LaunchError, with no child left."""
        assert self._process is None, "a ReplicaProcess starts once"
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by _reap
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "inference_backend",
            *self.arguments,
            "--die-with",
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            env=None if self._env is None else {**os.environ, **self._env},
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._start_timeout_s):
                line = await process.stdout.readline()
            self.url = json.loads(line)["url"]
        except TimeoutError:
            raise await self._failed(f"was not ready within {self._start_timeout_s} s") from None
        except (ValueError, KeyError, TypeError):
            raise await self._failed("exited before it was ready") from None
        except BaseException:
            await self.kill()
            raise
        return self

    async def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL if it still runs after `timeout_s`; the exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """SIGKILL; the exit code."""
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def send_signal(self, number: int) -> None:
        """Signal the child, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Until the child has exited and its pipe is closed; the exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        code = await self._process.wait()
        await self._process.stdout.read()
        return code

    def stderr(self) -> str:
        """Return the end of what the child wrote to stderr so far."""
        if self._stderr is None or self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(size - _STDERR_SHOWN, 0))
        text = self._stderr.read().decode(errors="replace")
        self._stderr.seek(0, os.SEEK_END)  # the child shares this position
        return text

    def close(self) -> None:
        """Forget the child's stderr; the last call, after it exited."""
        if self._stderr is not None:
            self._stderr.close()

    async def __aenter__(self) -> Self:
        return self if self._process is not None else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.close()

    async def _failed(self, what: str) -> LaunchError:
        code = await self.kill()
        text = self.stderr()
        self.close()
        command = " ".join(self.arguments)
        return LaunchError(
            f"`python -m inference_backend {command}` {what} (exit code {code}); stderr:\n{text}"
        )


def _flags(options: Mapping[str, Option]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags
