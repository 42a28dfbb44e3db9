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
import socket
from typing import TYPE_CHECKING, Final

from router.client import memory
from router.client.quic_carrier import QuicCarrier
from router.client.words import RobotError
from router.transport.codec.punch import CHECK_S, CHECKS_S, Checks, is_loopback, place_of

if TYPE_CHECKING:
    from router.client.target import Target
    from router.transport.codec.robot.control import Offer
    from router.transport.udp import Address

OFFER_S: Final = 5.0
"""For the router's answer."""
UP_S: Final = 5.0
"""For the session with the replica, once a place is known to work."""
AGAIN_S: Final = 30.0
"""After a try that led nowhere, or to a way that was soon lost: networks change."""
MIN_KEY_BYTES: Final = 16
"""Of what both sides prove themselves with: less proves nothing."""
_NAME: Final = "localhost"  # in the certificate that a sidecar makes for itself; its authority is what counts


async def find_direct(
    relayed: QuicCarrier, target: Target, *, silence_s: float, ping_every_s: float, delay_s: float = 0.0
) -> QuicCarrier:
    """Return a carrier to the replica that is up; tries again and again until it is cancelled."""
    await asyncio.sleep(delay_s)
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
    if not (offer.places and offer.user and offer.certificate) or len(offer.key) < MIN_KEY_BYTES:
        return None
    place = await _check(relayed, offer)
    return None if place is None else await _connect(relayed, target, offer, place, silence_s, ping_every_s)


async def _check(relayed: QuicCarrier, offer: Offer) -> Address | None:
    """Return the first place that answers."""
    port = relayed.endpoint.port
    is_v6 = port.family == socket.AF_INET6
    may_be_here = is_loopback(relayed.endpoint.local_host)  # the router is here: so may a replica be
    named = [place_of(host, number, is_v6=is_v6, may_be_here=may_be_here) for host, number in offer.places]
    checks = Checks(offer.user.encode(), offer.key, [place for place in named if place is not None])
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


async def _connect(
    relayed: QuicCarrier, target: Target, offer: Offer, place: Address, silence_s: float, ping_every_s: float
) -> QuicCarrier | None:
    """Open the session with the replica from the same socket, with the ticket for a token."""
    to_replica = target.for_replica(offer.ticket, offer.certificate.encode(), _NAME)
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
