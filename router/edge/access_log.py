"""The access log: one JSON object a line, with Envoy's flags, written off the hot path.

An exchange hands over a tuple at its finish. Records are formatted in small slices on the event loop, so
that no slice stalls it, and written by a thread, so that a slow disk does not either. Beyond
`MAX_PENDING` records the rest is dropped and counted, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import re
import sys
import threading
import time
from random import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.core import AccessRecord
    from router.counters import WorkerCounters

_log = logging.getLogger("router.access_log")

CLOSE_LIMIT_S = 2.0  # at the end, for a slow disk
SLICE = 64  # records formatted in one go: about 0.1 ms
INTERVAL_S = 0.05
MAX_PENDING = 65_536
MAX_BATCHES = 64  # handed to the thread and not yet written

_SESSION_TOKEN = b"session_token="
_TOKEN_VALUE = re.compile(rb"(session_token=)[^&]+")
_LINE = (
    b'{"time":%.6f,"request_id":"%b","method":"%b","authority":"%b","path":"%b","protocol":"%b","status":%d,'
    b'"flags":"%b","code":"%b","endpoint":"%b","replica":"%b","bytes_received":%d,"bytes_sent":%d,'
    b'"duration_ms":%.3f,"overhead_us":%.1f,"first_byte_ms":%.3f,"client":"%b","retries":%d,"reached":"%b",'
    b'"grpc_status":%b}\n'
)


class AccessLog:
    """One worker's log. Call it with a record; `close` writes what is left."""

    __slots__ = (
        "_counters",
        "_lines",
        "_loop",
        "_path",
        "_pending",
        "_sample",
        "_scheduled",
        "_thread",
        "_work",
    )

    def __init__(self, path: str, sample: float, counters: WorkerCounters) -> None:
        self._path = path
        self._sample = sample
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._pending: list[AccessRecord] = []
        self._scheduled = False
        self._lines: list[bytes] = []
        self._work: queue.Queue[bytes | None] = queue.Queue(MAX_BATCHES)
        self._thread = _start_thread(self._open(), self._work)

    def __call__(self, record: AccessRecord) -> None:
        """Keep a record for the next slice. Failures are always kept, others by the sampled share."""
        if self._sample < 1.0 and not record[8] and random() >= self._sample:
            return
        if len(self._pending) >= MAX_PENDING:
            self._counters.access_log_dropped += 1
            return
        self._pending.append(record)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(INTERVAL_S, self._format_slice)

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one was moved away."""
        try:
            fd = self._open()
        except OSError as failure:
            _log.error("the access log stays in its old file: %s", failure)
            return
        self._end_thread()
        self._work = queue.Queue(MAX_BATCHES)
        self._thread = _start_thread(fd, self._work)

    def close(self) -> None:
        """Format and write everything, and wait for the thread."""
        while self._pending:
            self._format_slice(again=False)
        self._end_thread()
        self._thread.join(timeout=CLOSE_LIMIT_S)

    def _end_thread(self) -> None:
        """Let the thread end behind what it has. Never waits: a stuck disk and a full queue cost one batch."""
        try:
            self._work.put_nowait(None)
        except queue.Full:
            with contextlib.suppress(queue.Empty):
                self._counters.access_log_dropped += (self._work.get_nowait() or b"").count(b"\n")
            with contextlib.suppress(queue.Full):
                self._work.put_nowait(None)

    def _open(self) -> int:
        if self._path == "-":
            return os.dup(sys.stdout.fileno())
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _format_slice(self, *, again: bool = True) -> None:
        """Format some records; hand the lines to the thread once none is left, so that it wakes rarely."""
        batch, self._pending = self._pending[:SLICE], self._pending[SLICE:]
        epoch = time.time() - time.monotonic()
        self._lines += [format_line(record, epoch) for record in batch]
        if again and self._pending:
            self._loop.call_soon(self._format_slice)
            return
        self._scheduled = False
        lines, self._lines = self._lines, []
        try:
            self._work.put_nowait(b"".join(lines))
        except queue.Full:
            self._counters.access_log_dropped += len(lines)


def format_line(record: AccessRecord, epoch: float) -> bytes:
    """Return one JSON line. Only a path can hold what JSON escapes; the rest is of narrower alphabets."""
    (ended_s, request_id, method, authority, path, version, status, flag, code, endpoint, replica,
     received, sent, duration_s, overhead_s, first_byte_s, client, retries, reached,
     grpc_status) = record  # fmt: skip
    if path.find(_SESSION_TOKEN) >= 0:  # whatever became of the request: it is a credential
        path = _TOKEN_VALUE.sub(rb"\1-", path)
    if path.find(b'"') >= 0 or path.find(b"\\") >= 0:
        path = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return _LINE % (
        ended_s + epoch, request_id, method, authority, path, version, status, flag, code, endpoint, replica,
        received, sent, duration_s * 1e3, overhead_s * 1e6, first_byte_s * 1e3, client, retries, reached,
        b"%d" % grpc_status if grpc_status >= 0 else b"null",
    )  # fmt: skip


def _start_thread(fd: int, work: queue.Queue[bytes | None]) -> threading.Thread:
    thread = threading.Thread(target=_write_all, args=(fd, work), name="access-log", daemon=True)
    thread.start()
    return thread


def _write_all(fd: int, work: queue.Queue[bytes | None]) -> None:
    while (batch := work.get()) is not None:
        view = memoryview(batch)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except OSError:
                break  # a full disk or a closed pipe must not end the daemon
    os.close(fd)
