"""TLS to replicas: one context for each way of speaking to them, made anew when its files change.

A context is looked up whenever a connection is made, which is rare, and the files' stamps with it: rotated files
are in force with the next connection and touch no open one. Rotated files that cannot be used are named in the
log once, and the context made of the last good ones goes on. Imports neither exchange nor codecs.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Final

from router.transport.certificates import (
    CIPHERS_1_2,
    Stamp,
    TlsFileError,
    file_stamp,
    load_authorities,
    load_pair,
    read_pem,
)

if TYPE_CHECKING:
    from router.routing.spec import TlsSpec

_log = logging.getLogger(__name__)

ALPN: Final = ("h2", "http/1.1")
ALPN_HTTP2: Final = ("h2",)
MAX_CONTEXTS = 256  # an endpoint rarely has a way of its own; a context with the system's authorities is 1 MB

_Way = tuple[str, str, str, bool, tuple[str, ...]]
_contexts: dict[_Way, tuple[tuple[Stamp, ...], ssl.SSLContext]] = {}


def client_context(spec: TlsSpec, protocols: tuple[str, ...] = ALPN) -> ssl.SSLContext:
    """Return the context for a new connection; TlsFileError, an OSError, if there is none that works."""
    way = (spec.ca, spec.cert, spec.key, spec.verify, protocols)
    stamps = (file_stamp(spec.ca), file_stamp(spec.cert), file_stamp(spec.key))
    known = _contexts.get(way)
    if known is not None and known[0] == stamps:
        return known[1]
    try:
        context = make_client_context(spec, protocols)
    except TlsFileError as failure:
        if known is None:
            raise
        _log.error("tls.%s: %s; what it was before stays in use", failure.field, failure)
        context = known[1]
    if len(_contexts) >= MAX_CONTEXTS:
        _contexts.clear()
    _contexts[way] = (stamps, context)
    return context


def make_client_context(spec: TlsSpec, protocols: tuple[str, ...] = ALPN) -> ssl.SSLContext:
    """Return a fresh context; TlsFileError names the field whose file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.set_alpn_protocols(list(protocols))
    if not spec.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if spec.key and not spec.cert:
        raise TlsFileError("cert", "is needed beside a key")
    if not spec.ca and spec.verify:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    ca = read_pem(spec.ca, "ca") if spec.ca else b""
    cert = read_pem(spec.cert, "cert") if spec.cert else b""
    key = read_pem(spec.key or spec.cert, "key") if spec.cert else b""
    try:
        if ca:
            load_authorities(context, ca)
        if cert:
            load_pair(context, cert, key)
    except TlsFileError as failure:
        path = {"ca": spec.ca, "cert": spec.cert, "key": spec.key or spec.cert}[failure.field]
        raise TlsFileError(failure.field, f"{path}: {failure}") from None
    return context


def check_files(spec: TlsSpec) -> None:
    """Try the files of a spec out, if it names any; TlsFileError names the field."""
    if spec.ca or spec.cert or spec.key:
        make_client_context(spec)


def server_name(spec: TlsSpec, host: str) -> str:
    """Return the name that a replica is asked for and must have: an address counts as one, without SNI."""
    return spec.server_name or host.rstrip(".")
