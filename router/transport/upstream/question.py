"""One question to a replica, on a connection of its own and in the version of HTTP that it speaks.

For health checks, which must find out whether a connection can be made at all. Raises OSError where it cannot, and
ValueError where what comes back is no answer. The caller limits the time.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from router.errors import ProxyError
from router.grpc_fields import read_grpc_status
from router.http import NO_GRPC_STATUS, RequestHead, RequestShape
from router.routing.load import split_address
from router.routing.spec import TlsSpec
from router.stream import ResponseReceiver, Shell
from router.transport.attached import NOWHERE, AttachedSockets
from router.transport.codec.h1.head import MAX_HEAD_BYTES, parse_response
from router.transport.codec.h2.client import H2Client
from router.transport.tls import ALPN, ALPN_HTTP2, client_context, server_name

if TYPE_CHECKING:
    from router.http import Headers, ResponseHead

READ_BYTES = 65_536
MAX_ANSWER_BYTES = 65_536  # of an answer that should be a few
NO_TLS: Final = TlsSpec()
_HEALTH_PATH: Final = b"/grpc.health.v1.Health/Check"
_NO_SERVICE: Final = b"\0\0\0\0\0"  # an uncompressed message without fields: the server as a whole
_SERVING: Final = b"\0\0\0\0\x02\x08\x01"  # status = SERVING


async def check_port(address: str, attached: AttachedSockets = NOWHERE) -> None:
    """Connect, and nothing more."""
    _, host, port = split_address(address)
    _, writer = await _open(host, port, attached)
    writer.close()


async def ask_http(
    address: str, path: str, tls: TlsSpec = NO_TLS, attached: AttachedSockets = NOWHERE
) -> int:
    """Return the status of GET `path`."""
    return (await fetch_http(address, path, tls, attached, wants_body=False))[0]


async def fetch_http(
    address: str, path: str, tls: TlsSpec = NO_TLS, attached: AttachedSockets = NOWHERE, *, wants_body: bool = True
) -> tuple[int, bytes]:
    """Return status and body of GET `path`, of which no more than `MAX_ANSWER_BYTES` is read."""
    reader, writer, authority, is_h2 = await _connect(address, tls, ALPN, attached)
    try:
        if not is_h2:
            status = await _ask_h1(reader, writer, authority, path)
            return status, await _read_to_end(reader) if wants_body else b""
        shape = RequestShape(b"GET", path.encode(), authority)
        answer = await _ask_h2(reader, writer, shape, b"")
        return answer.status, answer.body
    finally:
        writer.close()


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while data := await reader.read(READ_BYTES):
        body += data
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
    return bytes(body)


async def ask_grpc_health(address: str, tls: TlsSpec, attached: AttachedSockets = NOWHERE) -> str:
    """Ask grpc.health.v1; return why the server does not serve, or an empty text."""
    reader, writer, authority, is_h2 = await _connect(address, tls, ALPN_HTTP2, attached)
    try:
        if not is_h2:
            raise ValueError("gRPC needs HTTP/2, as h2c:// or by the TLS handshake")
        shape = RequestShape(b"POST", _HEALTH_PATH, authority)
        shape.is_grpc = shape.sends_te = True
        shape.fields = [(b"content-type", b"application/grpc")]
        answer = await _ask_h2(reader, writer, shape, _NO_SERVICE)
    finally:
        writer.close()
    if answer.grpc_status:
        return f"grpc-status {answer.grpc_status}" if answer.grpc_status > 0 else "the answer is not gRPC"
    return "" if answer.body == _SERVING else "it is not serving"


async def ask_grpc_status(address: str, path: str) -> int:  # noqa: ARG001 - asked as `ask_http` is
    """Return what a status would say of the same: 200 if gRPC's health service says that it serves, else 503."""
    return 503 if await ask_grpc_health(address, NO_TLS) else 200


async def _connect(
    address: str, tls: TlsSpec, protocols: tuple[str, ...], attached: AttachedSockets
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes, bool]:
    scheme, host, port = split_address(address)
    over: dict[str, Any] = {}
    if scheme == "https":
        over = {"ssl": client_context(tls, protocols), "server_hostname": server_name(tls, host)}
    reader, writer = await _open(host, port, attached, limit=MAX_HEAD_BYTES, **over)
    session = writer.get_extra_info("ssl_object")
    is_h2 = scheme == "h2c" or (session is not None and session.selected_alpn_protocol() == "h2")
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return reader, writer, authority.encode(), is_h2


async def _open(
    host: str, port: int, attached: AttachedSockets, **over: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as requests do: to a replica that attached by its socket on this host."""
    path = attached.path_of(host)
    if not path:
        return await asyncio.open_connection(host, port, **over)
    try:
        return await asyncio.open_unix_connection(path, **over)
    except OSError:
        raise OSError(0, "it is not attached") from None


async def _ask_h1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: bytes, path: str) -> int:
    # HTTP/1.0 has no chunks: the body is what comes before the end.
    writer.write(b"GET %b HTTP/1.0\r\nhost: %b\r\nconnection: close\r\n\r\n" % (path.encode(), authority))
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ValueError("the answer is not HTTP") from None
    parsed = parse_response(raw[:-4])
    if isinstance(parsed, ProxyError):
        raise ValueError(  # noqa: TRY004 - the bytes are wrong, not a type
            f"the answer is not HTTP: {parsed.detail}")
    return parsed[0].shape.status


async def _ask_h2(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shape: RequestShape, body: bytes
) -> Answer:
    scheme = b"http" if writer.get_extra_info("ssl_object") is None else b"https"
    codec = H2Client(shape.authority, scheme, 0.0, _nothing, _nothing, _zero, _unproven, _NoShell(), monotonic())
    answer = Answer()
    stream = codec.open(answer, monotonic())
    stream.send_head(RequestHead(shape), not body)
    if body:
        stream.send_data(body, True)
    while True:
        writer.writelines(codec.take_output(monotonic()))
        if answer.is_over:
            break
        data = await reader.read(READ_BYTES)
        if not data:
            codec.receive_eof(monotonic())
        else:
            codec.receive(data, monotonic())
    if answer.fault:
        raise ValueError(answer.fault)
    return answer


class Answer(ResponseReceiver):
    """What came back."""

    __slots__ = ("body", "fault", "grpc_status", "is_over", "status")

    def __init__(self) -> None:
        self.status = 0
        self.grpc_status = NO_GRPC_STATUS
        self.body = b""
        self.fault = ""
        self.is_over = False

    def response_informational(self, head: ResponseHead) -> None:
        """Wait for the final one."""

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """Note the status."""
        self.status = head.shape.status
        self.grpc_status = head.shape.grpc_status
        self.is_over |= end

    def response_data(self, data: bytes, end: bool) -> None:
        """Keep the body, if it is as short as it should be."""
        self.body += data
        self.is_over |= end
        if len(self.body) > MAX_ANSWER_BYTES:
            self.is_over = True

    def response_trailers(self, trailers: Headers) -> None:
        """Note the status of gRPC."""
        self.grpc_status = read_grpc_status(dict(trailers).get(b"grpc-status", b""))
        self.is_over = True

    def response_reset(self, error: ProxyError) -> None:
        """Note why there is none."""
        self.fault = f"the answer is not HTTP/2: {error.detail or error.kind.value}"
        self.is_over = True


class _NoShell(Shell):
    """For a codec whose owner writes and reads by itself."""

    def touch(self) -> None:
        """Output is asked for in any case."""

    def watch(self) -> None:
        """The caller limits the time."""

    def unsent_bytes(self) -> int:
        """The caller closes."""
        return 0

    def has_input(self) -> bool:
        """The caller reads."""
        return False


def _nothing() -> None:
    """There is no pool to leave."""


def _zero() -> int:
    return 0


def _unproven(written_before: int) -> bool:  # noqa: ARG001 - the codec gives it
    return False
