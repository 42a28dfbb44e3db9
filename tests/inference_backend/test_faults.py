"""The table of faults: parsed, then provoked on each kind of answer and seen from a bare socket."""

import asyncio
import json

import httpx
import pytest

from inference_backend import faults
from inference_backend.launch import ReplicaProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("die-mid-stream", faults.Plan(in_body="die", after=1)),
        ("die-mid-stream;after=3;how=rst", faults.Plan(in_body="die", after=3, with_reset=True)),
        ("stall", faults.Plan(in_body="stall")),
        ("stall; after=2", faults.Plan(in_body="stall", after=2)),
        ("status=429;retry-after=7", faults.Plan(before_head="status", status=429, retry_after=7)),
        ("slow;ms=200, status=500", faults.Plan(delay_s=0.2, before_head="status", status=500)),
        ("kill", faults.Plan(before_head="kill")),
        ("kill;after=2", faults.Plan(in_body="kill", after=2)),
        ("reset-before-head", faults.Plan(before_head="reset-before-head")),
    ],
)
async def test_headers_parse(header, expected):
    assert faults.parse(header) == expected


@pytest.mark.parametrize(
    "header", ["", "explode", "stall;before=3", "status=x", "slow;ms=-1", "die-mid-stream;how=x"]
)
async def test_a_bad_header_names_the_known_faults(header):
    parsed = faults.parse(header)
    assert isinstance(parsed, str) and faults.KNOWN_TEXT in parsed


async def provoke(url, path, fault, body, within_s=5.0):
    """What a bare socket sees: the bytes, and how they ended ("eof", "reset" or "open")."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-sim-fault: {fault}\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    received = b""
    try:
        async with asyncio.timeout(within_s):
            while piece := await reader.read(65_536):
                received += piece
        end = "eof"
    except ConnectionResetError:
        end = "reset"
    except TimeoutError:
        end = "open"
    writer.close()
    await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
    return received, end


ANSWERS = [
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 5}, "stream": True}),
    ("/_sim/echo", {}),
]


@pytest.mark.parametrize(("path", "body"), ANSWERS)
async def test_before_the_head(engine, path, body):
    assert await provoke(engine.url, path, "close-before-head", body) == (b"", "eof")
    assert await provoke(engine.url, path, "reset-before-head", body) == (b"", "reset")
    assert await provoke(engine.url, path, "stall-before-head", body, within_s=0.1) == (b"", "open")
    assert await provoke(engine.url, path, "slow;ms=5000", body, within_s=0.1) == (b"", "open")


@pytest.mark.parametrize(("path", "body"), ANSWERS)
async def test_replies(client, path, body):
    refused = await client.post(path, json=body, headers={"x-sim-fault": "status=429;retry-after=2"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    unknown = await client.post(path, json=body, headers={"x-sim-fault": "explode"})
    assert unknown.status_code == 400 and "die-mid-stream" in unknown.json()["message"]
    slow = await client.post(path, json=body, headers={"x-sim-fault": "slow;ms=30"})
    assert slow.status_code == 200 and slow.elapsed.total_seconds() >= 0.03


@pytest.mark.parametrize(("path", "body"), [ANSWERS[0], ANSWERS[2]])
@pytest.mark.parametrize("after", [0, 1, 3, 50])
async def test_a_stream_dies_after_so_many_frames(engine, path, body, after):
    received, end = await provoke(engine.url, path, f"die-mid-stream;after={after}", body)
    most = len([frame for frame in (await _whole_stream(engine.url, path, body)) if frame])
    assert end == "eof" and received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.count(b"data: ") == min(after, most)
    assert not received.endswith(b"0\r\n\r\n")


async def _whole_stream(url, path, body):
    async with httpx.AsyncClient(base_url=url) as client:
        return (await client.post(path, json=body)).text.split("\n\n")


@pytest.mark.parametrize(("path", "body"), [ANSWERS[1], ANSWERS[3]])
async def test_a_whole_body_dies_in_the_middle(engine, path, body):
    received, end = await provoke(engine.url, path, "die-mid-stream", body)
    head, _, sent = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert end == "eof" and len(sent) == length // 2
    received, _ = await provoke(engine.url, path, "die-mid-stream;after=0", body)
    assert received.endswith(b"\r\n\r\n")


async def test_a_dying_stream_can_end_in_a_reset(engine):
    received, end = await provoke(
        engine.url, *ANSWERS[0][:1], "die-mid-stream;after=2;how=rst", ANSWERS[0][1]
    )
    assert end == "reset" and received.count(b"data: ") in (0, 1, 2)


@pytest.mark.parametrize(("path", "body"), ANSWERS[:2])
async def test_a_stall_stays_open_until_the_client_goes(engine, eventually, record_of, path, body):
    rid = f"stalled-{body.get('stream', False)}"
    received, end = await provoke(engine.url, path, "stall;after=3", body | {"rid": rid}, within_s=0.1)
    assert end == "open" and received
    assert received.count(b"data: ") == (3 if body.get("stream") else 0)
    record = await eventually(lambda: record_of(engine.url, rid))
    assert record["state"] == "aborted" and record["ended_at"] - record["received_at"] > 0.09


async def test_a_dead_stream_is_recorded_as_failed(engine, eventually, record_of):
    await provoke(engine.url, "/v1/chat/completions", "die-mid-stream", ANSWERS[0][1] | {"rid": "dead"})
    assert (await eventually(lambda: record_of(engine.url, "dead")))["state"] == "failed"


@pytest.mark.parametrize("fault", ["kill", "kill;after=2"])
async def test_kill_ends_the_process(fault):
    async with ReplicaProcess.simulate(profile="tiny") as replica:
        received, _ = await provoke(replica.url, "/v1/chat/completions", fault, ANSWERS[0][1])
        assert await replica.wait() == faults.KILL_EXIT
        assert received.count(b"data: ") == (2 if "after" in fault else 0)
