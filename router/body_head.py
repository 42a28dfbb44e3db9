"""The bounded beginning of a request's body, for an endpoint that is chosen by what stands there.

The rest of the body is left where it is meanwhile. Imports nothing of the project.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_HEAD_BYTES: Final = 65_536
WAIT_S: Final = 10.0  # for so much of a body to come
MAX_LOOKS: Final = 8  # for a model while the body comes; each goes over all that is there
MAX_TOKENS: Final = 8_192  # looked at in a body that is cut off: some milliseconds

# A text that does not end is a token, too: an alternative that failed there would be tried at each quote.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}\[\]:,]', re.DOTALL)
_MODEL: Final = b'"model"'


class BodyHead:
    """What came of a body so far, in one piece. `is_whole` once it cannot say more; `has_ended`: that is all."""

    __slots__ = ("_bytes", "_looks", "has_ended", "is_whole", "limit")

    def __init__(self, limit: int = MAX_HEAD_BYTES) -> None:
        self.limit = limit
        self.has_ended = False
        self.is_whole = False
        self._bytes = bytearray()
        self._looks = 0

    def add(self, data: bytes, end: bool) -> None:
        """Take what came."""
        self._bytes += data
        self.has_ended = end
        self.is_whole = end or len(self._bytes) >= self.limit

    def taken(self) -> bytes:
        """Return all that came, to be sent on."""
        return bytes(self._bytes)

    def text(self) -> bytes:
        """Return the beginning, at most `limit` bytes."""
        return bytes(self._bytes[: self.limit])

    def may_name_model(self, last: int) -> bool:
        """Whether a look for a model is worth it, now that so many bytes more are there; a few times only."""
        if self._looks == MAX_LOOKS or self._bytes.find(_MODEL, max(0, len(self._bytes) - last - 64)) < 0:
            return False
        self._looks += 1
        return True


class _Asked(msgspec.Struct):
    model: str


_whole: Final = msgspec.json.Decoder(_Asked)


def find_model(body: BodyHead) -> str | None:
    """Return the `model` of a JSON object's top level, None where the beginning of the body names none."""
    text = body.text()
    if body.has_ended and len(text) < body.limit:
        try:
            return _whole.decode(text).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    return _find_in_part(text)


def _find_in_part(text: bytes) -> str | None:
    """Return the first top-level `model` of an object that is cut off."""
    depth = 0
    is_key = is_model = False
    for count, match in enumerate(_TOKEN.finditer(text)):
        token = match[0]
        if count > MAX_TOKENS:
            return None
        if token[:1] == b'"':
            if depth != 1:
                continue
            if is_model:
                return _text(token)
            is_model = is_key and token == _MODEL
            is_key = False
        elif token in (b"{", b"["):
            depth += 1
            is_key = depth == 1 and token == b"{"
            if is_model:
                return None  # it is no text
        elif token in (b"}", b"]"):
            depth -= 1
        elif token == b",":
            is_key = depth == 1
            if is_model:
                return None
    return None


def _text(token: bytes) -> str | None:
    try:
        found = msgspec.json.decode(token, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found
