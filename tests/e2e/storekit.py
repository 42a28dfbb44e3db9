"""The store as a process of its own, what is written to it, and traffic that counts what failed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

from childkit import first_line

from router.config.setup import initialise
from router.config.target import Target
from router.config.writer import open_writer


def child_env():
    return {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "SIM_"))}


class StoreProcess:
    """`router store` on a Unix socket below `folder`; it may be killed and started again at the same place."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self.folder / "s.sock"
        self.setting = f"embedded:{self.path}"
        self.target = Target("embedded", f"unix:{self.path}")
        self._stderr = self.folder / "store.err"
        self.process = None

    async def start(self, *arguments, init=True):
        if self.process is not None:
            self.process.stdout.close()
        with self._stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "store", "--data", str(self.folder / "data"),
                 "--listen", f"unix:{self.path}", "--json", *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=child_env(),
            )  # fmt: skip
        line = await asyncio.to_thread(first_line, self.process)
        assert line, self._stderr.read_text()
        assert json.loads(line)["event"] == "ready"
        if init:
            await asyncio.to_thread(initialise, self.target)
        return self

    def writer(self):
        return open_writer(self.target)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def end(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()
        assert "Traceback" not in self._stderr.read_text(), self._stderr.read_text()


class Traffic:
    """Closed loop on kept connections: `count` requests at a time until stopped. Everything but 200 is a failure."""

    def __init__(self, port, count=8, host="h", body=b"hello", fault=""):
        self._port = port
        head = f"POST /_sim/echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n"
        if fault:
            head += f"x-sim-fault: {fault}\r\n"
        self._request = head.encode() + b"\r\n" + body
        self._count = count
        self._is_over = False
        self._task = None
        self.done = 0
        self.failures = []
        self.replicas = {}

    async def __aenter__(self):
        self._task = asyncio.gather(*(self._loop() for _ in range(self._count)))
        return self

    async def __aexit__(self, *_):
        self._is_over = True
        await self._task

    async def _loop(self):
        reader = writer = None
        while not self._is_over:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(self._request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                body = await reader.readexactly(int(fields["content-length"]))
            except (OSError, asyncio.IncompleteReadError) as failure:
                self.failures.append(repr(failure))
                writer = None
                continue
            self.done += 1
            replica = fields.get("x-router-replica", "")
            self.replicas[replica] = self.replicas.get(replica, 0) + 1
            if head[9:12] != "200":
                self.failures.append((head[9:12], body[:200]))
                await asyncio.sleep(0.01)
            if fields.get("connection") == "close":
                writer.close()
                writer = None
            await asyncio.sleep(0.002)
        if writer is not None:
            writer.close()


async def stamp(router, client, within_s=10.0):
    """Wait until each worker has the supervisor's table."""
    deadline = monotonic() + within_s
    while True:
        found = (await router.ask("/config_dump")).json()
        versions = {worker["table_version"] for worker in found["workers"]}
        if versions == {found["table"]["version"]} and len(found["workers"]) == len(await router.workers()):
            return found
        assert monotonic() < deadline, versions
        await asyncio.sleep(0.01)


def table_of(dump):
    """Endpoint to the ids of its replicas that are READY, of /config_dump."""
    return {e["name"]: {r["id"] for r in e["replicas"] if r["state"] == "READY"} for e in dump["table"]["endpoints"]}
