"""Where a robot and an attached replica learn of each other, so that they may speak without us.

    robot --DIRECT--> its session's worker --NAME.punch--> the replica's worker --PUNCH--> replica
    robot <--OFFER--------------------------------------------------------------PUNCHING--+

The replica's worker listens on a Unix socket beside the one that leads to the replica: one question and its answer
for each connection, in the frames of `router-attach/1`. Both sides get the same name and key for their checks, and
the replica the ticket that the robot will show; each knows the other by what the router told it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from typing import TYPE_CHECKING, Final

from router.transport.codec.attach import control
from router.transport.codec.robot.control import Offer
from router.transport.codec.robot.wire import FrameReader
from router.transport.tasks import spawn

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from router.edge.attach_server import AttachServer
    from router.transport.attached import AttachedSockets
    from router.transport.shell import Reactor

_log = logging.getLogger("router.attach")

ANSWER_S: Final = 3.0
"""For the replica to answer: a robot that waits longer has long been served through us."""
MAX_READ_BYTES: Final = 20_000
USER_BYTES: Final = 8
KEY_BYTES: Final = 32
TICKET_BYTES: Final = 24


class Rendezvous:
    """The robot's side, in each worker. `ask` may be called in any tick; the answer comes in another."""

    def __init__(self, sockets: AttachedSockets, reactor: Reactor) -> None:
        self._sockets = sockets
        self._reactor = reactor

    def ask(self, host: str, places: list[control.Place], answer: Callable[[Offer], None]) -> None:
        """Ask the replica at this host of the table where it is; an offer without places is a no."""
        spawn(self._ask(host, places, answer), "rendezvous")

    async def _ask(self, host: str, places: list[control.Place], answer: Callable[[Offer], None]) -> None:
        punch = _make_punch(places)
        found = await self._find(host, punch)
        self._reactor.clock.read()
        answer(Offer(punch.user, punch.key, punch.ticket, found.places, found.certificate))
        self._reactor.outbox.flush()

    async def find(self, host: str, places: list[control.Place]) -> tuple[control.Found, str]:
        """Return where the replica is, without places if nobody may come; and the ticket that it was told."""
        punch = _make_punch(places)
        return await self._find(host, punch), punch.ticket

    async def _find(self, host: str, punch: control.Punch) -> control.Found:
        path = self._sockets.path_of(host)
        if path:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await _question(punch, path + control.PUNCH_SUFFIX)
            except (OSError, TimeoutError) as failure:
                _log.debug("no direct way to %s: %s", host, failure or "no answer in time")
        return control.Found()


def _make_punch(places: list[control.Place]) -> control.Punch:
    """Return a question with names and secrets of its own."""
    user, ticket = secrets.token_hex(USER_BYTES), secrets.token_urlsafe(TICKET_BYTES)
    return control.Punch(0, user, os.urandom(KEY_BYTES), ticket, places)


async def _question(punch: control.Punch, path: str) -> control.Found:
    """Ask the worker that has the replica."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(control.encode(punch))
        body = await _read(reader)
        return body if isinstance(body, control.Found) else control.Found()
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> control.Body | None:
    frames = FrameReader()
    while data := await reader.read(MAX_READ_BYTES):
        found = frames.read(data)
        if found:
            return control.decode(found[0]) if control.is_known(found[0].kind) else None
        if frames.fault:
            return None
    return None


async def serve_questions(server: AttachServer, sock: socket.socket) -> asyncio.AbstractServer:
    """Listen for robots that want to come directly."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                body = await _read(reader)
                if isinstance(body, control.Punch):
                    writer.write(control.encode(await _ask_replica(server, body)))
                    await writer.drain()
        except (OSError, TimeoutError) as failure:
            _log.debug("%s does not say where it is: %s", server.name, failure or "no answer in time")
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, sock=sock)


async def _ask_replica(server: AttachServer, asked: control.Punch) -> control.Found:
    """Ask it, and add where we see it."""
    asking: Awaitable[control.Punching] = server.ask(asked)
    punching = await asking
    if not punching.places:
        return control.Found()
    places = [server.place, *punching.places][: control.MAX_PLACES]
    return control.Found(places, server.certificate, server.listener)
