"""Starting and ending the processes of a run, so that none is left behind whatever happens.

Every child has a session of its own: Ctrl-C reaches this process alone, which then ends its children
by id, first with SIGTERM, then, after `STOP_S`, with SIGKILL to the child's own group. All waits are
bounded. Imports `pins`, the seam of the clients and the peers.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from inference_backend.ports import free_port
from loadtest.clients.window import Result
from loadtest.peers.ours import CHECKOUT
from loadtest.pins import pinned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType, TracebackType

    from loadtest.clients.window import Command
    from loadtest.peers.base import Readiness

STOP_S = 6.0  # a daemon that drains gets this long to see that nobody is connected any more
READY_S = 20.0  # the slowest peer to start (SGLang's router) took 3 s on a busy machine


class NotReadyError(RuntimeError):
    """A process ended, or did not become ready in time; the text holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process and the file with its output."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def last_output(self) -> str:
        """At most 2,000 characters from the end of its output."""
        return self.output.read_text(errors="replace")[-2000:].strip()


class Fleet:
    """All child processes of a block; leaving the block ends them."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every child that still runs; a second Ctrl-C does not interrupt that."""
        with signals_deferred():
            self.stop(list(self._children))

    def start(
        self,
        name: str,
        command: list[str],
        *,
        folder: Path,
        cpus: list[int],
        environment: dict[str, str] | None = None,
        pipes: bool = False,
    ) -> Child:
        """Start `command` on `cpus`; its output goes to `folder`, or with `pipes` stdin and stdout to us."""
        output = folder / f"{name}.output"
        # An interrupt between the fork and the list would leave a process that nobody ends.
        with output.open("wb") as sink, pinned(cpus), signals_deferred():
            process = subprocess.Popen(  # noqa: S603 -- the commands are built by this package
                command,
                cwd=folder,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else sink,
                stderr=sink if pipes else subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            child = Child(name, process, output)
            self._children.append(child)
        return child

    def stop(self, children: list[Child]) -> None:
        """End `children`, all at once, within `STOP_S` and a moment."""
        for child in children:
            child.process.terminate()
        until = time.monotonic() + STOP_S
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            # Also after it ended: a supervisor that died leaves its workers in the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.process.wait()
            for stream in (child.process.stdin, child.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._children.remove(child)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM of the block, which is bounded in time, after it (main thread only).

    Handlers, not a mask: a child would inherit the mask and never hear SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {
        sign: signal.signal(sign, lambda number, _frame: heard.append(number))
        for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
        if heard:
            signal.raise_signal(heard[0])


def free_ports(count: int) -> list[int]:
    """Loopback ports, distinct, that nothing listened on a moment ago."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


def wait_ready(child: Child, readiness: Readiness, within_s: float = READY_S) -> None:
    """Return once GET of `readiness` answered 200; NotReadyError when `child` ended or took too long."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        code = child.process.poll()
        if code is not None:
            raise NotReadyError(f"{child.name} ended with code {code}: {child.last_output()}")
        connection = http.client.HTTPConnection("127.0.0.1", readiness.port, timeout=2)
        try:
            connection.request("GET", readiness.path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise NotReadyError(f"{child.name} was not ready after {within_s:g} s: {child.last_output()}")


class Generator:
    """The generator's process: one measurement at a time."""

    def __init__(self, fleet: Fleet, folder: Path, cpus: list[int]) -> None:
        command = [sys.executable, "-m", "loadtest.generator"]
        self._child = fleet.start(
            "generator",
            command,
            folder=folder,
            cpus=cpus,
            environment={"PYTHONPATH": str(CHECKOUT)},
            pipes=True,
        )

    def measure(self, command: Command) -> Result:
        """Have `command` measured; bounded by the generator itself."""
        stdin, stdout = self._child.process.stdin, self._child.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(msgspec.json.encode(command) + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise NotReadyError(f"the generator ended: {self._child.last_output()}")
        return msgspec.json.decode(line, type=Result)


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Make SIGTERM leave the block as Ctrl-C does, so that the children are ended too."""

    def interrupt(_sign: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
