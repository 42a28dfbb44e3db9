"""A scripted raw-socket replica, a raw client and strict parsers, written from RFC 9110 and RFC 9112 alone.

Both parsers take only what the grammar allows, so a router that passes a malformed byte on is caught even
where a test does not look for it. Neither side waits by sleeping: a wait ends on bytes, on the end of a
connection, or on a generous timeout, which is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from childkit import first_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PATIENCE_S = 10.0  # an event that has not come by then does not come: long, because a CI machine stalls
ROOT = Path(__file__).resolve().parents[2]
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) (HTTP/1\.[01])")
STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
# RFC 9110 §5.5: other control characters than NUL, CR and LF may be retained.
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*([^\x00\r\n]*?)[ \t]*")
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
ORIGIN_FORM = re.compile(rb"/[\x21-\x22\x24-\x7e]*")

Fields = list[tuple[bytes, bytes]]


class WireError(Exception):
    """The router under test wrote something that the grammar does not allow."""


def parse_fields(lines: Sequence[bytes]) -> Fields:
    fields = []
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if not match:
            raise WireError(f"bad field line {line!r}")
        fields.append((match[1], match[2]))
    return fields


def values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name.lower()]


def framing(fields: Fields) -> int | bytes | None:
    """`b"chunked"`, a length, or None when the head says neither. A sender may say only one of them, once."""
    lengths, codings = values(fields, b"content-length"), values(fields, b"transfer-encoding")
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise WireError(f"bad framing {fields!r}")
        return b"chunked"
    if not lengths:
        return None
    if len(lengths) != 1 or not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise WireError(f"bad framing {fields!r}")
    return int(lengths[0])


@dataclass(eq=False)
class Message:
    """A request as the replica saw it, or a response as the client did."""

    start: tuple[bytes, bytes, bytes]
    fields: Fields
    framing: int | bytes | None = None
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    interim: list[Message] = field(default_factory=list)
    complete: bool = False

    @property
    def method(self) -> bytes:
        return self.start[0]

    @property
    def target(self) -> bytes:
        return self.start[1]

    @property
    def status(self) -> int:
        return int(self.start[1])

    def get(self, name: bytes) -> bytes | None:
        found = values(self.fields, name)
        return b", ".join(found) if found else None

    def names(self) -> set[bytes]:
        return {name.lower() for name, _ in self.fields}


class Link:
    """One TCP connection, always being read, with everything that came kept until it is parsed."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.unread = bytearray()
        self.total = 0
        self.ended: str | None = None  # "eof" or "reset"
        self.ended_at = 0.0
        self.shut = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._news = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while self.ended is None:
            await self.flowing.wait()
            try:
                data = await loop.sock_recv(self.sock, 1 << 18)
            except OSError:
                self.ended = "reset"
            else:
                self.unread += data
                self.total += len(data)
                if not data:
                    self.ended = "eof"
            if self.ended:
                self.ended_at = time.monotonic()
            self._news.set()

    async def wait(self, enough: Callable[[], bool], timeout_s: float | None = PATIENCE_S) -> None:
        """Until `enough()` or the end of the connection."""
        async with asyncio.timeout(timeout_s):
            while not enough() and self.ended is None:
                self._news.clear()
                await self._news.wait()

    async def ending(self, timeout_s: float | None = PATIENCE_S) -> str:
        await self.wait(lambda: False, timeout_s)
        assert self.ended
        return self.ended

    async def send(self, data: bytes, mode: str = "whole") -> bool:
        """Write it in one call, byte by byte or in random splits; False when the peer has gone."""
        loop = asyncio.get_running_loop()
        for piece in split(data, mode):
            try:
                await loop.sock_sendall(self.sock, piece)
            except OSError:
                return False
            if mode != "whole":
                # Give the other process a chance to see this piece alone. Nothing depends on it.
                pause = time.perf_counter() + 0.0001
                while time.perf_counter() < pause:
                    await asyncio.sleep(0)
        return True

    def finish(self) -> None:
        """FIN: no more bytes from here, the other direction stays open."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self.shut:
            self.shut = True
            self._reader.cancel()
            # Now, not when the cancelled tasks run: by then the number may be another socket's.
            asyncio.get_running_loop().remove_reader(self.sock)
            asyncio.get_running_loop().remove_writer(self.sock)
            self.sock.close()

    def abort(self) -> None:
        """RST."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    async def line(self, timeout_s: float | None = PATIENCE_S) -> bytes | None:
        """A line without its CRLF; None when the connection ended first."""
        await self.wait(lambda: b"\r\n" in self.unread, timeout_s)
        at = self.unread.find(b"\r\n")
        if at < 0:
            return None
        line = bytes(self.unread[:at])
        del self.unread[: at + 2]
        if b"\n" in line or b"\r" in line:
            raise WireError(f"bare CR or LF in {line!r}")
        return line

    async def lines(self, timeout_s: float | None = PATIENCE_S) -> list[bytes] | None:
        """Lines up to the empty one."""
        found: list[bytes] = []
        while line := await self.line(timeout_s):
            found.append(line)
        return found if line is not None else None

    async def exactly(self, size: int, into: bytearray, timeout_s: float | None = PATIENCE_S) -> bool:
        while size:
            await self.wait(lambda: bool(self.unread), timeout_s)
            if not self.unread:
                return False
            piece = self.unread[:size]
            into += piece
            del self.unread[: len(piece)]
            size -= len(piece)
        return True

    async def body_of(self, message: Message, timeout_s: float | None = PATIENCE_S) -> None:
        """Fill in body and trailers; `complete` stays False when the connection ended before the message."""
        if message.framing != b"chunked":
            assert not isinstance(message.framing, bytes)
            message.complete = await self.exactly(message.framing or 0, message.body, timeout_s)
            return
        while (line := await self.line(timeout_s)) is not None:
            if not CHUNK_SIZE.fullmatch(line):
                raise WireError(f"bad chunk size {line!r}")
            size = int(line, 16)
            if size == 0:
                lines = await self.lines(timeout_s)
                if lines is not None:
                    message.trailers = parse_fields(lines)
                    message.complete = True
                return
            if not await self.exactly(size, message.body, timeout_s):
                return
            end = bytearray()
            if not await self.exactly(2, end, timeout_s):
                return
            if end != b"\r\n":
                raise WireError(f"chunk data ends in {bytes(end)!r}")


def split(data: bytes, mode: str) -> list[bytes]:
    if mode == "whole" or len(data) < 2:
        return [data]
    if mode == "bytes":
        return [data[i : i + 1] for i in range(len(data))]
    dice = random.Random(data)
    cuts = sorted({0, len(data), *(dice.randrange(len(data)) for _ in range(6))})
    return [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


class Client(Link):
    """The downstream peer."""

    @classmethod
    async def connect(cls, port: int, receive_buffer: int = 0) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def head(self, timeout_s: float | None = PATIENCE_S) -> Message | None:
        """The next head, 1xx or final; None for an end of the connection with nothing before it."""
        lines = await self.lines(timeout_s)
        if lines is None:
            if self.unread:
                raise WireError(f"cut head {bytes(self.unread)!r}")
            return None
        match = STATUS_LINE.fullmatch(lines[0]) if lines else None
        if not match:
            raise WireError(f"bad status line {lines!r}")
        return Message((match[1], match[2], match[3]), parse_fields(lines[1:]))

    async def response(self, method: bytes = b"GET", timeout_s: float | None = PATIENCE_S) -> Message | None:
        interim = []
        while (message := await self.head(timeout_s)) and message.status < 200 and message.status != 101:
            interim.append(message)
        if message is None:
            if interim:
                raise WireError("no final response after 1xx")
            return None
        message.interim = interim
        length = framing(message.fields)
        if message.status in {101, 204}:
            assert length is None, "RFC 9110 §8.6, RFC 9112 §6.1: no framing in 1xx and 204"
        if method == b"HEAD" or message.status in {101, 204, 304}:
            message.complete = True
        elif length is None:
            message.framing = b"close"
            message.complete = await self.ending(timeout_s) == "eof"
            message.body += self.unread
            self.unread.clear()
        else:
            message.framing = length
            await self.body_of(message, timeout_s)
        return message

    async def get(self, target: bytes = b"/", fields: bytes = b"") -> Message:
        """A plain request on this connection; its response must come whole."""
        await self.send(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")
        response = await self.response()
        assert response, "closed instead of an answer"
        assert response.complete
        return response

    async def assert_closed(self) -> str:
        """The router ends the connection and writes nothing more on it."""
        ended = await self.ending()
        assert not self.unread, f"bytes after the last response: {bytes(self.unread)!r}"
        return ended


class ReplicaConnection(Link):
    """One connection from the router; `busy` from a request's first byte to the end of its script."""

    def __init__(self, sock: socket.socket, replica: Replica) -> None:
        super().__init__(sock)
        self.busy = False
        self.served = 0
        self.task = asyncio.ensure_future(self._serve(replica))

    async def _serve(self, replica: Replica) -> None:
        try:
            while lines := await self.lines(None):
                self.busy = True
                match = REQUEST_LINE.fullmatch(lines[0])
                if not match:
                    raise WireError(f"bad request line {lines[0]!r}")
                request = Message((match[1], match[2], match[3]), parse_fields(lines[1:]))
                request.framing = framing(request.fields)
                hosts = values(request.fields, b"host")
                if len(hosts) > 1 or (not hosts and match[3] == b"HTTP/1.1"):
                    raise WireError(f"Host: {hosts!r}")
                script = replica.script
                if request.target == b"/barrier":
                    script = echo
                else:
                    replica.seen.append((self, request))
                await script(self, request)
                self.served += 1
                if self.shut:
                    return
                if not request.complete:
                    await self.body_of(request, None)
                    if not request.complete:
                        return
                self.busy = False
            if lines is not None:
                raise WireError("empty line before a request")
        except WireError as error:
            replica.violations.append(str(error))
            self.abort()

    def close(self) -> None:
        super().close()
        if self.task is not asyncio.current_task():
            self.task.cancel()


async def echo(connection: ReplicaConnection, request: Message) -> None:
    """Answer with the request's target as the body, so that answers out of order show."""
    await connection.body_of(request, None)
    if request.complete:
        body = b"" if request.method == b"HEAD" else request.target
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(request.target), body))


def answer(
    data: bytes, end: str = "", mode: str = "whole", *, early: bool = False
) -> Callable[[ReplicaConnection, Message], Awaitable[None]]:
    """Script: read the request (unless `early`), write these bytes, then keep the connection, FIN or RST it."""

    async def script(connection: ReplicaConnection, request: Message) -> None:
        if not early:
            await connection.body_of(request, None)
        await connection.send(data, mode)
        if end == "fin":
            connection.finish()
        elif end == "rst":
            # What was written must arrive first: RST discards what the receiver has not read yet.
            await drained(connection.sock)
            connection.abort()

    return script


async def drained(sock: socket.socket) -> None:
    """Until the peer's kernel has every byte: it stays readable there even after RST."""
    async with asyncio.timeout(PATIENCE_S):
        while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
            await asyncio.sleep(0.001)


class Replica:
    """Listens for the router; records what came, answers as `script` says."""

    def __init__(self) -> None:
        self.script: Callable[[ReplicaConnection, Message], Awaitable[None]] = echo
        self.connections: list[ReplicaConnection] = []
        self.seen: list[tuple[ReplicaConnection, Message]] = []
        self.violations: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._accepting = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            self.connections.append(ReplicaConnection(sock, self))

    @property
    def requests(self) -> list[Message]:
        return [request for _, request in self.seen]

    def reset(self) -> None:
        """A new test: forget what was seen, drop what is half done, keep what the router may have pooled."""
        for connection in self.connections:
            if connection.busy or connection.ended or connection.unread:
                connection.abort()
        self.connections = [c for c in self.connections if not c.shut]
        self.seen, self.violations, self.script = [], [], echo

    def stop(self) -> None:
        self._accepting.cancel()
        self.listener.close()
        for connection in self.connections:
            connection.abort()


async def until(true: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Bounded polling for a state that no single event announces."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.002)


class Router:
    """The command under test in its own process."""

    def __init__(self, replicas: Sequence[str], flags: Sequence[str], log: Path) -> None:
        self.log = log
        self._read = 0
        command = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        for url in replicas:
            command += ["--replica", url]
        command += ["--workers", "1", "--health", "none", "--json", *flags]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
        assert self.process.stdout
        line = first_line(self.process)
        try:
            event = json.loads(line)
        except ValueError:
            self.process.kill()
            self.stop()
            raise AssertionError(f"no ready line but {line!r}: {log.read_text()}") from None
        self.port = int(event["listen"][0].rsplit(":", 1)[1])

    def check(self) -> None:
        """Still running, and nothing on stderr that only a bug of ours writes."""
        text = self.log.read_text(errors="replace")
        news, self._read = text[self._read :], len(text)
        assert "Traceback" not in news, news
        assert self.process.poll() is None, f"the router ended: {news}"

    def memory_bytes(self) -> int:
        """Resident memory of the process and its workers."""
        import psutil

        parent = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)])

    def stop(self) -> None:
        try:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the router ignores SIGINT") from None
        finally:
            assert self.process.stdout
            self.process.stdout.close()
