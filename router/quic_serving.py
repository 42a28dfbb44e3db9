"""QUIC in a worker: its listener built from what the supervisor says, beside the TCP one and with its limits.

Imported only by workers that serve QUIC, since what it needs is an extra's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from router.control import Robots
from router.edge.attach_gate import AttachGate
from router.edge.attach_server import AttachedReplicas
from router.edge.attachment import Attachment
from router.edge.direct_robots import DirectRobots, TicketGate
from router.edge.lane_dials import LaneDials
from router.edge.quic_forwarding import Forwarding
from router.edge.quic_listener import QuicListener
from router.edge.quic_protocols import ServedProtocols
from router.telemetry import snapshot_histogram
from router.transport.attached import AttachedSockets
from router.transport.codec.quic.aead import IS_FAST
from router.transport.codec.quic.keyring import Keyring
from router.transport.codec.robot.counters import ROBOT_HISTOGRAMS
from router.transport.codec.robot.shown import SLICE, LinkMeasures, shown_robots
from router.transport.robot_collector import RobotCollector

if TYPE_CHECKING:
    import socket

    from router.control import AskRobots, QuicStart, Start
    from router.edge.listener import Listener
    from router.telemetry import HistogramSnapshot, LinkSnapshot
    from router.transport.server_tls import ServerTls
    from router.transport.udp import Address
    from router.walltime import WallTime

_log = logging.getLogger("router.quic")


class QuicServing:
    """Made when the worker accepts; `listen` makes its `listener`."""

    listener: QuicListener

    def __init__(
        self, whole: Start, start: QuicStart, tls: ServerTls, beside: Listener, walltime: WallTime
    ) -> None:
        """`whole` is what the worker was told, `start` and `tls` of it what there has to be."""
        if not IS_FAST:
            _log.warning(
                "QUIC takes up to half more CPU for large bodies: `pip install 'qh3>=2.1,<3'` has faster ciphers"
            )
        self._worker = whole.worker
        self._attach = whole.attach
        self._attachments: list[Attachment] = []
        self._lanes: LaneDials | None = None
        self._start = start
        self._beside = beside
        self._walltime = walltime
        counters = beside.reactor.counters
        gate = AttachGate(whole.attach_tokens, beside.core, walltime)
        self.attached = AttachedReplicas(AttachedSockets(start.secret), gate, beside.reactor)
        where = whole.robot_telemetry
        self._collector = None if where is None else RobotCollector(where[0], where[1], walltime)
        self._protocols = ServedProtocols(
            tls, beside.limits, counters, beside.note_refused, self.attached, start.portal,
            None if self._collector is None else self._collector.take, is_sidecar=whole.is_sidecar,
        )  # fmt: skip

    def listen(self, sockets: list[socket.socket]) -> list[socket.socket]:
        """Serve on the last of a worker's sockets, as `QuicStart` orders them; return the others."""
        start, beside = self._start, self._beside
        first_sender = len(sockets) - len(start.senders)
        first_receiver = first_sender - start.receivers
        first = first_receiver - len(start.addresses)
        senders = dict(zip(start.senders, sockets[first_sender:], strict=True))
        forwarding = Forwarding(sockets[first_receiver:first_sender], senders)
        self.listener = QuicListener(
            beside.core, beside.reactor, beside.headcount, self._protocols, Keyring(start.secret), self._worker,
            start.incarnation, forwarding, self._walltime,
        )  # fmt: skip
        listening = sockets[first:first_receiver]
        for sock, address in zip(listening, start.addresses, strict=True):
            if not sock.getsockname()[1]:  # it was added to others that are served already
                sock.bind(address)
        self.listener.listen(listening)
        self._lanes = LaneDials(self.listener, self._protocols.rendezvous)
        if self._attach is not None:
            robots = DirectRobots(self._send)
            self.listener.on_check = robots.take_check
            beside.core.gate = TicketGate(beside.core.gate, robots)
            self._attachments = [
                Attachment(self._attach, where, self.listener, beside, robots) for where in self._attach.routers
            ]
            for attachment in self._attachments:
                attachment.begin()
        return sockets[:first]

    @property
    def lanes(self) -> LaneDials | None:
        """The way to replicas that attached, for robots; there once it listens."""
        return self._lanes

    def _send(self, data: bytes, address: Address) -> None:
        self.listener.first_socket().send([data], len(data), b"", address)

    def set_tls(self, tls: ServerTls) -> None:
        """Serve other certificates from now on."""
        self._protocols.set_tls(tls)

    def numbers(self) -> dict[str, int]:
        """Return every count by name."""
        found = self.listener.numbers() | self._protocols.robots.numbers() | self.attached.numbers()
        return found | ({} if self._lanes is None else self._lanes.numbers())

    def histograms(self) -> dict[str, HistogramSnapshot]:
        """Return every histogram by name."""
        robots = self._protocols.robots
        found = {name: snapshot_histogram(getattr(robots, name)) for name in ROBOT_HISTOGRAMS}
        found["quic_rtt"] = snapshot_histogram(self.listener.counters.rtt)
        return found

    async def links(self) -> dict[str, LinkSnapshot]:
        """Return how links of open robot sessions do, looked at in slices; empty where there are none."""
        measures = LinkMeasures()
        parts = list(self._protocols.robots.parts.values())
        for done, part in enumerate(parts, 1):
            measures.add(part.seen)
            if done % SLICE == 0:
                await asyncio.sleep(0)
        return measures.snapshots() if parts else {}

    async def shown_robots(self, asked: AskRobots) -> Robots:
        """Return the open robot sessions that were asked for, looked at in slices."""
        table, now = self._beside.core.table, self._beside.reactor.clock.read()

        def find_endpoint(authority: bytes, path: bytes) -> str:
            endpoint = table.route(authority, path)
            return "" if endpoint is None or endpoint.by_model else endpoint.name

        async def pause() -> None:
            await asyncio.sleep(0)

        count, shown = await shown_robots(
            self._protocols.robots, self._worker, asked.session, asked.limit, now, find_endpoint, pause
        )
        return Robots(asked.question, count, shown)

    def drain(self, *, is_handed_over: bool) -> None:
        """Begin to come to an end, as the TCP listener does."""
        for attachment in self._attachments:
            attachment.close()
        if is_handed_over:
            self.listener.retire()
        else:
            self.listener.stop_accepting()
            self.listener.drain()

    def close(self) -> None:
        """Let sockets and connections go."""
        self.listener.close()
        if self._collector is not None:
            self._collector.close()
