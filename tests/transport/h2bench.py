"""H2Server and H2Client with everything around them faked. What the peer says is made and read by hyperframe and
hpack, which nobody here wrote."""

import struct

import hpack
import hyperframe.frame as hf
from h1kit import Bench, Receiver, request, response

from router.stream import CLOSE_NO
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h2.client import H2Client
from router.transport.codec.h2.server import H2Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.example")]
POST = [(":method", "POST"), *GET[1:]]
OK = [(":status", "200")]

NO_ERROR, PROTOCOL, INTERNAL, FLOW, TIMEOUT, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM = range(12)


def raw(kind, flags=0, stream=0, payload=b"", length=None):
    """A frame with whatever is wrong about it."""
    size = len(payload) if length is None else length
    return struct.pack(">BHBBL", size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(**values):
    frame = hf.SettingsFrame(0)
    frame.settings = {getattr(hf.SettingsFrame, name): value for name, value in values.items()}
    return frame.serialize()


def window_update(stream, increment):
    return raw(8, 0, stream, struct.pack(">L", increment))


def rst(stream, code=CANCEL):
    return raw(3, 0, stream, struct.pack(">L", code))


class StreamReceiver(Receiver):
    """A receiver that holds its own stream rather than the connection."""

    stream = None

    def hold(self, why):
        self.held |= why
        self.stream.hold(why)

    def release(self, why):
        self.held &= ~why
        self.stream.release(why)


class H2Bench(Bench):
    """Frames in, frames out."""

    def __init__(self):
        super().__init__()
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.parsed = []
        self.floods = 0

    def headers(self, stream, fields, end=True, flags=0x4):
        block = self.encoder.encode(fields)
        return raw(1, flags | (1 if end else 0), stream, block)

    def data(self, stream, data=b"", end=False):
        return raw(0, 1 if end else 0, stream, data)

    def frames(self):
        """Every frame written so far."""
        out = self.out.removeprefix(PREFACE)
        self.out = b""
        while out:
            frame, length = hf.Frame.parse_frame_header(memoryview(out[:9]))
            frame.parse_body(memoryview(out[9 : 9 + length]))
            if isinstance(frame, hf.HeadersFrame):
                self.head, self.block = frame, b""
            if isinstance(frame, hf.HeadersFrame | hf.ContinuationFrame):
                self.block += frame.data
                if "END_HEADERS" in frame.flags:
                    self.head.fields = self.decoder.decode(self.block)
            self.parsed.append(frame)
            out = out[9 + length :]
        return self.parsed

    def of(self, kind, stream=None):
        return [f for f in self.frames() if isinstance(f, kind) and stream in (None, f.stream_id)]

    def body(self, stream):
        return b"".join(f.data for f in self.of(hf.DataFrame, stream))

    def goaway_code(self):
        codes = [f.error_code for f in self.of(hf.GoAwayFrame)]
        return codes[-1] if codes else None

    def rst_code(self, stream):
        codes = [f.error_code for f in self.of(hf.RstStreamFrame, stream)]
        return codes[-1] if codes else None

    @property
    def is_open(self):
        return self.codec.close == CLOSE_NO


class ServerBench(H2Bench):
    """A client's bytes go in; `requests` are what exchanges would see."""

    def __init__(self, on_event=None, hold=0, greet=True, **limits):
        super().__init__()
        self.requests = []
        self.refused = []
        self.on_event = on_event
        self.hold_all = hold
        self.limits = ServerLimits(**limits)
        self.codec = H2Server(self._on_request, self.refused.append, self._on_flood, self.limits, self.shell, self.now)
        if greet:
            self.feed(PREFACE + settings())

    def _on_flood(self):
        self.floods += 1

    def _on_request(self, stream):
        receiver = StreamReceiver(self)
        receiver.stream = stream
        receiver.on_event = self.on_event
        self.requests.append(receiver)
        if self.hold_all:
            receiver.hold(self.hold_all)
        return receiver

    @property
    def request(self):
        return self.requests[-1]

    def answer(self, receiver=None, status=200, body=b"ok", **head):
        stream = (receiver or self.request).stream
        stream.send_head(response(status, len(body), **head), not body)
        if body:
            stream.send_data(body, True)
        self.pump()


class ClientBench(H2Bench):
    """A replica's bytes go in; `start` begins a request."""

    def __init__(self, greet=True, ping_s=0.0, **values):
        super().__init__()
        self.gone = 0
        self.untouched = True
        self.greeted = 0
        self.codec = H2Client(
            b"replica:80", b"http", ping_s, self._on_gone, self._on_settings, lambda: 0,
            lambda before: self.untouched, self.shell, self.now,
        )  # fmt: skip
        if greet:
            self.feed(settings(**values))

    def _on_gone(self):
        self.gone += 1

    def _on_settings(self):
        self.greeted += 1

    def start(self, head=None, end=True):
        receiver = StreamReceiver(self)
        receiver.stream = self.codec.open(receiver, self.now)
        receiver.stream.send_head(head if head is not None else request(), end)
        self.flush()
        return receiver
