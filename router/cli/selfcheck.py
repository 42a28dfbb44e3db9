"""The check of `router up`: each protocol, to a replica directly and through the router.

By other people's clients (http.client, httpx, grpcio, websockets, aioquic), so that a fault of our codecs cannot
hide behind itself; robots' sessions have none but ours. The simulated engine has HTTP/2 for gRPC alone: the direct
time of the other row is HTTP/1.1's.

The time added is the difference of the medians of many calls, made in turns so that drift hits both alike.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass
from socket import create_connection
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

Call = Callable[[], float]
"""One call; returns the seconds it took, raises whatever went wrong."""

CALLS = 40
TIMEOUT_S = 10.0
_OBSERVATION = msgspec.msgpack.encode({"state": [0.0] * 14, "prompt": "fold the towel"})
_CHAT = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True)
class Target:
    """Where the parts are: base URLs of the router, of one engine (HTTP, gRPC) and of the policy server.

    `quic` is the router's over QUIC, empty without it, `ca` the file of the authority that signed its certificate.
    """

    router: str
    engine: str
    engine_grpc: str
    policy: str
    policy_host: str
    quic: str = ""
    ca: str = ""


@dataclass(frozen=True)
class Row:
    """One protocol's result; times in seconds, `error` empty when it passed."""

    protocol: str
    what: str
    direct_s: float
    routed_s: float
    error: str

    @property
    def passed(self) -> bool:
        """Whether every call was right."""
        return not self.error


class CheckError(Exception):
    """An answer that is not what the replica would have said."""


def check_all(target: Target) -> list[Row]:
    """Check every protocol; blocking, some seconds."""
    rows = [
        _check("HTTP/1.1", "chat, unary", _unary, target.engine, target.router),
        _check("HTTP/1.1 SSE", "first event", _stream, target.engine, target.router),
        _check(
            "WebSocket",
            "openpi actions",
            lambda url: _policy(url, target.policy_host),
            target.policy,
            target.router,
        ),
        _check("HTTP/2", "chat, unary", lambda url: _http2(url, target.router), target.engine, target.router),
        _check("gRPC", "health, unary", _grpc_health, target.engine_grpc, target.router),
        _check("gRPC stream", "first tokens", _grpc_generate, target.engine_grpc, target.router),
    ]
    if target.quic:
        rows.append(
            _check("HTTP/3", "chat, unary", lambda url: _http3(url, target), target.engine, target.quic),
        )
        rows.append(
            _check("QUIC robot", "openpi actions", lambda url: _robot(url, target), target.policy, target.quic),
        )
    return rows


def print_table(console: Console, rows: list[Row]) -> None:
    """Show the results."""
    table = Table(title="self-check", title_justify="left")
    for heading in ("protocol", "what", "status"):
        table.add_column(heading)
    for heading in ("direct p50", "routed p50", "added"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.passed:
            added = f"{max(0.0, row.routed_s - row.direct_s) * 1e3:.2f} ms"
            times = (f"{row.direct_s * 1e3:.2f} ms", f"{row.routed_s * 1e3:.2f} ms", added)
            table.add_row(row.protocol, row.what, "[green]ok[/]", *times)
        else:
            table.add_row(row.protocol, row.what, f"[red]{row.error}[/]", "", "", "")
    console.print(table)


def _check(protocol: str, what: str, connect: Callable[[str], Call], direct: str, routed: str) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    calls: list[Call] = []
    try:
        calls.append(connect(direct))
        calls.append(connect(routed))
        for _ in range(CALLS):
            for call, taken in zip(calls, times, strict=True):
                taken.append(call())
    except Exception as failure:  # whatever a client raises is the check's result
        return Row(protocol, what, 0.0, 0.0, f"{type(failure).__name__}: {failure}")
    finally:
        for call in calls:
            if isinstance(call, RobotCall):
                call.close()
    return Row(protocol, what, median(times[0]), median(times[1]), "")


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def _unary(url: str) -> Call:
    connection = _connect(url)
    body = json.dumps(_CHAT)

    def call() -> float:
        began = perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        took = perf_counter() - began
        if response.status != 200 or not answer["choices"][0]["message"]["content"]:
            raise CheckError(f"status {response.status}")
        return took

    return call


def _stream(url: str) -> Call:
    connection = _connect(url)
    body = json.dumps({**_CHAT, "stream": True})

    def call() -> float:
        began = perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        first = response.readline()
        took = perf_counter() - began
        rest = response.read()
        if response.status != 200 or not first.startswith(b"data: {") or not rest.endswith(b"data: [DONE]\n\n"):
            raise CheckError(f"status {response.status}, the stream is not whole")
        return took

    return call


def _http2(url: str, router: str) -> Call:
    import httpx  # noqa: PLC0415 - of an extra that only `up` needs

    over_h2 = url == router
    client = httpx.Client(base_url=url, http1=not over_h2, http2=over_h2, timeout=TIMEOUT_S, trust_env=False)
    version = "HTTP/2" if over_h2 else "HTTP/1.1"

    def call() -> float:
        began = perf_counter()
        response = client.post("/v1/chat/completions", json=_CHAT)
        took = perf_counter() - began
        if response.status_code != 200 or response.http_version != version:
            raise CheckError(f"{response.http_version} {response.status_code}")
        if not response.json()["choices"][0]["message"]["content"]:
            raise CheckError("no content")
        return took

    return call


def _http3(url: str, target: Target) -> Call:
    if url != target.quic:
        return _unary(url)
    from router.cli.selfcheck_h3 import http3  # noqa: PLC0415 - of an extra

    post = http3(url, target.ca, "/v1/chat/completions", json.dumps(_CHAT).encode())

    def call() -> float:
        took, status, body = post()
        if status != 200 or not json.loads(body)["choices"][0]["message"]["content"]:
            raise CheckError(f"status {status}")
        return took

    return call


def _channel(url: str) -> Any:
    import grpc  # noqa: PLC0415 - of an extra that only `up` needs

    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(urlsplit(url).netloc, options=options)


def _grpc_health(url: str) -> Call:
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - of an extra that only `up` needs

    stub: Any = health_pb2_grpc.HealthStub(_channel(url))
    request = health_pb2.HealthCheckRequest()

    def call() -> float:
        began = perf_counter()
        answer = stub.Check(request, timeout=TIMEOUT_S)
        took = perf_counter() - began
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise CheckError(f"health says {answer.status}")
        return took

    return call


def _grpc_generate(url: str) -> Call:
    from inference_backend.rpc import proto, sglang  # noqa: PLC0415 - of an extra that only `up` needs

    stub = proto.stub_of(sglang.SERVICE, _channel(url))
    request = sglang.pb.GenerateRequest(stream=True)
    request.tokenized.input_ids.extend(range(16))
    request.sampling_params.max_new_tokens = _CHAT["max_tokens"]

    def call() -> float:
        began = perf_counter()
        messages = stub.Generate(request, timeout=TIMEOUT_S)
        first = next(messages)
        took = perf_counter() - began
        rest = list(messages)
        if not first.chunk.token_ids or rest[-1].complete.finish_reason != "length":
            raise CheckError("the stream is not whole")
        return took

    return call


class RobotCall:
    """A robot's session over QUIC, by the project's own client. To be closed: a router waits for who is at work."""

    def __init__(self, target: Target) -> None:
        from router.client import BlockingRobotSession  # noqa: PLC0415 - of an extra that only `up` needs

        parts = urlsplit(target.quic)
        self._session = BlockingRobotSession(
            f"quic://{parts.netloc}/",
            ca=target.ca,
            websocket_url="",
            authority=f"{target.policy_host}:{parts.port}",
        )
        self._session.connect()
        if self._session.recv(TIMEOUT_S) is None:
            self.close()
            raise CheckError("the policy server did not speak first")

    def __call__(self) -> float:
        """Send an observation by the state lane, and wait for actions."""
        began = perf_counter()
        self._session.send(_OBSERVATION)
        answer = self._session.recv(TIMEOUT_S)
        took = perf_counter() - began
        if answer is None or answer.is_text or b"actions" not in answer.data:
            raise CheckError("no actions")
        return took

    def close(self) -> None:
        """Say goodbye."""
        self._session.close()


def _robot(url: str, target: Target) -> Call:
    """Return a robot through the router; who goes to the policy server directly is a WebSocket's client."""
    return RobotCall(target) if url == target.quic else _policy(url, target.policy_host)


def _policy(url: str, host: str) -> Call:
    from websockets.sync.client import connect  # noqa: PLC0415 - of an extra that only `up` needs

    parts = urlsplit(url)
    socket = connect(
        f"ws://{host}:{parts.port}/",
        sock=create_connection((parts.hostname, parts.port), TIMEOUT_S),
        compression=None,
        max_size=None,
        open_timeout=TIMEOUT_S,
        close_timeout=1.0,
    )
    metadata = socket.recv(timeout=TIMEOUT_S)
    if isinstance(metadata, str) or not isinstance(msgspec.msgpack.decode(metadata), dict):
        raise CheckError("the policy server did not speak first")
    def call() -> float:
        began = perf_counter()
        socket.send(_OBSERVATION)
        answer = socket.recv(timeout=TIMEOUT_S)
        took = perf_counter() - began
        if isinstance(answer, str) or b"actions" not in answer:
            raise CheckError(f"no actions: {answer[:80]!r}")
        return took

    return call
