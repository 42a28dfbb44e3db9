"""Where a robot session goes, and whom it trusts: a URL and options, checked once."""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from router.transport.codec.robot.control import MAX_HEADERS, Hello

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_PORT: Final = 443
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")
_OURS: Final = frozenset(("host", "connection", "upgrade", "content-length", "transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Target:
    """`ca` are PEM certificates, empty for the usual authorities; `websocket_url` empty: there is none."""

    host: str
    port: int
    authority: str
    path: str
    headers: tuple[tuple[str, str], ...]
    replies: Literal["state", "command"]
    upstream: Literal["websocket", "post"]
    server_name: str
    ca: bytes
    verify: bool
    websocket_url: str
    token_header: str = ""
    """Which of the headers has the router's token, which is nobody else's business."""

    def for_replica(self, ticket: str, certificate: bytes, server_name: str) -> Target:
        """Return where a replica itself is met: with its ticket, and without what only the router is to read."""
        headers = tuple(
            field
            for field in self.headers
            if field[0] != self.token_header and not field[0].startswith(("x-router-", "modal-"))
        )
        headers = (*headers, ("x-router-key", ticket))
        return replace(self, headers=headers, server_name=server_name, ca=certificate, verify=True)

    @property
    def trust(self) -> tuple[str, int, str, str]:
        """What has to be the same for a ticket to be used again: who it is, and who says so."""
        return self.host, self.port, self.server_name, hashlib.sha256(self.ca).hexdigest() if self.verify else "-"

    def hello(self, resume: str, attempt: str = "") -> Hello:
        """Return the first word. `attempt`: the same for connections that are tried side by side."""
        headers = list(self.headers)
        return Hello(
            self.authority, self.path, headers, self.replies, resume, self.upstream, attempt=attempt
        )  # fmt: skip

    def tls(self) -> ssl.SSLContext:
        """Return what a WebSocket over TLS trusts."""
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def read_target(
    url: str,
    *,
    token: str | None,
    headers: Iterable[tuple[str, str]],
    ca: bytes | str | Path | None,
    verify: bool,
    replies: Literal["state", "command"],
    upstream: Literal["websocket", "post"] = "websocket",
    websocket_url: str | None,
    server_name: str | None,
    authority: str | None = None,
) -> Target:
    """Return the target; ValueError says what is wrong with it, OSError if `ca` cannot be read."""
    parts = urlsplit(url)
    if parts.scheme != "quic" or not parts.hostname or parts.username or parts.fragment or parts.port == 0:
        raise ValueError(f"{url!r} is no quic://HOST:PORT/PATH")
    port = parts.port or DEFAULT_PORT  # ValueError where it is none
    if replies not in ("state", "command"):
        raise ValueError("replies come on the lane state or command")
    if upstream not in ("websocket", "post"):
        raise ValueError("upstream is websocket or post")
    if upstream == "post" and websocket_url is None:
        websocket_url = ""  # a WebSocket of ours would be the replica's
    if authority is not None and not (authority.isascii() and authority.isprintable() and " " not in authority):
        raise ValueError(f"{authority!r} is no host")
    fields = [(name.lower(), value) for name, value in headers]
    token_header = ""
    if token is not None:
        if not token.strip():
            raise ValueError("the token is empty: None is for no token")
        # A replica's own Authorization (openpi's is an API key) goes through to it.
        has_own = any(name == "authorization" for name, _ in fields)
        token_header = "x-router-key" if has_own else "authorization"
        fields.append((token_header, token if has_own else f"Bearer {token}"))
    for name, value in fields:
        if name in _OURS or not name.isascii() or not value.isprintable():
            raise ValueError(f"the header {name!r} cannot be sent")
    if len(fields) > MAX_HEADERS:
        raise ValueError(f"{len(fields)} headers; at most {MAX_HEADERS} are taken")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if websocket_url is None:
        websocket_url = f"wss://{parts.netloc}{path}"
    elif websocket_url and urlsplit(websocket_url).scheme not in ("ws", "wss"):
        raise ValueError(f"{websocket_url!r} is no ws:// or wss:// URL")
    pem = b"" if ca is None else _read_authorities(ca if isinstance(ca, bytes) else Path(ca).read_bytes())
    name = server_name or parts.hostname
    return Target(
        parts.hostname, port, authority or parts.netloc, path, tuple(fields), replies, upstream, name, pem, verify,
        websocket_url, token_header,
    )  # fmt: skip


def _read_authorities(text: bytes) -> bytes:
    """Return the certificates of a bundle without its comments, which need not be ASCII."""
    pem = b"\n".join(_CERTIFICATE.findall(text))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ValueError, ssl.SSLError) as failure:
        raise ValueError(f"ca is no certificate in PEM: {failure}") from None
    return pem
