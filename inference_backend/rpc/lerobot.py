"""LeRobot's policy server for asynchronous inference, without a model.

A robot calls Ready, sends its policy's instructions, then streams observations (each in one or more pieces) while
it asks for actions. Only the newest observation counts; GetActions waits for one, and answers with nothing when
none comes. Observations and instructions are pickles there, which nobody loads here. The actions are a pickle of
plain data, a list of maps, since LeRobot's own classes need torch; the first number of the first action is the
CRC-32 of the observation, so a client can tell whose answer it holds.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

from inference_backend.ready import announce
from inference_backend.rpc import proto, server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE = "transport.AsyncInference"
pb = proto.load("lerobot.proto")


@dataclass(frozen=True, slots=True)
class RobotSettings:
    """One field per option of `lerobot`."""

    host: str = "127.0.0.1"
    port: int = 0
    action_horizon: int = 50
    action_dim: int = 14
    delay_ms: float = 0.0
    wait_s: float = 2.0


class Policy:
    """The methods; messages are those of `pb`."""

    def __init__(self, settings: RobotSettings) -> None:
        self._settings = settings
        self._newest: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._timestep = 0

    async def Ready(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Forget the last robot."""
        self._newest = asyncio.Queue(1)
        self._timestep = 0
        return pb.Empty()

    async def SendPolicyInstructions(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Take any."""
        return pb.Empty()

    async def SendObservations(self, pieces: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        """Take one observation; an older one that nobody asked about is dropped."""
        held = bytearray()
        async for piece in pieces:
            if piece.transfer_state == pb.TRANSFER_UNKNOWN:
                raise ValueError(f"Received unknown transfer state {piece.transfer_state}")
            if piece.transfer_state == pb.TRANSFER_BEGIN:
                held.clear()
            held += piece.data
            if piece.transfer_state == pb.TRANSFER_END:
                if self._newest.full():
                    self._newest.get_nowait()
                self._newest.put_nowait(bytes(held))
                break
        return pb.Empty()

    async def GetActions(self, call: Any, context: Any) -> Any:  # noqa: N802
        """Infer from the newest observation; empty when none came in time."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.wait_s):
                observation = await self._newest.get()
        except TimeoutError:
            return pb.Actions()
        if settings.delay_ms:
            await asyncio.sleep(settings.delay_ms / 1e3)
        size = settings.action_horizon * settings.action_dim
        now = time.time()
        actions = []
        for step in range(settings.action_horizon):
            action = [(step * settings.action_dim + place) / size for place in range(settings.action_dim)]
            if not step:
                action[0] = float(crc32(observation))
            actions.append({"timestamp": now, "timestep": self._timestep + step, "action": action})
        self._timestep += 1
        return pb.Actions(data=pickle.dumps(actions))


async def serve_robots(settings: RobotSettings) -> None:
    """Listen, print the ready line, serve until SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    services = await server.start({SERVICE: Policy(settings)}, settings.host, settings.port, serving=True)
    announce("h2c", settings.host, services.port)
    await stopping.wait()
    await services.stop()
