"""The stock client of quic-portal (Rust, quinn): messages up and down, one after another.

The same client for whoever serves: quic-portal itself, our engine, or the router in front of a policy. It blocks,
and runs in this process. Imports `figures` and `place`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import quic_portal

from inference_backend.ports import free_port
from loadtest.cpu import cpu_ns
from loadtest.quic.figures import Figure, Samples, failures, over_rounds

if TYPE_CHECKING:
    from loadtest.quic.place import Place

LARGE_BYTES, SMALL_BYTES = 600_000, 200
ANSWER_MS = 3_000
WARMUP = 20
GOAL_LARGE_MS = 6.0


def connect(port: int) -> quic_portal.Portal:
    """Connect from a port of its own."""
    portal = quic_portal.Portal()
    portal.connect("127.0.0.1", port, free_port())
    return portal


def exchange(portal: quic_portal.Portal, size: int, count: int, pid: int) -> Samples:
    """Send so many messages and wait for each one's answer; charge the process."""
    message = bytes(size)
    for _ in range(WARMUP):
        portal.send(message)
        portal.recv(timeout_ms=ANSWER_MS)
    seconds, errors = [], 0
    before = cpu_ns([pid])[pid]
    for _ in range(count):
        began = perf_counter()
        portal.send(message)
        if not portal.recv(timeout_ms=ANSWER_MS):
            errors += 1
        seconds.append(perf_counter() - began)
    return Samples(seconds=seconds, cpu_ns=cpu_ns([pid])[pid] - before, errors=errors)


def through_the_router(place: Place, rounds: int, *, quick: bool) -> list[Figure]:
    """An observation to a policy behind the router, and a small message; CPU is the worker's."""
    port, worker = place.router()
    portal = connect(port)
    portal.send(b"hello")
    for _ in range(2):  # the policy's metadata, and the answer
        portal.recv(timeout_ms=ANSWER_MS)
    large, small = [], []
    for _ in range(rounds):
        large.append(exchange(portal, LARGE_BYTES, 50 if quick else 100, worker))
        small.append(exchange(portal, SMALL_BYTES, 300 if quick else 1_000, worker))
    work = "portal"
    return [
        over_rounds(work, "600 KB up, 5 KB down: p50", [one.p(0.5) for one in large], "ms", GOAL_LARGE_MS),
        over_rounds(work, "600 KB up, 5 KB down: p99", [one.p(0.99) for one in large], "ms"),
        over_rounds(work, "600 KB up, 5 KB down: worker's CPU", [one.cpu_us() for one in large], "us"),
        over_rounds(work, "200 B echo: p50", [one.p(0.5) for one in small], "ms"),
        over_rounds(work, "200 B echo: worker's CPU", [one.cpu_us() for one in small], "us"),
        failures(work, [*large, *small]),
    ]
