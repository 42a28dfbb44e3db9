"""Where a router's name leads: addresses to try in turn, those of both families mixed (RFC 8305 §4)."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from router.client.words import LINK_LOST, RobotError

if TYPE_CHECKING:
    from router.client.target import Target
    from router.transport.udp import Address

MAX_ADDRESSES: Final = 4


async def find_places(target: Target) -> list[tuple[int, Address]]:
    """Return where a name is, the families by turns."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
    except OSError as failure:
        raise RobotError(LINK_LOST, f"{target.host}: {failure.strerror or failure}") from None
    except UnicodeError:  # "a..b", or a label above 63 characters
        raise RobotError(LINK_LOST, f"{target.host}: no name of a host") from None
    places: list[tuple[int, Address]] = []
    for family, _, _, _, address in found:
        if (int(family), address) not in places:
            places.append((int(family), address))
    first = [place for place in places if place[0] == places[0][0]]
    others = [place for place in places if place[0] != places[0][0]]
    mixed = [place for pair in zip(first, others, strict=False) for place in pair]
    return [*mixed, *[place for place in places if place not in mixed]][:MAX_ADDRESSES]
