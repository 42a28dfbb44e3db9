"""nginx with one worker, as the proxy and as the replica of the unary work.

The proxy keeps its upstream connections, does not buffer answers (a stream would wait), and writes an
access log to a file through a buffer, as its manual recommends. The replica returns the canned
completion from its configuration: the cheapest upstream there is. Imports `base` and `wire`.
"""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING

from loadtest import wire
from loadtest.peers.base import ALL_WORKS, Readiness, Site, asked_version, find_binary

if TYPE_CHECKING:
    from pathlib import Path

# Started by root, workers would become "nobody" and could not write into a private folder.
_USER = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""

_COMMON = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
{http}
}}
"""

_PROXY = """\
    log_format full '$remote_addr [$time_iso8601] "$request" $status $body_bytes_sent '
                    '$request_time $upstream_response_time $upstream_addr $request_id "$http_user_agent"';
    access_log {folder}/access.log full buffer=64k flush=1s;
    map $http_upgrade $upstream_connection {{ default upgrade; '' ''; }}
    upstream replicas {{
        server 127.0.0.1:{replica_port};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 3600s;
    }}
    server {{
        listen 127.0.0.1:{listen_port};
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upstream_connection;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Request-Id $request_id;
            add_header X-Request-Id $request_id;
            proxy_buffering off;
            proxy_read_timeout 1800s;
        }}
    }}"""

_REPLICA = """\
    access_log off;
    default_type application/json;
    server_tokens off;
    server {{
        listen 127.0.0.1:{listen_port} backlog=1024;
        location / {{
{headers}
            return 200 '{completion}';
        }}
    }}"""


class Nginx:
    """`Peer` for nginx."""

    name = "nginx"
    package = "apt install nginx"
    works = ALL_WORKS

    def binary(self) -> Path | None:
        """Path of the executable, if any."""
        return find_binary("nginx")

    def version(self) -> str:
        """Return what `nginx -v` says."""
        return asked_version([str(self.binary()), "-v"]).removeprefix("nginx version: nginx/")

    def configure(self, site: Site) -> list[str]:
        """Write `nginx.conf` of the proxy."""
        http = _PROXY.format(folder=site.folder, replica_port=site.replica_port, listen_port=site.listen_port)
        return self._write(site, http)

    def configure_replica(self, site: Site) -> list[str]:
        """Write `nginx.conf` of the canned replica on `site.listen_port`."""
        headers = "\n".join(
            f"            add_header {name.decode()} '{value.decode()}';"
            for name, value in wire.RESPONSE_HEADERS
            if name != b"server"  # nginx names itself
        )
        http = _REPLICA.format(
            listen_port=site.listen_port, headers=headers, completion=wire.COMPLETION.decode()
        )
        return self._write(site, http)

    def check(self, site: Site) -> list[str] | None:
        """`nginx -t`."""
        return [*self._command(site), "-t"]

    def readiness(self, site: Site) -> Readiness:
        """Ask for the replica's answer through the proxy."""
        return Readiness(site.listen_port, "/health")

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def _write(self, site: Site, http: str) -> list[str]:
        text = _COMMON.format(user=_USER, folder=site.folder, http=http)
        (site.folder / "nginx.conf").write_text(text)
        return self._command(site)

    def _command(self, site: Site) -> list[str]:
        folder = site.folder  # -e: where it writes until it has read its configuration
        return [
            str(self.binary()),
            *("-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")),
        ]
