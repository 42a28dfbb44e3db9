"""The first event of a stream, read before the response is passed on.

SGLang refuses a *stream* with HTTP 200 and an error in the first event, when its queue is full or the prompt
too long (0.5.23, `sglang.md` §3.4). Passed on, that is a success that cannot be repeated elsewhere; read in
time, it is the 503 or 400 it would have been without `stream`. So: hold back the head and at most `LIMIT_BYTES`
of the body, until the first event is whole, and decide once. Everything that is not surely a refusal passes,
unchanged. Pure: no I/O, no clock.

    first event                                                      decision
    data: {"error": {…, "code": 400…599}}                            Refused
    data: {"object": "error", …, "code": 400…599}                    Refused
    data: {…, "meta_info": {"finish_reason": {"type": "abort", "status_code": 400…599}}}    Refused
    any other, a comment, longer than the limit, or cut short        Pass
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

LIMIT_BYTES: Final = 4_096
MESSAGE_CHARACTERS: Final = 500
RETRY_AFTER_S: Final = 1  # a queue moves with each step of the engine
_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:")
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")  # an empty line, whatever ends lines there
_LINE_END = re.compile(rb"\r\n|\n|\r")
_JSON: Final = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass the response on; `held` is what of its body has been fed so far."""

    held: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer with `status` instead, and drop the response; `message` is the engine's, for the log."""

    status: int
    message: str

    @property
    def retry_after_s(self) -> int:
        """Return what `retry-after` should say; 0 for no such header."""
        return RETRY_AFTER_S if self.status in (429, 503) else 0


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Not decided yet: keep the head back and feed what comes next."""


Decision = Pass | Refused | NeedMore
_MORE: Final = NeedMore()


def is_stream(status: int, content_type: bytes) -> bool:
    """Return whether a response with this head is one to look into."""
    return status == 200 and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


class FirstEvent:
    """Decides about one response. After a Pass or Refused it must not be fed again."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Decision:
        """Take the next bytes of the body."""
        self._held = held = self._held + data if self._held else data
        end = _EVENT_END.search(held, 0, LIMIT_BYTES)
        if end is None:
            return Pass(held) if len(held) >= LIMIT_BYTES or not _may_refuse(held) else _MORE
        refused = _read(held[: end.start()])
        return Pass(held) if refused is None else refused

    def end(self) -> Pass:
        """The body ended, or was cut, before the first event was whole."""
        return Pass(self._held)


def _may_refuse(held: bytes) -> bool:
    """Whether the first event can still be a refusal; a comment means that the engine is at work."""
    start = held.removeprefix(_BOM)
    return _BOM.startswith(held) or any(name.startswith(start) or start.startswith(name) for name in _FIELDS)


def _read(event: bytes) -> Refused | None:
    lines = _LINE_END.split(event.removeprefix(_BOM))
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    if not data.startswith(b"{"):
        return None
    try:
        parsed: Any = _JSON.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _refusal(parsed)


def _refusal(parsed: dict[str, Any]) -> Refused | None:
    error = parsed.get("error")
    if isinstance(error, dict):
        return _refused(error.get("code"), error)
    if parsed.get("object") == "error":
        return _refused(parsed.get("code"), parsed)
    meta = parsed.get("meta_info")
    finish = meta.get("finish_reason") if isinstance(meta, dict) else None
    if isinstance(finish, dict) and finish.get("type") == "abort":
        return _refused(finish.get("status_code"), finish)
    return None


def _refused(code: object, error: dict[str, Any]) -> Refused | None:
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:3]) if len(code) == 3 else 0
    if not isinstance(code, int) or isinstance(code, bool) or not 400 <= code <= 599:
        return None
    message = error.get("message")
    return Refused(code, message[:MESSAGE_CHARACTERS] if isinstance(message, str) else "")
