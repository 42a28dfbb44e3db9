"""A robot made of `wire` and an engine, the router's side of its session, and replicas that are played by the test.

The link is the rig's, in virtual time. `bytewise` hands the server every byte by itself.
"""

import types

import msgspec
from websockets import frames
from websockets.streams import StreamReader

from router.errors import Kind, ProxyError, Source
from router.http import ResponseHead, ResponseShape
from router.stream import RequestReceiver
from router.transport.codec.message_tunnel import MessageTunnel
from router.transport.codec.quic.invariants import ID_BYTES
from router.transport.codec.quic.server import ServerConnection
from router.transport.codec.quic.state import OPEN
from router.transport.codec.robot import wire
from router.transport.codec.robot.counters import RobotCounters
from router.transport.codec.robot.server import RobotServer
from tests.transport.codec.quic.rig import Recorder, Rig

RESET = ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM)


class Replica(RequestReceiver):
    """One WebSocket, as the exchange would serve it. Says what a replica says by `text`, `binary`, `close`."""

    def __init__(self, stream):
        self.stream = stream
        self.head = None
        self.messages = []
        self.closed = None  # the code of the router's close frame
        self.ended = False
        self.error = None
        self.paused = False
        self._reader = StreamReader()
        self._parser = None

    def request_head(self, head, end):
        self.head = head

    def request_data(self, data, end):
        assert not self.ended
        assert self.error is None
        self.ended = end
        if self.head.shape.method == b"POST":
            self.messages.append(data)
            return
        if data:
            self._reader.feed_data(data)
        while True:
            if self._parser is None:
                self._parser = frames.Frame.parse(self._reader.read_exact, mask=True)
            try:
                next(self._parser)
                return
            except StopIteration as stop:
                self._parser = None
                self._take(stop.value)

    def _take(self, frame):
        if frame.opcode is frames.Opcode.CLOSE:
            self.closed = frames.Close.parse(frame.data).code
        else:
            data = bytes(frame.data)
            self.messages.append(data.decode() if frame.opcode is frames.Opcode.TEXT else data)

    def request_reset(self, error):
        self.error = error

    def pause_response(self):
        self.paused = True

    def resume_response(self):
        self.paused = False

    @property
    def is_over(self):
        return self.ended or self.error is not None

    # -- what the replica does ------------------------------------------------------------------------

    def accept(self, name="r1"):
        head = ResponseHead(ResponseShape(200))
        head.shape.accepts_tunnel = True
        head.added.append((b"x-router-replica", name.encode()))
        self.stream.send_head(head, False)

    def answer(self, data, status=200):
        """Answer a POST."""
        self.stream.send_head(ResponseHead(ResponseShape(status)), False)
        self.stream.send_data(data, True)

    def refuse(self, status, code="", retry_after_s=0, body=b""):
        head = ResponseHead(ResponseShape(status))
        if code:
            head.shape.fields.append((b"x-router-error", code.encode()))
        if retry_after_s:
            head.shape.fields.append((b"retry-after", str(retry_after_s).encode()))
        self.stream.send_head(head, not body)
        if body:
            self.stream.send_data(body, True)

    def _send(self, opcode, data):
        self.stream.send_data(frames.Frame(opcode, data).serialize(mask=False), False)

    def binary(self, data):
        self._send(frames.Opcode.BINARY, data)

    def text(self, data):
        self._send(frames.Opcode.TEXT, data.encode())

    def close(self, code, reason=""):
        self._send(frames.Opcode.CLOSE, frames.Close(code, reason).serialize())


class Bytewise:
    """Hands on every byte by itself."""

    def __init__(self, application):
        self._application = application

    def __getattr__(self, name):
        return getattr(self._application, name)

    def stream_data(self, flow, data, end):
        for at in range(len(data)):
            self._application.stream_data(flow, data[at : at + 1], end and at == len(data) - 1)
        if not data:
            self._application.stream_data(flow, data, end)


class Timed(ServerConnection):
    """With the application's deadlines beside its own, as the shell's timers have them."""

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


class Robot(Rig):
    """The rig with a robot at one end. `replicas`: every WebSocket that was asked for; `auto` accepts them."""

    def __init__(self, *args, auto=True, bytewise=False, is_slow=False, collect=None, is_sidecar=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.collect = collect
        self.is_sidecar = is_sidecar
        self.auto = auto
        self.is_slow = is_slow
        self.replicas = []
        self.counters = RobotCounters()
        self.refusals = []
        self.server.make_app = self._make_server
        self.bytewise = bytewise
        self.control = self.command = None
        self._frames = wire.FrameReader()
        self._commands = wire.CommandReader(from_client=False)
        self.heard = []  # control frames, as (type, map), but PINGs
        self.pings = []
        self.commands = []
        self.read = {}
        self.sequence = 0
        self.skew_us = 0
        self.answers_pings = True
        self.reads_commands = True

    def _make_server(self, bearer):
        made = RobotServer(
            bearer, self._on_request, self.refusals.append, self.counters, self.now, collect=self.collect,
            is_sidecar=self.is_sidecar,
        )  # fmt: skip
        self.session = made
        return Bytewise(made) if self.bytewise else made

    def _on_request(self, stream):
        replica = Replica(stream)
        self.replicas.append(replica)
        return replica

    def _deliver(self, to_server, data, address):
        if to_server and self.server.connection is None:
            first = data[6 : 6 + ID_BYTES] if data[5] == ID_BYTES else data[6 : 6 + data[5]]
            self.server.connection = Timed(
                self.server_config, self.server, self.now, address, None, first, first, self.validated
            )
        super()._deliver(to_server, data, address)
        self._act()

    def _act(self):
        """What happens between ticks: replicas accept, the robot reads."""
        for replica in self.replicas:
            is_handshake = isinstance(replica.stream, MessageTunnel) and replica.stream._state == 0  # noqa: SLF001
            if self.auto and replica.head is not None and is_handshake and not replica.is_over:  # noqa: SLF001
                replica.accept(f"r{self.replicas.index(replica) + 1}")
        self._listen()

    def run(self, until=None, limit_s=30.0):
        def check():
            self._act()
            return until is not None and until()

        done = super().run(check if until is not None or self.auto else None, limit_s)
        self._listen()
        return done if until is not None else True

    def _send(self, end, link, to_server):
        if not to_server:
            self._act()
        super()._send(end, link, to_server)

    # -- the robot ------------------------------------------------------------------------------------

    @property
    def app(self):
        return self.client.app

    @property
    def replica(self):
        return self.replicas[-1]

    @property
    def ended(self):
        """The code that the robot's connection was closed with."""
        return None if self.app is None or self.app.lost is None else self.app.lost[0]

    def open_lanes(self, command=b"C"):
        connection = self.client.connection
        if self.app is None and self.config.ticket is None:
            self.connect()
        self.control = connection.open_stream(unidirectional=False)
        self.command = connection.open_stream(unidirectional=False)
        if command:
            self.command.send(command, False)

    def say(self, kind, **body):
        self.control.send(wire.write_frame(kind, msgspec.msgpack.encode(body)), False)

    def hello(self, *, authority="robots.test", **more):
        if self.control is None:
            self.open_lanes()
        self.say(wire.HELLO, authority=authority, **more)

    def state(self, payload, *, deadline=0, sequence=None, end=True):
        self.sequence = self.sequence + 1 if sequence is None else sequence
        flow = self.client.connection.open_stream(unidirectional=True)
        flow.send(wire.state_header(self.sequence, deadline) + payload, end)
        return flow

    def order(self, payload, *, deadline=0, is_text=False):
        self.command.send(wire.command_header(len(payload), deadline, is_text=is_text) + payload, False)

    def clock_us(self):
        return int(self.now * 1e6) + self.skew_us

    def _listen(self):
        app = self.app
        if app is None or not isinstance(app, Recorder):
            return
        app.gives_credit = self.reads_commands
        for stream_id, reader in ((0, self._frames), (4, self._commands)):
            data = app.data.get(stream_id, b"")
            fresh = data[self.read.get(stream_id, 0) :]
            if not fresh:
                continue
            self.read[stream_id] = len(data)
            found = reader.read(fresh)
            assert not reader.fault
            if stream_id == 4:
                self.commands += [one.data.decode() if one.is_text else one.data for one in found]
                continue
            for frame in found:
                self._hear(frame.kind, msgspec.msgpack.decode(frame.body))

    def _hear(self, kind, body):
        if kind != wire.PING:
            self.heard.append((kind, types.SimpleNamespace(**body)))
            return
        self.pings.append(body)
        if self.answers_pings:
            self.say(wire.PONG, n=body["n"], t=body["t"], r=self.clock_us(), s=self.clock_us())

    @property
    def states(self):
        """State messages that came whole, as (sequence, payload)."""
        found = []
        for stream_id in sorted(self.app.ended):
            if stream_id & 2:
                reader = wire.StateReader()
                assert reader.read(self.app.data[stream_id])
                found.append((reader.sequence, reader.payload()))
        return found

    def kinds(self):
        return [kind for kind, _ in self.heard]

    def welcome(self, **hello):
        """Say HELLO and be welcome."""
        if self.control is None:
            self.hello(**hello)
        assert self.run(lambda: wire.WELCOME in self.kinds())
        return self
