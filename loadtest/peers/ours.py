"""The router of this repository, with one worker and everything on.

Access log to a file, metrics, request id and server-timing are in the figure. The supervisor is a
process of its own: figures name it apart from the worker. Imports `base`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from loadtest.peers.base import (
    ALL_WORKS,
    SECURE,
    Readiness,
    Site,
    asked_version,
    certificate_files,
    package_version,
)

NOT_COMPILED = "Python source"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ours:
    """`Peer` for `python -m router serve`; `python` is the interpreter whose router is measured."""

    python: Path = Path(sys.executable)
    arguments: tuple[str, ...] = ()
    name: str = "ours"
    package: str = "pip install -e ."
    works: frozenset[str] = ALL_WORKS | {"h3"}

    def binary(self) -> Path | None:
        """Path of the interpreter, if it is there."""
        return self.python if self.python.exists() else None

    def version(self) -> str:
        """Version of the package beside this one, and whether the data path runs as machine code."""
        manner = "compiled" if self.is_compiled() else NOT_COMPILED
        return f"{package_version('replica-router')} ({manner})"

    def is_compiled(self) -> bool:
        """Whether the interpreter would run what `router compile` made: a changed source makes it stale."""
        question = "from router.compiled import is_current; print(is_current())"
        return asked_version([str(self.python), "-c", question], self.environment()) == "True"

    def configure(self, site: Site) -> list[str]:
        """Command line only: a static table with one replica."""
        listen = ["--listen", f"127.0.0.1:{site.listen_port}"]
        if site.wire in SECURE:
            certificate, key = map(str, certificate_files(site))
            flag = "--listen-quic" if site.wire == "h3" else "--listen-tls"
            listen = ["--listen", "127.0.0.1:0", flag, listen[1], "--tls-cert", certificate, "--tls-key", key]
        scheme = "h2c" if site.wire == "h2" else "http"
        return [
            str(self.python), "-m", "router", "serve",
            *listen,
            "--replica", f"{scheme}://127.0.0.1:{site.replica_port}",
            "--workers", "1",
            "--admin", f"127.0.0.1:{site.admin_port}",
            "--access-log", str(site.folder / "access.log"),
            *self.arguments,
        ]  # fmt: skip

    def check(self, site: Site) -> list[str] | None:
        """Nothing: it has no configuration file."""
        return None

    def readiness(self, site: Site) -> Readiness:
        """`/readyz` of the admin listener, which the supervisor answers."""
        return Readiness(site.admin_port, "/readyz")

    def environment(self) -> dict[str, str]:
        """Point at the checkout this comparison is of, unless another interpreter brings its own router."""
        return {"PYTHONPATH": str(CHECKOUT)} if self.python == Path(sys.executable) else {}
