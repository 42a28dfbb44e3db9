"""QUIC without I/O: packets, keys, recovery, streams, paths; RFC 8999, 9000, 9001, 9002, 9221.

`connection.py` is the whole of one connection, `seam.py` what a protocol on it sees. Imports no asyncio and
reads no clock: time is an argument, datagrams come in and go out as bytes.
"""
