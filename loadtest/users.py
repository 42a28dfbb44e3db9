"""Locust users of the router, also stand-alone: `locust -f loadtest/users.py --host http://HOST:PORT`.

`HttpChatUser` asks for whole chat completions, `SseChatUser` for streams (with the time to the first
token and the gaps between tokens as entries of their own), `WebSocketPolicyUser` is a robot that
speaks openpi; `h2_users` has those that speak HTTP/2, `quic_users` those over QUIC. Importing locust patches
sockets and threads for gevent, so only locust's own process imports this module. Imports `users_base`,
`h2_users`, `quic_users`, `sse_parser` and `openpi`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, HttpUser, User, constant, events, task
from locust.exception import StopUser
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from loadtest.openpi import PolicyError, observation, read_map
from loadtest.sse_parser import SseParser
from loadtest.users_base import ANSWER_S, CHAT_PATH, chat_body, chat_headers, fire

with contextlib.suppress(ImportError):  # of an extra; without it the users of HTTP/2 are not there
    from loadtest.h2_users import GrpcUser, Http2ChatUser  # noqa: F401 -- locust finds users by their names here

with contextlib.suppress(ImportError):  # as well, those of QUIC
    from loadtest.quic_users import Http3ChatUser, RobotUser  # noqa: F401

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser


@events.init.add_listener  # type: ignore[untyped-decorator]
def count_from_now(**_: Any) -> None:
    """Bring gevent's clock up to date: `--run-time` would begin when the imports did, a second ago or more."""
    gevent.get_hub().loop.update_now()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Add the options of these users to locust's own."""
    group = parser.add_argument_group("replica router")
    group.add_argument("--model", default="sim", help="Model that chat requests name.")
    group.add_argument("--max-tokens", type=int, default=32, help="Longest answer, in tokens.")
    group.add_argument("--api-key", default="", help="Sent as a bearer token by the chat users, if given.")
    group.add_argument(
        "--policy-host", default="policy.localhost", help="Host header of the policy endpoint."
    )
    group.add_argument("--quic-url", default="", help="quic://HOST:PORT, for the users of HTTP/3 and robots.")
    group.add_argument("--policy-path", default="/", help="Path of the policy's WebSocket.")
    group.add_argument("--image-side", type=int, default=224, help="Pixels of the robot's square images.")


class HttpChatUser(FastHttpUser):
    """Asks for whole chat completions, one after another on a keep-alive connection."""

    wait_time = constant(0.05)
    network_timeout = ANSWER_S

    @task
    def complete(self) -> None:
        """One completion; an answer without choices is a failure."""
        options = self.environment.parsed_options
        with self.client.post(
            CHAT_PATH,
            name="chat completion",
            data=chat_body(options, stream=False),
            headers=chat_headers(options),
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
                return
            try:
                found = response.json()["choices"]
            except (ValueError, KeyError, TypeError):
                found = None
            if not found:
                response.failure("no choices in the answer")


class SseChatUser(HttpUser):
    """Asks for streams. Entries: `SSE ttft`, `SSE itl` (a sample per token) and `POST chat stream`."""

    wait_time = constant(0.05)

    @task
    def stream(self) -> None:
        """One stream, read to its end; one without `[DONE]` is a failure."""
        options = self.environment.parsed_options
        started = time.perf_counter()
        with self.client.post(
            CHAT_PATH,
            name="chat stream (head)",
            data=chat_body(options, stream=True),
            headers={**chat_headers(options), "accept": "text/event-stream"},
            stream=True,
            timeout=ANSWER_S,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
                return
            failure, size = self._read(response, started)
            if failure is not None:
                response.failure(failure)
        self._fire("stream", started, size, failure)

    def _read(self, response: Any, started: float) -> tuple[Exception | None, int]:
        """Read the events, firing what each shows; the failure, if any, and the size in bytes."""
        parser = SseParser()
        size, last, done = 0, 0.0, False
        try:
            # None: as the bytes arrive, a chunk of the body at a time. A body cut short raises.
            for data in response.iter_content(chunk_size=None):
                now = time.perf_counter()
                size += len(data)
                for event in parser.feed(data):
                    if event.data == "[DONE]":
                        done = True
                    elif event.type == "error" or event.data.startswith('{"error"'):
                        return RuntimeError(event.data[:200]), size
                    elif last:
                        self._fire("itl", last, len(event.data), None, now)
                        last = now
                    else:
                        self._fire("ttft", started, len(event.data), None, now)
                        last = now
        except OSError as error:  # requests' exceptions are of this kind
            return error, size
        return (None if done else EOFError("the stream ended without [DONE]")), size

    def _fire(
        self, name: str, since: float, size: int, failure: Exception | None, now: float | None = None
    ) -> None:
        fire(self.environment, "SSE", name, since, size, failure, now)


class WebSocketPolicyUser(User):
    """A robot: keeps one WebSocket, sends an observation, waits for actions, again and again.

    Entries: `WS connect` (handshake and metadata) and `WS infer` (observation to actions).
    """

    wait_time = constant(0.05)
    websocket: ClientConnection | None = None

    def on_start(self) -> None:
        """Build the observation once; it costs more than sending it."""
        self.observation = observation(self.environment.parsed_options.image_side)

    def on_stop(self) -> None:
        """Close the WebSocket."""
        self._close()

    @task
    def infer(self) -> None:
        """One round trip, on a new WebSocket when the last one failed."""
        if self.websocket is None:
            self._timed("connect", self._connect)
        if self.websocket is not None:
            self._timed("infer", self._infer)

    def _connect(self) -> int:
        options = self.environment.parsed_options
        if not self.host:
            raise StopUser
        target = urlsplit(self.host)
        port = target.port or 80
        # The connection goes to the router; the name in the handshake chooses the endpoint.
        route = socket.create_connection((target.hostname or "127.0.0.1", port), timeout=ANSWER_S)
        route.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.websocket = connect(
            f"ws://{options.policy_host}{options.policy_path}",
            sock=route,
            compression=None,
            max_size=None,
            open_timeout=ANSWER_S,
            proxy=None,
        )
        return self._receive()

    def _infer(self) -> int:
        assert self.websocket is not None
        self.websocket.send(self.observation)
        return self._receive()

    def _receive(self) -> int:
        assert self.websocket is not None
        frame = self.websocket.recv(timeout=ANSWER_S)
        read_map(frame)
        return len(frame)

    def _timed(self, name: str, step: Any) -> None:
        started = time.perf_counter()
        failure: Exception | None = None
        size = 0
        try:
            size = step()
        except (OSError, TimeoutError, WebSocketException, PolicyError) as error:
            failure = error
            self._close()
        fire(self.environment, "WS", name, started, size, failure)

    def _close(self) -> None:
        if self.websocket is not None:
            self.websocket.close()
            self.websocket = None
