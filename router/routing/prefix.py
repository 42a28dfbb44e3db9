"""Which replica has computed the beginning of a prompt before: hashes of a body's chunks, remembered by replica.

The engine caches prefixes; the router does not know the engine's tokens, but conversations repeat their beginning
byte by byte, and so do system prompts. A body's beginning is cut into chunks; each chunk's hash covers everything
before it. A cell of shared memory for each hash says who was sent it last, so that all workers of a host know the
same. Cells are overwritten when hashes meet; a wrong hint costs a cache miss and nothing else. Pure.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

MAX_PROMPT_BYTES: Final = 32_768  # of a body that are looked at
SMALL_BYTES: Final = 512  # a chunk within the first …
SMALL_CHUNKS: Final = 8  # … so many, and …
LARGE_BYTES: Final = 2_048  # … behind them
CELLS: Final = 1_048_576  # 8 MiB of shared memory; some 40,000 conversations of 8 KiB
MIN_SHARE: Final = 0.3  # of what is looked at that must be known for a prompt to follow it

_FIELDS: Final = (b'"messages"', b'"prompt"', b'"input"', b'"text"', b'"input_ids"')
"""In which a prompt is sent: of chat, completions, responses and embeddings, and SGLang's own. Taken for a key
wherever they stand, since a wrong guess is a hint that helps nobody and nothing worse."""
_SLOT_BITS: Final = 20
_SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
_HASH_BYTES: Final = 8


class Prompt:
    """The beginning of one body: hashes of prefixes, each longer than the one before, and their ends in bytes."""

    __slots__ = ("ends", "hashes", "size")

    def __init__(self, body: bytes, salt: bytes) -> None:
        """`salt`, of 16 bytes, keeps endpoints apart. Parameters before the prompt are cut off."""
        for field in _FIELDS:
            start = body.find(field)
            if start > 0:
                body = body[start:]
                break
        self.size = size = min(len(body), MAX_PROMPT_BYTES)
        self.hashes: list[int] = []
        self.ends: list[int] = []
        before, at, step, count = b"", 0, SMALL_BYTES, 0
        while at + step <= size:
            at += step
            count += 1
            before = blake2b(body[at - step : at], digest_size=_HASH_BYTES, key=salt, salt=before).digest()
            self.hashes.append(int.from_bytes(before, "big"))
            self.ends.append(at)
            if count == SMALL_CHUNKS:
                step = LARGE_BYTES


class PrefixBoard:
    """Who was sent which prefix last; cells of a buffer that workers may share, and a secret that they do share.

    With the secret nobody can make a prompt that meets another tenant's, and learn by it what was asked there.
    """

    __slots__ = ("_cells", "_mask", "_secret")

    def __init__(self, buffer: memoryview, secret: bytes = b"") -> None:
        """The buffer's size in cells of eight bytes must be a power of two."""
        self._cells = buffer.cast("Q")
        self._mask = len(self._cells) - 1
        self._secret = secret

    def salt(self, endpoint: str) -> bytes:
        """Return what an endpoint's prompts are hashed with."""
        return blake2b(endpoint.encode(), digest_size=16, key=self._secret).digest()

    def find(self, prompt: Prompt) -> tuple[int, int]:
        """Return slot and size in bytes of the longest prefix that somebody was sent; (-1, 0) for none."""
        cells, mask, hashes = self._cells, self._mask, prompt.hashes
        for i in range(len(hashes) - 1, -1, -1):
            found = hashes[i]
            cell = cells[found & mask]
            if cell and cell >> _SLOT_BITS == found >> _SLOT_BITS:
                return cell & _SLOT_MASK, prompt.ends[i]
        return -1, 0

    def record(self, prompt: Prompt, slot: int) -> None:
        """Note who is sent it now."""
        cells, mask = self._cells, self._mask
        for found in prompt.hashes:
            cells[found & mask] = found >> _SLOT_BITS << _SLOT_BITS | slot
