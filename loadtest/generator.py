"""The load generator's process: `python -m loadtest.generator` reads commands and answers with results.

One JSON `Command` a line on stdin, one JSON `Result` a line on stdout, one measurement at a time, until
stdin ends. The CPU clocks of the proxy's processes are read here, at the very edges of the window,
so that connecting and warming up is no part of the figure. The garbage collector is off within a
window. A measurement that cannot start is a result with one error, never an exception.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, assert_never

import click
import msgspec
import uvloop

from loadtest.clients.closed import ClosedLoop
from loadtest.clients.grpc_streams import GrpcStreams
from loadtest.clients.h2_body import H2Body
from loadtest.clients.h2load import H2Load
from loadtest.clients.h3 import Http3
from loadtest.clients.openloop import OpenLoop
from loadtest.clients.sse import Streams
from loadtest.clients.tls import Handshakes
from loadtest.clients.websocket import WebSockets
from loadtest.clients.window import Client, Command, Result, Window
from loadtest.cpu import cpu_ns
from loadtest.memory import forget_peaks, peaks_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable


def client_of(command: Command, window: Window) -> Client:
    """Build the client that `command` asks for."""
    match command.mode:
        case "closed":
            return ClosedLoop(command, window)
        case "open":
            return OpenLoop(command, window)
        case "sse":
            return Streams(command, window)
        case "websocket":
            return WebSockets(command, window)
        case "h2load":
            return H2Load(command, window)
        case "grpc-streams":
            return GrpcStreams(command, window)
        case "h2-body":
            return H2Body(command, window)
        case "tls":
            return Handshakes(command, window)
        case "h3":
            return Http3(command, window)
        case _:
            assert_never(command.mode)


async def measure(command: Command) -> Result:
    """Run one measurement; takes `warmup_s` + `duration_s` (or what the client's work takes) and a moment."""
    window = Window()
    client = client_of(command, window)
    try:
        await client.start()
        await asyncio.sleep(command.warmup_s)
        gc.collect()
        gc.disable()
        forget_peaks(command.pids)
        before = cpu_ns(command.pids)
        window.begin()
        await client.work()
        window.end()
        units = window.units
        after = cpu_ns(command.pids)
        peaks = peaks_bytes(command.pids)
        await client.drain()
    except (OSError, TimeoutError) as failure:
        window.fail(f"{type(failure).__name__}: {failure}")
        return window.result(0, {}, {})
    finally:
        gc.enable()
        client.close()
        await asyncio.sleep(0)  # lets the transports close before the next measurement
    # The open loop also counts what it waited for: those requests were sent in the window.
    units = window.units if command.mode == "open" else units
    return window.result(units, {pid: after[pid] - before[pid] for pid in command.pids}, peaks)


def answer(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Yield the result of each command of `lines`, as JSON without a line end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in lines:
            if line.strip():
                yield msgspec.json.encode(runner.run(measure(msgspec.json.decode(line, type=Command))))


@click.command(help=__doc__)
def main() -> None:
    """Answer commands until stdin ends."""
    gc.freeze()
    for result in answer(sys.stdin.buffer):
        sys.stdout.buffer.write(result + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
