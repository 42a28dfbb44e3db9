"""Rows of the request tables and the three outcomes that a row may ask for.

REFUSE: an error status (or, where a row says so, a plain close), then the connection ends and the replica has
seen nothing, neither of the request nor of what follows it. With `partial`, the head was fine and the fault is
in the body: the replica may have seen an unfinished request, whose connection then ends.
SERVE: 200 from the replica, which saw exactly one request and took it with a strict parser.
EITHER: the RFC leaves the choice; whichever it is, it has to be done fully.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from wirekit import echo, until

REFUSE, SERVE, EITHER = "refuse", "serve", "either"
MODES = ("whole", "bytes", "split")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
BAD = frozenset({400})
CLOSE = None  # as a status: the connection ends without an answer


@dataclass(frozen=True)
class Case:
    """`seen` is what the replica must have got if the request is served."""

    id: str
    data: bytes
    expect: str = REFUSE
    statuses: frozenset = BAD
    partial: bool = False
    half_close: bool = False
    closes: bool = False  # even if it is served, the connection ends after it
    seen: dict = field(default_factory=dict)


def table(*cases: Case, modes=MODES):
    """Every case in every mode; one byte at a time only where that is a matter of milliseconds."""
    names = [case.id for case in cases]
    assert len(set(names)) == len(names), sorted(names)
    return [
        pytest.param(case, mode, id=f"{case.id}-{mode}")
        for case in cases
        for mode in modes
        if mode != "bytes" or len(case.data) < 600
    ]


def followed(case: Case) -> Case:
    """A second request right behind a malformed one: it must not be served."""
    return replace(case, data=case.data + SMUGGLED) if case.expect == REFUSE else case


async def barrier(connect, replica) -> None:
    """A good request on a new connection: when it is answered, all that the router wrote before has come."""
    client = await connect()
    assert (await client.get(b"/barrier")).status == 200
    client.close()


def no_cut_request(replica) -> bool:
    return all(request.complete or link.ended for link, request in replica.seen)


async def check(case: Case, mode: str, connect, replica) -> None:
    client = await connect()

    async def write():
        await client.send(case.data, mode)
        if case.half_close:
            client.finish()

    writing = asyncio.ensure_future(write())
    try:
        response = await client.response(case.data.partition(b" ")[0])
        status = response.status if response else None
        served = bool(replica.requests) and response is not None and response.get(b"x-router-error") is None
        if served:
            assert case.expect != REFUSE, f"served: {response} to {replica.requests}"
            assert status == 200
            assert response.complete
        else:
            assert case.expect != SERVE, f"refused with {response}"
            assert status in case.statuses, f"refused with {response}"
            if response:
                assert response.complete
                assert response.get(b"x-router-error"), "an error of the router's own says so"
        if case.closes or not served:
            await client.assert_closed()
    finally:
        writing.cancel()
    replica.script = echo
    await barrier(connect, replica)
    if served:
        assert len(replica.requests) == 1, f"one request became {replica.requests}"
        assert replica.requests[0].complete
        check_seen(case, replica.requests[0])
        if not case.closes:
            client.unread.clear()
            assert (await client.get(b"/again")).body == b"/again", "the connection stays usable"
    elif case.partial:
        assert len(replica.requests) <= 1, f"one request became {replica.requests}"
        assert not any(request.complete for request in replica.requests), "a cut request looks complete"
        await until(lambda: no_cut_request(replica), "the connection with the cut request ends")
    else:
        assert not replica.requests, f"refused, and yet the replica saw {replica.requests}"
        assert not any(link.unread for link in replica.connections), "refused, and yet bytes reached the replica"


def check_seen(case: Case, request) -> None:
    """`seen`: attributes of the message, and under `fields` values by name, None for a field that must not be."""
    for key, wanted in case.seen.items():
        if key == "fields":
            for name, value in wanted.items():
                assert request.get(name) == value, f"{name!r} at the replica: {request.fields}"
        else:
            got = getattr(request, key)
            got = bytes(got) if isinstance(got, bytearray) else got
            assert got == wanted, f"{key} at the replica: {got!r}"
