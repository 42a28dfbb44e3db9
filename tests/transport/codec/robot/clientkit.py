"""The robot's real client at one end of the rig, the router's side with played replicas at the other."""

from router.transport.codec.quic.client import ClientConnection
from router.transport.codec.quic.state import OPEN
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.client import RobotCalls, RobotClient
from router.transport.codec.robot.link import LinkMeter
from tests.transport.codec.quic.rig import SERVER, Link
from tests.transport.codec.robot.robotkit import Bytewise, Robot


class TimedClient(ClientConnection):
    """With the application's deadlines beside its own, as the endpoint's timer has them."""

    __slots__ = ()

    def next_deadline(self):
        first = super().next_deadline()
        other = self.application.next_deadline() if self.application is not None and self.phase <= OPEN else None
        times = [time for time in (first, other) if time is not None]
        return min(times) if times else None

    def handle_deadline(self, now):
        super().handle_deadline(now)
        application = self.application
        if application is not None and self.phase <= OPEN:
            due = application.next_deadline()
            if due is not None and due <= now:
                application.handle_deadline(now)


class Pair(Robot):
    """`robot` is a RobotClient once the connection is far enough; what it tells is kept."""

    def __init__(self, *args, hello=None, client_bytewise=False, takes=True, early=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.hello_body = hello or control.Hello("robots.test")
        self.client_bytewise = client_bytewise
        self.takes = takes
        self.early = early
        self.meter = LinkMeter()
        self.robot = None
        self.welcomes, self.epochs, self.messages, self.pongs, self.closed = [], [], [], [], None
        self.received_s = []
        self.client.make_app = self._make_client
        self.client.connection = TimedClient(
            self.config, self.client, self.now, SERVER, on_ticket=self.tickets.append, on_token=self.tokens.append
        )

    def _make_client(self, bearer):
        calls = RobotCalls()
        calls.welcome = self.welcomes.append
        calls.epoch = self.epochs.append
        calls.message = self._on_message
        calls.pong = self.pongs.append
        calls.closed = self._on_closed
        self.robot = made = RobotClient(bearer, self.hello_body, calls, self.meter, self.now)
        if self.early is not None:
            made.send_state(self.early, 0, self.now)
        return Bytewise(made) if self.client_bytewise else made

    def _on_message(self, lane, sequence, data, is_text):
        self.messages.append((lane, sequence, data.decode() if is_text else data))
        self.received_s.append(self.now)
        if lane == wire.COMMAND and self.takes:
            self.robot.took(data)

    def _on_closed(self, code, reason, by_peer, refused):
        assert self.closed is None
        self.closed = (code, reason, by_peer, refused)

    def welcomed(self):
        """Be welcome."""
        assert self.run(lambda: self.welcomes)
        return self

    def state_in(self, data, deadline=0):
        return self.robot.send_state(data, deadline, self.now)

    def command_in(self, data, deadline=0, *, is_text=False):
        return self.robot.send_command(data, deadline, self.now, is_text=is_text)

    def at(self, times, act):
        """Run on, and call `act(n)` at each of these times."""
        for number, time in enumerate(times):
            if time > self.now:
                self.run(limit_s=time - self.now)
            act(number)


class Queue(Link):
    """A link whose delay varies as a queue's does: what was sent first arrives first. The rig's own reorders."""

    def __init__(self, delay_s, jitter_s, loss, seed):
        super().__init__(loss=loss, seed=seed)
        self.base_s, self.varies_s, self.last_s = delay_s, jitter_s, 0.0
        self.rig = None

    @property
    def delay_s(self):
        self.last_s = max(self.last_s, self.rig.now + self.base_s + self.random.random() * self.varies_s)
        return self.last_s - self.rig.now

    @delay_s.setter
    def delay_s(self, value):
        pass
