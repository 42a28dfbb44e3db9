"""No, said in one packet and without a connection: CONNECTION_CLOSE in an Initial packet (RFC 9000 §5.2.2, §8.1.3).

Its keys follow from the id that the client made up. Imports its neighbours only.
"""

from __future__ import annotations

from router.transport.codec.quic.keys import SAMPLE_BYTES, initial_keys
from router.transport.codec.quic.packet import INITIAL, write_long
from router.transport.codec.quic.varint import varint

_CLOSE = b"\x1c"  # of the transport's kind


def make_refusal(destination_id: bytes, source_id: bytes, code: int) -> bytes:
    """Answer a client's Initial, which went to `destination_id` and came from `source_id`.

    With a single packet it needs neither its number nor an acknowledgement to be right: it is number 0, and the
    server is called what the client called it.
    """
    key, _ = initial_keys(destination_id, is_server=True)
    payload = _CLOSE + varint(code) + b"\0\0"  # no frame caused it, and there is no more to be said
    payload += bytes(max(0, SAMPLE_BYTES - len(payload)))
    header = write_long(INITIAL, source_id, destination_id, b"", 1)
    header += varint(1 + len(payload) + 16) + b"\0"
    sealed = key.seal(0, header, payload)
    mask = key.mask(sealed[3 : 3 + SAMPLE_BYTES])  # four bytes behind where the number begins
    return bytes((header[0] ^ (mask[0] & 0x0F),)) + header[1:-1] + bytes((header[-1] ^ mask[1],)) + sealed
