"""Where the QUIC bench happens: a policy, a router in front of it, and who is charged for what.

Imports `processes`, `pins` and `certificate`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadtest.certificate import make_certificate
from loadtest.cpu import process_tree
from loadtest.peers.ours import CHECKOUT
from loadtest.pins import Pins, choose_pins
from loadtest.processes import READY_S, Child, Fleet, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PORTAL_HOST = "policy.bench"


class Place:
    """The processes of a run, which end with their fleet."""

    def __init__(self, fleet: Fleet, folder: Path, *, pin: bool) -> None:
        self._fleet = fleet
        self.folder = folder
        self.pins: Pins = choose_pins(os.sched_getaffinity(0), pin=pin)
        certificate = make_certificate(folder)
        self.certificate, self.key = certificate / "certificate.pem", certificate / "key.pem"
        self._router: tuple[int, int] | None = None

    def start(
        self, name: str, arguments: Sequence[str], *, cpus: list[int] | None = None, root: Path | None = None
    ) -> Child:
        """Start a Python program of this checkout, or of another `root`; by default where the proxies run."""
        return self._fleet.start(
            name, [sys.executable, *arguments], folder=self.folder, cpus=cpus or self.pins.proxy,
            environment={"PYTHONPATH": str(root or CHECKOUT), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def router(self) -> tuple[int, int]:
        """Return the QUIC port of a router in front of a policy, and its worker's process; started once."""
        if self._router is not None:
            return self._router
        policy = self.start("policy", ["-m", "loadtest.quic.policy"], cpus=self.pins.replica)
        child = self.start("router", [
            "-m", "router", "serve", "--json", "--replica", f"http://127.0.0.1:{ready(policy)['port']}",
            "--health", "none", "--workers", "1", "--admin", "none", "--listen-quic", "127.0.0.1:0",
            "--tls-cert", str(self.certificate), "--tls-key", str(self.key), "--quic-portal", PORTAL_HOST,
        ])  # fmt: skip
        (port,) = [urlsplit(url).port for url in ready(child)["listen"] if url.startswith("quic://")]
        self._router = int(port or 0), process_tree(child.pid)[-1]
        return self._router


def ready(child: Child) -> dict[str, Any]:
    """Return the JSON line that a child writes once it is ready."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        for line in child.output.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                found: dict[str, Any] = json.loads(line)
                return found
        if child.process.poll() is not None:
            raise NotReadyError(f"{child.name} ended with {child.process.returncode}: {child.last_output()}")
        time.sleep(0.02)
    raise NotReadyError(f"{child.name} was not ready in time: {child.last_output()}")
