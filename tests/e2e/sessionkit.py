"""Sticky sessions as a client knows them: start, use in each protocol, terminate, and what an operator sees of them.

Whatever is refused is judged here, alike for all: the status or gRPC code that belongs to the `x-router-error`, a JSON
body of ours, `retry-after` where there is something to wait for. The names are the specification's, nothing is imported
of the router.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

PROTOCOLS = ("http1", "http2", "grpc", "websocket", "websocket_h2")
OF_HTTP = ("http1", "http2")
SERVER = {"websocket_h2": "websocket"}
"""Which of the fleet's servers a protocol needs, where it is not named alike."""
WAYS = ("modal", "header", "cookie", "query")
IN_ORDER = ("modal", "header", "query", "cookie")
"""Which counts where there are several: a link wins over what a browser kept."""
COOKIE = "__Host-router-session"
START, TERMINATE = "/_router/sessions/start", "/_router/sessions/terminate"
PATHS = {"http1": "/_sim/echo", "http2": "/_sim/echo", "grpc": "/kit.Kit/Unary", "websocket": "/echo", "websocket_h2": "/echo"}
WITHIN_S = 20.0
Fields = list[tuple[str, str]]
Code = grpc.StatusCode

ERRORS = {
    "session_required": (401, Code.UNAUTHENTICATED),
    "session_invalid": (401, Code.UNAUTHENTICATED),
    "unauthenticated": (401, Code.UNAUTHENTICATED),
    "forbidden": (403, Code.PERMISSION_DENIED),
    "session_gone": (410, Code.FAILED_PRECONDITION),
    "no_replica": (503, Code.UNAVAILABLE),
    "at_capacity": (503, Code.RESOURCE_EXHAUSTED),
    "session_unavailable": (503, Code.UNAVAILABLE),
    "connect_failed": (503, Code.UNAVAILABLE),
    "no_route": (404, Code.UNIMPLEMENTED),
    "rate_limited": (429, Code.RESOURCE_EXHAUSTED),
    "bad_request": (400, Code.INTERNAL),
    "head_too_large": (431, Code.RESOURCE_EXHAUSTED),
}


class Router(Protocol):
    """What is asked of a daemon of conftest's."""

    url: str
    port: int

    async def ask(self, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        """Ask the admin listener."""


class Answer(NamedTuple):
    """`error` is the x-router-error, empty for what is none; `replica` is empty where none answered."""

    status: int
    error: str
    replica: str
    fields: Fields
    body: bytes = b""

    def get(self, name: str) -> str:
        """Return the one value of a field, empty without it."""
        found = [value for key, value in self.fields if key == name]
        assert len(found) <= 1, found
        return found[0] if found else ""


class Session(NamedTuple):
    """What a start was answered with."""

    id: str
    token: str
    replica: str
    host: str
    idle_timeout_s: int


def shown(token: str, way: str) -> Fields:
    """Return the header fields that show a token; none for the query."""
    if way == "modal":
        return [("modal-authorization", f"Bearer {token}".rstrip())]
    if way == "header":
        return [("x-router-session", token)]
    return [("cookie", f"{COOKIE}={token}")] if way == "cookie" else []


def with_query(path: str, token: str) -> str:
    """Return a path with the token as its last parameter."""
    return f"{path}{'&' if '?' in path else '?'}session_token={token}"


def judged(status: int, fields: Iterable[tuple[str, str]], body: bytes = b"", code: Code | None = None) -> Answer:
    """Turn what came into an `Answer`; what a protocol says of an error must be what the specification says."""
    found = Answer(status, "", "", [(name.lower(), value) for name, value in fields], body)
    error = found.get("x-router-error")
    if not error:
        assert code in (None, Code.OK), (code, found)
        return found._replace(replica=found.get("x-router-replica"))
    if status == 405:
        return found._replace(error=error)  # by a name that is not specified
    if code is not None:
        assert ERRORS[error][1] == code, (error, code)
    else:
        assert ERRORS[error][0] == status, (error, status)
        if status in (429, 503):
            assert int(found.get("retry-after")) >= 1
        if body:
            assert json.loads(body)["error"]["code"] == error
    assert found.get("x-router-upstream-reached") == "no"
    return found._replace(error=error)


# -- HTTP ------------------------------------------------------------------------------------------------


def http_client(protocol: str = "http1") -> httpx.AsyncClient:
    """Make a client with connections of its own, which follows no environment, redirect or cookie jar."""
    return httpx.AsyncClient(
        http1=protocol == "http1", http2=protocol == "http2", trust_env=False, verify=False, timeout=WITHIN_S
    )


async def send(
    client: httpx.AsyncClient, router: Router, host: str, target: str, fields: Fields | None = None,
    method: str = "POST", content: Any = b"x",
) -> Answer:  # fmt: skip
    """Make one request whose target goes out byte by byte as it stands."""
    answer = await client.request(
        method, router.url, content=content,
        headers=[(name.encode(), value.encode("latin-1")) for name, value in [*(fields or []), ("host", host)]],
        extensions={"target": target.encode()},
    )  # fmt: skip
    client.cookies.clear()
    return judged(answer.status_code, answer.headers.multi_items(), answer.content)


# -- one call in each protocol -----------------------------------------------------------------------------


async def use(
    protocol: str, router: Router, host: str, token: str = "", way: str = "header", fields: Fields | None = None,
    path: str = "",
) -> Answer:  # fmt: skip
    """Make one call on a connection of its own, as it stands: a redirect is an answer."""
    target = path or PATHS[protocol]
    if token and way == "query":
        target = with_query(target, token)
    sent = [*(fields or []), *(shown(token, way) if token else [])]
    async with asyncio.timeout(WITHIN_S):
        if protocol == "grpc":
            return await _grpc(router, host, target, sent)
        if protocol == "websocket":
            return await _websocket(router, host, target, sent)
        if protocol == "websocket_h2":
            return await _websocket_h2(router, host, target, sent)
        async with http_client(protocol) as client:
            return await send(client, router, host, target, sent)


async def follow(protocol: str, router: Router, session: Session, way: str = "header", fields: Fields | None = None) -> Answer:
    """Make one call with a session's token as a browser would: what the query led to is asked with the cookie."""
    answer = await use(protocol, router, session.host, session.token, way, fields)
    if way != "query" or protocol not in OF_HTTP or answer.error:
        return answer
    assert answer.status == 307, answer
    cookie = answer.get("set-cookie").partition(";")[0]
    return await use(
        protocol, router, session.host, fields=[*(fields or []), ("cookie", cookie)], path=answer.get("location")
    )


async def _websocket(router: Router, host: str, target: str, fields: Fields) -> Answer:
    try:
        async with connect(
            f"ws://{host}{target}", host="127.0.0.1", port=router.port, additional_headers=fields, proxy=None,
            close_timeout=5,
        ) as socket:  # fmt: skip
            await socket.send("hello")
            assert await socket.recv() == "hello"
            assert socket.response is not None
            return judged(101, socket.response.headers.raw_items())
    except InvalidStatus as refused:
        response = refused.response
        return judged(response.status_code, response.headers.raw_items(), bytes(response.body or b""))


async def _grpc(router: Router, host: str, target: str, fields: Fields) -> Answer:
    async with grpc_channel(router, host) as channel:
        made = channel.unary_unary(target)(b"x", metadata=tuple(fields), timeout=WITHIN_S)
        if (code := await made.code()) == Code.OK:
            assert await made == b"x"
            return judged(200, list(await made.initial_metadata()))
        told = [*(await made.trailing_metadata() or ()), *(await made.initial_metadata() or ())]
        answer = judged(200, told, code=code)
        assert answer.error, (code, await made.details())
        return answer


@asynccontextmanager
async def grpc_channel(router: Router, host: str) -> AsyncIterator[Any]:
    """Make a channel that says it calls `host`."""
    options = (
        ("grpc.default_authority", host), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )  # fmt: skip
    async with grpc.aio.insecure_channel(f"127.0.0.1:{router.port}", options=options) as channel:
        yield channel


async def _websocket_h2(router: Router, host: str, target: str, fields: Fields) -> Answer:
    """Extended CONNECT (RFC 8441), by the h2 library."""
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    head: Fields | None = None
    body = b""
    is_over = False
    try:
        peer.initiate_connection()
        peer.send_headers(1, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", target),
            (":authority", host), ("sec-websocket-version", "13"), *fields,
        ])  # fmt: skip
        while not is_over:
            writer.write(peer.data_to_send())
            data = await reader.read(65_536)
            assert data, "the connection ended"
            for event in peer.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    head = [(str(name), str(value)) for name, value in event.headers]
                    if head[0] == (":status", "200"):
                        peer.send_data(1, b"\x82\x85\0\0\0\0hello")
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    is_over = body == b"\x82\x05hello"
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                    is_over = True
        assert head is not None, "reset without an answer"
        status = int(head[0][1])
        assert status != 200 or body == b"\x82\x05hello"
        return judged(status, head[1:], body if status != 200 else b"")
    finally:
        writer.close()


@asynccontextmanager
async def holding(protocol: str, router: Router, session: Session) -> AsyncIterator[str]:
    """Keep one call of a session open and silent, from when the replica has answered; the replica's id."""
    fields = shown(session.token, "header")
    if protocol == "grpc":
        async with grpc_channel(router, session.host) as channel:
            call = channel.stream_stream("/kit.Kit/Bidi")(metadata=tuple(fields), timeout=60)
            await call.write(b"x")
            assert await call.read() == b"x"
            yield dict(await call.initial_metadata())["x-router-replica"]
            call.cancel()
    elif protocol == "websocket":
        url = f"ws://{session.host}/echo"
        async with connect(url, host="127.0.0.1", port=router.port, additional_headers=fields, proxy=None) as socket:
            assert socket.response is not None
            yield socket.response.headers["x-router-replica"]
            await socket.send("still there")
            assert await socket.recv() == "still there"
    else:
        headers = [*fields, ("host", session.host), ("x-sim-fault", "stall;after=0")]
        async with (
            http_client(protocol) as client,
            client.stream("POST", f"{router.url}/_sim/echo", headers=headers, content=b"x", timeout=60) as answer,
        ):
            assert answer.status_code == 200
            yield answer.headers["x-router-replica"]


# -- start and terminate -----------------------------------------------------------------------------------


async def start(
    router: Router, host: str, fields: Fields | None = None, *, path: str = "", protocol: str = "http1",
    method: str = "POST", content: bytes | None = None,
) -> Answer:  # fmt: skip
    """Ask for a session, on a connection of its own."""
    async with http_client(protocol) as client:
        return await send(client, router, host, f"{path}{START}", fields, method, content)


def read_session(answer: Answer, host: str) -> Session:
    """Check the answer to a start, all of it."""
    assert (answer.status, answer.error) == (200, ""), answer
    assert answer.get("cache-control") == "no-store"
    assert answer.get("content-type").startswith("application/json")
    found = json.loads(answer.body)
    assert found.keys() == {"session_id", "token", "idle_timeout_s"}
    # It goes into a cookie, a query and a header as it stands.
    assert re.fullmatch(r"[A-Za-z0-9._~-]{20,2048}", found["token"]), found["token"]
    assert re.fullmatch(r"[!-~]{1,64}", found["session_id"])
    assert answer.replica
    return Session(found["session_id"], found["token"], answer.replica, host, found["idle_timeout_s"])


async def opened(router: Router, host: str, fields: Fields | None = None, *, idle_s: int | None = None, **more: Any) -> Session:
    """Start a session that must be given."""
    sent = [*(fields or []), *([("x-router-session-idle-timeout", str(idle_s))] if idle_s else [])]
    session = read_session(await start(router, host, sent, **more), host)
    assert idle_s in (None, session.idle_timeout_s)
    return session


async def may_start(router: Router, host: str, fields: Fields, within_s: float = 10.0) -> Session:
    """Start sessions until a credential that was just made is known; the first that is given."""

    async def is_started() -> Answer | None:
        answer = await start(router, host, fields)
        return None if answer.error == "unauthenticated" else answer

    return read_session(await until(is_started, within_s), host)


async def terminate(router: Router, session: Session, way: str = "header", protocol: str = "http1") -> Answer:
    """Ask for the end of a session; where it is done the answer names it."""
    async with http_client(protocol) as client:
        answer = await send(client, router, session.host, TERMINATE, shown(session.token, way), content=None)
    if not answer.error:
        assert (answer.status, json.loads(answer.body)) == (200, {"session_id": session.id}), answer
    return answer


# -- what an operator sees ---------------------------------------------------------------------------------

_COLUMNS = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt")


async def rows(store: Any, endpoint: str) -> dict[str, dict[str, Any]]:
    """Return the rows of the table Sessions of an endpoint, by id."""
    sql = f"SELECT {', '.join(_COLUMNS)} FROM Sessions WHERE EndpointId = @e"
    async with store.writer() as writer:
        found = await writer.query(sql, {"e": endpoint})
    return {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in found}


def row_of(session: Session, found: Any) -> dict[str, Any] | None:
    """Return the object of a JSON answer that is about a session, wherever it stands in it."""
    if isinstance(found, dict):
        if session.id in [value for value in found.values() if isinstance(value, str)]:
            return found
        found = list(found.values())
    if isinstance(found, list):
        for inner in found:
            if (row := row_of(session, inner)) is not None:
                return row
    return None


async def is_listed(router: Router, session: Session) -> bool:
    """Whether the admin listener lists it; that is no use of it."""
    answer = await router.ask("/sessions")
    assert answer.status_code == 200, answer.text
    assert session.token not in answer.text
    return row_of(session, answer.json()) is not None


async def metric(router: Router, name: str, **labels: str) -> float:
    """Return one sample of /metrics, 0 where there is none."""
    text = (await router.ask("/metrics")).text
    for line in text.splitlines():
        key, _, value = line.rpartition(" ")
        if key.partition("{")[0] == name and all(f'{label}="{wanted}"' in key for label, wanted in labels.items()):
            return float(value)
    return 0.0


# -- waiting -----------------------------------------------------------------------------------------------


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 10.0) -> Any:
    """Ask until it is so; what it was."""
    deadline = monotonic() + within_s
    while not (found := await condition()):
        assert monotonic() < deadline, f"still {found!r} after {within_s} s"
        await asyncio.sleep(0.02)
    return found


async def answers(protocol: str, router: Router, session: Session, error: str, within_s: float = 10.0) -> Answer:
    """Use a session until the answer is `error`: tables and ends arrive some milliseconds after their commit."""
    last: Answer | None = None

    async def is_so() -> Answer | None:
        nonlocal last
        last = await use(protocol, router, session.host, session.token)
        return last if last.error == error else None

    try:
        found: Answer = await until(is_so, within_s)
    except AssertionError:
        raise AssertionError(f"not {error!r} but {last}") from None
    return found


# -- tokens that are not ours ------------------------------------------------------------------------------

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def percent(text: str) -> str:
    """Return a text with every byte percent-encoded."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


def forged(one: str, other: str) -> dict[str, str]:
    """Return tokens made of two real ones, of which none is real, by what was done."""
    made: dict[str, str] = {}
    for i, letter in enumerate(one):
        made[f"byte {i}"] = one[:i] + ALPHABET[(ALPHABET.find(letter) + 17) % 64] + one[i + 1 :]
        made[f"low bit of byte {i}"] = one[:i] + ALPHABET[ALPHABET.find(letter) ^ 1] + one[i + 1 :]
    for letter in ALPHABET:  # bits that base64 does not need must not be free
        made[f"last byte {letter}"] = one[:-1] + letter
    for length in range(1, len(one)):
        made[f"first {length}"] = one[:length]
        made[f"last {length}"] = one[-length:]
        made[f"{length} of one, the rest of the other"] = one[:length] + other[length:]
    for tail in ("A", "=", "==", ".", ".A", "%00", "\t.", ",", ";", "~"):
        made[f"and {tail!r}"] = one + tail
        made[f"{tail!r} and"] = tail.strip("\t") + one
    made |= {"twice": one + one, "reversed": one[::-1], "upper": one.upper(), "lower": one.lower()}
    made |= {"quoted": f'"{one}"', "encoded": percent(one), "blank": f"{one[:9]} {one[9:]}"}
    made |= {"base64": base64.b64encode(one.encode()).decode(), "none": "null", "dots": "..", "json": '{"session_id":"x"}'}
    return {what: token for what, token in made.items() if token not in (one, other)}
