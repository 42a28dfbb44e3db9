"""gRPC-shaped unary calls by nghttp2's h2load, in a closed loop of N connections with M streams each.

A client that nobody here wrote, and cheaper than any in Python. Its window is its own: the CPU clocks are read just
before it starts and just after it ended, so connecting is in the figure (a thousandth of it) and a short run before
warms up. A gRPC error is a 200 without a message, so the bytes of data are checked as well as the statuses.
Imports the seam, `percentiles` and `h2`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import h2

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window

PACKAGE = "apt install nghttp2-client"
_HEADERS = (
    "content-type: application/grpc",
    "te: trailers",
    "user-agent: grpc-python/1.85.1 grpc-c/58.0.0 (linux; chttp2)",
    "grpc-accept-encoding: identity, deflate, gzip",
)
_DEADLINE = "grpc-timeout: 30S"
_PATH = "/sglang.grpc.scheduler.SglangScheduler/HealthCheck"
_WARMUP_CALLS = 500
_GRACE_S = 20.0
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m)")
_REQUESTS = re.compile(
    r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout"
)
_DATA = re.compile(r"\((\d+)\) data")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def binary() -> str | None:
    """Path of h2load; None when it is not installed."""
    return shutil.which("h2load")


class H2Load:
    """`Client` around a process of h2load; a unit is a call."""

    def __init__(self, command: Command, window: Window) -> None:
        self.command = command
        self.window = window
        self.headers = (*_HEADERS, _DEADLINE) if command.deadline else _HEADERS
        self.folder = tempfile.TemporaryDirectory(prefix="h2load-")
        self.message = Path(self.folder.name) / "message"
        self.log = Path(self.folder.name) / "log"

    async def start(self) -> None:
        """Write the message and warm up; OSError when there is no h2load."""
        if binary() is None:
            raise FileNotFoundError(f"h2load is not installed ({PACKAGE})")
        self.message.write_bytes(h2.MESSAGE)
        await self._run("-n", str(_WARMUP_CALLS))

    async def work(self) -> None:
        """Run it for the length of the window."""
        milliseconds = round(self.command.duration_s * 1e3)
        text = await self._run("-D", f"{milliseconds}ms", f"--log-file={self.log}")
        self._read(text)

    def _read(self, text: str) -> None:
        window = self.window
        requests, finished, data = _REQUESTS.search(text), _FINISHED.search(text), _DATA.search(text)
        if requests is None or finished is None or data is None:
            window.fail(f"h2load said {text[-200:]!r}")
            return
        done, succeeded, failed, errored, timed_out = map(int, requests.groups())
        window.units = succeeded
        for count, what in ((failed, "failed"), (errored, "errored"), (timed_out, "timed out")):
            if count:
                window.fail(f"{what}: {count}")
        if int(data[1]) < succeeded * len(h2.MESSAGE):
            window.fail(f"{data[1]} bytes of data in {succeeded} answers: refused by gRPC status")
        if done and self.log.exists():
            # start in µs since the epoch, status, µs it took
            window.latencies.extend(int(line.split(b"\t")[2]) / 1e6 for line in self.log.read_bytes().splitlines())
        window.took_s = float(finished[1]) * _SECONDS[finished[2]]

    async def _run(self, *options: str) -> str:
        command = self.command
        process = await asyncio.create_subprocess_exec(
            binary() or "h2load",
            *("-t", "1", "-c", str(command.connections), "-m", str(command.streams), "-d", str(self.message)),
            *(part for header in self.headers for part in ("-H", header)),
            *options,
            f"http://127.0.0.1:{command.port}{_PATH}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(command.duration_s + _GRACE_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return output.decode(errors="replace")

    async def drain(self) -> None:
        """Nothing: what was not answered when it stopped is not counted."""

    def close(self) -> None:
        """Remove its files."""
        self.folder.cleanup()
