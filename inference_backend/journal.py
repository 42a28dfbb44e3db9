"""What the engine was asked and how each request ended: the truth a test compares a router with.

A record is open from the arrival of the head until the answer is complete or the client is gone; the last
`limit` closed ones are kept. `in_flight` counts handlers at work, which is what a drain waits
for.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_backend.scheduler import Request


class Head(Protocol):
    """What is recorded of a request's head; aiohttp's request is one."""

    @property
    def method(self) -> str:
        """Its method."""

    @property
    def raw_path(self) -> str:
        """Its path, as sent."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its fields, or a call's metadata."""


class Record:
    """One request to a completion endpoint."""

    __slots__ = ("ended", "headers", "method", "path", "received", "request", "rid", "state")

    def __init__(self, http: Head) -> None:
        self.rid = ""
        self.state = "queued"
        self.method = http.method
        self.path = http.raw_path
        self.headers = http.headers
        self.received = (time.monotonic(), time.time())
        self.ended: tuple[float, float] | None = None
        self.request: Request | None = None

    def as_json(self) -> dict[str, Any]:
        """Show the record as /_sim/requests does."""
        request = self.request
        ended = self.ended or (None, None)
        return {
            "rid": self.rid,
            "state": self.state,
            "method": self.method,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "received_at": self.received[0],
            "received_at_epoch": self.received[1],
            "ended_at": ended[0],
            "ended_at_epoch": ended[1],
            "tokens": request.generated if request else 0,
            "prompt_tokens": request.prompt_tokens if request else 0,
            "cached_tokens": request.cached_tokens if request else 0,
        }


class Journal:
    """Open records, recent ones, and counters per final state."""

    __slots__ = ("aborted", "failed", "finished", "in_flight", "open", "recent")

    def __init__(self, limit: int) -> None:
        self.open: dict[Record, None] = {}
        self.recent: deque[Record] = deque(maxlen=limit)
        self.finished = self.aborted = self.failed = 0
        self.in_flight = 0

    def begin(self, http: Head) -> Record:
        """Note that a request's head arrived."""
        record = Record(http)
        self.open[record] = None
        return record

    def end(self, record: Record, state: str) -> None:
        """Close the record as "finished", "aborted" or "failed".  Only the first call counts."""
        if record not in self.open:
            return
        del self.open[record]
        record.state = state
        record.ended = (time.monotonic(), time.time())
        self.recent.append(record)
        if state == "finished":
            self.finished += 1
        elif state == "aborted":
            self.aborted += 1
        else:
            self.failed += 1
