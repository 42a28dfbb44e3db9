"""A tokenizer without a model: four bytes of UTF-8 are one token.

Every token the engine generates is a space and a three-letter syllable, so n tokens are 4 * n ASCII bytes
that need no JSON escape. A conversation whose next turn repeats the answer therefore continues the very byte
string whose KV the engine has cached, and a prefix cache keyed on bytes sees what one keyed on tokens would.

Text is a window into one fixed ring of 4,096 tokens; where it starts is decided by the prompt and the seed.
So any n tokens cost one slice, and two replicas with one seed answer alike.
"""

from __future__ import annotations

from random import Random
from zlib import crc32

TOKEN_BYTES = 4
_RING_TOKENS = 4_096
_FIRST_ID = 1_000  # below it a real vocabulary keeps its special tokens


def _ring() -> bytes:
    syllables = [f" {a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdgklmnprstx"]
    random = Random(4)
    return "".join(random.choice(syllables) for _ in range(_RING_TOKENS)).encode()


_TEXT = _ring() * 2


def token_count(text: bytes) -> int:
    """Count the tokens of `text`; the last one may be short."""
    return -(-len(text) // TOKEN_BYTES)


def pack_ids(ids: list[int]) -> bytes:
    """Make token ids a prompt of the same number of tokens."""
    return b"".join((token & 0xFFFF_FFFF).to_bytes(TOKEN_BYTES, "little") for token in ids)


def text_start(prompt: bytes, seed: int) -> int:
    """Where in the ring the answer to `prompt` begins."""
    return crc32(prompt, seed & 0xFFFF_FFFF) % _RING_TOKENS


def generated_text(start: int, first: int, count: int) -> bytes:
    """Tokens `first` to `first + count` of the answer that begins at `start` of the ring."""
    at = (start + first) % _RING_TOKENS
    if at + count <= 2 * _RING_TOKENS:
        return _TEXT[at * TOKEN_BYTES : (at + count) * TOKEN_BYTES]
    parts = [_TEXT[at * TOKEN_BYTES : _RING_TOKENS * TOKEN_BYTES]]
    left = count - (_RING_TOKENS - at)
    while left > 0:
        parts.append(_TEXT[: min(left, _RING_TOKENS) * TOKEN_BYTES])
        left -= _RING_TOKENS
    return b"".join(parts)


def generated_ids(start: int, first: int, count: int) -> list[int]:
    """Return the ids of the same tokens."""
    return [_FIRST_ID + (start + first + index) % _RING_TOKENS for index in range(count)]
