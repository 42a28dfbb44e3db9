"""Who may use the admin listener. Pure: a refusal is a reply, None means go on.

Three attackers: somebody who can connect but has no token; a page in the operator's browser that posts
across origins; and one whose host name was rebound to a loopback address, so that the browser takes the
admin port for the page's own origin.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from router.edge.admin_http import error_reply

if TYPE_CHECKING:
    from router.edge.admin_http import AdminCall, Reply

PROBES = frozenset(("/livez", "/readyz", "/health", "/healthz"))
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


def refusal(call: AdminCall, token: bytes) -> Reply | None:
    """Return why `call` is refused; `token` empty means that none is asked for."""
    if not token and call.is_loopback and not _is_literal_host(call.authority):
        message = "The Host must be an IP address or localhost: no token is set, and names can be rebound."
        return error_reply(403, "forbidden", message)
    if call.method not in SAFE_METHODS and not _is_same_origin(call):
        return error_reply(403, "forbidden", "The Origin is not this listener's own.")
    if token and call.path not in PROBES and not _is_authorized(call.authorization, token):
        return error_reply(
            401,
            "unauthenticated",
            "The admin token is required: authorization: Bearer TOKEN.",
            headers=((b"www-authenticate", b"Bearer"),),
        )
    return None


def _is_authorized(authorization: bytes, token: bytes) -> bool:
    scheme, _, credential = authorization.partition(b" ")
    return hmac.compare_digest(credential.strip(), token) and scheme.lower() == b"bearer"


def _is_same_origin(call: AdminCall) -> bool:
    origin = call.headers.get(b"origin")
    if origin is None:
        return True  # no browser: those send one with every request that is not GET or HEAD
    # The scheme may differ where TLS ends before this listener. `null` has no host and never matches.
    return origin.partition(b"://")[2].lower().decode("latin-1") == call.authority


def _is_literal_host(authority: str) -> bool:
    host = authority
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host in {"", "localhost"}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
