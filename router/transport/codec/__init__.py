"""Protocols as state machines without I/O: bytes in, the seam's verbs out."""
