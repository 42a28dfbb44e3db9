"""HAProxy with one thread: HTTP keep-alive on both legs, a request id, a log line per request.

HAProxy cannot open a log file; it writes raw lines to its standard output, which the comparison sends
to a file. `option http-no-delay` keeps it from holding back the events of a stream. Imports `base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.peers.base import HTTP1_WORKS, Readiness, Site, asked_version, find_binary

if TYPE_CHECKING:
    from pathlib import Path

_CONFIGURATION = """\
global
    nbthread 1
    maxconn 8192
    log stdout format raw local0 info

defaults
    mode http
    log global
    option httplog
    option http-keep-alive
    option http-no-delay
    option forwardfor
    http-reuse always
    retries 0
    timeout connect 1s
    timeout client 1800s
    timeout server 1800s
    timeout tunnel 1800s
    timeout http-keep-alive 3600s

frontend downstream
    bind 127.0.0.1:{listen_port}
    unique-id-format %[uuid()]
    unique-id-header x-request-id
    default_backend replicas

backend replicas
    balance leastconn
    server one 127.0.0.1:{replica_port} maxconn 8192 pool-max-conn -1
"""


class HAProxy:
    """`Peer` for HAProxy."""

    name = "haproxy"
    package = "apt install haproxy"
    works = HTTP1_WORKS

    def binary(self) -> Path | None:
        """Path of the executable, if any."""
        return find_binary("haproxy")

    def version(self) -> str:
        """Return what `haproxy -v` says, without the address of its site."""
        return asked_version([str(self.binary()), "-v"]).removeprefix("HAProxy version ").split(" ")[0]

    def configure(self, site: Site) -> list[str]:
        """Write `haproxy.cfg`; in the foreground, one process."""
        text = _CONFIGURATION.format(listen_port=site.listen_port, replica_port=site.replica_port)
        path = site.folder / "haproxy.cfg"
        path.write_text(text)
        return [str(self.binary()), "-db", "-f", str(path)]

    def check(self, site: Site) -> list[str] | None:
        """`haproxy -c`."""
        return [str(self.binary()), "-c", "-f", str(site.folder / "haproxy.cfg")]

    def readiness(self, site: Site) -> Readiness:
        """Ask for the replica's answer through the proxy."""
        return Readiness(site.listen_port, "/health")

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}
