"""Envoy's configuration (envoy.config.bootstrap.v3.Bootstrap) for standing in front of this router.

    clients --TLS, h1, h2, h3, WebSocket, gRPC--> Envoy --h2c, with x-forwarded-* or PROXY--> router

Envoy ends TLS and speaks HTTP/3; everything that is decided about a request is the router's: no time limit but
a long idle one, deadlines of gRPC passed on, one retry where a request provably reached nobody. The values are
Envoy's own advice for the edge (max streams, windows, `normalize_path`) unless a comment says otherwise. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES: Final = "type.googleapis.com/envoy"
_HTTP: Final = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER_FILTER: Final = f"{_TYPES}.extensions.filters.http.router.v3.Router"
_PROTOCOLS: Final = f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS: Final = f"{_TYPES}.extensions.transport_sockets.tls.v3"
_RAW: Final = f"{_TYPES}.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_PROXY: Final = f"{_TYPES}.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
_QUIC: Final = f"{_TYPES}.extensions.transport_sockets.quic.v3.QuicDownstreamTransport"
_PROXY_FILTER: Final = f"{_TYPES}.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
_TLS_INSPECTOR: Final = f"{_TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector"

_PLAIN: Final = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": _RAW}}

IDLE_S: Final = 3_600  # longer than the router's own limit: it is to end a stream and say why
MAX_STREAMS: Final = 256
STREAM_WINDOW: Final = 262_144
CONNECTION_WINDOW: Final = 8_388_608
BUFFER_BYTES: Final = 262_144
ALT_SVC_S: Final = 86_400
CERTIFICATES: Final = "certificates"


class EdgeSpec(msgspec.Struct, frozen=True):
    """What the Envoy is to do. Addresses are (host, port)."""

    listen: tuple[tuple[str, int], ...]
    routers: tuple[tuple[str, int], ...]
    router_admin: tuple[str, int] | None = None  # asked for /readyz; without it only whether the port accepts
    certificates: tuple[tuple[str, str], ...] = ()  # certificate and key files; none: no TLS
    client_ca: str = ""
    http3: bool = False
    protocol: str = "h2"  # to the router: h2 or h1
    send_proxy: str = "none"  # to the router: none, v1 or v2
    accept_proxy: bool = False
    trusted_hops: int = 0  # proxies in front of this Envoy
    secrets_path: str = ""  # file of `certificate_secrets`, looked at again when it changes; empty: files as named


def bootstrap(spec: EdgeSpec) -> dict[str, Any]:
    """Return the whole configuration as JSON."""
    listeners = [_tcp_listener(spec, i, host, port) for i, (host, port) in enumerate(spec.listen)]
    if spec.http3:
        listeners += [_quic_listener(spec, i, host, port) for i, (host, port) in enumerate(spec.listen)]
    return {
        "node": {"id": "router-edge", "cluster": "router-edge"},
        # Of the process itself, on a port that nobody chose: draining, statistics.
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {"listeners": listeners, "clusters": [_cluster(spec)]},
        "layered_runtime": {
            "layers": [
                {"name": "edge", "static_layer": {"overload.global_downstream_max_connections": 100_000}},
                {"name": "admin", "admin_layer": {}},
            ]
        },
    }


def certificate_secrets(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return certificates and keys, in PEM, as the secrets that Envoy reads again when their file is replaced."""
    return {
        "resources": [
            {
                "@type": f"{_TLS}.Secret",
                "name": f"{CERTIFICATES}-{i}",
                "tls_certificate": {
                    "certificate_chain": {"inline_string": cert.decode()},
                    "private_key": {"inline_string": key.decode()},
                },
            }
            for i, (cert, key) in enumerate(pairs)
        ]
    }


# -- what faces the clients --------------------------------------------------------------------------------


def _tcp_listener(spec: EdgeSpec, index: int, host: str, port: int) -> dict[str, Any]:
    filters: list[dict[str, Any]] = []
    if spec.accept_proxy:
        filters.append({"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": _PROXY_FILTER}})
    chain: dict[str, Any] = {"filters": [_connection_manager(spec, "AUTO", port)]}
    if spec.certificates:
        filters.append({"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": _TLS_INSPECTOR}})
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": _tls_context(spec, ["h2", "http/1.1"]),
        }
        chain["transport_socket_connect_timeout"] = "10s"
    return {
        "name": f"tcp-{index}",
        "address": _address(host, port),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "listener_filters": filters,
        "filter_chains": [chain],
    }


def _quic_listener(spec: EdgeSpec, index: int, host: str, port: int) -> dict[str, Any]:
    context = {"@type": _QUIC, "downstream_tls_context": _tls_context(spec, [], bare=True)}
    return {
        "name": f"udp-{index}",
        "address": {"socket_address": {"protocol": "UDP", "address": host, "port_value": port}},
        "udp_listener_config": {
            "quic_options": {"quic_protocol_options": {"max_concurrent_streams": MAX_STREAMS}},
            "downstream_socket_config": {"prefer_gro": True},
        },
        "filter_chains": [
            {
                "filters": [_connection_manager(spec, "HTTP3", port)],
                "transport_socket": {"name": "envoy.transport_sockets.quic", "typed_config": context},
            }
        ],
    }


def _connection_manager(spec: EdgeSpec, codec: str, port: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "@type": _HTTP,
        "stat_prefix": "edge",
        "codec_type": codec,
        "use_remote_address": True,
        "xff_num_trusted_hops": spec.trusted_hops,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",  # an id with %2F in it is one path segment
        "server_header_transformation": "PASS_THROUGH",
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": False,  # the router does
        "max_request_headers_kb": 64,
        "stream_idle_timeout": f"{IDLE_S}s",
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"idle_timeout": f"{IDLE_S}s", "max_headers_count": 128},
        "http2_protocol_options": {
            "max_concurrent_streams": MAX_STREAMS,
            "initial_stream_window_size": STREAM_WINDOW,
            "initial_connection_window_size": CONNECTION_WINDOW,
            "allow_connect": True,  # WebSocket over HTTP/2, RFC 8441
        },
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": _routes(spec, port),
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER_FILTER}}],
    }
    if codec == "HTTP3":
        config["http3_protocol_options"] = {"allow_extended_connect": True}  # RFC 9220
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _routes(spec: EdgeSpec, port: int) -> dict[str, Any]:
    action = {
        "cluster": "router",
        "timeout": "0s",
        "idle_timeout": f"{IDLE_S}s",
        # 0: no limit of Envoy's; grpc-timeout goes on to the router, whose deadline it is.
        "max_stream_duration": {"grpc_timeout_header_max": "0s", "max_stream_duration": "0s"},
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 1},
    }
    host: dict[str, Any] = {"name": "any", "domains": ["*"]}
    if spec.http3 and port:
        alt_svc = {"key": "alt-svc", "value": f'h3=":{port}"; ma={ALT_SVC_S}'}
        host["response_headers_to_add"] = [{"header": alt_svc, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    return {
        "name": "edge",
        "virtual_hosts": [
            host
            | {
                "routes": [
                    {"match": {"connect_matcher": {}}, "route": _connect_action(action)},
                    {"match": {"prefix": "/"}, "route": action},
                ]
            }
        ],
    }


def _connect_action(action: dict[str, Any]) -> dict[str, Any]:
    """Extended CONNECT is a WebSocket to the router, not a tunnel that ends here."""
    return action | {"upgrade_configs": [{"upgrade_type": "websocket"}]}


def _tls_context(spec: EdgeSpec, protocols: list[str], *, bare: bool = False) -> dict[str, Any]:
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
    }
    if protocols:
        common["alpn_protocols"] = protocols
    if spec.secrets_path:
        source = {"path_config_source": {"path": spec.secrets_path}, "resource_api_version": "V3"}
        common["tls_certificate_sds_secret_configs"] = [
            {"name": f"{CERTIFICATES}-{i}", "sds_config": source} for i in range(len(spec.certificates))
        ]
    else:
        common["tls_certificates"] = [
            {"certificate_chain": {"filename": cert}, "private_key": {"filename": key}}
            for cert, key in spec.certificates
        ]
    context: dict[str, Any] = {"common_tls_context": common}
    if spec.client_ca:
        common["validation_context"] = {"trusted_ca": {"filename": spec.client_ca}}
        context["require_client_certificate"] = True
    return context if bare else {"@type": f"{_TLS}.DownstreamTlsContext", **context}


# -- what faces the router ---------------------------------------------------------------------------------


def _cluster(spec: EdgeSpec) -> dict[str, Any]:
    if spec.protocol == "h2":
        protocol: dict[str, Any] = {
            "http2_protocol_options": {
                "initial_stream_window_size": STREAM_WINDOW,
                "initial_connection_window_size": CONNECTION_WINDOW,
                "allow_connect": True,
            }
        }
    else:
        protocol = {"http_protocol_options": {}}
    cluster: dict[str, Any] = {
        "name": "router",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _PROTOCOLS,
                "common_http_protocol_options": {"idle_timeout": "60s"},  # below the router's 75 s
                "explicit_http_config": protocol,
            }
        },
        # The router decides what is too much, and says so in its own words.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100_000,
                    "max_pending_requests": 100_000,
                    "max_requests": 100_000,
                    "max_retries": 100,
                }
            ]
        },
        "health_checks": [_health_check(spec)],
        "load_assignment": {
            "cluster_name": "router",
            "endpoints": [{"lb_endpoints": [_endpoint(spec, host, port) for host, port in spec.routers]}],
        },
    }
    if spec.send_proxy != "none":
        # Health checks of the admin listener go without: it expects no header.
        cluster["transport_socket_matches"] = [
            {"name": "plain", "match": {"plain": True}, "transport_socket": _PLAIN}
        ]
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.upstream_proxy_protocol",
            "typed_config": {
                "@type": _PROXY,
                "config": {"version": spec.send_proxy.upper()},
                "transport_socket": _PLAIN,
            },
        }
    return cluster


def _endpoint(spec: EdgeSpec, host: str, port: int) -> dict[str, Any]:
    endpoint: dict[str, Any] = {"address": _address(host, port)}
    if spec.router_admin is not None:
        admin_host, admin_port = spec.router_admin
        endpoint["health_check_config"] = {"address": _address(admin_host, admin_port)}
    return {"endpoint": endpoint}


def _health_check(spec: EdgeSpec) -> dict[str, Any]:
    """Ask /readyz, which says 503 as soon as a router drains, seconds before it stops accepting."""
    check: dict[str, Any] = {
        "timeout": "1s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
    }
    if spec.router_admin is None:
        return check | {"tcp_health_check": {}}
    check["http_health_check"] = {"path": "/readyz", "codec_client_type": "HTTP1"}
    if spec.send_proxy != "none":
        check["transport_socket_match_criteria"] = {"plain": True}
    return check


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
