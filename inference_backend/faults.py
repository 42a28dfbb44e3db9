"""Faults on request: the header `x-sim-fault` says how this one answer goes wrong.

`name;key=value…`, several separated by commas. Before the head: `slow;ms=200`, `status=503`,
`reset-before-head` (RST), `close-before-head` (FIN), `stall-before-head`, `kill`. In the body:
`die-mid-stream;after=3`, `stall;after=3`, `kill;after=3`, where `after` counts SSE frames; a stream that is
shorter goes wrong at its end. Of a body that is not a stream half is sent, or with `after=0` only the head.
A fault is a value: `parse` returns a Plan or the text of the complaint.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

HEADER = "x-sim-fault"
KILL_EXIT = 137  # what a shell reports for SIGKILL

# name -> its parameters and whether each is a number
_KNOWN: dict[str, dict[str, type]] = {
    "die-mid-stream": {"after": int, "how": str},
    "stall": {"after": int},
    "stall-before-head": {},
    "reset-before-head": {},
    "close-before-head": {},
    "status": {"status": int, "retry-after": int},
    "slow": {"ms": float},
    "kill": {"after": int},
}
KNOWN_TEXT = (
    "die-mid-stream[;after=N][;how=fin|rst], stall[;after=N], stall-before-head, reset-before-head, "
    "close-before-head, status=CODE[;retry-after=S], slow;ms=N, kill[;after=N]"
)


@dataclass(slots=True)
class Plan:
    """How one answer goes wrong."""

    delay_s: float = 0.0
    before_head: str | None = None  # a fault that replaces the answer
    status: int = 503
    retry_after: int | None = None
    in_body: str | None = None  # "die", "stall" or "kill"
    after: int = 0
    with_reset: bool = False


def parse(header: str) -> Plan | str:
    """Return the plan, or what is wrong with the header."""
    plan = Plan()
    for item in header.split(","):
        name, _, rest = item.strip().partition(";")
        if name.startswith("status="):
            rest = f"{name};{rest}" if rest else name
            name = "status"
        if name not in _KNOWN:
            return f"unknown fault {name!r}; known: {KNOWN_TEXT}"
        options: dict[str, str] = {}
        for pair in filter(None, rest.split(";")):
            key, _, value = pair.strip().partition("=")
            kind = _KNOWN[name].get(key)
            if kind is None or not _is(kind, value):
                return f"bad parameter {pair.strip()!r} of fault {name!r}; known: {KNOWN_TEXT}"
            options[key] = value
        _add(plan, name, options)
    return plan


def _is(kind: type, value: str) -> bool:
    if kind is str:
        return value in ("fin", "rst")
    return value.replace(".", "", 1 if kind is float else 0).isdecimal()


def _add(plan: Plan, name: str, options: dict[str, str]) -> None:
    if name == "slow":
        plan.delay_s = float(options.get("ms", "100")) / 1e3
    elif name == "status":
        plan.before_head = "status"
        plan.status = int(options.get("status", "503"))
        plan.retry_after = int(options["retry-after"]) if "retry-after" in options else None
    elif name.endswith("-before-head") or (name == "kill" and not options):
        plan.before_head = name
    else:
        plan.in_body = "die" if name == "die-mid-stream" else name
        plan.after = int(options.get("after", "1" if plan.in_body == "die" else "0"))
        plan.with_reset = options.get("how") == "rst"


def cut(transport: asyncio.BaseTransport, *, with_reset: bool) -> None:
    """Close the connection after what is already written; RST instead of FIN if asked."""
    if with_reset:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.close()


def kill() -> None:
    """End the process as SIGKILL would: nothing is flushed, nobody is told."""
    os._exit(KILL_EXIT)
