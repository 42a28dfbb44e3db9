"""The Huffman code of HPACK and QPACK (RFC 7541 §5.2, Appendix B). Decoding only: ours are sent as they are.

The code is canonical, so that its lengths say everything. Decoding goes four bits at a time through a table
of the code's tree; no code is shorter than five bits, so a step ends at most one. Strings repeat from
request to request, so short ones are remembered.
"""

from __future__ import annotations

from typing import Final

# Bits of the code of each byte 0…255, then of EOS, as letters: a is 1, z 26, A 27.
_LENGTHS: Final = (
    "mwBBBBBBBxDBBDBBBBBBBBDBBBBBBBBBfjjlmfhkjjhkhfffeeefffffffghofljmfgggggggggggggggggggggghghmsmnf"
    "oefefefffeggfffefgfeefgggggoknmBtvttvvvwvwwwwwxwxxvwxwwwwuvwvwwxvutvvwwuwvvxuvwwuuvuwvwwtvvvwvvw"
    "zztsvwvyzzzAAzxysuzAAzAxuuzzBAAAtxtuvuuwvvyyxxzwzAzzAAAAABAAAAAzD"
)
_EOS: Final = 256
_BROKEN: Final = -1
_NOTHING: Final = -1

MEMO_STRINGS: Final = 1_024
MEMO_STRING_BYTES: Final = 128  # decoded ones are at most 8/5 of it


def _tree() -> list[list[int]]:
    """Return nodes as [child on 0, child on 1]; a child below 0 is the leaf of symbol -1 - child."""
    nodes: list[list[int]] = [[0, 0]]
    code = 0
    before = 0
    lengths = [ord(letter) - 96 if letter >= "a" else ord(letter) - 38 for letter in _LENGTHS]
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        code <<= length - before
        before = length
        at = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[at][bit]:
                nodes.append([0, 0])
                nodes[at][bit] = len(nodes) - 1
            at = nodes[at][bit]
        nodes[at][code & 1] = -1 - symbol
        code += 1
    return nodes


def _table() -> tuple[list[int], list[int], list[bool]]:
    """Return by node * 16 + four bits the next node and the symbol ended; and the nodes one may end in."""
    nodes = _tree()
    following: list[int] = []
    symbols: list[int] = []
    for start in range(len(nodes)):
        for nibble in range(16):
            at, symbol = start, _NOTHING
            for shift in (3, 2, 1, 0):
                at = nodes[at][nibble >> shift & 1]
                if at < 0:
                    symbol, at = -1 - at, 0
                    if symbol == _EOS:  # RFC 7541 §5.2: never in a string
                        at = _BROKEN
                        break
            following.append(at)
            symbols.append(symbol)
    may_end = [False] * len(nodes)
    at = 0
    for _ in range(8):  # padding is up to seven bits of the code of EOS, which is all ones
        may_end[at] = True
        at = nodes[at][1]
    return following, symbols, may_end


_FOLLOWING, _SYMBOLS, _MAY_END = _table()
_memo: Final[dict[bytes, bytes]] = {}


def decode(raw: bytes) -> bytes | None:
    """Return the string that `raw` stands for; None if it is none (RFC 7541 §5.2)."""
    known = _memo.get(raw)
    if known is not None:
        return known
    found = bytearray()
    at = 0
    following, symbols = _FOLLOWING, _SYMBOLS
    for byte in raw:
        step = at * 16 + (byte >> 4)
        at = following[step]
        if at < 0:
            return None
        if symbols[step] >= 0:
            found.append(symbols[step])
        step = at * 16 + (byte & 15)
        at = following[step]
        if at < 0:
            return None
        if symbols[step] >= 0:
            found.append(symbols[step])
    if not _MAY_END[at]:
        return None
    text = bytes(found)
    if len(raw) <= MEMO_STRING_BYTES:
        if len(_memo) >= MEMO_STRINGS:
            _memo.clear()
        _memo[raw] = text
    return text
