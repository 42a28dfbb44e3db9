"""nginx with one worker, as the proxy and as the replica of the unary work.

The proxy keeps its upstream connections, does not buffer answers (a stream would wait), and writes an
access log to a file through a buffer, as its manual recommends. The replica returns the canned
completion from its configuration: the cheapest upstream there is. (Over HTTP/2 it would answer before it read
the body, and reset the stream.) A port of nginx that speaks HTTP/2 in the clear speaks nothing else, so
readiness is then asked for on another. Imports `base` and `wire`.
"""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING

from loadtest import wire
from loadtest.peers.base import ALL_WORKS, Readiness, Site, asked_version, certificate_files, find_binary

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

_UPSTREAM = """\
    log_format full '$remote_addr [$time_iso8601] "$request" $status $body_bytes_sent '
                    '$request_time $upstream_response_time $upstream_addr $request_id "$http_user_agent"';
    access_log {folder}/access.log full buffer=64k flush=1s;
    upstream replicas {{
        server 127.0.0.1:{replica_port};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 3600s;
    }}
"""

_PROXY = """\
    map $http_upgrade $upstream_connection {{ default upgrade; '' ''; }}
    server {{
        listen 127.0.0.1:{listen_port}{listen_options};
        {tls}
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

_TLS = "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;"

_READY = """
    server {{
        listen 127.0.0.1:{admin_port};
        location / {{ return 200 'ok'; }}
    }}"""

_GRPC_PROXY = """\
    server {{
        listen 127.0.0.1:{listen_port} http2;
        http2_max_concurrent_streams 256;
        client_max_body_size 0;
        location / {{
            grpc_pass grpc://replicas;
            grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            grpc_set_header X-Request-Id $request_id;
            add_header X-Request-Id $request_id;
            grpc_read_timeout 1800s;
            grpc_send_timeout 1800s;
        }}
    }}"""

_REPLICA = """\
    access_log off;
    default_type application/json;
    server_tokens off;
    server {{
        listen 127.0.0.1:{listen_port} backlog=1024;
        {tls}
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
        server, options, tls = _PROXY, "", ""
        if site.wire == "h2":
            server = _GRPC_PROXY
        elif site.wire == "tls":
            certificate, key = certificate_files(site)
            options = " ssl"
            tls = _TLS.format(certificate=certificate, key=key)
        text = _UPSTREAM + server + (_READY if site.wire != "http1" else "")
        http = text.format(
            folder=site.folder,
            replica_port=site.replica_port,
            listen_port=site.listen_port,
            admin_port=site.admin_port,
            listen_options=options,
            tls=tls,
        )
        return self._write(site, http)

    def configure_replica(self, site: Site) -> list[str]:
        """Write `nginx.conf` of the canned replica on `site.listen_port`; of TLS also on the admin port."""
        tls = ""
        if site.wire == "tls":
            certificate, key = certificate_files(site)
            tls = f"listen 127.0.0.1:{site.admin_port} ssl; " + _TLS.format(certificate=certificate, key=key)
        headers = "\n".join(
            f"            add_header {name.decode()} '{value.decode()}';"
            for name, value in wire.RESPONSE_HEADERS
            if name != b"server"  # nginx names itself
        )
        http = _REPLICA.format(
            listen_port=site.listen_port, tls=tls, headers=headers, completion=wire.COMPLETION.decode()
        )
        return self._write(site, http)

    def check(self, site: Site) -> list[str] | None:
        """`nginx -t`."""
        return [*self._command(site), "-t"]

    def readiness(self, site: Site) -> Readiness:
        """Ask for the replica's answer through the proxy; where that is not HTTP/1.1, ask the process."""
        return Readiness(site.listen_port if site.wire == "http1" else site.admin_port, "/health")

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
