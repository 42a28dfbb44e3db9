"""A replica that misbehaves on HTTP/2, behind clients of either version (RFC 9113 §3.4–§8; RFC 9110 §9.2.2).

Whatever it does, the client gets a whole answer, an error of the router's own, or an end that shows as one (a reset,
a connection closed before the message is whole); a request that it may have begun is never sent twice; and the next
request is served.
"""

from __future__ import annotations

import asyncio
import struct

import h2kit
import pytest
import pytest_asyncio
import wirekit
from h2kit import (
    ACK,
    CALM,
    CANCEL,
    COMPRESSION,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW,
    HEADERS,
    HTTP11,
    INADEQUATE,
    INITIAL_WINDOW,
    INTERNAL,
    MAX_FRAME,
    MAX_STREAMS,
    MOST,
    NO_ERROR,
    PING,
    PROTOCOL,
    PUSH_PROMISE,
    REFUSED,
    SETTINGS,
    answer,
    block,
    data,
    echo,
    frame,
    goaway,
    head,
    headers,
    literal,
    ping,
    rst,
    settings,
    window,
)
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

OK = (b":status", b"200")
GATEWAY = {502}
KINDS = ["h1", "h2"]


class Answer:
    """What a client of either version got."""

    def __init__(self, status, body, whole, get, trailers, interim):
        self.status, self.body, self.whole, self.get, self.trailers, self.interim = status, bytes(body), whole, get, trailers, interim


class Asker:
    """Requests from a client of one kind, each on a connection of its own unless it is kept."""

    def __init__(self, kind, port):
        self.kind, self.port, self.clients = kind, port, []

    async def connect(self):
        self.clients.append(await (wirekit.Client if self.kind == "h1" else h2kit.H2Client).connect(self.port))
        return self.clients[-1]

    async def __call__(self, path=b"/t", body=b"", *fields, method=None, client=None):
        client = client or await self.connect()
        method = method or (b"POST" if body else b"GET")
        if self.kind == "h2":
            stream = await client.open(head(method, path, *fields), end=not body)
            if body:
                await stream.send(body, end=True)
            await stream.done()
            return self.of(stream)
        lines = b"".join(b"%s: %s\r\n" % pair for pair in fields)
        length = b"content-length: %d\r\n" % len(body) if body else b""
        await client.send(b"%s %s HTTP/1.1\r\nhost: h\r\n%s%s\r\n%s" % (method, path, length, lines, body))
        response = await client.response(method)
        if response is None:
            return Answer(None, b"", False, lambda name: None, [], [])
        interim = [found.status for found in response.interim]
        return Answer(response.status, response.body, response.complete, response.get, response.trailers, interim)

    def of(self, stream):
        interim = [int(dict(fields)[b":status"]) for fields in stream.interim]
        return Answer(stream.status or None, stream.body, stream.ended, stream.get, stream.trailers, interim)

    def close(self):
        violations = [client.violation for client in self.clients if getattr(client, "violation", None)]
        for client in self.clients:
            client.close()
        assert not violations, violations


@pytest_asyncio.fixture(params=KINDS, loop_scope="session")
async def ask(request, h2_router):
    asker = Asker(request.param, h2_router.port)
    yield asker
    asker.close()


async def goes_on(ask, h2_replica):
    """The next request is served, on whatever connection."""
    h2_replica.script = echo
    got = await ask(b"/barrier")
    assert (got.status, got.body, got.whole) == (200, b"/barrier", True), (got.status, got.body)


def own_error(got, statuses=GATEWAY, reached=(b"yes", b"maybe")):
    assert got.status in statuses, (got.status, got.body)
    assert got.whole
    assert got.get(b"x-router-error")
    assert got.get(b"x-router-upstream-reached") in reached, got.get(b"x-router-upstream-reached")


def resp(*fields, end=True):
    return lambda number: headers(number, [*fields], end=end)


def then(*fields, tail):
    return lambda number: headers(number, [*fields], end=False) + tail(number)


# --- heads that must not be passed on: 502, once ------------------------------------------------------------------

BAD_HEADS = {
    # §8.3.2, §8.1.1.
    "no-status": resp((b"x", b"y")),
    "empty": resp(),
    "status-twice": resp(OK, OK),
    "status-twice-different": resp(OK, (b":status", b"204")),
    **{f"status-{v!r}": resp((b":status", v)) for v in [b"", b"20", b"2000", b"abc", b"+20", b" 200", b"200 ", b"2 0", b"200 OK", b"099", b"000", b"\xb2\xb9\xb2", b"20\0"]},
    "status-101": resp((b":status", b"101")),
    "status-101-open": resp((b":status", b"101"), end=False),
    "status-behind": resp((b"x", b"y"), OK),
    "path": resp(OK, (b":path", b"/")),
    "method": resp(OK, (b":method", b"GET")),
    "unknown-pseudo": resp(OK, (b":x", b"y")),
    **{f"name-{n!r}": resp(OK, (n, b"v")) for n in [b"", b"X", b"x y", b"x:", b"x\r\ny", b"x\0", b"\xc3\xa9", b"Set-Cookie"]},
    **{f"value-{v!r}": resp(OK, (b"x", v)) for v in [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\r\n\r\n<html>", b" v", b"v\t"]},
    **{
        f"field-{n.decode()}": resp(OK, (n, v))
        for n, v in [(b"connection", b"close"), (b"keep-alive", b"x"), (b"proxy-connection", b"x"), (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c")]
    },
    **{f"length-{v!r}": resp(OK, (b"content-length", v), end=False) for v in [b"", b"x", b"-1", b"+1", b"1,2", b"1 1", b"%d" % 10**40]},
    "length-twice": resp(OK, (b"content-length", b"1"), (b"content-length", b"2"), end=False),
    "length-and-end": resp(OK, (b"content-length", b"5")),
    "interim-end": resp((b":status", b"103")),
    "interim-then-data": lambda n: headers(n, [(b":status", b"103")], end=False) + data(n, b"x", end=True),
    "interim-then-end": lambda n: headers(n, [(b":status", b"103")], end=False) + data(n, b"", end=True),
    "interim-flood": lambda n: headers(n, [(b":status", b"103")], end=False) * 2000,
    "data-first": lambda n: data(n, b"x", end=True),
    "data-first-empty": lambda n: data(n, b"", end=True),
    "too-large": lambda n: h2kit.headers_split(n, block([OK, *((b"x-%d" % i, b"v" * 4000) for i in range(50))])),
    "too-many": resp(OK, *((b"x-%d" % i, b"v") for i in range(1500))),
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_a_malformed_head_is_502(name, ask, h2_replica):
    h2_replica.script = answer(BAD_HEADS[name])
    got = await ask(b"/bad", b"hello")
    own_error(got)
    assert len(h2_replica.seen) == 1, "sent twice"
    (stream,) = h2_replica.seen
    await stream.link.wait(lambda: stream.reset is not None or stream.link.goaways, 5)
    assert stream.link.ended or stream.reset is not None or stream.link.goaways, "the replica is told"
    await goes_on(ask, h2_replica)


# --- errors of the connection: 502 for what was on it, and the code in GOAWAY ------------------------------------

CONNECTION = {
    "push": (lambda n: frame(PUSH_PROMISE, END_HEADERS, n, struct.pack(">I", 2) + block(head())), {PROTOCOL}),
    "idle-data": (lambda n: data(n + 2, b"x"), {PROTOCOL}),
    "idle-headers": (lambda n: headers(n + 2, [OK]), {PROTOCOL}),
    "idle-rst": (lambda n: rst(n + 2), {PROTOCOL}),
    "idle-window": (lambda n: window(n + 2, 1), {PROTOCOL}),
    "even-headers": (lambda n: headers(2, [OK]), {PROTOCOL}),
    "even-data": (lambda n: data(2, b"x"), {PROTOCOL}),
    "data-zero": (lambda n: data(0, b"x"), {PROTOCOL}),
    "headers-zero": (lambda n: headers(0, [OK]), {PROTOCOL}),
    "continuation": (lambda n: frame(CONTINUATION, END_HEADERS, n, block([OK])), {PROTOCOL}),
    "block-cut": (lambda n: frame(HEADERS, END_STREAM, n, block([OK])) + ping(), {PROTOCOL}),
    "hpack": (lambda n: headers(n, b"\x80"), {COMPRESSION}),
    "hpack-cut": (lambda n: headers(n, b"\x88\x40"), {COMPRESSION}),
    "hpack-update": (lambda n: headers(n, h2kit.integer(1 << 30, 5, 0x20) + b"\x88"), {COMPRESSION}),
    "frame-size": (lambda n: headers(n, [OK], end=False) + frame(DATA, 0, n, bytes(16_385)), {6}),
    "frame-size-unknown": (lambda n: frame(0x77, 0, 0, bytes(20_000)), {6}),
    "ping-size": (lambda n: frame(PING, 0, 0, b"x"), {6}),
    "settings-size": (lambda n: frame(SETTINGS, 0, 0, b"x"), {6}),
    "settings-push": (lambda n: settings({ENABLE_PUSH: 1}), {PROTOCOL}),
    "settings-push-2": (lambda n: settings({ENABLE_PUSH: 2}), {PROTOCOL}),
    "settings-window": (lambda n: settings({INITIAL_WINDOW: 1 << 31}), {FLOW}),
    "settings-frame": (lambda n: settings({MAX_FRAME: 5}), {PROTOCOL}),
    "settings-connect": (lambda n: settings({8: 2}), {PROTOCOL}),
    "settings-stream": (lambda n: frame(SETTINGS, 0, n), {PROTOCOL}),
    "window-by-0": (lambda n: window(0, 0), {PROTOCOL}),
    "window-overflow": (lambda n: window(0, MOST), {FLOW}),
    "goaway-stream": (lambda n: frame(7, 0, n, bytes(8)), {PROTOCOL}),
    "goaway-size": (lambda n: frame(7, 0, 0, bytes(4)), {6}),
    "http1": (lambda n: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", {PROTOCOL, 6}),
}


@pytest.mark.parametrize("name", CONNECTION)
async def test_an_error_of_the_connection_is_502(name, ask, h2_replica):
    payload, codes = CONNECTION[name]
    h2_replica.script = answer(payload)
    got = await ask(b"/bad", b"hello")
    if got.status == 200:  # frame-size: the head was good
        assert not got.whole
    else:
        own_error(got)
    assert len(h2_replica.seen) == 1, "sent twice"
    link = h2_replica.seen[0].link
    link.raw_settings = True
    await link.ending()
    assert not link.violation
    assert [code for _, code, _ in link.goaways][-1:] == [*codes & {code for _, code, _ in link.goaways}], link.goaways
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("name", ["window-by-0", "window-overflow"])
async def test_a_stream_error_of_the_replica_is_502(name, ask, h2_replica):
    h2_replica.script = answer({"window-by-0": lambda n: window(n, 0), "window-overflow": lambda n: window(n, MOST)}[name])
    own_error(await ask(b"/bad", b"hello"))
    assert len(h2_replica.seen) == 1
    await goes_on(ask, h2_replica)


# --- bodies that end wrongly: the client sees that they are not whole -------------------------------------------

CUTS = {
    "length-short": then(OK, (b"content-length", b"9"), tail=lambda n: data(n, b"hello", end=True)),
    "length-long": then(OK, (b"content-length", b"4"), tail=lambda n: data(n, b"hello", end=True)),
    "length-long-open": then(OK, (b"content-length", b"4"), tail=lambda n: data(n, b"hello")),
    "length-short-trailers": then(OK, (b"content-length", b"9"), tail=lambda n: data(n, b"hello") + headers(n, [(b"x", b"y")])),
    "trailers-pseudo": then(OK, tail=lambda n: data(n, b"hello") + headers(n, [OK])),
    "trailers-no-end": then(OK, tail=lambda n: data(n, b"hello") + headers(n, [(b"x", b"y")], end=False)),
    "trailers-name": then(OK, tail=lambda n: data(n, b"hello") + headers(n, [(b"X", b"y")])),
    "trailers-value": then(OK, tail=lambda n: data(n, b"hello") + headers(n, [(b"x", b"a\r\nb: c")])),
    "trailers-connection": then(OK, tail=lambda n: data(n, b"hello") + headers(n, [(b"connection", b"x")])),
    "second-head": then(OK, tail=lambda n: headers(n, [OK, (b"x", b"y")])),
    "interim-behind": then(OK, tail=lambda n: headers(n, [(b":status", b"103")], end=False)),
    **{
        f"rst-{code}": then(OK, tail=lambda n, code=code: data(n, b"hello") + rst(n, code))
        for code in [NO_ERROR, PROTOCOL, INTERNAL, REFUSED, CANCEL, CALM, INADEQUATE, HTTP11, 0xFFFFFFFF]
    },
    "hpack": then(OK, tail=lambda n: data(n, b"hello") + headers(n, b"\x80")),
    "goaway-below": then(OK, tail=lambda n: data(n, b"hello") + goaway(0)),
}


@pytest.mark.parametrize("name", CUTS)
async def test_a_body_that_is_cut_shows(name, ask, h2_replica):
    h2_replica.script = answer(CUTS[name])
    got = await ask(b"/bad", b"hello")
    if got.status == 502:
        own_error(got)
    else:
        assert got.status == 200
        assert not got.whole, f"a cut body looks whole: {got.body}"
    assert len(h2_replica.seen) == 1, "sent twice"
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("tail", [b"", data(1, b"hello")[:5], data(1, b"hello")[:12], data(1, b"hello")], ids=["head", "in-frame-head", "in-frame", "data"])
async def test_a_connection_that_ends_in_a_body(tail, end, ask, h2_replica):
    def payload(number):
        return headers(number, [OK], end=False) + (tail[:8] + bytes([number]) + tail[9:] if len(tail) > 8 else tail)

    h2_replica.script = answer(payload, end)
    got = await ask(b"/bad", b"hello")
    assert got.status in {200, 502}
    assert not got.whole or got.status == 502
    assert len(h2_replica.seen) == 1
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("before", [b"", b"\0\0\5", headers(1, [OK])[:12]], ids=["nothing", "in-frame-head", "in-frame"])
async def test_a_connection_that_ends_before_the_head(before, end, ask, h2_replica):
    h2_replica.script = answer(before, end)
    own_error(await ask(b"/bad", b"hello"))
    assert len(h2_replica.seen) == 1, "sent twice"
    await goes_on(ask, h2_replica)


# --- what may be repeated ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [NO_ERROR, PROTOCOL, INTERNAL, FLOW, 4, 5, 6, CANCEL, COMPRESSION, 10, CALM, INADEQUATE, HTTP11, 0xFFFF])
async def test_a_reset_before_the_head_is_502_once(code, ask, h2_replica):
    # §5.4.2, §7: only REFUSED_STREAM says that nothing was done.
    h2_replica.script = answer(lambda n: rst(n, code))
    own_error(await ask(b"/bad", b"hello"))
    assert len(h2_replica.seen) == 1, "sent twice"
    await goes_on(ask, h2_replica)


def once(first):
    """Script: this for the first request, the echo for every other."""
    done = []

    async def script(stream):
        if done:
            await echo(stream)
        else:
            done.append(stream)
            await first(stream)

    return script


@pytest.mark.parametrize("body", [b"", b"hello"], ids=["get", "post"])
async def test_refused_stream_may_be_repeated(body, ask, h2_replica):
    # §8.7: not processed; it goes again, or the client is told that nothing was reached.
    h2_replica.script = once(answer(lambda n: rst(n, REFUSED)))
    got = await ask(b"/again", body)
    if got.status == 200:
        assert got.body == b"/again"
        assert len(h2_replica.seen) == 2
        assert bytes(h2_replica.seen[1].body) == body
    else:
        own_error(got, {502, 503}, (b"no",))
        assert len(h2_replica.seen) == 1


async def test_refused_for_ever_ends(ask, h2_replica):
    h2_replica.script = answer(lambda n: rst(n, REFUSED))
    own_error(await ask(b"/again", b"hello"), {502, 503}, (b"no",))
    assert len(h2_replica.seen) <= 8, "a storm of retries"
    await goes_on(ask, h2_replica)


async def test_refused_behind_a_1xx_is_not_repeated_unseen(ask, h2_replica):
    h2_replica.script = once(answer(lambda n: headers(n, [(b":status", b"103"), (b"link", b"x")], end=False) + rst(n, REFUSED)))
    got = await ask(b"/again", b"hello")
    assert got.status in {200, 502, 503}
    assert len(h2_replica.seen) <= 2
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("body", [b"", b"hello"], ids=["get", "post"])
@pytest.mark.parametrize("end", ["", "fin", "rst"])
async def test_goaway_below_the_stream_may_be_repeated(end, body, ask, h2_replica):
    # §6.8: streams above the last were not and will not be processed.
    h2_replica.script = once(answer(goaway(0), end))
    got = await ask(b"/again", body)
    if got.status == 200:
        assert got.body == b"/again"
        assert len(h2_replica.seen) == 2
        assert h2_replica.seen[0].link is not h2_replica.seen[1].link, "§6.8: no new stream on that connection"
        assert bytes(h2_replica.seen[1].body) == body
    else:
        own_error(got, {502, 503}, (b"no",))
        assert len(h2_replica.seen) == 1


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("last", ["own", "max"])
async def test_goaway_at_or_above_the_stream_and_an_end_is_502_once(last, end, ask, h2_replica):
    h2_replica.script = answer(lambda n: goaway(n if last == "own" else MOST), end)
    own_error(await ask(b"/bad", b"hello"))
    assert len(h2_replica.seen) == 1, "sent twice"
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("code", [NO_ERROR, INTERNAL, CALM])
@pytest.mark.parametrize("steps", [["max", "own"], ["own"], ["max"], ["max", "max", "own", "own"]], ids="-".join)
async def test_goaway_lets_what_is_below_finish(steps, code, ask, h2_replica):
    # §6.8: the answer comes whole, and the next request goes on another connection.
    async def script(stream):
        await stream.done(None)
        await stream.send_head([OK])
        await stream.send(b"first ")
        for step in steps:
            await stream.link.send(goaway(stream.id if step == "own" else MOST, code, b"debug \r\n\0"))
        await stream.send(b"second", end=True)

    h2_replica.script = once(script)
    client = await ask.connect()
    got = await ask(b"/first", client=client)
    assert (got.status, got.body, got.whole) == (200, b"first second", True)
    got = await ask(b"/second", client=client)
    assert (got.status, got.body) == (200, b"/second")
    first, second = h2_replica.seen
    assert first.link is not second.link, "§6.8: no new stream on that connection"
    await first.link.ending()  # and it is closed when nothing is on it


async def test_goaway_that_grows(ask, h2_replica):
    # §6.8: a last stream that increases is a violation; at any rate no request is sent twice where it may have been done.
    h2_replica.script = once(answer(lambda n: goaway(0) + goaway(n) + headers(n, [OK]), "fin"))
    got = await ask(b"/again", b"hello")
    assert got.status in {200, 502, 503}
    assert len(h2_replica.seen) <= 2
    await goes_on(ask, h2_replica)


async def test_goaway_on_an_idle_connection(ask, h2_replica):
    client = await ask.connect()
    for i in range(3):
        assert (await ask(b"/%d" % i, b"hello", client=client)).status == 200
        link = h2_replica.seen[-1].link
        await link.send(goaway(h2_replica.seen[-1].id))
        await link.ending()
    assert len(h2_replica.seen) == 3
    assert len({stream.link for stream in h2_replica.seen}) == 3


async def test_goaway_crosses_requests(ask, h2_replica):
    # The race of §6.8, many times: each request comes exactly once to its answer.
    async def script(stream):
        link = stream.link
        if link.sent_goaway is None and len(h2_replica.seen) % 3 == 0:
            link.sent_goaway = stream.id
            link.post(goaway(stream.id))
        if link.sent_goaway is None or stream.id <= link.sent_goaway:
            await stream.done(None)
            await stream.answer(bytes(stream.body))

    h2_replica.script = script
    clients = [await ask.connect() for _ in range(4)]

    async def go_on(client, k):
        for i in range(15):
            body = b"%d-%d" % (k, i)
            while (got := await ask(b"/t", body, client=client)).status != 200:
                own_error(got, {502, 503}, (b"no",))  # the client may repeat it, and does
            assert got.body == body

    await asyncio.gather(*(go_on(client, k) for k, client in enumerate(clients)))
    done = [bytes(stream.body) for stream in h2_replica.seen if stream.ended and stream.own_end]
    assert len(done) == len(set(done)), "done twice"


@pytest.mark.parametrize("how", ["refused", "goaway"])
async def test_what_was_not_processed_moves_to_another_replica(how, h2_replica, start_router):
    other = h2kit.H2Replica()
    router = start_router([f"h2c://127.0.0.1:{h2_replica.port}", f"h2c://127.0.0.1:{other.port}"])
    ask = Asker("h2", router.port)
    h2_replica.script = answer((lambda n: rst(n, REFUSED)) if how == "refused" else goaway(0))
    try:
        for i in range(6):
            got = await ask(b"/%d" % i, b"hello")
            assert (got.status, got.body) == (200, b"/%d" % i)
        assert [bytes(stream.body) for stream in other.seen] == [b"hello"] * 6
        assert not other.violations
    finally:
        ask.close()
        other.stop()
    router.check()


# --- limits of the replica ----------------------------------------------------------------------------------------


async def test_max_concurrent_streams_of_one(ask, h2_replica):
    # §5.1.2: the kit counts; more connections, or 503, but never more streams.
    h2_replica.settings = {MAX_STREAMS: 1}
    assert (await ask(b"/warm")).status == 200
    answers = await asyncio.gather(*(ask(b"/%d" % i, b"hello") for i in range(8)))
    for i, got in enumerate(answers):
        if got.status != 200:
            own_error(got, {503}, (b"no",))
        else:
            assert got.body == b"/%d" % i
    assert sum(got.status == 200 for got in answers)
    assert not h2_replica.violations


async def test_max_concurrent_streams_lowered(ask, h2_replica):
    gate = asyncio.Event()

    async def script(stream):
        await gate.wait()
        await echo(stream)

    assert (await ask(b"/warm")).status == 200
    h2_replica.script = script
    before = [asyncio.ensure_future(ask(b"/%d" % i)) for i in range(5)]
    await until(lambda: len(h2_replica.seen) == 6, "five in flight")
    for link in h2_replica.live:
        link.post_settings({MAX_STREAMS: 2})
        await link.wait(lambda link=link: not link.unacked)
    more = [asyncio.ensure_future(ask(b"/%d" % i)) for i in range(5, 10)]
    h2_replica.settings = {MAX_STREAMS: 2}
    gate.set()
    for i, task in enumerate([*before, *more]):
        got = await task
        if i < 5 or got.status == 200:
            assert (got.status, got.body) == (200, b"/%d" % i)
        else:
            own_error(got, {503}, (b"no",))
    assert not h2_replica.violations


async def test_max_concurrent_streams_of_zero(ask, h2_replica):
    h2_replica.settings = {MAX_STREAMS: 0}

    async def refuse(stream):
        await stream.cancel(REFUSED)  # what was sent before the SETTINGS came

    h2_replica.script = refuse
    got = await ask(b"/t", b"hello")
    own_error(got, {502, 503}, (b"no",))
    assert len(h2_replica.seen) <= 4
    assert len(h2_replica.connections) <= 8, "a storm of connections"
    for link in h2_replica.live:
        link.post_settings({MAX_STREAMS: 10})
        await link.wait(lambda link=link: not link.unacked)
    h2_replica.settings = {MAX_STREAMS: 10}
    await goes_on(ask, h2_replica)


async def test_header_table_size_of_the_replica(ask, h2_replica):
    # RFC 7541 §4.2: the kit's decoder insists on what it allows.
    for size in (0, 10, 100_000):
        await h2_replica.reset()
        h2_replica.settings = {h2kit.TABLE_SIZE: size}
        for i in range(4):
            got = await ask(b"/%d" % i, b"", (b"x-own", b"v" * 100))
            assert (got.status, got.body) == (200, b"/%d" % i)
    assert not h2_replica.violations


async def test_max_header_list_size_of_the_replica(ask, h2_replica):
    # §6.5.2: advisory; the router may refuse (431), or send; the kit fails a section beyond it.
    h2_replica.settings = {h2kit.MAX_LIST: 2000}
    assert (await ask(b"/warm")).status == 200
    got = await ask(b"/t", b"", (b"x-own", b"v" * 4000))
    if got.status != 200:
        assert got.status in {431, 502, 503}
        assert got.get(b"x-router-error")
    for link in h2_replica.connections:
        link.violation = None if link.violation and "6.5.2" in link.violation else link.violation
    await goes_on(ask, h2_replica)


async def test_max_frame_size_of_the_replica(ask, h2_replica):
    h2_replica.settings = {MAX_FRAME: 20_000, INITIAL_WINDOW: 1 << 20}
    for _ in range(2):
        got = await ask(b"/t", b"x" * 100_000)
        assert got.status == 200
    assert [len(stream.body) for stream in h2_replica.seen] == [100_000] * 2


# --- openings -----------------------------------------------------------------------------------------------------


async def test_settings_of_ours_never_acknowledged(ask, h2_replica):
    # §6.5.3: SETTINGS_TIMEOUT is a choice; requests are served meanwhile.
    def opening(link):
        link.acks_settings = False
        link.post_settings({})

    h2_replica.opening = opening
    for i in range(3):
        got = await ask(b"/%d" % i)
        assert (got.status, got.body) == (200, b"/%d" % i)


OPENINGS = {
    "ping-first": ping() + settings(),
    "ack-first": settings(flags=ACK) + settings(),
    "window-first": window(0, 5) + settings(),
    "headers-first": headers(1, [OK]),
    "http1": b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9\r\n",
    "tls-alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "settings-bad": settings({MAX_FRAME: 1}),
    "settings-window": settings({INITIAL_WINDOW: 1 << 31}),
    "settings-push": settings({ENABLE_PUSH: 1}),
    "goaway-at-once": settings() + goaway(0, CALM),
    "goaway-without-settings": goaway(0, INADEQUATE),
}


@pytest.mark.parametrize("end", ["", "fin"])
@pytest.mark.parametrize("name", OPENINGS)
async def test_an_opening_that_is_none(name, end, ask, h2_replica):
    def opening(link):
        link.acks_settings = False
        link.raw_settings = True
        link.post(OPENINGS[name])
        if end:
            link.finish()

    h2_replica.opening = opening

    async def silent(stream):
        pass

    h2_replica.script = silent
    asking = asyncio.ensure_future(ask(b"/bad", b"hello"))
    own_error(await asking, {502, 503}, (b"no", b"yes", b"maybe"))
    assert len(h2_replica.connections) <= 12, "a storm of connections"
    await h2_replica.reset()
    await goes_on(ask, h2_replica)


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_replica_that_accepts_and_ends(end, ask, h2_replica):
    def opening(link):
        if end == "rst":
            link.abort()
        else:
            link.finish()

    h2_replica.opening = opening
    own_error(await ask(b"/bad", b"hello"), {502, 503}, (b"no", b"yes", b"maybe"))
    assert len(h2_replica.connections) <= 12, "a storm of connections"
    await h2_replica.reset()
    await goes_on(ask, h2_replica)


async def test_a_replica_that_never_sends_settings(h2_router, h2_replica):
    # §3.4: the client may send before they come, so the request waits; it is dropped when its client leaves.
    h2_replica.opening = lambda link: None

    async def silent(stream):
        pass

    h2_replica.script = silent
    ask = Asker("h1", h2_router.port)
    client = await ask.connect()
    await client.send(b"GET /t HTTP/1.1\r\nhost: h\r\n\r\n")
    await until(lambda: h2_replica.connections, "a connection")
    link = h2_replica.connections[0]
    await until(lambda: link.started or client.unread, "something came of it")
    client.abort()
    await h2_replica.reset()
    await goes_on(ask, h2_replica)
    ask.close()


# --- answers as they should be --------------------------------------------------------------------------------------


async def test_informational_answers_are_passed_on(ask, h2_replica):
    h2_replica.script = answer(
        lambda n: headers(n, [(b":status", b"103"), (b"link", b"</x>; rel=preload")], end=False) * 2 + headers(n, [OK, (b"x-own", b"v")], end=False) + data(n, b"ok", end=True)
    )
    got = await ask(b"/t")
    assert (got.status, got.body, got.get(b"x-own")) == (200, b"ok", b"v")
    assert got.interim == [103, 103]


async def test_a_length_is_passed_on(ask, h2_replica):
    h2_replica.script = answer(lambda n: headers(n, [OK, (b"content-length", b"2")], end=False) + data(n, b"ok", end=True))
    got = await ask(b"/t")
    assert got.get(b"content-length") == b"2"


@pytest.mark.parametrize("status", [204, 205, 304, 200, 404, 599])
@pytest.mark.parametrize("how", ["end", "empty-data"])
async def test_answers_without_a_body(how, status, ask, h2_replica):
    def payload(number):
        fields = [(b":status", b"%d" % status), (b"x-own", b"v")]
        return headers(number, fields) if how == "end" else headers(number, fields, end=False) + data(number, b"", end=True)

    h2_replica.script = answer(payload)
    client = await ask.connect()
    got = await ask(b"/t", client=client)
    assert (got.status, got.body, got.whole) == (status, b"", True)
    h2_replica.script = echo
    assert (await ask(b"/next", client=client)).body == b"/next"


async def test_head_and_its_length(ask, h2_replica):
    # RFC 9110 §9.3.2; RFC 9113 §8.1.1: a length with END_STREAM is right here.
    h2_replica.script = answer(lambda n: headers(n, [OK, (b"content-length", b"500")]))
    client = await ask.connect()
    got = await ask(b"/t", method=b"HEAD", client=client)
    assert (got.status, got.get(b"content-length"), got.whole) == (200, b"500", True)
    h2_replica.script = echo
    assert (await ask(b"/next", client=client)).body == b"/next"


async def test_a_304_with_a_length(ask, h2_replica):
    h2_replica.script = answer(lambda n: headers(n, [(b":status", b"304"), (b"content-length", b"500")]))
    got = await ask(b"/t")
    assert (got.status, got.whole) == (304, True)
    await goes_on(ask, h2_replica)


async def test_data_behind_a_head_answer(ask, h2_replica):
    # RFC 9110 §9.3.2: HEAD has no content; what is sent in spite of it never reaches the client as one.
    h2_replica.script = answer(lambda n: headers(n, [OK], end=False) + data(n, b"HTTP/1.1 200 OK\r\n\r\n", end=True))
    client = await ask.connect()
    got = await ask(b"/t", method=b"HEAD", client=client)
    assert got.body == b""
    assert got.status in {200, 502}
    await goes_on(ask, h2_replica)
    if ask.kind == "h1" and not client.ended:
        assert not client.unread


async def test_trailers_are_passed_on(ask, h2_replica):
    h2_replica.script = answer(lambda n: headers(n, [OK], end=False) + data(n, b"ok") + headers(n, [(b"x-t", b"u"), (b"x-t", b"v")]))
    got = await ask(b"/t", b"", (b"te", b"trailers"), *(() if ask.kind == "h2" else ((b"connection", b"te"),)))
    assert (got.status, got.body, got.whole) == (200, b"ok", True)
    if got.trailers:
        assert [pair for pair in got.trailers if pair[0].lower() == b"x-t"] == [(b"x-t", b"u"), (b"x-t", b"v")]
    assert got.trailers or ask.kind == "h1"


@pytest.mark.parametrize("tail", ["", "no-error", "cancel"])
async def test_an_early_answer_while_the_upload_flows(tail, ask, h2_replica):
    # §8.1: a whole answer before the request's end, RST_STREAM NO_ERROR behind it asks for the upload to stop.
    async def script(stream):
        await stream.has(1000)
        await stream.answer(b"enough", status=b"413")
        if tail:
            await stream.cancel(NO_ERROR if tail == "no-error" else CANCEL)

    h2_replica.script = script
    client = await ask.connect()
    if ask.kind == "h2":
        stream = await client.open(head(b"POST"), end=False)
        await stream.send(b"x" * 2000)
        await stream.done()
        got = ask.of(stream)
    else:
        await client.send(b"POST /t HTTP/1.1\r\nhost: h\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 2000)
        response = await client.response()
        got = Answer(response.status, response.body, response.complete, response.get, [], [])
    assert (got.status, got.body, got.whole) == (413, b"enough", True)
    assert len(h2_replica.seen) == 1
    await goes_on(ask, h2_replica)


async def test_a_client_that_leaves_cancels_its_stream_alone(ask, h2_replica):
    # §5.4.2, §7: RST_STREAM, and the other stream of that connection goes on.
    started = []

    async def script(stream):
        await stream.send_head([OK])
        await stream.send(b"x")
        started.append(stream)

    h2_replica.script = script
    leaving, staying = await ask.connect(), await ask.connect()
    tasks = [asyncio.ensure_future(ask(b"/%d" % i, client=client)) for i, client in enumerate((leaving, staying))]
    await until(lambda: len(started) == 2, "both answers began")
    first, second = sorted(started, key=lambda stream: stream.path)
    leaving.abort()
    tasks[0].cancel()
    assert await first.was_reset() in {CANCEL, NO_ERROR}
    await second.send(b"y", end=True)
    got = await tasks[1]
    assert (got.status, got.body, got.whole) == (200, b"xy", True)
    assert second.reset is None


# --- floods of the replica: it loses its connection at most; others are served ---------------------------------------

FLOODS = {
    "settings": settings({INITIAL_WINDOW: 65_535}) * 20_000,
    "settings-empty": settings() * 20_000,
    "ping": ping() * 20_000,
    "priority": frame(2, 0, 1, b"\0\0\0\0\1") * 20_000,
    "window": window(0, 1) * 20_000,
    "unknown": frame(0x77, 0, 0, b"x") * 50_000,
    "continuation": frame(HEADERS, END_STREAM, 1, block([OK])) + frame(CONTINUATION, 0, 1, b"") * 50_000,
    "continuation-large": frame(HEADERS, END_STREAM, 1, block([OK])) + frame(CONTINUATION, 0, 1, literal(b"x", b"v" * 16_000)) * 300,
    "empty-data": headers(1, [OK], end=False) + data(1) * 50_000,
    "empty-padded-data": headers(1, [OK], end=False) + data(1, b"", pad=200) * 20_000,
    "hpack-bomb": headers(1, literal(b":status", b"200") + literal(b"x", b"v" * 4000, 0x40) + b"\xbe" * 12_000),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_of_a_replica_are_bounded(name, h2_router, h2_replica):
    def flood(link):
        link.acks_pings = link.acks_settings = False
        link.raw_settings = True

        async def serve(stream):
            link.post(FLOODS[name])

        link.flood = serve

    ask = Asker("h2", h2_router.port)
    assert (await ask(b"/warm")).status == 200
    memory = h2_router.memory_bytes()

    async def script(stream):
        flood(stream.link)
        await stream.link.flood(stream)

    # On a connection of its own, so that stream 1 is the one asked on.
    await h2_replica.reset()
    h2_replica.script = script
    client = await ask.connect()
    stream = await client.open(head(b"GET", b"/flood"))
    await until(lambda: h2_replica.seen, "it began")
    for i in range(5):
        # Those may share the connection that is flooded, and fail with it; one of another connection is served.
        h2_replica.script = echo
        got = await ask(b"/%d" % i)
        assert got.status in {200, 502}
    await stream.cancel()
    await client.roundtrip()
    assert h2_router.memory_bytes() - memory < 32 << 20
    await h2_replica.reset()
    await goes_on(ask, h2_replica)
    ask.close()
