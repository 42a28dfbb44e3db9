"""The router's side of replicas that attached (`router-attach/1`): a socket of this host for each, spliced to it.

    WAITING --ATTACH: name and token are right--> ATTACHED --LEAVING, lost--> OVER
       +------anything else, ATTACH_LIMIT_S-----------------------------------^

A second replica of the same name takes its place: it is the same one, come back before the first connection was
known to be dead. Another worker sees that by the socket, whose file is not its own any more. The token is looked at
all the time: a replica whose token was revoked, or has expired, is not attached any more.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from router.edge.attach_gate import hash_of
from router.edge.attach_side import AttachSide
from router.edge.quic_counters import ATTACH_NUMBERS
from router.edge.quic_shell import host_of
from router.edge.rendezvous import serve_questions
from router.edge.splice import Splice
from router.transport.codec.attach import control
from router.transport.codec.h2.calm import Allowance
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.edge.attach_gate import AttachGate
    from router.errors import ProxyError
    from router.transport.attached import AttachedSockets, ListeningSocket
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.shell import Reactor
    from router.transport.udp import Address

_log = logging.getLogger("router.attach")

ATTACH_LIMIT_S: Final = 10.0
"""From the connection's beginning to its ATTACH."""
LEAVE_S: Final = 2.0
"""For a replica that is told to attach anew; so long it can be reached here all the same."""
MAX_ATTACHED: Final = 4_096
"""Replicas attached to one worker."""
MAX_ASKED: Final = 64
"""Robots that a replica is being asked about."""
LOOK_S: Final = 2.0
"""Between two looks at a replica's token and socket."""
CONTROL_BURST: Final = 128
CONTROL_RATE: Final = 32.0
"""A second, of control frames that answer nothing: late answers, and what is not known."""
REFUSALS_BURST: Final = 20
REFUSALS_RATE: Final = 0.5
"""A second, that are logged: anybody may come and be refused. All are counted."""


class AttachedReplicas:
    """Who is attached to this worker, by name."""

    def __init__(self, sockets: AttachedSockets, gate: AttachGate, reactor: Reactor) -> None:
        self.sockets = sockets
        self.gate = gate
        self.reactor = reactor
        self.by_name: dict[str, AttachServer] = {}
        self.refused = 0
        self.logged = Allowance(REFUSALS_BURST, REFUSALS_RATE, reactor.clock.now)
        self.splices = 0

    def numbers(self) -> dict[str, int]:
        """Return every count by name."""
        return dict(zip(ATTACH_NUMBERS, (len(self.by_name), self.refused, self.splices), strict=True))


async def _no() -> control.Punching:
    return control.Punching(0, [])


class AttachServer(AttachSide):
    """One replica's connection."""

    __slots__ = (
        "_allowance", "_asked", "_asked_count", "_attached", "_by_s", "_digest", "_is_leaving", "_is_served",
        "_leave_by_s", "_listening", "_questions", "_seen", "_server", "certificate", "listener", "name",
    )  # fmt: skip

    def __init__(
        self,
        bearer: Bearer,
        attached: AttachedReplicas,
        seen: Callable[[], Address],
        now: float,
        listener: str = "",
    ) -> None:
        """`seen` says where the connection comes from now: a NAT may give it another port. `listener`: where to."""
        super().__init__(bearer)
        self.listener = listener
        self._attached = attached
        self._seen = seen
        self._allowance = Allowance(CONTROL_BURST, CONTROL_RATE, now)
        self._digest = b""  # of its token
        self.name = ""
        self.certificate = ""
        self._asked: dict[int, asyncio.Future[control.Punching]] = {}
        self._asked_count = 0
        self._questions: Any = None
        self._listening: ListeningSocket | None = None
        self._server: Any = None
        self._by_s = now + ATTACH_LIMIT_S
        self._is_served = False  # both sockets were given to servers, or cannot be
        self._is_leaving = False
        self._leave_by_s = 0.0
        bearer.watch()

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """Wait for the replica's word."""

    def stream_opened(self, flow: Flow) -> None:
        """Take the first two-way stream as control, and no other."""
        if self.control is None and not flow.id & 2:
            self.control = flow
        else:
            self.end(control.BROKEN, "a second stream")

    def next_deadline(self) -> float | None:
        """When ATTACH has to be there; then, when to look again whether all is as it was."""
        return self._by_s or None

    def handle_deadline(self, now: float) -> None:
        """End who did not say who it is, and who may not be here any more."""
        if not 0.0 < self._by_s <= now:
            return
        if not self.name:
            self.end(control.BROKEN, "no ATTACH")
            return
        self._by_s = now + LOOK_S
        refusal = self._attached.gate.refusal(self.name, self._digest, now)
        listening = self._listening
        if refusal:
            _log.warning("replica %s may not be attached any more: %s", self.name, refusal)
            self.end(control.REFUSED, refusal)
        elif listening is not None and not self._is_leaving and not listening.is_ours:
            if listening.is_there:
                self.end(control.REPLACED, "attached anew, to another worker")
            else:
                _log.error("the socket of %s was removed; it has to attach anew", self.name)
                self.end(control.DONE, "its socket is gone")

    def drain(self) -> None:
        """Send the replica to another router, or this one once it is back; serve what is under way."""
        self._leave()

    def retire(self, now: float) -> None:
        """Send the replica to the successor, whose socket takes the place of ours."""
        self._leave()

    def cut(self, error: ProxyError) -> None:
        """End now."""
        self.end(control.DONE, error.kind.value)

    def may_be_left(self) -> bool:
        """Once nothing is under way here, and the replica had time to attach to the successor."""
        return self._is_leaving and not self.splices and self._attached.reactor.clock.now >= self._leave_by_s

    # -- control --------------------------------------------------------------------------------------

    @property
    def place(self) -> control.Place:
        """Where we see it."""
        address = self._seen()
        return host_of(address).decode(), int(address[1])

    def ask(self, asked: control.Punch) -> Awaitable[control.Punching]:
        """Ask the replica where a robot may come to. It may never answer: the caller limits the time."""
        if self.is_over or not self.certificate or len(self._asked) >= MAX_ASKED:
            return _no()
        self._asked_count += 1
        n = self._asked_count
        self._asked[n] = waiting = asyncio.get_running_loop().create_future()
        waiting.add_done_callback(lambda _: self._asked.pop(n, None))
        self._attached.reactor.clock.read()
        self.say(control.Punch(n, asked.user, asked.key, asked.ticket, asked.places))
        self._attached.reactor.outbox.flush()
        return waiting

    def read_control(self, data: bytes, end: bool) -> None:
        """Take what the replica says."""
        for frame in self.frames.read(data):
            if self.is_over:
                return
            body = control.decode(frame) if control.is_known(frame.kind) else None
            if isinstance(body, control.Punching) and body.n in self._asked:
                waiting = self._asked.pop(body.n)
                if not waiting.done():
                    waiting.set_result(body)
            elif not self._allowance.take(self.bearer.now):
                self.end(control.BROKEN, "too many control frames")
            elif isinstance(body, control.Attach) and not self.name:
                self._attach(body)
            elif not isinstance(body, control.Punching) and control.is_known(frame.kind):
                self.end(control.BROKEN, "a control frame is malformed or out of place")
        if self.frames.fault or end:
            self.end(control.BROKEN if self.frames.fault else control.DONE, "")

    def _attach(self, body: control.Attach) -> None:
        attached = self._attached
        if self.bearer.is_early:  # a replay must not take the name from who has it (RFC 9001 §9.2)
            self.end(control.BROKEN, "ATTACH in early data")
            return
        digest = hash_of(body.token)
        refusal = attached.gate.refusal(body.name, digest, self.bearer.now)
        if not refusal and len(attached.by_name) >= MAX_ATTACHED:
            refusal = f"{MAX_ATTACHED} replicas are attached already"
        if not refusal:
            try:
                self._listening = attached.sockets.listen(body.name)
            except OSError as failure:
                _log.error("the socket of %s: %s", body.name, failure)
                refusal = "the router cannot listen for it"
        if refusal:
            attached.refused += 1
            if attached.logged.take(attached.reactor.clock.now):
                _log.warning("a replica at %s may not attach as %r: %s", self.place[0], body.name[:80], refusal)
            self.end(control.REFUSED, refusal)
            return
        self._by_s = self.bearer.now + LOOK_S
        self.bearer.watch()
        self._digest = digest
        self.name = body.name
        self.certificate = body.certificate
        before = attached.by_name.get(self.name)
        attached.by_name[self.name] = self
        if before is not None:
            before.end(control.REPLACED, "attached anew")
        spawn(self._serve(), f"attached {self.name}")

    async def _serve(self) -> None:
        """Listen; then the replica may be told."""
        listening = self._listening
        assert listening is not None
        create: Any = asyncio.get_running_loop().create_unix_server  # takes any protocol, whatever its type says
        failed = ""
        try:
            if not self.is_over:
                self._server = await create(self._accept, sock=listening.sock)
            if not self.is_over:
                self._questions = await serve_questions(self, listening.questions)
        except OSError as failure:
            failed = str(failure)
        self._is_served = True
        self._attached.reactor.clock.read()
        if self.is_over:
            self._stop_listening()
        elif failed:
            _log.error("the sockets of %s: %s", self.name, failed)
            self.end(control.DONE, "the router cannot listen for it")
        else:
            self.say(control.Attached(self.place))
            _log.info("replica %s is attached, from %s port %d", self.name, *self.place)
        self._attached.reactor.outbox.flush()

    def _accept(self) -> Splice:
        """Open a stream for who connects; there may be none to be had."""
        flow = None if self.is_over else self.bearer.open_stream(unidirectional=False)
        splice = Splice(self._attached.reactor, flow)
        if flow is not None:
            self._attached.splices += 1
            self.splices[flow.id] = splice
        return splice

    # -- the end --------------------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._is_leaving or self.is_over:
            return
        self._is_leaving = True
        if not self.name:
            self.end(control.DONE, "the router is going")
            return
        self._leave_by_s = self._attached.reactor.clock.now + LEAVE_S
        # The socket stays until the successor's is there, or nothing goes on here: others may still connect to it.
        self.say(control.Leaving())

    def _stop_listening(self) -> None:
        listening = self._listening
        if listening is None:
            return
        listening.close()
        if self._is_served:  # else who serves sees that it is over
            for server, sock in ((self._server, listening.sock), (self._questions, listening.questions)):
                (sock if server is None else server).close()

    def let_go(self, code: int, reason: str) -> None:
        """Nobody connects to it here any more."""
        if self.name:
            _log.info("replica %s is not attached any more: %s", self.name, reason or f"code {code}")
        self._by_s = 0.0
        attached = self._attached
        if attached.by_name.get(self.name) is self:
            del attached.by_name[self.name]
        self._stop_listening()
        for waiting in list(self._asked.values()):
            if not waiting.done():
                waiting.set_result(control.Punching(0, []))
