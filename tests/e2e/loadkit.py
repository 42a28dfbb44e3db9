"""Strict clients that count every failure, and the replica they talk to, for tests that change a daemon under load.

A failure is whatever a client without retries would see: a refused connection, a reset, an end without an answer,
another status than the wanted one, a stream that is not whole. Answers say which worker gave them (`x-request-id`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress

import psutil
from grpckit import aio_stubs
from websockets.asyncio.client import connect

LIMIT_S = 15.0
EVENTS = 8


async def replica(reader, writer):
    """Answer HTTP/1.1 requests: /events with a stream of EVENTS events, everything else at once; kept alive."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        if not head.startswith(b"GET /events"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            continue
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(EVENTS):
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.5)
        writer.write(b"0\r\n\r\n")


async def read_answer(reader):
    """Read one answer with a length; return its head, lower case, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head, await reader.readexactly(length)


class Load:
    """Work of many kinds until `stop`; `failures` tell what went wrong, `done` how much went well, by kind."""

    def __init__(self, connector):
        self._connect = connector
        self._tasks = []
        self._is_over = False
        self.done = {}
        self.failures = []
        self.workers = set()

    def start(self, kind, count, *arguments):
        """Run `count` of one kind beside each other."""
        self._tasks += [asyncio.ensure_future(self._repeat(kind, i, *arguments)) for i in range(count)]

    async def _repeat(self, kind, number, *arguments):
        await asyncio.sleep(number % 50 / 100)  # not all in step
        while not self._is_over:
            try:
                async with asyncio.timeout(LIMIT_S):
                    await kind(self, *arguments)
                self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1
            except Exception as failure:  # noqa: BLE001 - each is counted
                self.failures.append(f"{kind.__name__}: {failure!r}")
                await asyncio.sleep(0.05)

    async def stop(self):
        """Let everybody finish what is under way."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    def note(self, head):
        assert head.startswith(b"http/1.1 200 "), head
        self.workers.add(head.partition(b"x-request-id: ")[2].partition(b"-")[0])


async def kept(load, pause_s):
    """Requests on one connection until an answer says that it is the last."""
    reader, writer = await load._connect()
    try:
        while not load._is_over:
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            head, body = await read_answer(reader)
            load.note(head)
            assert body == b"ok"
            load.done["request"] = load.done.get("request", 0) + 1
            if b"connection: close" in head:
                return
            await asyncio.sleep(pause_s)
    finally:
        writer.close()


async def fresh(load, pause_s=0.0):
    """A connection for one request, in a tight loop."""
    reader, writer = await load._connect()
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        head, body = await read_answer(reader)
        load.note(head)
        assert body == b"ok"
        assert await reader.read() == b""
    finally:
        writer.close()
    await asyncio.sleep(pause_s)


async def events(load):
    """A stream that must be whole."""
    reader, writer = await load._connect()
    try:
        writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        text = await reader.read()
        assert text.count(b"data: ") == EVENTS and text.endswith(b"0\r\n\r\n"), text[-200:]
    finally:
        writer.close()


async def talk(load, port):
    """A WebSocket whose messages all come back, and which its client ends."""
    async with connect(
        "ws://robot.test/echo", host="127.0.0.1", port=port, compression=None, proxy=None, open_timeout=10
    ) as robot:
        for number in range(EVENTS):
            await robot.send(f"{number}")
            assert await robot.recv() == f"{number}"
            await asyncio.sleep(0.5)


async def calls(load, port, pause_s):
    """gRPC calls on one channel, which looks for another connection by itself when it is told to."""
    async with aio_stubs(port) as kit:
        while not load._is_over:
            assert await kit.unary(b"hello", timeout=10) == b"hello"
            load.done["call"] = load.done.get("call", 0) + 1
            await asyncio.sleep(pause_s)


class Lineage:
    """A daemon and its successors, by process id: the newest is `pid`."""

    def __init__(self, router, poll, gone):
        self.router = router
        self.pids = [router.pid]
        self._poll = poll
        self._gone = gone

    @property
    def pid(self):
        return self.pids[-1]

    async def info(self):
        return (await self.router.ask("/server_info")).json()

    async def upgrade(self, within_s=30.0):
        """SIGQUIT to the one that serves; return what the next one says of itself."""
        os.kill(self.pid, signal.SIGQUIT)

        async def taken():
            info = await self.info()
            assert not info["upgrade_failures"], info["last_upgrade"]
            return info if info["pid"] != self.pid else None

        info = await self._poll(taken, within_s)
        self.pids.append(info["pid"])
        return info

    async def settled(self, within_s=30.0):
        """All but the newest are gone."""
        await self._poll(lambda: all(self._gone(pid) for pid in self.pids[:-1]), within_s)

    def workers(self):
        return psutil.Process(self.pid).children(recursive=True)


@asynccontextmanager
async def lineage(router, poll, gone):
    """A `Lineage`; at the end all of it is gone, children as well."""
    line = Lineage(router, poll, gone)
    try:
        yield line
    finally:
        if len(line.pids) == 1:
            with suppress(Exception):
                line.pids.append((await line.info())["pid"])
        family = []
        for pid in set(line.pids):
            with suppress(psutil.NoSuchProcess):
                family += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            os.kill(line.pid, signal.SIGINT)
        for pid in line.pids[:-1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        try:
            await poll(lambda: all(gone(process.pid) for process in family), 10)
        finally:
            for process in family:
                if not gone(process.pid):
                    process.kill()
