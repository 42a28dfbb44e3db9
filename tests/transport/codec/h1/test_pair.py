"""H1Client's output into H1Server's input and back: what went in comes out, in whatever pieces."""

import hypothesis.strategies as st
from h1kit import ClientBench, ServerBench, request, response
from hypothesis import given, settings

NAMES = st.from_regex(rb"x-[a-z0-9!#$%&'*+.^_|~-]{1,10}", fullmatch=True)
VALUES = st.from_regex(rb"([!-~\x80-\xff]([\t -~\x80-\xff]{0,12}[!-~\x80-\xff])?)?", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
PIECES = st.lists(
    st.one_of(st.binary(min_size=1, max_size=20), st.integers(4_094, 4_098).map(lambda n: b"z" * n)), max_size=4
)
METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"M-SEARCH", b"get"])
PATHS = st.from_regex(rb"/[!-\"$-~]{0,20}", fullmatch=True)
STEPS = st.lists(st.one_of(st.integers(1, 9), st.integers(10, 6_000)), min_size=1, max_size=6)


@st.composite
def messages(draw):
    """One request with its response, as the two exchanges would send them."""
    return {
        "method": draw(METHODS),
        "path": draw(PATHS),
        "authority": draw(st.sampled_from([b"a", b"a.example:8080", b"[::1]:80", b""])),
        "fields": draw(FIELDS),
        "request": draw(PIECES),
        "request_has_length": draw(st.booleans()),
        "request_trailers": draw(FIELDS),
        "informational": draw(st.lists(st.sampled_from([100, 102, 103]), max_size=2)),
        "status": draw(st.sampled_from([200, 204, 299, 304, 404, 500])),
        "answer_fields": draw(FIELDS),
        "answer": draw(PIECES),
        "answer_has_length": draw(st.booleans()),
        "answer_trailers": draw(FIELDS),
    }


def cut_by(steps):
    def cut(data):
        pieces = []
        while data:
            size = steps[len(pieces) % len(steps)]
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    return cut


def send_body(codec, pieces, has_length, trailers):
    """Send what follows a head that did not end; return the trailers that can arrive."""
    for piece in pieces:
        codec.send_data(piece, False)
    if trailers:
        codec.send_trailers(trailers)
        return None if has_length else trailers
    codec.send_data(b"", True)
    return None


@settings(max_examples=150, deadline=None)
@given(exchanges=st.lists(messages(), min_size=1, max_size=3), steps=STEPS)
def test_what_goes_in_comes_out(exchanges, steps):
    client, server, cut = ClientBench(), ServerBench(), cut_by(steps)
    for message in exchanges:
        body, answer = b"".join(message["request"]), b"".join(message["answer"])
        # -- the request
        length = len(body) if message["request_has_length"] else None
        ends = not body and not message["request_trailers"] and length is None
        head = request(message["method"], message["path"], message["authority"], length, message["fields"])
        receiver = client.start(head, ends)
        trailers = None
        if not ends:
            trailers = send_body(client.codec, message["request"], length is not None, message["request_trailers"])
        client.flush()
        server.feed(client.taken(), cut)
        got = server.request
        assert (got.head.shape.method, got.head.shape.path) == (message["method"], message["path"])
        assert got.head.shape.authority == (message["authority"] or b"replica:80")
        assert got.head.shape.fields == message["fields"]
        assert (got.body, got.ended, got.error) == (body, True, None)
        assert (got.trailers or None) == trailers
        # -- the response
        for status in message["informational"]:
            server.codec.send_informational(response(status))
        length = len(answer) if message["answer_has_length"] else None
        server.codec.send_head(response(message["status"], length, message["answer_fields"]), False)
        trailers = send_body(server.codec, message["answer"], length is not None, message["answer_trailers"])
        server.pump()
        client.feed(server.taken(), cut)
        bodiless = message["method"] == b"HEAD" or message["status"] in (204, 304)
        assert receiver.informational == message["informational"]
        assert receiver.head.shape.status == message["status"]
        assert receiver.head.shape.fields == message["answer_fields"]
        assert (receiver.body, receiver.ended, receiver.error) == (b"" if bodiless else answer, True, None)
        assert (receiver.trailers or None) == (None if bodiless else trailers)
        assert client.codec.is_idle
        assert server.is_open
    assert len(server.requests) == len(exchanges)
    assert client.idle_calls == len(exchanges)


@settings(max_examples=60, deadline=None)
@given(up=PIECES, down=PIECES, steps=STEPS, client_first=st.booleans())
def test_a_tunnel(up, down, steps, client_first):
    client, server, cut = ClientBench(), ServerBench(), cut_by(steps)
    receiver = client.start(request(b"CONNECT", b"/ws", upgrade=b"websocket"), end=False)
    server.feed(client.taken(), cut)
    server.codec.send_head(response(tunnel=True), False)
    server.pump()
    client.feed(server.taken(), cut)
    assert receiver.head.shape.accepts_tunnel

    def client_sends():
        for piece in up:
            client.codec.send_data(piece, False)
        client.codec.send_data(b"", True)
        client.flush()
        server.feed(client.taken(), cut)
        server.eof()

    def server_sends():
        # A close frame at the end, so that the server adds none of its own.
        payload = b"".join(down)
        frame = b"\x82\x7f" + len(payload).to_bytes(8, "big") + payload
        server.codec.send_data(frame, False)
        server.codec.send_data(b"\x88\x00", False)
        server.codec.send_data(b"", True)
        server.flush()
        client.feed(server.taken(), cut)
        client.eof()
        assert receiver.body == frame + b"\x88\x00"

    for side in (client_sends, server_sends) if client_first else (server_sends, client_sends):
        side()
    assert (server.request.body, server.request.ended, receiver.ended) == (b"".join(up), True, True)
    assert not server.is_open
    assert not client.is_open


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 5), steps=STEPS, body=st.binary(max_size=50))
def test_pipelined_requests_are_answered_in_order(count, steps, body):
    """Several clients' worth of requests on one connection: the answers come one after another."""

    def echo(receiver, what):
        if receiver.ended and what in ("head", "end"):
            receiver.bench.codec.send_head(response(200, len(receiver.body)), False)
            receiver.bench.codec.send_data(receiver.body, True)

    server = ServerBench(echo)
    wire = b""
    for i in range(count):
        client = ClientBench()
        client.start(request(b"POST"), end=False)
        client.codec.send_data(b"%d" % i + body, True)
        client.flush()
        wire += client.taken()
    server.feed(wire, cut_by(steps))
    rest = server.taken()
    for i in range(count):
        wanted = b"%d" % i + body
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(wanted)
        assert rest.startswith(head + wanted)
        rest = rest[len(head) + len(wanted) :]
    assert rest == b""
