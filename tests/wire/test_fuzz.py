"""Random requests, judged by h11, which nobody here wrote.

Good ones: h11 behind the router sees what was sent. Mutated ones: never two requests from one, and where both
the router and h11 take one, they take it for the same.
"""

from __future__ import annotations

import asyncio
import string

import h11
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wirekit import Client

pytestmark = pytest.mark.asyncio(loop_scope="session")
BOUNDED = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

TOKEN = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
# Hop by hop, framing, or the router's to add or to take; all others have to arrive as they were sent.
ROUTERS = {
    b"host", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"content-length",
    b"expect", b"via", b"forwarded", b"proxy-authenticate", b"proxy-authorization", b"http2-settings",
}  # fmt: skip


class Seen:
    """A request as h11 read it."""

    def __init__(self, request: h11.Request) -> None:
        self.method, self.target = request.method, request.target
        self.fields = [(name.lower(), value) for name, value in request.headers]
        self.body, self.complete = b"", False


class H11Replica(asyncio.Protocol):
    """Reads with h11, answers with the body that it saw."""

    def __init__(self, seen: list[Seen], open_: list) -> None:
        self.seen, self.open = seen, open_
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.open.append(transport)

    def data_received(self, data: bytes) -> None:
        self.parser.receive_data(data)
        while True:
            try:
                event = self.parser.next_event()
            except h11.RemoteProtocolError:
                self.transport.abort()
                return
            if isinstance(event, h11.Request):
                self.request = Seen(event)
                if event.target != b"/barrier":
                    self.seen.append(self.request)
            elif isinstance(event, h11.Data):
                self.request.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.request.complete = True
                body = b"" if self.request.method == b"HEAD" else self.request.body
                length = [("content-length", str(len(self.request.body)))]
                out = self.parser.send(h11.Response(status_code=200, headers=length))
                out += self.parser.send(h11.Data(data=body)) if body else b""
                self.transport.write(out + self.parser.send(h11.EndOfMessage()))
                if self.parser.our_state is h11.MUST_CLOSE:
                    self.transport.close()
                    return
                self.parser.start_next_cycle()
            else:
                return


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fuzzed(start_router):
    """The port of a router and what the replica behind it sees."""
    seen: list[Seen] = []
    open_: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: H11Replica(seen, open_), "127.0.0.1", 0)
    router = start_router([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    yield router.port, seen
    router.check()
    server.close()
    for transport in open_:
        transport.abort()
    await asyncio.sleep(0)


tokens = st.text(TOKEN, min_size=1, max_size=12).map(str.encode)
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD", b"BREW"])
targets = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/?%", max_size=40).map(lambda text: b"/" + text.encode())
texts = st.text([chr(c) for c in [9, 32, *range(33, 127), *range(128, 256)]], max_size=40).map(lambda text: text.encode("latin-1").strip(b" \t"))
names = tokens.map(lambda token: b"X-" + token)  # what a known name means is the tables' subject
fields = st.lists(st.tuples(names, texts), max_size=12)
bodies = st.one_of(st.none(), st.binary(max_size=300), st.lists(st.binary(min_size=1, max_size=100), max_size=6))


def build(method: bytes, target: bytes, head: list[tuple[bytes, bytes]], body, trailers: list[tuple[bytes, bytes]]) -> bytes:
    """`body`: None, a whole one, or pieces to be sent as chunks."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: h", b"Connection: close"]
    lines += [name + b": " + value for name, value in head]
    if isinstance(body, bytes):
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
    if body is None:
        return b"\r\n".join([*lines, b"", b""])
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in body)
    end = b"".join(name + b": " + value + b"\r\n" for name, value in trailers)
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", chunks]) + b"0\r\n" + end + b"\r\n"


async def exchange(port: int, data: bytes, method: bytes, mode: str):
    """The response to a last request, if there is one, and what comes behind it until the connection ends."""
    client = await Client.connect(port)
    try:
        await client.send(data, mode)
        client.finish()
        response = await client.response(method)
        await client.ending()
        return response, bytes(client.unread)
    finally:
        client.close()
        # What was sent before this has come before it, even if the first request was dropped half way.
        other = await Client.connect(port)
        await other.get(b"/barrier")
        other.close()


@settings(max_examples=250, **BOUNDED)
@given(methods, targets, fields, bodies, st.lists(st.tuples(names, texts), max_size=3), st.sampled_from(["whole", "split"]))
async def test_good_requests_arrive_as_they_were_sent(fuzzed, method, target, head, body, trailers, mode):
    port, seen = fuzzed
    seen.clear()
    response, rest = await exchange(port, build(method, target, head, body, trailers), method, mode)
    assert not rest
    whole = b"".join(body) if isinstance(body, list) else body or b""
    assert response.status == 200
    assert response.complete
    assert response.body == (b"" if method == b"HEAD" else whole)
    (got,) = seen
    assert (got.method, got.target, got.body, got.complete) == (method, target, whole, True)
    sent = [(name.lower(), value) for name, value in head]
    added = {b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    assert [pair for pair in got.fields if pair[0] not in ROUTERS | added] == [pair for pair in sent if pair[0] not in added]


pieces = st.sampled_from([
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"0", b"1", b"a", b"-", b"+", b"_", b"0x", b"\x80", b"\r\n\r\n", b"\n\n",
    b"\r\n ", b"0\r\n\r\n", b"chunked", b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: x", b"\r\nHost: i",
    b"\r\nConnection: content-length", b"\r\nExpect: 100-continue", b"#", b"//", b"@", b"\r\nX: y\n", b';a="\r\n"', b"ffffffffffffffff",
])  # fmt: skip
mutations = st.lists(st.tuples(st.sampled_from(["insert", "replace", "delete"]), st.integers(0, 1 << 16), st.integers(1, 4), pieces), min_size=1, max_size=3)


def mutate(data: bytes, changes) -> bytes:
    for kind, at, size, piece in changes:
        at %= len(data) + 1
        data = data[:at] + (b"" if kind == "delete" else piece) + data[at + (0 if kind == "insert" else size) :]
    return data


def read_by_h11(data: bytes) -> Seen | None:
    """What a server with h11 would make of these bytes: one complete request, or nothing."""
    parser, seen = h11.Connection(h11.SERVER), None
    parser.receive_data(data)
    parser.receive_data(b"")
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                seen = Seen(event)
            elif isinstance(event, h11.Data):
                seen.body += event.data
            else:
                return seen if isinstance(event, h11.EndOfMessage) else None
    except h11.RemoteProtocolError:
        return None


small = st.one_of(st.none(), st.text("xyz", max_size=30).map(str.encode), st.lists(st.text("xyz", min_size=1, max_size=20).map(str.encode), max_size=3))


@settings(max_examples=600, **BOUNDED)
@given(st.sampled_from([b"GET", b"POST"]), targets, st.lists(st.tuples(names, texts), max_size=3), small, mutations, st.sampled_from(["whole", "split"]))
async def test_mutated_requests_are_one_request_at_most(fuzzed, method, target, head, body, changes, mode):
    port, seen = fuzzed
    seen.clear()
    data = mutate(build(method, target, head, body, [(b"X-T", b"u")]), changes)
    response, rest = await exchange(port, data, data.partition(b" ")[0], mode)
    complete = [request for request in seen if request.complete]
    assert len(seen) <= 1, f"{data!r} became {[(r.method, r.target) for r in seen]}"
    assert b" 200 OK" not in rest
    if response is None or response.status != 200:
        return
    (got,) = complete
    assert response.complete
    assert response.body == (b"" if got.method == b"HEAD" else got.body)
    other = read_by_h11(data)
    if other:
        assert (got.method, got.body) == (other.method, other.body), f"taken otherwise than by h11: {data!r}"
        assert got.target == other.target or not other.target.startswith(b"/")
