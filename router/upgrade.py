"""The running daemon's side of an upgrade: one successor at a time, and how the last attempt went.

    SIGQUIT, POST /upgrade   the same command line is started again, with the listening sockets
    Ready                    hand over, and drain
    anything else            end it, go on as before, and keep the reason in `last`

Until the successor says Ready nothing of this daemon has changed: a bad file, a crash, silence cost nothing. One
attempt at a time, `limit_s` for it, and `MAX_OLDER` generations that still drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from router.control import Unpacker
from router.handover import READ_BYTES, VARIABLE, Gone, Ready, Refused, frame, from_successor
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.handover import FromPredecessor, FromSuccessor, Handover

_log = logging.getLogger("router.supervisor")

MAX_OLDER = 8  # generations that drain beside the one that serves
POLL_S = 0.01
END_LIMIT_S = 5.0  # for a successor that has closed its end to be gone


class Successor:
    """One process that was started to take over.

    By `subprocess`, not by the loop: uvloop leaves copies of stdin, stdout and stderr open in a child, three more
    with each generation.
    """

    def __init__(self) -> None:
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, command: list[str], handover: Handover) -> FromSuccessor:
        """Start it and return its first word; Refused as well if it cannot be started or ends without one."""
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), *(entry.fd for entry in handover.sockets))
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds; our own command line
                command, stdin=subprocess.DEVNULL, pass_fds=fds,
                env={**os.environ, VARIABLE: str(theirs.fileno())},
            )  # fmt: skip
        except OSError as failure:
            ours.close()
            return Refused(f"{command[0]}: {failure.strerror}")
        finally:
            theirs.close()
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._send(handover)
        return await self._answer(reader)

    async def _answer(self, reader: asyncio.StreamReader) -> FromSuccessor:
        unpacker = Unpacker()
        try:
            while data := await reader.read(READ_BYTES):
                for body in unpacker.feed(data):
                    return from_successor.decode(body)
        except ConnectionError:
            pass  # it ended without having read what we said
        except (ValueError, msgspec.DecodeError) as failure:
            return Refused(f"its words cannot be read: {failure}")
        with suppress(TimeoutError):
            async with asyncio.timeout(END_LIMIT_S):
                code = await self._ended()
                return Refused(f"it ended with exit code {code} before it was ready; its log says why")
        return Refused("it closed its end and did not go")

    async def _ended(self) -> int:
        """Return the exit code. Polled, since only an attempt that failed waits for it."""
        assert self._process is not None
        while (code := self._process.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return code

    def tell(self, message: FromPredecessor) -> None:
        """Say something, if it is still there."""
        self._send(message)

    async def kill(self) -> None:
        """End it: it is not to take over any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            await self._ended()
        if self._writer is not None:
            self._writer.close()

    def _send(self, message: FromPredecessor) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))


class Upgrade:
    """`begin` an attempt; `describe` is asked for what the successor gets, `hand_over` called when it is ready."""

    def __init__(
        self,
        command: list[str] | None,
        limit_s: float,
        describe: Callable[[], Awaitable[Handover]],
        hand_over: Callable[[Successor, Ready], Awaitable[int]],
    ) -> None:
        self._command = command
        self._limit_s = limit_s
        self._describe = describe
        self._hand_over = hand_over
        self._task: asyncio.Task[None] | None = None
        self.failures = 0
        self.is_handed_over = False
        self.last: dict[str, Any] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a successor was started and has not failed."""
        return self._task is not None and not self._task.done()

    def begin(self, is_serving: bool, older: int) -> str:
        """Start an attempt; return why not, which changes nothing."""
        refusal = self._refusal(is_serving, older)
        if refusal:
            _log.warning("no upgrade: %s", refusal)
        else:
            self._task = spawn(self._attempt(), "upgrade")
        return refusal

    def _refusal(self, is_serving: bool, older: int) -> str:
        if self._command is None:
            return "only `router serve` can be upgraded: this daemon carries more than a router"
        if self.is_under_way:
            return "an upgrade is under way"
        if not is_serving:
            return "the daemon is starting or draining"
        if os.getpid() == 1:
            return "this is process 1 of a container, whose end is the container's: roll the container instead"
        if older >= MAX_OLDER:
            return f"{older} older generations are still draining"
        return ""

    def note_success(self, pid: int) -> None:
        """Remember that this process took over from `pid`."""
        self.last = {"ok": True, "error": "", "pid": pid, "at_epoch_s": time.time()}

    async def abort(self, reason: str) -> None:
        """Give an attempt up that is not ready yet, and end its process."""
        if self.is_under_way and not self.is_handed_over:
            assert self._task is not None
            self._task.cancel(reason)
            await asyncio.wait([self._task])

    async def _attempt(self) -> None:
        began_s = time.monotonic()
        assert self._command is not None
        successor = Successor()
        answer: FromSuccessor = Refused("the daemon was told to end")
        try:
            handover = await self._describe()
            async with asyncio.timeout(self._limit_s):
                answer = await successor.start(self._command, handover)
        except TimeoutError:
            answer = Refused(f"it was not ready within {self._limit_s:g} s")
        except Exception as failure:  # a fork that failed, our bug: this daemon goes on
            _log.exception("the upgrade failed by itself")
            answer = Refused(f"{type(failure).__name__}: {failure}")
        finally:
            if isinstance(answer, Refused):  # after a cancel, too
                await asyncio.shield(successor.kill())
                self._note_failure(successor.pid, answer.reason)
        if isinstance(answer, Ready):
            self.is_handed_over = True
            _log.info("process %d took over after %.1f s", successor.pid, time.monotonic() - began_s)
            successor.tell(Gone(await self._hand_over(successor, answer)))

    def _note_failure(self, pid: int, reason: str) -> None:
        self.failures += 1
        self.last = {"ok": False, "error": reason, "pid": pid, "at_epoch_s": time.time()}
        _log.error("the upgrade failed, this daemon goes on: %s", reason)


def own_command() -> list[str]:
    """Return the command line of this process: its interpreter, by the path it was called by, and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


