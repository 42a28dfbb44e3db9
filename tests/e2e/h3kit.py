"""One GET over HTTP/3, by aioquic."""

import asyncio

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.status = 0
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event):
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived) and not self.status:
                self.status = int(dict(found.headers)[b":status"])
            elif isinstance(found, DataReceived):
                self.body += found.data
            if getattr(found, "stream_ended", False) and not self.done.done():
                self.done.set_result(None)


async def get(host, port, path, ca):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, cafile=str(ca))
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Client) as client:
        stream = client._quic.get_next_available_stream_id()
        authority = f"{host}:{port}".encode()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority), (b":path", path.encode())]
        client.http.send_headers(stream, head, end_stream=True)
        client.transmit()
        async with asyncio.timeout(10):
            await client.done
        return client.status, client.body
