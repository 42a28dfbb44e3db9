"""A gRPC service that does what the caller's metadata asks, and remembers what it saw.

    grpc = await start_grpc()                    # or start_grpc("sync"); a process of its own on a free port
    replica = grpc.url                           # h2c://127.0.0.1:PORT, for `--replica`
    async with channel(router.port) as kit:
        await kit.unary(b"hello", metadata=(("kit-status", "5"), ("kit-message", "no such thing")))

Messages are raw bytes, methods are /kit.Kit/{Unary,ClientStream,ServerStream,Bidi,Seen}.

    method         answers
    Unary          the request; with kit-size that many bytes
    ClientStream   JSON: messages, bytes, sha256 of all of them together
    ServerStream   kit-count (3) messages: the request and the number; with kit-size that many bytes each
    Bidi           each message as it comes
    Seen           JSON: the calls whose metadata have kit-id equal to the request, oldest first

    metadata                what it does
    kit-id                  names the call, for Seen
    kit-initial-NAME        sent back as initial metadata NAME; -bin works as gRPC says
    kit-trailing-NAME       sent back as trailing metadata NAME
    kit-status, kit-message end with this status instead of OK; kit-message-bin for text that is not ASCII
    kit-after               messages sent before that status (0: a trailers-only reply, if nothing else was sent)
    kit-count, kit-size     how many messages, how large
    kit-sleep-ms            wait before the first message
    kit-interval-ms         wait before each other message
    kit-hang                1: after the messages, wait until the caller is gone

A record of Seen: method, metadata (binary values as hex), messages received, `remaining_s` of the deadline (None
without), `state`: open, ok, failed, cancelled. grpc.health.v1 ("" and kit.Kit serve, kit.Down does not) and
reflection are served beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

SERVICE = "kit.Kit"
MAX_BYTES = 64 << 20
OPTIONS = (("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES),
           ("grpc.so_reuseport", 0))  # fmt: skip
METHODS = {
    "Unary": (False, False), "ClientStream": (True, False), "ServerStream": (False, True), "Bidi": (True, True),
    "Seen": (False, False),
}  # fmt: skip
HANG_S = 60.0  # bounds a process that nobody ended


class Call:
    """One call: what its metadata ask for, and its record."""

    def __init__(self, method, context, seen):
        metadata = [(name, value) for name, value in context.invocation_metadata() or ()]
        asked = dict(metadata)
        self.id = asked.get("kit-id", "")
        self.status = int(asked.get("kit-status", "0"))
        self.message = asked.get("kit-message-bin", b"").decode() or asked.get("kit-message", "")
        self.after = int(asked.get("kit-after", "0"))
        self.count = int(asked.get("kit-count", "3"))
        self.size = int(asked["kit-size"]) if "kit-size" in asked else None
        self.sleep_s = float(asked.get("kit-sleep-ms", "0")) / 1e3
        self.interval_s = float(asked.get("kit-interval-ms", "0")) / 1e3
        self.hang = asked.get("kit-hang") == "1"
        self.initial = self._sent_back(metadata, "kit-initial-")
        self.trailing = self._sent_back(metadata, "kit-trailing-")
        shown = [[name, value.hex() if isinstance(value, bytes) else value] for name, value in metadata]
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s > 1e9:  # the synchronous server's way to say "none"
            remaining_s = None
        self.record = {
            "id": self.id, "method": method, "metadata": shown, "messages": 0, "state": "open",
            "remaining_s": remaining_s,
        }  # fmt: skip
        if method != "Seen":
            seen.append(self.record)

    @staticmethod
    def _sent_back(metadata, prefix):
        return tuple((name.removeprefix(prefix), value) for name, value in metadata if name.startswith(prefix))

    def body(self, request, number=None):
        """The answer to `request`, or message `number` of it."""
        if self.size is not None:
            return bytes(range(256)) * (self.size // 256) + bytes(self.size % 256)
        return request if number is None else b"%b %d" % (request, number)

    def pauses(self):
        """How long to wait before each message, endlessly."""
        yield self.sleep_s
        while True:
            yield self.interval_s


def digest(messages):
    """The answer to a client's stream."""
    whole = hashlib.sha256()
    for message in messages:
        whole.update(message)
    return json.dumps(
        {"messages": len(messages), "bytes": sum(map(len, messages)), "sha256": whole.hexdigest()}
    ).encode()


def calls_of(seen, wanted):
    """The answer of Seen."""
    return json.dumps([record for record in seen if record["id"] == wanted.decode()]).encode()


class AioKit:
    """The service for `grpc.aio.server`."""

    def __init__(self):
        self.seen = deque(maxlen=10_000)

    def handler(self, method):
        async def respond(requests, context):
            call = Call(method, context, self.seen)

            def ended(_context):
                # Not by CancelledError alone: a call that was cancelled in the middle of a write gets none.
                if call.record["state"] == "open":
                    call.record["state"] = "cancelled"

            context.add_done_callback(ended)
            try:
                async for message in self._run(call, method, requests, context):
                    yield message
                call.record["state"] = "ok"
            except grpc.aio.AbortError:
                call.record["state"] = "failed"
                raise

        takes_stream, gives_stream = METHODS[method]
        if gives_stream and takes_stream:
            return grpc.stream_stream_rpc_method_handler(respond)
        if gives_stream:
            return grpc.unary_stream_rpc_method_handler(respond)

        async def answer(requests, context):
            return [message async for message in respond(requests, context)][-1]

        return (grpc.stream_unary_rpc_method_handler if takes_stream else grpc.unary_unary_rpc_method_handler)(answer)

    async def _run(self, call, method, requests, context):
        if call.initial:
            await context.send_initial_metadata(call.initial)
        context.set_trailing_metadata(call.trailing)
        pauses = call.pauses()
        sent = 0
        async for message in self._messages(call, method, requests):
            if pause := next(pauses):
                await asyncio.sleep(pause)
            if call.status and sent >= call.after:
                await context.abort(grpc.StatusCode(_code(call.status)), call.message)
            yield message
            sent += 1
        if call.hang:
            await asyncio.sleep(HANG_S)
        if call.status:
            await context.abort(grpc.StatusCode(_code(call.status)), call.message)

    async def _messages(self, call, method, requests):
        if method == "Seen":
            yield calls_of(self.seen, requests)
        elif method == "Unary":
            call.record["messages"] = 1
            yield call.body(requests)
        elif method == "ServerStream":
            call.record["messages"] = 1
            for number in range(call.count):
                yield call.body(requests, number)
        elif method == "ClientStream":
            messages = []
            async for message in requests:
                call.record["messages"] += 1
                messages.append(message)
            yield digest(messages)
        else:
            async for message in requests:
                call.record["messages"] += 1
                yield call.body(message)


class SyncKit:
    """The service for `grpc.server`, which runs each call on a thread."""

    def __init__(self):
        self.seen = deque(maxlen=10_000)
        self._lock = Lock()

    def handler(self, method):
        def respond(requests, context):
            call = Call(method, context, self.seen)
            gone = Event()

            def ended():
                gone.set()
                with self._lock:
                    if call.record["state"] == "open":
                        call.record["state"] = "cancelled"

            context.add_callback(ended)
            try:
                yield from self._run(call, method, requests, context, gone)
            finally:
                with self._lock:
                    if call.record["state"] == "open" and context.is_active():
                        call.record["state"] = "ok" if context.code() is None else "failed"

        takes_stream, gives_stream = METHODS[method]
        if gives_stream and takes_stream:
            return grpc.stream_stream_rpc_method_handler(respond)
        if gives_stream:
            return grpc.unary_stream_rpc_method_handler(respond)

        def answer(requests, context):
            return list(respond(requests, context))[-1]

        return (grpc.stream_unary_rpc_method_handler if takes_stream else grpc.unary_unary_rpc_method_handler)(answer)

    def _run(self, call, method, requests, context, gone):
        if call.initial:
            context.send_initial_metadata(call.initial)
        context.set_trailing_metadata(call.trailing)
        pauses = call.pauses()
        sent = 0
        for message in self._messages(call, method, requests):
            if (pause := next(pauses)) and gone.wait(pause):
                return
            if call.status and sent >= call.after:
                self._abort(call, context)
            yield message
            sent += 1
        if call.hang:
            gone.wait(HANG_S)
        elif call.status:
            self._abort(call, context)

    def _abort(self, call, context):
        call.record["state"] = "failed"
        context.abort(grpc.StatusCode(_code(call.status)), call.message)

    def _messages(self, call, method, requests):
        if method == "Seen":
            yield calls_of(self.seen, requests)
        elif method == "Unary":
            call.record["messages"] = 1
            yield call.body(requests)
        elif method == "ServerStream":
            call.record["messages"] = 1
            for number in range(call.count):
                yield call.body(requests, number)
        elif method == "ClientStream":
            messages = []
            for message in requests:
                call.record["messages"] += 1
                messages.append(message)
            yield digest(messages)
        else:
            for message in requests:
                call.record["messages"] += 1
                yield call.body(message)


def _code(number):
    return next(code.value for code in grpc.StatusCode if code.value[0] == number)


def _complete(server, kit):
    """Add the service, health and reflection to `server`, and listen; the port."""
    handlers = {method: kit.handler(method) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    statuses = health.HealthServicer()
    for name, status in (("", "SERVING"), (SERVICE, "SERVING"), ("kit.Down", "NOT_SERVING")):
        statuses.set(name, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server.add_insecure_port("127.0.0.1:0")


async def serve_aio():
    """Serve until SIGTERM."""
    # Health and reflection are synchronous servicers: `grpc.aio` runs them on the pool.
    server = grpc.aio.server(ThreadPoolExecutor(8), options=OPTIONS)
    port = _complete(server, AioKit())
    await server.start()
    _announce(port)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(0)


def serve_sync():
    """Serve until SIGTERM."""
    server = grpc.server(ThreadPoolExecutor(256), options=OPTIONS)
    port = _complete(server, SyncKit())
    server.start()
    _announce(port)
    signal.sigwait({signal.SIGTERM})
    server.stop(0).wait()


def _announce(port):
    print(json.dumps({"event": "ready", "port": port}), flush=True)


class GrpcProcess:
    """The service as a child process."""

    def __init__(self, flavour="aio"):
        self.flavour = flavour
        self.process = None
        self.port = 0

    def start(self):
        from childkit import first_line  # not of the service, which runs this file from elsewhere

        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--flavour", self.flavour],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        line = first_line(self.process)
        if not line:
            self.kill()
            raise AssertionError(f"the {self.flavour} gRPC service did not start: exit {self.process.returncode}")
        self.port = json.loads(line)["port"]
        return self

    @property
    def url(self):
        """For `--replica`."""
        return f"h2c://127.0.0.1:{self.port}"

    @property
    def address(self):
        """For a channel."""
        return f"127.0.0.1:{self.port}"

    def kill(self):
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM, and SIGKILL when a call still holds a thread."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()


class Stubs:
    """The methods on a channel, sync or aio: `unary(b"…", metadata=…, timeout=…)` and so on."""

    def __init__(self, channel):
        self.channel = channel
        path = f"/{SERVICE}/"
        self.unary = channel.unary_unary(path + "Unary")
        self.client_stream = channel.stream_unary(path + "ClientStream")
        self.server_stream = channel.unary_stream(path + "ServerStream")
        self.bidi = channel.stream_stream(path + "Bidi")
        self.seen = channel.unary_unary(path + "Seen")


def _options(more):
    return (*OPTIONS[:2], ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), *more)


@contextlib.asynccontextmanager
async def aio_stubs(port, *options):
    """Stubs of `grpc.aio` on a connection of their own to a loopback port."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_options(options)) as channel:
        yield Stubs(channel)


@contextlib.contextmanager
def sync_stubs(port, *options):
    """Stubs of the synchronous client on a connection of their own to a loopback port."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_options(options)) as channel:
        yield Stubs(channel)


async def seen(port, wanted, state=None, within_s=10.0):
    """The one call with kit-id `wanted` that the service at `port` has a record of, once it is in `state`."""
    async with aio_stubs(port) as kit:
        until = time.monotonic() + within_s
        while True:
            found = json.loads(await kit.seen(wanted.encode(), timeout=within_s))
            if found and (state is None or found[0]["state"] == state):
                assert len(found) == 1, found
                return found[0]
            assert time.monotonic() < until, found
            await asyncio.sleep(0.01)


def main():
    """Run the service."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavour", choices=("aio", "sync"), default="aio")
    if parser.parse_args().flavour == "sync":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # every thread inherits it; sigwait takes it
        serve_sync()
    else:
        asyncio.run(serve_aio())


if __name__ == "__main__":
    main()
