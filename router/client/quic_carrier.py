"""A session on a QUIC connection: engine, protocol and socket joined, and an eye on the network.

When the host's address changes (Wi-Fi to cellular, another cable), or nothing is heard for a while (a NAT forgot
us), the connection goes on from a new socket; that costs a round trip, and no command. The kernel is asked for its
route each second: no privilege and nothing of the platform is needed for that. Silence alone does not move one that
goes to the replica itself: the replica's NAT would let nothing in from a new port.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from router.client.carrier import Carrier
from router.client.endpoint import QuicEndpoint
from router.client.words import LINK_LOST, TLS_FAILED, RobotError
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.robot import wire
from router.transport.codec.robot.client import RobotCalls, RobotClient
from router.transport.udp import find_local_host

if TYPE_CHECKING:
    from aioquic.tls import SessionTicket

    from router.client.memory import Memory
    from router.client.port import ClientPort
    from router.client.target import Target
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.codec.robot import control
    from router.transport.codec.robot.control import Offer
    from router.transport.codec.robot.wire import Command
    from router.transport.udp import Address

INITIAL_WINDOW_BYTES: Final = 1_048_576
"""May be under way before the first acknowledgement: an observation of 600 KB fits one flight."""
LOOK_S: Final = 1.0
"""Between two looks at the network."""
SILENT_S: Final = 1.5
SILENT_ROUND_TRIPS: Final = 6.0
"""Without a word for the longer of both, though it is asked five times a second: the path may have forgotten us."""
_TLS: Final = range(0x100, 0x200)
_NO_ALPN: Final = 0x178


class QuicCarrier(Carrier):
    """See the module."""

    transport: Literal["quic", "websocket"] = "quic"

    def __init__(
        self,
        target: Target,
        place: tuple[int, Address],
        memory: Memory,
        early: tuple[bytes, int] | None,
        resume: str,
        *,
        silence_s: float,
        ping_every_s: float,
        attempt: str = "",
        port: ClientPort | None = None,
    ) -> None:
        """`place` is a family and an address; `early` a state message, which leaves with the first packets.

        `attempt`: the same for carriers of one race, which do not take the session from each other.
        `port`: of the connection to the router, for one that goes to the replica itself.
        """
        super().__init__()
        self._target = target
        self._memory = memory
        self._early = early
        self._hello = target.hello(resume, attempt)
        self._silence_s = silence_s
        self._ping_every_s = ping_every_s
        self._client: RobotClient | None = None
        self._look: asyncio.TimerHandle | None = None
        self._moved_s = 0.0
        self._has_sent_early = False
        self.ticket, self._token = memory.take(target.trust)
        self.is_direct = port is not None
        self._offer: asyncio.Future[Offer] | None = None
        self.endpoint = QuicEndpoint(self._config(), *place, self._make, port)
        self.endpoint.on_ticket = self._keep_ticket
        self.endpoint.on_token = self._keep_token
        self.endpoint.on_failed = self._failed
        self.endpoint.on_over = self._over

    def _config(self) -> QuicConfig:
        config = QuicConfig(is_server=False, alpn=[wire.ALPN])
        config.server_name = self._target.server_name
        config.ca = self._target.ca
        config.verify = self._target.verify
        config.ticket = self.ticket
        config.idle_s = self._silence_s
        config.initial_window = INITIAL_WINDOW_BYTES
        return config

    def _make(self, bearer: Bearer, now: float) -> Application:
        calls = RobotCalls()
        calls.welcome = self._welcome
        calls.epoch = self._epoch
        calls.message = self._message
        calls.pong = self.hear_pong
        calls.offer = self._offered
        calls.token = self._keep_resume
        calls.closed = self._closed
        self._client = client = RobotClient(bearer, self._hello, calls, self.meter, now, self._ping_every_s)
        if self._early is not None:
            self._has_sent_early = client.send_state(*self._early, now)
        return client

    # -- for the session ------------------------------------------------------------------------------

    def start(self) -> None:
        """Say hello."""
        self.endpoint.start(self._token)

    @property
    def is_heard(self) -> bool:
        """Whether UDP gets through."""
        return self.endpoint.is_heard

    def was_early(self, state: tuple[bytes, int]) -> bool:
        """Whether this very message left before the router had welcomed us."""
        return self._has_sent_early and self._early is state

    def send_state(self, payload: bytes, deadline: int, now: float) -> bool:
        """Send the newest."""
        return self._client is not None and self._client.send_state(payload, deadline, now)

    def send_command(self, payload: bytes, deadline: int, now: float, *, is_text: bool) -> bool:
        """Send what is not to be lost."""
        client = self._client
        return client is not None and client.send_command(payload, deadline, now, is_text=is_text)

    def send_telemetry(self, payload: bytes) -> bool:
        """Send what may be lost."""
        return self._client is not None and self._client.send_telemetry(payload)

    def took(self, payload: bytes) -> None:
        """Let the router send on."""
        if self._client is not None:
            self._client.took(payload)

    def unsent(self) -> tuple[list[Command], tuple[bytes, int] | None]:
        """Return what never left."""
        return ([], None) if self._client is None else self._client.unsent()

    def unsent_state(self) -> tuple[bytes, int] | None:
        """Return the state message that never left."""
        return None if self._client is None else self._client.unsent_state()

    async def ask_direct(self) -> Offer:
        """Ask where the replica is; cancel it to wait no longer."""
        endpoint = self.endpoint
        self._offer = asyncio.get_running_loop().create_future()
        sock = endpoint.port.sock
        if self._client is not None and sock is not None:
            endpoint.clock.read()
            self._client.ask_direct([(endpoint.local_host.removeprefix("::ffff:"), int(sock.address()[1]))])
        return await self._offer

    def leave(self) -> None:
        """Say goodbye."""
        if self.endpoint.port.is_shared:
            self._stop_looking()  # from now on the port is the other one's to move
        if self._client is not None and self.endpoint.is_live:
            self._client.leave(self.endpoint.clock.read())
        else:
            self.lose(RobotError(wire.DONE, ""))

    async def end(self) -> None:
        """Say that we are gone, if that is still to be said, and close the socket."""
        self._stop_looking()
        connection = self.endpoint.connection
        if connection is not None:
            if self.endpoint.is_live:
                connection.now = self.endpoint.clock.read()
                connection.close(wire.GOING)
            self.endpoint.flush()
            self.endpoint.close()
        self.lose(RobotError(LINK_LOST, "given up"))

    def rebind(self) -> None:
        """Go on from another socket; OSError if there is no way any more."""
        self.endpoint.rebind()
        self.moves += 1
        self._moved_s = self.endpoint.clock.now

    # -- for the protocol -----------------------------------------------------------------------------

    def _welcome(self, body: control.Welcome) -> None:
        self.replica = body.replica
        self.session = body.session
        self.resume = body.token
        self.hear_epoch(body.epoch, body.replica)
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_around)
        self.come_up()

    def _keep_resume(self, token: str) -> None:
        self.resume = token

    def _epoch(self, body: control.Epoch) -> None:
        self.resume = body.token or self.resume
        self.hear_epoch(body.epoch, body.replica)

    def _offered(self, body: Offer) -> None:
        if self._offer is not None and not self._offer.done():
            self._offer.set_result(body)

    def _message(self, lane: int, sequence: int, payload: bytes, is_text: bool) -> None:
        self.hear("state" if lane == wire.STATE else "command", sequence, payload, is_text)

    def _closed(self, code: int, reason: str, by_peer: bool, refused: control.Refused | None) -> None:
        self._stop_looking()
        if refused is not None:
            text = f"{refused.code}: {refused.message}" if refused.message else refused.code
            self.lose(RobotError(code, text, refused.status, refused.retry_after_s))
        elif code >= wire.DONE:
            self.lose(RobotError(code, reason))
        else:
            self.lose(_transport_error(code, reason))

    def _failed(self, code: int, reason: str) -> None:
        self.lose(_transport_error(code, reason))

    def _over(self) -> None:
        """The engine is over; where it was before there was a protocol nobody else says so."""
        self._stop_looking()
        self.lose(RobotError(LINK_LOST, "the router did not answer"))

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        self._memory.add_ticket(self._target.trust, ticket)

    def _keep_token(self, token: bytes) -> None:
        self._memory.add_token(self._target.trust, token)

    # -- the network ----------------------------------------------------------------------------------

    def _look_around(self) -> None:
        endpoint = self.endpoint
        if not endpoint.is_live:
            return
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_around)
        now = endpoint.clock.read()
        limit_s = max(SILENT_S, SILENT_ROUND_TRIPS * self.meter.rtt_s)
        is_silent = now - max(endpoint.last_heard_s, self._moved_s) > limit_s
        try:
            if (is_silent and not self.is_direct) or find_local_host(*endpoint.place) != endpoint.local_host:
                self.rebind()
        except OSError:
            return  # no network at all: it may come back before the silence is too long

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None


def _transport_error(code: int, reason: str) -> RobotError:
    """Return what a code of QUIC means to a robot."""
    if code == _NO_ALPN:
        return RobotError(TLS_FAILED, "this server does not speak router-robot/1")
    if code in _TLS:
        return RobotError(TLS_FAILED, f"TLS: {reason or f'alert {code - 0x100}'}")
    return RobotError(LINK_LOST, f"the connection is lost: {reason or f'QUIC code {code:#x}'}")
