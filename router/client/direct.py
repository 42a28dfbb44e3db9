"""The way from a robot to its replica without the router, where both NATs let them.

ask the router --OFFER--> check the places from the session's own socket --answered--> QUIC to that place, up
|                              |                                                       |
+--no place                    +--none works in time                                   +--refused
v                              v                                                       v
the session stays with the router, and asks again after `AGAIN_S`
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from typing import TYPE_CHECKING, Any, Final

from router.client import memory
from router.client.quic_carrier import QuicCarrier
from router.client.words import RobotError
from router.transport.codec.punch import CHECK_S, CHECKS_S, Checks

if TYPE_CHECKING:
    from router.client.target import Target
    from router.transport.codec.attach.control import Offer
    from router.transport.udp import Address

OFFER_S: Final = 5.0
"""For the router's answer."""
UP_S: Final = 5.0
"""For the session with the replica, once a place is known to work."""
AGAIN_S: Final = 30.0
"""After a try that led nowhere: networks change."""
_NAME: Final = "localhost"  # in the certificate that a sidecar makes for itself; its authority is what counts


async def find_direct(
    relayed: QuicCarrier, target: Target, *, silence_s: float, ping_every_s: float
) -> QuicCarrier:
    """Return a carrier to the replica that is up; tries again and again until it is cancelled."""
    while True:
        carrier = await _try(relayed, target, silence_s, ping_every_s)
        if carrier is not None:
            return carrier
        await asyncio.sleep(AGAIN_S)


async def _try(
    relayed: QuicCarrier, target: Target, silence_s: float, ping_every_s: float
) -> QuicCarrier | None:
    try:
        async with asyncio.timeout(OFFER_S):
            offer = await relayed.ask_direct()
    except TimeoutError:
        return None
    if not offer.places:
        return None
    place = await _check(relayed, offer)
    return None if place is None else await _connect(relayed, target, offer, place, silence_s, ping_every_s)


async def _check(relayed: QuicCarrier, offer: Offer) -> Address | None:
    """Return the first place that answers."""
    port = relayed.endpoint.port
    checks = Checks(offer.user.encode(), offer.key, await _addresses(port.family, offer.places))
    found = asyncio.Event()

    def take(data: bytes, address: Address) -> None:
        answer = checks.take(data, address)
        if answer:
            port.send(answer, address)
        if checks.found is not None:
            found.set()

    port.on_stun = take
    try:
        async with asyncio.timeout(CHECKS_S):
            while not found.is_set():
                for request, place in checks.due():
                    port.send(request, place)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(found.wait(), CHECK_S)
    except TimeoutError:
        return None
    finally:
        port.on_stun = None
    return checks.found


async def _addresses(family: int, places: list[tuple[str, int]]) -> list[Address]:
    """Return places as this family's sockets have them; those of the other family are left out."""
    loop = asyncio.get_running_loop()
    found: list[Address] = []
    for host, port in places:
        with contextlib.suppress(OSError, ValueError):
            flags = socket.AI_NUMERICHOST | (socket.AI_V4MAPPED if family == socket.AF_INET6 else 0)
            more: Any = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM, flags=flags)
            found.append(more[0][4])
    return found


async def _connect(
    relayed: QuicCarrier, target: Target, offer: Offer, place: Address, silence_s: float, ping_every_s: float
) -> QuicCarrier | None:
    """Open the session with the replica from the same socket, with the ticket for a token."""
    headers = tuple(field for field in target.headers if field[0] != "x-router-key")
    to_replica = dataclasses.replace(
        target,
        headers=(*headers, ("x-router-key", offer.ticket)),
        server_name=_NAME,
        ca=offer.certificate.encode(),
        verify=True,
    )
    carrier = QuicCarrier(
        to_replica, (relayed.endpoint.port.family, place), memory.Memory(), None, "",
        silence_s=silence_s, ping_every_s=ping_every_s, port=relayed.endpoint.port,
    )  # fmt: skip
    is_up = False
    try:
        carrier.start()
        async with asyncio.timeout(UP_S):
            await asyncio.shield(carrier.up)
        is_up = True
    except (OSError, TimeoutError, RobotError):
        return None
    finally:
        if not is_up:
            await carrier.end()
    return carrier
