"""An HTTP/3 client by aioquic on a socket of its own, so that a test can move it to another port or read raw datagrams."""

import asyncio
import socket
import time

from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted


class Answer:
    def __init__(self):
        self.headers = {}
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()


class Http3:
    """One connection. `move()` is what a NAT does that has forgotten it."""

    def __init__(self, port, ca, host="127.0.0.1", alpn=H3_ALPN, **options):
        self.address = (host, port)
        configuration = QuicConfiguration(is_client=True, alpn_protocols=alpn, cafile=str(ca), **options)
        configuration.server_name = "localhost"
        self.tokens = []
        self.quic = QuicConnection(configuration=configuration, token_handler=self.tokens.append)
        self.http = None
        self.answers = {}
        self.terminated = None
        self.retried = False
        self.was_reset = False  # aioquic itself does not look for it
        self._loop = asyncio.get_running_loop()
        self._sock = None
        self._timer = None
        self.connected = self._loop.create_future()
        self.ended = asyncio.Event()
        self.move()

    def move(self):
        """Send from another port from now on; what comes to the old one is lost."""
        self._close_socket()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((self.address[0], 0))
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._read)

    def ping(self):
        """Say something: who only listens is not found at its new port."""
        self.quic.send_ping(len(self.answers))
        self._flush()

    async def connect(self, limit_s=10.0):
        self.quic.connect(self.address, now=time.time())
        self._flush()
        async with asyncio.timeout(limit_s):
            await self.connected
        return self

    def request(self, method, path, body=b"", headers=(), end=True):
        stream = self.quic.get_next_available_stream_id()
        answer = self.answers[stream] = Answer()
        answer.stream = stream
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path)]
        self.http.send_headers(stream, [*head, *headers], end_stream=end and not body)
        if body:
            self.http.send_data(stream, body, end_stream=end)
        self._flush()
        return answer

    def send(self, answer, body, end):
        self.http.send_data(answer.stream, body, end_stream=end)
        self._flush()

    async def get(self, path=b"/v1/models", limit_s=10.0, **more):
        answer = self.request(b"GET", path, **more)
        async with asyncio.timeout(limit_s):
            await answer.done
        return answer

    async def post(self, path, body, limit_s=20.0, **more):
        answer = self.request(b"POST", path, body, **more)
        async with asyncio.timeout(limit_s):
            await answer.done
        return answer

    async def gone(self, limit_s=10.0):
        async with asyncio.timeout(limit_s):
            await self.ended.wait()
        return self.terminated

    def close(self):
        if self.terminated is None:
            self.quic.close()
            self._flush()
        self.vanish()

    def vanish(self):
        """Be gone without a word."""
        if self._timer is not None:
            self._timer.cancel()
        self._close_socket()

    def _reset_tokens(self):
        known = [self.quic._peer_cid, *self.quic._peer_cid_available]
        return {cid.stateless_reset_token for cid in known if cid.stateless_reset_token}

    def _close_socket(self):
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _read(self):
        while True:
            try:
                data, address = self._sock.recvfrom(65_535)
            except (BlockingIOError, ConnectionRefusedError):
                break
            self.retried = self.retried or data[0] & 0xF0 == 0xF0
            self.was_reset = self.was_reset or (len(data) > 20 and data[-16:] in self._reset_tokens())
            self.quic.receive_datagram(data, address, time.time())
        self._flush()

    def _flush(self):
        while (event := self.quic.next_event()) is not None:
            self._take(event)
        if self._sock is None:
            return
        for data, address in self.quic.datagrams_to_send(time.time()):
            try:
                self._sock.sendto(data, address)
            except (BlockingIOError, ConnectionRefusedError):
                pass
        if self._timer is not None:
            self._timer.cancel()
        when = self.quic.get_timer()
        self._timer = None if when is None else self._loop.call_later(max(0.0, when - time.time()), self._tick)

    def _tick(self):
        self.quic.handle_timer(time.time())
        self._flush()

    def _take(self, event):
        if isinstance(event, HandshakeCompleted):
            self.http = H3Connection(self.quic)
            if not self.connected.done():
                self.connected.set_result(None)
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
            self.ended.set()
            failure = ConnectionError(f"{event.error_code:#x} {event.reason_phrase}")
            for future in (self.connected, *(answer.done for answer in self.answers.values())):
                if not future.done():
                    future.set_exception(failure)
                    future.exception()
        if self.http is None:
            return
        for found in self.http.handle_event(event):
            answer = self.answers.get(getattr(found, "stream_id", None))
            if answer is None:
                continue
            if isinstance(found, HeadersReceived) and not answer.headers:
                answer.headers = dict(found.headers)
            elif isinstance(found, DataReceived):
                answer.body += found.data
            if getattr(found, "stream_ended", False) and not answer.done.done():
                answer.done.set_result(None)
