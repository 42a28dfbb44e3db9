"""The policy of the QUIC bench, a WebSocket server: `python -m loadtest.quic.policy`.

Speaks first, as openpi's does. A message's first bytes come back, with the time of its arrival; 5,000 bytes for an
observation, a few for anything small. Imports nothing of the router.
"""

from __future__ import annotations

import asyncio
import json
import signal
from time import monotonic_ns
from typing import TYPE_CHECKING

import click
import uvloop
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

MARK_BYTES = 16  # of each message: when it was sent, and its number
TIME_BYTES = 8
LARGE_BYTES, LARGE_REPLY_BYTES, SMALL_REPLY_BYTES = 10_000, 5_000, 200


def reply_to(message: bytes, now_ns: int) -> bytes:
    """Return the answer to a message that came now."""
    size = LARGE_REPLY_BYTES if len(message) > LARGE_BYTES else min(len(message), SMALL_REPLY_BYTES)
    said = message[:MARK_BYTES] + now_ns.to_bytes(TIME_BYTES, "big")
    return said + bytes(size - len(said)) if size > len(said) else said


async def _talk(connection: ServerConnection) -> None:
    try:
        await connection.send(b"metadata")
        async for message in connection:
            assert isinstance(message, bytes)
            await connection.send(reply_to(message, monotonic_ns()))
    except ConnectionClosed:
        return  # the router says no goodbye where a robot did not


async def _main() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stopped.set)
    async with serve(_talk, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None) as server:
        port = server.sockets[0].getsockname()[1]
        click.echo(json.dumps({"event": "ready", "port": port}))
        await stopped.wait()


if __name__ == "__main__":
    uvloop.run(_main())
