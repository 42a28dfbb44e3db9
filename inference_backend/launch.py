"""Start the servers of this package as child processes, for tests and for `router up`.

    async with ReplicaProcess.simulate(time_scale=0) as replica:
        ...  # replica.url, replica.pid
    async with SglangProcess() as replica:
        ...  # the real SGLang on this CPU, if its environment is there

asyncio only; works on its default loop and on uvloop. A child never outlives its parent: it is stopped by
`stop` or `kill`, and the kernel kills it if the thread that started it ends without either
(PR_SET_PDEATHSIG). Start it from a thread that lives as long as the child should: the main one, usually.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Self

from inference_backend.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

_READY_POLL_S = 0.1
_STDERR_SHOWN = 4_000  # bytes of a dead child's stderr that its error shows
Option = str | float | bool | None


class LaunchError(RuntimeError):
    """The child exited or said nothing within the time given; the text has what it wrote to stderr."""


class ChildProcess:
    """A server as a child of this process; what is common to all of them."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, start_timeout_s: float = 20.0
    ) -> None:
        self.arguments = arguments
        self.url = ""
        self.grpc_url = ""  # h2c://…, of an engine started with `grpc_port`
        self._env = env
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: IO[bytes] | None = None

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
        """Start the child and wait until it serves.  Raises LaunchError, with no child left."""
        raise NotImplementedError

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
        code = await self._process.wait()
        if self._process.stdout is not None:
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

    async def _spawn(self, *, stdout: int | IO[bytes], is_leader: bool = False) -> asyncio.subprocess.Process:
        assert self._process is None, f"a {type(self).__name__} starts once"
        assert self._stderr is not None
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "inference_backend",
            *self.arguments,
            "--die-with",
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._stderr,
            env=None if self._env is None else {**os.environ, **self._env},
            start_new_session=is_leader,
        )


class ReplicaProcess(ChildProcess):
    """One child: `python -m inference_backend` with `arguments`."""

    @classmethod
    def simulate(cls, **options: Option) -> Self:
        """Make a simulated engine; options as on the command line, `time_scale=0` is `--time-scale 0`."""
        return cls("simulate", *_flags(options))

    @classmethod
    def policy(cls, **options: Option) -> Self:
        """Make an openpi policy server; options as on the command line."""
        return cls("policy", *_flags(options))

    @classmethod
    def lerobot(cls, **options: Option) -> Self:
        """Make a policy server for LeRobot's robots; options as on the command line."""
        return cls("lerobot", *_flags(options))

    async def start(self) -> Self:
        """Start the child and wait for its ready line.  Raises LaunchError, with no child left."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`
        self._process = process = await self._spawn(stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._start_timeout_s):
                line = await process.stdout.readline()
            ready = json.loads(line)
            self.url, self.grpc_url = ready["url"], ready.get("grpc_url", "")
        except TimeoutError:
            raise await self._failed(f"was not ready within {self._start_timeout_s} s") from None
        except (ValueError, KeyError, TypeError):
            raise await self._failed("exited before it was ready") from None
        except BaseException:
            await self.kill()
            raise
        return self


class SglangProcess(ChildProcess):
    """The real SGLang server on this CPU, started with `flags` of its own; see `sglang_cpu.place`.

    It takes about 15 s to serve. `env` chooses what flags cannot, SGLANG_RUST_SERVER=1 for one. `stderr`
    returns all that it printed. SIGTERM goes to the server alone, SIGKILL to all of its processes.
    """

    def __init__(
        self, *flags: str, env: Mapping[str, str] | None = None, start_timeout_s: float = 180.0
    ) -> None:
        self.port = free_port()
        super().__init__(
            "sglang-cpu", "serve", "--port", str(self.port), *flags, env=env, start_timeout_s=start_timeout_s
        )

    async def start(self) -> Self:
        """Start it and wait until /ready, or /health where there is none, answers 200."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`
        self._process = process = await self._spawn(stdout=self._stderr, is_leader=True)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while process.returncode is None and await self._status() != 200:  # noqa: ASYNC110 -- a port tells nobody
                    await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise await self._failed(f"was not ready within {self._start_timeout_s} s") from None
        except BaseException:
            await self.kill()
            raise
        if process.returncode is not None:
            raise await self._failed("exited before it was ready")
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, which it takes up to 15 s to follow when idle; SIGKILL after `timeout_s`; the exit code."""
        code = await super().stop(timeout_s)
        self._kill_group()
        return code

    async def kill(self) -> int:
        """SIGKILL to all of its processes; the exit code."""
        self._kill_group()
        return await self.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _status(self) -> int:
        status = await _get(self.port, "/ready")
        return await _get(self.port, "/health") if status == 404 else status


async def _get(port: int, path: str) -> int:
    """Return the status, 0 if nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split(maxsplit=2)[1])
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        writer.close()


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
