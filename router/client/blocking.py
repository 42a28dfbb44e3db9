"""`RobotSession` for programs without an event loop: the same, on a thread of its own.

Any thread may send and any may receive; who waits for a message keeps nobody from sending. Callbacks run on the
session's thread and must return soon: they may send, but not wait for what that thread has to do. What a session
has measured can still be read once it is closed.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from router.client.session import RobotSession
from router.client.words import Lane, Link, Message, RobotError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

_T = TypeVar("_T")


class BlockingRobotSession:
    """Takes what `RobotSession` takes. `with` connects and closes."""

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._run, name="robot session", daemon=True)
        self._is_begun = False
        self._is_closed = False
        self._lock = threading.Lock()
        try:
            self._session = RobotSession(url, **options)
        except BaseException:
            self._loop.close()
            raise
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def connect(self) -> None:
        """Return once a replica is there; RobotError if there is none. Once."""
        with self._lock:
            if self._is_begun:
                raise RuntimeError("connect is for once: a session reconnects by itself")
            self._is_begun = True
        try:
            self._wait(self._session.connect())
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes | str, lane: Lane = "state", deadline_s: float | None = None) -> bool:
        """Send a message; see `RobotSession.send`. Returns as soon as the session's thread has it."""
        return self._call(lambda: self._session.send(data, lane, deadline_s))

    def recv(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, None if there was none in time."""
        self._refuse_own_thread()
        return self._wait(self._session.recv(timeout_s))

    @property
    def link(self) -> Link:
        """What was measured so far."""
        return self._call(lambda: self._session.link)

    @property
    def epoch(self) -> int:
        """Which replica serves, counted from 1."""
        return self._session.epoch

    @property
    def session_id(self) -> str:
        """The router's id of the session; see `RobotSession`."""
        return self._call(lambda: self._session.session_id)

    @property
    def resume_token(self) -> str:
        """What finds back to the replica; see `RobotSession`."""
        return self._call(lambda: self._session.resume_token)

    @property
    def is_connected(self) -> bool:
        """Whether a replica is there now."""
        return self._session.is_connected

    def rebind(self) -> None:
        """Go on from another socket."""
        self._call(self._session.rebind)

    def close(self) -> None:
        """Say goodbye and end the thread. Any number of times."""
        self._refuse_own_thread()
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot wait for its own thread: it may send, no more")

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self._lock:
            if self._is_closed:
                work.close()
                raise RobotError(1_000, "the session was closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupt: what comes is the next one's
            raise

    def _call(self, work: Callable[[], _T]) -> _T:
        if threading.current_thread() is self._thread or self._loop.is_closed():
            return work()

        async def once() -> _T:
            return work()

        return self._wait(once())


def new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's if it is there, else the standard one."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made
