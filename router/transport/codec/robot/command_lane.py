"""The command lane in the router: ordered, nothing lost, so who does not take it is felt by who sends it.

In: whole commands wait for the replica; above `MAX_WAITING_BYTES` the client gets no more credit. Out: replies wait
for the client to open the lane and to read; above the lane's high mark the replica is to pause.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.transport.codec.quic.limits import HIGH_BYTES
from router.transport.codec.robot.limits import COMMAND_BYTES, MAX_WAITING_BYTES
from router.transport.codec.robot.wire import CommandReader, command_header

if TYPE_CHECKING:
    from router.transport.codec.quic.seam import Flow
    from router.transport.codec.robot.wire import Command


class CommandIn:
    """What comes."""

    __slots__ = ("_owed", "_reader", "fault", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self._reader = CommandReader(from_client=True)
        self._owed = 0  # credit that is withheld
        self.waiting: deque[Command] = deque()
        self.waiting_bytes = 0
        self.fault = 0

    def read(self, data: bytes) -> None:
        """Take bytes; whole commands wait."""
        self._owed += len(data)
        for command in self._reader.read(data):
            self.waiting.append(command)
            self.waiting_bytes += len(command.data) + COMMAND_BYTES
        self.fault = self._reader.fault

    def take(self) -> Command:
        """Return the first that waits."""
        command = self.waiting.popleft()
        self.waiting_bytes -= len(command.data) + COMMAND_BYTES
        return command

    def give_credit(self, flow: Flow) -> None:
        """Let the client go on, unless too much waits."""
        if self._owed and self.waiting_bytes <= MAX_WAITING_BYTES:
            flow.credit(self._owed)
            self._owed = 0

    @property
    def is_between(self) -> bool:
        """Whether no command has begun and is not whole."""
        return self._reader.is_between


class CommandOut:
    """What goes. `is_full`: the client does not take it, or has not opened the lane."""

    __slots__ = ("_early", "flow", "is_full", "sent")

    def __init__(self) -> None:
        self.flow: Flow | None = None
        self._early: list[bytes] = []  # said before the client opened the lane
        self.is_full = False
        self.sent = 0

    def open(self, flow: Flow) -> None:
        """Send what was said before."""
        self.flow = flow
        for framed in self._early:
            flow.send(framed, False)
        self._early.clear()
        self.is_full = flow.unsent_bytes > HIGH_BYTES

    def send(self, data: bytes, *, is_text: bool) -> None:
        """Queue a message. Never refuses: look at `is_full`."""
        framed = command_header(len(data), 0, is_text=is_text) + data
        self.sent += 1
        if self.flow is None:
            self._early.append(framed)
            self.is_full = True
        else:
            self.flow.send(framed, False)
            self.is_full = self.flow.unsent_bytes > HIGH_BYTES
