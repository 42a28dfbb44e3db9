"""What must hold of listeners before one is bound: addresses, who may connect, TLS files, PROXY headers."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_network
from typing import TYPE_CHECKING

from router.config.addresses import is_loopback, parse_listen, unix_path
from router.config.static import ConfigError
from router.routing.spec import TlsSpec
from router.transport.attached import is_name
from router.transport.certificates import TlsFileError
from router.transport.codec.grammar import AUTHORITY, PATH
from router.transport.server_tls import read_server_tls
from router.transport.tls import check_files

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.transport.server_tls import ServerTls

DEFAULT_LISTEN = "127.0.0.1:8080"
QUIC_MODULES = ("aioquic", "cryptography")
LOOPBACK = ("127.0.0.0/8", "::1/128")
_FLAGS = {"cert": "--tls-cert", "key": "--tls-key", "ca": "--tls-client-ca"}


def check_listeners(settings: Settings) -> None:
    """Refuse what cannot be served or must not be; ConfigError names the flag. Files of TLS are not looked at."""
    # Endpoints of a store ask for its tokens, each unless it says otherwise.
    guarded = bool(settings.auth_token or settings.unauthenticated or settings.store)
    for address in settings.addresses():
        if not unix_path(address, "--listen"):  # who may open the socket's file is for its mode to say
            _check_open("--listen", address, guarded)
    for address in settings.listen_tls:
        _check_open("--listen-tls", address, guarded or bool(settings.tls_client_ca))
    for address in settings.listen_quic:
        _check_open("--listen-quic", address, guarded or bool(settings.tls_client_ca))
    unix_mode(settings)
    if len(settings.tls_cert) != len(settings.tls_key):
        raise ConfigError(
            f"--tls-key: {len(settings.tls_key)} keys for {len(settings.tls_cert)} of --tls-cert; each has its own"
        )
    for flag in ("listen_tls", "listen_quic"):
        if getattr(settings, flag) and not settings.tls_cert:
            raise ConfigError(
                f"--tls-cert: --{flag.replace('_', '-')} needs a certificate; `router certs dev` makes one to try"
            )
    for flag in ("tls_cert", "tls_client_ca"):
        if getattr(settings, flag) and not (settings.listen_tls or settings.listen_quic):
            raise ConfigError(
                f"--{flag.replace('_', '-')}: is for --listen-tls and --listen-quic, neither of which is given"
            )
    if settings.listen_quic:
        _check_quic()
    if settings.quic_portal:
        if not settings.listen_quic:
            raise ConfigError("--quic-portal: is for --listen-quic, which is not given")
        portal_target(settings.quic_portal)
    if settings.robot_telemetry:
        if not settings.listen_quic:
            raise ConfigError("--robot-telemetry: is for --listen-quic, which is not given")
        collector_target(settings.robot_telemetry)
    for pair in settings.may_attach:
        name, _, token = pair.partition("=")
        if not (is_name(name) and token.strip()):
            raise ConfigError(f"--may-attach: {name!r} is not of the form NAME=TOKEN, NAME of a-z, 0-9 and -")
        if not settings.listen_quic:
            raise ConfigError("--may-attach: is for --listen-quic, which is not given")
    if settings.proxy_protocol_from and not settings.proxy_protocol:
        raise ConfigError("--proxy-protocol-from: is for --proxy-protocol, which is not given")
    proxies(settings)


def portal_target(text: str) -> tuple[str, str]:
    """Return host and path of the requests that quic-portal's clients make; ConfigError names the flag."""
    host, slash, path = text.partition("/")
    path = slash + path or "/"
    if not host or AUTHORITY.fullmatch(host.encode()) is None or PATH.fullmatch(path.encode()) is None:
        raise ConfigError(f"--quic-portal: {text!r} is no HOST[/PATH], as in policy.example.com/infer")
    return host.lower(), path


def collector_target(text: str) -> tuple[str, int] | None:
    """Return host and port that telemetry goes to, port 0 with the path of a socket; ConfigError names the flag."""
    flag = "--robot-telemetry"
    if not text:
        return None
    path = unix_path(text, flag)
    if path:
        return path, 0
    scheme, _, address = text.partition("://")
    if scheme != "udp":
        raise ConfigError(f"{flag}: {text!r} is neither udp://HOST:PORT nor unix:PATH")
    host, port = parse_listen(address, flag)
    if not port:
        raise ConfigError(f"{flag}: {text!r} has port 0, where nobody listens")
    return host, port


def _check_quic() -> None:
    missing = [name for name in QUIC_MODULES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--listen-quic: {' and '.join(missing)} not installed; they come with the extra `quic`, "
            "as in pip install 'replica-router[quic]'"
        )


def _check_open(flag: str, address: str, guarded: bool) -> None:
    host, _ = parse_listen(address, flag)
    if not (guarded or is_loopback(host)):
        raise ConfigError(
            f"{flag} {address}: an open router listens on loopback only; "
            "give --auth-token, or --unauthenticated if something in front of it checks"
        )


def unix_mode(settings: Settings) -> int:
    """Return who may open the socket files of --listen."""
    text = settings.unix_mode
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or set(text) - set("01234567"):
        raise ConfigError(f"--unix-mode: {text!r} is no mode of a file, as in 660")
    return int(text, 8)


def proxies(settings: Settings) -> list[str] | None:
    """Return the networks that may send PROXY headers, None where none are expected."""
    if not settings.proxy_protocol:
        return None
    for network in settings.proxy_protocol_from:
        try:
            ip_network(network)
        except ValueError as failure:
            raise ConfigError(f"--proxy-protocol-from: {failure}, as in 10.0.0.0/8") from None
    return settings.proxy_protocol_from or list(LOOPBACK)


def read_listener_tls(settings: Settings) -> ServerTls | None:
    """Read the files of TLS listeners, None without any; ConfigError names flag and file."""
    if not (settings.listen_tls or settings.listen_quic):
        return None
    try:
        tls = read_server_tls(
            settings.tls_cert, settings.tls_key, settings.tls_client_ca, settings.tls_min_version
        )
        if settings.listen_quic:
            from router.transport.quic_identities import ServedIdentities  # noqa: PLC0415 - an extra's

            ServedIdentities(tls)
        return tls  # noqa: TRY300 - all of it may fail in the same way
    except TlsFileError as failure:
        raise ConfigError(f"{_FLAGS[failure.field]}: {failure}") from None


def upstream_tls(settings: Settings) -> TlsSpec:
    """Return how https replicas of --replica are spoken to; ConfigError names the flag."""
    spec = TlsSpec(
        ca=settings.upstream_ca,
        cert=settings.upstream_cert,
        key=settings.upstream_key,
        server_name=settings.upstream_server_name,
        verify=not settings.upstream_insecure,
    )
    if spec == TlsSpec():
        return spec
    if not any(address.startswith("https://") for address in settings.replica):
        given = [name for name in ("ca", "cert", "key", "server_name", "insecure")
                 if getattr(settings, f"upstream_{name}")]  # fmt: skip
        raise ConfigError(
            f"--upstream-{given[0].replace('_', '-')}: is for https replicas of --replica; "
            "an endpoint of a file or a store has `tls` of its own"
        )
    try:
        check_files(spec)
    except TlsFileError as failure:
        raise ConfigError(f"--upstream-{failure.field}: {failure}") from None
    return spec
