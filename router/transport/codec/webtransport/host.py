"""Who is asked when a session begins: what the browser asked for, and what is made of it. Types, and one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.http import Headers
    from router.transport.codec.quic.seam import Application, Bearer


class Asked:
    """The CONNECT of a session. `fields` are without pseudo-fields and what belongs to WebTransport."""

    __slots__ = ("authority", "fields", "path")

    def __init__(self, authority: bytes, path: bytes, fields: Headers) -> None:
        self.authority = authority
        self.path = path
        self.fields = fields


@trait
class SessionHost:
    """The owner of what is spoken in sessions."""

    __slots__ = ()

    def protocol(self) -> bytes:
        """Return the name of what is spoken, for clients that ask for one by name."""
        raise NotImplementedError

    def begin_session(self, bearer: Bearer, asked: Asked, now: float) -> Application:
        """Return what speaks in a new session; `connected` follows."""
        raise NotImplementedError

    def session_over(self) -> None:
        """A session that began is over, whoever ended it."""
        raise NotImplementedError

    def stream_rejected(self) -> None:
        """A stream was turned away: of a session that is gone, never was, or did not come in time."""
        raise NotImplementedError
