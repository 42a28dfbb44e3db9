"""Bytes: sockets, codecs, pools. Layer 1 (`codec`: no asyncio) and layer 2 (the shells around it)."""
