"""Who waits for a request's tokens: a stream that writes a frame per step, or an answer that is sent whole.

A stream's frames go straight from the scheduler's turn to the transport, each as one HTTP chunk and all of a
step in one write: no task wakes between the head and the end. A client that reads too slowly gets no frames
while more than `_HELD_BYTES` wait for it; the next frame then carries everything since.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_backend import faults

if TYPE_CHECKING:
    from inference_backend.frames import Answer
    from inference_backend.journal import Journal, Record

_HELD_BYTES = 256 * 1024
_KILL_AFTER_S = 0.005  # lets the frames before the kill reach the socket


class Waiting:
    """An answer that is sent whole; `done` resolves to the finish reason."""

    __slots__ = ("_journal", "_record", "done")
    is_stream = False

    def __init__(self, journal: Journal, record: Record) -> None:
        self._journal = journal
        self._record = record
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def generated(self, tokens: int, finish: str | None) -> None:
        """See driver.Owner."""
        if finish is None:
            return
        if not self.done.done():
            self.done.set_result(finish)
        elif finish == "abort":
            self._journal.end(self._record, "aborted")


class Streaming:
    """A stream of frames; `done` resolves when the last is written, unless a fault holds it back."""

    __slots__ = (
        "_answer",
        "_journal",
        "_muted",
        "_plan",
        "_record",
        "_room",
        "_transport",
        "chunked",
        "done",
    )
    is_stream = True

    def __init__(
        self,
        journal: Journal,
        record: Record,
        answer: Answer,
        transport: asyncio.Transport,
        plan: faults.Plan | None,
    ) -> None:
        self._answer = answer
        self._transport = transport
        self._plan = plan if plan is not None and plan.in_body else None
        self._room = plan.after if plan is not None else 0  # frames until the fault
        self._journal = journal
        self._record = record
        self._muted = False
        self.chunked = True
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def generated(self, tokens: int, finish: str | None) -> None:
        """See driver.Owner."""
        if self._muted:
            if finish == "abort":
                self._journal.end(self._record, "aborted")
            return
        transport = self._transport
        frames: list[bytes] = []
        if finish is not None:
            self._answer.end(frames, finish)
        elif transport.get_write_buffer_size() > _HELD_BYTES:
            return
        else:
            self._answer.step(frames)
        if self._plan is not None and (len(frames) >= self._room or finish is not None):
            self.misbehave(frames[: self._room])
            return
        self._room -= len(frames)
        self._write(frames)
        if finish is not None:
            self._journal.end(self._record, "aborted" if finish == "abort" else "finished")
            if not self.done.done():
                self.done.set_result(None)

    def misbehave(self, frames: list[bytes]) -> None:
        """Write the frames before the fault, then do what the plan says; nothing is written after."""
        assert self._plan is not None
        self._muted = True
        self._write(frames)
        if self._plan.in_body == "die":
            self._journal.end(self._record, "failed")
            faults.cut(self._transport, with_reset=self._plan.with_reset)
        elif self._plan.in_body == "kill":
            asyncio.get_running_loop().call_later(_KILL_AFTER_S, faults.kill)

    def _write(self, frames: list[bytes]) -> None:
        if not frames or self._transport.is_closing():
            return
        if self.chunked:
            frames = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames]
        self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
