"""Replicas as processes of this host: a sidecar each, which runs a simulated engine and registers it.

They are nobody's children: an autoscaler that ends, however it ends, leaves them serving, and the next one finds
them by what the kernel knows (a variable of their environment says which store they belong to, their command line
which replica they are), so there is no file that could be wrong. A sidecar takes its engine with it when it ends.
SIGTERM drains; it is sent once, since a second one cuts what is under way. SIGKILL follows when the sidecar
overstays all of its own graces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from router.autoscale.launcher import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from router.autoscale.launcher import Order

_log = logging.getLogger("router.autoscale")

MARK = "ROUTER_AUTOSCALED_FOR"
"""Variable in a sidecar's environment: the key of its store."""
STORE_S = 10.0  # of a sidecar's own limits: for the store, and for things to take a while
POLL_S = 0.05
_SIDECAR = ["-m", "router", "sidecar"]


@dataclass(frozen=True, slots=True)
class SimOptions:
    """How sidecars and engines are started. `store` and `state_dir` are as on the command line."""

    store: str
    state_dir: str
    key: str
    """Of the store: `Target.key`."""
    engine_args: tuple[str, ...] = ()
    settle_s: float = 0.5
    exit_grace_s: float = 60.0
    engine_grace_s: float = 20.0
    log_dir: str = ""

    @property
    def stop_limit_s(self) -> float:
        """The longest that a sidecar may take to end."""
        return self.settle_s + self.exit_grace_s + self.engine_grace_s + STORE_S


class Running:
    """One sidecar, held by a descriptor, so that its number never stands for another process."""

    __slots__ = ("_child", "_pidfd", "kill_at_s", "pid")

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._child = child
        self.kill_at_s: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended; a child is then no zombie any more."""
        if self._child is not None:
            return self._child.poll() is not None
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def signal(self, number: int) -> None:
        """Signal it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._pidfd)
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # it stays: nobody is to warn of that


class SimProcesses:
    """Implements `launcher.Launcher`. `free_port` returns a port for an engine.

    `names` are the endpoints whose replicas are to be taken over; None: all.
    """

    def __init__(
        self, options: SimOptions, free_port: Callable[[], int], names: Collection[str] | None = None
    ) -> None:
        self._options = options
        self._free_port = free_port
        self._names = names
        self._running: dict[tuple[str, str], Running] = {}

    def adopt(self) -> None:
        """Find sidecars that an earlier run started."""
        known = {running.pid for running in self._running.values()}
        for pid, endpoint, replica in find_sidecars(self._options.key):
            is_wanted = self._names is None or endpoint in self._names
            if not is_wanted or pid in known or (endpoint, replica) in self._running:
                continue
            with contextlib.suppress(OSError):  # it has just ended
                found = Running(pid)
                if _sidecar_of(pid, self._options.key) != (endpoint, replica):
                    found.close()
                    continue
                self._running[endpoint, replica] = found
                _log.info("replica %s of %s runs already, process %d", replica, endpoint, pid)

    def endpoints(self) -> set[str]:
        """Return the endpoints of which sidecars run."""
        return {endpoint for endpoint, _ in self._running}

    def running(self, endpoint: str) -> set[str]:
        """Return the replicas whose sidecar runs; kill those that overstay."""
        for key, process in list(self._running.items()):
            if process.has_ended:
                process.close()
                del self._running[key]
            elif process.kill_at_s is not None and monotonic() > process.kill_at_s:
                _log.error("replica %s of %s did not end in time and is killed", key[1], key[0])
                process.signal(signal.SIGKILL)
        return {replica for owner, replica in self._running if owner == endpoint}

    async def start(self, order: Order) -> None:
        """Start a sidecar with its engine."""
        options = self._options
        try:
            port = self._free_port()
            command = [sys.executable, *_SIDECAR, *self._arguments(order, port)]
            # Some milliseconds, and on no other thread: half made, it could neither be counted nor found.
            child = self._spawn(command, {**os.environ, MARK: options.key}, order.replica)
            self._running[order.endpoint, order.replica] = Running(child.pid, child)
        except OSError as failure:
            raise LaunchError(str(failure)) from None

    async def stop(self, order: Order) -> None:
        """SIGTERM, once."""
        self._stop(self._running.get((order.endpoint, order.replica)))

    async def close(self, *, stop: bool) -> None:
        """End; see `launcher.Launcher`."""
        if stop:
            for process in self._running.values():
                self._stop(process)
            while any([self.running(endpoint) for endpoint, _ in list(self._running)]):  # noqa: C419, ASYNC110 - reaps each
                await asyncio.sleep(POLL_S)
        for process in self._running.values():
            process.close()
        self._running.clear()

    def _stop(self, process: Running | None) -> None:
        if process is not None and process.kill_at_s is None:
            process.kill_at_s = monotonic() + self._options.stop_limit_s
            process.signal(signal.SIGTERM)

    def _arguments(self, order: Order, port: int) -> list[str]:
        options = self._options
        where = ["--state-dir", options.state_dir] if options.state_dir else []
        return [
            "--store", options.store, *where, "--endpoint", order.endpoint, "--replica", order.replica,
            "--upstream", f"http://127.0.0.1:{port}", "--region", order.region,
            "--settle-s", str(options.settle_s), "--exit-grace-s", str(options.exit_grace_s),
            "--engine-grace-s", str(options.engine_grace_s), "--log-level", "WARNING",
            "--", sys.executable, "-m", "inference_backend", "simulate", "--port", str(port), *options.engine_args,
        ]  # fmt: skip

    def _spawn(self, command: Sequence[str], env: dict[str, str], replica: str) -> subprocess.Popen[bytes]:
        if not self._options.log_dir:
            return _popen(command, env, subprocess.DEVNULL)
        with (Path(self._options.log_dir) / f"{replica}.log").open("ab") as log:
            return _popen(command, env, log.fileno())


def _popen(command: Sequence[str], env: dict[str, str], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - ours
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
    )


def find_sidecars(key: str) -> list[tuple[int, str, str]]:
    """Return process, endpoint and replica of each sidecar that an autoscaler of this store started."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [(pid, *names) for pid in pids if (names := _sidecar_of(pid, key)) is not None]


def _sidecar_of(pid: int, key: str) -> tuple[str, str] | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if words[1:4] != _SIDECAR:  # most processes
            return None
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return None
    if f"{MARK}={key}".encode() not in environ:
        return None
    own = words[: words.index("--")] if "--" in words else words
    values = dict(pairwise(own))
    return values.get("--endpoint", ""), values.get("--replica", "")
