"""The bytes that every measurement sends and answers: one chat completion, as SDKs and SGLang write it.

The request carries the ten headers an OpenAI client sends, the answer the eight of an engine behind
uvicorn with a trace; event frames have the size and fields of SGLang's chunks (about 240 bytes).
WebSocket messages are 100 bytes, masked as RFC 6455 §5.3 asks of a client. All constants, so that
generator and replica spend their time on the socket. Imports nothing of the project.
"""

from __future__ import annotations

import json

MODEL = "qwen2.5-0.5b"
CHAT_PATH = "/v1/chat/completions"
POLICY_PATH = "/policy"
MESSAGE_BYTES = 100

_COMPLETION = {
    "id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "object": "chat.completion",
    "created": 1760000000,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "It is the network a machine keeps to itself: nothing on it meets a wire.",
                "reasoning_content": None,
                "tool_calls": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": 151645,
        }
    ],
    "usage": {
        "prompt_tokens": 31,
        "total_tokens": 50,
        "completion_tokens": 19,
        "prompt_tokens_details": None,
    },
}
COMPLETION = json.dumps(_COMPLETION, separators=(",", ":")).encode()

RESPONSE_HEADERS = (
    (b"server", b"uvicorn"),
    (b"cache-control", b"no-store"),
    (b"vary", b"Origin"),
    (b"access-control-allow-origin", b"*"),
    (b"x-engine-queue-ms", b"0.21"),
    (b"x-engine-model", MODEL.encode()),
)


def chat_body(*, stream: bool) -> bytes:
    """JSON of a small chat completion request."""
    return json.dumps(
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "What is the loopback interface of a machine for?"},
            ],
            "max_tokens": 64,
            "temperature": 0.0,
            "stream": stream,
        }
    ).encode()


def chat_request(host: str, *, stream: bool) -> bytes:
    """Head and body of the POST, with the headers of the OpenAI SDK for Python."""
    body = chat_body(stream=stream)
    head = (
        f"POST {CHAT_PATH} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        f"Accept: {'text/event-stream' if stream else 'application/json'}\r\n"
        "Accept-Encoding: identity\r\n"
        "Connection: keep-alive\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "User-Agent: OpenAI/Python 1.60.0\r\n"
        "Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n"
        "X-Stainless-Lang: python\r\n"
        "X-Stainless-Retry-Count: 0\r\n"
        "\r\n"
    )
    return head.encode() + body


def chat_fields(*, stream: bool) -> list[tuple[bytes, bytes]]:
    """Head of the same POST as HTTP/3 has it (RFC 9114 §4.2, §4.3)."""
    head = chat_request("localhost", stream=stream).partition(b"\r\n\r\n")[0]
    fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    pseudo = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost")]
    pseudo.append((b":path", CHAT_PATH.encode()))
    return pseudo + [(name.lower(), value) for name, value in fields if name not in {b"Host", b"Connection"}]


def event(index: int) -> bytes:
    """One server-sent event, as SGLang writes a chunk of a stream."""
    frame = {
        "id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "delta": {"reasoning_content": None, "content": f" {index:04d}"},
                "logprobs": None,
                "finish_reason": None,
                "matched_stop": None,
            }
        ],
    }
    return b"data: " + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Frame `data` as one chunk of a chunked body (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


DONE_EVENT = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"

# A fixed key and its answer, from RFC 6455 §1.3: the generator checks that the proxy kept both.
WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET_ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
_MASK = b"\x37\xfa\x21\x3d"


def upgrade_request(host: str) -> bytes:
    """Head of a WebSocket handshake (RFC 6455 §4.1)."""
    return (
        f"GET {POLICY_PATH} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {WEBSOCKET_KEY}\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "User-Agent: loadtest\r\n"
        "\r\n"
    ).encode()


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Apply the mask of RFC 6455 §5.3; its own inverse."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def client_message(size: int = MESSAGE_BYTES) -> bytes:
    """One masked binary frame of `size` (below 126) bytes."""
    assert size < 126
    return bytes((0x82, 0x80 | size)) + _MASK + unmask(bytes(range(size)), _MASK)


def server_message(payload: bytes) -> bytes:
    """One unmasked binary frame of a short (below 126 bytes) payload."""
    assert len(payload) < 126
    return bytes((0x82, len(payload))) + payload
