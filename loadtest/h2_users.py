"""Locust users that speak HTTP/2: chat completions by httpx, and SGLang's gRPC service by grpcio.

Both by prior knowledge on the port of HTTP/1.1. grpcio waits in its own core, which gevent cannot patch, so it is
told to wait with gevent (`init_gevent`) before the first channel exists. Only locust's own process imports this
module. Imports `users_base` and the messages of `inference_backend.rpc`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import httpx
from grpc.experimental import gevent as grpc_gevent
from locust import User, constant, task
from locust.exception import StopUser

from inference_backend.rpc import proto, sglang
from loadtest.users_base import ANSWER_S, CHAT_PATH, chat_body, chat_headers, fire

if TYPE_CHECKING:
    from collections.abc import Callable

grpc_gevent.init_gevent()

_PROMPT_IDS = tuple(range(1_000, 1_032))


class Http2ChatUser(User):
    """Asks for whole chat completions over one HTTP/2 connection. Entry: `H2 chat completion`."""

    wait_time = constant(0.05)

    def on_start(self) -> None:
        """Connect with prior knowledge."""
        self.client = httpx.Client(
            base_url=self.host or "", http1=False, http2=True, timeout=ANSWER_S, trust_env=False
        )

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()

    @task
    def complete(self) -> None:
        """One completion; an answer without choices, or over HTTP/1.1, is a failure."""
        options = self.environment.parsed_options
        started = time.perf_counter()
        failure: Exception | None = None
        size = 0
        try:
            body = chat_body(options, stream=False)
            response = self.client.post(CHAT_PATH, content=body, headers=chat_headers(options))
            size = len(response.content)
            if response.status_code != 200 or response.http_version != "HTTP/2":
                text = f"{response.http_version} {response.status_code}: {response.text[:200]}"
                failure = RuntimeError(text)
            elif not response.json().get("choices"):
                failure = RuntimeError("no choices in the answer")
        except (httpx.HTTPError, ValueError) as error:
            failure = error
        fire(self.environment, "H2", "chat completion", started, size, failure)


class GrpcUser(User):
    """Calls SGLang's scheduler service on a connection of its own.

    Entries: `gRPC HealthCheck` (unary), `gRPC ttft` (call to first tokens), `gRPC itl` (between messages) and
    `gRPC Generate` (the whole stream).
    """

    wait_time = constant(0.05)

    def on_start(self) -> None:
        """Open a channel; it connects with the first call."""
        target = urlsplit(self.host or "")
        if not target.hostname or not target.port:
            raise StopUser
        options = self.environment.parsed_options
        self.metadata = (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()
        self.channel = grpc.insecure_channel(
            f"{target.hostname}:{target.port}",
            options=(("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)),
        )
        self.stub = proto.stub_of(sglang.SERVICE, self.channel)
        self.request = sglang.pb.GenerateRequest(stream=True)
        self.request.tokenized.input_ids.extend(_PROMPT_IDS)
        self.request.sampling_params.max_new_tokens = options.max_tokens

    def on_stop(self) -> None:
        """Close the channel."""
        self.channel.close()

    @task
    def health(self) -> None:
        """One unary call; an engine that is not healthy is a failure."""
        self._timed("HealthCheck", self._health)

    @task(3)
    def generate(self) -> None:
        """One stream, read to its end; one without the whole answer as its last message is a failure."""
        self._timed("Generate", self._generate)

    def _health(self) -> int:
        answer = self.stub.HealthCheck(
            sglang.pb.HealthCheckRequest(), timeout=ANSWER_S, metadata=self.metadata
        )
        if not answer.healthy:
            raise RuntimeError(answer.message)
        return int(answer.ByteSize())

    def _generate(self) -> int:
        began = last = time.perf_counter()
        size, message = 0, None
        for message in self.stub.Generate(self.request, timeout=ANSWER_S, metadata=self.metadata):
            now = time.perf_counter()
            if message.HasField("chunk"):
                fire(self.environment, "gRPC", "itl" if size else "ttft", last, message.ByteSize(), None, now)
            size += message.ByteSize()
            last = now
        if message is None or not message.HasField("complete"):
            raise EOFError(f"the stream ended without its answer after {last - began:.3f} s")
        return size

    def _timed(self, name: str, call: Callable[[], int]) -> None:
        started = time.perf_counter()
        failure: Exception | None = None
        size = 0
        try:
            size = call()
        except grpc.RpcError as error:
            failure = RuntimeError(f"{error.code()}: {error.details()}")
        except (RuntimeError, EOFError) as error:
            failure = error
        fire(self.environment, "gRPC", name, started, size, failure)


__all__: list[Any] = ["GrpcUser", "Http2ChatUser"]
