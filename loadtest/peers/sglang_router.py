"""SGLang's Rust router, with one runtime thread.

It logs at `warn`, so it has no line per request: the kinder setting, since its `info` lines cost it
more than the others' access logs. Circuit breaker, retries and health checks are its defaults. It
relays no WebSocket. Imports `base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.peers.base import Readiness, Site, find_binary, package_version

if TYPE_CHECKING:
    from pathlib import Path


class SglangRouter:
    """`Peer` for `sglang-router` (also installed as `smg`)."""

    name = "sglang-router"
    package = "pip install sglang-router"
    works = frozenset(("unary", "sse"))

    def binary(self) -> Path | None:
        """Path of the executable, if any."""
        return find_binary("sglang-router")

    def version(self) -> str:
        """Version of the package."""
        return package_version("sglang-router")

    def configure(self, site: Site) -> list[str]:
        """Command line only; its metrics listener takes the admin port."""
        return [
            str(self.binary()), "launch",
            "--host", "127.0.0.1", "--port", str(site.listen_port),
            "--worker-urls", f"http://127.0.0.1:{site.replica_port}",
            "--policy", "round_robin",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(site.admin_port),
            "--log-dir", str(site.folder), "--log-level", "warn",
        ]  # fmt: skip

    def check(self, site: Site) -> list[str] | None:
        """Nothing: it has no configuration file."""
        return None

    def readiness(self, site: Site) -> Readiness:
        """`/readiness`: 200 once a worker is healthy."""
        return Readiness(site.listen_port, "/readiness")

    def environment(self) -> dict[str, str]:
        """One runtime thread, also when the run is not pinned."""
        return {"TOKIO_WORKER_THREADS": "1"}
