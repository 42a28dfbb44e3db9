"""What a robot sends between two connections: the newest state message, and commands in order within a bound.

Nothing is here that has left before: what a lost connection may have sent is not sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.transport.codec.robot.wire import Command

MAX_BYTES: Final = 1_048_576
"""Of commands."""


class Waiting:
    """One session's. `state` is a message and its deadline, by our clock in microseconds, or None."""

    def __init__(self) -> None:
        self.state: tuple[bytes, int] | None = None
        self._commands: list[Command] = []
        self._bytes = 0

    def put_state(self, payload: bytes, deadline: int) -> bool:
        """Keep a state message; return whether it took the place of an older one."""
        has_older = self.state is not None
        self.state = payload, deadline
        return has_older

    def put_command(self, command: Command) -> bool:
        """Keep a command behind those before it; False if there is no room."""
        if self._bytes + len(command.data) > MAX_BYTES:
            return False
        self._commands.append(command)
        self._bytes += len(command.data)
        return True

    def put_back(self, commands: list[Command], state: tuple[bytes, int] | None) -> int:
        """Keep what a connection never sent, in front: it is older. Return how many commands found no room."""
        if self.state is None:
            self.state = state
        newer, self._commands, self._bytes = self._commands, [], 0
        return sum(not self.put_command(command) for command in (*commands, *newer))

    def take(self) -> tuple[list[Command], tuple[bytes, int] | None]:
        """Hand everything over to the next connection."""
        commands, state = self._commands, self.state
        self._commands, self._bytes, self.state = [], 0, None
        return commands, state
