"""A robot by aioquic: speaks `router-robot/1` as PROTOCOL.md has it, with nothing of the router's own code."""

import asyncio
import time

import msgpack
from aioquic.buffer import Buffer, BufferReadError, encode_uint_var
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamDataReceived
from quicclient import Http3

HELLO, PING, PONG, LINK, BYE, WELCOME, REFUSED, EPOCH = 1, 2, 3, 4, 5, 0x11, 0x12, 0x13
CONTROL, COMMAND = 0, 4


def now_us():
    return time.monotonic_ns() // 1_000


class RobotPeer(Http3):
    """One session. `told`: control frames as (type, map); `commands`, `states`: messages of the replica."""

    def __init__(self, port, ca, **options):
        self.told = []
        self.commands = []
        self.states = []
        self._received = {}
        self._sequence = 0
        super().__init__(port, ca, alpn=["router-robot/1"], max_datagram_frame_size=65_535, **options)

    async def begin(self, path="/echo", headers=(), **more):
        await self.connect()
        assert self.quic.get_next_available_stream_id() == CONTROL
        self.say(HELLO, authority="localhost", path=path, headers=[list(field) for field in headers], **more)
        self.quic.send_stream_data(COMMAND, b"C")
        self._flush()
        return self

    def say(self, kind, **body):
        packed = msgpack.packb(body)
        self.quic.send_stream_data(CONTROL, encode_uint_var(kind) + encode_uint_var(len(packed)) + packed)
        self._flush()

    def state(self, payload, deadline=0):
        self._sequence += 1
        stream = self.quic.get_next_available_stream_id(is_unidirectional=True)
        header = b"S" + encode_uint_var(self._sequence) + encode_uint_var(deadline)
        self.quic.send_stream_data(stream, header + payload, end_stream=True)
        self._flush()

    def command(self, payload, deadline=0, flags=0):
        header = encode_uint_var(len(payload)) + encode_uint_var(flags) + encode_uint_var(deadline)
        self.quic.send_stream_data(COMMAND, header + payload)
        self._flush()

    def telemetry(self, payload):
        self.quic.send_datagram_frame(b"T\x01" + payload)
        self._flush()

    def first(self, kind):
        return next((body for told, body in self.told if told == kind), None)

    def _take(self, event):
        if isinstance(event, HandshakeCompleted):
            self.connected.set_result(None)
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
            self.ended.set()
            if not self.connected.done():
                self.connected.set_exception(ConnectionError(event.reason_phrase))
        elif isinstance(event, StreamDataReceived):
            data = self._received.get(event.stream_id, b"") + event.data
            if event.stream_id == CONTROL:
                data = self._split(data, self._take_frame, 2)
            elif event.stream_id == COMMAND:
                data = self._split(data, self._take_command, 3)
            elif event.end_stream:
                self._take_state(data)
            self._received[event.stream_id] = data

    def _split(self, data, take, numbers):
        """Take whole frames: `numbers` integers, one of which is a length, and a payload."""
        while True:
            buffer = Buffer(data=data)
            try:
                head = [buffer.pull_uint_var() for _ in range(numbers)]
                payload = buffer.pull_bytes(head[1] if numbers == 2 else head[0])
            except BufferReadError:
                return data
            take(head, payload)
            data = data[buffer.tell() :]

    def _take_frame(self, head, payload):
        body = msgpack.unpackb(payload)
        if head[0] == PING:
            asyncio.get_running_loop().call_soon(self._answer, body)
        self.told.append((head[0], body))

    def _answer(self, ping):
        if self.terminated is None:
            self.say(PONG, n=ping["n"], t=ping["t"], r=now_us(), s=now_us())

    def _take_command(self, head, payload):
        self.commands.append(payload.decode() if head[1] & 1 else payload)

    def _take_state(self, data):
        buffer = Buffer(data=data)
        assert buffer.pull_uint8() == ord("S")
        sequence, _ = buffer.pull_uint_var(), buffer.pull_uint_var()
        self.states.append((sequence, data[buffer.tell() :]))
