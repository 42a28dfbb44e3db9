"""How a session comes by a connection: QUIC to each address of the router in turn, and a WebSocket behind them.

A WebSocket joins half a second later unless something has been heard over UDP by then; `carrier.race` decides. All
carriers of one call are one attempt to the router: they do not take the session from each other.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from router.client import memory
from router.client.carrier import Carrier, race
from router.client.places import find_places
from router.client.quic_carrier import QuicCarrier
from router.client.words import LINK_LOST, RobotError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from router.client.target import Target
    from router.client.waiting import Waiting
    from router.transport.udp import Address

FALLBACK_S: Final = 0.5
"""After QUIC a WebSocket is tried as well, unless the router was heard."""
ADDRESS_S: Final = 0.25
"""Between two addresses of one name, as RFC 8305 §5 has it."""
ATTEMPT_S: Final = 30.0
"""For one race; the router may hold a session that long for a replica that starts."""
PING_S: Final = 0.2
WEBSOCKET_PING_S: Final = 1.0
_NAME_BYTES: Final = 8


class Dialler:
    """One session's. ValueError: the options do not go together."""

    def __init__(
        self,
        target: Target,
        transport: Literal["auto", "quic", "websocket"],
        *,
        silence_s: float,
        ping_every_s: float | None,
    ) -> None:
        """`silence_s` and `ping_every_s` are those of `RobotSession`, for every connection that is made here."""
        if transport not in ("auto", "quic", "websocket"):
            raise ValueError("the transport is auto, quic or websocket")
        if not silence_s > 0.0 or not (ping_every_s is None or ping_every_s > 0.0):
            raise ValueError("silence_s and ping_every_s are seconds above 0")
        if transport == "websocket" and not target.websocket_url:
            raise ValueError("there is no WebSocket URL")
        self._target = target
        self._transport = transport
        self._silence_s = silence_s
        self._ping_every_s = ping_every_s
        self._name = os.urandom(_NAME_BYTES).hex()  # in what is shown with the token
        self._attempts = 0

    async def dial(self, resume: str, waiting: Waiting) -> Carrier:
        """Return the first connection that is up; RobotError says why there is none.

        `resume` is the token to show, or empty. The state message that waits leaves with the first packets of those
        that can do that.
        """
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await race(await self._runners(resume, waiting))
        except TimeoutError:
            raise RobotError(LINK_LOST, "there is no replica yet") from None

    async def find_direct(self, relayed: QuicCarrier, delay_s: float) -> QuicCarrier:
        """Return a connection to the replica itself, looked for until there is one or this is cancelled."""
        from router.client.direct import find_direct  # noqa: PLC0415 - few ask for it

        return await find_direct(
            relayed, self._target, silence_s=self._silence_s, ping_every_s=self._ping_every_s or PING_S,
            delay_s=delay_s,
        )  # fmt: skip

    async def _runners(self, resume: str, waiting: Waiting) -> list[tuple[float, Callable[[], Carrier]]]:
        runners: list[tuple[float, Callable[[], Carrier]]] = []
        self._attempts += 1
        attempt = f"{self._name}.{self._attempts}" if resume else ""
        if self._transport != "websocket":
            runners += [
                (number * ADDRESS_S, self._make_quic(place, resume, attempt, waiting))
                for number, place in enumerate(await find_places(self._target))
            ]
        if self._transport != "quic" and self._target.websocket_url:
            runners.append((FALLBACK_S if runners else 0.0, self._make_websocket))
        return sorted(runners, key=lambda runner: runner[0])

    def _make_quic(
        self, place: tuple[int, Address], resume: str, attempt: str, waiting: Waiting
    ) -> Callable[[], Carrier]:
        return lambda: QuicCarrier(
            self._target, place, memory.shared, waiting.state, resume,
            silence_s=self._silence_s, ping_every_s=self._ping_every_s or PING_S, attempt=attempt,
        )  # fmt: skip

    def _make_websocket(self) -> Carrier:
        # Imported where it is used: who has UDP needs no `websockets`.
        try:
            from router.client.websocket_carrier import WebSocketCarrier  # noqa: PLC0415
        except ImportError:
            raise RobotError(
                LINK_LOST, "UDP gets no answer, and WebSocket needs: pip install 'replica-router[robot]'"
            ) from None
        return WebSocketCarrier(
            self._target, silence_s=self._silence_s, ping_every_s=self._ping_every_s or WEBSOCKET_PING_S
        )
