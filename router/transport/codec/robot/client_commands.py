"""The command lane at the robot's end; `command_lane.py` is the router's. In order, nothing lost or sent twice.

Out: messages are queued on the stream, and those of which no byte has left are known: another connection may send
them. In: what the user has not taken counts, and above `MAX_WAITING_BYTES` the router gets no more credit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.limits import HIGH_BYTES
from router.transport.codec.robot.limits import COMMAND_BYTES, MAX_WAITING_BYTES
from router.transport.codec.robot.wire import Command, CommandReader, command_header

if TYPE_CHECKING:
    from router.transport.codec.quic.seam import Flow

MAX_UNSENT_BYTES: Final = 4_194_304
"""Of commands that were not sent for the first time yet; then more are refused: link or replica are stuck."""


class ClientCommands:
    """One connection's. `flow` is None until the router allows the stream; nothing can be sent before."""

    __slots__ = ("_owed", "_queued_bytes", "_reader", "_unsent", "fault", "flow", "waiting_bytes")

    def __init__(self) -> None:
        self.flow: Flow | None = None
        self._queued_bytes = 0  # on the lane since it began
        self._unsent: deque[tuple[int, Command]] = deque()  # where each begins, if it may be unsent
        self._reader = CommandReader(from_client=False)
        self._owed = 0  # credit that is withheld
        self.waiting_bytes = 0  # of commands that nobody took yet
        self.fault = 0

    # -- what goes ------------------------------------------------------------------------------------

    def open(self, flow: Flow) -> None:
        """Begin."""
        self.flow = flow
        flow.send(b"C", False)
        self._queued_bytes = 1

    def send(self, payload: bytes, deadline: int, *, is_text: bool, is_held: bool) -> bool:
        """Queue a message behind those before it; False without a stream, and while too much waits.

        `is_held`: who sends sees to `is_full` itself, and nothing is too much.
        """
        flow = self.flow
        if flow is None:
            return False
        if not is_held and flow.unsent_bytes + len(payload) > max(MAX_UNSENT_BYTES, len(payload)):
            return False
        self._forget_sent(flow)
        self._unsent.append((self._queued_bytes, Command(payload, deadline, is_text)))
        header = command_header(len(payload), deadline, is_text=is_text)
        flow.send(header, False)
        flow.send(payload, False)
        self._queued_bytes += len(header) + len(payload)
        return True

    def is_full(self) -> bool:
        """Whether so much is unsent that who has a choice sends no more for now."""
        return self.flow is not None and self.flow.unsent_bytes > HIGH_BYTES

    def is_over(self) -> bool:
        """Whether the lane was ended, and the router has all of it."""
        return self.flow is not None and self.flow.send_is_over()

    def take_unsent(self) -> list[Command]:
        """Take back what never left, in order: the connection is over."""
        if self.flow is not None:
            self._forget_sent(self.flow)
        commands = [command for _, command in self._unsent]
        self._unsent.clear()
        return commands

    def _forget_sent(self, flow: Flow) -> None:
        """Forget commands of which a byte has left: whether they arrived cannot be told."""
        sent = self._queued_bytes - flow.unsent_bytes
        unsent = self._unsent
        while unsent and unsent[0][0] < sent:
            unsent.popleft()

    # -- what comes -----------------------------------------------------------------------------------

    def read(self, data: bytes) -> list[Command]:
        """Return the commands that are whole now; then look at `fault`, and give credit."""
        self._owed += len(data)
        found = self._reader.read(data)
        self.fault = self._reader.fault
        return found

    def wait(self, payload: bytes) -> None:
        """Count a command that is about to be told: it waits until it is `took`."""
        self.waiting_bytes += len(payload) + COMMAND_BYTES

    def took(self, payload: bytes) -> None:
        """Learn that the user has a command."""
        self.waiting_bytes -= len(payload) + COMMAND_BYTES
        self.give_credit()

    def give_credit(self) -> None:
        """Let the router go on, unless too much waits for the user."""
        flow = self.flow
        if self._owed and flow is not None and self.waiting_bytes <= MAX_WAITING_BYTES:
            flow.credit(self._owed)
            self._owed = 0
