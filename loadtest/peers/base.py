"""What a peer is: a name, a binary that may be absent, a configuration, a command, a readiness check.

All figures of a peer are taken with one core's worth of workers, keep-alive to the replica, TCP_NODELAY
where it can be set, an access log to a file where it has one, and a request id per request. Imports
nothing of the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

Wire = Literal["http1", "h2", "tls", "h3"]
"""What a proxy speaks: HTTP/1.1 or, in the clear, HTTP/2 on both sides; HTTP/1.1, before it in TLS, or HTTP/3."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one instance of a peer runs: a folder of its own and loopback ports; what it speaks there.

    `certificate` is the folder of `certificate.pem` and `key.pem`; only where `wire` is "tls" or "h3".
    """

    folder: Path
    listen_port: int
    admin_port: int
    replica_port: int
    wire: Wire = "http1"
    certificate: Path | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """GET `path` on loopback `port` answers 200 once the peer serves."""

    port: int
    path: str


class Peer(Protocol):
    """One proxy; stateless, so one object serves every instance."""

    @property
    def name(self) -> str:
        """Name in options, tables and reports."""

    @property
    def package(self) -> str:
        """The package that brings it, as a reader would install it."""

    @property
    def works(self) -> frozenset[str]:
        """Works it can do."""

    def binary(self) -> Path | None:
        """Path of the executable; None when it is not installed."""

    def version(self) -> str:
        """Version of what `binary` found."""

    def configure(self, site: Site) -> list[str]:
        """Write the configuration into `site.folder` and return the command line that serves there."""

    def check(self, site: Site) -> list[str] | None:
        """Command line that validates the written configuration; None when the peer has none."""

    def readiness(self, site: Site) -> Readiness:
        """Where to ask whether it serves."""

    def environment(self) -> dict[str, str]:
        """Variables on top of the inherited environment."""


HTTP1_WORKS = frozenset(("unary", "sse", "websocket"))
ALL_WORKS = HTTP1_WORKS | frozenset(("grpc", "grpc-stream", "h2-body", "tls"))
SECURE: frozenset[Wire] = frozenset(("tls", "h3"))
"""What needs a certificate."""


def certificate_files(site: Site) -> tuple[Path, Path]:
    """Certificate and key of a site that speaks TLS."""
    assert site.certificate is not None
    return site.certificate / "certificate.pem", site.certificate / "key.pem"


def find_binary(name: str) -> Path | None:
    """Path of `name` beside this interpreter, else on PATH, else in the places of system daemons."""
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def package_version(name: str) -> str:
    """Version of an installed Python package; a dash when it came another way."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def asked_version(command: list[str], environment: dict[str, str] | None = None) -> str:
    """First line that `command` prints about itself; a dash when it prints none."""
    env = {**os.environ, **(environment or {})}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=env)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "-"
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    return lines[0] if lines else "-"
