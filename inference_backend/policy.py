"""An openpi policy server: a WebSocket that answers observations with chunks of actions.

What `openpi_client.websocket_client_policy` expects: the server speaks first (a binary frame of metadata),
then each binary observation gets one binary answer; a bad observation gets its traceback as a text frame and
close 1011. Built on the `websockets` library because openpi's own server is: handshake, pings every 20 s and
close codes are the real ones.

`actions[0][0]` is the CRC-32 of the observation's bytes, so a client can tell whose answer it holds.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import signal
import time
import traceback
from array import array
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from zlib import crc32

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from inference_backend import ndarray
from inference_backend.ready import announce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.http11 import Request, Response
    from websockets.typing import Subprotocol

_HISTORY = 1_000


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """One field per option of `policy`."""

    host: str = "127.0.0.1"
    port: int = 0
    action_horizon: int = 50
    action_dim: int = 14
    delay_ms: float = 0.0
    api_key: str = ""


class Policy:
    """Turns observations into actions, without a model."""

    __slots__ = ("_actions", "_settings")

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        size = settings.action_horizon * settings.action_dim
        self._actions = array("d", (index / size for index in range(size)))

    def metadata(self) -> dict[str, Any]:
        """Describe the policy; the first frame of a connection."""
        settings = self._settings
        return {
            "policy": "simulated",
            "action_horizon": settings.action_horizon,
            "action_dim": settings.action_dim,
            "delay_ms": settings.delay_ms,
        }

    async def infer(self, message: str | bytes) -> dict[str, Any]:
        """Answer one observation.  Raises TypeError or ValueError if it is none."""
        begin = time.monotonic()
        if isinstance(message, str):
            raise TypeError("an observation is a binary message, not text")
        observation = ndarray.unpack(message)
        if not isinstance(observation, dict):
            raise TypeError(f"an observation is a map, not {type(observation).__name__}")
        settings = self._settings
        if settings.delay_ms:
            await asyncio.sleep(settings.delay_ms / 1e3)
        self._actions[0] = crc32(message)
        shape = (settings.action_horizon, settings.action_dim)
        infer_ms = (time.monotonic() - begin) * 1e3
        return {
            "actions": ndarray.array_map(self._actions.tobytes(), "<f8", shape),
            "policy_timing": {"infer_ms": infer_ms},
        }


class _Opened:
    """One connection, for /_sim/connections."""

    __slots__ = ("close_code", "closed_at", "connection", "messages", "opened_at")

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.opened_at = time.time()
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.messages = 0

    def as_json(self) -> dict[str, Any]:
        """Describe the connection."""
        request = self.connection.request
        assert request is not None
        return {
            "path": request.path,
            "headers": {name.lower(): value for name, value in request.headers.raw_items()},
            "opened_at_epoch": self.opened_at,
            "closed_at_epoch": self.closed_at,
            "close_code": self.close_code,
            "messages": self.messages,
        }


class PolicyServer:
    """Routes of the server: /healthz, /echo, /_sim/connections, and the policy at every other path."""

    __slots__ = ("_authorization", "_open", "_policy", "_recent")

    def __init__(self, settings: PolicySettings) -> None:
        self._policy = Policy(settings)
        self._authorization = f"Api-Key {settings.api_key}" if settings.api_key else ""
        self._open: dict[_Opened, None] = {}
        self._recent: deque[_Opened] = deque(maxlen=_HISTORY)

    def answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is not a WebSocket, or None to upgrade."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path == "/_sim/connections":
            found = {
                "open": [opened.as_json() for opened in self._open],
                "recent": [opened.as_json() for opened in self._recent],
            }
            reply = connection.respond(HTTPStatus.OK, json.dumps(found))
            del reply.headers["Content-Type"]
            reply.headers["Content-Type"] = "application/json"
            return reply
        if self._authorization and path != "/echo":
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), self._authorization.encode()):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "Unauthorized\n")
        return None

    def choose_subprotocol(
        self, connection: ServerConnection, offered: Sequence[Subprotocol]
    ) -> Subprotocol | None:
        """Take the first one offered, so that a test can see it pass."""
        return offered[0] if offered else None

    async def converse(self, connection: ServerConnection) -> None:
        """Serve one connection to its end."""
        assert connection.request is not None
        opened = _Opened(connection)
        self._open[opened] = None
        try:
            if connection.request.path.partition("?")[0] == "/echo":
                async for message in connection:
                    opened.messages += 1
                    await connection.send(message)
            else:
                await self._serve_policy(connection, opened)
        except ConnectionClosed:
            pass
        finally:
            del self._open[opened]
            opened.closed_at = time.time()
            opened.close_code = connection.close_code
            self._recent.append(opened)

    async def _serve_policy(self, connection: ServerConnection, opened: _Opened) -> None:
        await connection.send(ndarray.encode(self._policy.metadata()))
        previous_ms = 0.0
        async for message in connection:
            begin = time.monotonic()
            opened.messages += 1
            try:
                answer = await self._policy.infer(message)
            except (TypeError, ValueError):
                await connection.send(traceback.format_exc())
                reason = "Internal server error. Traceback included in previous frame."
                await connection.close(CloseCode.INTERNAL_ERROR, reason)
                return
            answer["server_timing"] = {"infer_ms": (time.monotonic() - begin) * 1e3}
            if previous_ms:
                answer["server_timing"]["prev_total_ms"] = previous_ms
            await connection.send(ndarray.encode(answer))
            previous_ms = (time.monotonic() - begin) * 1e3


async def serve_policy(settings: PolicySettings) -> None:
    """Listen, print the ready line, serve until SIGTERM, close every connection with 1001."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = PolicyServer(settings)
    async with serve(
        server.converse,
        settings.host,
        settings.port,
        compression=None,
        max_size=None,
        process_request=server.answer_http,
        select_subprotocol=server.choose_subprotocol,
        close_timeout=2,
    ) as listening:
        announce("ws", settings.host, next(iter(listening.sockets)).getsockname()[1])
        await stopping.wait()
