"""The bench's HTTP/2 against implementations that nobody here wrote, and what its clients count."""

import http.server
import os
import ssl
import threading

import grpc.aio
import hpack
import pytest
import pytest_asyncio

from loadtest import h2
from loadtest.certificate import make_certificate, openssl
from loadtest.clients import h2load
from loadtest.clients.window import Command
from loadtest.generator import measure
from loadtest.h2_replica import serving
from loadtest.memory import forget_peaks, peaks_bytes


@pytest_asyncio.fixture
async def replica_port():
    """A replica in this loop with streams of 5 messages, 2 ms apart."""
    async with serving(5, 0.002) as port:
        yield port


def command(mode, port, **changes):
    fields = {"connections": 2, "streams": 3, "duration_s": 0.2, "warmup_s": 0.05, "events": 5}
    return Command(mode=mode, port=port, **{**fields, **changes})


@pytest.mark.parametrize("allowed", [4096, 0])
def test_hpack_reads_our_header_blocks(allowed):
    encoder, decoder = h2.Encoder(), hpack.Decoder()
    if not allowed:
        encoder.limit(0)
        decoder.max_allowed_table_size = 0
    sizes = []
    for fields in [h2.RESPONSE, h2.RESPONSE, h2.TRAILERS, h2.RESPONSE, h2.TRAILERS, h2.RESPONSE, h2.TRAILERS]:
        block = encoder.block(fields)
        sizes.append(len(block))
        assert tuple(decoder.decode(block, raw=True)) == fields
    if allowed:
        assert sizes[-2:] == [3, 2]  # an octet each: all in the table
    request = h2.request_fields("127.0.0.1:1")
    assert tuple(decoder.decode(encoder.block(request), raw=True)) == request


async def test_grpcio_reads_the_replica(replica_port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{replica_port}") as channel:
        call = channel.unary_stream("/any.Service/Method")
        for _ in range(3):
            assert [message async for message in call(b"x" * 100)] == [b"m" * 100] * 5


async def test_streams_count_messages_and_gaps(replica_port):
    result = await measure(command("grpc-streams", replica_port, duration_s=0.3))
    assert result.errors == 0, result.detail
    assert result.units > 50
    assert result.first_event.count > 5
    assert result.gap.p50_us == pytest.approx(2000, rel=0.8)


async def test_a_short_stream_is_an_error(replica_port):
    result = await measure(command("grpc-streams", replica_port, events=6))
    assert "5 messages instead of 6" in result.detail


async def test_a_body_goes_up_and_down(replica_port):
    result = await measure(command("h2-body", replica_port, body_mib=3, pids=[os.getpid()]))
    assert (result.errors, result.units) == (0, 6), result.detail
    assert result.peak_bytes[os.getpid()] > 1 << 20


@pytest.mark.skipif(h2load.binary() is None, reason="h2load is not installed")
async def test_h2load_counts_calls():
    async with serving(1, 0) as port:
        result = await measure(command("h2load", port))
    assert result.errors == 0, result.detail
    assert result.units > 100
    assert result.latency.count == pytest.approx(result.units, abs=10)
    assert result.elapsed_s == pytest.approx(0.2, rel=0.2)
    async with serving(0, 0) as port:  # trailers and no message: what a refusal looks like
        result = await measure(command("h2load", port))
    assert "refused by gRPC status" in result.detail


async def test_nothing_there_is_an_error(unused_tcp_port):
    for mode in ("grpc-streams", "h2-body", "tls"):
        assert (await measure(command(mode, unused_tcp_port))).errors


@pytest.fixture
def tls_port(tmp_path):
    if openssl() is None:
        pytest.skip("openssl is not installed")
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, address):
            """Say nothing: a client that only shakes hands is what is tested."""

    with Server(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("resume", [False, True])
async def test_handshakes(tls_port, resume):
    result = await measure(command("tls", tls_port, resume=resume))
    assert result.errors == 0, result.detail
    assert result.units > 10
    assert result.latency.count == result.units


def test_a_peak_is_forgotten():
    held = bytearray(os.urandom(1 << 20) * 32)
    peak = peaks_bytes([os.getpid()])[os.getpid()]
    del held
    forget_peaks([os.getpid()])
    assert peaks_bytes([os.getpid()])[os.getpid()] < peak - (16 << 20)
    assert peaks_bytes([2**22]) == {2**22: 0}
