"""Every bound of WebTransport by name. Streams, windows and datagrams are the engine's, lanes the application's."""

from __future__ import annotations

from typing import Final

MAX_SESSIONS: Final = 8
"""Of a connection at a time, and what is announced; browsers put one on each unless they are told otherwise."""
MAX_WAITING_STREAMS: Final = 16
"""Streams of a connection whose session is not known yet: they overtook its CONNECT."""
MAX_WAITING_BYTES: Final = 65_536
"""Of what they brought, together; it is not credited before it is read."""
MAX_WAITING_DATAGRAMS: Final = 16
"""Likewise; a further one is dropped, as datagrams may be."""
MAX_REASON_BYTES: Final = 1_024
"""Of the text in CLOSE_WEBTRANSPORT_SESSION (draft-07 §5)."""
MAX_CAPSULE_BYTES: Final = 65_536
"""Of a DATAGRAM in a capsule."""
