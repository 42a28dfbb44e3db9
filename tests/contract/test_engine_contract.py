"""What a router may rely on in an engine: one suite for the simulated engine and for the real SGLang on a CPU.

    python -m inference_backend sglang-cpu install      # once: makes the real one
    pytest tests/contract/test_engine_contract.py       # both
    pytest tests/contract/test_engine_contract.py -m 'not slow'

Whether the real one ran is said at the end of every run that comes by here: "ran", "not asked", or "not present".
Where the two may differ (texts, ids, times) only the shape is compared.
"""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

import httpx
import pytest
import pytest_asyncio
from toldkit import NOT_ASKED, told

from inference_backend.launch import ReplicaProcess, SglangProcess
from inference_backend.sglang_cpu.place import NOT_PRESENT, Place
from router.first_event import FirstEvent, Pass, Refused, is_stream

REAL_SGLANG = "engine contract, real SGLang"
REAL = pytest.mark.slow
ENGINES = ["simulated", pytest.param("real", marks=[REAL, pytest.mark.timeout(300)])]
pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT, RUNNING, QUEUED = 4_096, 4, 2
HELLO = [{"role": "user", "content": "hello there"}]
CHAT = {"model": "m", "messages": HELLO, "ignore_eos": True}
PROMPT = {"model": "m", "prompt": "once upon a time", "ignore_eos": True}
GENERATE = {"text": "once upon a time", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
LONG = 3_500  # tokens: many seconds on either engine
FULL = {"object": "error", "message": "The request queue is full.", "param": None, "code": 503}


@pytest.fixture(scope="session", autouse=True)
def real_is_told():
    told.setdefault(REAL_SGLANG, NOT_ASKED)


async def start(kind, *flags, **options):
    """Start an engine of that kind; the real one is skipped, and said to be, where there is none."""
    if kind == "simulated":
        return await ReplicaProcess.simulate(profile="tiny", time_scale=2, **options).start()
    if not Place().is_present:
        told[REAL_SGLANG] = NOT_PRESENT
        pytest.skip(f"real SGLang: {NOT_PRESENT}")
    told[REAL_SGLANG] = "did not start"
    process = await SglangProcess(*flags).start()
    told[REAL_SGLANG] = "ran"
    return process


@pytest_asyncio.fixture(params=ENGINES, scope="module", loop_scope="module")
async def engine(request):
    flags = ("--max-running-requests", str(RUNNING), "--max-queued-requests", str(QUEUED))
    async with await start(request.param, *flags, max_running=RUNNING, max_queued=QUEUED) as process:
        process.kind = request.param
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine):
    limits = httpx.Limits(max_keepalive_connections=0)  # what a connection becomes afterwards is asked below
    async with httpx.AsyncClient(base_url=engine.url, timeout=60, limits=limits) as client:
        yield client


@pytest_asyncio.fixture(params=ENGINES, loop_scope="module")
async def own_engine(request):
    """One that a test may end. Only the real one is costly."""
    async with await start(request.param) as process:
        process.kind = request.param
        yield process


def events(text):
    """The JSON of each event, after checking the end."""
    assert text.endswith("\n\ndata: [DONE]\n\n")
    frames = text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame[6:]) for frame in frames[:-1]]


def shape(value):
    """A value with its texts and numbers replaced by their kind; keys in order."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return value if value is None or isinstance(value, bool) else type(value).__name__


async def running(client):
    load = (await client.get("/v1/loads?include=core")).json()["loads"][0]
    return load["num_running_reqs"] + load["num_waiting_reqs"]


async def idle_within(client, limit_s):
    """How long the engine took to have nothing to do."""
    begin = monotonic()
    while await running(client):
        assert monotonic() - begin < limit_s, "the engine still works for nobody"
        await asyncio.sleep(0.01)
    return monotonic() - begin


@asynccontextmanager
async def streaming(client, body, path="/v1/chat/completions"):
    """A stream whose first event has come: its request is running, not waiting."""
    async with client.stream("POST", path, json=body | {"stream": True}) as reply:
        pieces = reply.aiter_bytes()
        await anext(pieces)
        yield reply, pieces


USAGE = [
    ("prompt_tokens", "int"),
    ("total_tokens", "int"),
    ("completion_tokens", "int"),
    ("prompt_tokens_details", [("cached_tokens", "int")]),
    ("reasoning_tokens", "int"),
]
DETAILED = [*USAGE, ("completion_tokens_details", None)]
HEAD = [("id", "str"), ("object", "str"), ("created", "int"), ("model", "str")]


def choice(delta, finish=None):
    last = [("logprobs", None), ("finish_reason", finish), ("matched_stop", None)]
    return ("choices", [[("index", "int"), delta, *last]])


# -- streams


async def test_the_head_of_a_stream(client):
    async with streaming(client, CHAT | {"max_tokens": 2}) as (reply, pieces):
        assert reply.status_code == 200 and reply.http_version == "HTTP/1.1"
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["transfer-encoding"] == "chunked" and "content-length" not in reply.headers
        assert reply.headers["vary"] == "Origin" and reply.headers["server"] == "uvicorn"
        assert "x-request-id" not in reply.headers and "connection" not in reply.headers
        assert is_stream(reply.status_code, reply.headers["content-type"].encode())
        async for _ in pieces:
            pass


async def test_a_chat_stream(client):
    body = CHAT | {"max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, "rid": "r" * 32}
    reply = await client.post("/v1/chat/completions", json=body)
    role, *content, final, usage = events(reply.text)
    reasoning = ("reasoning_content", None)
    assert shape(role) == [*HEAD, choice(("delta", [reasoning, ("role", "str"), ("content", "str")]))]
    assert 1 <= len(content) <= 6  # a token that is half a character brings no frame
    for frame in content:
        assert shape(frame) == [*HEAD, choice(("delta", [reasoning, ("content", "str")]))]
    assert shape(final) == [*HEAD, choice(("delta", [reasoning]), "str")]
    assert final["choices"][0]["finish_reason"] == "length"
    assert shape(usage) == [*HEAD, ("choices", []), ("usage", DETAILED)]
    assert usage["usage"]["completion_tokens"] == 6
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 6
    assert {frame["id"] for frame in (role, *content, final, usage)} == {"r" * 32}
    assert {frame["model"] for frame in (role, *content, final, usage)} == {"m"}, "any name is served, and echoed"
    assert role["object"] == "chat.completion.chunk"
    assert isinstance(FirstEvent().feed(reply.content), Pass)


async def test_usage_in_each_frame_when_asked_for(client):
    options = {"continuous_usage_stats": True, "include_usage": True}
    body = CHAT | {"max_tokens": 4, "stream": True, "stream_options": options}
    frames = events((await client.post("/v1/chat/completions", json=body)).text)
    counts = [frame["usage"]["completion_tokens"] for frame in frames if frame.get("usage")]
    assert counts == sorted(counts) and counts[-1] == 4 and len(counts) > 1


async def test_a_completions_stream(client):
    body = PROMPT | {"max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    *content, last, usage = events((await client.post("/v1/completions", json=body)).text)
    for frame in content:
        assert shape(frame) == [*HEAD, choice(("text", "str")), ("usage", None)]
    assert shape(last) == [*HEAD, choice(("text", "str"), "str"), ("usage", None)], "the end is in the last text"
    assert shape(usage) == [*HEAD, ("choices", []), ("usage", USAGE)]
    assert last["object"] == "text_completion" and usage["usage"]["completion_tokens"] == 4


async def test_a_generate_stream_is_cumulative(client):
    body = GENERATE | {"stream": True, "rid": "mine"}
    frames = events((await client.post("/generate", json=body)).text)
    ids = [frame["output_ids"] for frame in frames]
    assert all(list(frame) == ["text", "output_ids", "meta_info"] for frame in frames)
    assert len(ids[-1]) == 4 and all(ids[-1][: len(some)] == some for some in ids)
    assert all(frames[-1]["text"].startswith(frame["text"].rstrip("\ufffd")) for frame in frames)
    meta = frames[-1]["meta_info"]
    assert [frame["meta_info"]["finish_reason"] for frame in frames] == [None] * (len(frames) - 1) + [
        {"type": "length", "length": 4}
    ]
    assert meta["id"] == "mine" and meta["completion_tokens"] == 4
    for key in ("prompt_tokens", "cached_tokens", "cached_tokens_details", "num_retractions", "queue_time"):
        assert key in meta
    assert meta["dp_rank"] is None and meta["weight_version"] == "default" and meta["first_token_latency"] > 0


# -- whole answers


async def test_whole_answers(client):
    reply = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3})
    assert reply.headers["content-type"] == "application/json" and "content-length" in reply.headers
    version = [("version", "str"), ("start", "int"), ("end", "int")]
    metadata = ("metadata", [("weight_version", "str"), ("weight_versions", [version])])
    message = ("message", [("role", "str"), ("content", "str"), ("reasoning_content", None)])
    assert shape(reply.json()) == [*HEAD, choice(message, "str"), ("usage", DETAILED), metadata]
    assert reply.json()["usage"]["completion_tokens"] == 3
    reply = await client.post("/v1/completions", json=PROMPT | {"max_tokens": 3})
    assert shape(reply.json()) == [*HEAD, choice(("text", "str"), "str"), ("usage", DETAILED), metadata]
    reply = await client.post("/generate", json=GENERATE)
    assert list(reply.json()) == ["text", "output_ids", "meta_info"] and len(reply.json()["output_ids"]) == 4


# -- errors

SHAPE_ERROR = ("object", "message", "type", "param", "code")


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/chat/completions", b"{bad", "Bad Request"),
        ("/v1/chat/completions", b'{"model":"m"}', "Bad Request"),
        ("/v1/chat/completions", b'{"model":"m","messages":[]}', "BadRequestError"),
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":NaN}]}', "Bad Request"),
        ("/v1/chat/completions", b"", "Bad Request"),
        ("/v1/completions", b"{bad", "Bad Request"),
        ("/v1/completions", b'{"model":"m"}', "Bad Request"),
        ("/v1/completions", b"[1]", "Bad Request"),
        ("/generate", b"{bad", "Bad Request"),
        ("/generate", b"[1]", "Bad Request"),
    ],
)
async def test_a_bad_body_is_400(client, path, body, kind):
    reply = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.headers["content-type"] == "application/json"
    assert tuple(reply.json()) == SHAPE_ERROR
    assert (reply.json()["code"], reply.json()["param"], reply.json()["type"]) == (400, None, kind)


async def test_a_generate_without_input_is_refused_in_its_own_shape(client):
    reply = await client.post("/generate", json={"rid": "x"})
    assert reply.status_code == 400
    assert reply.json() == {"error": {"message": "Either text, input_ids or input_embeds should be provided."}}


async def test_another_content_type_is_400(client):
    reply = await client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 400 and reply.json()["type"] == "Bad Request"


async def test_paths_and_methods(client):
    missing = await client.get("/nope")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert (await client.get("/get_load")).status_code == 404
    for method, path, allow in [("GET", "/v1/chat/completions", "POST"), ("HEAD", "/ready", "GET")]:
        wrong = await client.request(method, path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, allow)
    unknown = await client.get("/v1/models/nobody")
    assert unknown.status_code == 404
    assert shape(unknown.json()) == [("error", [("message", "str"), ("type", "str"), ("param", "str"), ("code", "str")])]
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert (await client.get("/")).json() == "SGLang is running"


async def test_a_prompt_that_is_too_long(client):
    text = "x y z " * 20_000
    for path, body in [
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", PROMPT | {"prompt": text}),
    ]:
        for stream in (False, True):
            reply = await client.post(path, json=body | {"stream": stream, "max_tokens": 5})
            assert reply.status_code == 400 and tuple(reply.json()) == SHAPE_ERROR, "before the head, stream or not"
    whole = await client.post("/generate", json=GENERATE | {"text": text})
    assert whole.status_code == 400 and list(whole.json()) == ["error"]
    stream = await client.post("/generate", json=GENERATE | {"text": text, "stream": True})
    assert stream.status_code == 200, "refused in the first event"
    (refusal,) = events(stream.text)
    assert shape(refusal) == [("error", [("message", "str"), ("type", "str"), ("code", "int"), ("retryable", False)])]
    assert FirstEvent().feed(stream.content) == Refused(400, refusal["error"]["message"])


async def test_what_raises_inside_is_500_and_cuts_the_connection_unannounced(engine):
    """uvicorn closes after an application's exception without saying `connection: close`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(engine.url).port)
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n[1]"
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 500") and b"connection:" not in head
    async with asyncio.timeout(2):
        assert await reader.read() == b"Internal Server Error"
    writer.close()
    await writer.wait_closed()


# -- what a router asks


async def test_ready_and_health(client):
    ready = await client.get("/ready")
    assert (ready.status_code, ready.content) == (200, b"") and "content-type" not in ready.headers
    assert ready.elapsed.total_seconds() < 0.5
    await idle_within(client, 10)
    health = await client.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    assert 0.9 <= health.elapsed.total_seconds() < 3, "an idle engine generates a token, and looks once a second"


async def test_models(client):
    listed = (await client.get("/v1/models")).json()
    (card,) = listed["data"]
    names = ["id", "object", "created", "owned_by", "root", "parent", "max_model_len"]
    assert listed["object"] == "list" and list(card) == names and card["owned_by"] == "sglang"
    assert (await client.get(f"/v1/models/{card['id']}")).json() == card


LOAD = (
    "timestamp", "dp_rank", "num_running_reqs", "num_waiting_reqs", "num_waiting_uncached_tokens", "num_used_tokens",
    "num_total_tokens", "num_active_tokens", "num_prealloc_ready_tokens", "max_total_num_tokens",
    "max_running_requests", "token_usage", "gen_throughput", "cache_hit_rate", "utilization",
    "total_prefill_uncached_tokens", "total_prefill_busy_us", "decode_moments",
)  # fmt: skip


async def test_loads(client):
    async with streaming(client, CHAT | {"max_tokens": LONG}):
        reply = await client.get("/v1/loads?include=core")
    found = reply.json()
    assert list(found) == ["timestamp", "version", "accelerator", "num_accelerators", "loads"]
    (load,) = found["loads"]
    assert tuple(load) == LOAD
    assert load["num_running_reqs"] == 1 and load["max_running_requests"] == RUNNING
    assert len(load["decode_moments"]) == 6 and all(isinstance(moment, float) for moment in load["decode_moments"])
    await idle_within(client, 5)
    (load,) = (await client.get("/v1/loads?include=core,queues")).json()["loads"]
    assert list(load["queues"]) == ["waiting", "grammar", "paused", "retracted", "prealloc_ready"]


async def test_server_info_and_model_info(client):
    info = (await client.get("/server_info")).json()
    assert info["frontend"] == "python" and info["version"] == "0.5.23"
    for key in ("served_model_name", "dp_size", "tp_size", "page_size", "max_total_num_tokens", "kv_events", "internal_states"):
        assert key in info
    assert (await client.get("/get_server_info")).status_code == 200
    model = (await client.get("/model_info")).json()
    assert model["is_generation"] is True and model["weight_version"] == "default"


async def test_metrics(client):
    reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert reply.headers["content-encoding"] == "gzip", "for a client that accepts it"
    for name in ("num_running_reqs", "num_queue_reqs", "token_usage", "gen_throughput", "max_total_num_tokens"):
        assert f"\nsglang:{name}{{" in reply.text
    plain = await client.get("/metrics/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


# -- a queue that is full


async def test_a_full_queue(client):
    async with AsyncExitStack() as stack:
        for _ in range(RUNNING):
            await stack.enter_async_context(streaming(client, CHAT | {"max_tokens": LONG}))
        waiting = [
            asyncio.ensure_future(client.post("/v1/completions", json=PROMPT | {"max_tokens": 1})) for _ in range(QUEUED)
        ]
        while await running(client) < RUNNING + QUEUED:
            await asyncio.sleep(0.01)
        for path, body in [("/v1/chat/completions", CHAT), ("/v1/completions", PROMPT), ("/generate", GENERATE)]:
            whole = await client.post(path, json=body | {"max_tokens": 1})
            assert whole.status_code == 503 and "retry-after" not in whole.headers
            stream = await client.post(path, json=body | {"max_tokens": 1, "stream": True})
            assert stream.status_code == 200 and is_stream(200, stream.headers["content-type"].encode())
            assert whole.json() == FULL | {"type": "503"} and tuple(whole.json()) == SHAPE_ERROR
            (refusal,) = events(stream.text)
            if path == "/generate":
                aborted = {"type": "abort", "status_code": 503, "message": FULL["message"]}
                assert refusal["meta_info"]["finish_reason"] == aborted and refusal["output_ids"] == []
            else:
                assert refusal == {"error": FULL | {"type": "SERVICE_UNAVAILABLE"}}
                assert stream.text.startswith('data: {"error": {"object": "error", "message": ')
            assert FirstEvent().feed(stream.content) == Refused(503, FULL["message"])
    for reply in await asyncio.gather(*waiting):
        assert reply.status_code == 200, "what waited is served when there is room"
    await idle_within(client, 5)


# -- clients that go, and requests that are taken back


async def test_a_stream_that_is_closed_is_aborted(client):
    async with streaming(client, CHAT | {"max_tokens": LONG}):
        assert await running(client) == 1
    assert await idle_within(client, 5) < 1


async def test_a_whole_answer_nobody_waits_for_is_aborted(client):
    task = asyncio.ensure_future(client.post("/v1/chat/completions", json=CHAT | {"max_tokens": LONG}))
    while not await running(client):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await idle_within(client, 7)  # SGLang looks every 4 s


@pytest.mark.parametrize("how", [{"rid": "taken-back"}, {"abort_all": True}])
async def test_abort_request(client, how):
    async with streaming(client, CHAT | {"max_tokens": LONG, "rid": "taken-back"}) as (_, pieces):
        reply = await client.post("/abort_request", json=how)
        assert (reply.status_code, reply.content) == (200, b"") and "content-type" not in reply.headers
        rest = b"".join([piece async for piece in pieces]).decode()
    assert events(rest)[-1]["choices"][0]["finish_reason"] == "abort"
    assert (await client.post("/abort_request", json={"rid": "nobody"})).status_code == 200


# -- connections and the end


@pytest.mark.slow
async def test_an_idle_connection_is_cut_after_five_seconds(engine):
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(engine.url).port)
    writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"connection:" not in (await reader.readuntil(b"\r\n\r\n")).lower()
    begin = monotonic()
    assert await reader.read() == b""
    assert 4.9 < monotonic() - begin < 5.3
    writer.close()
    await writer.wait_closed()


async def test_sigterm_drains(own_engine):
    """503 on /ready and /health at once, new requests still served, the stream finishes, exit code 0."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=own_engine.url, timeout=60, limits=limits) as client:
        async with streaming(client, CHAT | {"max_tokens": 600}) as (_, pieces):
            begin = monotonic()
            own_engine.send_signal(signal.SIGTERM)
            while (await client.get("/ready")).status_code != 503:
                assert monotonic() - begin < 1
            assert (await client.get("/health")).status_code == 503
            assert (await client.post("/v1/completions", json=PROMPT | {"max_tokens": 1})).status_code == 200
            rest = b"".join([piece async for piece in pieces]).decode()
    assert events(rest)[-1]["choices"][0]["finish_reason"] == "length"
    assert await own_engine.wait() == 0
    assert monotonic() - begin < 25


async def test_a_killed_engine_leaves_its_streams_without_an_end(own_engine):
    async with httpx.AsyncClient(base_url=own_engine.url, timeout=60) as client:
        async with streaming(client, CHAT | {"max_tokens": LONG}) as (_, pieces):
            os.kill(own_engine.pid, signal.SIGKILL)
            got = b""
            with pytest.raises(httpx.TransportError):
                async for piece in pieces:
                    got += piece
        assert b"[DONE]" not in got
        assert await refuses_within(own_engine.url, 2)


async def refuses_within(url, limit_s):
    """Poll until nobody listens. A connect in the moment of death may still be accepted, and is then reset."""
    begin = monotonic()
    while monotonic() - begin < limit_s:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            continue
        writer.close()
    return False


# -- the other front end of the real one: what a router must not assume


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_rust_front_end():
    """No /ready, a fast /health, refusals of another shape, and no drain: SIGTERM cuts what is in flight."""
    if not Place().is_present:
        told[REAL_SGLANG] = NOT_PRESENT
        pytest.skip(f"real SGLang: {NOT_PRESENT}")
    flags = ("--max-running-requests", "1", "--max-queued-requests", "1")
    async with (
        SglangProcess(*flags, env={"SGLANG_RUST_SERVER": "1"}) as process,
        httpx.AsyncClient(base_url=process.url, timeout=60) as client,
    ):
        assert (await client.get("/ready")).status_code == 404
        health = await client.get("/health")
        assert health.status_code == 200 and health.elapsed.total_seconds() < 0.5
        assert (await client.get("/server_info")).json()["frontend"] == "rust"
        (load,) = (await client.get("/v1/loads?include=core")).json()["loads"]
        assert tuple(load) == LOAD
        reply = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3, "stream": True})
        assert reply.text.endswith("\n\ndata: [DONE]\n\n") and "server" not in reply.headers
        begin = monotonic()
        async with streaming(client, CHAT | {"max_tokens": LONG}) as (_, pieces):
            waiting = asyncio.ensure_future(client.post("/v1/completions", json=PROMPT | {"max_tokens": 1}))
            while await running(client) < 2:
                await asyncio.sleep(0.01)
            for path, body in [("/v1/chat/completions", CHAT), ("/v1/completions", PROMPT), ("/generate", GENERATE)]:
                assert (await client.post(path, json=body)).status_code == 503
                stream = await client.post(path, json=body | {"stream": True})
                assert stream.status_code == 200
                assert FirstEvent().feed(stream.content) == Refused(503, FULL["message"])
            begin = monotonic()
            process.send_signal(signal.SIGTERM)
            got = b""
            with pytest.raises(httpx.TransportError):
                async for piece in pieces:
                    got += piece
            assert b"[DONE]" not in got
        with pytest.raises(httpx.TransportError):
            await waiting
        assert await refuses_within(process.url, 5)
        await process.wait()
        assert monotonic() - begin < 10
