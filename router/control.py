"""What supervisor and workers say to each other: length-prefixed msgpack over a socket pair.

A worker is told its settings first, then the table in parts, says that it is built, is told to accept, and says
that it does: the workers of a new generation all begin, or none. What follows is small: a patch of the table, a
verdict on a replica's health, a question with a number that its answer repeats. The channel's end means that the
other process is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.demand import EndpointDemand
from router.overload import OverloadLimits
from router.routing.explain import Asked
from router.routing.spec import TablePatch
from router.session_book import SessionUse
from router.telemetry import WorkerSnapshot
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.robot.shown import ShownRobot
from router.transport.server_tls import CertificatePair, ServerTls

if TYPE_CHECKING:
    from collections.abc import Iterator

PULSE_S = 0.5
MAX_MESSAGE_BYTES = 256 * 1024 * 1024  # the counters of 10^5 busy replicas are some 20 MB


class QuicStart(msgspec.Struct):
    """What a worker that serves QUIC is told of its sockets, the last of those it is given.

    First the listening ones, bound to `addresses` by who reads first; then what it reads of other processes, then
    the ways to those, by incarnation and worker.
    """

    addresses: list[tuple[str, int]]
    receivers: int
    senders: list[tuple[int, int]]
    secret: bytes
    incarnation: int
    portal: tuple[str, str] | None = None  # host and path for clients of quic-portal


class AttachStart(msgspec.Struct):
    """What a sidecar's worker is told of the routers that it is to be attached to."""

    routers: list[tuple[str, int]]
    name: str
    token: str
    ca: bytes = b""
    insecure: bool = False
    certificate: str = ""  # of the authority of its own, PEM, for robots that come directly
    identity: CertificatePair | None = None  # for routers that ask who is there (mTLS)


class Start(msgspec.Struct, tag="start"):
    """Everything but the table that a worker must know before it accepts."""

    worker: int
    workers: int
    limits: ServerLimits
    max_connections: int
    tokens: list[str] = []
    tls_listeners: int = 0  # the last so many of the listening sockets speak TLS …
    tls: ServerTls | None = None  # … as this says
    proxies: list[str] | None = None  # networks that send PROXY headers; None: there are none to expect
    trusted_hops: int = 0
    access_log: str = ""
    access_log_sample: float = 1.0
    log_level: str = "INFO"
    overload: OverloadLimits = OverloadLimits()
    region: str = ""  # this router's own
    secret: bytes = b""  # with which prompts are hashed, the same in all workers
    quic: QuicStart | None = None
    attach: AttachStart | None = None  # this replica's sidecar to routers
    attach_tokens: list[str] = []  # NAME=TOKEN, of replicas that may attach to this router
    robot_telemetry: tuple[str, int] | None = None  # host and port that robots' goes to; port 0: a socket's path
    is_sidecar: bool = False  # who relays robots to it is a router
    alt_svc: bytes = b""  # a field's value on answers over TLS: where the same is served over QUIC


class Patch(msgspec.Struct, tag="patch"):
    """The next version of the table, or a part of it."""

    patch: TablePatch


class Health(msgspec.Struct, tag="health"):
    """The verdict of active checks on one replica."""

    endpoint: str
    replica: str
    is_healthy: bool


class EngineLoads(msgspec.Struct, tag="loads"):
    """What the engines of an endpoint say of themselves, in requests, by replica."""

    endpoint: str
    loads: dict[str, float]


class Drain(msgspec.Struct, tag="drain"):
    """Stop accepting, finish what is under way, then say how many were cut after `deadline_s`.

    `is_handed_over`: another process accepts on the same sockets, and clients need not know in advance.
    """

    deadline_s: float
    is_handed_over: bool = False


class Ask(msgspec.Struct, tag="ask"):
    """Ask for a snapshot of all counters."""

    question: int


class AskDemand(msgspec.Struct, tag="ask demand"):
    """Ask what each endpoint is asked for: a snapshot is much larger, and this is asked each second."""

    question: int


class Explain(msgspec.Struct, tag="explain"):
    """Ask what would happen to a request."""

    question: int
    asked: Asked


class AskRobots(msgspec.Struct, tag="ask robots"):
    """Ask for the open robot sessions: those with the worst links, or the one of that id."""

    question: int
    limit: int
    session: str = ""


class SessionAnswer(msgspec.Struct, tag="session answer"):
    """The answer to `StartSession` and `EndSession`: a session and when it began, or the kind of error."""

    question: int
    id: str = ""
    at_s: int = 0
    refusal: str = ""


class KnownTo(msgspec.Struct, tag="known to"):
    """The table has everything that the store committed up to then, by its clock; each `PULSE_S`."""

    unix_s: float


class SetLogLevel(msgspec.Struct, tag="log"):
    """Change the level of the process log."""

    level: str


class SetTls(msgspec.Struct, tag="tls"):
    """New certificates for new connections."""

    tls: ServerTls


class ReopenLogs(msgspec.Struct, tag="reopen"):
    """Open the access log anew: it was rotated."""


class Accept(msgspec.Struct, tag="accept"):
    """Begin to accept: whoever else must be ready is."""


class Built(msgspec.Struct, tag="built"):
    """The worker has its table and waits to be told to accept."""


class Ready(msgspec.Struct, tag="ready"):
    """The worker accepts."""

    pid: int


class Alive(msgspec.Struct, tag="alive"):
    """The worker's loop goes round: sent each `PULSE_S`. `overload` says what it suffers from, if anything."""

    overload: str


class Counted(msgspec.Struct, tag="counted"):
    """The answer to `Ask`."""

    question: int
    snapshot: WorkerSnapshot


class Demanded(msgspec.Struct, tag="demanded"):
    """The answer to `AskDemand`: endpoints that were ever asked for anything."""

    question: int
    pid: int
    endpoints: dict[str, EndpointDemand]


class Explained(msgspec.Struct, tag="explained"):
    """The answer to `Explain`: JSON made by the worker."""

    question: int
    explanation: msgspec.Raw


class Robots(msgspec.Struct, tag="robots"):
    """The answer to `AskRobots`: how many sessions are open, and those to show."""

    question: int
    open: int
    shown: list[ShownRobot]


class StartSession(msgspec.Struct, tag="start session"):
    """Ask for a session on a replica."""

    question: int
    endpoint: str
    replica: str
    idle_s: int


class EndSession(msgspec.Struct, tag="end session"):
    """Ask for the end of a session."""

    question: int
    id: str


class SessionsUsed(msgspec.Struct, tag="sessions used"):
    """What became of sessions since the worker said so last."""

    uses: list[SessionUse]


class IsHere(msgspec.Struct, tag="is here"):
    """A robot's session began to which a token leads back. This and what follows is said among several workers."""

    session: str


class HasLeft(msgspec.Struct, tag="has left"):
    """It is over, or another worker's."""

    session: str


class CameAgain(msgspec.Struct, tag="came again"):
    """Its robot is here again: who still has it is to end it, but for connections of the same attempt."""

    question: int
    session: str
    attempt: str


class EndEarlier(msgspec.Struct, tag="end earlier"):
    """`CameAgain` at that worker: end it, where it began before.

    `heard`: the last question of who is told this that came before that one: what asked later is no earlier
    session, and ends the other. `told`: how many workers are.
    """

    worker: int
    question: int
    session: str
    attempt: str
    heard: int
    told: int


class EarlierEnded(msgspec.Struct, tag="earlier ended"):
    """The answer to `EndEarlier`."""

    worker: int
    question: int
    told: int


class TakenOver(msgspec.Struct, tag="taken over"):
    """The answer to `CameAgain`: one of so many workers that had it has it no more; 0: none had."""

    question: int
    told: int = 0


class Drained(msgspec.Struct, tag="drained"):
    """The worker is done and about to exit."""

    cut: int


ToWorker = (
    Start | Patch | Health | EngineLoads | Accept | Drain | Ask | AskDemand | Explain | AskRobots | SetLogLevel
    | SetTls | ReopenLogs | SessionAnswer | KnownTo | EndEarlier | TakenOver
)  # fmt: skip
AboutSessions = StartSession | EndSession | SessionsUsed
AboutTakeovers = IsHere | HasLeft | CameAgain | EarlierEnded
FromWorker = (
    Built | Ready | Alive | Counted | Demanded | Explained | Robots | Drained | AboutSessions | AboutTakeovers
)

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def pack(message: ToWorker | FromWorker) -> bytes:
    """Return the message with its length before it, four bytes, big-endian."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Unpacker:
    """Cuts a byte stream into message bodies."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each body that is complete. ValueError for a length no peer of ours would send."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4:
            end = 4 + int.from_bytes(buffer[:4], "big")
            if end > MAX_MESSAGE_BYTES:
                raise ValueError(f"control message of {end - 4} bytes")
            if len(buffer) < end:
                return
            body = bytes(buffer[4:end])
            del buffer[:end]
            yield body
