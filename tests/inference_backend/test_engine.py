"""The surface of the engine, seen by clients that nobody here wrote: the openai SDK and httpx."""

import asyncio
import hashlib
import json
from time import monotonic

import httpx
import openai
import pytest
import pytest_asyncio

from inference_backend.launch import ReplicaProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = [{"role": "user", "content": "hello there"}]


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(engine):
    async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def sse(text):
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    assert frames[-1] == "[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


async def test_sdk_chat_whole_and_streamed_say_the_same(sdk):
    whole = await sdk.chat.completions.create(model="any", messages=HELLO, max_tokens=9)
    assert whole.model == "any" and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 9 and whole.usage.prompt_tokens == 16
    stream = await sdk.chat.completions.create(
        model="any", messages=HELLO, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and len(text) == 36
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.total_tokens == 25
    assert len(chunks) == 1 + 9 + 1 + 1


async def test_sdk_completions_whole_and_streamed_say_the_same(sdk):
    whole = await sdk.completions.create(model="any", prompt="once upon", max_tokens=5)
    stream = await sdk.completions.create(model="any", prompt="once upon", max_tokens=5, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text and len(text) == 20


async def test_an_answer_without_max_tokens_stops_by_itself(sdk):
    whole = await sdk.chat.completions.create(model="any", messages=HELLO)
    assert whole.choices[0].finish_reason == "stop" and 1 <= whole.usage.completion_tokens <= 256


async def test_a_repeated_prompt_reports_cached_tokens(sdk):
    messages = [{"role": "user", "content": "a prompt of some length " * 40}]
    for expected in (0, 192):
        whole = await sdk.chat.completions.create(model="any", messages=messages, max_tokens=1)
        assert whole.usage.prompt_tokens_details.cached_tokens == expected


async def test_chat_frames_are_those_of_sglang(client):
    body = {"model": "m", "messages": HELLO, "max_tokens": 2, "stream": True, "rid": "a" * 32}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["transfer-encoding"] == "chunked" and reply.headers["vary"] == "Origin"
    role, first, _, final = sse(reply.text)
    created = role["created"]
    assert reply.text.split("\n\n")[1] == (
        'data: {"id":"'
        + "a" * 32
        + '","object":"chat.completion.chunk","created":'
        + str(created)
        + ',"model":"m","choices":[{"index":0,"delta":{"reasoning_content":null,"content":"'
        + first["choices"][0]["delta"]["content"]
        + '"},"logprobs":null,"finish_reason":null,"matched_stop":null}]}'
    )
    assert role["choices"][0]["delta"] == {"reasoning_content": None, "role": "assistant", "content": ""}
    assert final["choices"][0] == {
        "index": 0,
        "delta": {"reasoning_content": None},
        "logprobs": None,
        "finish_reason": "length",
        "matched_stop": None,
    }


async def test_continuous_usage_is_in_every_content_frame(client):
    body = {
        "model": "m",
        "messages": HELLO,
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"continuous_usage_stats": True},
    }
    frames = sse((await client.post("/v1/chat/completions", json=body)).text)
    assert [frame["usage"]["completion_tokens"] for frame in frames[1:4]] == [1, 2, 3]


async def test_generate_is_cumulative(client):
    body = {"text": "hi there", "sampling_params": {"max_new_tokens": 3}, "rid": "mine"}
    whole = (await client.post("/generate", json=body)).json()
    frames = sse((await client.post("/generate", json=body | {"stream": True})).text)
    assert [len(frame["output_ids"]) for frame in frames] == [1, 2, 3]
    assert [len(frame["text"]) for frame in frames] == [4, 8, 12]
    assert frames[-1]["text"] == whole["text"]
    assert [frame["meta_info"]["finish_reason"] for frame in frames] == [
        None,
        None,
        {"type": "length", "length": 3},
    ]
    assert frames[-1]["meta_info"]["id"] == "mine" and frames[-1]["meta_info"]["prompt_tokens"] == 2
    ids = await client.post(
        "/generate", json={"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 1}}
    )
    assert ids.json()["meta_info"]["prompt_tokens"] == 3


async def test_the_request_id_comes_from_the_body_or_the_override_header(
    client, engine, eventually, record_of
):
    body = {"model": "m", "messages": HELLO, "max_tokens": 1, "rid": "from-body"}
    assert (await client.post("/v1/chat/completions", json=body)).json()["id"] == "from-body"
    headers = {"x-override-rid": "from-header", "X-Trace": "kept"}
    reply = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert reply.json()["id"] == "from-header" and "x-request-id" not in reply.headers
    record = await record_of(engine.url, "from-header")
    assert record["state"] == "finished" and record["tokens"] == 1 and record["prompt_tokens"] == 16
    assert record["headers"]["x-trace"] == "kept" and record["path"] == "/v1/chat/completions"
    assert record["ended_at"] >= record["received_at"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b"{bad"),
        ("/v1/chat/completions", b'{"model":"m"}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[]}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":NaN}]}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"a"}],"n":2}'),
        (
            "/v1/chat/completions",
            b'{"model":"m","messages":[{"role":"user","content":"a"}],"max_tokens":99999}',
        ),
        ("/v1/completions", b'{"model":"m","prompt":["a","b"]}'),
        ("/v1/completions", b'{"model":"m","prompt":"\xff"}'),
        ("/v1/completions", b'{"model":"m","prompt":"' + b"long" * 50_000 + b'"}'),
    ],
)
async def test_a_bad_body_is_400_with_the_error_object(client, path, body):
    reply = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json() | {"message": "", "type": ""} == {
        "object": "error",
        "message": "",
        "type": "",
        "param": None,
        "code": 400,
    }
    assert reply.json()["type"] in ("Bad Request", "BadRequestError")


async def test_generate_refuses_in_its_own_words(client):
    reply = await client.post("/generate", content=b"{bad", headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.json()["type"] == "Bad Request"
    reply = await client.post("/generate", json={})
    assert reply.status_code == 400 and reply.json()["error"]["message"]
    long = {"text": "long" * 50_000, "stream": True}
    reply = await client.post("/generate", json=long)
    assert reply.status_code == 200
    (frame,) = sse(reply.text)
    assert frame["error"]["type"] == "invalid_request_error" and frame["error"]["retryable"] is False
    assert (await client.post("/generate", json=long | {"stream": False})).status_code == 400


async def test_other_content_types_paths_and_methods(client):
    reply = await client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 400
    missing = await client.get("/nope")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    wrong = await client.delete("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


async def test_introspection(client):
    assert (await client.get("/ready")).status_code == 200
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/health_generate")).status_code == 200
    card = (await client.get("/v1/models")).json()["data"][0]
    assert card["id"] == "Qwen/Qwen3-8B"
    assert (await client.get("/v1/models/Qwen/Qwen3-8B")).json() == card
    assert (await client.get("/v1/models/other")).status_code == 404
    for path in ("/model_info", "/get_model_info", "/server_info", "/get_server_info"):
        assert (await client.get(path)).json()["model_path"] == "Qwen/Qwen3-8B"
    assert (await client.get("/server_info")).json()["frontend"] == "python"
    assert (await client.post("/flush_cache")).status_code == 200


async def test_loads_and_metrics(client):
    core = (await client.get("/v1/loads?include=core")).json()
    (load,) = core["loads"]
    assert load["dp_rank"] == 0 and len(load["decode_moments"]) == 6 and "queues" not in load
    assert core["version"] == "0.5.23" and core["timestamp"].endswith("+00:00")
    both = (await client.get("/v1/loads?include=core,queues")).json()
    assert both["loads"][0]["queues"]["waiting"] == 0
    text = (await client.get("/metrics")).text
    for name in (
        "num_running_reqs",
        "num_queue_reqs",
        "token_usage",
        "gen_throughput",
        "generation_tokens_total",
    ):
        assert f'sglang:{name}{{dp_rank="0",engine_type="unified",model_name="Qwen/Qwen3-8B"' in text


async def nothing_follows_a_head(client):
    """RFC 9110 §9.3.2: a body behind it would be taken for the next answer. That is sent, so it must come next."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    lines = b"/_sim/bytes?n=1000&length=1 HTTP/1.1\r\nhost: e\r\n"
    writer.write(b"HEAD " + lines + b"\r\n" + b"GET " + lines + b"connection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    head, again, body = answers.split(b"\r\n\r\n", 2)
    assert b"content-length: 1000" in head.lower() and again.startswith(b"HTTP/1.1 200 ") and len(body) == 1_000


async def test_echo_bytes_and_sink(client):
    reply = await client.put("/_sim/echo/a/b?c=d%20e", content=b"body", headers={"X-Mixed": "1"})
    echoed = reply.json()
    assert (echoed["method"], echoed["path"]) == ("PUT", "/_sim/echo/a/b?c=d%20e")
    assert ["X-Mixed", "1"] in echoed["headers"] and echoed["length"] == 4
    assert echoed["sha256"] == hashlib.sha256(b"body").hexdigest()
    expected = bytes(index & 255 for index in range(300_001))
    for length in ("0", "1"):
        reply = await client.get(f"/_sim/bytes?n=300001&chunk=777&length={length}")
        assert reply.content == expected
        assert ("content-length" in reply.headers) == (length == "1")
    await nothing_follows_a_head(client)
    sink = (await client.post("/_sim/sink", content=expected)).json()
    assert sink == {"length": 300_001, "sha256": hashlib.sha256(expected).hexdigest()}


async def test_sdk_cancel_of_a_stream_frees_the_slot_within_50_ms(slow_engine, eventually, record_of):
    async with openai.AsyncOpenAI(base_url=f"{slow_engine.url}/v1", api_key="none") as sdk:
        stream = await sdk.chat.completions.create(model="m", messages=HELLO, max_tokens=5_000, stream=True)
        rid = ""
        async for chunk in stream:
            rid = chunk.id
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        closed = monotonic()
        record = await eventually(lambda: record_of(slow_engine.url, rid))
    assert record["state"] == "aborted" and record["tokens"] < 1_000
    assert record["ended_at"] - closed < 0.05  # one machine, one monotonic clock


async def test_a_whole_answer_nobody_waits_for_frees_the_slot_within_50_ms(
    slow_engine, eventually, record_of
):
    async with httpx.AsyncClient(base_url=slow_engine.url) as client:
        body = {"model": "m", "messages": HELLO, "max_tokens": 5_000, "rid": "unary-gone"}
        task = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))

        async def is_running():
            return (await client.get("/_sim/requests?limit=0")).json()["running"]

        await eventually(is_running)
        task.cancel()
        await asyncio.wait([task])
        closed = monotonic()
        record = await eventually(lambda: record_of(slow_engine.url, "unary-gone"))
        assert record["state"] == "aborted" and record["ended_at"] - closed < 0.05
        load = (await client.get("/v1/loads")).json()["loads"][0]
    assert load["num_running_reqs"] == 0 and load["num_used_tokens"] == 0


@pytest.mark.parametrize("how", [{"rid": "to-abort"}, {"rid": "to-"}, {"abort_all": True}])
async def test_abort_request_ends_stream_and_whole_with_reason_abort(slow_engine, eventually, how):
    async with httpx.AsyncClient(base_url=slow_engine.url) as client:
        body = {"model": "m", "messages": HELLO, "max_tokens": 5_000, "rid": "to-abort"}
        tasks = [
            asyncio.ensure_future(client.post("/v1/chat/completions", json=body | {"stream": stream}))
            for stream in (True, False)
        ]

        async def both_run():
            return (await client.get("/v1/loads")).json()["loads"][0]["num_running_reqs"] == 2

        await eventually(both_run)
        reply = await client.post("/abort_request", json=how)
        assert (reply.status_code, reply.content) == (200, b"")
        streamed, whole = await asyncio.gather(*tasks)
    assert sse(streamed.text)[-1]["choices"][0]["finish_reason"] == "abort"
    assert whole.json()["choices"][0]["finish_reason"] == "abort"


async def test_a_full_queue_is_503_or_an_error_frame():
    async with (
        ReplicaProcess.simulate(time_scale=0, max_queued=0) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        body = {"model": "m", "messages": HELLO, "max_tokens": 1}
        whole = await client.post("/v1/chat/completions", json=body)
        assert whole.status_code == 503 and "retry-after" not in whole.headers
        assert whole.json() == {
            "object": "error",
            "message": "The request queue is full.",
            "type": "503",
            "param": None,
            "code": 503,
        }
        stream = await client.post("/v1/chat/completions", json=body | {"stream": True})
        assert stream.status_code == 200
        assert sse(stream.text) == [
            {
                "error": {
                    "object": "error",
                    "message": "The request queue is full.",
                    "type": "SERVICE_UNAVAILABLE",
                    "param": None,
                    "code": 503,
                }
            }
        ]
        assert stream.text.startswith('data: {"error": {"object": "error", "message": ')
        prompt = {"text": "hi", "rid": "full"}
        assert (await client.post("/generate", json=prompt)).json() == whole.json()
        (frame,) = sse((await client.post("/generate", json=prompt | {"stream": True})).text)
        assert frame["meta_info"]["finish_reason"]["status_code"] == 503 and frame["output_ids"] == []


async def test_speculation_puts_a_burst_into_one_frame():
    async with (
        ReplicaProcess.simulate(time_scale=0, acceptance="0.9,0.9,0.9") as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        body = {"model": "m", "messages": HELLO, "max_tokens": 200, "stream": True}
        frames = sse((await client.post("/v1/chat/completions", json=body)).text)[1:-1]
        lengths = [len(frame["choices"][0]["delta"]["content"]) // 4 for frame in frames]
        assert sum(lengths) == 200 and max(lengths) == 4 and len(lengths) < 100
        loads = (await client.get("/v1/loads?include=core,spec")).json()["loads"][0]
        assert 2.5 < loads["speculative"]["accept_length"] <= 4


async def test_steps_take_their_time(slow_engine):
    async with httpx.AsyncClient(base_url=slow_engine.url) as client:
        body = {"model": "m", "messages": HELLO, "max_tokens": 200}
        begin = monotonic()
        await client.post("/v1/chat/completions", json=body)
        assert 0.38 < monotonic() - begin < 2  # 200 steps of 2.01 ms on timers of 1 ms


async def test_a_slow_reader_gets_merged_frames_and_the_whole_text(engine, client):
    body = json.dumps({"text": "slow", "sampling_params": {"max_new_tokens": 3_000}, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(engine.url).port, limit=1_024)
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    writer.write(head % len(body) + b"connection: close\r\n\r\n" + body)
    await asyncio.sleep(0.3)  # long enough for the engine to be far ahead of a socket nobody reads
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    frames = received.count(b"data: {")
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert frames < 2_000  # not one per step
    assert b'"length":3000' in received
