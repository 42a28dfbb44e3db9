"""Locust users over QUIC: chat completions by HTTP/3 (aioquic), and robots with a session of our client.

Both live on an asyncio loop in a real thread: a loop in a greenlet would stop the other users whenever it waits,
and so would a `BlockingRobotSession`, whose thread gevent makes a greenlet. A greenlet hands the loop a coroutine
and waits for gevent to hear of the end. Only locust's own process imports this module. Imports `users_base` and
`openpi`.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
import uvloop
from gevent.event import AsyncResult
from gevent.monkey import get_original
from locust import User, constant, task
from locust.exception import StopUser

from loadtest.openpi import PolicyError, observation, read_map
from loadtest.users_base import ANSWER_S, CHAT_PATH, chat_body, chat_headers, fire
from router.cli.selfcheck_h3 import connection
from router.client import RobotError, RobotSession

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")


class LoopThread:
    """A uvloop in a real thread; `call` is for greenlets."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        get_original("_thread", "start_new_thread")(self._loop.run_forever, ())

    def call(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine on the loop, for `ANSWER_S` at most, and return or raise what it does."""
        hub = gevent.get_hub()
        done: AsyncResult = AsyncResult()

        async def bounded() -> _T:
            async with asyncio.timeout(ANSWER_S):
                return await make()

        def tell(task: asyncio.Task[_T]) -> None:
            self._tasks.discard(task)
            failure = RuntimeError("the task was cancelled") if task.cancelled() else task.exception()
            if failure is not None:
                hub.loop.run_callback_threadsafe(done.set_exception, failure)
            else:
                hub.loop.run_callback_threadsafe(done.set, task.result())

        def begin() -> None:
            made = asyncio.ensure_future(bounded(), loop=self._loop)
            self._tasks.add(made)
            made.add_done_callback(tell)

        self._loop.call_soon_threadsafe(begin)
        found: _T = done.get()
        return found


_shared: list[LoopThread] = []


def loop_thread() -> LoopThread:
    """Return the one of this process, started now if it is the first to ask."""
    if not _shared:
        _shared.append(LoopThread())
    return _shared[0]


class QuicUser(User):
    """What both have: the loop, and a figure for each step."""

    abstract = True
    wait_time = constant(0.05)
    kind = ""

    def on_start(self) -> None:
        """Find where QUIC is served; without that there is nothing to do."""
        self.url: str = self.environment.parsed_options.quic_url
        if not self.url:
            raise StopUser
        self.thread = loop_thread()

    def timed(self, name: str, step: Callable[[], Coroutine[Any, Any, int]]) -> bool:
        """Run a step, which returns a size; whether it went well."""
        started = time.perf_counter()
        failure: Exception | None = None
        size = 0
        try:
            size = self.thread.call(step)
        except (OSError, TimeoutError, RuntimeError, ValueError, RobotError, PolicyError) as error:
            failure = error
        fire(self.environment, self.kind, name, started, size, failure)
        return failure is None


class Http3ChatUser(QuicUser):
    """Asks for whole chat completions over one HTTP/3 connection. Entries: `H3 connect`, `H3 chat completion`."""

    kind = "H3"
    client: Any = None
    context: Any = None

    @task
    def complete(self) -> None:
        """One completion, on a new connection when the last one failed."""
        if self.client is None and not self.timed("connect", self._connect):
            return
        if not self.timed("chat completion", self._complete):
            self._leave()

    def on_stop(self) -> None:
        """Close the connection."""
        self._leave()

    async def _connect(self) -> int:
        self.context = connection(self.url, "")
        self.client = await self.context.__aenter__()
        return 0

    async def _complete(self) -> int:
        options = self.environment.parsed_options
        headers = chat_headers(options)
        del headers["content-type"]  # the client's own
        status, answer = await self.client.post(
            "localhost", CHAT_PATH, chat_body(options, stream=False).encode(), headers
        )
        if status != 200:
            raise RuntimeError(f"status {status}: {answer[:200]!r}")
        if not json.loads(answer).get("choices"):
            raise RuntimeError("no choices in the answer")
        return len(answer)

    def _leave(self) -> None:
        if self.client is not None:
            self.client = None
            self.thread.call(self._end)

    async def _end(self) -> None:
        await self.context.__aexit__(None, None, None)


class RobotUser(QuicUser):
    """A robot: sends an observation, waits for actions. Entries: `Robot connect`, `Robot infer`."""

    kind = "Robot"
    session: RobotSession | None = None

    def on_start(self) -> None:
        """Build the observation once; it costs more than sending it."""
        super().on_start()
        self.observation = observation(self.environment.parsed_options.image_side)

    @task
    def infer(self) -> None:
        """One round trip, in a new session when the last one failed."""
        if self.session is None and not self.timed("connect", self._connect):
            return
        if not self.timed("infer", self._infer):
            self._leave()

    def on_stop(self) -> None:
        """Close the session."""
        self._leave()

    async def _connect(self) -> int:
        options = self.environment.parsed_options
        session = RobotSession(
            self.url.rstrip("/") + options.policy_path, authority=options.policy_host, verify=False,
            transport="quic", websocket_url="", connect_timeout_s=ANSWER_S / 2,
        )  # fmt: skip
        await session.connect()
        self.session = session
        return await self._receive()

    async def _infer(self) -> int:
        assert self.session is not None
        self.session.send(self.observation)
        return await self._receive()

    async def _receive(self) -> int:
        assert self.session is not None
        message = await self.session.recv(ANSWER_S / 2)
        if message is None:
            raise TimeoutError("no answer")
        read_map(message.data.decode() if message.is_text else message.data)
        return len(message.data)

    def _leave(self) -> None:
        if self.session is not None:
            session, self.session = self.session, None
            self.thread.call(session.close)


__all__ = ["Http3ChatUser", "RobotUser"]
