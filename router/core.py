"""What all exchanges of a worker share: the table, the gate, the pool, clock and counters.

Declares what the exchange needs of the gate, so that it does not depend on it, as `upstream.opening` does of the
pool. No asyncio, no protocol names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from mypy_extensions import trait

from router.counters import EndpointCounters
from router.errors import Kind, ProxyError, Source
from router.forwarded import trusted_address
from router.takeovers import Takeovers

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.clock import Clock
    from router.deadlines import DeadlineWheel
    from router.http import Field, RequestHead
    from router.routing.credentials import Credential, Credentials
    from router.routing.table import Endpoint, Table
    from router.transport.upstream.opening import Pool

RETRY_FLOOR: Final = 10  # retries under way that are always allowed …
RETRY_SHARE: Final = 0.2  # … beside this share of the requests in flight
OVERLOADED: Final = ProxyError(Kind.OVERLOADED, Source.ROUTER)

AccessRecord = tuple[
    float, bytes, bytes, bytes, bytes, bytes, int, bytes, bytes, bytes, bytes,
    int, int, float, float, float, bytes, int, bytes, int,
]  # fmt: skip
"""End (monotonic s), id, method, authority, path, version, status, flag, code, endpoint, replica, bytes received
and sent, duration, overhead and time to first byte in seconds, client, retries, reached,
gRPC status or -1."""


_HEX: Final = tuple(b"%02x" % i for i in range(256))
_SCHEMES: Final = (b"http", b"https")


@trait
class Gate:
    """Authentication and admission. A trait and not a Protocol, for the reason that `stream` gives."""

    __slots__ = ()

    def check(
        self, head: RequestHead, endpoint: Endpoint | None, credentials: Credentials, now: float
    ) -> Credential | ProxyError:
        """Return whose request it is, or why it is refused. Takes the router's own credentials out of the head.

        Where the endpoint is not known yet (`by_model`) `admit` decides once it is.
        """
        raise NotImplementedError

    def check_session(
        self, head: RequestHead, endpoint: Endpoint, credentials: Credentials, minter: bytes, now: float
    ) -> Credential | ProxyError:
        """Return whose request of a session it is: who shows a credential, else who started it (its mark)."""
        raise NotImplementedError

    def admit(self, found: Credential | ProxyError, endpoint: Endpoint, now: float) -> Credential | ProxyError:
        """Return who may call this endpoint, or why they may not."""
        raise NotImplementedError


class Desk(Protocol):
    """Where sticky sessions begin and end: the supervisor's word, which comes later. Asked once a session."""

    def start(
        self, endpoint: str, replica: str, idle_s: int, answer: Callable[[str, int, Kind | None], None]
    ) -> None:
        """Ask for a session on a replica; `answer` is given its id and when it began, or why there is none."""

    def end(self, session_id: str, answer: Callable[[str, int, Kind | None], None]) -> None:
        """Ask for the end of one; `answer` is given its id, 0, and why it did not end."""


class Peer:
    """Who is at the other end of a client connection, and the fields that tell it to the replica.

    `scheme` is what the client spoke to this listener: `https` over TLS; `alt_svc` the field that tells it where
    the same is to be had over QUIC.
    """

    __slots__ = ("address", "alt_svc", "forwarded_for", "forwarded_proto")

    def __init__(self, address: bytes, scheme: bytes = b"http", alt_svc: Field | None = None) -> None:
        self.address = address
        self.alt_svc = alt_svc
        self.forwarded_for: Field = (b"x-forwarded-for", address)
        self.forwarded_proto: Field = (b"x-forwarded-proto", scheme)

    def behind(self, known: dict[bytes, bytes], hops: int) -> Peer:
        """Return the client that so many trusted proxies speak for; its own hop stays the peer's."""
        chain, proto = known.get(b"x-forwarded-for", b""), known.get(b"x-forwarded-proto", b"").lower()
        client = Peer(trusted_address(chain, hops) or self.address, alt_svc=self.alt_svc)
        client.forwarded_for = self.forwarded_for
        client.forwarded_proto = (b"x-forwarded-proto", proto) if proto in _SCHEMES else self.forwarded_proto
        return client


class Core:
    """What all exchanges of a worker share. `table` is swapped by one attribute store."""

    __slots__ = (
        "_id_head",
        "_id_prefix",
        "_ids",
        "_shed_debt",
        "access_log",
        "clock",
        "desk",
        "gate",
        "in_flight",
        "pool",
        "retrying",
        "shed_requests",
        "shed_share",
        "table",
        "takeovers",
        "trusted_hops",
        "unrouted",
        "wheel",
    )

    def __init__(
        self,
        table: Table,
        gate: Gate,
        pool: Pool,
        clock: Clock,
        wheel: DeadlineWheel,
        id_prefix: bytes,
        access_log: Callable[[AccessRecord], None] | None = None,
        trusted_hops: int = 0,
        desk: Desk | None = None,
    ) -> None:
        self.table = table
        self.gate = gate
        self.pool = pool
        self.clock = clock
        self.wheel = wheel
        self.access_log = access_log
        self.trusted_hops = trusted_hops
        self.desk = desk
        self.takeovers = Takeovers()
        self.unrouted = EndpointCounters()
        self.in_flight = 0
        self.retrying = 0
        self.shed_share = 0.0  # of new requests, while the worker has too much to do
        self.shed_requests = 0
        self._shed_debt = 0.0
        self._id_prefix = id_prefix
        self._id_head = b"%b-%06x" % (id_prefix, 0)
        self._ids = 0

    def make_id(self) -> bytes:
        """Return a request id: the worker's random prefix and a count, of which all but the end is kept written."""
        self._ids = count = self._ids + 1
        if not count & 0xFF:
            self._id_head = b"%b-%06x" % (self._id_prefix, count >> 8)
        return self._id_head + _HEX[count & 0xFF]

    def sheds(self) -> bool:
        """Whether this new request is one of the share that is refused; evenly spread, not by chance."""
        self._shed_debt += self.shed_share
        if self._shed_debt < 1.0:
            return False
        self._shed_debt -= 1.0
        self.shed_requests += 1
        return True

    def may_retry(self) -> bool:
        """Whether the budget has room, so that retries cannot multiply an outage."""
        return self.retrying < RETRY_FLOOR + self.in_flight * RETRY_SHARE
