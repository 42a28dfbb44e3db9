"""A session on a WebSocket, where UDP is blocked: the `websockets` library, all lanes one ordered stream.

Newest still wins where it can: before the socket. One state message waits at most, the next one replaces it, and
the kernel is asked to take little more than it sends. Telemetry is dropped. Round trips are PINGs to the replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from router.client.carrier import Carrier
from router.client.words import LINK_LOST, TLS_FAILED, Lane, RobotError
from router.transport.codec.robot import wire
from router.transport.codec.robot.client_commands import MAX_UNSENT_BYTES
from router.transport.codec.robot.limits import GOODBYE_S, MAX_WAITING_BYTES
from router.transport.codec.robot.peer_clock import microseconds
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from router.client.target import Target
    from router.transport.codec.robot.wire import Command

UNSENT_BYTES: Final = 131_072
"""That wait in the kernel, not on their way yet; what is behind them can still be replaced."""
_TCP_NOTSENT_LOWAT: Final = 25  # of Linux; the socket module does not name it


class WebSocketCarrier(Carrier):
    """See the module."""

    transport: Literal["quic", "websocket"] = "websocket"

    def __init__(self, target: Target, *, silence_s: float, ping_every_s: float) -> None:
        super().__init__()
        self._target = target
        self._silence_s = silence_s
        self._ping_every_s = ping_every_s
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self._commands: deque[Command] = deque()
        self._commands_bytes = 0
        self._state: tuple[bytes, int] | None = None
        self._is_leaving = False
        self._wanted = asyncio.Event()  # something is to be sent
        self._room = asyncio.Event()  # the user has taken what waits
        self._waiting_bytes = 0
        self._count = 0

    # -- for the session ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._task = spawn(self._run(), "robot session over WebSocket")
        self._task.add_done_callback(lambda _: self.lose(RobotError(LINK_LOST, "given up")))

    @property
    def is_heard(self) -> bool:
        """Whether the upgrade was answered."""
        return self._socket is not None

    def send_state(self, payload: bytes, deadline: int, now: float) -> bool:
        """Send the newest; what still waits is dropped."""
        if self._is_leaving or self._is_late(deadline, now):
            return False
        if self._state is not None:
            self.meter.stale += 1
        self._state = payload, deadline
        self.meter.sent(now)
        self._wanted.set()
        return True

    def send_command(self, payload: bytes, deadline: int, now: float, *, is_text: bool) -> bool:
        """Queue a message."""
        if self._is_leaving or self._is_late(deadline, now):
            return False
        if self._commands_bytes + len(payload) > max(MAX_UNSENT_BYTES, len(payload)):
            return False
        self._commands.append(wire.Command(payload, deadline, is_text))
        self._commands_bytes += len(payload)
        self.meter.sent(now)
        self._wanted.set()
        return True

    def send_telemetry(self, payload: bytes) -> bool:
        """Drop it: what may be lost is not worth the place of what may not."""
        return False

    def took(self, payload: bytes) -> None:
        """Let the replica send on."""
        self._waiting_bytes -= len(payload)
        if self._waiting_bytes <= MAX_WAITING_BYTES:
            self._room.set()

    def unsent(self) -> tuple[list[Command], tuple[bytes, int] | None]:
        """Return what never left."""
        commands, state = list(self._commands), self._state
        self._commands.clear()
        self._commands_bytes = 0
        self._state = None
        return commands, state

    def unsent_state(self) -> tuple[bytes, int] | None:
        """Return the state message that never left."""
        state, self._state = self._state, None
        return state

    def leave(self) -> None:
        """Send what waits, then the close."""
        self._is_leaving = True
        self._wanted.set()

    async def end(self) -> None:
        """Stop at once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.lose(RobotError(LINK_LOST, "given up"))

    def _is_late(self, deadline: int, now: float) -> bool:
        if 0 < deadline <= microseconds(now):
            self.meter.late += 1
            return True
        return False

    # -- the socket -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Connect, then send, receive and measure until one of them ends."""
        error = RobotError(LINK_LOST, "given up")
        try:
            opened = await self._open()
        except RobotError as failure:
            self.lose(failure)
            return
        self._socket = opened
        self.hear_epoch(1, self.replica)
        self.come_up()
        others = [spawn(self._write(opened), "robot writes"), spawn(self._measure(opened), "robot measures")]
        try:
            error = await self._read(opened)
        finally:
            for other in others:
                other.cancel()
            opened.transport.abort()  # first: what follows may be cancelled as well
            await asyncio.gather(*others, return_exceptions=True)
            await opened.wait_closed()
            self.lose(error)

    async def _open(self) -> ClientConnection:
        target = self._target
        options: dict[str, Any] = {}
        if target.websocket_url.startswith("wss:"):
            options["ssl"] = target.tls()
            options["server_hostname"] = target.server_name
        try:
            # One attempt: whether there is another is the session's to say. No compression: images are.
            opened = await connect(
                target.websocket_url,
                additional_headers=list(target.headers),
                compression=None,
                max_size=wire.MAX_MESSAGE_BYTES,
                open_timeout=None,
                ping_interval=None,
                close_timeout=GOODBYE_S,
                write_limit=UNSENT_BYTES,
                **options,
            )
        except InvalidStatus as failure:
            raise _refusal(failure) from None
        except OSError as failure:  # ssl's errors are
            code = TLS_FAILED if "certificate" in str(failure).lower() else LINK_LOST
            raise RobotError(code, f"WebSocket: {failure}") from None
        except (WebSocketException, InvalidHandshake, ValueError, EOFError) as failure:
            raise RobotError(LINK_LOST, f"WebSocket: {failure or type(failure).__name__}") from None
        with contextlib.suppress(OSError, AttributeError):
            sock = opened.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        response = opened.response
        self.replica = response.headers.get("x-router-replica", "") if response is not None else ""
        return opened

    async def _read(self, opened: ClientConnection) -> RobotError:
        try:
            async for message in opened:
                is_text = isinstance(message, str)
                payload = message.encode() if isinstance(message, str) else bytes(message)
                self.meter.reply(monotonic())
                self._count += 1
                # As the router does it: the first, and texts, are not to be overtaken.
                is_command = is_text or self._count == 1 or self._target.replies == "command"
                lane: Lane = "command" if is_command else "state"
                if is_command:
                    self._waiting_bytes += len(payload)
                self.hear(lane, 0 if is_command else self._count, payload, is_text)
                while self._waiting_bytes > MAX_WAITING_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except ConnectionClosed as closed:
            return _closed(closed)
        code = opened.close_code or LINK_LOST
        return RobotError(wire.DONE if code == wire.GOING and self._is_leaving else code, opened.close_reason or "")

    async def _write(self, opened: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._commands or self._state is not None:
                    await self._write_one(opened)
                if self._is_leaving:
                    await opened.close()
                    return

    async def _write_one(self, opened: ClientConnection) -> None:
        if self._commands:
            command = self._commands.popleft()
            self._commands_bytes -= len(command.data)
            if not self._is_late(command.deadline, monotonic()):
                await opened.send(command.data, text=command.is_text)
            return
        state, self._state = self._state, None
        if state is not None and not self._is_late(state[1], monotonic()):
            await opened.send(state[0])

    async def _measure(self, opened: ClientConnection) -> None:
        """Ask now and then; who does not answer for too long is gone."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                asked_s = monotonic()  # the library measures by the loop's clock, which is coarse
                answered = await opened.ping()
                try:
                    async with asyncio.timeout(self._silence_s):
                        await answered
                except TimeoutError:
                    opened.transport.abort()
                    return
                round_trip_s = monotonic() - asked_s
                self.meter.take(round_trip_s)
                self.hear_pong(round_trip_s)
                await asyncio.sleep(self._ping_every_s)


def _refusal(failure: InvalidStatus) -> RobotError:
    """Return what an HTTP answer says."""
    response = failure.response
    code = response.headers.get("x-router-error", "")
    after = response.headers.get("retry-after", "")
    reason = code or f"the router answered {response.status_code}"
    return RobotError(LINK_LOST, reason, response.status_code, float(after) if after.isdigit() else 0.0)


def _closed(closed: ConnectionClosed) -> RobotError:
    if closed.rcvd is not None:
        return RobotError(closed.rcvd.code, closed.rcvd.reason)
    return RobotError(LINK_LOST, "the connection is lost")
