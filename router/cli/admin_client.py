"""Commands that speak to a running daemon: over its admin listener, TCP or Unix, with the library's HTTP client."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from router.config.addresses import parse_listen, unix_path

CALL_LIMIT_S = 5.0  # for one answer
LOOK_S = 0.1  # between two looks at what is waited for


class UnreachableError(Exception):
    """Nobody answers there, or not as a router's admin listener does."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CALL_LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CALL_LIMIT_S)
        self.sock.connect(self._path)


class AdminClient:
    """One daemon's admin listener. `address` is as in --admin, or the URL that the daemon tells; ConfigError."""

    def __init__(self, address: str, token: str = "") -> None:
        address = address.removeprefix("http://").rstrip("/")
        self.address = address
        self._token = token
        self._path = unix_path(address, "--admin")
        self._where = ("", 0) if self._path else parse_listen(address, "--admin")

    def call(self, method: str, path: str) -> tuple[int, Any]:
        """Ask once, on a connection of its own; return status and what the JSON says. UnreachableError."""
        connection = (
            _UnixConnection(self._path)
            if self._path
            else http.client.HTTPConnection(*self._where, timeout=CALL_LIMIT_S)
        )
        headers = {"connection": "close"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if body[:1] in (b"{", b"[") else body.decode(errors="replace")
        except (OSError, ValueError, http.client.HTTPException) as failure:
            raise UnreachableError(f"{self.address}: {failure}") from None
        finally:
            connection.close()


def error_text(answer: Any) -> str:
    """Return what an error reply says."""
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return str(answer).strip()
