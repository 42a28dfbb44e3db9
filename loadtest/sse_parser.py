"""Server-sent events, parsed as bytes arrive (WHATWG HTML §9.2.6), for the locust users.

Takes any cut of the stream: in the middle of a line, of a line ending, of a UTF-8 sequence. An event
without data is none; an unfinished one at the end of the stream is dropped, as the standard says.
Imports nothing of the project, and not locust: importing that patches the whole process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type (`message` unless named) and its data lines joined by newlines."""

    type: str
    data: str


class SseParser:
    """Feed it bytes, get the events they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False
        self._type = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes, in order."""
        # CR LF is one line ending, also when a read ends between the two.
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        if data:
            self._after_return = data.endswith(b"\r")
        text = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        events: list[Event] = []
        for line in lines:
            event = self._line(line.decode("utf-8", errors="replace"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            return None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._type = value
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._type or "message", "\n".join(self._data)) if self._data else None
        self._type = ""
        self._data = []
        return event
